"""What a person who runs affsup can put right. The lowest floor: all may import it, it imports none of ours."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class AffsupError(Exception):
    """The work failed for a reason the user can act on.

    The message names the file or field, what was found, what was expected and what to do next. The command line
    prints it without a traceback and leaves with `exit_code`.
    """

    exit_code = 1


class UsageError(AffsupError):
    """The call itself was wrong: an unknown name, a refused value, a missing argument."""

    exit_code = 2


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return " (did you mean '...'?)" with the nearest of the `known` names, or nothing where none is near."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""
