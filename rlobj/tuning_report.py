"""What a search came to: the best trial as a recipe, a table, the front of return against ℓ, and the report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import rlobj.report as report
from rlobj import __version__
from rlobj.compared import true_measure
from rlobj.config import dump
from rlobj.lambdas import lambda_name
from rlobj.pictures import Picture, Point
from rlobj.progress import say
from rlobj.results import lambda_directory
from rlobj.runs import atomic_write_json, atomic_write_text
from rlobj.search_space import Range
from rlobj.searched import BEST, METRICS, Search


def conclude(search: Search, study: Any) -> Path:
    """Write best.yaml, summary.json and the report; say what came out; return the path of the report.

    Raises:
        ValueError: no trial has a result.
    """
    trials = study.get_trials(deepcopy=False)
    done = [trial for trial in trials if METRICS in trial.user_attrs]
    if not done:
        raise ValueError(f"no trial has a result; the first one's log: {search.log_of(0)}")
    true = true_measure(done[0].user_attrs[METRICS])
    done.sort(key=lambda trial: trial.user_attrs[METRICS][true][0], reverse=True)
    within = [trial for trial in done if all(excess <= 0 for excess in trial.constraints.values())]
    best = within[0] if within else None
    advice = _advice(search, best, true)
    if best is not None:
        atomic_write_text(search.directory / BEST, dump(search.config_of(best.params)))
    summary = [
        {"trial": t.number, "state": t.state.name.lower(), "values": t.params, **t.user_attrs, **t.constraints}
        for t in trials
    ]
    number = None if best is None else best.number
    atomic_write_json(search.directory / "summary.json", {"best": number, "said": advice, "trials": summary})
    path = search.directory / "report.html"
    report.write_report(
        path,
        title=f"{search.config.name}: searched",
        facts={
            "environment": search.config.env.id,
            **{key: _in_words(values) for key, values in search.space.items()},
            "rlobj": __version__,
        },
        table=[{"name": name_of(trial), **trial.user_attrs[METRICS]} for trial in done],
        curves={},
        samples=[],
        notes=[advice, _others(trials, done)],
        pictures=[_pareto(done), *_slices(search, done, true)],
    )
    say(f"\n{report.text_table([{'name': name_of(t), **t.user_attrs[METRICS]} for t in done[:10]])}")
    say(f"\n{advice}\n\nreport  {path}")
    if best is not None:
        policy = lambda_directory(search.run_of(best.number), search.lambda_of(best.params))
        say(f"recipe  {search.directory / BEST}\npolicy  {policy}")
    return path


def name_of(trial: Any) -> str:
    """A trial and its values."""
    return f"{trial.number}: " + ", ".join(f"{key.rpartition('.')[2]} {_short(v)}" for key, v in trial.params.items())


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _in_words(values: Any) -> str:
    if not isinstance(values, Range):
        return " or ".join(values.values)
    return " to ".join(values.ends) + (", by the logarithm" if values.log else "")


def _advice(search: Search, best: Any, true: str) -> str:
    bound = f"ℓ of at most {search.ell_bound:g} times the warm start's"
    if best is None:
        return f"No trial has an {bound}: raise --ell_bound, or search a larger λ."
    value, again = best.user_attrs[METRICS][true][0], f"rlobj compare {search.directory / BEST} --lambdas 0 "
    return (
        f"Best: trial {name_of(best)}, which has the highest {report.METRICS[true][0]}, {value:.2f}, of those with an "
        f"{bound}. It is the best of several single runs, and so looks better than it is; new seeds tell: "
        f"{again}{lambda_name(search.lambda_of(best.params))}."
    )


def _others(trials: Sequence[Any], done: Sequence[Any]) -> str:
    states = [trial.state.name for trial in trials if trial not in done]
    given_up, failed = states.count("PRUNED"), states.count("FAIL")
    return f"{len(done)} trials ended, {given_up} were given up on the way, {failed} failed."


def front(ends: Sequence[tuple[float, float]]) -> list[int]:
    """Which of these (ℓ, return) no other has both a smaller ℓ and more return than: their places."""
    return [
        n
        for n, (ell, back) in enumerate(ends)
        if not any(e <= ell and b >= back and (e, b) != (ell, back) for e, b in ends)
    ]


def _pareto(done: Sequence[Any]) -> Picture:
    metrics = [trial.user_attrs[METRICS] for trial in done if "ell" in trial.user_attrs[METRICS]]
    ends = [(each["ell"][0], each["return"][0]) for each in metrics]
    best = set(front(ends))
    series = {
        "on the front": sorted(Point(*ends[n]) for n in best),
        "others": [Point(*end) for n, end in enumerate(ends) if n not in best],
    }
    note = "Further up is more reward, further left is closer to the labels; on the front no other trial is both."
    return Picture("return against ℓ", "ℓ", "return", series, joined=False, note=note)


def _slices(search: Search, done: Sequence[Any], true: str) -> list[Picture]:
    """The true measure against each number that was searched."""
    heading = report.METRICS[true][0]
    return [
        Picture(
            f"{heading} against {key}",
            f"log10 {key}" if values.log else key,
            heading,
            {"every trial": [Point(_place(values, t.params[key]), t.user_attrs[METRICS][true][0]) for t in done]},
            joined=False,
        )
        for key, values in search.space.items()
        if isinstance(values, Range)
    ]


def _place(values: Range, value: float) -> float:
    return math.log10(value) if values.log else value
