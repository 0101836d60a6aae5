"""Load the pickles of CIFAR-10 and CIFAR-100 without running code from them.

`pickle.load` calls whatever a pickle names. Here `find_class` knows only the names that the official files use, and
gives placeholders for them: a call is recorded, not made, and only a recorded uint8 array becomes an array. First
`pickletools` checks the instructions, so that a small file cannot take much memory or time.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import warnings
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from data_prep.errors import SourceError, quote, shorten

_MAX_BYTES = 300_000_000  # the official CIFAR-100 training batch has 155,249,918, and 1.5 times as many in protocol 2
_MAX_INSTRUCTIONS = 1_000_000  # that batch has 255,000; an instruction is one byte and can make an object of 64
_MAX_TUPLES = 1000  # that are no arguments of a call; an array has about four
_MAX_INTEGER = 2**60  # no two integers up to it have the same hash

_ENCODE = "_codecs.encode"  # how Python 3 writes bytes for Python 2
_RECONSTRUCT = {"numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct"}
_FROMBUFFER = {"numpy.core.numeric._frombuffer", "numpy._core.numeric._frombuffer"}
_DTYPE = "numpy.dtype"
_GLOBALS = {*_RECONSTRUCT, *_FROMBUFFER, "numpy.ndarray", _DTYPE, _ENCODE}

_PUT = {"BINPUT", "LONG_BINPUT"}
_GET = {"BINGET", "LONG_BINGET"}
_TUPLE = {"EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"}
# Instructions whose result is certainly no tuple, so that the pickle may refer to it again.
_SHARED = {
    *("BININT", "BININT1", "BININT2", "LONG1", "BINUNICODE", "SHORT_BINUNICODE", "BINSTRING", "SHORT_BINSTRING"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "EMPTY_LIST", "EMPTY_DICT"),
    *("GLOBAL", "STACK_GLOBAL", "REDUCE"),
}
_KNOWN = {
    *("PROTO", "FRAME", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE", "MEMOIZE"),
    *("APPEND", "APPENDS", "SETITEM", "SETITEMS", "BUILD"),
    *(_PUT | _GET | _TUPLE | _SHARED),
}


def load(name: str, pickled: bytes) -> dict[str, object]:
    """Load a pickled dictionary of plain values and uint8 arrays, written by Python 2 or 3.

    Args:
        name: File name, for messages.
        pickled: Content of the file.

    Returns:
        The dictionary with byte keys decoded and arrays as uint8 of their shape.

    Raises:
        SourceError: The pickle is truncated, damaged or too large, or contains or calls something else.
    """
    try:
        _check_instructions(name, pickled)
        value = _Unpickler(name, pickled).load()
    except SourceError:
        raise
    # The errors that pickletools and pickle raise for damaged input.
    except (
        pickle.UnpicklingError,
        EOFError,
        ValueError,
        IndexError,
        KeyError,
        TypeError,
        AttributeError,
        OverflowError,
    ) as error:
        raise SourceError(f"{name}: truncated or damaged pickle ({shorten(error)})") from None
    if not isinstance(value, dict):
        raise SourceError(f"{name}: holds a {type(value).__name__}, expected a dictionary")
    return {_key(name, key): _array(name, item) if isinstance(item, _Call) else item for key, item in value.items()}


def _check_instructions(name: str, pickled: bytes) -> None:
    """Refuse a pickle with other instructions than CIFAR files have, or that would take much memory or time to load.

    Some are dangerous in small numbers. For a large memo index `pickle` allocates the whole memo. Dictionary keys are
    hashed before `load` can check them: the hash of tuples that contain one tuple repeatedly takes exponential time,
    that of deeply nested tuples overflows the stack, and large integers can all have the same hash.
    """
    if len(pickled) > _MAX_BYTES:
        raise SourceError(f"{name}: a pickle of {len(pickled):,} bytes, expected at most {_MAX_BYTES:,}; refused")
    memo: dict[int, str] = {}  # the instruction that made each memoised object
    previous, tuples = "", 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # about escapes in damaged text
        for count, (opcode, operand, _) in enumerate(pickletools.genops(pickled)):
            kind = opcode.name
            argument: Any = operand
            if count > _MAX_INSTRUCTIONS:
                raise SourceError(f"{name}: a pickle of more than {_MAX_INSTRUCTIONS:,} instructions is no CIFAR batch")
            if kind not in _KNOWN:
                raise SourceError(f"{name}: pickle instruction {kind} does not occur in CIFAR batches; refused")
            if kind in _PUT:
                if argument > _MAX_INSTRUCTIONS:
                    raise SourceError(f"{name}: pickle memo index {argument:,} is too large; refused")
                memo[argument] = previous
            elif kind == "MEMOIZE":
                memo[len(memo)] = previous
            elif kind in _GET and memo[argument] not in _SHARED:
                raise SourceError(f"{name}: its pickle refers to a result of {memo[argument]} repeatedly; refused")
            elif kind in _TUPLE:
                tuples += 1
                if tuples > _MAX_TUPLES:
                    raise SourceError(f"{name}: its pickle has more than {_MAX_TUPLES:,} tuples; refused")
            elif kind == "REDUCE":
                tuples -= 1
            elif kind == "LONG1" and abs(argument) > _MAX_INTEGER:
                raise SourceError(f"{name}: its pickle has an integer above {_MAX_INTEGER:,}; refused")
            elif kind == "FRAME" and argument > len(pickled):
                raise SourceError(f"{name}: truncated or damaged pickle (a frame of {argument:,} bytes)")
            if kind != "FRAME":
                previous = kind


class _Global:
    """A name that the pickle refers to. A call of it is recorded, not made."""

    __slots__ = ("_unpickler", "name")

    def __init__(self, name: str, unpickler: _Unpickler) -> None:
        self.name = name
        self._unpickler = unpickler

    def __call__(self, *arguments: Any) -> Any:
        return self._unpickler.encode(*arguments) if self.name == _ENCODE else _Call(self.name, arguments)

    def __setstate__(self, state: object) -> NoReturn:
        raise TypeError(f"state for {self.name}")


class _Call:
    """A recorded call, and the state that the pickle sets on its result."""

    __slots__ = ("arguments", "function", "state")

    def __init__(self, function: str, arguments: tuple[Any, ...]) -> None:
        self.function = function
        self.arguments = arguments
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Unpickler(pickle.Unpickler):
    """Knows only `_GLOBALS`, and gives placeholders for them."""

    def __init__(self, name: str, pickled: bytes) -> None:
        super().__init__(io.BytesIO(pickled), fix_imports=False, encoding="bytes")
        self._name = name
        self._bytes_left = len(pickled)

    def find_class(self, module: str, name: str) -> _Global:
        qualified = f"{module}.{name}"
        if qualified not in _GLOBALS:
            raise SourceError(
                f"{self._name}: its pickle asks for {_shown(qualified)}, which is no part of a CIFAR batch; "
                "refused, and nothing was called"
            )
        return _Global(qualified, self)

    def encode(self, text: str, encoding: str) -> bytes:
        """Return text as latin-1; all results together are no longer than the pickle, which holds each text once."""
        if encoding != "latin1":
            raise SourceError(f"{self._name}: its pickle has bytes encoded as {_shown(encoding)}, expected 'latin1'")
        self._bytes_left -= len(text)
        if self._bytes_left < 0:
            raise SourceError(f"{self._name}: its pickle unpacks to more bytes than it has; refused")
        return text.encode("latin-1")


def _key(name: str, key: object) -> str:
    if isinstance(key, bytes):
        return key.decode("latin-1")
    if not isinstance(key, str):
        raise SourceError(f"{name}: a dictionary key is a {type(key).__name__}, expected a string")
    return key


def _array(name: str, call: _Call) -> NDArray[np.uint8]:
    """Return the uint8 array that a recorded NumPy call stands for."""
    try:
        if call.function in _RECONSTRUCT:
            _, shape, dtype, fortran, raw = call.state
        elif call.function in _FROMBUFFER:
            raw, dtype, shape, order = call.arguments
            fortran = order == "F"
        else:
            raise SourceError(f"{name}: a {quote(call.function)} instead of an array")
        kind = dtype.arguments[0]
        kind = kind.decode("latin-1") if isinstance(kind, bytes) else kind
        if dtype.function != _DTYPE or kind not in ("u1", "|u1", "uint8"):
            raise SourceError(f"{name}: holds an array of type {_shown(kind)}, expected uint8")
        if not isinstance(raw, bytes | bytearray) or any(type(n) is not int or n < 0 for n in shape):
            raise SourceError(f"{name}: its array has no bytes or no shape")
        return np.frombuffer(raw, dtype=np.uint8).reshape(shape, order="F" if fortran else "C")
    except (ValueError, TypeError, AttributeError, IndexError) as error:
        raise SourceError(f"{name}: its array is damaged ({shorten(error)})") from None


def _shown(value: object) -> str:
    """Return a value for a message: only the type of anything but a short string, whose text may be of any length."""
    return quote(value) if isinstance(value, str) else f"a {type(value).__name__}"
