"""How a reward is found by its name. Nothing here imports torch until a reward model is asked for."""

from __future__ import annotations

import functools
import importlib.util
import operator
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from reward_models import shipped, text_metrics
from reward_models.calling import as_reward, nearest
from reward_models.isolated import isolated_reward
from reward_models.protocol import Reward
from reward_models.remote import RemoteReward

SHIPPED: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        shipped.exact_match, shipped.fuzzy_match, shipped.label_match, shipped.regex_match, shipped.length_window,
        shipped.no_repetition, shipped.forbidden_words, shipped.json_format, shipped.tag_format, shipped.politeness,
        shipped.slot_coverage, shipped.success, text_metrics.bleu, text_metrics.chrf, text_metrics.rouge,
    )
}  # fmt: skip

GROUP = "rlobj.rewards"
"""Group of entry points by which an installed package offers rewards."""


def list_rewards() -> dict[str, tuple[str, str]]:
    """Name of each reward that is found -> where from, and what it is, in a line; nothing is imported for it."""
    found = {name: ("shipped", _first_line(function)) for name, function in SHIPPED.items()}
    for each in entry_points(group=GROUP):
        source = f"{each.dist.name} {each.dist.version}" if each.dist is not None else "installed"
        found.setdefault(each.name, (source, each.value))
    return found


def _first_line(function: Any) -> str:
    return (function.__doc__ or "").strip().partition("\n")[0]


def load_reward(
    spec: str,
    kwargs: Mapping[str, Any] | None = None,
    *,
    concurrency: int | None = None,
    timeout: float | None = None,
    isolated: bool = False,
) -> Reward:
    """The reward that `spec` names: a shipped one, an entry point of group "rlobj.rewards", "package.module:name",
    "path/to/file.py:name", the directory of a trained reward model, or the http:// address of a server
    (`reward_models.remote`).

    Args:
        kwargs, concurrency, timeout: those of `reward_models.calling.as_reward`.
        isolated: whether a function is called in processes of its own, which are killed after `timeout`
            (`reward_models.isolated`). A server is another process already; a reward model stays in this one.

    Raises:
        ValueError: nothing is there under this name; the nearest name is given. Or `kwargs` do not fit it, or isolated
            without a timeout.
        TypeError: what is there cannot be called.
    """
    found = _server_or_model(spec)
    if found is not None:
        return as_reward(found, kwargs, concurrency=concurrency, timeout=timeout)
    found = _function(spec)
    if not callable(found):
        raise TypeError(
            f"reward {spec!r} is {found!r}: expected a function (prompts, completions, **columns) -> list of float"
        )
    reward = as_reward(found, kwargs, concurrency=concurrency, timeout=timeout)
    return isolated_reward(reward, spec, kwargs, concurrency, timeout) if isolated else reward


def _server_or_model(spec: str) -> Callable[..., Any] | None:
    if spec.startswith(("http://", "https://")):
        return functools.partial(RemoteReward, spec)
    if ":" in spec or spec in SHIPPED:
        return None
    if (Path(spec) / "config.json").is_file():
        from reward_models.trained import TrainedReward

        return functools.partial(TrainedReward, spec)
    if (Path(spec) / "member-0").is_dir():
        from reward_models.trained import EnsembleReward, member_paths

        return functools.partial(EnsembleReward, member_paths(spec))
    return None


def _function(spec: str) -> Any:
    if ":" not in spec:
        if spec in SHIPPED:
            return SHIPPED[spec]
        installed = entry_points(group=GROUP)
        if spec in installed.names:
            return installed[spec].load()
        raise ValueError(
            f"reward {spec!r} is not shipped{nearest(spec, [*SHIPPED, *installed.names])} (shipped: "
            f"{', '.join(SHIPPED)}; installed: {', '.join(sorted(installed.names)) or 'none'}; your own: "
            "package.module:name or path/to/file.py:name)"
        )
    where, _, name = spec.rpartition(":")
    module = _load_file(Path(where), spec) if where.endswith(".py") else _load_module(where, spec)
    try:
        return operator.attrgetter(name)(module)
    except AttributeError:
        names = [each for each in vars(module) if not each.startswith("_")]
        raise ValueError(f"reward {spec!r}: {where} has no {name!r}{nearest(name, names)}") from None


def _load_module(name: str, spec: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(
            f"reward {spec!r}: cannot import {name!r} ({error}); for a file, write path/to/{name}.py:name"
        ) from error


def _load_file(path: Path, spec: str) -> Any:
    if not path.is_file():
        neighbours = (each.name for each in path.parent.glob("*.py"))
        raise ValueError(f"reward {spec!r}: there is no file {str(path)!r}{nearest(path.name, neighbours)}")
    found = importlib.util.spec_from_file_location(f"reward_from_{path.stem}", path)
    assert found is not None and found.loader is not None  # a .py file has a loader
    module = importlib.util.module_from_spec(found)
    sys.modules[found.name] = module  # where dataclasses and pickle look for it
    try:
        found.loader.exec_module(module)
    except BaseException:
        del sys.modules[found.name]
        raise
    return module
