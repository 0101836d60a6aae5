from __future__ import annotations

import errno
import hashlib
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

import data_prep
from data_prep import build_images
from data_prep.build import PrepareResult, build
from data_prep.build_images import split_rows
from data_prep.errors import AffsupError, UsageError
from data_prep.raw import DataSet
from data_prep.store import read_manifest, read_split, verify
from tests.data_prep.conftest import OfficialFiles


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def prepare(cifar10: DataSet, cifar10_archive: Path, data: Path) -> Callable[..., PrepareResult]:
    """Prepares the small CIFAR-10 archive; keywords change the request."""

    def run(**request: object) -> PrepareResult:
        return build(cifar10, **({"sources": [cifar10_archive], "data_dir": data} | request))

    return run


def content(folder: Path) -> dict[str, str]:
    """Every file below a folder with its checksum; locks are no content."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize(("count", "train", "val"), [(50_000, 45_000, 5_000), (100_000, 90_000, 10_000), (2, 1, 1)])
def test_a_tenth_of_the_training_images_is_held_out(count: int, train: int, val: int) -> None:
    rows = split_rows(count)
    assert [len(part) for part in rows] == [train, val]
    np.testing.assert_array_equal(np.sort(np.concatenate(rows)), np.arange(count))
    assert all((np.diff(part) > 0).all() for part in rows)


def test_the_validation_rows_never_change() -> None:
    assert split_rows(50_000)[1][:8].tolist() == [14, 22, 24, 28, 64, 76, 84, 91]
    assert 11841 in split_rows(50_000)[1]


@pytest.mark.parametrize("limit", [2, 9, 10, 99, 500, 999, 1000])
def test_a_limited_split_is_a_part_of_the_whole_one(limit: int) -> None:
    train, val = split_rows(1000, limit)
    whole_train, whole_val = split_rows(1000)
    assert len(train) + len(val) == limit
    assert len(val) == max(1, limit // 10)
    assert set(train) <= set(whole_train)
    assert set(val) <= set(whole_val)


def test_prepared_images_are_the_official_ones(prepare: Callable[..., PrepareResult], official: OfficialFiles) -> None:
    outcome = prepare()
    rows = np.concatenate([official.cifar_rows(f"data_batch_{i}")[0] for i in range(1, 6)])
    for name in ("train", "val", "test"):
        split = read_split(outcome.folder, outcome.manifest, name)
        official_rows = official.cifar_rows("test_batch")[0] if name == "test" else rows
        planes = split.images.transpose(0, 3, 1, 2).reshape(len(split.images), 3072)
        np.testing.assert_array_equal(planes, official_rows[split.source_index])
    assert outcome.status == "prepared"
    assert verify(outcome.folder) == outcome.manifest


def test_the_manifest_says_what_was_prepared_from_what(
    prepare: Callable[..., PrepareResult], cifar10_archive: Path
) -> None:
    manifest = prepare().manifest
    archive = cifar10_archive.read_bytes()
    assert manifest.source.kind == "archive"
    assert manifest.source.files["cifar-10-python.tar.gz"].model_dump() == {
        "sha256": hashlib.sha256(archive).hexdigest(),
        "bytes": len(archive),
    }
    assert (manifest.source.official, manifest.source.algorithm) == (False, "md5")
    assert {name: split.count for name, split in manifest.splits.items()} == {"train": 90, "val": 10, "test": 20}
    assert manifest.official_counts == {"train": 50_000, "test": 10_000}
    assert (manifest.complete, manifest.limit) == (False, None)


def test_a_source_with_the_official_checksum_and_counts_is_complete(
    prepare: Callable[..., PrepareResult], cifar10: DataSet, cifar10_archive: Path, data: Path
) -> None:
    assert cifar10.origin
    origin = replace(cifar10.origin, md5=hashlib.md5(cifar10_archive.read_bytes()).hexdigest())
    dataset = replace(cifar10, origin=origin, official_counts={"train": 100, "test": 20})
    manifest = build(dataset, sources=[cifar10_archive], data_dir=data).manifest
    assert (manifest.source.official, manifest.complete) == (True, True)
    limited = build(dataset, sources=[cifar10_archive], data_dir=data, limit=50).manifest
    assert (limited.source.official, limited.complete) == (True, False)


@pytest.mark.parametrize("inner", ["", "cifar-10-batches-py"])
def test_a_folder_or_its_parent_gives_the_same_data_as_the_archive(
    prepare: Callable[..., PrepareResult], official: OfficialFiles, tmp_path: Path, data: Path, inner: str
) -> None:
    archive = prepare()
    official.folder(tmp_path / "extracted", "cifar-10-batches-py", official.cifar10())
    folder = prepare(sources=[tmp_path / "extracted" / inner])
    assert folder.status == "prepared"
    assert folder.manifest.source.kind == "folder"
    assert folder.manifest.digest == archive.manifest.digest


def test_a_folder_is_recorded_by_its_sha256sum_listing(
    prepare: Callable[..., PrepareResult], official: OfficialFiles, tmp_path: Path
) -> None:
    folder = official.folder(tmp_path, "cifar-10-batches-py", official.cifar10())
    listing = "".join(f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.name}\n" for p in sorted(folder.iterdir()))
    record = prepare(sources=[folder]).manifest.source.files["cifar-10-batches-py"]
    assert record.sha256 == hashlib.sha256(listing.encode()).hexdigest()
    assert record.bytes == sum(p.stat().st_size for p in folder.iterdir())


def test_a_folder_of_official_files_is_recognised(
    cifar10: DataSet, official: OfficialFiles, tmp_path: Path, data: Path
) -> None:
    files = official.cifar10()
    folder = official.folder(tmp_path, "cifar-10-batches-py", files)
    assert cifar10.origin
    md5 = {name: hashlib.md5(file).hexdigest() for name, file in files.items()}
    dataset = replace(cifar10, origin=replace(cifar10.origin, member_md5=md5))
    assert build(dataset, sources=[folder], data_dir=data).manifest.source.official is True
    dataset = replace(cifar10, origin=replace(cifar10.origin, member_md5=md5 | {"data_batch_2": "0"}))
    assert build(dataset, sources=[folder], data_dir=data / "2").manifest.source.official is False


def test_tiny_imagenet_prepares_the_same_from_zip_and_folder(
    official: OfficialFiles, tiny_imagenet_archive: Path, tmp_path: Path, data: Path
) -> None:
    told: list[tuple[str, int, int]] = []
    zipped = data_prep.prepare(
        "tiny-imagenet", sources=[tiny_imagenet_archive], data_dir=data, progress=lambda *step: told.append(step)
    )
    assert told == [("images", done, 48) for done in (33, 36, 48)]
    official.folder(tmp_path, "tiny-imagenet-200", official.tiny_imagenet())
    folder = data_prep.prepare("tiny-imagenet", sources=[tmp_path], data_dir=data)
    assert folder.manifest.digest == zipped.manifest.digest
    assert folder.manifest.source.official is None
    assert data_prep.check("tiny-imagenet", data) == folder.manifest


def test_digits_need_no_source_and_are_complete(data: Path) -> None:
    manifest = data_prep.prepare("digits", data_dir=data).manifest
    assert manifest.complete
    assert manifest.source.model_dump() == {"kind": "embedded", "files": {}, "official": None, "algorithm": None}
    assert {name: split.count for name, split in manifest.splits.items()} == {"train": 1295, "val": 143, "test": 359}
    assert data_prep.prepare("digits", data_dir=data).status == "up to date"


def test_a_download_is_used_where_no_source_is_given_and_kept(
    cifar10: DataSet, cifar10_archive: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cifar10.origin
    archive = cifar10_archive.read_bytes()
    origin = replace(cifar10.origin, md5=hashlib.md5(archive).hexdigest(), size=len(archive), sha256=None)
    (data / ".downloads").mkdir(parents=True)
    shutil.copy(cifar10_archive, data / ".downloads")
    outcome = build(replace(cifar10, origin=origin), data_dir=data)
    assert (outcome.manifest.source.kind, outcome.manifest.source.official) == ("download", True)


@pytest.mark.parametrize("given", [True, False])
def test_the_same_request_again_changes_nothing(
    prepare: Callable[..., PrepareResult], cifar10_archive: Path, data: Path, given: bool
) -> None:
    first = prepare(limit=40)
    files = [path for path in data.rglob("*") if path.is_file() and path.suffix != ".lock"]  # which locking may touch
    times = {path: path.stat().st_mtime_ns for path in files}
    again = prepare(limit=40, sources=[cifar10_archive] if given else [])
    assert (again.status, again.manifest) == ("up to date", first.manifest)
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_another_limit_is_prepared_anew(prepare: Callable[..., PrepareResult]) -> None:
    prepare()
    outcome = prepare(limit=30)
    assert outcome.status == "prepared"
    assert [outcome.manifest.splits[name].count for name in ("train", "val", "test")] == [27, 3, 20]
    assert prepare().manifest.limit is None


def test_another_source_is_prepared_anew(
    prepare: Callable[..., PrepareResult], official: OfficialFiles, tmp_path: Path
) -> None:
    before = prepare()
    files = official.cifar10()
    other = files | {"data_batch_1": files["data_batch_2"]}
    after = prepare(sources=[official.tar(tmp_path / "other.tar.gz", "cifar-10-batches-py", other)])
    assert after.status == "prepared"
    assert after.manifest.digest != before.manifest.digest


@pytest.mark.parametrize("file", ["images.h5", "manifest.json"])
def test_a_damaged_data_set_is_prepared_anew(prepare: Callable[..., PrepareResult], file: str) -> None:
    folder = prepare().folder
    (folder / file).write_bytes(b"damaged")
    assert prepare().status == "prepared"
    verify(folder)


@pytest.mark.parametrize(
    ("request_", "error", "what"),
    [
        ({"limit": 1}, UsageError, "--limit 1: expected at least 2"),
        ({"limit": -3}, UsageError, "--limit -3: expected at least 2"),
        ({"limit": 101}, UsageError, "--limit 101: expected at most 100"),
        ({"sources": [Path("a"), Path("b")]}, UsageError, "has one source, found 2"),
        ({"sources": [Path("/no/such/archive")]}, AffsupError, "/no/such/archive is not a file or folder"),
    ],
)
def test_a_wrong_request_leaves_what_was_there(
    prepare: Callable[..., PrepareResult], data: Path, request_: dict, error: type[Exception], what: str
) -> None:
    prepare()
    before = content(data)
    with pytest.raises(error, match=what):
        prepare(**request_)
    assert content(data) == before


def test_an_embedded_data_set_takes_no_source(data: Path, cifar10_archive: Path) -> None:
    with pytest.raises(UsageError, match="'digits' needs no source"):
        data_prep.prepare("digits", sources=[cifar10_archive], data_dir=data)


def broken_sources(official: OfficialFiles, tmp_path: Path) -> dict[str, Path]:
    files = official.cifar10()
    archive = official.tar(tmp_path / "whole.tar.gz", "cifar-10-batches-py", files)
    truncated = tmp_path / "truncated.tar.gz"
    truncated.write_bytes(archive.read_bytes()[:-1000])
    incomplete = official.folder(tmp_path / "incomplete", "cifar-10-batches-py", files)
    (incomplete / "data_batch_4").unlink()
    damaged = official.folder(tmp_path / "damaged", "cifar-10-batches-py", files | {"data_batch_4": b"\x80\x02}"})
    return {
        "truncated": truncated,
        "incomplete": incomplete,
        "damaged": damaged,
        "other": official.tar(tmp_path / "other.tar.gz", "cifar-100-python", official.cifar100()),
    }


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        ("truncated", r"truncated\.tar\.gz: truncated or damaged archive"),
        ("incomplete", r"incomplete/cifar-10-batches-py: has no cifar-10-batches-py/data_batch_4; found batches\.meta"),
        ("damaged", "damaged/cifar-10-batches-py: data_batch_4: truncated or damaged pickle"),
        ("other", r"other\.tar\.gz: has no cifar-10-batches-py/"),
    ],
)
@pytest.mark.parametrize("present", [True, False])
def test_a_bad_source_leaves_what_was_there_and_no_litter(
    prepare: Callable[..., PrepareResult],
    official: OfficialFiles,
    tmp_path: Path,
    data: Path,
    kind: str,
    what: str,
    present: bool,
) -> None:
    if present:
        prepare()
    before = content(data)
    with pytest.raises(AffsupError, match=what) as error:
        prepare(sources=[broken_sources(official, tmp_path)[kind]])
    assert "\n" not in str(error.value)
    assert content(data) == before
    assert not (data / ".cifar10.new").exists()


def test_a_jpeg_that_fails_midway_leaves_no_litter(official: OfficialFiles, tmp_path: Path, data: Path) -> None:
    files = official.tiny_imagenet()
    files["val/images/val_3.JPEG"] = b"damaged"
    archive = official.zip(tmp_path / "tiny.zip", "tiny-imagenet-200", files)
    with pytest.raises(AffsupError, match=r"tiny\.zip: val/images/val_3\.JPEG: cannot be decoded"):
        data_prep.prepare("tiny-imagenet", sources=[archive], data_dir=data)
    assert [path.name for path in data.iterdir()] == [".tiny-imagenet.lock"]


@pytest.mark.parametrize("interruption", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
@pytest.mark.parametrize("step", ["write_images", "write_manifest"])
def test_an_interrupted_write_leaves_what_was_there_and_no_litter(
    prepare: Callable[..., PrepareResult],
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
    interruption: BaseException,
    step: str,
) -> None:
    prepare()
    before = content(data)

    def interrupted(*arguments: object) -> None:
        getattr(data_prep.store, step)(*arguments)
        raise interruption

    monkeypatch.setattr(build_images, step, interrupted)
    expected = KeyboardInterrupt if isinstance(interruption, KeyboardInterrupt) else AffsupError
    with pytest.raises(
        expected, match=None if expected is KeyboardInterrupt else r"cannot write 0\.2 MB .*No space left"
    ):
        prepare(limit=50)
    assert content(data) == before
    assert not (data / ".cifar10.new").exists()


def test_a_disk_too_full_is_noticed_before_writing(
    prepare: Callable[..., PrepareResult], data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(data.parent)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(AffsupError, match=r"cannot write 0\.4 MB to .*No space left on device \(0\.0 MB free\)"):
        prepare()
    assert [path.name for path in data.iterdir()] == [".cifar10.lock"]


def test_a_disk_that_fills_up_midway_gives_one_message_and_no_crash(cifar10_archive: Path, data: Path) -> None:
    code = f"""
        import resource, sys
        from pathlib import Path
        import data_prep
        from data_prep.errors import AffsupError
        request = dict(sources=[Path({str(cifar10_archive)!r})], data_dir=Path({str(data)!r}))
        data_prep.prepare("cifar10", limit=20, **request)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
        try:
            data_prep.prepare("cifar10", **request)
        except AffsupError as error:
            sys.exit(str(error))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "cannot write 0.4 MB" in done.stderr
    assert "File too large" in done.stderr
    assert data_prep.check("cifar10", data).limit == 20
    assert {path.name for path in data.iterdir()} == {"cifar10", ".cifar10.lock"}


