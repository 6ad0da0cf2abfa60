"""What happens around an optimiser step: guards, and a state that checkpoints keep."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

logger = logging.getLogger(__name__)


class TrainingDiverged(RuntimeError):
    """Several optimiser steps in a row had a loss or gradient that is not finite; none of them was applied."""


class BaselineState(TrainerCallback, ExportableState):
    """Keep the moving mean of `reinforce` in checkpoints (trainer_state.json)."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        kept = state.stateful_callbacks.get(type(self).__name__, {}) if state.global_step > 0 else {}
        self.trainer.baseline = kept.get("attributes", {}).get("baseline")

    def state(self) -> dict[str, Any]:
        return {"args": {}, "attributes": {"baseline": self.trainer.baseline}}


class FiniteGuard(TrainerCallback):
    """Keep a step whose loss or gradient is not finite away from the weights; give up after some in a row.

    The gradients are taken away, so the optimiser passes over every parameter: neither weights nor moments move.

    Args:
        max_bad_steps: in a row, before TrainingDiverged.
        loss_is_finite: asked for each step, by all processes.
        write: writes down what the step was made of, given the names of the parameters; returns where, for the message.
        tell: is told of the first such step: its number and what happened.
    """

    def __init__(
        self,
        max_bad_steps: int,
        loss_is_finite: Callable[[], bool] = lambda: True,
        write: Callable[[list[str]], Path | None] = lambda parameters: None,
        tell: Callable[[int, str], None] = lambda step, text: None,
    ) -> None:
        self.max_bad_steps = max_bad_steps
        self.loss_is_finite, self.write, self.tell = loss_is_finite, write, tell
        self.bad_in_a_row = 0

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        parameters = [p for p in kwargs["model"].parameters() if p.grad is not None]
        finite = not parameters or bool(torch.stack([p.grad.isfinite().all() for p in parameters]).all())
        loss_is_finite = self.loss_is_finite()
        if finite and loss_is_finite:
            self.bad_in_a_row = 0
            return
        names = [n for n, p in kwargs["model"].named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
        for parameter in parameters:
            parameter.grad = None
        written = self.write(names)
        self.bad_in_a_row += 1
        where = f"; its batch: {written}" if written else ""
        what = "loss" if finite else "gradient"
        logger.warning(
            "step %d has a %s that is not finite: not applied (%d in a row)%s",
            state.global_step + 1,
            what,
            self.bad_in_a_row,
            where,
        )
        self.tell(
            state.global_step + 1,
            f"there was a step whose {what} is not finite; it was not applied{where}. If there are more: lower "
            "training.learning_rate, or look at the reward's scale",
        )
        if self.bad_in_a_row >= self.max_bad_steps:
            raise TrainingDiverged(
                f"{self.bad_in_a_row} steps in a row up to step {state.global_step + 1} had a {what} that is not "
                f"finite; none was applied. Lower training.learning_rate, or look at the reward's scale{where}"
            )


class BetweenGenerations(TrainerCallback):
    """Put off a checkpoint, and an end that was asked for, until the rollouts of a generation are used up.

    Rollouts that several optimiser steps share are in no checkpoint of TRL's: resuming among them would draw others.
    """

    def __init__(self) -> None:
        self.save = self.stop = False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        window = max(args.steps_per_generation * args.num_iterations // args.gradient_accumulation_steps, 1)
        self.save, self.stop = self.save or control.should_save, self.stop or control.should_training_stop
        between = state.global_step % window == 0 or state.global_step >= state.max_steps
        control.should_save, control.should_training_stop = self.save and between, self.stop and between
        if between:
            self.save = self.stop = False
