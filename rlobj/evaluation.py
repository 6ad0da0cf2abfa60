"""A policy on episodes never trained on: success, return, turns, ℓ, and KL to the warm start, each with an interval.

Legend: E evaluation episodes, B episodes in one batch, V vocabulary (or labels).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import gymnasium
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from envs.core import Episode
from envs.patience import Patience
from envs.rewards import OnError
from envs.vector import NO_PATIENCE, TextVectorEnv
from reward_models.calling import as_reward
from rlobj.encoder_policy import action_logits, is_one_token_policy
from rlobj.intervals import Interval, bootstrap_mean, wilson
from rlobj.long_prompts import fitting_seeds
from rlobj.rollout import play
from rlobj.sampling import Sampling
from rlobj.supervised import SupervisedRow, supervised_losses
from rlobj.trajectories import Rollouts, Trajectory

COLUMNS = ("success", "inform", "turns", "classic_return")
"""Columns of an episode that are metrics, where the environment has them."""
SHARES = ("success", "inform", "accuracy", "handed_over", "missed")
"""Metrics whose value in an episode is 0 or 1."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a policy did on the evaluation episodes."""

    metrics: dict[str, Interval]
    """Those of COLUMNS, accuracy, greedy_return, handed_over, missed, return, ell and kl, as far as environment and
    data give them."""
    per_episode: dict[str, list[float]]
    """The values behind the intervals, in the order of the episodes (ell: of the held-out rows)."""
    episodes: list[Episode]
    extra: dict[str, list[Any]]
    """What the reward told of each episode (TRL's `log_extra`): the parts of a composition."""


def evaluate(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    make_env: Callable[[], gymnasium.Env[Any, Any]],
    reward: Any,
    sampling: Sampling,
    seeds: Sequence[int],
    rows: Sequence[SupervisedRow],
    reference: PreTrainedModel | None,
    *,
    batch_size: int = 64,
    sampling_seed: int = 0,
    on_error: OnError = "stop",
    patience: Patience = NO_PATIENCE,
    on_progress: Callable[[int], None] = lambda done: None,
) -> Evaluation:
    """Play every seed once, sampling as in training, and measure; without those that `sampling.long_prompts` drops.

    Args:
        rows: held-out labelled rows for ℓ; none leaves it out.
        reference: the warm start for KL(π ‖ π_ref); None leaves it out.
        on_error: what a failed reward does, as in training.
        patience: with environments that raise or hang.
        on_progress: called with the number of episodes played so far.
    """
    seeds = fitting_seeds(make_env, seeds, policy, tokenizer, sampling)
    values: dict[str, list[float]] = {"return": []}
    kl: list[float] = []
    episodes: list[Episode] = []
    extra: dict[str, list[Any]] = {}
    told = {"log_extra": lambda column, values: extra.setdefault(column, []).extend(values)}

    def environments(n: int) -> TextVectorEnv:
        return TextVectorEnv(make_env, n, None if reward is None else as_reward(reward), on_error, patience=patience)

    # in its own random state: evaluation must not move the one that training goes on with
    with torch.random.fork_rng():
        torch.manual_seed(sampling_seed)
        for chunk, rollouts in _play_all(policy, tokenizer, environments, sampling, seeds, batch_size, told):
            episodes += rollouts.episodes
            values["return"] += rollouts.returns
            for episode in rollouts.episodes:
                for name in COLUMNS:
                    if name in episode.columns:
                        values.setdefault(name, []).append(float(episode.columns[name]))
            if reference is not None:
                kl += sequence_kl(policy, reference, rollouts.trajectories)
            on_progress(chunk)
        if is_one_token_policy(policy):  # what a classifier is usually judged by: its most probable label
            most_probable = replace(sampling, top_k=1)
            for _, rollouts in _play_all(policy, tokenizer, environments, most_probable, seeds, batch_size):
                _judge_choices(rollouts, values)
    values["kl"] = kl
    values["ell"] = supervised_losses(policy, rows) if rows else []
    per_episode = {name: value for name, value in values.items() if value}
    metrics = {name: _interval(name, value) for name, value in per_episode.items()}
    whole = {column: v for column, v in extra.items() if len(v) == len(episodes)}  # others were cut by a failure
    return Evaluation(metrics, per_episode, episodes, whole)


