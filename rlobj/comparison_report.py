"""The report of a comparison of λ, and of two comparisons side by side."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

import rlobj.report as report
from rlobj import __version__
from rlobj.compared import Comparison, Findings, Summary, Trial, true_measure, write_results
from rlobj.drift import against_kl, drift_pictures, mean_over_seeds
from rlobj.early_stopping import kept_of
from rlobj.intervals import Interval, mean_interval_over_seeds, share_above
from rlobj.lambdas import lambda_name
from rlobj.pictures import Picture, Point
from rlobj.progress import say
from rlobj.results import LIMITS, WARM_START, lambda_title, policy_curves, policy_history, warnings_of
from rlobj.run_report import samples
from rlobj.soup import Soup, in_words, taste

OVER = "over seeds and the episodes of each (ℓ: held-out rows)"


def conclude(found: Findings) -> Path:
    """Write the results and the report, say what came out, and return the path of the report."""
    soup = taste(found.comparison, found.results)
    write_results(found, {} if soup is None else {"soup": {**asdict(soup), "said": in_words(soup)}})
    directory = found.comparison.directory
    path = write_comparison(found, soup)
    say("")
    say(report.text_table([{"name": s.name, **s.mean} for s in found.summaries]))
    if soup is not None:
        say(f"\n{in_words(soup)}")
    say(f"\n{found.advice}\n\nreport   {path}\nresults  {directory / 'results.csv'}")
    if found.best is not None:
        say(f"policy   {directory / 'best_policy'}")
    return path


def write_comparison(found: Findings, soup: Soup | None) -> Path:
    """Write report.html; return its path."""
    comparison, summaries = found.comparison, found.summaries
    path = comparison.directory / "report.html"
    middle = [{"name": s.name, **s.interquartile_mean} for s in summaries[1:]]
    report.write_report(
        path,
        title=f"{comparison.config.name}: λ compared",
        facts={
            "environment": comparison.config.env.id,
            "seeds": ", ".join(f"{s.name}: {s.seeds}" for s in summaries[1:]),
            "made by": _command(comparison),
            "rlobj": __version__,
        },
        table=[{"name": s.name, **s.mean} for s in summaries],
        curves=_mean_curves(found.results),
        samples=_samples(found.results),
        notes=[
            found.advice,
            _front(summaries),
            *([] if soup is None else [in_words(soup)]),
            *_without_result(found),
            *_warnings(found.results),
        ],
        pictures=[*_pareto({**_ends(summaries), **_soup_points(soup)}), _profile(found), *_drift(found.results)],
        intervals=OVER,
        extra=[
            "<h3>Which is better?</h3>"
            f"<p class='meaning'>Probability that a seed has more {escape(_true_heading(summaries))} than …; a half is "
            f"no difference.</p>{_improvements(summaries)}",
            "<h3>Interquartile means</h3><p class='meaning'>The mean of the middle half of the seeds: one odd seed "
            f"moves it little.</p>{report.html_table(middle, 'Interquartile means over seeds')}",
        ],
    )
    return path


def write_side_by_side(first: Findings, second: Findings) -> Path:
    """Write one report of two comparisons into the first one's directory; return its path."""
    both = dict(zip(_names(first, second), (first, second), strict=True))
    path = first.comparison.directory / f"against-{second.comparison.directory.name}.html"
    curves: dict[str, dict[str, Sequence[Point]]] = {}
    pareto: dict[str, Sequence[Point]] = {}
    for name, found in both.items():
        for title, lines in _mean_curves(found.results).items():
            curves.setdefault(title, {}).update({f"{name}: {policy}": points for policy, points in lines.items()})
        pareto |= {f"{name}: {policy}": points for policy, points in _ends(found.summaries).items()}
    report.write_report(
        path,
        title=" and ".join(both),
        facts={f"{name} made by": _command(found.comparison) for name, found in both.items()} | {"rlobj": __version__},
        table=[{"name": f"{name}: {s.name}", **s.mean} for name, found in both.items() for s in found.summaries],
        curves=curves,
        samples=[],
        notes=[f"{name}: {note}" for name, found in both.items() for note in (found.advice, _front(found.summaries))],
        pictures=_pareto(pareto),
        intervals=OVER,
    )
    return path


def _names(first: Findings, second: Findings) -> tuple[str, str]:
    """What two comparisons are called beside each other."""
    a, b = (found.comparison.directory for found in (first, second))
    if a.name != b.name:
        return a.name, b.name
    return (str(a), str(b)) if a != b else (f"{a.name} (1)", f"{b.name} (2)")


def _command(comparison: Comparison) -> str:
    words = ["rlobj", "compare", str(comparison.recipe), "--lambdas", *map(lambda_name, comparison.lambdas)]
    words += ["--seeds", str(comparison.seeds), "--ell_bound", f"{comparison.ell_bound:g}"]
    return shlex.join([*words, *(["--soup", str(comparison.soup)] if comparison.soup else [])])


def _front(summaries: Sequence[Summary]) -> str:
    return "Pareto front of return against ℓ: " + ", ".join(s.name for s in summaries if s.on_front) + "."


def _without_result(found: Findings) -> list[str]:
    given_up: dict[str, str] = kept_of(found.comparison).get("given up", {})
    missing = [
        trial
        for trial in found.comparison.trials
        if trial not in found.results and lambda_name(trial.lambda_sup) not in given_up
    ]
    return [
        *(f"{why}." for why in given_up.values()),
        *(f"{trial.name} has no result; its log is {trial.log}." for trial in missing),
    ]


