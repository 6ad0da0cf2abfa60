"""λ by name: every form that a recipe or an argument may name, and what is asked of all of them.

A form of λ is any callable `step -> float`, step counting optimiser steps from 0: a schedule (`rlobj.schedules`), or a
controller (`rlobj.controllers`), whose state goes into checkpoints.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import pkgutil
import re
from collections.abc import Callable
from typing import Any

from rlobj.controllers import Entropy, Gate, Lagrange, OverTokens, Steered
from rlobj.schedules import Chord, Constant, Cosine, Linear, Piecewise, Step, Warmup
from rlobj.spelling import did_you_mean

LambdaForm = Callable[[int], float]

FORMS: dict[str, type[Any]] = {
    "constant": Constant,
    "linear": Linear,
    "cosine": Cosine,
    "step": Step,
    "warmup": Warmup,
    "piecewise": Piecewise,
    "chord": Chord,
    "lagrange": Lagrange,
    "gate": Gate,
    "entropy": Entropy,
}


def as_lambda(value: float | str | LambdaForm) -> LambdaForm:
    """A number becomes a constant, a text the form that it names; a form stays itself.

    Texts: `linear:start=0.5,end=0,steps=40`, likewise cosine and chord; `step:start=0.5,factor=0.5,steps=20`;
    `warmup:value=0.3,steps=20`; `piecewise:0=0.5,20=0.1` (straight lines; with `hold=true` steps);
    `lagrange:bound=0.4` or `lagrange:factor=1.1`; `gate:value=0.3,success=0.2` (`per=group`); `entropy:value=0.5`; and
    `package.module:function`, which is a function (state, ell) -> state. A schedule takes `tokens=` in the place of
    `steps=`; piecewise `over=tokens`.

    Raises:
        ValueError: the text names no form, or an argument is not usable.
    """
    if callable(value):
        return value
    with contextlib.suppress(ValueError):
        value = float(value)
    if not isinstance(value, str):
        return Constant(value)
    name, colon, arguments = value.partition(":")
    if name in FORMS:
        return _form(name, arguments, value)
    if colon and re.fullmatch(r"[\w.]+", name) and "=" not in arguments:
        return _steered(value)
    raise ValueError(
        f"lambda_sup is {value!r}: expected a number, or one of {', '.join(FORMS)} with arguments, such as "
        f"linear:start=0.5,end=0,steps=40, or package.module:function{did_you_mean(name, FORMS)}"
    )


def lambda_name(value: float | str) -> str:
    """How a λ is called: the number in its shortest form, or the text itself."""
    return value if isinstance(value, str) else f"{value:g}"


def needs_labels(form: LambdaForm) -> bool:
    """Whether λ may be above 0 at some step: whether ℓ has to be there."""
    if isinstance(form, Constant):
        return form.value > 0
    return True


def _form(name: str, arguments: str, given: str) -> LambdaForm:
    parts = {key: value for key, _, value in (part.partition("=") for part in arguments.split(",") if part)}
    try:
        return _piecewise(parts) if name == "piecewise" else _named(name, parts)
    except TypeError:
        missing = [p.name for p in inspect.signature(FORMS[name]).parameters.values() if p.default is p.empty]
        raise ValueError(f"lambda_sup is {given!r}: {name} needs {', '.join(missing)}") from None
    except ValueError as error:
        raise ValueError(f"lambda_sup is {given!r}: {error}") from None


def _named(name: str, parts: dict[str, str]) -> LambdaForm:
    fields = [f.name for f in dataclasses.fields(FORMS[name]) if f.init]
    over_tokens = "steps" in fields and "tokens" in parts
    if over_tokens:
        if "steps" in parts:
            raise ValueError("steps and tokens are both given: expected one of them")
        parts = {**parts, "steps": parts["tokens"]}
        del parts["tokens"]
    for key in parts:
        if key not in fields:
            raise ValueError(f"{name} has no {key!r}{did_you_mean(key, fields)} (it has {', '.join(fields)})")
    kinds: dict[str, Callable[[str], Any]] = {"steps": _whole, "per": str}
    form: Any = FORMS[name](**{key: kinds.get(key, float)(value) for key, value in parts.items()})
    return OverTokens(form) if over_tokens else form


def _piecewise(parts: dict[str, str]) -> LambdaForm:
    hold = _choice("hold", parts.pop("hold", "false"), ("true", "false")) == "true"
    over = _choice("over", parts.pop("over", "steps"), ("steps", "tokens"))
    form = Piecewise(tuple((_whole(step), float(value)) for step, value in parts.items()), hold)
    return OverTokens(form) if over == "tokens" else form


def _whole(text: str) -> int:
    if not float(text).is_integer():
        raise ValueError(f"{text}: expected a whole number")
    return int(float(text))


def _choice(name: str, text: str, known: tuple[str, ...]) -> str:
    if text not in known:
        raise ValueError(f"{name}={text}: expected {' or '.join(known)}")
    return text


def _steered(given: str) -> Steered:
    try:
        function = pkgutil.resolve_name(given)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"lambda_sup is {given!r}: cannot be imported ({error})") from error
    if not callable(function):
        raise ValueError(f"lambda_sup is {given!r}: expected a function (state, ell) -> state, found {function!r}")
    return Steered(function)
