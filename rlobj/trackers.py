"""Experiment trackers beside a training: how a run is named and grouped in W&B, TensorBoard and trackio.

What a run writes itself is whole without them; one that fails is left out (`rlobj.tracking`).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rlobj.spelling import did_you_mean

logger = logging.getLogger(__name__)

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
    directory.mkdir(parents=True, exist_ok=True)
    args.report_to, args.run_name, args.project = list(names), f"{group}, {run}", project
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(directory / "tensorboard" / group / run)  # its callback looks there
    if "wandb" in names and args.process_index == 0:
        try:
            import wandb

            # its environment variables are read once for a process, which may train several λ
            wandb.init(project=project, group=group, name=args.run_name, dir=str(directory))
        except Exception as error:  # no network, no account: not worth the training
            logger.warning("wandb failed (%s): training goes on without it", error)
            args.report_to = [name for name in names if name != "wandb"]


def end_run(names: Sequence[str]) -> None:
    """The next training of this process is another run."""
    if "wandb" in names:
        import wandb

        wandb.finish()
