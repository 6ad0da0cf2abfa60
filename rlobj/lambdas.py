"""λ over the course of training: constant, scheduled, or controlled by what is measured.

A form of λ is any callable `step -> float`. A controller is a form that also takes note of every optimiser step
(`update`), and whose state goes into checkpoints. The arithmetic is pure: no trainer, no logging.

Legend: step counts optimiser steps from 0; ℓ is the supervised loss in nats per target.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import itertools
import json
import math
import pkgutil
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from rlobj.spelling import did_you_mean

LambdaForm = Callable[[int], float]


@dataclass(frozen=True, slots=True)
class Measured:
    """What a controller is told of an optimiser step."""

    step: int
    ell: float
    """ℓ of the step's supervised batch, over all processes."""
    success: float | None = None
    """share of the step's episodes that succeeded; None where the environment does not say"""


@runtime_checkable
class Controller(Protocol):
    """A form of λ that is steered. Its state is a dict of JSON."""

    state: dict[str, Any]

    def __call__(self, step: int) -> float: ...

    def begin(self, ell: float) -> None:
        """Told once, before the first step: ℓ of the warm start."""

    def update(self, measured: Measured) -> None:
        """Told after every optimiser step."""


def checked_lambda(value: float, where: str = "lambda_sup") -> float:
    """Return `value` if it can be a λ.

    Raises:
        ValueError: it is negative, NaN or infinite.
    """
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{where} is {value}: expected a finite number >= 0 (0 trains on reward alone)")
    return value


# Schedules ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Constant:
    """λ stays what it is (InstructGPT's γ, with its loss put as L = −R + γ·ℓ)."""

    value: float

    def __post_init__(self) -> None:
        checked_lambda(self.value)

    def __call__(self, step: int) -> float:
        return self.value


@dataclass(frozen=True, slots=True)
class Linear:
    """λ goes from `start` to `end` in a straight line over `steps` optimiser steps, then stays at `end`."""

    start: float
    end: float
    steps: int

    def __post_init__(self) -> None:
        _check_span(self.start, self.end, self.steps)

    def __call__(self, step: int) -> float:
        return self.start + (self.end - self.start) * _share(step, self.steps)


@dataclass(frozen=True, slots=True)
class Cosine:
    """λ goes from `start` to `end` along half a cosine over `steps` optimiser steps, then stays at `end`."""

    start: float
    end: float
    steps: int

    def __post_init__(self) -> None:
        _check_span(self.start, self.end, self.steps)

    def __call__(self, step: int) -> float:
        return self.end + (self.start - self.end) * (1 + math.cos(math.pi * _share(step, self.steps))) / 2


@dataclass(frozen=True, slots=True)
class Piecewise:
    """λ goes through points (step, value): in straight lines between them, or held until the next.

    Before the first point it has the first value, after the last point the last one.
    """

    points: tuple[tuple[int, float], ...]
    hold: bool = False

    def __post_init__(self) -> None:
        steps = [step for step, _ in self.points]
        if not steps or steps != sorted(set(steps)) or steps[0] < 0:
            raise ValueError(f"lambda_sup has points at the steps {steps}: expected them to rise from 0 or more")
        for step, value in self.points:
            checked_lambda(value, f"lambda_sup at step {step}")

    def __call__(self, step: int) -> float:
        for (before, low), (after, high) in itertools.pairwise(self.points):
            if before <= step < after:
                return low if self.hold else low + (high - low) * (step - before) / (after - before)
        return self.points[0][1] if step < self.points[0][0] else self.points[-1][1]


