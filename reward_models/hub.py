"""Whether a model is there: a directory, or an id that the Hugging Face Hub, or its cache on this machine, gives."""

from __future__ import annotations

import os
from pathlib import Path

from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache

PATIENCE = 10.0
"""Seconds that the Hub is waited for."""


def require_model(what: str, path: str | os.PathLike[str]) -> None:
    """See that a model can be loaded, before hours of work and without the minute of a library's own retries.

    Args:
        what: what it is called in the error, such as policy.model.

    Raises:
        ValueError: no such directory, none of a model, or the Hub does not give it.
    """
    name, folder = str(path), Path(path)
    if folder.is_dir():
        if not (folder / "config.json").is_file() and not any(folder.glob("member-*/config.json")):
            raise ValueError(f"{what} is {name!r}: the directory has no config.json; expected one of a model")
        return
    try:
        if isinstance(try_to_load_from_cache(name, "config.json"), str):
            return
        get_hf_file_metadata(hf_hub_url(name, "config.json"), timeout=PATIENCE)
    except Exception as error:  # of the library's, and of the one that it speaks HTTP with
        said = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"{what} is {name!r}: neither a directory here nor a model that the Hub gives ({type(error).__name__}: "
            f"{said}); check the name, or where there is no network give the directory of a downloaded one"
        ) from error
