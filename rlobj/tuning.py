"""The search for λ together with other parameters, through Optuna: what `rlobj tune` does.

Every trial is an ordinary run with one λ. The search maximises the true measure on the held-out episodes among the
trials whose ℓ is within the bound, and gives up those that are behind on the way. All that it knows lies in a database
in the directory, so the same command goes on.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import rlobj.report as report
from rlobj.asha import reached
from rlobj.compared import true_measure
from rlobj.config import RunConfig, dump, validate
from rlobj.early_stopping import MEASURES
from rlobj.jobs import Job, Processes, run_arguments
from rlobj.pipeline import prepare
from rlobj.progress import bar, say
from rlobj.results import policy_log
from rlobj.runs import atomic_write_text, graceful_signals, read_outputs
from rlobj.search_space import Choice, Range, Space
from rlobj.searched import ELL_EXCESS, METRICS, STUDY, Search
from rlobj.stages import Interrupted
from rlobj.tuning_report import conclude

OWN_SECTIONS = ("objective.", "training.", "ppo.")
"""Parameters that warm start and reward model do not depend on: they are trained once for all trials."""
LOOKS = 5
"""How often a trial is compared with the others on the way."""


def tune(config: RunConfig, space: Space, trials: int, workers: int | None = None, ell_bound: float = 1.25) -> Path:
    """Run trials until there are so many; write what came out, and return the path of the report.

    Args:
        workers: trials at once; None takes one for each core, or one where there is a GPU.

    Raises:
        ValueError: Optuna is missing, the space or the configuration is not usable, or no trial succeeded.
        Interrupted: asked to stop; the same call goes on.
    """
    try:
        import optuna
    except ImportError:
        raise ValueError("rlobj tune needs Optuna: pip install 'rlobj[tune]'") from None
    search = Search(Path(config.output_dir) / f"{config.name}-tuned", config, space, trials, ell_bound)
    _check(search)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    atomic_write_text(search.recipe, dump(config))
    shared: dict[str, str] = {}
    if all(key.startswith(OWN_SECTIONS) for key in space):
        shared = prepare(replace(config, name="shared", output_dir=str(search.directory)))
    study = optuna.create_study(
        storage=f"sqlite:///{search.directory / STUDY}",
        study_name=search.name,
        direction="maximize",
        load_if_exists=True,
        sampler=optuna.samplers.TPESampler(seed=config.seed, multivariate=True, constant_liar=True),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=config.training.steps // LOOKS),
    )
    with graceful_signals() as stop:
        _Loop(search, study, shared, Processes(workers, trials)).run(stop)
    return conclude(search, study)


def _check(search: Search) -> None:
    """Every end of the space must be a configuration that can run."""
    if search.trials < 1:
        raise ValueError(f"trials is {search.trials}: expected at least 1, and 20 to find something")
    if not search.ell_bound > 0:
        raise ValueError(f"ell_bound is {search.ell_bound}: expected a factor above 0, such as 1.25")
    for key, values in search.space.items():
        for value in values.ends:
            validate(search.config_of({key: value}))
    given = search.config.objective.lambdas
    if len(given) > 1 and "objective.lambda_sup" not in search.space:
        raise ValueError(
            f"objective.lambda_sup has {len(given)} values: search it (--space objective.lambda_sup=log:0.01..1), or "
            "give one (--objective.lambda_sup 0.1)"
        )


# Trials ---------------------------------------------------------------------------------------------------------------


class _Loop:
    """Ask for parameters, run them, tell what they reached, and give up what is behind."""

    def __init__(self, search: Search, study: Any, shared: Mapping[str, str], engine: Processes) -> None:
        self.search, self.study, self.shared, self.engine = search, study, shared, engine
        self.trials: dict[Job, Any] = {}
        self.pruned: set[Job] = set()

    def run(self, stop: Any) -> None:
        waiting = self._left_running()
        have = [trial for trial in self.study.get_trials(deepcopy=False) if trial.state.is_finished()]
        new = max(self.search.trials - len(have) - len(waiting), 0)
        say(f"{new + len(waiting)} trials to run, {len(have)} done before; {self.engine.about}")
        try:
            with bar("trials", new + len(waiting)) as progress:
                while new or waiting or self.engine.running:
                    if stop.requested:
                        raise Interrupted(f"stopped; what was done is kept in {self.search.directory}")
                    while (new or waiting) and self.engine.has_room():
                        if waiting:
                            self._start(waiting.pop(0))
                        else:
                            new -= 1
                            self._start(self.study.ask(_distributions(self.search.space)))
                    time.sleep(0.2)
                    for job, well in self.engine.ended():
                        self._tell(job, well)
                        progress.advance(progress.n + 1)
                    for job in self.engine.running:
                        self._look(job)
        finally:
            self.engine.close()

    def _left_running(self) -> list[Any]:
        """Trials of a search that was stopped: they go on."""
        from optuna.trial import Trial, TrialState

        left = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        return [Trial(self.study, trial._trial_id) for trial in left]  # no public way leads back to a trial

    def _start(self, trial: Any) -> None:
        run = self.search.run_of(trial.number)
        settings = {**self.shared, "name": run.name, "output_dir": run.parent, **trial.params}
        said = ", ".join(f"{key} {value}" for key, value in trial.params.items())
        arguments = run_arguments(self.search.recipe, settings)
        job = Job(f"trial {trial.number} ({said})", arguments, self.search.log_of(trial.number))
        self.trials[job] = trial
        self.engine.start(job)

    def _look(self, job: Job) -> None:
        """Report what a trial has reached, and give it up where it is behind."""
        trial, steps = self.trials[job], self.search.config.training.steps
        log = policy_log(self.search.run_of(trial.number), self.search.lambda_of(trial.params))
        known = self.study.get_trials(deepcopy=False)[trial.number].intermediate_values
        for look in range(1, LOOKS):
            step, before = look * steps // LOOKS, (look - 1) * steps // LOOKS
            value = reached(log, step, before, MEASURES) if step not in known else None
            if value is None or job in self.pruned:
                continue
            trial.report(value, step)
            if trial.should_prune():
                self.pruned.add(job)
                self.engine.stop(job)
                say(f"  {job.name}: given up at step {step}, behind the median of the others")

    def _tell(self, job: Job, well: bool) -> None:
        from optuna.trial import TrialState

        trial = self.trials.pop(job)
        if not well:
            self.study.tell(trial, state=TrialState.PRUNED if job in self.pruned else TrialState.FAIL)
            if job not in self.pruned:
                say(f"  {job.name} failed: {job.last_line} ({job.log})")
            return
        warm, found = read_outputs(self.search.run_of(trial.number) / "evaluation")["table"]
        metrics = {name: value for name, value in found.items() if name != "name"}
        true = true_measure(metrics)
        trial.set_user_attr(METRICS, metrics)
        if "ell" in metrics:
            trial.set_constraint(ELL_EXCESS, metrics["ell"][0] - self.search.ell_bound * warm["ell"][0])
        self.study.tell(trial, metrics[true][0])
        say(f"  {job.name}: {report.METRICS[true][0]} {metrics[true][0]:.3f}")


def _distributions(space: Space) -> dict[str, Any]:
    from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

    def one(values: Range | Choice) -> BaseDistribution:
        if isinstance(values, Choice):
            return CategoricalDistribution(values.values)
        if values.whole:
            return IntDistribution(int(values.low), int(values.high), log=values.log)
        return FloatDistribution(values.low, values.high, log=values.log)

    return {key: one(values) for key, values in space.items()}
