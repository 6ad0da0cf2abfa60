"""A search for λ and other parameters: what was asked, where it lies, and what each trial's parameters mean."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlobj.config import RunConfig, dump
from rlobj.recipes import load_recipe
from rlobj.runs import atomic_write_text, stage_key
from rlobj.search_space import Space

STUDY = "study.db"
"""Optuna's storage in the directory of a search."""
BEST = "best.yaml"
"""The recipe with the best trial's parameters."""
METRICS, ELL_EXCESS = "metrics", "ell above the bound"
"""What a trial's record holds: its evaluation, each metric (mean, low, high); a constraint, its ℓ less the bound."""


@dataclass(frozen=True, slots=True)
class Search:
    """What was asked of a search, and where it lies."""

    directory: Path
    config: RunConfig
    space: Space
    trials: int
    ell_bound: float
    """ℓ of at most so many times the warm start's"""

    @property
    def recipe(self) -> Path:
        return self.directory / "trials.yaml"

    @property
    def name(self) -> str:
        """What the storage calls it: in another space, or with another recipe, it is another search."""
        asked = {"config": dump(self.config), "space": {key: str(values) for key, values in self.space.items()}}
        return f"{self.config.name}-{stage_key({**asked, 'ell_bound': self.ell_bound})[:8]}"

    def run_of(self, number: int) -> Path:
        """The run of a trial."""
        return self.directory / "trials" / self.name / f"trial-{number}"

    def log_of(self, number: int) -> Path:
        """What the run of a trial said."""
        return self.run_of(number).with_suffix(".log")

    def lambda_of(self, values: Mapping[str, Any]) -> float | str:
        """The λ of a trial with these values."""
        return self.config_of(values).objective.lambdas[0]

    def config_of(self, values: Mapping[str, Any]) -> RunConfig:
        """The configuration of a trial.

        Raises:
            ValueError: a field has no such value.
        """
        with tempfile.TemporaryDirectory() as folder:
            recipe = Path(folder) / "recipe.yaml"
            atomic_write_text(recipe, dump(self.config))
            return load_recipe(str(recipe), [f"--{key}={value}" for key, value in values.items()])
