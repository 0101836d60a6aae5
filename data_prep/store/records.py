"""The common part of all manifests, and error messages for damaged data sets."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from data_prep.errors import AffsupError, shorten

MANIFEST_FILE = "manifest.json"


class Record(BaseModel):
    """A part of a manifest; unknown fields and other types are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class FileRecord(Record):
    """Checksum and size of a file; of a folder, the checksum of its `sha256sum` listing and the total size."""

    sha256: str
    bytes: int


class SourceRecord(Record):
    """The source of a data set, and whether its official checksums matched.

    `official` is None if there is no official checksum for this kind of source.
    """

    kind: Literal["archive", "folder", "download", "embedded"]
    files: dict[str, FileRecord]
    official: bool | None
    algorithm: Literal["md5"] | None


class DefinitionRecord(Record):
    """How a data set that is not part of affsup was defined.

    Attributes:
        argument: The argument of `affsup prepare`: the name of a layout, or the path of a Python file.
        size: Pixels per side that were requested for its images, or None.
    """

    argument: str
    size: int | None


class CommonManifest(Record):
    """The fields that all manifests have.

    Attributes:
        format: Version of the prepared format.
        dataset: Name of the data set, and of its folder.
        classes: Class names; a label is an index into them.
        limit: Requested number of official training images; None for all.
        official_counts: Number of official training and test images.
        complete: Whether all official images are included.
        source: The source of the data.
        files: The data files of the folder.
        digest: SHA-256 of the content, which does not depend on the source.
        affsup: Version of affsup that prepared the data set.
        definition: Its definition if it is user-defined; None if it is part of affsup or of another installed package.
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
    definition: DefinitionRecord | None = None

    def run_record(self) -> dict[str, Any]:
        """Return the description of the data set that a run folder keeps."""
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
    """Check that a file of a prepared data set has the size and the checksum of its manifest.

    Raises:
        AffsupError: It has not, or is missing.
    """
    path = folder / name
    if not path.exists():
        raise not_prepared(folder)
    expected = manifest.files[name]
    size = path.stat().st_size
    if size != expected.bytes:
        raise AffsupError(f"{path} has {size:,} bytes, its manifest says {expected.bytes:,}: {remedy(folder)}")
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if sha256 != expected.sha256:
        raise AffsupError(f"{path} has SHA-256 {sha256}, its manifest says {expected.sha256}: {remedy(folder)}")


def verify_content(folder: Path, manifest: CommonManifest, name: str, digest: str) -> None:
    """Check that the digest of a file's content is that of the manifest.

    Raises:
        AffsupError: It is not.
    """
    if digest != manifest.digest:
        raise AffsupError(
            f"{folder / name} has content {digest}, its manifest says {manifest.digest}: {remedy(folder)}"
        )


def class_counts(labels: NDArray[np.int64], classes: int) -> list[int]:
    """Return the number of labels of each class."""
    return [int(n) for n in np.bincount(labels, minlength=classes)]


def not_prepared(folder: Path) -> AffsupError:
    """Return the error for a data set that is not prepared."""
    return AffsupError(f"data set {folder.name!r} is not prepared in {folder.parent}/: run `{_command(folder)}`")


def remedy(folder: Path) -> str:
    """Return what the user should do about a damaged data set, for messages."""
    return f"run `{_command(folder)}` to prepare it again"


def _command(folder: Path) -> str:
    """Return the command that prepares a data set; its manifest, as far as it is readable, names the definition."""
    try:
        content = json.loads((folder / MANIFEST_FILE).read_bytes())
        definition = DefinitionRecord.model_validate(content["definition"])
    except (OSError, ValueError, KeyError, TypeError):
        arguments = folder.name
    else:
        named = "" if definition.argument.endswith(".py") else f" --name {folder.name}"
        size = "" if definition.size is None else f" --size {definition.size}"
        arguments = f"{shorten(definition.argument)} --from PATH{named}{size}"
    return f"affsup prepare {arguments}" + ("" if folder.parent == Path("data") else f" --data {folder.parent}")
