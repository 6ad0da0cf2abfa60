"""Adapters of peft on the policy: the rank update of AdaLoRA (Zhang et al. 2023), which no trainer calls for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import nn
from transformers import TrainerCallback

from rlobj.spelling import did_you_mean


def has_adalora(model: Any) -> bool:
    """Whether the policy wears an AdaLoRA adapter."""
    return hasattr(model, "peft_config") and hasattr(model.base_model, "rankallocator")


def require_resumable(model: Any, checkpoint: str) -> None:
    """Raise ValueError where peft's checkpoints do not hold all that the adapter goes on from."""
    if has_adalora(model):
        raise ValueError(
            f"{checkpoint} is of an AdaLoRA adapter: peft saves neither the importance of ranks nor "
            "those that were cut, so training cannot go on from it; begin again, or use LoRA or IA3"
        )


def parameter_counts(model: nn.Module) -> tuple[int, int]:
    """Parameters that are trained, and all of them."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(n for n, trained in sizes if trained), sum(n for n, _ in sizes)


METHODS = {"lora": "LoraConfig", "adalora": "AdaLoraConfig", "ia3": "IA3Config"}
"""What policy.peft.method may be, and the class of peft whose fields stand beside it."""


def peft_config_of(settings: Mapping[str, Any], steps: int) -> Any:
    """The configuration of peft that policy.peft describes: `method`, and fields of its class.

    Args:
        steps: of the training, which AdaLoRA shares its ranks out over.

    Raises:
        ValueError: peft is not installed, no such method, or a field that its class has not.
    """
    fields = dict(settings)
    method = fields.pop("method", None)
    if method not in METHODS:
        raise ValueError(f"policy.peft.method is {method!r}: expected one of {', '.join(METHODS)}")
    try:
        import peft
    except ImportError:
        raise ValueError("policy.peft needs peft: pip install 'rlobj[peft]'") from None
    config_class = getattr(peft, METHODS[method])
    known = [field.name for field in dataclasses.fields(config_class)]
    for name in fields:
        if name not in known:
            raise ValueError(
                f"policy.peft has {name!r}, which peft.{METHODS[method]} has not{did_you_mean(name, known)}"
            )
    defaults: dict[str, Any] = {"task_type": "CAUSAL_LM"}
    if method != "ia3":
        defaults["target_modules"] = "all-linear"
    if method == "adalora":
        defaults |= {"total_step": steps, "tinit": steps // 5, "tfinal": steps // 5}
    return config_class(**{**defaults, **fields})


class WithoutAdapter:
    """The base of a policy with an adapter, called like a model: no second copy."""

    def __init__(self, policy: Any) -> None:
        self.policy = policy

    def __call__(self, **inputs: Any) -> Any:
        with self.policy.disable_adapter():
            return self.policy(**inputs)


class RankUpdate(TrainerCallback):
    """Share out AdaLoRA's budget of ranks after each optimiser step, while its gradients are still there."""

    def __init__(self, policy: Any) -> None:
        self.policy = policy

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trained = [p for p in self.policy.parameters() if p.requires_grad]
        if all(p.grad is not None for p in trained):  # none where a step that was not finite was skipped
            # the steps that are taken count from 1, so that total_step is reached
            self.policy.base_model.update_and_allocate(state.global_step + 1)
