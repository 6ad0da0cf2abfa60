"""What happens around an optimiser step: guards, and the state of controllers in checkpoints."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from rlobj.lambdas import Controller

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


class ControllerState(TrainerCallback, ExportableState):
    """Tell a controller of λ what it begins with, and keep its state in checkpoints (trainer_state.json)."""

    def __init__(self, controller: Controller, ell_of_the_start: Callable[[], float]) -> None:
        self.controller, self.ell_of_the_start = controller, ell_of_the_start

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        kept = state.stateful_callbacks.get(type(self).__name__, {}) if state.global_step > 0 else {}
        if kept.get("args") == self._kind():
            self.controller.state = dict(kept["attributes"])
        else:  # a new training, or a λ that was changed on the way
            self.controller.begin(self.ell_of_the_start())

    def state(self) -> dict[str, Any]:
        return {"args": self._kind(), "attributes": dict(self.controller.state)}

    def _kind(self) -> dict[str, str]:
        return {"form": type(self.controller).__name__}


class FiniteGuard(TrainerCallback):
    """Keep a gradient that is not finite away from the weights; give up after some in a row.

    The gradients are taken away, so the optimiser passes over every parameter: neither weights nor moments move.
    """

    def __init__(self, max_bad_steps: int) -> None:
        self.max_bad_steps = max_bad_steps
        self.bad_in_a_row = 0

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        parameters = [p for p in kwargs["model"].parameters() if p.grad is not None]
        if not parameters or torch.stack([p.grad.isfinite().all() for p in parameters]).all():
            self.bad_in_a_row = 0
            return
        for parameter in parameters:
            parameter.grad = None
        self.bad_in_a_row += 1
        logger.warning(
            "step %d has a gradient that is not finite: not applied (%d in a row)",
            state.global_step + 1,
            self.bad_in_a_row,
        )
        if self.bad_in_a_row >= self.max_bad_steps:
            raise TrainingDiverged(
                f"{self.bad_in_a_row} steps in a row up to step {state.global_step + 1} had a gradient that is not "
                "finite; none was applied. Lower training.learning_rate, or look at the reward's scale"
            )
