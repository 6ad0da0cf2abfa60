"""Many λ, several seeds each, from one warm start and one reward model: what `rlobj compare` does.

Every trial (a λ and a seed) is an ordinary run, judged on the same held-out episodes; this module plans them, hands
them to an engine, gives up a hopeless λ where that is asked for, and says what came out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import rlobj.report as report
from rlobj.asha import rungs
from rlobj.compared import Comparison, Trial, find, score
from rlobj.comparison_report import conclude
from rlobj.config import RunConfig
from rlobj.early_stopping import EarlyStopping
from rlobj.jobs import Engine, Job, Processes, run_arguments
from rlobj.lambdas import as_lambda, lambda_name
from rlobj.pipeline import is_done, prepare
from rlobj.progress import bar, say
from rlobj.recipes import load_recipe
from rlobj.results import lambda_title
from rlobj.runs import graceful_signals
from rlobj.soup import cook, ends_of
from rlobj.stages import Interrupted


def compare(
    config: RunConfig,
    lambdas: Sequence[float | str],
    seeds: int,
    *,
    ell_bound: float = 1.25,
    soup: int = 0,
    early_stop: float | None = None,
    engine: Callable[[int], Engine] | None = None,
) -> Path:
    """Train every λ with every seed, unless it is done; write what came out, and return the path of the report.

    Args:
        lambdas: numbers, and texts that `as_lambda` takes.
        ell_bound: the recommended λ has an ℓ of at most so many times the warm start's.
        soup: policies to judge between the smallest and the largest constant λ, their parameters interpolated.
        early_stop: give up a λ that is not among the best 1/early_stop on the way (`rlobj.asha`).
        engine: makes what runs the trials, given how many there are; None takes processes on this machine.

    Raises:
        ValueError: a λ or the configuration is not usable, or no trial succeeded.
        Interrupted: asked to stop; the same call goes on.
    """
    config = replace(config, objective=replace(config.objective, lambda_sup=list(lambdas)))
    values = config.objective.lambdas
    _check(values, seeds, ell_bound)
    if soup:
        ends_of(values)
    if early_stop is not None:
        rungs(config.training.steps, early_stop)
    directory = Path(config.output_dir) / f"{config.name}-compared"
    comparison = Comparison(directory, config, values, seeds, ell_bound, soup)
    shared = prepare(replace(config, name="shared", output_dir=str(directory)))
    comparison.save()
    stopping = EarlyStopping(comparison, early_stop)
    failed = _run_all(comparison, shared, (engine or partial(Processes, None))(len(comparison.trials)), stopping)
    if soup:
        cook(comparison)
    return conclude(find(comparison, failed))


def _check(lambdas: Sequence[float | str], seeds: int, ell_bound: float) -> None:
    if not lambdas:
        raise ValueError("lambdas is empty: expected some, such as 0,0.1,1")
    for value in lambdas:
        as_lambda(value)
    names = [lambda_name(value) for value in lambdas]
    if len(set(names)) < len(names):
        raise ValueError(f"lambdas are {', '.join(names)}: each may be there once")
    if seeds < 1:
        raise ValueError(f"seeds is {seeds}: expected at least 1, and 5 to tell a difference")
    if not ell_bound > 0:
        raise ValueError(f"ell_bound is {ell_bound}: expected a factor above 0, such as 1.25")


# Trials ---------------------------------------------------------------------------------------------------------------


def _run_all(comparison: Comparison, shared: Mapping[str, str], engine: Engine, stopping: EarlyStopping) -> list[Trial]:
    """Give the trials to the engine; return those that failed."""
    trials = [trial for trial in comparison.trials if trial.lambda_sup not in stopping.given_up]
    jobs = {_job(trial, comparison.recipe, shared, comparison.config.name): trial for trial in trials}
    done = [job for job in jobs if _is_done(job)]
    waiting, failed = [job for job in jobs if job not in done], []
    started = [jobs[job] for job in done]
    before = f", {len(done)} of them done before" if done else ""
    say(f"{len(trials)} trials{before}" + (f"; {engine.about}" if waiting else ""))
    try:
        with graceful_signals() as stop, ExitStack() as stack:
            table = _LiveTable(trials, stack)
            for trial in started:
                table.done(trial)
            while waiting or engine.running:
                if stop.requested:
                    raise Interrupted(f"stopped; what was done is kept in {comparison.directory}")
                while waiting and engine.has_room():
                    engine.start(waiting[0])
                    started.append(jobs[waiting.pop(0)])
                time.sleep(0.2)
                for job, well in engine.ended():
                    if well:
                        table.done(jobs[job])
                    elif jobs[job].lambda_sup not in stopping.given_up:
                        failed.append(jobs[job])
                        say(f"  {job.name} failed: {job.last_line} ({job.log})")
                for value in stopping.look(started):
                    waiting = [job for job in waiting if jobs[job].lambda_sup != value]
                    for job in engine.running:
                        if jobs[job].lambda_sup == value:
                            engine.stop(job)
    finally:
        engine.close()
    return failed


def _job(trial: Trial, recipe: Path, shared: Mapping[str, str], project: str) -> Job:
    settings: dict[str, Any] = {
        **shared,
        "name": trial.directory.name,
        "output_dir": trial.directory.parent,
        "objective.lambda_sup": lambda_name(trial.lambda_sup),
        "training.seed": trial.seed,
        "training.project": project,
    }
    return Job(trial.name, run_arguments(recipe, settings), trial.log)


def _is_done(job: Job) -> bool:
    """Whether a process for it would find nothing to do."""
    _, recipe, *overrides = job.arguments
    return is_done(load_recipe(recipe, overrides))


class _LiveTable:
    """A line for each λ: how many of its seeds have ended, and what they reached."""

    def __init__(self, trials: Sequence[Trial], stack: ExitStack) -> None:
        values = [trial.lambda_sup for trial in trials]
        self._bars = {
            value: stack.enter_context(bar(lambda_title(value), values.count(value))) for value in dict.fromkeys(values)
        }
        self._found: dict[float | str, list[float]] = {value: [] for value in values}

    def done(self, trial: Trial) -> None:
        true, value = score(trial)
        found, progress = self._found[trial.lambda_sup], self._bars[trial.lambda_sup]
        found.append(value)
        progress.show(f"{report.METRICS[true][0]} {fmean(found):.2f}")
        progress.advance(progress.n + 1)
