"""What a controller of λ is told during training, and its state in checkpoints."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from rlobj.controllers import Controller, Measured, Sampled, identity


class Steering(TrainerCallback, ExportableState):
    """Tells a controller of λ what was measured, and keeps its state in checkpoints (trainer_state.json).

    The state is bound to the form that made it: another form, or other settings of it, begins afresh.

    Args:
        ell_of_the_start: ℓ of the warm start; None where the controller does not need it.
    """

    def __init__(self, controller: Controller, ell_of_the_start: float | None) -> None:
        self.controller, self.ell_of_the_start = controller, ell_of_the_start

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        kept = state.stateful_callbacks.get(type(self).__name__, {}) if state.global_step > 0 else {}
        if kept.get("args") == self._form():
            self.controller.state = dict(kept["attributes"])
        elif self.ell_of_the_start is not None:
            self.controller.begin(self.ell_of_the_start)

    def state(self) -> dict[str, Any]:
        return {"args": self._form(), "attributes": dict(self.controller.state)}

    def _form(self) -> dict[str, str]:
        return {"form": identity(self.controller)}

    def observe(self, trainer: Any, inputs: Sequence[dict[str, Any]], batch: dict[str, Any]) -> None:
        """Tell of a generation: the rows that it was made of, and what TRL made of them."""
        device = trainer.accelerator.device
        columns = [row.get("episode_columns") or {} for row in inputs]
        known = [math.nan if row.get("success") is None else float(row["success"]) for row in columns]
        groups = trainer.accelerator.gather(torch.tensor(known, device=device)).view(-1, trainer.num_generations)
        success = groups.nanmean(dim=1)
        entropy = None
        if (logps := batch.get("sampling_per_token_logps")) is not None:
            mask = batch["completion_mask"] * batch.get("tool_mask", 1)
            both = torch.stack([(logps * mask).sum(), mask.sum()])
            total, count = trainer.accelerator.reduce(both, reduction="sum").tolist()
            entropy = -total / max(count, 1.0)
        self.controller.observe(Sampled(tuple(success[success.isfinite()].tolist()), entropy))

    def update(self, trainer: Any, ell: float | None) -> None:
        """Tell of an optimiser step, whose micro-batches the trainer still holds."""
        masks = [batch["completion_mask"] * batch.get("tool_mask", 1) for batch in trainer.micro_batches]
        tokens = trainer.accelerator.reduce(torch.stack([mask.sum() for mask in masks]).sum(), reduction="sum")
        known = ell if ell is not None and math.isfinite(ell) else None
        self.controller.update(Measured(trainer.state.global_step, known, int(tokens.item())))
