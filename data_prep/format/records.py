"""What the manifests of all kinds of prepared data sets have in common, and how a broken one is told of."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from data_prep.errors import AffsupError

MANIFEST_FILE = "manifest.json"


class Record(BaseModel):
    """A part of a manifest: nothing more and nothing else than its fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class FileRecord(Record):
    """One file, or one folder: then the size is the sum, and the checksum that of its `sha256sum` listing by name."""

    sha256: str
    bytes: int


class SourceRecord(Record):
    """Where the images came from, and whether every checksum that the publisher gives for it matched.

    `official` is None where the publisher gives no checksum for this kind of source.
    """

    kind: Literal["archive", "folder", "download", "embedded"]
    files: dict[str, FileRecord]
    official: bool | None
    algorithm: Literal["md5"] | None


class CommonManifest(Record):
    """What every prepared data set says of itself.

    Attributes:
        format: Version of the prepared format.
        dataset: Name of the data set, and of its folder.
        classes: Class names; a label is an index into them.
        limit: How many official training images were asked for; None for all.
        official_counts: Images that the publisher's data set has for training and for testing.
        complete: All of the official images are here.
        source: Where they came from.
        files: The files beside this manifest.
        digest: SHA-256 of the content: equal for equal data, whatever the source.
        affsup: Version that prepared it.
    """

    format: Literal[1]
    dataset: str
    classes: list[str]
    limit: int | None
    official_counts: dict[Literal["train", "test"], int]
    complete: bool
    source: SourceRecord
    files: dict[str, FileRecord]
    digest: str = Field(pattern="^[0-9a-f]{64}$")
    affsup: str

    def for_a_run(self) -> dict[str, Any]:
        """What a run's record keeps of the data that it was trained on."""
        return {
            "name": self.dataset,
            "digest": self.digest,
            "limit": self.limit,
            "complete": self.complete,
            "official": self.source.official,
            "classes": self.classes,
        }


def write_manifest(folder: Path, manifest: CommonManifest) -> None:
    """Write `manifest.json` into a folder."""
    (folder / MANIFEST_FILE).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")


def verify_file(folder: Path, manifest: CommonManifest, name: str) -> None:
    """Make sure that a file of a prepared data set has the size and the checksum that its manifest says.

    Raises:
        AffsupError: It has not, or is not there.
    """
    path = folder / name
    if not path.exists():
        raise not_prepared(folder)
    expected = manifest.files[name]
    size = path.stat().st_size
    if size != expected.bytes:
        raise AffsupError(f"{path} has {size:,} bytes, its manifest says {expected.bytes:,}: {again(folder)}")
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if sha256 != expected.sha256:
        raise AffsupError(f"{path} has SHA-256 {sha256}, its manifest says {expected.sha256}: {again(folder)}")


def verify_content(folder: Path, manifest: CommonManifest, name: str, digest: str) -> None:
    """Make sure that the content of a file is what its manifest says.

    Raises:
        AffsupError: It is not.
    """
    if digest != manifest.digest:
        raise AffsupError(f"{folder / name} has content {digest}, its manifest says {manifest.digest}: {again(folder)}")


def class_counts(labels: NDArray[np.int64], classes: int) -> list[int]:
    """How many labels there are of each class."""
    return [int(n) for n in np.bincount(labels, minlength=classes)]


def not_prepared(folder: Path) -> AffsupError:
    """The error for a data set that is not there."""
    return AffsupError(f"data set {folder.name!r} is not prepared in {folder.parent}/: run `{_command(folder)}`")


def again(folder: Path) -> str:
    """What to do about a data set that is damaged."""
    return f"run `{_command(folder)}` to prepare it again"


def _command(folder: Path) -> str:
    return f"affsup prepare {folder.name}" + ("" if folder.parent == Path("data") else f" --data {folder.parent}")
