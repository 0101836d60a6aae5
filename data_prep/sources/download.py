"""Download an official archive: resumable, limited in size, and verified before use."""

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
from data_prep.origin import Archive, ProgressCallback
from data_prep.store.writing import explain_full_disk

_ATTEMPTS = 4
_TIMEOUT = 30.0  # seconds without a byte
_CHUNK = 1 << 18
_TEMPORARY = (408, 425, 429, 500, 502, 503, 504)


class _RetryableError(Exception):
    """An attempt failed, but a further attempt may succeed."""


def download(
    archive: Archive, folder: Path, progress: ProgressCallback, *, sleep: Callable[[float], None] = time.sleep
) -> Path:
    """Download the official archive into a folder, unless it is already there.

    The download is written to `<name>.part`, which a later call continues.

    Args:
        archive: Its address, size and MD5.
        folder: Target folder; created if necessary.
        progress: Called with the downloaded and the total number of bytes.
        sleep: Function that waits between attempts, in seconds.

    Returns:
        Path of the archive, whose checksum has been verified.

    Raises:
        AffsupError: The download failed, or the file is not the official one.
    """
    target = folder / archive.filename
    if target.exists():
        if _md5(target) == archive.md5:
            return target
        target.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{archive.filename}.part"
    have = part.stat().st_size if part.exists() else 0
    with explain_full_disk(folder, archive.size - have):
        _fetch(archive, part, progress, sleep)
    found = _md5(part)
    if found != archive.md5:
        part.unlink()
        raise AffsupError(
            f"{archive.url} is not the official file: MD5 {found}, expected {archive.md5}; the download was deleted. "
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
    """Download the missing bytes; the official size decides when the file is complete, not what the server says."""
    have = part.stat().st_size if part.exists() else 0
    if have >= archive.size:
        return
    request = urllib.request.Request(archive.url, headers={"Range": f"bytes={have}-"} if have else {})  # noqa: S310
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT)  # noqa: S310 - a fixed address
    except urllib.error.HTTPError as error:
        with error:
            if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                part.unlink()
                raise _RetryableError("the server's file is shorter than the partial download; starting over") from None
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
            raise _RetryableError("the server sent another range than requested")
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
    """Return the offset of the body in the file, and the file size that the server states (None if it does not)."""
    if response.status == http.HTTPStatus.PARTIAL_CONTENT:
        extent = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if not extent:
            raise _RetryableError("the server sent a range without its position")
        return int(extent[1]), None if extent[2] == "*" else int(extent[2])
    return 0, response.length


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
