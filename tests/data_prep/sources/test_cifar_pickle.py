from __future__ import annotations

import contextlib
import os
import pickle
import struct
import tracemalloc
from functools import reduce
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import data_prep
from data_prep.errors import SourceError
from data_prep.sources import cifar_pickle
from data_prep.sources.cifar_pickle import load

DATA = np.arange(12, dtype=np.uint8).reshape(3, 4)
BATCH = {"labels": [1, 300, 70000], "data": DATA, "filenames": ["a"], "flag": True, "none": None, "pair": (1, "x")}


def python2_batch() -> bytes:
    """What Python 2 wrote: byte strings, and NumPy's reconstruction by its old name."""
    raw = DATA.tobytes()
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01K\x03K\x04\x86"
        b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        b"T" + struct.pack("<I", len(raw)) + raw + b"tb"
    )
    return b"\x80\x02}(U\x04dataq\x01" + array + b"U\x06labels](K\x01M\x2c\x01eU\x05again" + b"h\x01u."


def test_a_python_2_pickle_reads_as_it_was_written() -> None:
    batch = load("data_batch_1", python2_batch())
    np.testing.assert_array_equal(batch["data"], DATA)
    assert batch["labels"] == [1, 300]
    assert batch["again"] == b"data"


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("byte_keys", [False, True])
def test_a_python_3_pickle_reads_as_it_was_written(protocol: int, byte_keys: bool) -> None:
    batch = {key.encode() if byte_keys else key: value for key, value in BATCH.items()}
    read = load("train", pickle.dumps(batch, protocol))
    np.testing.assert_array_equal(read.pop("data"), DATA)
    assert read == {key: value for key, value in BATCH.items() if key != "data"}


def test_byte_strings_that_python_3_wrote_for_python_2_are_read() -> None:
    batch = {b"filenames": [b"automobile_%06d.png" % number for number in range(3000)]}
    pickled = pickle.dumps(batch, 2)
    assert pickled.count(b"\x86") > 2000  # a call each
    assert load("train", pickled) == {"filenames": batch[b"filenames"]}


@pytest.mark.parametrize("protocol", [2, 5])
def test_column_major_arrays_keep_their_values(protocol: int) -> None:
    pickled = pickle.dumps({"data": np.asfortranarray(DATA)}, protocol)
    np.testing.assert_array_equal(load("train", pickled)["data"], DATA)


@pytest.mark.parametrize("module", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_both_names_of_numpys_reconstruction_are_known(module: str) -> None:
    pickled = python2_batch().replace(b"numpy.core.multiarray", module.encode())
    np.testing.assert_array_equal(load("train", pickled)["data"], DATA)


class Call:
    def __init__(self, function: object, *arguments: object) -> None:
        self.reduced = function, arguments

    def __reduce__(self) -> tuple:
        return self.reduced


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_that_calls_something_is_refused_and_calls_nothing(tmp_path: Path, protocol: int) -> None:
    mark = tmp_path / "called"
    pickled = pickle.dumps({"data": Call(os.system, f"touch {mark}")}, protocol)
    pickle.loads(pickled)
    assert mark.exists()  # it is a real attack
    mark.unlink()
    with pytest.raises(SourceError, match=r"asks for 'posix\.system'.*nothing was called"):
        load("data_batch_1", pickled)
    assert not mark.exists()


@pytest.mark.parametrize(
    "pickled", [pickle.dumps({"data": 1}, 0), pickle.dumps({"data": {1, 2}}, 4), b"cos\nsystem\n."]
)
def test_instructions_and_names_that_no_batch_needs_are_refused(pickled: bytes) -> None:
    with pytest.raises(SourceError, match="refused"):
        load("data_batch_1", pickled)


@pytest.mark.parametrize("pickled", [python2_batch(), *(pickle.dumps(BATCH, protocol) for protocol in (2, 5))])
def test_every_truncation_is_refused(pickled: bytes) -> None:
    for end in range(len(pickled)):
        with pytest.raises(SourceError):
            load("data_batch_1", pickled[:end])


@pytest.mark.parametrize(
    ("value", "what"),
    [
        ([1], "holds a list, expected a dictionary"),
        ({1: 2}, "a dictionary key is a int"),
        ({(1, 2): 2}, "a dictionary key is a tuple"),
        ({"data": DATA.astype(np.float32)}, "array of type 'f4', expected uint8"),
        ({"data": np.dtype("u1")}, r"'numpy\.dtype' instead of an array"),
    ],
)
def test_what_no_batch_holds_is_refused(value: object, what: str) -> None:
    with pytest.raises(SourceError, match=what):
        load("data_batch_1", pickle.dumps(value, 2))


def test_an_array_of_fewer_bytes_than_its_shape_is_refused() -> None:
    pickled = python2_batch().replace(b"K\x01K\x03K\x04\x86", b"K\x01K\x03K\x05\x86")
    with pytest.raises(SourceError, match="its array is damaged"):
        load("data_batch_1", pickled)


def test_an_endless_pickle_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar_pickle, "_MAX_INSTRUCTIONS", 1000)
    with pytest.raises(SourceError, match="more than 1,000 instructions"):
        load("data_batch_1", b"\x80\x02" + b"}" * 5000 + b".")


