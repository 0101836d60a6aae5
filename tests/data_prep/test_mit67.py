"""MIT Indoor 67, from small trees in the official layout and from the real lists."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

import data_prep
from data_prep.build import PrepareResult
from data_prep.errors import AffsupError
from data_prep.sets.mit67 import DATASET
from data_prep.sources.scene_files import SceneFiles
from data_prep.store import SceneManifest, read_scenes
from tests.data_prep.conftest import OfficialFiles
from tests.data_prep.scene_sources import mit67, picture

Preparing = Callable[..., PrepareResult]


@pytest.fixture
def prepare(tmp_path: Path, official: OfficialFiles) -> Preparing:
    """Prepares a folder of the given files; files of None are taken away."""

    def run(files: dict[str, bytes], **change: bytes | None) -> PrepareResult:
        folder = official.folder(tmp_path, "mit67", files)
        for name, content in change.items():
            path = folder / f"{name}.txt"
            path.unlink()
            if content is not None:
                path.write_bytes(content)
        return data_prep.prepare("mit67", sources=[folder], data_dir=tmp_path / "data")

    return run


def places(count: int = 3) -> dict[str, bytes]:
    """Training images of a bar and a bakery, a test image of each."""
    train = {f"{place}/{number}.jpg": picture() for number in range(count) for place in ("bar", "bakery")}
    return mit67(train, {"bakery/test.jpg": picture(), "bar/test.jpg": picture()})


def left_out(outcome: PrepareResult) -> dict[tuple[str, str], tuple[int, list[str]]]:
    assert isinstance(outcome.manifest, SceneManifest)
    return {(entry.what, entry.reason): (entry.count, entry.examples) for entry in outcome.manifest.left_out}


def test_images_have_the_category_of_their_folder_and_keep_their_listed_order(prepare: Preparing) -> None:
    outcome = prepare(places())
    manifest = outcome.manifest
    assert isinstance(manifest, SceneManifest)
    assert (manifest.categories, manifest.classes, manifest.relations) == (["bakery", "bar"], [], "classes")
    train, test = (read_scenes(outcome.folder, manifest, part) for part in ("train", "test"))
    assert list(train.names) == [f"{place}/{n}.jpg" for n in range(3) for place in ("bar", "bakery")]
    assert train.categories.tolist() == [1, 0] * 3
    assert list(test.names) == ["bakery/test.jpg", "bar/test.jpg"]
    assert test.categories.tolist() == [0, 1]
    assert [*train.ids, *test.ids] == list(range(1, 9))
    assert len(train.objects(0).boxes) == len(train.objects(0).relations) == 0
    assert train.encoded(0) == picture()
    assert train.pixels(0).shape == (48, 64, 3)
    assert data_prep.check("mit67", outcome.folder.parent) == manifest


def test_sizes_are_those_of_the_upright_pictures_whatever_their_format(prepare: Preparing) -> None:
    pictures = {
        "bar/plain.jpg": picture((50, 30)),
        "bar/turned.jpg": picture((64, 48), orientation=6),
        "bar/really a.gif.jpg": picture((20, 10), kind="GIF"),
        "bar/really_(a)_PNG.JPG": picture((30, 20), kind="PNG"),
        "bar/grey's.jpeg": picture((41, 31), mode="L"),
        "bar/cmyk.jpg": picture((42, 32), mode="CMYK"),
    }
    outcome = prepare(mit67(pictures, {"bar/test.jpg": picture()}))
    scenes = read_scenes(outcome.folder, outcome.manifest, "train")
    assert scenes.sizes.tolist() == [[50, 30], [48, 64], [20, 10], [30, 20], [41, 31], [42, 32]]
    for i, (width, height) in enumerate(scenes.sizes):
        assert scenes.pixels(i).shape == (height, width, 3)
    assert scenes.pixels(1)[:24].max() < 50
    assert left_out(outcome) == {}


def test_images_that_cannot_be_read_are_left_out_and_named(prepare: Preparing) -> None:
    files = places(100)
    files["Images/bar/3.jpg"] = b"no picture"
    files["Images/bar/4.jpg"] = picture((640, 480))[:5000]
    files["Images/bar/5.jpg"] = b""
    del files["Images/bakery/6.jpg"]
    outcome = prepare(files)
    found = left_out(outcome)
    assert set(found) == {("images", "cannot be decoded"), ("images", "missing")}
    count, examples = found["images", "cannot be decoded"]
    assert count == 3
    assert examples[0] == "bar/3.jpg cannot be decoded (of no known format)"
    assert examples[1].startswith("bar/4.jpg cannot be decoded (")
    assert examples[2].startswith("bar/5.jpg cannot be decoded (")
    assert found["images", "missing"][0] == 1
    assert found["images", "missing"][1][0].endswith("mit67/Images/bakery/6.jpg")
    assert outcome.manifest.splits["train"].per_category == [99, 97]
    scenes = read_scenes(outcome.folder, outcome.manifest, "train")
    assert [scenes.names[i].partition("/")[0] for i in range(196)] == [
        outcome.manifest.categories[category] for category in scenes.categories
    ]


def test_the_archive_the_folder_and_all_in_one_give_the_same(official: OfficialFiles, tmp_path: Path) -> None:
    files = places()
    everything = official.folder(tmp_path, "all", files)
    lists = official.folder(tmp_path, "lists", {name: files[name] for name in files if "/" not in name})
    images = {name.removeprefix("Images/"): files[name] for name in files if "/" in name}
    archive = official.tar(tmp_path / "indoorCVPR_09.tar", "Images", images, "w")
    ways = [[everything], [lists, archive], [archive, lists], [everything / "Images", lists], [tmp_path]]
    made = [data_prep.prepare("mit67", sources=way, data_dir=tmp_path / f"data{i}") for i, way in enumerate(ways)]
    assert len({outcome.manifest.digest for outcome in made}) == 1
    assert set(made[1].manifest.source.files) == {
        "TestImages.txt", "TrainImages.txt", "indoorCVPR_09.tar", "pictures"
    }  # fmt: skip


def test_other_line_ends_and_blank_lines_are_read(prepare: Preparing) -> None:
    outcome = prepare(places(), TestImages=b"\r\nbar/test.jpg \r\n\r\nbakery/test.jpg\r\n")
    assert list(read_scenes(outcome.folder, outcome.manifest, "test").names) == ["bar/test.jpg", "bakery/test.jpg"]


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (None, "mit67: has no TestImages.txt; expected indoorCVPR_09.tar or the Images folder"),
        (b"", "mit67: contains 6 training and 0 test images"),
        (b"bar/0.jpg\nbar/test.jpg\n", "TrainImages.txt and TestImages.txt both list bar/0.jpg"),
        (b"bar/test.jpg\n\nbar/test.jpg\n", "TestImages.txt line 3: bar/test.jpg is already in line 1"),
        (b"bar/test.jpg\ntest.jpg\n", "TestImages.txt line 2: 'test.jpg' is not an image such as"),
        (b"a/bar/test.jpg\n", "TestImages.txt line 1: 'a/bar/test.jpg' is not an image such as"),
        (b"../test.jpg\n", "TestImages.txt line 1: '../test.jpg' is not an image such as"),
        (b"\xff\xfe/\0\n", "the name of image 7 is"),
        (b"bar/test.jpg\ncasino/1.jpg\n", "1 of 8 images are missing, more than 1%; expected "),
        (b"bar/TEST.jpg\n", "Images/bar/TEST.jpg"),
    ],
)  # fmt: skip
def test_a_wrong_list_is_named_and_nothing_is_prepared(
    prepare: Preparing, tmp_path: Path, content: bytes | None, what: str
) -> None:
    with pytest.raises(AffsupError) as caught:
        prepare(places(), TestImages=content)
    assert what in str(caught.value)
    assert not (tmp_path / "data" / "mit67").exists()


def test_a_split_of_unreadable_images_is_refused(prepare: Preparing) -> None:
    files = mit67({"bar/1.jpg": b"x"}, {"bar/2.jpg": picture()})
    with pytest.raises(AffsupError, match=r"none of its 1 train images can be used: 1 cannot be decoded \(bar/1\.jpg"):
        prepare(files)


def test_a_hostile_archive_is_refused(official: OfficialFiles, tmp_path: Path) -> None:
    lists = official.folder(tmp_path, "lists", places())
    archive = tmp_path / "indoorCVPR_09.tar"
    with tarfile.open(archive, "w") as tar:
        tar.addfile(tarfile.TarInfo("Images/../../evil.jpg"))
    with pytest.raises(AffsupError, match=r"indoorCVPR_09\.tar: member .* has a path outside the folder"):
        data_prep.prepare("mit67", sources=[lists, archive], data_dir=tmp_path / "data")


@pytest.mark.real_data
def test_the_real_lists_have_the_official_counts_and_categories(real_data: Path) -> None:
    read = DATASET.read(SceneFiles([real_data / "mit67"], DATASET.file_pattern, DATASET.source_help))
    assert len(read.categories) == 67
    assert (read.categories[0], read.categories[-1]) == ("airport_inside", "winecellar")
    for part, count, fewest, most in ((read.train, 5360, 77, 83), (read.test, 1340, 17, 23)):
        record = part.record(0, "classes", 67)
        assert (record.images, min(record.per_category), max(record.per_category)) == (count, fewest, most)
    assert "nursery/baby's_room.jpg.jpg" in read.test.names
    assert "movietheater/sala-31.jpg" in read.train.names


def test_a_byte_order_mark_is_no_part_of_a_name(prepare: Preparing) -> None:
    files = places()
    outcome = prepare(files, TrainImages=b"\xef\xbb\xbf" + files["TrainImages.txt"])
    assert left_out(outcome) == {}
    assert outcome.manifest.categories == ["bakery", "bar"]
    assert len(read_scenes(outcome.folder, outcome.manifest, "train")) == 6
