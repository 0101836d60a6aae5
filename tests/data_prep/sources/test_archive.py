from __future__ import annotations

import gzip
import io
import stat
import tarfile
import tracemalloc
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

import data_prep
from data_prep.errors import SourceError
from data_prep.origin import Origin
from data_prep.sources.archive import open_archive, tar_index
from tests.data_prep.conftest import OfficialFiles

ROOT = "cifar-10-batches-py"


def read_all(path: Path, origin: Origin) -> dict[str, bytes]:
    with open_archive(path, origin) as files:
        return dict(files)


def add(archive: tarfile.TarFile, name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE) -> None:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.size = len(content)
    info.linkname = "/etc/passwd"
    archive.addfile(info, io.BytesIO(content))


@pytest.mark.parametrize("mode", ["w:gz", "w"])
def test_a_tar_gives_its_needed_members_and_no_others(
    official: OfficialFiles, cifar10_origin: Origin, tmp_path: Path, mode: str
) -> None:
    files = official.cifar10()
    path = official.tar(tmp_path / "named-anything", ROOT, files | {"readme.html": b"other"}, mode)
    assert read_all(path, cifar10_origin) == files


def test_a_zip_gives_its_needed_members_and_no_others(
    official: OfficialFiles, cifar10_origin: Origin, tmp_path: Path
) -> None:
    files = official.cifar10()
    path = official.zip(tmp_path / "archive", ROOT, files | {"readme.html": b"other"})
    assert read_all(path, cifar10_origin) == files


def test_members_named_from_the_present_folder_are_found(
    official: OfficialFiles, cifar10_origin: Origin, tmp_path: Path
) -> None:
    path = official.tar(tmp_path / "a.tar.gz", f"./{ROOT}", official.cifar10())
    assert set(read_all(path, cifar10_origin)) == set(cifar10_origin.members)


@pytest.mark.parametrize(
    ("name", "kind", "what"),
    [
        ("../evil", tarfile.REGTYPE, "'../evil' has a path outside the folder"),
        (f"{ROOT}/../../evil", tarfile.REGTYPE, "has a path outside the folder"),
        ("/etc/evil", tarfile.REGTYPE, "has a path outside the folder"),
        (f"{ROOT}\\..\\..\\evil", tarfile.REGTYPE, "has a path outside the folder"),
        ("C:\\evil", tarfile.REGTYPE, "has a path outside the folder"),
        (f"{ROOT}/extra", tarfile.SYMTYPE, "a link or a device"),
        (f"{ROOT}/extra", tarfile.LNKTYPE, "a link or a device"),
        (f"{ROOT}/extra", tarfile.CHRTYPE, "a link or a device"),
        (f"{ROOT}/extra", tarfile.FIFOTYPE, "a link or a device"),
        (f"{ROOT}/test_batch", tarfile.REGTYPE, "'cifar-10-batches-py/test_batch' occurs twice"),
        (f"./{ROOT}//test_batch", tarfile.REGTYPE, "occurs twice"),
    ],
)
def test_a_tar_with_a_hostile_member_is_refused_as_a_whole(
    official: OfficialFiles, cifar10_origin: Origin, tmp_path: Path, name: str, kind: bytes, what: str
) -> None:
    path = official.tar(tmp_path / "a.tar", ROOT, official.cifar10(), "w")
    with tarfile.open(path, "a") as archive:
        add(archive, name, kind=kind)
    with pytest.raises(SourceError, match=what.replace("\\", "\\\\")):
        read_all(path, cifar10_origin)


@pytest.mark.parametrize("needed", [True, False])
def test_a_tar_bomb_is_refused(official: OfficialFiles, cifar10_origin: Origin, tmp_path: Path, needed: bool) -> None:
    name = "data_batch_1" if needed else "padding"
    path = official.tar(tmp_path / "a.tar.gz", ROOT, official.cifar10() | {name: bytes(8_000_000)})
    assert path.stat().st_size < 1_000_000
    with pytest.raises(SourceError, match=r"to more than 2,000,000 bytes"):
        read_all(path, cifar10_origin)


