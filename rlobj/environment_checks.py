"""Whether there is such an environment, and what it is; errors as in `rlobj.validation`."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from typing import Any

from rlobj.spelling import did_you_mean

CUSTOMER_SERVICE, CLASSIFICATION, DIALOGUE = (
    f"rlobj/{name}-v0" for name in ("CustomerService", "Classification", "Dialogue")
)


def check_environment(env_id: str) -> None:
    import gymnasium

    import envs  # noqa: F401  (registers ours)
    from envs.adapters import ADAPTERS, spec_of

    module, colon, name = env_id.partition(":")
    if colon and module in ADAPTERS:
        try:
            spec_of(env_id)
        except ImportError as error:
            raise ValueError(f"env.id is {env_id!r}: {error}") from error
        return
    if colon:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise ValueError(f"env.id is {env_id!r}: cannot import {module!r} ({error})") from error
    else:
        name = env_id
    known = list(gymnasium.registry)
    if name not in known:
        ours = sorted(each for each in known if each.startswith("rlobj/"))
        hint = did_you_mean(name, ours) or did_you_mean(name, known)
        raise ValueError(
            f"env.id is {env_id!r}: not registered with Gymnasium{hint} (ours: {', '.join(ours)}; "
            f'"module:id" imports a module that registers one; {", ".join(ADAPTERS)}: "library:name")'
        )


def check_environment_kwargs(env_id: str, kwargs: dict[str, Any]) -> None:
    """Refuse names that a text environment does not take; the values are its own affair."""
    from envs import TextEnv

    made = environment_class(env_id)
    if not issubclass(made, TextEnv):
        return
    lineage = [each for each in made.__mro__ if issubclass(each, TextEnv) and "__init__" in vars(each)]
    known = {name for each in lineage for name in inspect.signature(each).parameters} - {"kwargs"}
    for name in kwargs:
        if name not in known:
            raise ValueError(
                f"unknown key 'env.kwargs.{name}': {env_id} has no such argument{did_you_mean(name, known)} "
                f"(it has {', '.join(sorted(known))})"
            )


def environment_class(env_id: str) -> type:
    """The class of the environments of this id; `object` where something else makes them."""
    import gymnasium

    from envs.adapters import spec_of

    spec = spec_of(env_id)
    if isinstance(spec, str):
        spec = gymnasium.spec(spec.rpartition(":")[2])  # its module is imported by now
    entry_point = spec.entry_point
    made = pkgutil.resolve_name(entry_point) if isinstance(entry_point, str) else entry_point
    return made if isinstance(made, type) else object


def is_choice(env_id: str) -> bool:
    """Whether the action is one of several named ones."""
    from envs.choice import ChoiceEnv

    return issubclass(environment_class(env_id), ChoiceEnv)
