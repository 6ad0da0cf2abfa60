"""Adapters of peft on the policy: the rank update of AdaLoRA (Zhang et al. 2023), which no trainer calls for it."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import TrainerCallback


def has_adalora(model: Any) -> bool:
    """Whether the policy wears an AdaLoRA adapter."""
    return hasattr(model, "peft_config") and hasattr(model.base_model, "rankallocator")


def parameter_counts(model: nn.Module) -> tuple[int, int]:
    """Parameters that are trained, and all of them."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(n for n, trained in sizes if trained), sum(n for n, _ in sizes)


class RankUpdate(TrainerCallback):
    """Share out AdaLoRA's budget of ranks after each optimiser step, while its gradients are still there."""

    def __init__(self, policy: Any) -> None:
        self.policy = policy

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trained = [p for p in self.policy.parameters() if p.requires_grad]
        if all(p.grad is not None for p in trained):  # none where a step that was not finite was skipped
            # the steps that are taken count from 1, so that total_step is reached
            self.policy.base_model.update_and_allocate(state.global_step + 1)