def test_a_bomb_behind_the_end_of_a_tar_is_refused(
    official: OfficialFiles, cifar10_origin: Origin, tmp_path: Path
) -> None:
    path = official.tar(tmp_path / "a.tar", ROOT, official.cifar10(), "w")
    path.write_bytes(gzip.compress(path.read_bytes() + bytes(8_000_000)))
    with pytest.raises(SourceError, match="unpacks to more than 2,000,000 bytes"):
        read_all(path, cifar10_origin)


def test_a_bomb_in_a_tar_header_is_refused(cifar10_origin: Origin, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo(f"{ROOT}/test_batch")
        info.pax_headers = {"comment": "x" * 8_000_000}
        archive.addfile(info)
    with pytest.raises(SourceError, match="larger headers than any official archive"):
        read_all(tmp_path / "a.tar.gz", cifar10_origin)


@pytest.mark.parametrize("mode", ["w:gz", "w"])
@pytest.mark.parametrize("member", ["test_batch", "extra"])
def test_a_member_that_claims_an_enormous_size_is_refused(
    cifar10_origin: Origin, tmp_path: Path, mode: str, member: str
) -> None:
    with tarfile.open(tmp_path / "a", mode, format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo(f"{ROOT}/{member}")
        info.pax_headers = {"size": str(10**20)}
        archive.addfile(info)
    with pytest.raises(SourceError, match="would unpack to more than 2,000,000 bytes"):
        read_all(tmp_path / "a", cifar10_origin)
    if mode == "w":
        with pytest.raises(SourceError, match=r"truncated or damaged archive \('.*' is incomplete"):
            tar_index(tmp_path / "a")


def header_of_size(size: int, kind: bytes) -> bytes:
    """The 512 bytes of a tar member that claims a size in GNU's binary form."""
    info = tarfile.TarInfo("a")
    info.type = kind
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    block[124:136] = b"\x80" + size.to_bytes(11, "big")
    block[148:156] = b" " * 8
    block[148:156] = f"{sum(block):06o}\0 ".encode()
    return bytes(block)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
@pytest.mark.parametrize("size", [300_000_000, 10**20])
def test_a_large_header_is_refused_before_it_is_read(
    cifar10_origin: Origin, tmp_path: Path, kind: bytes, size: int
) -> None:
    path = tmp_path / "a"
    path.write_bytes(header_of_size(size, kind))
    with path.open("r+b") as file:
        file.truncate(300_000_000)  # a hole: the rest needs no disk
    tracemalloc.start()
    try:
        for read in (tar_index, lambda path: read_all(path, cifar10_origin)):
            with pytest.raises(SourceError, match=r"larger headers than any official archive|truncated or damaged"):
                read(path)
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


def test_a_required_member_is_not_larger_than_it_can_be(
    official: OfficialFiles, cifar10_origin: Origin, tmp_path: Path
) -> None:
    path = official.zip(tmp_path / "a.zip", ROOT, official.cifar10() | {"batches.meta": bytes(1_500_000)})
    with pytest.raises(SourceError, match=r"batches\.meta' has 1,500,000 bytes, expected at most 1,000,000; refused"):
        read_all(path, replace(cifar10_origin, max_bytes=20_000_000, max_member_bytes=1_000_000))


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_zip_with_another_compression_is_refused(
    official: OfficialFiles, cifar10_origin: Origin, tmp_path: Path, method: int
) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", method) as archive:
        for name, content in official.cifar10().items():
            archive.writestr(f"{ROOT}/{name}", content)
    with pytest.raises(SourceError, match=f"has compression method {method}, in the official archive it is 8"):
        read_all(tmp_path / "a.zip", cifar10_origin)


def test_a_message_repeats_200_characters_of_a_name(cifar10_origin: Origin, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a", "w") as archive:
        add(archive, "/" + "x" * 60_000)
    for read in (tar_index, lambda path: read_all(path, cifar10_origin)):
        with pytest.raises(SourceError, match=r"x'\.\.\. has a path outside") as caught:
            read(tmp_path / "a")
        assert str(caught.value).count("x") < 210


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_too_many_members_are_refused(
    official: OfficialFiles, cifar10_origin: Origin, tmp_path: Path, kind: str
) -> None:
    files = {f"f{i}": b"" for i in range(51)} | official.cifar10()
    path = getattr(official, kind)(tmp_path / "a", ROOT, files)
    with pytest.raises(SourceError, match="more than 50 members"):
        read_all(path, cifar10_origin)


@pytest.mark.parametrize("part", [0.001, 0.3, 0.7, 0.999])
@pytest.mark.parametrize("kind", ["tar", "plain tar", "zip"])
def test_a_truncated_archive_is_refused(
    official: OfficialFiles, cifar10_origin: Origin, tmp_path: Path, kind: str, part: float
) -> None:
    if kind == "zip":
        path = official.zip(tmp_path / "a", ROOT, official.cifar10())
    else:
        path = official.tar(tmp_path / "a", ROOT, official.cifar10(), "w" if kind == "plain tar" else "w:gz")
    content = path.read_bytes().rstrip(b"\0")
    path.write_bytes(content[: int(len(content) * part)])
    with pytest.raises(SourceError, match=r"truncated or damaged|has no cifar-10-batches-py/"):
        read_all(path, cifar10_origin)


def test_a_flipped_bit_in_a_gzipped_tar_is_seen(
    official: OfficialFiles, cifar10_origin: Origin, tmp_path: Path
) -> None:
    path = official.tar(tmp_path / "a", ROOT, official.cifar10())
    content = bytearray(path.read_bytes())
    content[-6] ^= 1  # in gzip's own checksum, behind everything that tar reads
    path.write_bytes(content)
    with pytest.raises(SourceError, match="damaged"):
        read_all(path, cifar10_origin)


@pytest.mark.parametrize("content", [b"", b"PK", b"<html>not found</html>", b"\x1f\x8b", b"PK\x03\x04", bytes(1000)])
def test_what_is_no_archive_is_refused(cifar10_origin: Origin, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(SourceError, match=r"neither a zip nor a tar|truncated or damaged"):
        read_all(tmp_path / "a", cifar10_origin)


def test_the_archive_of_another_data_set_says_what_was_found_and_expected(
    official: OfficialFiles, cifar10_origin: Origin, tmp_path: Path
) -> None:
    path = official.tar(tmp_path / "a", "cifar-100-python", official.cifar100())
    with pytest.raises(SourceError) as error:
        read_all(path, cifar10_origin)
    message = str(error.value)
    assert "has no cifar-10-batches-py/batches.meta nor 6 more" in message
    assert "found cifar-100-python/meta, cifar-100-python/test, cifar-100-python/train" in message
    assert "cifar-10-python.tar.gz" in message


@pytest.mark.parametrize(
    ("name", "mode", "what"),
    [
        ("../evil", stat.S_IFREG, "has a path outside the folder"),
        ("/evil", stat.S_IFREG, "has a path outside the folder"),
        (f"{ROOT}/extra", stat.S_IFLNK, "a link or a device"),
        (f"{ROOT}/extra", stat.S_IFCHR, "a link or a device"),
        (f"./{ROOT}/test_batch", stat.S_IFREG, "occurs twice"),
    ],
)
def test_a_zip_with_a_hostile_member_is_refused_as_a_whole(
    official: OfficialFiles, cifar10_origin: Origin, tmp_path: Path, name: str, mode: int, what: str
) -> None:
    path = official.zip(tmp_path / "a.zip", ROOT, official.cifar10())
    with zipfile.ZipFile(path, "a") as archive:
        info = zipfile.ZipInfo(name)
        info.external_attr = (mode | 0o644) << 16
        archive.writestr(info, b"")
    with pytest.raises(SourceError, match=what):
        read_all(path, cifar10_origin)


def test_a_zip_bomb_is_refused(official: OfficialFiles, cifar10_origin: Origin, tmp_path: Path) -> None:
    path = official.zip(tmp_path / "a.zip", ROOT, official.cifar10() | {"data_batch_1": bytes(8_000_000)})
    with pytest.raises(SourceError, match=r"would unpack to more than 2,000,000 bytes \(at 'cifar"):
        read_all(path, cifar10_origin)


def central_entry(content: bytes, name: str) -> int:
    """Where a member's entry in the central directory starts: the fields before the last place that has its name."""
    return content.rindex(f"{ROOT}/{name}".encode()) - 46


def test_a_zip_member_larger_than_it_claims_is_refused(
    official: OfficialFiles, cifar10_origin: Origin, tmp_path: Path
) -> None:
    path = official.zip(tmp_path / "a.zip", ROOT, official.cifar10() | {"data_batch_1": bytes(8_000_000)})
    content = bytearray(path.read_bytes())
    entry = central_entry(content, "data_batch_1")
    content[entry + 24 : entry + 28] = (1000).to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(SourceError, match="data_batch_1: damaged in the archive"):
        read_all(path, cifar10_origin)


def test_an_encrypted_zip_is_refused(official: OfficialFiles, cifar10_origin: Origin, tmp_path: Path) -> None:
    path = official.zip(tmp_path / "a.zip", ROOT, official.cifar10())
    content = bytearray(path.read_bytes())
    content[central_entry(content, "test_batch") + 8] |= 1
    path.write_bytes(content)
    with pytest.raises(SourceError, match="test_batch' is encrypted"):
        read_all(path, cifar10_origin)


def test_a_damaged_zip_member_is_named(official: OfficialFiles, cifar10_origin: Origin, tmp_path: Path) -> None:
    path = official.zip(tmp_path / "a.zip", ROOT, official.cifar10())
    content = bytearray(path.read_bytes())
    content[content.index(b"data_batch_3") + 5000] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(SourceError, match="data_batch_3: damaged in the archive"):
        read_all(path, cifar10_origin)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "tiny-imagenet"])
def test_the_limits_leave_room_for_the_official_archive(name: str) -> None:
    origin = data_prep.get(name).origin
    assert origin
    assert origin.max_bytes > 2 * origin.size
    assert replace(origin, url="http://x/y/z.zip").filename == "z.zip"


def test_the_index_of_a_plain_tar_says_where_its_files_lie(official: OfficialFiles, tmp_path: Path) -> None:
    files = {"a/1.txt": b"one", "b/" + 120 * "long": b"two" * 400, "empty": b""}
    path = official.tar(tmp_path / "t.tar", "./root", files, "w")
    whole = path.read_bytes()
    index = tar_index(path)
    assert {name: whole[at : at + size] for name, (at, size) in index.items()} == {
        f"root/{name}": content for name, content in files.items()
    }


@pytest.mark.parametrize(
    ("name", "kind", "what"),
    [
        ("../evil", tarfile.REGTYPE, "has a path outside the folder"),
        ("/etc/passwd", tarfile.REGTYPE, "has a path outside the folder"),
        ("a/link", tarfile.SYMTYPE, "is a link or a device"),
        ("a/link", tarfile.LNKTYPE, "is a link or a device"),
        ("a/device", tarfile.CHRTYPE, "is a link or a device"),
        ("a/sparse", tarfile.GNUTYPE_SPARSE, "is a link or a device"),
        ("a/1.txt", tarfile.REGTYPE, "occurs twice"),
    ],
)
def test_a_hostile_plain_tar_is_refused(tmp_path: Path, name: str, kind: bytes, what: str) -> None:
    with tarfile.open(tmp_path / "t.tar", "w") as archive:
        add(archive, "a/1.txt", b"one")
        add(archive, name, kind=kind)
    with pytest.raises(SourceError, match=what):
        tar_index(tmp_path / "t.tar")


@pytest.mark.parametrize("left", [0, 100, 700, 1000, 3000])
def test_a_truncated_plain_tar_is_refused(official: OfficialFiles, tmp_path: Path, left: int) -> None:
    path = official.tar(tmp_path / "t.tar", "root", {"1": b"x" * 300, "2": b"y" * 1500}, "w")
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(SourceError, match=r"truncated or damaged|is not an uncompressed tar archive"):
        tar_index(path)


def test_a_compressed_tar_is_not_a_plain_one(official: OfficialFiles, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="is not an uncompressed tar archive: give the folder that"):
        tar_index(official.tar(tmp_path / "t.tar.gz", "root", {"1": b"x"}))
