"""CIFAR pickles read as data: a stack machine that knows no call.

The official files are pickles, and a pickle from elsewhere may call anything when `pickle.load` reads it. Here
`pickletools` parses it and only the instructions that plain data and NumPy arrays need are understood. A "call" is
recorded, never made, and only the calls that stand for a uint8 array are then recognised.
"""

from __future__ import annotations

import pickletools
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep.errors import SourceError

# The official CIFAR-100 training batch takes 255,000. An instruction is one byte and can make an object of 64.
_MAX_INSTRUCTIONS = 2_000_000

_RECONSTRUCT = {"numpy.core.multiarray _reconstruct", "numpy._core.multiarray _reconstruct"}
_FROMBUFFER = {"numpy.core.numeric _frombuffer", "numpy._core.numeric _frombuffer"}
_NDARRAY = "numpy ndarray"
_DTYPE = "numpy dtype"
_ENCODE = "_codecs encode"  # how Python 3 writes bytes for Python 2
_GLOBALS = {*_RECONSTRUCT, *_FROMBUFFER, _NDARRAY, _DTYPE, _ENCODE}


@dataclass(frozen=True, eq=False)
class _Global:
    name: str


@dataclass(eq=False)
class _Call:
    """A call that the pickle asks for, and the state it would set on the result."""

    function: str
    arguments: tuple[Any, ...]
    state: Any = None


def load(name: str, pickled: bytes) -> dict[str, object]:
    """Read a pickled dictionary of plain values and uint8 arrays, written by Python 2 or 3, without running it.

    Args:
        name: The file, for messages.
        pickled: Its bytes.

    Returns:
        The dictionary, byte keys decoded, arrays uint8 of their shape.

    Raises:
        SourceError: It is truncated or damaged, holds something else, or would call something when unpickled.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of escapes in damaged text, nothing to tell a user
            value = _interpret(name, pickletools.genops(pickled))
    except SourceError:
        raise
    # ValueError is how pickletools reports damage; the others are how a stack machine fails on nonsense.
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise SourceError(f"{name}: truncated or damaged pickle ({error})") from None
    if not isinstance(value, dict):
        raise SourceError(f"{name}: holds a {type(value).__name__}, expected a dictionary")
    return {key: _array(name, item) if isinstance(item, _Call) else item for key, item in value.items()}


def _interpret(name: str, instructions: Iterable[tuple[pickletools.OpcodeInfo, Any, int | None]]) -> Any:
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def popped_to_mark() -> list[Any]:
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    for count, (opcode, argument, _) in enumerate(instructions):
        if count > _MAX_INSTRUCTIONS:
            raise SourceError(f"{name}: a pickle of more than {_MAX_INSTRUCTIONS:,} instructions is no CIFAR batch")
        match opcode.name:
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                return stack.pop()
            case "MARK":
                marks.append(len(stack))
            case "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(opcode.name == "NEWTRUE")
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINUNICODE" | "SHORT_BINUNICODE":
                stack.append(argument)
            case "BINBYTES" | "SHORT_BINBYTES" | "BINBYTES8" | "BYTEARRAY8":
                stack.append(bytes(argument))
            case "BINSTRING" | "SHORT_BINSTRING":  # pickletools shows the bytes of a Python 2 string as latin-1 text
                stack.append(argument.encode("latin-1"))
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                size = int(opcode.name[-1])
                items = [stack.pop() for _ in range(size)]
                stack.append(tuple(reversed(items)))
            case "TUPLE":
                stack.append(tuple(popped_to_mark()))
            case "APPEND":
                item = stack.pop()
                stack[-1].append(item)
            case "APPENDS":
                items = popped_to_mark()
                stack[-1].extend(items)
            case "SETITEM":
                item, key = stack.pop(), stack.pop()
                stack[-1][_key(name, key)] = item
            case "SETITEMS":
                items = popped_to_mark()
                for key, item in zip(items[::2], items[1::2], strict=True):
                    stack[-1][_key(name, key)] = item
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "GLOBAL":
                stack.append(_known_global(name, argument))
            case "STACK_GLOBAL":
                attribute, module = stack.pop(), stack.pop()
                stack.append(_known_global(name, f"{module} {attribute}"))
            case "REDUCE":
                arguments, function = stack.pop(), stack.pop()
                stack.append(_reduced(name, function.name, tuple(arguments)))
            case "BUILD":
                state = stack.pop()
                stack[-1].state = state
            case _:
                raise SourceError(f"{name}: pickle instruction {opcode.name} has no place in a CIFAR batch; refused")
    raise SourceError(f"{name}: truncated or damaged pickle (it does not stop)")


def _known_global(name: str, qualified: str) -> _Global:
    if qualified not in _GLOBALS:
        raise SourceError(
            f"{name}: its pickle asks for {qualified.replace(' ', '.')!r}, which is no part of a CIFAR batch; "
            "refused, and nothing was called"
        )
    return _Global(qualified)


def _reduced(name: str, function: str, arguments: tuple[Any, ...]) -> Any:
    if function != _ENCODE:
        return _Call(function, arguments)
    text, encoding = arguments
    if encoding != "latin1":
        raise SourceError(f"{name}: its pickle has bytes encoded as {encoding!r}, expected 'latin1'")
    return text.encode("latin-1")


def _key(name: str, key: Any) -> str:
    if isinstance(key, bytes):
        return key.decode("latin-1")
    if not isinstance(key, str):
        raise SourceError(f"{name}: a dictionary key is a {type(key).__name__}, expected a string")
    return key


def _array(name: str, call: _Call) -> NDArray[np.uint8]:
    """Make the uint8 array that a recorded NumPy reconstruction stands for."""
    try:
        if call.function in _RECONSTRUCT:
            _, shape, dtype, fortran, raw = call.state
        elif call.function in _FROMBUFFER:
            raw, dtype, shape, order = call.arguments
            fortran = order == "F"
        else:
            raise SourceError(f"{name}: a {call.function.replace(' ', '.')!r} where an array should be")
        kind = dtype.arguments[0]
        kind = kind.decode("latin-1") if isinstance(kind, bytes) else kind
        if dtype.function != _DTYPE or kind not in ("u1", "|u1", "uint8"):
            raise SourceError(f"{name}: holds an array of type {kind!r}, expected uint8")
        if not isinstance(raw, bytes) or any(type(n) is not int or n < 0 for n in shape):
            raise SourceError(f"{name}: its array has no bytes or no shape")
        return np.frombuffer(raw, dtype=np.uint8).reshape(shape, order="F" if fortran else "C")
    except (ValueError, TypeError, AttributeError, IndexError) as error:
        raise SourceError(f"{name}: its array is damaged ({error})") from None
