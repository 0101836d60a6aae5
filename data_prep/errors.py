"""Errors that the user can correct, and text helpers for their messages. Imports no other module of the project."""

from __future__ import annotations

import difflib
import errno
import os
import re
import reprlib
from collections.abc import Iterable
from pathlib import Path

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


class AffsupError(Exception):
    """The work failed for a reason that the user can correct.

    The message names the file or field, what was found, what was expected and what to do next. The command line
    prints it without a traceback and exits with `exit_code`.
    """

    exit_code = 1


class UsageError(AffsupError):
    """The call was invalid: an unknown name, an invalid value, a missing argument."""

    exit_code = 2


class AffsupWarning(UserWarning):
    """Something that the user should know, while the work goes on."""


class SourceError(AffsupError):
    """The official files are not as expected. The message names the file within the source, but not the source."""


MAX_QUOTED = 200
"""Number of characters of an input that a message repeats."""

MORE_FILES = "Raise the limit of open files with `ulimit -n 4096`, then run the command again"
"""What to do about too few file handles."""

_REPR = reprlib.Repr()  # bounded in time and memory also for deeply nested values
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = MAX_QUOTED


def shorten(text: object) -> str:
    """Return the text of an input or of a library's error for a message: at most `MAX_QUOTED` characters of it."""
    string = str(text)
    return string if len(string) <= MAX_QUOTED else f"{string[:MAX_QUOTED]}..."


def quote(value: object) -> str:
    """Return the `repr` of an input for a message: at most `MAX_QUOTED` characters of it."""
    if isinstance(value, str | bytes):
        return repr(value) if len(value) <= MAX_QUOTED else f"{value[:MAX_QUOTED]!r}..."
    try:
        return shorten(_REPR.repr(value))
    except ValueError:  # Python converts no integer of more than 4,300 digits
        return f"a large {type(value).__name__}"


def unreadable(path: Path, error: OSError) -> str:
    """Return the message for a file that exists but cannot be read."""
    reason = os.strerror(error.errno) if error.errno else shorten(error)
    if error.errno == errno.EACCES:
        target = next((folder for folder in reversed(path.parents) if not os.access(folder, os.X_OK)), path)
        right = "rx" if target != path else "r"
        return f"{path} cannot be read: {reason}. `chmod u+{right} {target}` lets its owner read it"
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return f"{path} cannot be read: {reason}. {MORE_FILES}"
    return f"{path} cannot be read: {reason}"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return " (did you mean '...'?)" with the most similar of the `known` names, or "" if none is similar."""
    close = difflib.get_close_matches(shorten(word), list(known), n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""


def printable(text: str) -> str:
    """Return `text` with control characters and surrogates, which a file name may contain, escaped."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def counted(number: int, noun: str) -> str:
    """Return "1 run", "2 runs"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
