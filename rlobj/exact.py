"""The exact R of a policy whose actions can be listed, with what stands beside it: entropy bonus and KL penalty."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rlobj.encoder_policy import action_logits
from rlobj.estimators import expected_return
from rlobj.evaluation import categorical_kl


def exact_return(trainer: Any, model: Any, inputs: dict[str, Any]) -> Tensor:
    """A micro-batch's share of R, (), for TRL's fields temperature, entropy_coef and beta; entropy and KL are logged.

    Args:
        inputs: the prompts, and action_returns: the return of each action in each episode.
    """
    metrics, accelerator = trainer._metrics["train"], trainer.accelerator
    prompts = inputs["prompt_ids"], inputs["prompt_mask"]
    with accelerator.autocast():
        logits = action_logits(model, *prompts)
    warped = logits.float() / trainer.temperature
    entropy = torch.distributions.Categorical(logits=warped).entropy().mean()
    metrics["entropy"].append(entropy.item())
    R = expected_return(warped, inputs["action_returns"])
    if trainer.entropy_coef != 0:
        R = R + trainer.entropy_coef * entropy
    if trainer.beta != 0:
        with torch.no_grad():
            reference = action_logits(trainer.ref_model, *prompts)
        kl = categorical_kl(warped, reference / trainer.temperature).mean()
        metrics["kl"].append(accelerator.reduce(kl.detach(), reduction="mean").item())
        R = R - trainer.beta * kl
    parts = trainer.current_gradient_accumulation_steps if trainer.model.training else 1
    return R / parts