@dataclass(frozen=True, slots=True)
class Chord:
    """CHORD's μ (Zhang et al. 2025) falls from `start` to `end` over `steps` optimiser steps; λ = μ / (1 − μ).

    Their loss (1 − μ)·(−R) + μ·ℓ is ours times 1 − μ.
    """

    start: float
    end: float
    steps: int

    def __post_init__(self) -> None:
        for name, mu in (("start", self.start), ("end", self.end)):
            if not 0 <= mu < 1:
                raise ValueError(f"lambda_sup chord has {name}={mu}: expected a μ of 0 to below 1")
        _check_span(self.start, self.end, self.steps)

    def __call__(self, step: int) -> float:
        mu = self.start + (self.end - self.start) * _share(step, self.steps)
        return mu / (1 - mu)


def _share(step: int, steps: int) -> float:
    return min(max(step, 0) / steps, 1.0)


def _check_span(start: float, end: float, steps: int) -> None:
    checked_lambda(start, "lambda_sup start")
    checked_lambda(end, "lambda_sup end")
    if steps < 1:
        raise ValueError(f"lambda_sup schedule has steps={steps}: expected at least 1")


# Controllers ----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Lagrange:
    """The multiplier of: maximise R subject to ℓ ≤ bound, by dual ascent with PI control (Stooke et al. 2020).

    With Δ = ℓ − bound, ℓ smoothed: I ← max(0, I + ki·Δ) and λ = max(0, I + kp·Δ). λ rises while the bound is broken,
    and falls to 0 where reward alone keeps it.

    Args:
        bound: the ℓ to keep below, in nats per target; or
        factor: the bound is this many times the ℓ of the warm start.
        start: λ of the first step.
        ki: how fast the multiplier follows, a step.
        kp: how much of the present violation is added.
        smoothing: share of the past in the mean of ℓ that is compared, below 1.
        most: λ never exceeds it.
    """

    bound: float | None = None
    factor: float | None = None
    start: float = 0.0
    ki: float = 0.1
    kp: float = 1.0
    smoothing: float = 0.9
    most: float = 10.0
    state: dict[str, Any] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        if (self.bound is None) == (self.factor is None):
            raise ValueError(
                f"lambda_sup lagrange has bound={self.bound} and factor={self.factor}: expected one of them, such as "
                "lagrange:factor=1.1 (ℓ at most 1.1 times the warm start's)"
            )
        for name in ("bound", "factor", "start", "ki", "kp", "most"):
            value = getattr(self, name)
            if value is not None:
                checked_lambda(value, f"lambda_sup lagrange {name}")
        if not 0 <= self.smoothing < 1:
            raise ValueError(f"lambda_sup lagrange has smoothing={self.smoothing}: expected 0 to below 1")
        self.state = {"lambda_sup": min(self.start, self.most), "integral": self.start, "ell": None, "start_ell": None}

    def __call__(self, step: int) -> float:
        return float(self.state["lambda_sup"])

    def begin(self, ell: float) -> None:
        self.state["start_ell"] = ell

    def _bound(self) -> float:
        return self.bound if self.factor is None else self.factor * self.state["start_ell"]  # type: ignore[return-value]

    def update(self, measured: Measured) -> None:
        state, past = self.state, self.state["ell"]
        state["ell"] = measured.ell if past is None else self.smoothing * past + (1 - self.smoothing) * measured.ell
        violation = state["ell"] - self._bound()
        # the integral stops at the largest λ, too: what it piled up there would have to be worked off first
        state["integral"] = min(max(0.0, state["integral"] + self.ki * violation), self.most)
        state["lambda_sup"] = min(max(0.0, state["integral"] + self.kp * violation), self.most)


@dataclass(slots=True)
class Gate:
    """λ is `value` after a step whose episodes succeeded at most `success` of the time, else `otherwise`.

    The rule of HPT (Lv et al. 2025), which takes demonstrations where the policy fails, over the step's episodes
    together.
    """

    value: float
    success: float
    otherwise: float = 0.0
    state: dict[str, Any] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        checked_lambda(self.value, "lambda_sup gate value")
        checked_lambda(self.otherwise, "lambda_sup gate otherwise")
        if not 0 <= self.success <= 1:
            raise ValueError(f"lambda_sup gate has success={self.success}: expected a share in [0, 1]")
        self.state = {"lambda_sup": self.value}

    def __call__(self, step: int) -> float:
        return float(self.state["lambda_sup"])

    def begin(self, ell: float) -> None:
        pass

    def update(self, measured: Measured) -> None:
        if measured.success is None:
            raise ValueError("lambda_sup is a gate by success, but the environment has no column success")
        self.state["lambda_sup"] = self.value if measured.success <= self.success else self.otherwise


