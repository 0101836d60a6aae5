"""Read parquet files of labelled images as the Hugging Face hub has them: columns `image` {bytes, path} and `label`.

The names of the labels are in the metadata of the files' schema. Sizes are checked before memory is used.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.errors import SourceError, UsageError, quote, shorten

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

_BATCH = 8  # rows in memory besides the images that are kept
_MAX_RATIO, _SLACK = 4, 1 << 20  # encoded images cannot be compressed much: such a multiple of the file, and some bytes
_MAX_FOOTER = 1 << 26  # bytes of a string, and entries of a list, of a file's footer


@dataclass(frozen=True)
class LabelledImages:
    """The rows of a file.

    Attributes:
        labels: Names of the labels in their order.
        rows: Content, file name ("" if there is none) and label of each image.
    """

    labels: tuple[str, ...]
    rows: list[tuple[bytes, str, int]]


def parquet_files(folder: Path) -> list[Path]:
    """Return the parquet files in a folder or in its folder `data`, sorted by name."""
    return sorted(folder.glob("*.parquet")) or sorted((folder / "data").glob("*.parquet"))


def read_labelled_images(path: Path, max_rows: int, max_bytes: int, max_image: int) -> LabelledImages:
    """Read a file.

    Args:
        path: The file.
        max_rows: Maximum number of rows.
        max_bytes: Maximum size of the images in memory.
        max_image: Maximum size of an image.

    Raises:
        UsageError: pyarrow is not installed.
        SourceError: It is damaged, too large, or has other columns.
    """
    with open_parquet(path) as file:
        max_bytes = min(max_bytes, _MAX_RATIO * path.stat().st_size + _SLACK)
        check_size(path.name, file, max_rows, max_bytes)
        labels = _label_names(path.name, file.schema_arrow.metadata or {})
        return LabelledImages(labels, list(_rows(path.name, file, len(labels), max_bytes, max_image)))


@contextmanager
def open_parquet(path: Path) -> Iterator[ParquetFile]:
    """Open a file.

    Raises:
        UsageError: pyarrow is not installed.
        SourceError: It is damaged; also raised for errors of pyarrow while it is open.
    """
    try:
        import pyarrow as pa
        from pyarrow.parquet import ParquetFile
    except ModuleNotFoundError:
        raise UsageError(f"{path.name}: parquet files need pyarrow: pip install 'affsup[hub]'") from None
    try:
        with ParquetFile(
            path,
            pre_buffer=False,
            memory_map=True,
            thrift_string_size_limit=_MAX_FOOTER,
            thrift_container_size_limit=_MAX_FOOTER,
        ) as file:
            yield file
    except (pa.ArrowException, OSError, ValueError) as error:
        raise SourceError(f"{path.name}: truncated or damaged ({shorten(error)}); get it again") from None


def check_size(name: str, file: ParquetFile, max_rows: int, max_group: int, max_values: int | None = None) -> None:
    """Check the sizes that a file declares.

    Args:
        name: File name, for messages.
        file: The file.
        max_rows: Maximum number of rows.
        max_group: Maximum size of a row group in bytes.
        max_values: Maximum number of values of a column of a row group; None for any.

    Raises:
        SourceError: It is larger.
    """
    metadata = file.metadata
    if metadata.num_rows > max_rows:
        raise SourceError(f"{name} has {metadata.num_rows:,} rows, expected at most {max_rows:,}; refused")
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        if not 0 <= group.total_byte_size <= max_group:
            size = f"{group.total_byte_size:,}"
            raise SourceError(f"{name} would unpack to {size} bytes, expected at most {max_group:,}; refused")
        values = max((group.column(column).num_values for column in range(group.num_columns)), default=0)
        if max_values is not None and values > max_values:
            raise SourceError(f"{name} has {values:,} values in a column, expected at most {max_values:,}; refused")


def _label_names(name: str, metadata: Mapping[bytes, bytes]) -> tuple[str, ...]:
    try:
        names = json.loads(metadata[b"huggingface"])["info"]["features"]["label"]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        names = None
    if not isinstance(names, list) or not names or not all(isinstance(each, str) for each in names):
        raise SourceError(f"{name}: its schema does not name the labels, as files of the hub's data sets do")
    return tuple(names)


def _rows(
    name: str, file: ParquetFile, labels: int, max_bytes: int, max_image: int
) -> Iterator[tuple[bytes, str, int]]:
    total = 0
    for batch in file.iter_batches(batch_size=_BATCH, columns=["image", "label"], use_threads=False):
        if batch.num_columns != 2:
            raise SourceError(f"{name}: has no columns 'image' and 'label'")
        for image, label in zip(batch.column("image"), batch.column("label"), strict=True):
            content, path = _image(name, image.as_py())
            number = label.as_py()
            total += len(content)
            if len(content) > max_image or total > max_bytes:
                raise SourceError(f"{name}: an image has {len(content):,} bytes, all {total:,} so far; refused")
            if type(number) is not int or not 0 <= number < labels:
                raise SourceError(f"{name}: a label is {quote(number)}, expected 0 to {labels - 1}")
            yield content, path, number


def _image(name: str, value: Any) -> tuple[bytes, str]:
    content = value.get("bytes") if isinstance(value, dict) else None
    path = value.get("path") if isinstance(value, dict) else None
    if not isinstance(content, bytes) or not isinstance(path, str | None):
        raise SourceError(f"{name}: the column 'image' is {quote(value)}, expected {{bytes, path}}")
    return content, path or ""
