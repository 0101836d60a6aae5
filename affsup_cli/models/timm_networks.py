"""Networks of timm (PyTorch Image Models), named `timm:NAME` in a recipe."""

from __future__ import annotations

from typing import Any

from data_prep.errors import AffsupError, UsageError, did_you_mean


def create_network(name: str, **options: Any) -> Any:
    """Return timm's network `name`, built with `options` of `timm.create_model`.

    Raises:
        UsageError: timm is not installed, has no such network, or cannot build it.
        AffsupError: pretrained weights cannot be read or downloaded, or do not fit.
    """
    try:
        import timm
    except ImportError as error:
        raise UsageError(f"model.arch = 'timm:{name}' needs timm: pip install 'affsup[timm]'") from error
    if not timm.is_model(name):
        hint = did_you_mean(name, timm.list_models())
        raise UsageError(f"model.arch = 'timm:{name}': timm {timm.__version__} has no such network{hint}")
    try:
        return timm.create_model(name, **options)
    except Exception as error:  # timm and its hub raise many kinds
        message = f"timm cannot build {name} (model.arch, model.weights): {str(error).splitlines()[0]}"
        raise (AffsupError if options.get("pretrained") else UsageError)(message) from error
