"""Download an official archive from its addresses: resumable, limited in size, and verified before use."""

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
from data_prep.writing import explain_full_disk

_ATTEMPTS = 4  # at the only or last address; half as many at others
_TIMEOUT = 30.0  # seconds without a byte
_CHUNK = 1 << 18
_TEMPORARY = (408, 425, 429, 500, 502, 503, 504)
_FLOOR = 200_000  # bytes per second; a slower address is left for the next one
_WINDOW = 20.0  # seconds over which the rate is measured


class _RetryableError(Exception):
    """An attempt failed, but a further attempt may succeed."""


class _AddressError(Exception):
    """An address cannot give the archive."""


class _SlowError(_AddressError):
    """An address is slower than `_FLOOR`."""

    def __init__(self, rate: float) -> None:
        super().__init__(f"slower than {_FLOOR // 1000} kB/s ({rate / 1000:.0f} kB/s)")
        self.rate = rate


def download(
    archive: Archive,
    folder: Path,
    progress: ProgressCallback,
    *,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Path:
    """Download an archive into a folder from the first of its addresses that gives it, unless it is already there.

    An address that is dead, slow or gives another file is left for the next one. If all that work are slow, the fastest
    of them is used. The download is written to `<name>.part`, which the next address or a later call continues.

    Args:
        archive: Its addresses, size and checksums.
        folder: Target folder; created if necessary.
        progress: Called with the downloaded and the total number of bytes.
        sleep: Function that waits between attempts, in seconds.
        clock: Function that returns the time in seconds.

    Returns:
        Path of the archive, whose checksum has been verified.

    Raises:
        AffsupError: The download failed, or no address has the official file.
    """
    target = folder / archive.filename
    if target.exists():
        if not _difference(archive, target):
            return target
        target.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{archive.filename}.part"
    have = part.stat().st_size if part.exists() else 0
    with explain_full_disk(folder, archive.size - have):
        _fetch_from_any(archive, part, progress, sleep, clock)
    return part.rename(target)


def _fetch_from_any(
    archive: Archive,
    part: Path,
    progress: ProgressCallback,
    sleep: Callable[[float], None],
    clock: Callable[[], float],
) -> None:
    """Complete and verify the part from the addresses in their order; slow ones are tried again at the end."""
    addresses = (archive.url, *archive.mirrors)
    failures: dict[str, str] = {}
    rates: dict[str, float] = {}

    def complete(url: str, attempts: int, floor: float) -> bool:
        try:
            _fetch_verified(archive, url, part, progress, attempts, floor, sleep, clock)
        except _AddressError as error:
            failures[url] = str(error)
            if isinstance(error, _SlowError):
                rates[url] = error.rate
            return False
        return True

    for url in addresses:
        last = url == addresses[-1]
        if complete(url, _ATTEMPTS if last else _ATTEMPTS // 2, 0 if last and not rates else _FLOOR):
            return
    for url in sorted(rates, key=lambda slow: -rates[slow]):
        if complete(url, _ATTEMPTS, 0):
            return
    tried = "; ".join(f"{url}: {reason}" for url, reason in failures.items())
    raise AffsupError(f"{tried}; get the archive elsewhere and give it with --from, or run again")


def _fetch_verified(
    archive: Archive,
    url: str,
    part: Path,
    progress: ProgressCallback,
    attempts: int,
    floor: float,
    sleep: Callable[[float], None],
    clock: Callable[[], float],
) -> None:
    """Complete the part from one address and verify it; a wrong one that began elsewhere is fetched as a whole."""
    begun_elsewhere = part.exists()
    while True:
        _fetch(archive, url, part, progress, attempts, floor, sleep, clock)
        difference = _difference(archive, part)
        if not difference:
            return
        part.unlink()
        if not begun_elsewhere:
            raise _AddressError(f"is not the official file: {difference}; the download was deleted")
        begun_elsewhere = False


def _fetch(
    archive: Archive,
    url: str,
    part: Path,
    progress: ProgressCallback,
    attempts: int,
    floor: float,
    sleep: Callable[[float], None],
    clock: Callable[[], float],
) -> None:
    for attempt in range(1, attempts + 1):
        try:
            _fetch_once(archive, url, part, progress, floor, clock)
            return
        except _RetryableError as error:
            if attempt == attempts:
                have = part.stat().st_size if part.exists() else 0
                came = f"{have:,} of {archive.size:,} bytes came in {attempts} attempts"
                raise _AddressError(f"{error}; {came}") from None
            sleep(2.0 ** (attempt - 1))


def _fetch_once(
    archive: Archive, url: str, part: Path, progress: ProgressCallback, floor: float, clock: Callable[[], float]
) -> None:
    """Download the missing bytes; the official size decides when the file is complete, not what the server says."""
    have = part.stat().st_size if part.exists() else 0
    if have >= archive.size:
        return
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})  # noqa: S310
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT)  # noqa: S310 - a fixed address
    except urllib.error.HTTPError as error:
        with error:
            if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                part.unlink()
                raise _RetryableError("the server's file is shorter than the partial download; starting over") from None
            if error.code in _TEMPORARY:
                raise _RetryableError(f"the server answered {error.code} {error.reason}") from None
            raise _AddressError(f"the server answered {error.code} {error.reason}") from None
    except (OSError, http.client.HTTPException) as error:
        raise _RetryableError(f"no connection ({getattr(error, 'reason', None) or error})") from None
    with response:
        start, total = _extent(response)
        if total not in (None, archive.size):
            raise _AddressError(f"the server offers {total:,} bytes, the official file has {archive.size:,}")
        if start > have:
            raise _RetryableError("the server sent another range than requested")
        with part.open("r+b" if part.exists() else "wb") as file:
            file.truncate(start)
            file.seek(start)
            have = window_bytes = start
            window_begin = clock()
            while have < archive.size:
                progress("download", have, archive.size)
                try:
                    chunk = response.read1(min(_CHUNK, archive.size - have))
                except (OSError, http.client.HTTPException) as error:
                    raise _RetryableError(f"the connection broke off ({error})") from None
                if not chunk:
                    raise _RetryableError("the connection broke off")
                file.write(chunk)
                have += len(chunk)
                elapsed = clock() - window_begin
                if elapsed >= _WINDOW:
                    rate = (have - window_bytes) / elapsed
                    if rate < floor and have < archive.size:
                        raise _SlowError(rate)
                    window_begin, window_bytes = clock(), have
            progress("download", have, archive.size)


def _extent(response: http.client.HTTPResponse) -> tuple[int, int | None]:
    """Return the offset of the body in the file, and the file size that the server states (None if it does not)."""
    if response.status == http.HTTPStatus.PARTIAL_CONTENT:
        extent = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if not extent:
            raise _RetryableError("the server sent a range without its position")
        return int(extent[1]), None if extent[2] == "*" else int(extent[2])
    return 0, response.length


def _difference(archive: Archive, path: Path) -> str:
    """Return how the checksums of a file differ from the official ones, or "" if they do not."""
    md5, sha256 = hashlib.md5(usedforsecurity=False), hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            md5.update(chunk)
            sha256.update(chunk)
    if md5.hexdigest() != archive.md5:
        return f"MD5 {md5.hexdigest()}, expected {archive.md5}"
    if archive.sha256 and sha256.hexdigest() != archive.sha256:
        return f"SHA-256 {sha256.hexdigest()}, expected {archive.sha256}"
    return ""
