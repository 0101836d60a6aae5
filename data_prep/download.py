"""Fetching an official archive: continued where it broke off, bounded, and checked before anyone reads it."""

from __future__ import annotations

import hashlib
import http
import http.client
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from data_prep.errors import AffsupError
from data_prep.origin import Archive
from data_prep.raw import ProgressCallback
from data_prep.storage import full_disk_explained

_ATTEMPTS = 4
_TIMEOUT = 30.0  # seconds without a byte
_CHUNK = 1 << 18
_TEMPORARY = (408, 425, 429, 500, 502, 503, 504)


class _RetryableError(Exception):
    """An attempt failed in a way that another may not."""


def download(
    archive: Archive, folder: Path, progress: ProgressCallback, *, sleep: Callable[[float], None] = time.sleep
) -> Path:
    """Fetch the official archive into a folder, unless it is there.

    The bytes gather in `<name>.part`, which a later call continues.

    Args:
        archive: Its address, size and MD5.
        folder: Where to; made if need be.
        progress: Told the bytes that are there and the bytes there should be.
        sleep: Waits between attempts, in seconds.

    Returns:
        The archive, its checksum verified.

    Raises:
        AffsupError: It cannot be had, or what the server sends is something else.
    """
    target = folder / archive.filename
    if target.exists():
        if _md5(target) == archive.md5:
            return target
        target.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{archive.filename}.part"
    have = part.stat().st_size if part.exists() else 0
    with full_disk_explained(folder, archive.size - have):
        _fetch(archive, part, progress, sleep)
    found = _md5(part)
    if found != archive.md5:
        part.unlink()
        raise AffsupError(
            f"{archive.url} is not the official file: MD5 {found}, expected {archive.md5}; what came was deleted. "
            "Run again, or get the archive elsewhere and give it with --from"
        )
    return part.rename(target)


def _fetch(archive: Archive, part: Path, progress: ProgressCallback, sleep: Callable[[float], None]) -> None:
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            _fetch_once(archive, part, progress)
            return
        except _RetryableError as error:
            if attempt == _ATTEMPTS:
                have = part.stat().st_size if part.exists() else 0
                raise AffsupError(
                    f"{archive.url}: {error}; {have:,} of {archive.size:,} bytes came in {_ATTEMPTS} attempts. "
                    "Run again to continue, or get the archive elsewhere and give it with --from"
                ) from None
            sleep(2.0 ** (attempt - 1))


def _fetch_once(archive: Archive, part: Path, progress: ProgressCallback) -> None:
    """Add to the part what is missing; the official size decides when it is whole, the server's word never does."""
    have = part.stat().st_size if part.exists() else 0
    if have >= archive.size:
        return
    request = urllib.request.Request(archive.url, headers={"Range": f"bytes={have}-"} if have else {})  # noqa: S310
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT)  # noqa: S310 - the address is ours
    except urllib.error.HTTPError as error:
        with error:
            if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                part.unlink()
                raise _RetryableError("the server's file is shorter than what was here; starting over") from None
            if error.code in _TEMPORARY:
                raise _RetryableError(f"the server answered {error.code} {error.reason}") from None
            raise AffsupError(
                f"{archive.url}: the server answered {error.code} {error.reason}; "
                "get the archive elsewhere and give it with --from"
            ) from None
    except (OSError, http.client.HTTPException) as error:
        raise _RetryableError(f"no connection ({getattr(error, 'reason', None) or error})") from None
    with response:
        start, total = _extent(response)
        if total not in (None, archive.size):
            raise AffsupError(
                f"{archive.url}: the server offers {total:,} bytes, the official file has {archive.size:,}; "
                "get the archive elsewhere and give it with --from"
            )
        if start > have:
            raise _RetryableError("the server sent another part than was asked for")
        with part.open("r+b" if part.exists() else "wb") as file:
            file.truncate(start)
            file.seek(start)
            have = start
            while have < archive.size:
                progress("download", have, archive.size)
                try:
                    chunk = response.read(min(_CHUNK, archive.size - have))
                except (OSError, http.client.HTTPException) as error:
                    raise _RetryableError(f"the connection broke off ({error})") from None
                if not chunk:
                    raise _RetryableError("the connection broke off")
                file.write(chunk)
                have += len(chunk)
            progress("download", have, archive.size)


def _extent(response: http.client.HTTPResponse) -> tuple[int, int | None]:
    """Where the body starts in the whole file, and how long the server says that the whole file is."""
    if response.status == http.HTTPStatus.PARTIAL_CONTENT:
        extent = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if not extent:
            raise _RetryableError("the server sent a part without saying which")
        return int(extent[1]), None if extent[2] == "*" else int(extent[2])
    return 0, response.length


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
