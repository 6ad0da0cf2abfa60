"""Rewards made of rewards."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from reward_models.calling import name_of, nearest
from reward_models.protocol import Conversation, Reward

FORMS: dict[str, tuple[str, ...]] = {
    "reward": ("kwargs",), "sum": (), "min": (), "product": (), "gate": ("at_least", "then", "otherwise")
}  # fmt: skip
"""What a part of a composition may be, and the keys that go with it."""


class PartNotFinite(ValueError):
    """A part of a composition gave an episode NaN or ±∞; `str` says which part."""

    told = True
    """`str` is all that an error of the run says of it."""

    def __init__(self, name: str, value: float) -> None:
        super().__init__(f"has the part {name!r}, which returned {value}: expected a finite number or None")
        self.kind = "nan" if math.isnan(value) else "infinite"


class Composition:
    """Several rewards combined. An episode that any part gives no reward has none.

    Args:
        parts: name -> reward.
        combine: the values of one episode, in the order of `parts` -> its reward.
        weights: of the parts' contributions to the total; None for 1 each.
        logs: whether TRL's `log_metric` is told of each part: `reward/NAME/mean`, and `reward/NAME/variance_share`, its
            contribution's covariance with the total over the total's variance; and TRL's `log_extra` of its values.

    Attributes:
        parts: after a call, name -> mean of that part over the episodes that it scored, before its weight.
    """

    __name__ = "composition"

    def __init__(
        self,
        parts: Mapping[str, Reward],
        combine: Callable[[list[float]], float],
        weights: Sequence[float] | None = None,
        logs: bool = True,
    ) -> None:
        self._rewards, self._combine, self._logs = dict(parts), combine, logs
        self._weights = list(weights) if weights is not None else [1.0] * len(parts)
        self.parts: dict[str, float] = {}
        self._rows: list[tuple[float | None, ...]] = []  # of the latest call, what each part said of each episode

    def __call__(
        self,
        prompts: Sequence[Conversation],
        completions: Sequence[Conversation],
        log_metric: Callable[[str, float], None] | None = None,
        log_extra: Callable[[str, list[Any]], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        tellers = {"log_metric": log_metric, "log_extra": log_extra}
        told = {name: teller for name, teller in tellers.items() if teller is not None}
        data = {"prompts": prompts, "completions": completions, **columns, **told}
        values = {name: _values(name, reward, data, len(completions)) for name, reward in self._rewards.items()}
        rows = list(zip(*values.values(), strict=True))
        totals = [self._total([value for value in row if value is not None], len(row)) for row in rows]
        for name, part in values.items():
            known = [value for value in part if value is not None]
            self.parts[name] = sum(known) / len(known) if known else math.nan
            if log_extra is not None and self._logs:
                log_extra(f"reward/{name}", part)
        if log_metric is not None and self._logs:
            self._log(rows, totals, log_metric)
        self._rows = rows
        return totals

    def outcomes(
        self, prompts: Sequence[Conversation], completions: Sequence[Conversation], **columns: Any
    ) -> list[float | PartNotFinite | None]:
        """The same, but in the place of a total that is not finite stands which part made it so."""
        totals = self(prompts, completions, **columns)
        return [self._named(i, total) for i, total in enumerate(totals)]

    def _named(self, episode: int, total: float | None) -> float | PartNotFinite | None:
        if total is None or math.isfinite(total):
            return total
        for (name, reward), value in zip(self._rewards.items(), self._rows[episode], strict=True):
            if value is not None and not math.isfinite(value):
                inner = reward._named(episode, value) if isinstance(reward, Composition) else value
                return inner if isinstance(inner, PartNotFinite) else PartNotFinite(name, value)
        return total

    def _total(self, values: list[float], parts: int) -> float | None:
        if len(values) < parts:
            return None
        # min(1, nan) is 1 to Python: a part that failed must not be hidden
        return math.nan if any(map(math.isnan, values)) else self._combine(values)

    def _log(
        self,
        rows: Sequence[tuple[float | None, ...]],
        totals: Sequence[float | None],
        log: Callable[[str, float], None],
    ) -> None:
        scored = [(row, total) for row, total in zip(rows, totals, strict=True) if total is not None]
        for at, (name, weight) in enumerate(zip(self._rewards, self._weights, strict=True)):
            if math.isfinite(self.parts[name]):
                log(f"reward/{name}/mean", self.parts[name])
            if scored:
                contributions = [weight * float(row[at] or 0.0) for row, _ in scored]
                log(f"reward/{name}/variance_share", _share(contributions, [total for _, total in scored]))


class WeightedSum(Composition):
    """Σ weight · reward. An episode that any part gives no reward has none.

    Args:
        parts: name -> (reward, weight); weights are finite.
    """

    __name__ = "weighted_sum"

    def __init__(self, parts: Mapping[str, tuple[Reward, float]]) -> None:
        if not parts:
            raise ValueError("parts is empty: expected at least one name -> (reward, weight)")
        for name, part in parts.items():
            if not isinstance(part, tuple | list) or len(part) != 2:
                raise TypeError(f"part {name!r} is {part!r}: expected a pair (reward, weight)")
            reward, weight = part
            if not callable(reward):
                raise TypeError(f"reward {name!r} is {reward!r}: expected a function; by name: load_reward(name)")
            if not isinstance(weight, numbers.Real):
                raise TypeError(f"weight of reward {name!r} is {weight!r}: expected a number")
            if not math.isfinite(weight):
                raise ValueError(f"weight of reward {name!r} is {weight}: expected a finite number")
        weights = [float(weight) for _, weight in parts.values()]
        super().__init__(
            {name: reward for name, (reward, _) in parts.items()},
            lambda values: sum(weight * value for weight, value in zip(weights, values, strict=True)),
            weights,
        )


def compose(tree: Any, load: Callable[[str, Mapping[str, Any]], Reward]) -> Reward:
    """The reward that a nested mapping describes.

    A part is {reward: NAME, kwargs: {…}}, or one of {sum: PARTS}, {min: PARTS}, {product: PARTS}, or {gate: PART,
    at_least: 1, then: PART, otherwise: 0}; any of them may have clip: [low, high], and in a sum a weight. PARTS is
    {name: part}; a number alone is the weight of the reward of that name, a text alone the reward's name.

    Args:
        load: makes a reward from its name and parameters.

    Raises:
        ValueError: the tree is none; the part is named.
    """
    return _node(tree, "compose", load)


def _node(tree: Any, where: str, load: Callable[[str, Mapping[str, Any]], Reward]) -> Reward:
    if isinstance(tree, str):
        return load(tree, {})
    if not isinstance(tree, Mapping):
        raise ValueError(f"{where} is {tree!r}: expected a reward's name, or a mapping with one of {', '.join(FORMS)}")
    forms = [form for form in FORMS if form in tree]
    if len(forms) != 1:
        raise ValueError(f"{where} has {sorted(tree)}: expected exactly one of {', '.join(FORMS)}")
    form = forms[0]
    allowed = {form, "clip", "weight", *FORMS[form]}
    for key in tree:
        if key not in allowed:
            raise ValueError(
                f"{where} has the key {key!r}{nearest(key, allowed)}: expected {', '.join(sorted(allowed))}"
            )
    made = _made(tree, form, where, load)
    if "clip" not in tree:
        return made
    bounds = tree["clip"]
    if not (isinstance(bounds, Sequence) and len(bounds) == 2 and all(map(_is_number, bounds))):
        raise ValueError(f"{where}.clip is {bounds!r}: expected two numbers [low, high]")
    low, high = bounds
    if not low < high:
        raise ValueError(f"{where}.clip is {bounds!r}: expected [low, high] with low below high")
    return Composition({name_of(made): made}, lambda values: min(max(values[0], low), high), logs=False)


def _made(tree: Mapping[str, Any], form: str, where: str, load: Callable[[str, Mapping[str, Any]], Reward]) -> Reward:
    if form == "reward":
        kwargs = tree.get("kwargs", {})
        if not isinstance(tree["reward"], str) or not isinstance(kwargs, Mapping):
            raise ValueError(f"{where} is {dict(tree)}: expected a reward's name, and kwargs {{parameter: value}}")
        return load(tree["reward"], kwargs)
    if form == "gate":
        least, otherwise = tree.get("at_least", 1.0), tree.get("otherwise", 0.0)
        for key, value in (("at_least", least), ("otherwise", otherwise)):
            if not _is_number(value):
                raise ValueError(f"{where}.{key} is {value!r}: expected a number")
        if "then" not in tree:
            raise ValueError(f"{where} has a gate without 'then': expected the part that counts where the gate is open")
        parts = {name: _node(tree[name], f"{where}.{name}", load) for name in ("gate", "then")}
        return Composition(parts, lambda values: values[1] if values[0] >= least else otherwise)
    given = tree[form]
    if not isinstance(given, Mapping) or not given:
        raise ValueError(f"{where}.{form} is {given!r}: expected {{name: part}}")
    weights = {
        name: part if _is_number(part) else part.get("weight", 1.0) if isinstance(part, Mapping) else 1.0
        for name, part in given.items()
    }
    parts = {
        name: load(name, {}) if _is_number(part) else _node(part, f"{where}.{form}.{name}", load)
        for name, part in given.items()
    }
    if form == "sum":
        return WeightedSum({name: (parts[name], weights[name]) for name in parts})
    if any(weight != 1.0 for weight in weights.values()):
        raise ValueError(f"{where}.{form} has weights: they belong into a sum")
    return Composition(parts, min if form == "min" else math.prod)


def _is_number(part: Any) -> bool:
    return isinstance(part, int | float) and not isinstance(part, bool)


def _values(name: str, reward: Reward, data: Mapping[str, Any], count: int) -> list[float | None]:
    """What a part says of each episode; an exception of it takes the part's name along as a note."""
    try:
        values = reward(**data)
    except Exception as error:
        error.add_note(f"in the part {name!r}")
        raise
    if len(values) != count:
        raise ValueError(f"reward {name!r} returned {len(values)} values for {count} episodes")
    for value in values:
        if isinstance(value, str | bytes):  # float("1") would hide a mistake
            raise TypeError(f"reward {name!r} returned {value!r}: expected a number or None")
    return [None if value is None else float(value) for value in values]


def _share(part: Sequence[float], total: Sequence[float]) -> float:
    """Cov(part, total) / Var(total): the shares of the parts of a sum add up to 1. 0 where the total does not vary."""
    mean_part, mean_total = sum(part) / len(part), sum(total) / len(total)
    variance = sum((t - mean_total) ** 2 for t in total)
    covariance = sum((p - mean_part) * (t - mean_total) for p, t in zip(part, total, strict=True))
    return covariance / variance if variance > 0 else 0.0
