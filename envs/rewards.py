"""The boundary around reward functions, and the one policy for what they do wrong: `on_error`.

A reward has TRL's signature: `reward(prompts, completions, **columns) -> list[float | None]`. None is no failure: the
reward does not apply to that episode, which is left out. Everything else that is not a finite number is a failure.
"""

from __future__ import annotations

import inspect
import math
import pkgutil
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from envs.core import Episode, TextEnv

Reward = Callable[..., Sequence[float | None]]
OnError = Literal["stop", "skip"] | float
"""What a failed reward does: stop the run; skip (the episode has no reward); or a number, the penalty in its place."""

KINDS = ("exception", "timeout", "count", "type", "nan", "infinite")
"""Kinds of failure: raised; took too long; another number of values than episodes; text, a gradient, a coroutine that
nobody awaited, or anything else that is no number; NaN; ±∞."""
SHOWN_LINES, SHOWN_CHARACTERS = 3, 100
"""How much of an episode stands in an error."""


class BadReward(ValueError):
    """A reward function failed."""


@dataclass(frozen=True, slots=True)
class Failure:
    """What went wrong with the reward of one episode."""

    kind: str
    """One of KINDS."""
    text: str
    """The function's name, what it did, and the episode with its first lines."""


class Scores(NamedTuple):
    """What a reward function made of finished episodes."""

    values: list[float]
    """One per episode; NaN: no reward."""
    failures: list[Failure]
    """Of the episodes that failed, in their order."""


def resolve_reward(reward: Reward | str | None) -> Reward | None:
    """The function that `reward` is or names.

    Raises:
        ValueError: "module:name" names nothing.
        TypeError: it is not callable.
    """
    if isinstance(reward, str):
        name = reward
        try:
            reward = pkgutil.resolve_name(name)
        except (ImportError, AttributeError, ValueError) as error:
            raise ValueError(f"reward is {name!r}: expected a function's 'module:name' ({error})") from error
    if reward is not None and not callable(reward):
        raise TypeError(f"reward is {reward!r}: expected a function (prompts, completions, **columns) -> list of float")
    return reward


def check_on_error(on_error: OnError) -> OnError:
    """Return a policy that is one.

    Raises:
        ValueError: neither "stop" nor "skip" nor a finite number.
    """
    is_number = isinstance(on_error, int | float) and not isinstance(on_error, bool) and math.isfinite(on_error)
    if on_error not in ("stop", "skip") and not is_number:
        raise ValueError(f"on_error is {on_error!r}: expected 'stop', 'skip', or a finite number, the penalty")
    return on_error


def score(
    reward: Reward | None,
    environments: Sequence[TextEnv],
    on_error: OnError = "stop",
    columns: Mapping[str, Any] | None = None,
) -> Scores:
    """Rewards of the finished episodes of `environments`: one call of `reward`, or each one's own measure."""
    if reward is None:
        return Scores([env.own_reward() for env in environments], [])
    return score_episodes(reward, [env.episode for env in environments], on_error, columns)


def score_episodes(
    reward: Reward, episodes: Sequence[Episode], on_error: OnError = "stop", columns: Mapping[str, Any] | None = None
) -> Scores:
    """Score all episodes in one call of the reward function.

    Where that call raises, each episode is scored alone, so that the failure is that of an episode. But where the
    reason lies outside of them (an OSError, such as a timeout or a broken connection), or there are too few or too many
    values, all have failed. A list of the wrong length is never stretched.

    Args:
        reward: called with `prompts`, `completions`, and each column that every episode has.
        on_error: what a failure does.
        columns: what else to call it with; lists as long as `episodes` have a value for each.

    Raises:
        BadReward: with on_error "stop", the first failure, from the exception if there was one.
    """
    name = getattr(reward, "__name__", type(reward).__name__)
    values: list[float] = []
    failures: list[Failure] = []
    outcomes = _outcomes(reward, name, episodes, columns or {}, stop=on_error == "stop")
    for outcome, episode in zip(outcomes, episodes, strict=True):
        value = _number(outcome)
        if isinstance(value, float):
            values.append(value)
            continue
        failure = Failure(value[0], f"reward {name!r} {value[1]}, for episode {episode.seed}{_beginning(episode)}")
        if on_error == "stop":
            cause = outcome if isinstance(outcome, BaseException) else None
            raise BadReward(f"{failure.text}\n(on_error 'skip' leaves such episodes out)") from cause
        failures.append(failure)
        values.append(math.nan if on_error == "skip" else float(on_error))
    return Scores(values, failures)


