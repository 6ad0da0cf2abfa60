"""What the estimators that TRL has not learn from, of the rows of a generation.

Legend: B episodes, T completion tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from rlobj.config import PPOConfig
from rlobj.estimators import above_baseline, generalised_advantages, leave_one_out, whitened


def put_advantages(trainer: Any, rows: Sequence[dict[str, Any]], batch: dict[str, Any]) -> None:
    """Put into TRL's batch what the trainer's estimator learns from.

    Args:
        rows: of the generation, with what the environment paid.
        batch: with TRL's own advantages, those of grpo, (B,).
    """
    accelerator = trainer.accelerator
    if trainer.estimator == "rloo":
        batch["advantages"] = leave_one_out(batch["advantages"], trainer.num_generations)
    elif trainer.estimator == "reinforce":
        returns = torch.tensor([row["episode_return"] for row in rows], device=accelerator.device)
        mean = accelerator.gather(returns).nanmean().item()
        batch["advantages"], trainer.baseline = above_baseline(returns, mean, trainer.baseline)
    elif trainer.estimator == "ppo":
        mask = batch["completion_mask"] * batch.get("tool_mask", 1)
        batch |= advantages_of_critic(rows, mask, trainer.ppo, accelerator.reduce)
        explained = explained_variance(batch["values"], batch["returns"], batch["value_mask"])
        if explained is not None:
            trainer._metrics["train"]["critic/explained_variance"].append(explained)
    elif trainer.estimator == "exact":
        batch["action_returns"] = torch.tensor([row["action_returns"] for row in rows]).to(batch["advantages"])


def advantages_of_critic(
    rows: Sequence[dict[str, Any]], mask: Tensor, settings: PPOConfig, reduce: Callable[[Tensor], Tensor]
) -> dict[str, Tensor]:
    """Advantages, values, returns and the mask of what they hold for, each (B, T).

    Args:
        rows: with token_rewards, token_values and bootstrap of an episode.
        mask: 1 at the policy's tokens, (B, T).
        reduce: adds up over processes.
    """

    def padded(name: str) -> Tensor:
        wide = torch.nn.utils.rnn.pad_sequence(
            [torch.tensor(row[name], device=mask.device) for row in rows], batch_first=True
        )
        return torch.nn.functional.pad(wide, (0, mask.size(1) - wide.size(1)))

    rewards, values = padded("token_rewards"), padded("token_values")
    bootstrap = torch.tensor([row["bootstrap"] for row in rows], device=mask.device)
    scored = rewards.isfinite().all(dim=1, keepdim=True)  # an episode without a reward teaches nothing
    mask = mask * scored
    advantages, returns = generalised_advantages(rewards.nan_to_num(), values, mask, bootstrap, settings)
    if settings.whiten:
        advantages = whitened(advantages, mask, reduce)
    return {"advantages": advantages, "values": values, "returns": returns, "value_mask": mask}


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float | None:
    """Share of the returns' variance that the values, (B, T), tell beforehand; None where the returns have none."""
    spread = returns[mask > 0].var()
    if not spread > 0:
        return None
    left = (returns - values)[mask > 0].var()
    return 1 - (left / spread).item()
