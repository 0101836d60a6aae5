"""Upload of exported models to the Hugging Face hub. Needs the extra `hub`."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

from data_prep.errors import AffsupError, UsageError, shorten

_TOKEN = "`hf auth login` or the variable HF_TOKEN gives a token that may write; https://huggingface.co/settings/tokens"  # noqa: S105
_REFUSED = (401, 403)
_PART = r"(?!.*(?:--|\.\.))[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"
_NAME = re.compile(f"{_PART}/{_PART}")
_LONGEST_NAME = 96  # as huggingface_hub


def check_repository(repository: str) -> None:
    """Check the name of a repository, before anything is written.

    Raises:
        UsageError: it is not OWNER/NAME.
        AffsupError: huggingface_hub is not installed.
    """
    if importlib.util.find_spec("huggingface_hub") is None:
        raise AffsupError("--push needs huggingface_hub, which is not installed: `pip install 'affsup[hub]'`")
    if not _NAME.fullmatch(repository) or len(repository) > _LONGEST_NAME:
        raise UsageError(f"--push {shorten(repository)}: expected OWNER/NAME, the name of a repository of the hub")


def push(repository: str, model: Path, card: Path) -> str:
    """Upload a file and its model card, as README.md, in one commit; return the address of the repository.

    A repository that does not exist is created, private.

    Args:
        repository: OWNER/NAME.
        model: the exported file.
        card: its model card.

    Raises:
        AffsupError: there is no token, it may not write there, or the hub cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    files = {model.name: model, "README.md": card}
    try:
        api = HfApi()
        address = str(api.create_repo(repository, private=True, exist_ok=True))
        api.create_commit(
            repository,
            [CommitOperationAdd(path_in_repo=name, path_or_fileobj=path) for name, path in files.items()],
            commit_message=f"affsup export: {model.name}",
        )
    except LocalTokenNotFoundError:
        raise AffsupError(f"--push {repository}: the hub has no token of yours. {_TOKEN}") from None
    except Exception as error:  # the library passes on those of its HTTP client, which differs by version
        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(error, HfHubHTTPError) and status in _REFUSED:
            raise AffsupError(
                f"--push {repository}: the hub refuses the upload (HTTP {status}): the token is missing, is invalid or "
                f"may not write there. {_TOKEN}"
            ) from error
        reason = shorten((str(error).strip().splitlines() or [type(error).__name__])[0])
        raise AffsupError(f"--push {repository}: the upload failed ({reason}). {model} and {card} are kept") from error
    return address
