"""Episodes of a vector environment, played by a policy, as token trajectories: alone, or for TRL's trainer.

Replies are kept as the ids that were sampled; only the environment's messages are encoded, when they arrive.

Legend: B episodes, A actions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from itertools import chain
from typing import Any, Protocol, runtime_checkable

import gymnasium
import torch
from gymnasium.envs.registration import load_env_creator
from gymnasium.wrappers import TimeLimit
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from envs.adapters import as_text_env
from envs.core import TextEnv
from envs.patience import Patience
from envs.rewards import Failure, OnError
from envs.vector import NO_PATIENCE, TextVectorEnv
from reward_models.calling import as_reward
from reward_models.trained import as_plain_text
from rlobj.chat_format import ChatFormat, Message
from rlobj.critic import Critic, Judge, Watched, watching
from rlobj.dialogue_play import DialoguePlay
from rlobj.encoder_policy import action_logits, is_one_token_policy
from rlobj.modes import evaluating
from rlobj.reward_watch import RewardWatch, keeping_what_is_trained, told_by
from rlobj.sampling import Sampling, draw
from rlobj.sharding import whole_parameters
from rlobj.trajectories import Rollouts, Trajectory, episode_shares, reply_shares


def episode_prompt(seed: int, messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The prompt column's entry for an episode: its opening messages, which carry the seed that begins it again.

    TRL hands a rollout function nothing but prompts, so a prompt must say which episode it opens.
    """
    return [{"role": m["role"], "content": m["content"], "seed": seed} for m in messages]


def episode_seed(prompt: Sequence[dict[str, Any]]) -> int:
    """The seed of an entry made by `episode_prompt`.

    Raises:
        ValueError: the prompt carries no seed.
    """
    seed = prompt[-1].get("seed") if prompt and isinstance(prompt[-1], dict) else None
    if seed is None:
        raise ValueError(f"prompt {prompt!r} does not say which episode it opens: make it with rlobj.episode_prompt")
    return int(seed)


def factory_of(env: gymnasium.Env[Any, Any]) -> Callable[[], gymnasium.Env[Any, Any]]:
    """A function that makes more environments like `env`, with its time limit and its wrappers, as text environments.

    Raises:
        TypeError: `env` was not made by `gymnasium.make`, is no text environment, or has a wrapper that cannot be made
            again.
    """
    if env.spec is None or not isinstance(as_text_env(env).unwrapped, TextEnv):
        raise TypeError(f"env is {env!r}: expected a rlobj text environment made by gymnasium.make (envs.TextEnv)")
    spec = env.spec
    creator: Any = spec.entry_point if callable(spec.entry_point) else load_env_creator(spec.entry_point or "")
    for each in spec.additional_wrappers:
        if each.kwargs is None:
            raise TypeError(
                f"env is {env!r}: its wrapper {each.name} does not say how it was made; let it inherit from "
                "gymnasium.utils.RecordConstructorArgs too"
            )
    wrappers = [(load_env_creator(each.entry_point), each.kwargs or {}) for each in spec.additional_wrappers]

    def make_env() -> gymnasium.Env[Any, Any]:
        # not gymnasium.make: it copies its arguments deeply, a corpus once for every environment of a batch
        made: Any = creator(**spec.kwargs)
        if spec.max_episode_steps is not None:
            made = TimeLimit(made, spec.max_episode_steps)
        for wrapper, kwargs in wrappers:
            made = wrapper(env=made, **kwargs)
        return as_text_env(made)

    return make_env


