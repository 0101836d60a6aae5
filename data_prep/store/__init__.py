"""The format of prepared data sets: files, keys, writers and readers.

A prepared data set is a folder `<data>/<name>/` with two files: `manifest.json`, which describes content and source,
and one HDF5 file with the data: `images.h5` for labelled images of one size (`data_prep.store.images`),
`scenes.h5` for images with annotated objects (`data_prep.store.scenes`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ValidationError

from data_prep.errors import AffsupError, UsageError, quote, shorten, unreadable
from data_prep.store.images import (
    BLOCK,
    IMAGES_FILE,
    SPLITS,
    ImageManifest,
    ImageSplit,
    ImageSplitRecord,
    NewImages,
    SplitName,
    Validation,
    WrittenImages,
    read_split,
    verify_images,
    write_images,
)
from data_prep.store.records import (
    MANIFEST_FILE,
    CommonManifest,
    DefinitionRecord,
    FileRecord,
    SourceRecord,
    class_counts,
    not_prepared,
    remedy,
    write_manifest,
)
from data_prep.store.scenes import (
    MAX_EXAMPLES,
    SCENE_SPLITS,
    SCENES_FILE,
    Annotations,
    CountRow,
    LeftOutRecord,
    NewScenes,
    Objects,
    RelationKind,
    SceneManifest,
    Scenes,
    SceneSplitName,
    SceneSplitRecord,
    offsets_from_counts,
    read_scenes,
    verify_scenes,
    write_scenes,
)

__all__ = [
    "BLOCK",
    "IMAGES_FILE",
    "MANIFEST_FILE",
    "MAX_EXAMPLES",
    "SCENES_FILE",
    "SCENE_SPLITS",
    "SPLITS",
    "Annotations",
    "AnyManifest",
    "CommonManifest",
    "CountRow",
    "DefinitionRecord",
    "FileRecord",
    "ImageManifest",
    "ImageSplit",
    "ImageSplitRecord",
    "LeftOutRecord",
    "NewImages",
    "NewScenes",
    "Objects",
    "RelationKind",
    "SceneManifest",
    "SceneSplitName",
    "SceneSplitRecord",
    "Scenes",
    "SourceRecord",
    "SplitName",
    "Validation",
    "WrittenImages",
    "class_counts",
    "offsets_from_counts",
    "read_image_manifest",
    "read_manifest",
    "read_scene_manifest",
    "read_scenes",
    "read_split",
    "verify",
    "write_images",
    "write_manifest",
    "write_scenes",
]

AnyManifest = ImageManifest | SceneManifest


class _Kind(BaseModel):
    kind: Literal["images", "scenes"] = "images"


def read_manifest(folder: Path) -> AnyManifest:
    """Read the manifest of a prepared data set, `<data>/<name>`.

    Raises:
        AffsupError: It is not prepared, or the manifest is invalid, of another data set or of another format.
    """
    path = folder / MANIFEST_FILE
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise not_prepared(folder) from None
    except OSError as error:
        raise AffsupError(unreadable(path, error)) from error
    except UnicodeDecodeError as error:
        raise AffsupError(f"{path} is damaged ({error}): {remedy(folder)}") from None
    try:
        kind = _Kind.model_validate_json(text).kind
        manifest = (SceneManifest if kind == "scenes" else ImageManifest).model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise AffsupError(
            f"{path} is not a manifest of this version of affsup: {shorten(where)}: {shorten(first['msg'])}. "
            f"{remedy(folder)}"
        ) from None
    if manifest.dataset != folder.name:
        raise AffsupError(
            f"{path} is the manifest of data set {quote(manifest.dataset)}, expected {folder.name!r}: {remedy(folder)}"
        )
    return manifest


def read_image_manifest(folder: Path) -> ImageManifest:
    """Read the manifest of a data set of labelled images.

    Raises:
        AffsupError: See `read_manifest`.
        UsageError: The data set contains scenes.
    """
    manifest = read_manifest(folder)
    if isinstance(manifest, SceneManifest):
        raise UsageError(
            f"data set {quote(manifest.dataset)} holds scenes, expected one of labelled images "
            "such as digits or cifar10: choose another with --dataset"
        )
    return manifest


def read_scene_manifest(folder: Path, annotation: Literal["objects", "categories"] = "objects") -> SceneManifest:
    """Read the manifest of a data set of scenes.

    Args:
        folder: The prepared data set.
        annotation: The annotations that are required: objects, or the category of each image.

    Raises:
        AffsupError: See `read_manifest`.
        UsageError: The data set contains labelled images, or scenes without these annotations.
    """
    manifest = read_manifest(folder)
    expected = {
        "objects": "expected one of scenes with annotated objects such as shapes or voc07",
        "categories": "expected one of scenes with a category each such as shape-scenes or mit67",
    }[annotation]
    if isinstance(manifest, ImageManifest):
        found = "holds labelled images"
    elif not (manifest.classes if annotation == "objects" else manifest.categories):
        found = f"holds scenes without {annotation}"
    else:
        return manifest
    raise UsageError(f"data set {quote(manifest.dataset)} {found}, {expected}: choose another with --dataset")


def verify(folder: Path) -> AnyManifest:
    """Check a prepared data set against its manifest: checksum, counts, shapes, labels and content.

    Raises:
        AffsupError: A check failed; the message says which.
    """
    manifest = read_manifest(folder)
    if isinstance(manifest, SceneManifest):
        verify_scenes(folder, manifest)
    else:
        verify_images(folder, manifest)
    return manifest
