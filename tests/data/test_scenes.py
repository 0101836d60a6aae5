from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from affsup_cli.data.scenes import SceneBatch, SceneBatches, SceneEpochs
from affsup_cli.distributed.shard import WHOLE, Shard
from data_prep.store import Objects


class Paintings:
    """Images of given sizes (width, height), each with a white rectangle where its first object is."""

    def __init__(self, sizes: list[tuple[int, int]], boxes: list[tuple[float, float, float, float]]) -> None:
        self.sizes = np.array(sizes, dtype=np.int32)
        self.boxes = boxes
        self.difficult = np.array([False, True, False])
        self.relations = np.array([[0, 2], [2, 0], [0, 1], [1, 2]])
        self.decoded: Counter[int] = Counter()

    def __len__(self) -> int:
        return len(self.sizes)

    def pixels(self, index: int, at_most: tuple[int, int] | None = None) -> NDArray[np.uint8]:
        self.decoded[index] += 1
        width, height = self.sizes[index]
        image = np.full((height, width, 3), index, dtype=np.uint8)
        x1, y1, x2, y2 = map(int, self.boxes[index])
        image[y1:y2, x1:x2] = 255
        return image

    def objects(self, index: int) -> Objects:
        boxes = np.array([self.boxes[index], (0, 0, 4, 4), (2, 2, 8, 8)], dtype=np.float32)
        none = np.zeros(3, dtype=np.bool_)
        return Objects(boxes, np.array([5, 6, 7]), self.difficult, none, self.relations)


@pytest.fixture
def paintings() -> Paintings:
    return Paintings(
        [(40, 20), (20, 40), (40, 30), (64, 64), (30, 20)],
        [(10, 5, 30, 15), (0, 0, 20, 10), (20, 10, 40, 30), (0, 32, 32, 64), (3, 2, 9, 14)],
    )


def batches(source: Paintings, cache_bytes: int = 0) -> SceneBatches:
    return SceneBatches(source, 40, 60, torch.device("cpu"), cache_bytes)


def white_box(batch: SceneBatch, place: int) -> list[int]:
    white = batch.images[place, 0] > 200
    rows, columns = white.any(1).nonzero(), white.any(0).nonzero()
    return [int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1]


def everything(epochs: SceneEpochs, epoch: int) -> list[tuple[int, tuple[float, ...]]]:
    epochs.begin(epoch)
    read = [epochs.batch(step) for step in range(epochs.steps)]
    return [
        (index, tuple(boxes[0].tolist()))
        for batch in read
        for index, boxes in zip(batch.index, batch.boxes, strict=True)
    ]


def test_images_take_the_short_side_unless_the_long_one_would_pass_its_limit(paintings: Paintings) -> None:
    read = list(batches(paintings).sequential(1))
    assert [batch.sizes[0] for batch in read] == [(30, 60), (60, 30), (40, 53), (40, 40), (40, 60)]


def test_in_order_only_neighbours_of_one_size_share_a_batch() -> None:
    sizes = [(40, 20), (40, 20), (40, 20), (20, 40), (40, 20), (80, 40)]
    read = list(batches(Paintings(sizes, [(1, 1, 9, 9)] * 6)).sequential(2))
    assert [batch.index for batch in read] == [(0, 1), (2,), (3,), (4, 5)]
    assert all(len(set(batch.sizes)) == 1 for batch in read)


def test_boxes_follow_their_image_through_scaling_and_mirroring(paintings: Paintings) -> None:
    for mirrored in (False, True):
        for index in range(len(paintings)):
            (batch,) = batches(paintings).batches([[(index, mirrored)]])
            assert batch.boxes[0, 0].tolist() == pytest.approx(white_box(batch, 0), abs=1.01)
            height, width = batch.sizes[0]
            assert (batch.scales[0] * torch.from_numpy(paintings.sizes[index])).tolist() == pytest.approx(
                [width, height]
            )


def test_a_batch_is_padded_at_the_right_and_below(paintings: Paintings) -> None:
    (batch,) = batches(paintings).batches([[(0, False), (1, False)]])
    assert batch.images.shape == (2, 3, 64, 64)
    for image, (height, width) in zip(batch.images, batch.sizes, strict=True):
        outside = image.clone()
        outside[:, :height, :width] = 0
        assert not outside.any()


def test_difficult_objects_and_their_relations_are_left_out_and_the_rest_renumbered(paintings: Paintings) -> None:
    (batch,) = batches(paintings).batches([[(2, False)]])
    assert batch.labels.tolist() == [[5, 7]]
    assert batch.relations.tolist() == [[[0, 1], [1, 0]]]