@pytest.mark.parametrize(
    "pickled",
    [
        b"\x80\x02}r\xff\xff\xff\xff.",  # memo index of 4 billion
        b"\x80\x05\x8e" + struct.pack("<Q", 1 << 62) + b"x.",  # bytes of 4 exabytes
        b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b"x.",
        b"\x80\x04\x95" + struct.pack("<Q", 1 << 62) + b"}.",  # a frame of as many
    ],
)
def test_claimed_sizes_take_no_memory(pickled: bytes) -> None:
    with contextlib.suppress(SourceError):
        assert load("data_batch_1", pickled) == {}


def test_a_file_that_is_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pickled = pickle.dumps(BATCH, 2)
    monkeypatch.setattr(cifar_pickle, "_MAX_BYTES", len(pickled) - 1)
    with pytest.raises(SourceError, match="expected at most"):
        load("data_batch_1", pickled)
    monkeypatch.setattr(cifar_pickle, "_MAX_BYTES", len(pickled))
    load("data_batch_1", pickled)


DEEP_TUPLE = b")" + b"\x85" * 100_000
SHARED_TUPLE = b")" + b"".join(b"q%ch%c\x86" % (level, level) for level in range(60))
SHARED_LIST = pickle.dumps(reduce(lambda value, _: [value] * 2, range(60), []), 2)[2:-1]
COLLISION = b"\x8a\x08" + struct.pack("<q", 2**61 - 1)


@pytest.mark.parametrize(
    ("pickled", "what"),
    [
        (b"\x80\x02}" + SHARED_TUPLE + b"Ns.", "refers to a result of .* repeatedly"),
        (b"\x80\x02})Nbq\x00h\x00h\x00\x86Ns.", "refers to a result of BUILD repeatedly"),
        (b"\x80\x04})\x94h\x00h\x00\x86Ns.", "refers to a result of .* repeatedly"),
        (b"\x80\x02}" + DEEP_TUPLE + b"Ns.", "more than 1,000 tuples"),
        (b"\x80\x02}" + COLLISION + b"Ns.", "integer above"),
        (b"\x80\x02cnumpy\nndarray\n}X\x04\x00\x00\x00nameNsb.", "state for numpy.ndarray"),
        (b"\x80\x02cnumpy\ndtype\nN}X\x04\x00\x00\x00nameNs\x86b.", "state for numpy.dtype"),
        (b"\x80\x02}U\x04datacnumpy\ndtype\n" + SHARED_LIST + b"\x85Rs.", "dtype' instead of an array"),
        (b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00x" + SHARED_LIST + b"\x86R.", "encoded as a list"),
    ],
)
def test_a_small_pickle_cannot_take_much_time(pickled: bytes, what: str) -> None:
    with pytest.raises(SourceError, match=what):
        load("batches.meta", pickled)


def test_an_array_type_that_unfolds_is_not_shown() -> None:
    pickled = python2_batch().replace(b"U\x02u1", SHARED_LIST, 1)
    with pytest.raises(SourceError, match="array of type a list, expected uint8"):
        load("data_batch_1", pickled)


def test_bytes_encoded_again_and_again_take_no_memory() -> None:
    text = b"X" + struct.pack("<I", 100_000) + b"x" * 100_000
    again = b"h\x00h\x01h\x02\x86R" * 900
    pickled = (
        b"\x80\x02}U\x04data](c_codecs\nencode\nq\x00" + text + b"q\x01X\x06\x00\x00\x00latin1q\x02" + again + b"es."
    )
    tracemalloc.start()
    try:
        with pytest.raises(SourceError, match="unpacks to more bytes than it has"):
            load("batches.meta", pickled)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


@example([(46, 92)], 2)  # an escape that Python's decoder warns of
@given(
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=4), st.sampled_from([2, 5])
)
def test_no_damage_gives_anything_but_a_batch_or_a_source_error(changes: list[tuple[int, int]], protocol: int) -> None:
    pickled = bytearray(pickle.dumps(BATCH, protocol))
    for position, value in changes:
        pickled[position % len(pickled)] = value
    with contextlib.suppress(SourceError):
        assert isinstance(load("data_batch_1", bytes(pickled)), dict)


def doubled(levels: int) -> list:
    """A list of two references to a list of two references, and so on: small as a pickle, 2 ** levels if copied."""
    value: list = ["x" * 10]
    for _ in range(levels):
        value = [value, value]
    return value


@pytest.mark.parametrize(
    "content", [{"label_names": doubled(60)}, {"other": doubled(60)}, doubled(60), {"data": doubled(60)}]
)
def test_a_small_pickle_that_unfolds_to_an_enormous_value_takes_little_memory(content: object) -> None:
    pickled = pickle.dumps(content, 2)
    assert len(pickled) < 1000
    tracemalloc.start()
    try:
        files = {"meta": pickled, "train": pickled, "test": pickled}
        with pytest.raises(SourceError, match="meta") as caught:
            data_prep.get("cifar100").read(files)
        assert len(str(caught.value)) < 400
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