@pytest.mark.parametrize("swapped", [True, False])
def test_what_a_killed_replacement_left_is_settled(
    prepare: Callable[..., PrepareResult], data: Path, swapped: bool
) -> None:
    first = prepare()
    (data / ".cifar10.new").mkdir()
    if swapped:  # killed before the old one was removed
        (data / ".cifar10.old").mkdir()
    else:  # killed between the two renames
        (data / "cifar10").rename(data / ".cifar10.old")
    assert prepare().status == "up to date"
    assert verify(data / "cifar10") == first.manifest
    assert {path.name for path in data.iterdir()} == {"cifar10", ".cifar10.lock"}


def test_two_processes_do_not_prepare_the_same_data_set(prepare: Callable[..., PrepareResult], data: Path) -> None:
    data.mkdir()
    code = "with FileLock(sys.argv[1]): print('held', flush=True), sys.stdin.read()"
    command = [sys.executable, "-c", f"import sys; from filelock import FileLock\n{code}", str(data / ".cifar10.lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout
        assert other.stdout.readline() == "held\n"
        with pytest.raises(AffsupError, match=r"another process is preparing .*cifar10"):
            prepare()
        other.communicate()
    assert prepare().status == "prepared"


def test_a_data_set_without_its_images_is_prepared_anew(prepare: Callable[..., PrepareResult]) -> None:
    folder = prepare().folder
    (folder / "images.h5").unlink()
    assert prepare().status == "prepared"
    verify(folder)


def test_a_folder_larger_than_the_data_set_can_be_is_refused(
    cifar10: DataSet, official: OfficialFiles, tmp_path: Path, data: Path
) -> None:
    folder = official.folder(tmp_path, "cifar-10-batches-py", official.cifar10())
    assert cifar10.origin
    with pytest.raises(
        AffsupError, match=r"cifar-10-batches-py: contains [\d,]+ bytes, more than the maximum of 100,000"
    ):
        build(replace(cifar10, origin=replace(cifar10.origin, max_bytes=100_000)), sources=[folder], data_dir=data)


def test_one_flipped_bit_is_enough_to_prepare_anew(prepare: Callable[..., PrepareResult]) -> None:
    folder = prepare().folder
    damaged = bytearray((folder / "images.h5").read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (folder / "images.h5").write_bytes(damaged)
    assert prepare().status == "prepared"
    verify(folder)


def test_other_data_sets_are_prepared_beside_a_locked_one(data: Path) -> None:
    data.mkdir()
    with FileLock(data / ".cifar10.lock"):
        assert data_prep.prepare("digits", data_dir=data).status == "prepared"


def test_a_folder_with_the_users_own_files_is_never_replaced(prepare: Callable[..., PrepareResult], data: Path) -> None:
    (data / "cifar10").mkdir(parents=True)
    (data / "cifar10" / "thesis.tex").write_text("precious")
    with pytest.raises(AffsupError, match=r"contains 'thesis\.tex', which affsup did not write"):
        prepare()
    assert (data / "cifar10" / "thesis.tex").read_text() == "precious"


def test_a_data_set_behind_a_link_is_replaced_where_it_lies(
    prepare: Callable[..., PrepareResult], data: Path, tmp_path: Path
) -> None:
    (tmp_path / "big disk" / "c10").mkdir(parents=True)
    data.mkdir()
    (data / "cifar10").symlink_to(tmp_path / "big disk" / "c10")
    prepare()
    assert (data / "cifar10").is_symlink()
    assert read_manifest(data / "cifar10") == verify(data / "cifar10")
    assert prepare().status == "up to date"


def test_a_place_that_is_a_file_is_one_message(prepare: Callable[..., PrepareResult], data: Path) -> None:
    data.write_text("a file")
    with pytest.raises(AffsupError, match=r"data: File exists; nothing was changed"):
        prepare()


@pytest.mark.real_data
def test_real_cifar10_images_prepare_and_verify(real_cifar10_small: Path, data: Path) -> None:
    manifest = data_prep.prepare("cifar10", sources=[real_cifar10_small], data_dir=data).manifest
    assert data_prep.check("cifar10", data) == manifest
    assert manifest.classes[0] == "airplane"
    assert [manifest.splits[name].count for name in ("train", "val", "test")] == [4500, 500, 1000]
    assert set(manifest.splits["test"].per_class) == {100}
    np.testing.assert_allclose(manifest.channel_mean, [0.4914, 0.4822, 0.4465], atol=0.01)  # the well-known figures
    np.testing.assert_allclose(manifest.channel_std, [0.247, 0.2435, 0.2616], atol=0.01)


@pytest.mark.real_data
def test_the_real_tiny_imagenet_subset_prepares_and_verifies(real_data: Path, data: Path) -> None:
    archive = real_data / "tiny_imagenet" / "tiny-imagenet-20.zip"
    manifest = data_prep.prepare("tiny-imagenet", sources=[archive], data_dir=data, limit=1000).manifest
    assert data_prep.check("tiny-imagenet", data) == manifest
    assert len(manifest.classes) == 20
    assert manifest.splits["test"].per_class == [50] * 20
