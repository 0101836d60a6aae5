from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import data_prep
from data_prep.errors import AffsupError
from data_prep.origin import Origin
from data_prep.raw import ImageSet
from data_prep.sources import download as download_module
from data_prep.sources.download import download

CONTENT = bytes(range(256)) * 40


@dataclass
class Behaviour:
    """How the server answers; `requests` keeps the Range header of each request."""

    content: bytes = CONTENT
    ranges: bool = True
    breaks: int = 0  # so many answers stop half-way
    claimed: int | None = None  # Content-Length, if not the truth
    silent: bool = False  # no Content-Length at all
    skips: int = 0  # bytes left out of a part
    fails: list[int] = field(default_factory=list)  # statuses of the first answers
    requests: list[str | None] = field(default_factory=list)


class Handler(BaseHTTPRequestHandler):
    behaviour: Behaviour

    def do_GET(self) -> None:
        how = self.behaviour
        asked = self.headers["Range"]
        how.requests.append(asked)
        if how.fails:
            self.send_error(how.fails.pop(0))
            return
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and how.ranges else 0
        size = len(how.content)
        start += how.skips if start else 0
        if start >= size:
            self.send_error(416)
            return
        body = how.content[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        if not how.silent:
            self.send_header("Content-Length", str(len(body) if how.claimed is None else how.claimed))
        self.end_headers()
        if how.breaks:
            how.breaks -= 1
            body = body[: len(body) // 2]
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(behaviour: Behaviour) -> Iterator[str]:
    handler = type("Handler", (Handler,), {"behaviour": behaviour})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}/file.tar.gz"
        http.shutdown()
        thread.join()


@pytest.fixture
def server() -> Iterator[tuple[Behaviour, str]]:
    behaviour = Behaviour()
    with serving(behaviour) as url:
        yield behaviour, url


@pytest.fixture
def mirror() -> Iterator[tuple[Behaviour, str]]:
    behaviour = Behaviour()
    with serving(behaviour) as url:
        yield behaviour, url


@dataclass
class Client:
    """Calls `download` and keeps what it told: progress, and the waits that it would have made."""

    origin: Origin
    folder: Path
    progress: list[tuple[str, int, int]] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    seconds: float = 0  # that pass each time the client looks at its clock
    now: float = 0

    def clock(self) -> float:
        return self.tick(self.seconds)

    def tick(self, seconds: float) -> float:
        self.now += seconds
        return self.now

    def __call__(self) -> Path:
        return download(
            self.origin,
            self.folder,
            lambda *told: self.progress.append(told),
            sleep=self.waits.append,
            clock=self.clock,
        )

    @property
    def part(self) -> Path:
        return self.folder / "file.tar.gz.part"


@pytest.fixture
def client(server: tuple[Behaviour, str], cifar10_origin: Origin, tmp_path: Path) -> Client:
    md5 = hashlib.md5(CONTENT).hexdigest()
    origin = replace(cifar10_origin, url=server[1], md5=md5, size=len(CONTENT), sha256=None, mirrors=())
    return Client(origin, tmp_path / "downloads")


@pytest.fixture
def behaviour(server: tuple[Behaviour, str]) -> Behaviour:
    return server[0]


def test_a_download_brings_the_file_and_tells_its_progress(
    client: Client, behaviour: Behaviour, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download_module, "_CHUNK", 4096)
    path = client()
    assert path == client.folder / "file.tar.gz"
    assert path.read_bytes() == CONTENT
    assert [(step, total) for step, _, total in client.progress] == [("download", 10240)] * len(client.progress)
    done = [amount for _, amount, _ in client.progress]
    assert (done[0], done[-1], sorted(set(done))) == (0, 10240, done)
    assert not client.part.exists()


def test_what_was_downloaded_is_not_fetched_again(client: Client, behaviour: Behaviour) -> None:
    client()
    client()
    assert behaviour.requests == [None]


def test_a_download_that_was_changed_on_disk_is_fetched_again(client: Client, behaviour: Behaviour) -> None:
    client().write_bytes(b"changed")
    assert client().read_bytes() == CONTENT
    assert len(behaviour.requests) == 2


def test_a_connection_that_breaks_off_is_continued_where_it_was(client: Client, behaviour: Behaviour) -> None:
    behaviour.breaks = 2
    assert client().read_bytes() == CONTENT
    assert behaviour.requests == [None, "bytes=5120-", "bytes=7680-"]
    assert client.waits == [1, 2]


def test_a_later_call_continues_the_part(client: Client, behaviour: Behaviour) -> None:
    client.folder.mkdir()
    client.part.write_bytes(CONTENT[:1000])
    assert client().read_bytes() == CONTENT
    assert behaviour.requests == ["bytes=1000-"]


def test_a_server_without_ranges_starts_over(client: Client, behaviour: Behaviour) -> None:
    behaviour.ranges = False
    behaviour.breaks = 1
    assert client().read_bytes() == CONTENT


def test_a_whole_part_is_checked_without_a_request(client: Client, behaviour: Behaviour) -> None:
    client.folder.mkdir()
    client.part.write_bytes(CONTENT)
    assert client().read_bytes() == CONTENT
    assert behaviour.requests == []


def test_a_server_that_always_breaks_off_ends_the_attempts_and_keeps_the_part(
    client: Client, behaviour: Behaviour
) -> None:
    behaviour.breaks = 99
    with pytest.raises(AffsupError, match="broke off; 9,600 of 10,240 bytes came in 4 attempts"):
        client()
    assert client.waits == [1, 2, 4]
    assert client.part.read_bytes() == CONTENT[:9600]


@pytest.mark.parametrize("claimed", [100, 99_999])
def test_a_length_that_is_not_the_official_one_is_an_error(client: Client, behaviour: Behaviour, claimed: int) -> None:
    behaviour.claimed = claimed
    with pytest.raises(AffsupError, match=f"offers {claimed:,} bytes, the official file has 10,240"):
        client()
    assert list(client.folder.iterdir()) == []


@pytest.mark.parametrize("silent", [True, False])
def test_a_body_longer_than_the_official_file_is_cut_and_checked(
    client: Client, behaviour: Behaviour, silent: bool
) -> None:
    behaviour.content = CONTENT + b"more"
    behaviour.claimed = len(CONTENT)
    behaviour.silent = silent
    assert client().read_bytes() == CONTENT


def test_a_server_that_skips_bytes_is_not_believed(client: Client, behaviour: Behaviour) -> None:
    client.folder.mkdir()
    client.part.write_bytes(CONTENT[:1000])
    behaviour.skips = 10
    with pytest.raises(AffsupError, match="another range than requested; 1,000 of 10,240 bytes"):
        client()
    assert client.part.read_bytes() == CONTENT[:1000]


def test_starting_over_drops_the_old_part(client: Client, behaviour: Behaviour) -> None:
    client.folder.mkdir()
    client.part.write_bytes(b"x" * 9000)
    behaviour.ranges = False
    behaviour.breaks = 99
    with pytest.raises(AffsupError, match="5,120 of 10,240 bytes"):
        client()
    assert client.part.read_bytes() == CONTENT[:5120]


def test_a_wrong_file_is_deleted_and_both_checksums_are_told(client: Client, behaviour: Behaviour) -> None:
    behaviour.content = CONTENT[::-1]
    found = hashlib.md5(behaviour.content).hexdigest()
    with pytest.raises(AffsupError, match=f"MD5 {found}, expected {client.origin.md5}"):
        client()
    assert list(client.folder.iterdir()) == []


def test_a_part_that_the_server_cannot_continue_is_started_over(client: Client, behaviour: Behaviour) -> None:
    client.folder.mkdir()
    client.part.write_bytes(b"x" * 9000)
    behaviour.fails = [416]
    assert client().read_bytes() == CONTENT
    assert behaviour.requests == ["bytes=9000-", None]


def test_a_file_that_is_not_there_is_an_error_at_once(client: Client, behaviour: Behaviour) -> None:
    behaviour.fails = [404]
    with pytest.raises(AffsupError, match=r"answered 404 Not Found; get the archive elsewhere and give it with --from"):
        client()
    assert client.waits == []


def test_a_server_in_trouble_is_asked_again(client: Client, behaviour: Behaviour) -> None:
    behaviour.fails = [500, 503]
    assert client().read_bytes() == CONTENT


def test_a_server_that_stays_in_trouble_is_an_error(client: Client, behaviour: Behaviour) -> None:
    behaviour.fails = [500] * 9
    with pytest.raises(AffsupError, match="answered 500 Internal Server Error; 0 of 10,240 bytes came in 4 attempts"):
        client()


def test_no_connection_is_an_error(client: Client) -> None:
    client.origin = replace(client.origin, url="http://127.0.0.1:1/file.tar.gz")
    with pytest.raises(AffsupError, match="no connection"):
        client()


def test_a_download_that_cannot_fit_is_not_begun(client: Client, behaviour: Behaviour) -> None:
    client.origin = replace(client.origin, size=1 << 60)
    with pytest.raises(AffsupError, match="No space left on device"):
        client()
    assert behaviour.requests == []


# Mirrors


@pytest.fixture
def mirrored(client: Client, mirror: tuple[Behaviour, str]) -> Client:
    client.origin = replace(client.origin, mirrors=(mirror[1],))
    return client


def test_a_dead_address_is_left_for_the_next(mirrored: Client, mirror: tuple[Behaviour, str]) -> None:
    mirrored.origin = replace(mirrored.origin, url="http://127.0.0.1:1/file.tar.gz")
    assert mirrored().read_bytes() == CONTENT
    assert mirrored.waits == [1]
    assert mirror[0].requests == [None]


@pytest.mark.parametrize("status", [403, 404, 500])
def test_an_address_that_refuses_is_left_for_the_next(mirrored: Client, behaviour: Behaviour, status: int) -> None:
    behaviour.fails = [status] * 9
    assert mirrored().read_bytes() == CONTENT


def test_a_truncated_download_is_continued_at_the_next_address(
    mirrored: Client, behaviour: Behaviour, mirror: tuple[Behaviour, str]
) -> None:
    behaviour.breaks = 99
    assert mirrored().read_bytes() == CONTENT
    assert mirror[0].requests == ["bytes=7680-"]


def test_an_address_with_another_file_is_left_for_the_next(
    mirrored: Client, behaviour: Behaviour, mirror: tuple[Behaviour, str]
) -> None:
    behaviour.content = CONTENT[::-1]
    assert mirrored().read_bytes() == CONTENT
    assert mirror[0].requests == [None]


@pytest.mark.parametrize("claimed", [100, 99_999])
def test_an_address_with_another_length_is_left_for_the_next(
    mirrored: Client, behaviour: Behaviour, claimed: int
) -> None:
    behaviour.claimed = claimed
    assert mirrored().read_bytes() == CONTENT


def test_a_lying_address_that_breaks_off_does_not_spoil_the_next(
    mirrored: Client, behaviour: Behaviour, mirror: tuple[Behaviour, str]
) -> None:
    behaviour.content, behaviour.breaks = CONTENT[::-1], 99
    assert mirrored().read_bytes() == CONTENT
    assert mirror[0].requests == ["bytes=7680-", None]


def slow(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every address look slow: a second passes for each 512 bytes."""
    client.seconds = 1
    monkeypatch.setattr(download_module, "_CHUNK", 512)
    monkeypatch.setattr(download_module, "_WINDOW", 5)


def test_a_slow_address_is_left_for_a_faster_one(
    mirrored: Client, mirror: tuple[Behaviour, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    slow(mirrored, monkeypatch)
    monkeypatch.setattr(download_module, "_FLOOR", 600)
    monkeypatch.setattr(mirrored, "clock", lambda: mirrored.tick(0 if mirror[0].requests else 1))
    assert mirrored().read_bytes() == CONTENT
    (requested,) = mirror[0].requests
    assert requested
    assert re.fullmatch(r"bytes=\d+-", requested)  # what the slow address gave is kept


def test_of_slow_addresses_the_fastest_is_used_in_the_end(
    mirrored: Client, behaviour: Behaviour, mirror: tuple[Behaviour, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    slow(mirrored, monkeypatch)
    assert mirrored().read_bytes() == CONTENT
    assert behaviour.requests[0] is None
    assert mirror[0].requests
    assert len(behaviour.requests) + len(mirror[0].requests) == 3


def test_a_single_address_may_be_slow(client: Client, behaviour: Behaviour, monkeypatch: pytest.MonkeyPatch) -> None:
    slow(client, monkeypatch)
    assert client().read_bytes() == CONTENT
    assert behaviour.requests == [None]


def test_when_all_addresses_fail_each_is_named_with_its_reason(
    mirrored: Client, behaviour: Behaviour, mirror: tuple[Behaviour, str]
) -> None:
    behaviour.fails = [404]
    mirror[0].content = CONTENT[::-1]
    with pytest.raises(AffsupError) as caught:
        mirrored()
    assert f"{mirrored.origin.url}: the server answered 404" in str(caught.value)
    assert f"{mirror[1]}: is not the official file: MD5" in str(caught.value)
    assert list(mirrored.folder.iterdir()) == []


def test_a_file_of_the_same_md5_and_another_sha256_is_refused(client: Client) -> None:
    client.origin = replace(client.origin, sha256="0" * 64)
    with pytest.raises(AffsupError, match=f"SHA-256 {hashlib.sha256(CONTENT).hexdigest()}, expected 0000"):
        client()
    client.origin = replace(client.origin, sha256=hashlib.sha256(CONTENT).hexdigest())
    assert client().read_bytes() == CONTENT


def test_addresses_are_different_have_the_name_of_the_archive_and_are_documented() -> None:
    page = (Path(__file__).parents[3] / "docs" / "data-sets.md").read_text(encoding="utf-8")
    for dataset in data_prep.datasets().values():
        archives = [dataset.origin] if isinstance(dataset, ImageSet) else dataset.archives
        for archive in filter(None, archives):
            addresses = (archive.url, *archive.mirrors)
            assert len(set(addresses)) == len(addresses)
            assert {address.rpartition("/")[2] for address in addresses} == {archive.filename}
            assert all(f"<{address}>" in page for address in addresses)
            assert f"{archive.size:,} bytes" in page
            assert (archive.sha256 or archive.md5) in page