def test_what_is_missing_in_an_image_of_a_batch_is_padding_that_nothing_matches(paintings: Paintings) -> None:
    class Sparse(Paintings):
        def objects(self, index: int) -> Objects:
            whole = super().objects(index)
            kept = slice(0, 1 if index else 3)
            none = np.zeros((0, 2), dtype=np.int64)
            relations = none if index else whole.relations
            return Objects(
                whole.boxes[kept],
                whole.labels[kept],
                whole.difficult[kept],
                whole.crowd[kept],
                relations,
            )

    source = Sparse([(40, 40)] * 2, [(1, 1, 9, 9)] * 2)
    (batch,) = batches(source).batches([[(0, False), (1, False)]])
    assert batch.labels.tolist() == [[5, 7], [5, -1]]
    assert batch.boxes[1, 1].tolist() == [0, 0, 0, 0]
    assert batch.relations[1].tolist() == [[-2, -2], [-2, -2]]


def test_an_epoch_passes_each_image_and_its_mirror_once(paintings: Paintings) -> None:
    seen = everything(SceneEpochs(batches(paintings), True, 2, seed=3), epoch=0)
    assert Counter(index for index, _ in seen) == dict.fromkeys(range(5), 2)
    assert len(set(seen)) == 8  # two of the objects stand in the middle: both passes of their images look alike


def test_without_mirrors_an_epoch_passes_each_image_once(paintings: Paintings) -> None:
    epochs = SceneEpochs(batches(paintings), False, 2, seed=3)
    assert epochs.steps == 3
    assert sorted(index for index, _ in everything(epochs, 0)) == list(range(5))


def test_an_epoch_is_a_function_of_seed_and_epoch(paintings: Paintings) -> None:
    data = batches(paintings)
    first = everything(SceneEpochs(data, True, 2, seed=1), 4)
    assert everything(SceneEpochs(data, True, 2, seed=1), 4) == first
    assert everything(SceneEpochs(data, True, 2, seed=1), 5) != first
    assert everything(SceneEpochs(data, True, 2, seed=2), 4) != first


def test_an_epoch_continues_at_any_step(paintings: Paintings) -> None:
    epochs = SceneEpochs(batches(paintings), True, 2, seed=1)
    epochs.begin(2)
    whole = [epochs.batch(step) for step in range(epochs.steps)]
    epochs.begin(2)
    for step in (3, 4, 1):
        assert torch.equal(epochs.batch(step).images, whole[step].images)


def test_batches_hold_images_of_one_orientation_where_they_come_out_even() -> None:
    source = Paintings([(40, 20)] * 4 + [(20, 40)] * 4, [(1, 1, 9, 9)] * 8)
    epochs = SceneEpochs(batches(source), False, 2, seed=0)
    epochs.begin(0)
    for step in range(epochs.steps):
        assert len(set(epochs.batch(step).sizes)) == 1


def test_a_small_split_that_is_passed_many_times_is_kept_decoded(paintings: Paintings) -> None:
    epochs = SceneEpochs(batches(paintings, 2**20), True, 2, seed=0)
    everything(epochs, 0)
    before = dict(paintings.decoded)
    everything(epochs, 1)
    assert dict(paintings.decoded) == before
    list(batches(paintings).sequential(2))
    assert dict(paintings.decoded) != before


def test_of_a_split_too_large_for_the_cache_as_many_images_are_kept_as_fit(paintings: Paintings) -> None:
    one = 3 * 60 * 40  # bytes of the largest of the three, scaled
    data = batches(paintings, 2 * one)
    plan = [[(index, False)] for index in (0, 1, 4, 0, 1, 4)]
    first = list(data.batches(plan[:3]))
    again = list(data.batches(plan[3:]))
    assert all(torch.equal(a.images, b.images) for a, b in zip(first, again, strict=True))
    assert sorted(paintings.decoded[index] for index in (0, 1, 4)) == [1, 1, 2]


def test_an_image_that_cannot_be_read_stops_the_batch_with_its_error() -> None:
    class Broken(Paintings):
        def pixels(self, index: int, at_most: tuple[int, int] | None = None) -> NDArray[np.uint8]:
            raise OSError("torn")

    with pytest.raises(OSError, match="torn"):
        list(batches(Broken([(9, 9)], [(1, 1, 5, 5)])).sequential(1))


def test_processes_share_a_batch_as_it_is_padded_for_one(paintings: Paintings) -> None:
    alone, *both = (SceneEpochs(batches(paintings), False, 4, 3, share) for share in (WHOLE, Shard(0, 2), Shard(1, 2)))
    for epochs in (alone, *both):
        epochs.begin(0)
    for step in range(2):
        whole = alone.batch(step)
        shares = [epochs.batch(step) for epochs in both]
        assert {epochs.size(step) for epochs in both} == {len(whole.index)}
        if len(whole.index) == 1:  # the second process computes on a stand-in
            assert shares[0].index == shares[1].index == whole.index
            continue
        assert shares[0].index + shares[1].index == whole.index
        assert torch.equal(torch.cat([share.images for share in shares]), whole.images)


def test_processes_share_a_split_in_order(paintings: Paintings) -> None:
    data = batches(paintings)
    alone = [batch.index for batch in data.sequential(2)]
    assert [batch.index for rank in range(3) for batch in data.sequential(2, Shard(rank, 3))] == alone