@torch.no_grad()
def play(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    environments: TextVectorEnv,
    seeds: Sequence[int],
    sampling: Sampling,
    critic: Critic | None = None,
    context: Mapping[str, Any] | None = None,
) -> Rollouts:
    """Play one episode per seed to its end and score them all in one call of the reward, which is also told the
    `completion_ids` and `context`, as TRL tells its reward functions.

    The policy is left in the mode (train or eval) in which it came; it plays without dropout. A critic reads the values
    off the states that the policy samples from.
    """
    with evaluating(policy), watching(policy) if critic is not None else nullcontext(Watched()) as seen:
        judge = Judge(critic, seen)
        if is_one_token_policy(policy):
            trajectories = _play_labels(policy, tokenizer, environments, seeds, sampling, judge)
        else:
            trajectories = DialoguePlay(policy, ChatFormat(tokenizer), environments, sampling, judge).run(seeds)
    scores = environments.final_scores({"completion_ids": [t.completion_ids for t in trajectories], **(context or {})})
    for trajectory, reward in zip(trajectories, scores.values, strict=True):
        trajectory.rewards[-1] += reward
    return Rollouts(trajectories, environments.episodes, [t.total_reward for t in trajectories], scores.failures)


def returns_of_all_actions(
    environments: TextVectorEnv, seeds: Sequence[int], actions: int
) -> tuple[list[list[float]], list[Failure]]:
    """What each action would have earned in each episode: every episode is played once for each action.

    Args:
        environments: of `len(seeds) * actions` episodes, each of one step.

    Returns: (B, A), NaN where a reward failed or was None; and the failures.
    """
    environments.reset(seed=[seed for seed in seeds for _ in range(actions)])
    results = environments.act({i: i % actions for i in range(len(seeds) * actions)})
    scores = environments.final_scores()
    totals = [results[i].reward + reward for i, reward in enumerate(scores.values)]
    return [totals[i : i + actions] for i in range(0, len(totals), actions)], scores.failures


def _padded(rows: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows of ids as one left-padded tensor and its mask, both (B, longest)."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([[pad_id] * (width - len(row)) + list(row) for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask


def encode_text(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], max_length: int | None) -> list[int]:
    """Ids of an observation for an encoder: the messages' texts, one line each, with the encoder's special tokens; the
    first `max_length` of them unless that is None."""
    text = as_plain_text(tokenizer, "\n".join(message["content"] for message in messages))
    cut: dict[str, Any] = {} if max_length is None else {"truncation": True, "max_length": max_length}
    ids: list[int] = tokenizer(text, verbose=False, **cut)["input_ids"]
    return ids


def _play_labels(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    environments: TextVectorEnv,
    seeds: Sequence[int],
    sampling: Sampling,
    judge: Judge,
) -> list[Trajectory]:
    observations, _ = environments.reset(seed=list(seeds))
    limit = min(sampling.max_length, policy.config.max_position_embeddings)
    trajectories = [Trajectory(encode_text(tokenizer, messages, limit)) for messages in observations]
    ids, mask = _padded([t.prompt_ids for t in trajectories], tokenizer.pad_token_id, policy.device)
    scores = sampling.processors()(ids, action_logits(policy, ids, mask).float())
    chances = torch.rand(len(seeds), dtype=torch.float64).to(scores.device)
    actions, logps = draw(scores, chances)
    values = judge.values(len(trajectories))
    for trajectory, action, logp, value in zip(trajectories, actions.tolist(), logps.tolist(), values, strict=True):
        trajectory.append_policy([action], [logp], [value])
    results = environments.act(dict(enumerate(actions.tolist())))
    for index, result in results.items():
        trajectories[index].rewards[-1] = result.reward
    if not all(result.terminated or result.truncated for result in results.values()):
        raise ValueError("an encoder policy acts once per episode: this environment asked for a second action")
    return trajectories


@runtime_checkable
class LooksAtRollouts(Protocol):
    """A trainer that measures how far the policy has moved, and may take a penalty for it from the rewards (in place);
    TRL's own does not."""

    def look_at(self, rollouts: Rollouts) -> None: ...


