"""Download a data set of the Hugging Face hub, named as `hf://datasets/OWNER/NAME`."""

from __future__ import annotations

import re
from pathlib import Path

from data_prep.errors import AffsupError, UsageError, quote, shorten
from data_prep.writing import explain_full_disk

_ADDRESS = re.compile(r"hf://datasets/([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w.-]+))?/?")
_PATTERNS = ["*.parquet", "*.json", "*.txt", "*.jpg", "*.jpeg", "*.png"]


def is_hub_address(source: Path) -> bool:
    """Return whether a source is the address of a data set of the hub."""
    return str(source).startswith("hf:")


def fetch(source: Path, downloads: Path) -> Path:
    """Download the files of a data set, unless they are there already.

    Args:
        source: `hf://datasets/OWNER/NAME`, with `@REVISION` for other files than those of the main branch.
        downloads: Folder for downloads.

    Returns:
        The folder of the files.

    Raises:
        UsageError: It is no such address, or huggingface_hub is not installed.
        AffsupError: The download failed.
    """
    address = re.sub("^hf:/+", "hf://", str(source))  # a path has no double slashes
    match = _ADDRESS.fullmatch(address)
    if not match:
        raise UsageError(f"--from {quote(address)}: expected hf://datasets/OWNER/NAME")
    try:
        from huggingface_hub import snapshot_download
    except ModuleNotFoundError:
        raise UsageError(f"--from {address} needs huggingface_hub: pip install 'affsup[hub]'") from None
    name, revision = match[1], match[2]
    folder = downloads / "hub" / name.replace("/", "--")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with explain_full_disk(downloads, 0):
            snapshot_download(name, repo_type="dataset", revision=revision, local_dir=folder, allow_patterns=_PATTERNS)
    except AffsupError:
        raise
    except Exception as error:  # huggingface_hub raises errors of its own, of its HTTP library and of the system
        raise AffsupError(
            f"{address} cannot be downloaded ({type(error).__name__}: {shorten(error)}): try again later, "
            "or download its files elsewhere and give their folder with --from"
        ) from error
    return folder