def _judge_choices(rollouts: Rollouts, values: dict[str, list[float]]) -> None:
    """Add what the most probable choices led to: accuracy over the episodes that were not handed over, the return,
    and the shares of episodes handed over and of critical ones missed, where the environment has such. Where success is
    left to chance, as a click is, the right choice is the `best` one."""
    values.setdefault("greedy_return", []).extend(rollouts.returns)
    for episode in rollouts.episodes:
        columns = episode.columns
        right = columns.get("best", columns.get("success"))
        if right is not None and not columns.get("handed_over"):
            values.setdefault("accuracy", []).append(float(right))
        for name in ("handed_over", "missed"):
            if columns.get(name) is not None:
                values.setdefault(name, []).append(float(columns[name]))


def _play_all(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    environments: Callable[[int], TextVectorEnv],
    sampling: Sampling,
    seeds: Sequence[int],
    batch_size: int,
    told: Mapping[str, Any] | None = None,
) -> Iterator[tuple[int, Rollouts]]:
    for start in range(0, len(seeds), batch_size):
        chunk = seeds[start : start + batch_size]
        yield start + len(chunk), play(policy, tokenizer, environments(len(chunk)), chunk, sampling, context=told)


def _interval(name: str, values: list[float]) -> Interval:
    if name in SHARES:  # 0 or 1 each: Wilson's interval holds at the edges, where a bootstrap has no width
        low, high = wilson(int(sum(values)), len(values))
        return (sum(values) / len(values), low, high)
    return bootstrap_mean([v for v in values if not math.isnan(v)])


@torch.no_grad()
def sequence_kl(
    policy: PreTrainedModel, reference: Callable[..., Any], trajectories: Sequence[Trajectory]
) -> list[float]:
    """KL(π ‖ π_ref) along each trajectory, in nats per episode: at every place where the policy spoke, the exact
    divergence over the whole vocabulary, summed (unbiased, and of less variance than the log-ratio of samples).
    """
    if is_one_token_policy(policy):
        width = max(len(t.prompt_ids) for t in trajectories)
        ids = torch.tensor([t.prompt_ids + [0] * (width - len(t.prompt_ids)) for t in trajectories])
        mask = torch.tensor([[1] * len(t.prompt_ids) + [0] * (width - len(t.prompt_ids)) for t in trajectories])
        both = [action_logits(m, ids.to(policy.device), mask.to(policy.device)) for m in (policy, reference)]
        return categorical_kl(both[0], both[1]).tolist()
    result: list[float] = []
    for start in range(0, len(trajectories), 16):
        result += _causal_kl(policy, reference, trajectories[start : start + 16])
    return result


def _causal_kl(
    policy: PreTrainedModel, reference: Callable[..., Any], trajectories: Sequence[Trajectory]
) -> list[float]:
    width = max(len(t) for t in trajectories)
    ids = torch.zeros(len(trajectories), width, dtype=torch.long, device=policy.device)
    mask, spoke = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
    for row, t in enumerate(trajectories):
        ids[row, : len(t)] = torch.tensor(t.prompt_ids + t.completion_ids)
        mask[row, : len(t)] = 1
        spoke[row, len(t.prompt_ids) : len(t)] = torch.tensor(t.policy_mask).bool()
    logits, ref_logits = (m(input_ids=ids, attention_mask=mask).logits[:, :-1] for m in (policy, reference))
    return (categorical_kl(logits, ref_logits) * spoke[:, 1:]).sum(1).tolist()


def categorical_kl(logits: Tensor, ref_logits: Tensor) -> Tensor:
    """KL(π ‖ π_ref) of categorical distributions over the last axis, in nats: (…, V) → (…,)."""
    logps, ref_logps = logits.float().log_softmax(-1), ref_logits.float().log_softmax(-1)
    return (logps.exp() * (logps - ref_logps)).sum(-1)
