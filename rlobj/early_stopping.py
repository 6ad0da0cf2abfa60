"""A comparison's hopeless λ are given up (`rlobj.asha`): what its trainings have reached so far, and what follows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from rlobj.asha import left_behind, reached, rungs
from rlobj.compared import Comparison, Trial
from rlobj.lambdas import lambda_name
from rlobj.progress import say
from rlobj.results import lambda_title, policy_log
from rlobj.runs import atomic_write_json

FILE = "early_stopping.json"
"""File of a comparison: scores at the rungs, and which λ were given up and why."""
MEASURES = ("environment/success", "objective/return")
"""Keys of the training log: what a λ is judged by on the way, the first that there is."""


class EarlyStopping:
    """Look at trials while they run, and give up a λ that is not among the best.

    Args:
        eta: the best 1/eta go on; None gives up none.
    """

    def __init__(self, comparison: Comparison, eta: float | None) -> None:
        self.path = comparison.directory / FILE
        self.eta = eta
        self.rungs = [] if eta is None else rungs(comparison.config.training.steps, eta)
        kept = kept_of(comparison) if eta is not None else {}
        if kept.get("rungs") != self.rungs:  # other steps, or another eta: another race
            kept = {}
        self._scores: dict[str, dict[str, dict[str, float]]] = kept.get("scores", {})
        """rung -> λ -> seed -> score"""
        self._why: dict[str, str] = kept.get("given up", {})
        self._names = {lambda_name(value): value for value in comparison.lambdas}

    @property
    def given_up(self) -> set[float | str]:
        """The λ that are trained no more."""
        return {self._names[name] for name in self._why if name in self._names}

    def look(self, trials: Sequence[Trial]) -> list[float | str]:
        """See what trials have reached; return the λ that are given up now.

        Args:
            trials: all that were begun.
        """
        new = False
        for trial in trials:
            name, seed = lambda_name(trial.lambda_sup), str(trial.seed)
            open_rungs = [step for step in self.rungs if seed not in self._scores.get(str(step), {}).get(name, {})]
            log = policy_log(trial.directory, trial.lambda_sup) if open_rungs and name not in self._why else []
            for step in open_rungs:
                before = max([0, *(each for each in self.rungs if each < step)])
                score = reached(log, step, before, MEASURES)
                if score is not None:
                    self._scores.setdefault(str(step), {}).setdefault(name, {})[seed] = score
                    new = True
        return self._give_up() if new else []

    def _give_up(self) -> list[float | str]:
        assert self.eta is not None
        given_up: list[float | str] = []
        for step, of_rung in self._scores.items():
            means = {name: fmean(seeds.values()) for name, seeds in of_rung.items()}
            for name in left_behind(means, self.eta):
                if name in self._why or name not in self._names:
                    continue
                self._why[name] = (
                    f"{lambda_title(self._names[name])} was given up: at step {step} it had reached {means[name]:.2f} "
                    f"in training, not among the best 1/{self.eta:g} of the {len(means)} λ that had come there"
                )
                given_up.append(self._names[name])
                say(f"  {self._why[name]}")
        atomic_write_json(self.path, {"rungs": self.rungs, "scores": self._scores, "given up": self._why})
        return given_up


def kept_of(comparison: Comparison) -> dict[str, Any]:
    """What early stopping wrote of a comparison; empty where it was not asked for."""
    try:
        kept: dict[str, Any] = json.loads((comparison.directory / FILE).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return kept
