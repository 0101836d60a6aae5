"""Read annotation files in the XML format of PASCAL VOC, and lists of image names.

Box corners are 1-based and inclusive in this format: pixel k spans [k - 1, k].
"""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from data_prep.errors import SourceError, quote, shorten

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

    from data_prep.sources.scene_files import SceneFiles

_MAX_BYTES = 10_000_000  # of a file
_LARGEST = 2**16  # pixels per side, the maximum of JPEG
_BYTE_ORDER_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
_FIRST_BYTES = {b"<\0": "utf-16-le", b"\0<": "utf-16-be"}
_ENCODINGS = {
    *("utf-8", "ascii", "iso8859-1", "iso8859-15", "cp1250", "cp1251", "cp1252"),
    *("gb2312", "gbk", "gb18030", "big5", "shift_jis", "euc_jp", "euc_kr"),
}


@dataclass(frozen=True)
class VocAnnotation:
    """The annotation of one image: G boxes.

    Attributes:
        filename: The file name of the image as stated, or "".
        size: Width and height.
        boxes: x1, y1, x2, y2 of each box, 0-based and exclusive.
        labels: Class name of each box.
        difficult: Whether each box is difficult.
        where: Position of each box in the file, for messages.
    """

    filename: str
    size: tuple[int, int]
    boxes: list[tuple[float, float, float, float]]
    labels: list[str]
    difficult: list[bool]
    where: list[str]


def read_lines(files: SceneFiles, path: str) -> list[str]:
    """Return the words of a list; a byte order mark and any line ends are accepted.

    Raises:
        SourceError: It was not found or is too large.
    """
    return _content(files, path).decode("utf-8-sig", errors="replace").split()


def read_xml(files: SceneFiles, path: str, *, size_required: bool = True) -> VocAnnotation:
    """Read an annotation file. An object with several boxes counts as several objects.

    Args:
        files: The files of the source.
        path: The annotation file.
        size_required: Whether the size of the image must be stated; if not, it is (0, 0) where it is not.

    Raises:
        SourceError: It was not found, is not XML, declares a document type, or lacks a field.
    """
    root = _parse(path, _content(files, path))
    unknown = not size_required and all(
        (root.findtext(f"size/{key}") or "0").strip() == "0" for key in ("width", "height")
    )
    width, height = (0, 0) if unknown else (_number(root, f"size/{key}", path) for key in ("width", "height"))
    if not unknown and not (0 < width < _LARGEST and 0 < height < _LARGEST):
        raise SourceError(f"{path}: <size> is {width:g} x {height:g}, expected an image's width and height")
    annotation = VocAnnotation((root.findtext("filename") or "").strip(), (int(width), int(height)), [], [], [], [])
    for number, item in enumerate(root.findall("object"), start=1):
        where = f"{path} object {number}"
        label = _text(item, "name", where)
        if item.find("bndbox") is None:
            raise SourceError(f"{where}: has no <bndbox>")
        for box in item.findall("bndbox"):
            x1, y1, x2, y2 = (_number(box, key, f"{where} <bndbox>") for key in ("xmin", "ymin", "xmax", "ymax"))
            annotation.boxes.append((x1 - 1, y1 - 1, x2, y2))
            annotation.labels.append(label)
            annotation.difficult.append((item.findtext("difficult") or "").strip() == "1")
            annotation.where.append(where)
    return annotation


def _content(files: SceneFiles, path: str) -> bytes:
    content = files.annotation(path)
    if len(content) > _MAX_BYTES:
        raise SourceError(f"{path} has {len(content):,} bytes, expected at most {_MAX_BYTES:,}; refused")
    return content


def _parse(path: str, content: bytes) -> Element:
    text = content.decode(_encoding(path, content), errors="replace")
    if "<!DOCTYPE" in text:  # entities can be declared only there
        raise SourceError(f"{path}: declares a document type, which no official file does; refused")
    try:
        return ElementTree.fromstring(text)  # noqa: S314
    except (ElementTree.ParseError, ValueError) as error:
        raise SourceError(f"{path}: is not XML ({shorten(error)})") from None


def _encoding(path: str, content: bytes) -> str:
    """Return the encoding by byte order mark, first bytes or XML declaration; else UTF-8."""
    for start, encoding in (_BYTE_ORDER_MARKS | _FIRST_BYTES).items():
        if content.startswith(start):
            return encoding
    declared = re.match(rb"""\s*<\?xml[^>]{0,100}?encoding\s*=\s*["']([\w.-]{1,40})["']""", content)
    if not declared:
        return "utf-8"
    name = declared[1].decode("ascii", errors="replace")
    try:
        encoding = codecs.lookup(name).name
    except LookupError:
        encoding = ""
    if encoding not in _ENCODINGS:
        raise SourceError(f"{path}: declares the encoding {quote(name)}, which is not supported: save it as UTF-8")
    return encoding


def _text(element: Element, path: str, where: str) -> str:
    text = element.findtext(path)
    if text is None:
        raise SourceError(f"{where}: has no <{path}>")
    return text.strip()


def _number(element: Element, path: str, where: str) -> float:
    text = _text(element, path, where)
    try:
        return float(text)
    except ValueError:
        raise SourceError(f"{where}: <{path}> is {quote(text)}, expected a number") from None
