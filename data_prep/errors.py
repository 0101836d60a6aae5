"""Errors that the user can correct, and text helpers for their messages. Imports no other module of the project."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


class AffsupError(Exception):
    """The work failed for a reason the user can act on.

    The message names the file or field, what was found, what was expected and what to do next. The command line
    prints it without a traceback and leaves with `exit_code`.
    """

    exit_code = 1


class UsageError(AffsupError):
    """The call itself was wrong: an unknown name, a refused value, a missing argument."""

    exit_code = 2


class SourceError(AffsupError):
    """The official files are not what they should be. The message names the file within the source, not the source."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return " (did you mean '...'?)" with the nearest of the `known` names, or nothing where none is near."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""


def printable(text: str) -> str:
    """Return `text` with what would steer a terminal, or is no character, as its escape; a file's name may hold it."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