@dataclass(slots=True)
class Steered:
    """A user's own controller: `function(state, ell) -> state`, in which `lambda_sup` is λ.

    The first call has the state {} and ℓ of the warm start; the state is a dict that JSON can hold.
    """

    function: Callable[[dict[str, Any], float], Mapping[str, Any]]
    state: dict[str, Any] = field(default_factory=dict, init=False)

    def __call__(self, step: int) -> float:
        return float(self.state.get("lambda_sup", 0.0))

    def begin(self, ell: float) -> None:
        self._follow(ell)

    def update(self, measured: Measured) -> None:
        self._follow(measured.ell)

    def _follow(self, ell: float) -> None:
        name = getattr(self.function, "__name__", repr(self.function))
        state = self.function(dict(self.state), ell)
        if not isinstance(state, Mapping) or "lambda_sup" not in state:
            raise ValueError(f"{name} returned {state!r}: expected a dict with lambda_sup")
        checked_lambda(float(state["lambda_sup"]), f"lambda_sup of {name}")
        try:
            json.dumps(state)
        except TypeError as error:
            raise ValueError(f"{name} returned a state that checkpoints cannot hold ({error}): expected JSON") from None
        self.state = dict(state)


# By name --------------------------------------------------------------------------------------------------------------

FORMS: dict[str, type[Any]] = {
    "constant": Constant,
    "linear": Linear,
    "cosine": Cosine,
    "piecewise": Piecewise,
    "chord": Chord,
    "lagrange": Lagrange,
    "gate": Gate,
}


def as_lambda(value: float | str | LambdaForm) -> LambdaForm:
    """A number becomes a constant, a text the form that it names; a form stays itself.

    Texts: `linear:start=0.5,end=0,steps=40`, likewise cosine and chord; `piecewise:0=0.5,20=0.1` (straight lines; with
    `hold=true` steps); `lagrange:bound=0.4` or `lagrange:factor=1.1`; `gate:value=0.3,success=0.2`; and
    `package.module:function`, which is a function (state, ell) -> state.

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
        if name == "piecewise":
            hold = _flag(parts.pop("hold", "false"))
            return Piecewise(tuple((int(step), float(value)) for step, value in parts.items()), hold)
        fields = {f.name: f for f in dataclasses.fields(FORMS[name]) if f.init}
        for key in parts:
            if key not in fields:
                raise ValueError(f"{name} has no {key!r}{did_you_mean(key, fields)} (it has {', '.join(fields)})")
        whole = {"steps"}
        form: LambdaForm = FORMS[name](**{k: int(v) if k in whole else float(v) for k, v in parts.items()})
        return form
    except TypeError:
        missing = [p.name for p in inspect.signature(FORMS[name]).parameters.values() if p.default is p.empty]
        raise ValueError(f"lambda_sup is {given!r}: {name} needs {', '.join(missing)}") from None
    except ValueError as error:
        raise ValueError(f"lambda_sup is {given!r}: {error}") from None


def _flag(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError(f"hold={text}: expected true or false")
    return text == "true"


def _steered(given: str) -> Steered:
    try:
        function = pkgutil.resolve_name(given)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"lambda_sup is {given!r}: cannot be imported ({error})") from error
    if not callable(function):
        raise ValueError(f"lambda_sup is {given!r}: expected a function (state, ell) -> state, found {function!r}")
    return Steered(function)
