"""λ that is steered by what is measured: a bound on ℓ, a gate, the policy's entropy, tokens seen, a user's own rule.

Pure arithmetic on states that JSON can hold: no trainer, no logging.

Legend: step counts optimiser steps from 0; ℓ is the supervised loss in nats per target; a group is the episodes that
began from the same start.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from rlobj.schedules import Schedule, checked_lambda


@dataclass(frozen=True, slots=True)
class Sampled:
    """What a controller is told of a generation before it is trained on, over all processes."""

    success: tuple[float, ...] = ()
    """of each group, the share of its episodes that succeeded; none where the environment does not say"""
    entropy: float | None = None
    """of the policy that sampled, in nats per token, estimated by its −log π; None where that is not known"""


@dataclass(frozen=True, slots=True)
class Measured:
    """What a controller is told of an optimiser step that is over, over all processes."""

    step: int
    ell: float | None = None
    """ℓ of the step's supervised batch; None where it was not measured, or is not finite"""
    tokens: int = 0
    """tokens of the policy that R was trained on"""


@runtime_checkable
class Controller(Protocol):
    """A form of λ that is steered."""

    state: dict[str, Any]
    """Of JSON; it goes into checkpoints."""
    needs_ell: bool
    """Whether ℓ has to be measured at every step, even while λ is 0."""

    def __call__(self, step: int) -> float: ...

    def begin(self, ell: float) -> None:
        """Told once, before the first step, if it needs ℓ: ℓ of the warm start."""

    def observe(self, sampled: Sampled) -> None:
        """Told of every generation, before the steps that train on it."""

    def update(self, measured: Measured) -> None:
        """Told after every optimiser step."""


def identity(form: Any) -> str:
    """What makes two forms the same: class and settings, and of a user's function its name. Never its state."""
    if dataclasses.is_dataclass(form):
        settings = (
            f"{each.name}={identity(getattr(form, each.name))}" for each in dataclasses.fields(form) if each.init
        )
        return f"{type(form).__qualname__}({', '.join(settings)})"
    if isinstance(form, functools.partial):
        return f"{identity(form.func)}{form.args}{form.keywords}"
    if callable(form):
        named = form if hasattr(form, "__qualname__") else type(form)
        return f"{named.__module__}:{named.__qualname__}"
    return repr(form)


@dataclass(slots=True)
class _Passive:
    """A controller that takes no notice of anything: the others override what they listen to."""

    state: dict[str, Any] = field(default_factory=dict, init=False)

    @property
    def needs_ell(self) -> bool:
        return False

    def __call__(self, step: int) -> float:
        return float(self.state["lambda_sup"])

    def begin(self, ell: float) -> None:
        pass

    def observe(self, sampled: Sampled) -> None:
        pass

    def update(self, measured: Measured) -> None:
        pass


@dataclass(slots=True)
class Lagrange(_Passive):
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

    @property
    def needs_ell(self) -> bool:
        return True

    def begin(self, ell: float) -> None:
        self.state["start_ell"] = ell

    def _bound(self) -> float:
        return self.bound if self.factor is None else self.factor * self.state["start_ell"]  # type: ignore[return-value]

    def update(self, measured: Measured) -> None:
        if measured.ell is None:
            return
        state, past = self.state, self.state["ell"]
        state["ell"] = measured.ell if past is None else self.smoothing * past + (1 - self.smoothing) * measured.ell
        violation = state["ell"] - self._bound()
        # the integral stops at the largest λ, too: what it piled up there would have to be worked off first
        state["integral"] = min(max(0.0, state["integral"] + self.ki * violation), self.most)
        state["lambda_sup"] = min(max(0.0, state["integral"] + self.kp * violation), self.most)


@dataclass(slots=True)
class Gate(_Passive):
    """λ is `value` where the policy fails, `otherwise` where it succeeds: HPT's rule (Lv et al. 2025).

    Per step, λ is `value` if at most `success` of the episodes succeeded, all together. Per group, each group decides
    for itself, and λ is the mean over groups. HPT takes a failed prompt's own demonstration; here ℓ draws from all
    labelled rows, so what a group decides is how much of ℓ there is, not which rows.
    """

    value: float
    success: float
    otherwise: float = 0.0
    per: Literal["step", "group"] = "step"

    def __post_init__(self) -> None:
        checked_lambda(self.value, "lambda_sup gate value")
        checked_lambda(self.otherwise, "lambda_sup gate otherwise")
        if not 0 <= self.success <= 1:
            raise ValueError(f"lambda_sup gate has success={self.success}: expected a share in [0, 1]")
        if self.per not in ("step", "group"):
            raise ValueError(f"lambda_sup gate has per={self.per}: expected step or group")
        self.state = {"lambda_sup": self.value}

    def observe(self, sampled: Sampled) -> None:
        shares = sampled.success
        if not shares:
            raise ValueError("lambda_sup is a gate by success, but the environment has no column success")
        if self.per == "step":
            shares = (math.fsum(shares) / len(shares),)
        failed = sum(share <= self.success for share in shares) / len(shares)
        self.state["lambda_sup"] = failed * self.value + (1 - failed) * self.otherwise


@dataclass(slots=True)
class Entropy(_Passive):
    """SRFT's weight (Fu et al. 2025, with value 0.5): λ = value · exp(−H), a constant to the gradient.

    H is the entropy of the policy at the tokens that it sampled for this step, in nats per token, estimated by the mean
    of their −log π. A policy that is unsure of itself is left alone by the demonstrations.
    """

    value: float = 0.5

    def __post_init__(self) -> None:
        checked_lambda(self.value, "lambda_sup entropy value")
        self.state = {"lambda_sup": 0.0}

    def observe(self, sampled: Sampled) -> None:
        if sampled.entropy is None:
            raise ValueError(
                "lambda_sup follows the entropy, but it is not known what log π the episodes were sampled "
                "with: train in an environment (env)"
            )
        self.state["lambda_sup"] = self.value * math.exp(-sampled.entropy)


@dataclass(slots=True)
class OverTokens(_Passive):
    """A schedule over tokens of the policy that R was trained on so far (in each epoch over a generation again), in
    place of optimiser steps."""

    schedule: Schedule

    def __post_init__(self) -> None:
        self.state = {"tokens": 0}

    def __call__(self, step: int) -> float:
        return self.schedule(self.state["tokens"])

    def update(self, measured: Measured) -> None:
        self.state["tokens"] += measured.tokens


@dataclass(slots=True)
class Steered(_Passive):
    """A user's own controller: `function(state, ell) -> state`, in which `lambda_sup` is λ.

    The first call has the state {} and ℓ of the warm start; the state is a dict that JSON can hold.
    """

    function: Callable[[dict[str, Any], float], Mapping[str, Any]]

    @property
    def needs_ell(self) -> bool:
        return True

    def __call__(self, step: int) -> float:
        return float(self.state.get("lambda_sup", 0.0))

    def begin(self, ell: float) -> None:
        self._follow(ell)

    def update(self, measured: Measured) -> None:
        if measured.ell is not None:
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
