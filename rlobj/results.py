"""What lies in a run's folder: where, under which names, and how it is read again."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from rlobj.config import RunConfig
from rlobj.lambdas import lambda_name
from rlobj.pictures import Point
from rlobj.recipes import load_recipe
from rlobj.runs import done_with, read_outputs
from rlobj.tracking import read_metrics

WARM_START = "warm start"
LAMBDA_CURVE = "λ"
CURVES = {
    "environment/success": "task success in training",
    "objective/return": "mean return R̂",
    "objective/ell": "supervised loss ℓ",
    "gradient/ratio": "λ‖∇ℓ‖ / ‖∇R‖",
    "gradient/cosine": "cosine of the two gradients",
    "kl/episode": "KL to the warm start, nats per episode",
    "entropy": "entropy of the policy, nats per token",
    "objective/lambda_sup": LAMBDA_CURVE,
}
LIMITS = {
    CURVES["environment/success"]: (0.0, 1.0),
    CURVES["gradient/cosine"]: (-1.0, 1.0),
    **{CURVES[key]: (0.0, math.inf) for key in ("objective/ell", "gradient/ratio", "entropy")},
}
"""Title of a curve -> the values that it can take, where not all."""


def lambda_title(lambda_sup: float | str) -> str:
    """How one λ is called in tables."""
    return f"λ = {lambda_name(lambda_sup)}"


def lambda_directory(run_dir: Path, lambda_sup: float | str) -> Path:
    """Where the policy of one λ is kept; what no directory can be called is written as a comma."""
    return run_dir / "policies" / f"lambda={re.sub(r'[/:*?<>|]', ',', lambda_name(lambda_sup))}"


def policy_history(run_dir: Path, lambda_sup: float | str) -> list[dict[str, Any]]:
    """The training log of the policy of one λ."""
    history: list[dict[str, Any]] = read_outputs(lambda_directory(run_dir, lambda_sup))["history"]
    return history


def policy_log(run_dir: Path, lambda_sup: float | str) -> list[dict[str, Any]]:
    """The training log of the policy of one λ as far as it has come, of a training that runs, too."""
    directory = lambda_directory(run_dir, lambda_sup)
    if done_with(directory) is not None:
        return policy_history(run_dir, lambda_sup)
    return read_metrics(directory.parent / "checkpoints" / directory.name)


def policy_curves(run_dir: Path, lambda_sup: float | str) -> dict[str, list[Point]]:
    """Learning curves of the policy of one λ: title, one of CURVES, -> values by optimiser step."""
    history = policy_history(run_dir, lambda_sup)
    curves = {
        title: [Point(int(log["step"]), float(log[key])) for log in history if log.get(key) is not None]
        for key, title in CURVES.items()
    }
    if len({point.y for point in curves[LAMBDA_CURVE]}) == 1:
        del curves[LAMBDA_CURVE]  # a constant needs no picture
    return {title: points for title, points in curves.items() if points}


def warnings_of(run_dir: Path, lambda_sup: float | str) -> list[dict[str, Any]]:
    """What the training of the policy of one λ was warned of: `kind`, `step` and `text`."""
    told: list[dict[str, Any]] = read_outputs(lambda_directory(run_dir, lambda_sup)).get("warnings", [])
    return told


def load_summary(run_dir: Path) -> list[dict[str, Any]]:
    """The evaluation table of a finished run."""
    return list(json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))["table"])


def config_of(run_dir: Path) -> RunConfig:
    """The configuration of a run, wherever its folder lies now."""
    return load_recipe(str(run_dir / "config.yaml"), [f"--name={run_dir.name}", f"--output_dir={run_dir.parent}"])