class EnvironmentRollout:
    """A `rollout_func` for `trl.GRPOTrainer`: each prompt names an episode, and the environment plays it.

    Args:
        make_env: makes one text environment.
        sampling: how replies are drawn.
        reward: reward of finished episodes, TRL's signature; None for the environment's own.
        on_error: what a failed reward does: "stop", "skip" (no learning from that episode), or a number, the penalty.
        critic: reads values off the policy's states.
        all_actions: of how many actions to bring the returns along, each tried in every episode; 0 for none.
        patience: with environments that raise or hang.

    Raises:
        BadReward: a reward failed, where that stops; or every reward of several rollouts in a row.
    """

    def __init__(
        self,
        make_env: Callable[[], gymnasium.Env[Any, Any]],
        sampling: Sampling,
        reward: Any = None,
        on_error: OnError = "stop",
        critic: Critic | None = None,
        all_actions: int = 0,
        patience: Patience = NO_PATIENCE,
    ) -> None:
        self.make_env, self.sampling, self.reward, self.on_error = make_env, sampling, reward, on_error
        self.critic, self.all_actions, self.patience = critic, all_actions, patience
        self._vectors: dict[int, TextVectorEnv] = {}
        self._watch = RewardWatch(on_error)

    def _environments(self, n: int) -> TextVectorEnv:
        if n not in self._vectors:
            vector = TextVectorEnv(self.make_env, n, self.reward, self.on_error, patience=self.patience)
            if vector.reward is not None:
                vector.reward = as_reward(vector.reward)
            self._vectors[n] = vector
        return self._vectors[n]

    def __call__(self, prompts: list[list[dict[str, Any]]], trainer: Any) -> dict[str, Any]:
        with keeping_what_is_trained(trainer), whole_parameters(trainer):
            return self._play([episode_seed(prompt) for prompt in prompts], trainer)

    def _play(self, seeds: list[int], trainer: Any) -> dict[str, Any]:
        environments, told = self._environments(len(seeds)), told_by(trainer)
        with trainer.accelerator.autocast():
            rollouts = play(
                trainer.model, trainer.processing_class, environments, seeds, self.sampling, self.critic, told
            )
        extra: dict[str, Any] = {}
        returns, failures = rollouts.returns, rollouts.failures
        if self.all_actions:
            different = list(dict.fromkeys(seeds))  # a group shares its episode
            vector = self._environments(len(different) * self.all_actions)
            rows, failed = returns_of_all_actions(vector, different, self.all_actions)
            table = dict(zip(different, rows, strict=True))
            extra["action_returns"] = [table[seed] for seed in seeds]
            returns, failures = [*returns, *chain.from_iterable(rows)], [*failures, *failed]
        if environments.reward is not None:
            self._watch.report(returns, failures, trainer._log_metric)
        if isinstance(trainer, LooksAtRollouts):
            trainer.look_at(rollouts)
        if not is_one_token_policy(trainer.accelerator.unwrap_model(trainer.model)):
            end_id = ChatFormat(trainer.processing_class).end_id
            shares = reply_shares(rollouts.trajectories, end_id) | episode_shares(rollouts.trajectories)
            for name, share in shares.items():
                trainer._log_metric(name, share)
        return {
            **extra,
            "prompt_ids": [t.prompt_ids for t in rollouts.trajectories],
            "completion_ids": [t.completion_ids for t in rollouts.trajectories],
            "env_mask": [t.policy_mask for t in rollouts.trajectories],
            "logprobs": [t.logps for t in rollouts.trajectories],
            "token_rewards": [t.rewards for t in rollouts.trajectories],
            "token_values": [t.values for t in rollouts.trajectories],
            "bootstrap": [t.bootstrap for t in rollouts.trajectories],
            "episode_return": rollouts.returns,
            "episode_columns": [episode.columns for episode in rollouts.episodes],
        }


def episode_return(
    prompts: list[Any],
    completions: list[Any],
    episode_return: list[float],
    episode_columns: list[dict[str, Any]],
    log_metric: Callable[[str, float], None] | None = None,
    **columns: Any,
) -> list[float | None]:
    """The `reward_funcs` entry that goes with `EnvironmentRollout`: the return that the rollout brought along.

    Numeric columns of the episodes (success, turns, …) are logged as `environment/<name>`.
    """
    if log_metric is not None:
        for name in episode_columns[0]:
            # a column may say nothing (None) of some episodes, such as `missed` where there was nothing to miss
            known = [float(c[name]) for c in episode_columns if isinstance(c.get(name), bool | int | float)]
            if known:
                log_metric(f"environment/{name}", sum(known) / len(known))
    return [None if math.isnan(value) else value for value in episode_return]