def _outcomes(
    reward: Reward, name: str, episodes: Sequence[Episode], columns: Mapping[str, Any], stop: bool
) -> Iterator[Any]:
    """For each episode what the function returned for it, or the exception that is its failure."""
    if not episodes:
        return
    outcomes: list[Any]
    call: Any = getattr(reward, "outcomes", reward)  # rewards that can tell one episode's failure from another's
    try:
        outcomes = _listed(call(**_arguments(episodes, columns)), name, len(episodes))
    except Exception as error:
        # what has a kind, such as a wrong count, or comes from outside is no single episode's doing; a call that was
        # killed for its timeout is, though it is an OSError too
        outside = hasattr(error, "kind") or (isinstance(error, OSError) and not hasattr(error, "each_alone"))
        if len(episodes) > 1 and not outside:
            yield from _each_alone(reward, name, episodes, columns, stop, error)
            return
        outcomes = [error] * len(episodes)
    yield from outcomes


def _each_alone(
    reward: Reward, name: str, episodes: Sequence[Episode], columns: Mapping[str, Any], stop: bool, error: Exception
) -> Iterator[Any]:
    """The same where one call for all has raised `error`: whose episode is it?"""
    columns = {key: value for key, value in columns.items() if key not in ("log_extra", "log_metric")}
    for index, episode in enumerate(episodes):
        yield from _outcomes(reward, name, [episode], _of(columns, index, len(episodes)), stop)
    if stop:  # had one failed alone, nobody would have asked for more
        did = _raised(error)[1]
        raise BadReward(
            f"reward {name!r} {did}, for {len(episodes)} episodes in one call, though for none of them alone"
        ) from error


def _listed(returned: Any, name: str, count: int) -> list[Any]:
    if inspect.iscoroutine(returned):
        returned.close()
        raise WrongType(f"is async and was called as if it were not; wrap it: reward_models.as_reward({name})")
    if isinstance(returned, str | bytes | Mapping) or not hasattr(returned, "__len__"):
        raise WrongCount(f"returned {_short(returned)}: expected a list of {count} numbers")
    if len(returned) != count:
        raise WrongCount(f"returned {len(returned)} values for {count} episodes: expected one per episode")
    return list(returned)


class WrongCount(ValueError):
    """Another number of values than episodes; `str` says what the function did."""

    kind, told = "count", True


class WrongType(ValueError):
    """No values at all; `str` says what the function did."""

    kind, told = "type", True


def _arguments(episodes: Sequence[Episode], columns: Mapping[str, Any]) -> dict[str, Any]:
    shared = set.intersection(*(set(e.columns) for e in episodes))
    return {
        **columns,
        **{name: [e.columns[name] for e in episodes] for name in sorted(shared)},
        "prompts": [e.prompt for e in episodes],
        "completions": [e.completion for e in episodes],
    }


def _of(columns: Mapping[str, Any], index: int, count: int) -> dict[str, Any]:
    return {
        name: [value[index]] if isinstance(value, list) and len(value) == count else value
        for name, value in columns.items()
    }


def _number(outcome: Any) -> float | tuple[str, str]:
    """A finite float, NaN for None, or the kind of failure and what the function did."""
    if outcome is None:
        return math.nan
    if isinstance(outcome, BaseException):
        return _raised(outcome)
    if inspect.isawaitable(outcome):
        if inspect.iscoroutine(outcome):
            outcome.close()
        return "type", "returned a coroutine that nobody awaited: await it, or make the function async"
    if getattr(outcome, "requires_grad", False):
        return "type", "returned a value that carries a gradient: return value.detach(), or float(value)"
    try:
        number = float("text" if isinstance(outcome, str | bytes) else outcome)  # float("1") would hide a mistake
    except Exception:
        return "type", f"returned {_short(outcome)} ({type(outcome).__name__}): expected a number or None"
    if math.isfinite(number):
        return number
    return "nan" if math.isnan(number) else "infinite", f"returned {number}: expected a finite number or None"


def _raised(error: BaseException) -> tuple[str, str]:
    kind = getattr(error, "kind", "timeout" if isinstance(error, TimeoutError) else "exception")
    if getattr(error, "told", False):
        return kind, str(error)
    notes = "".join(f", {note}" for note in getattr(error, "__notes__", ()))
    return kind, f"raised {type(error).__name__}: {error}{notes}{_place(error)}"


def _place(error: BaseException) -> str:
    """The line that raised it; what comes from another process says so itself."""
    trace = traceback.extract_tb(error.__traceback__)[-1:]
    place = getattr(error, "place", f"{trace[0].filename}, line {trace[0].lineno}" if trace else "")
    return f" ({place})" if place else ""


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}…"


def _beginning(episode: Episode) -> str:
    lines = []
    for message in [*episode.prompt, *episode.completion][:SHOWN_LINES]:
        text = ascii(message["content"])[1:-1] if not message["content"].isprintable() else message["content"]
        lines.append(f"\n  {message['role']}: {text[:SHOWN_CHARACTERS]}{'…' if len(text) > SHOWN_CHARACTERS else ''}")
    return ", which begins:" + "".join(lines) if lines else ""
