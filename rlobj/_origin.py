"""`envs` and `reward_models` are common names: see to it that they mean the packages installed with rlobj.

Python looks for modules in the script's folder first, and in the working directory for `python -m`.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

HOME = Path(__file__).resolve().parent.parent
"""Folder that holds rlobj, envs and reward_models."""
NEIGHBOURS = ("envs", "reward_models")


def check_origin() -> None:
    """Make `import envs` and `import reward_models` mean ours.

    Under `python -m rlobj` a working directory with folders of these names moves to the end of the search path, so
    that other modules in it are still found.

    Raises:
        ImportError: another `envs` or `reward_models` comes first; both places are named.
    """
    if _is_run_as_module() and hidden_by_us(Path.cwd()) and sys.path[:1] == [str(Path.cwd())]:
        sys.path.append(sys.path.pop(0))
        importlib.invalidate_caches()
    for name in NEIGHBOURS:
        found = _location(name)
        if found is not None and found != HOME / name:
            raise ImportError(
                f"rlobj needs its own package {name!r} ({HOME / name}), but {found} comes first in sys.path: "
                "rename that folder, or move its parent behind rlobj's in sys.path"
            )


def hidden_by_us(folder: Path) -> list[Path]:
    """Packages and modules in `folder` that have the names of ours and cannot be imported beside them."""
    if folder.resolve() == HOME:
        return []
    places = [place for name in NEIGHBOURS for place in (folder / name, folder / f"{name}.py")]
    return [place for place in places if place.exists()]


def advice_on(error: BaseException) -> str:
    """Name the user's folder that a failed import did not reach because its name is ours, or say nothing."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ImportError) and cause.name:
            for place in hidden_by_us(Path.cwd()):
                if place.stem == cause.name.partition(".")[0]:
                    return f"\n{place} is hidden by rlobj's own package {place.stem!r}: give yours another name"
        cause = cause.__cause__ or cause.__context__
    return ""


def _is_run_as_module() -> bool:
    # argv[0] is "-m" only while Python still looks for the module to run
    return sys.argv[:1] == ["-m"] and "rlobj" in sys.orig_argv


def _location(name: str) -> Path | None:
    """Folder of the package that `import name` gives, or the file of a plain module."""
    module = sys.modules.get(name)
    spec = module.__spec__ if module is not None else importlib.util.find_spec(name)
    if spec is None or spec.origin is None:  # not there, or a folder without __init__.py, which any package precedes
        return None
    origin = Path(spec.origin).resolve()
    return origin.parent if origin.name == "__init__.py" else origin
