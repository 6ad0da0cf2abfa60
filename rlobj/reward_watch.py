"""What failures of a reward do to a run: they are counted and told, and what was trained before one is kept."""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from envs.rewards import BadReward, Failure, OnError

logger = logging.getLogger(__name__)

GIVE_UP_AFTER = 3
"""Rollouts in a row without one reward that did not fail: a policy that skips failures must not train on nothing."""


class RewardWatch:
    """Counts what a reward did not score, rollout by rollout."""

    def __init__(self, on_error: OnError) -> None:
        self.on_error = on_error
        self._failed_in_a_row = 0
        self._told: set[str] = set()

    def report(
        self, returns: Sequence[float], failures: Sequence[Failure], log_metric: Callable[[str, float], None]
    ) -> None:
        """Log the shares of episodes whose reward failed, and that had none; tell the first failure of each kind.

        Raises:
            BadReward: every reward of GIVE_UP_AFTER rollouts in a row failed.
        """
        episodes = len(returns)
        skipped = len(failures) if self.on_error == "skip" else 0
        log_metric("reward/failed", len(failures) / episodes)
        log_metric("reward/none", (sum(map(math.isnan, returns)) - skipped) / episodes)
        for kind in sorted({failure.kind for failure in failures}):
            mine = [failure for failure in failures if failure.kind == kind]
            log_metric(f"reward/failed/{kind}", len(mine) / episodes)
            if kind not in self._told:
                self._told.add(kind)
                logger.warning("%s\n(told once; reward/failed/%s counts these)", mine[0].text, kind)
        self._failed_in_a_row = self._failed_in_a_row + 1 if len(failures) == episodes else 0
        if self._failed_in_a_row >= GIVE_UP_AFTER:
            raise BadReward(
                f"no episode of {GIVE_UP_AFTER} rollouts in a row had a reward that did not fail; the last:\n"
                f"{failures[-1].text}"
            )


def told_by(trainer: Any) -> dict[str, Any]:
    """What TRL's trainer tells its reward functions beside the episodes."""
    return {
        "trainer_state": trainer.state,
        "log_extra": trainer._log_completion_extra,
        "log_metric": trainer._log_metric,
    }


@contextmanager
def keeping_what_is_trained(trainer: Any) -> Iterator[None]:
    """When a reward fails in here, save a checkpoint of the steps that were finished, with the random states of then: a
    resume goes on exactly.

    Where several processes train, one alone cannot save: there the regular checkpoints remain.
    """
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    except BadReward as error:
        steps = trainer.state.global_step
        if steps and trainer.accelerator.num_processes == 1 and trainer.args.save_strategy != "no":
            random.setstate(before[0])
            np.random.set_state(before[1])
            torch.set_rng_state(before[2])
            trainer._save_checkpoint(trainer.model, trial=None)
            trainer.callback_handler.on_save(trainer.args, trainer.state, trainer.control)
            error.add_note(
                f"checkpoint-{steps} holds the {steps} steps before it: mend the reward, and go on from there"
            )
        raise
