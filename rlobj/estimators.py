"""Estimators of ∇R: what a token's log-probability is multiplied with.

    ∇R ≈ Σ_t A_t · ∇ log π(token_t)          sampled; A is the advantage
    ∇R = Σ_a r(x, a) · ∇π(a | x)              exact, where the actions can be listed

`grpo` is TRL's own: returns against their group's mean, scaled as `scale_rewards` says. `rloo` compares with the mean
of the group's others (Kool et al. 2019; Ahmadian et al. 2024), `reinforce` with a moving mean of past returns (Williams
1992), `ppo` with a learned critic by generalised advantage estimation (Schulman et al. 2016). All pass through TRL's
clipped surrogate and its loss types.

Legend: B episodes, T completion tokens, G episodes of a group, A actions.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from rlobj.config import PPOConfig

BASELINE_DECAY = 0.9
"""Of the moving mean of `reinforce`, per generation."""


def generalised_advantages(
    rewards: Tensor, values: Tensor, mask: Tensor, bootstrap: Tensor, settings: PPOConfig
) -> tuple[Tensor, Tensor]:
    """GAE (Schulman et al. 2016, equation 16) over the policy's tokens; the environment's in between are passed over.

        δ_t = r_t + γ V_{t+1} − V_t,      A_t = δ_t + γ λ_GAE A_{t+1}

    With credit by turn, γ and λ_GAE are 1 between two tokens of the same turn.

    Args:
        rewards: what each token earned, (B, T).
        values: V before each token, (B, T).
        mask: 1 at the policy's tokens, (B, T).
        bootstrap: V behind the last token, (B,): 0 where the episode ended, the critic's value where it was cut short.

    Returns:
        advantages and returns (what V should have been), both (B, T), 0 at tokens that are not the policy's.
    """
    advantages = torch.zeros_like(rewards)
    next_value, next_advantage = bootstrap, torch.zeros_like(bootstrap)
    turn_ends = torch.ones_like(bootstrap)
    for t in reversed(range(rewards.size(1))):
        decays = turn_ends if settings.credit == "turn" else torch.ones_like(turn_ends)
        gamma = 1 + decays * (settings.gamma - 1)
        gae_lambda = 1 + decays * (settings.gae_lambda - 1)
        advantage = rewards[:, t] + gamma * (next_value + gae_lambda * next_advantage) - values[:, t]
        written = mask[:, t] > 0
        advantages[:, t] = torch.where(written, advantage, 0)
        next_value = torch.where(written, values[:, t], next_value)
        next_advantage = torch.where(written, advantage, next_advantage)
        turn_ends = 1 - written.to(turn_ends)
    return advantages, (advantages + values) * (mask > 0)


def leave_one_out(centred: Tensor, group_size: int) -> Tensor:
    """Returns less the mean of the group's others, from returns less the mean of the whole group, (B,)."""
    return centred * (group_size / (group_size - 1))


def above_baseline(returns: Tensor, mean: float, baseline: float | None) -> tuple[Tensor, float | None]:
    """Returns less the moving mean of earlier generations, (B,), 0 where an episode has no return; and that mean with
    this generation in it.

    Args:
        returns: (B,), NaN where an episode has none.
        mean: of this generation, over all processes.
        baseline: the moving mean; None before the first generation, which is compared with its own.
    """
    before = mean if baseline is None else baseline
    # a generation in which nothing has a return says nothing of the mean
    after = before + (1 - BASELINE_DECAY) * (mean - before) if math.isfinite(mean) else baseline
    return torch.nan_to_num(returns - before, nan=0.0), after


def whitened(advantages: Tensor, mask: Tensor, reduce: Callable[[Tensor], Tensor] = lambda sums: sums) -> Tensor:
    """Advantages with mean 0 and standard deviation 1 over masked tokens, (B, T); `reduce` adds up over processes."""
    kept = advantages[mask > 0].double()
    total, squares, count = reduce(torch.stack([kept.sum(), kept.square().sum(), torch.tensor(float(len(kept)))]))
    mean = total / count
    deviation = (squares / count - mean.square()).clamp(min=0).sqrt()
    scaled: Tensor = (advantages - mean) / (deviation + 1e-8)
    return scaled.to(advantages.dtype) * (mask > 0)


def value_loss(values: Tensor, before: Tensor, returns: Tensor, mask: Tensor, clip: float) -> Tensor:
    """Sum over the policy's tokens of half the squared error, clipped as in PPO (Schulman et al. 2017): the worse of
    that of the value, and that of the value held within `clip` of what it was `before`. All (B, T); returns ().
    """
    error = (values - returns).square()
    if clip > 0:
        held = before + (values - before).clamp(-clip, clip)
        error = torch.maximum(error, (held - returns).square())
    return 0.5 * (error * mask).sum()


def expected_return(logits: Tensor, action_returns: Tensor) -> Tensor:
    """R = mean over episodes of Σ_a π(a | x) r(x, a), with its exact gradient.

    Args:
        logits: (B, A).
        action_returns: return of each action in each episode, (B, A); an episode in which one is NaN teaches nothing.
    """
    known = action_returns.isfinite().all(dim=-1, keepdim=True)
    return (logits.float().softmax(dim=-1) * action_returns.where(known, 0)).sum(dim=-1).mean()
