"""Many λ, several seeds each, from one warm start and one reward model: what `rlobj compare` does.

Every trial (a λ and a seed) is an ordinary run in a process of its own, judged on the same held-out episodes; this
module plans them, runs as many at once as the machine has cores for, and says what came out.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import torch

import rlobj.report as report
from rlobj.compared import Comparison, Trial, find, score
from rlobj.comparison_report import conclude
from rlobj.config import RunConfig
from rlobj.lambdas import as_lambda, lambda_name
from rlobj.pipeline import Interrupted, lambda_title, prepare
from rlobj.progress import bar, say
from rlobj.runs import graceful_signals
from rlobj.soup import cook, ends_of


def compare(
    config: RunConfig,
    lambdas: Sequence[float | str],
    seeds: int,
    workers: int | None = None,
    ell_bound: float = 1.25,
    soup: int = 0,
) -> Path:
    """Train every λ with every seed, unless it is done; write what came out, and return the path of the report.

    Args:
        lambdas: numbers, and texts that `as_lambda` takes.
        workers: trials at once; None takes one for each core, or one where there is a GPU.
        ell_bound: the recommended λ has an ℓ of at most so many times the warm start's.
        soup: policies to judge between the smallest and the largest constant λ, their parameters interpolated.

    Raises:
        ValueError: a λ or the configuration is not usable, or no trial succeeded.
        Interrupted: asked to stop; the same call goes on.
    """
    config = replace(config, objective=replace(config.objective, lambda_sup=list(lambdas)))
    values = config.objective.lambdas
    _check(values, seeds, ell_bound)
    if soup:
        ends_of(values)
    directory = Path(config.output_dir) / f"{config.name}-compared"
    shared = prepare(replace(config, name="shared", output_dir=str(directory)))
    comparison = Comparison(directory, config, values, seeds, ell_bound, soup)
    comparison.save()
    failed = _run_all(comparison, shared, workers or _cores_for(comparison.trials))
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


def _cores_for(trials: Sequence[Trial]) -> int:
    cores = 1 if torch.cuda.is_available() else len(os.sched_getaffinity(0))
    return min(cores, len(trials))


def _run_all(comparison: Comparison, shared: Mapping[str, str], workers: int) -> list[Trial]:
    """Run the trials in processes, `workers` at once; return those that failed."""
    trials, recipe = comparison.trials, comparison.recipe
    threads = str(max(len(os.sched_getaffinity(0)) // workers, 1))
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    waiting, failed = list(trials), []
    running: dict[subprocess.Popen[bytes], Trial] = {}
    say(f"{len(trials)} trials, {workers} at once, {threads} threads each")
    values = list(dict.fromkeys(trial.lambda_sup for trial in trials))
    found: dict[float | str, list[float]] = {value: [] for value in values}
    try:
        with graceful_signals() as stop, ExitStack() as stack:
            bars = {
                value: stack.enter_context(bar(lambda_title(value), len(trials) // len(values))) for value in values
            }
            while waiting or running:
                if stop.requested:
                    raise Interrupted(f"stopped; what was done is kept in {comparison.directory}")
                while waiting and len(running) < workers:
                    trial = waiting.pop(0)
                    running[_start(trial, recipe, shared, environment)] = trial
                time.sleep(0.2)
                for process in [each for each in running if each.poll() is not None]:
                    trial = running.pop(process)
                    if process.returncode != 0:
                        failed.append(trial)
                        say(f"  {trial.name} failed: {_last_line(trial.log)} ({trial.log})")
                        continue
                    true, value = score(trial)
                    found[trial.lambda_sup].append(value)
                    progress = bars[trial.lambda_sup]
                    progress.show(f"{report.METRICS[true][0]} {fmean(found[trial.lambda_sup]):.2f}")
                    progress.advance(progress.n + 1)
    finally:
        _stop(running)
    return failed


def _start(
    trial: Trial, recipe: Path, shared: Mapping[str, str], environment: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    settings = {
        **shared,
        "name": trial.directory.name,
        "output_dir": str(trial.directory.parent),
        "objective.lambda_sup": lambda_name(trial.lambda_sup),
        "training.seed": str(trial.seed),
    }
    command = [sys.executable, "-m", "rlobj", "run", str(recipe)]
    command += [word for key, value in settings.items() for word in (f"--{key}", value)]
    trial.directory.mkdir(parents=True, exist_ok=True)
    with open(trial.log, "ab") as log:
        # its own session: Ctrl-C reaches this process alone, which then stops the others in order
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)


def _stop(running: Mapping[subprocess.Popen[bytes], Trial]) -> None:
    for process in running:
        process.send_signal(signal.SIGINT)  # they save, and end
    for process in running:
        process.wait()


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"