def _warnings(results: Mapping[Trial, Any]) -> list[str]:
    """Each kind of warning once for each λ, with the seeds that raised it."""
    told: dict[tuple[float | str, str], list[tuple[int, str]]] = {}
    for trial in results:
        for each in warnings_of(trial.directory, trial.lambda_sup):
            told.setdefault((trial.lambda_sup, each["name"]), []).append((trial.seed, each["text"]))
    return [
        f"Warning: {lambda_title(value)}, seed {', '.join(str(seed) for seed, _ in seeds)}: {seeds[0][1]}."
        for (value, _), seeds in told.items()
    ]


def _true_heading(summaries: Sequence[Summary]) -> str:
    return report.METRICS[true_measure(summaries[0].mean)][0]


def _improvements(summaries: Sequence[Summary]) -> str:
    rows = "".join(
        f"<tr><th scope='row'>{escape(s.name)}</th><td>{_probability(s.better_than_warm_start)}</td>"
        f"<td>{_probability(s.better_than_zero)}</td></tr>"
        for s in summaries[1:]
    )
    return (
        "<div class='wide' tabindex='0' role='region' aria-label='Probability of improvement'><table><thead><tr>"
        "<td></td><th scope='col'>the warm start</th><th scope='col'>λ = 0</th></tr></thead>"
        f"<tbody>{rows}</tbody></table></div>"
    )


def _probability(value: Interval | None) -> str:
    if value is None:
        return "–"
    mean, low, high = value
    return f"{mean:.2f}" + ("" if math.isnan(low) else f"<span class='interval'> [{low:.2f}, {high:.2f}]</span>")


def _samples(results: Mapping[Trial, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The same episodes of the warm start and of each λ's first seed."""
    policies: dict[str, Any] = {}
    for result in results.values():  # seed by seed
        policies = {**result, **policies}
    order = sorted(policies, key=[WARM_START, *(lambda_title(trial.lambda_sup) for trial in results)].index)
    return samples({name: policies[name] for name in order})


def _ends(summaries: Sequence[Summary]) -> dict[str, list[Point]]:
    """Where each policy ended: return over ℓ."""
    ends = {s.name: (s.mean["ell"], s.mean["return"]) for s in summaries if {"ell", "return"} <= s.mean.keys()}
    return {name: [Point(ell[0], back[0], *back[1:], *ell[1:])] for name, (ell, back) in ends.items()}


def _soup_points(soup: Soup | None) -> dict[str, list[Point]]:
    points = [] if soup is None else [p for p in soup.points.values() if "ell" in p]
    ends = [Point(p["ell"][0], p["return"][0], *p["return"][1:], *p["ell"][1:]) for p in points]
    return {soup.name: ends} if soup is not None and ends else {}


def _pareto(ends: Mapping[str, Sequence[Point]]) -> list[Picture]:
    note = "Further up is more reward, further left is closer to the labels."
    return [Picture("return against ℓ", "ℓ", "return", ends, joined=False, note=note)] if ends else []


def _drift(results: Mapping[Trial, Any]) -> list[Picture]:
    """Return and success against √KL, for each λ the mean over seeds."""
    gathered: dict[str, dict[str, list[list[Point]]]] = {}
    for trial in results:
        for heading, points in against_kl(policy_history(trial.directory, trial.lambda_sup)).items():
            gathered.setdefault(lambda_title(trial.lambda_sup), {}).setdefault(heading, []).append(points)
    return drift_pictures(
        {name: {heading: mean_over_seeds(runs) for heading, runs in found.items()} for name, found in gathered.items()}
    )


def _profile(found: Findings) -> Picture:
    """Performance profiles (Agarwal et al. 2021): for each level, the share of seeds whose true measure is above it."""
    true = true_measure(found.summaries[0].mean)
    scores: dict[float | str, list[float]] = {}
    for trial, result in found.results.items():
        values = result[lambda_title(trial.lambda_sup)]["per_episode"][true]
        scores.setdefault(trial.lambda_sup, []).append(fmean(values))
    every = [score for of_lambda in scores.values() for score in of_lambda]
    levels = np.linspace(min(every) - 1e-9, max(every), 41)
    lines = {
        s.name: [Point(level, *share_above(scores[s.lambda_sup], level)) for level in levels]
        for s in found.summaries
        if s.lambda_sup is not None
    }
    heading = report.METRICS[true][0]
    note = "The line further to the upper right is the better one, wherever two do not cross."
    return Picture("performance profile", heading, "share of seeds above", lines, note=note)


def _mean_curves(results: Mapping[Trial, Any]) -> report.Curves:
    """Learning curves, for each λ the mean over seeds with its interval."""
    gathered: dict[str, dict[str, dict[float, list[float]]]] = {}
    for trial in results:
        for title, points in policy_curves(trial.directory, trial.lambda_sup).items():
            of_lambda = gathered.setdefault(title, {}).setdefault(lambda_title(trial.lambda_sup), {})
            for point in points:
                of_lambda.setdefault(point.x, []).append(point.y)
    return {
        title: {
            name: [
                Point(step, *np.clip(mean_interval_over_seeds(values), *LIMITS.get(title, (-math.inf, math.inf))))
                for step, values in sorted(steps.items())
            ]
            for name, steps in lines.items()
        }
        for title, lines in gathered.items()
    }
