"""What a person who runs affsup can put right. The lowest floor: everything may import it, it imports nothing."""


class AffsupError(Exception):
    """The work failed for a reason the user can act on.

    The message names the file or field, what was found, what was expected and what to do next. The command line
    prints it without a traceback and leaves with `exit_code`.
    """

    exit_code = 1


class UsageError(AffsupError):
    """The call itself was wrong: an unknown name, a refused value, a missing argument."""

    exit_code = 2
