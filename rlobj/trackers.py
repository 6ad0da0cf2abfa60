"""Experiment trackers beside a training: how a run is named and grouped in W&B, TensorBoard and trackio.

What a run writes itself is whole without them; one that fails is left out (`rlobj.tracking`).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rlobj.spelling import did_you_mean

TRACKERS = ("tensorboard", "trackio", "wandb")
"""Names of trackers, which are those of their packages."""


def check_trackers(names: Sequence[str]) -> None:
    """Raise ValueError unless these are known, and installed."""
    for name in names:
        if name not in TRACKERS:
            expected = f"expected none, or some of {', '.join(TRACKERS)}"
            raise ValueError(f"training.report_to is {name!r}{did_you_mean(name, TRACKERS)}: {expected}")
        if find_spec(name) is None:
            raise ValueError(f"training.report_to is {name!r}, which is not installed: pip install {name}")


def begin_run(names: Sequence[str], args: Any, *, project: str, group: str, run: str, directory: Path) -> None:
    """Have a trainer that is made of `args` now tell these trackers what it logs.

    Args:
        args: TRL's configuration; its `report_to`, `run_name` and `project` are set.
        project, group, run: what the training belongs to, from the whole to itself.
        directory: where trackers that write files do so.
    """
    if not names:
        return
    args.report_to, args.run_name, args.project = list(names), f"{group}, {run}", project
    # what the trackers' callbacks do not take from args they look up here
    os.environ |= {
        "TENSORBOARD_LOGGING_DIR": str(directory / "tensorboard" / group / run),
        "WANDB_PROJECT": project,
        "WANDB_RUN_GROUP": group,
        "WANDB_DIR": str(directory),
    }
    directory.mkdir(parents=True, exist_ok=True)


def end_run(names: Sequence[str]) -> None:
    """The next training of this process is another run."""
    if "wandb" in names:
        import wandb

        wandb.finish()
