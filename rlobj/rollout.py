"""Episodes of a vector environment, played by a policy, as token trajectories.

The key-value cache lives on between turns: every token passes through the policy once. Replies are kept as the ids
that were sampled; only the environment's messages are encoded, when they arrive.

Legend: B episodes still running, T tokens in the cache, V vocabulary.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Protocol, runtime_checkable

import gymnasium
import torch
from gymnasium.envs.registration import load_env_creator
from gymnasium.wrappers import TimeLimit
from torch import Tensor
from transformers import DynamicCache, LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from envs.adapters import as_text_env
from envs.core import Episode, TextEnv
from envs.rewards import Failure, OnError
from envs.vector import TextVectorEnv
from reward_models.calling import as_reward
from reward_models.trained import as_plain_text
from rlobj.alarms import reply_shares
from rlobj.chat_format import ChatFormat, Message
from rlobj.critic import Critic, Watched, watching
from rlobj.encoder_policy import action_logits, is_one_token_policy
from rlobj.reward_watch import RewardWatch, keeping_what_is_trained, told_by
from rlobj.sharding import whole_parameters


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a reply is drawn from the policy."""

    max_reply_tokens: int = 64
    """Longest reply, in tokens, its end token included. A longer one is cut there."""
    max_length: int = 512
    """Longest dialogue, in tokens. An episode that would grow past it is cut short (truncated, not terminated); opening
    messages that leave no room for a reply of `max_reply_tokens` keep their end, as labelled dialogues do."""
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float | None = None

    def warpers(self) -> LogitsProcessorList:
        """The library's own logits warpers, in the order of `generate`."""
        warpers = LogitsProcessorList()
        if self.temperature != 1.0:
            warpers.append(TemperatureLogitsWarper(self.temperature))
        if self.top_k:
            warpers.append(TopKLogitsWarper(self.top_k))
        if self.top_p < 1.0:
            warpers.append(TopPLogitsWarper(self.top_p))
        if self.min_p is not None:
            warpers.append(MinPLogitsWarper(self.min_p))
        return warpers


@dataclass(slots=True)
class Trajectory:
    """One episode as tokens. The four lists over completion tokens have equal length."""

    prompt_ids: list[int]
    completion_ids: list[int] = field(default_factory=list)
    policy_mask: list[int] = field(default_factory=list)
    """1 where the policy wrote the token, 0 where the environment did."""
    logps: list[float] = field(default_factory=list)
    """log π(token) when it was sampled; 0.0 at environment tokens."""
    rewards: list[float] = field(default_factory=list)
    """What was earned by each token: a turn's reward at the turn's last token, the episode's at the last of all."""
    values: list[float] = field(default_factory=list)
    """The critic's value before each token; 0.0 at environment tokens, and where there is no critic."""
    bootstrap: float = 0.0
    """The critic's value behind the last token of an episode that was cut short; 0.0 where it ended."""
    prompt_was_cut: bool = False
    """Whether the opening messages were too long, and lost their beginning."""

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.completion_ids)

    def append_policy(self, token: int, logp: float, value: float = 0.0) -> None:
        self.completion_ids.append(token)
        self.policy_mask.append(1)
        self.logps.append(logp)
        self.rewards.append(0.0)
        self.values.append(value)

    def append_environment(self, ids: Sequence[int]) -> None:
        self.completion_ids += ids
        self.policy_mask += [0] * len(ids)
        self.logps += [0.0] * len(ids)
        self.rewards += [0.0] * len(ids)
        self.values += [0.0] * len(ids)


@dataclass(frozen=True, slots=True)
class Rollouts:
    """What a batch of episodes gave, in the order of its seeds."""

    trajectories: list[Trajectory]
    episodes: list[Episode]
    returns: list[float]
    """Undiscounted return of each episode, the sum of its rewards; nan where the reward function gave none."""
    failures: list[Failure] = field(default_factory=list)
    """What went wrong with the reward, where that does not stop."""


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
    was_training = policy.training
    policy.eval()
    try:
        with watching(policy) if critic is not None else nullcontext(Watched()) as seen:
            judge = _Judge(critic, seen)
            if is_one_token_policy(policy):
                trajectories = _play_labels(policy, tokenizer, environments, seeds, sampling, judge)
            else:
                trajectories = _CausalPlay(policy, ChatFormat(tokenizer), environments, sampling, judge).run(seeds)
    finally:
        policy.train(was_training)
    scores = environments.final_scores({"completion_ids": [t.completion_ids for t in trajectories], **(context or {})})
    for trajectory, reward in zip(trajectories, scores.values, strict=True):
        trajectory.rewards[-1] += reward
    return Rollouts(trajectories, environments.episodes, [sum(t.rewards) for t in trajectories], scores.failures)


@dataclass(frozen=True, slots=True)
class _Judge:
    """A critic, if there is one, on the states of the policy's latest forward pass."""

    critic: Critic | None
    seen: Watched

    def values(self, rows: int) -> list[float]:
        """Value of the last state of each row."""
        if self.critic is None:
            return [0.0] * rows
        values: list[float] = self.critic(self.seen.states[:, -1].float()).tolist()
        return values


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


def _sample(logits: Tensor, warpers: LogitsProcessorList) -> tuple[Tensor, Tensor]:
    """Draw one token per row of logits (B, V); return ids (B,) and their log-probabilities (B,)."""
    logps = torch.log_softmax(warpers(torch.empty(0, dtype=torch.long), logits.float()), dim=-1)
    ids = torch.multinomial(logps.exp(), 1)
    return ids.squeeze(1), logps.gather(1, ids).squeeze(1)


def _padded(rows: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows of ids as one left-padded tensor and its mask, both (B, longest)."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([[pad_id] * (width - len(row)) + list(row) for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask


def encode_text(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], max_length: int) -> list[int]:
    """Ids of an observation for an encoder: the messages' texts, one line each, with the encoder's special tokens."""
    text = as_plain_text(tokenizer, "\n".join(message["content"] for message in messages))
    ids: list[int] = tokenizer(text, truncation=True, max_length=max_length)["input_ids"]
    return ids


def _play_labels(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    environments: TextVectorEnv,
    seeds: Sequence[int],
    sampling: Sampling,
    judge: _Judge,
) -> list[Trajectory]:
    observations, _ = environments.reset(seed=list(seeds))
    limit = min(sampling.max_length, policy.config.max_position_embeddings)
    trajectories = [Trajectory(encode_text(tokenizer, messages, limit)) for messages in observations]
    ids, mask = _padded([t.prompt_ids for t in trajectories], tokenizer.pad_token_id, policy.device)
    actions, logps = _sample(action_logits(policy, ids, mask), sampling.warpers())
    values = judge.values(len(trajectories))
    for trajectory, action, logp, value in zip(trajectories, actions.tolist(), logps.tolist(), values, strict=True):
        trajectory.append_policy(action, logp, value)
    results = environments.act(dict(enumerate(actions.tolist())))
    for index, result in results.items():
        trajectories[index].rewards[-1] = result.reward
    if not all(result.terminated or result.truncated for result in results.values()):
        raise ValueError("an encoder policy acts once per episode: this environment asked for a second action")
    return trajectories


class _CausalPlay:
    """The state of one batch of dialogues: the cache and who is still talking."""

    def __init__(
        self,
        policy: PreTrainedModel,
        chat: ChatFormat,
        environments: TextVectorEnv,
        sampling: Sampling,
        judge: _Judge,
    ) -> None:
        self.policy, self.chat, self.environments, self.sampling = policy, chat, environments, sampling
        self.judge = judge
        self.pad_id: int = chat.tokenizer.pad_token_id
        self.warpers = sampling.warpers()
        self.cache = DynamicCache(config=policy.config)
        self.mask = torch.zeros(0, 0, dtype=torch.long, device=policy.device)  # (B, T): 1 where a row has a token

    def run(self, seeds: Sequence[int]) -> list[Trajectory]:
        observations, _ = self.environments.reset(seed=list(seeds))
        trajectories = [self._opening(messages) for messages in observations]
        self.mask = torch.zeros(len(seeds), 0, dtype=torch.long, device=self.policy.device)
        running = list(range(len(seeds)))
        incoming: list[list[int]] = [list(t.prompt_ids) for t in trajectories]
        while running:
            replies = self._reply([trajectories[i] for i in running], incoming)
            results = self.environments.act(dict(zip(running, replies, strict=True)))
            keep: list[int] = []
            incoming = []
            cut_short: dict[int, list[int]] = {}
            for row, i in enumerate(running):
                result = results[i]
                trajectories[i].rewards[-1] = result.reward
                if result.terminated:
                    continue
                ids = self._answer(trajectories[i], result.new_messages)
                full = len(trajectories[i]) + len(ids) + 1 >= self.sampling.max_length
                if full or result.truncated:
                    cut_short[row] = [trajectories[i].completion_ids[-1], *([] if full else ids)]
                    if not result.truncated:
                        self.environments.truncate(i)
                    continue
                trajectories[i].append_environment(ids)
                keep.append(row)
                # a cut reply's closing token and the last sampled one have not been through the policy yet
                incoming.append([trajectories[i].completion_ids[-len(ids) - 1], *ids])
            if cut_short and self.judge.critic is not None:
                for row, value in zip(cut_short, self._values_behind(cut_short), strict=True):
                    trajectories[running[row]].bootstrap = value
            self._keep(keep)
            running = [running[row] for row in keep]
        return trajectories

    def _opening(self, messages: Sequence[Message]) -> Trajectory:
        ids = self.chat.prompt_ids(messages)
        room = max(self.sampling.max_length - self.sampling.max_reply_tokens, 1)
        return Trajectory(ids[-room:], prompt_was_cut=len(ids) > room)

    def _answer(self, trajectory: Trajectory, messages: Sequence[Message]) -> list[int]:
        """What the environment appends; it also closes a reply that was cut before its end token."""
        cut = trajectory.completion_ids[-1] != self.chat.end_id
        return [*([self.chat.end_id] if cut else []), *self.chat.continuation_ids(messages)]

    def _keep(self, rows: list[int]) -> None:
        if rows and len(rows) < self.mask.size(0):
            index = torch.tensor(rows, device=self.mask.device)
            self.cache.batch_select_indices(index)
            self.mask = self.mask[index]

    def _values_behind(self, rows: dict[int, list[int]]) -> list[float]:
        """The critic's values once rows have read the ids that are given for each; the cache stays as it was."""
        kept = self.cache, self.mask
        self.cache = copy.deepcopy(self.cache)
        self._keep(list(rows))
        self._forward(*_padded(list(rows.values()), self.pad_id, self.policy.device))
        self.cache, self.mask = kept
        return self.judge.values(len(rows))

    def _forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Append (B, S) tokens to the cache; logits after the last of them, (B, V)."""
        positions = (self.mask.sum(1, keepdim=True) + mask.cumsum(1) - 1).clamp(min=0)
        self.mask = torch.cat([self.mask, mask], dim=1)
        output = self.policy(
            input_ids=ids,
            attention_mask=self.mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1]

    def _reply(self, trajectories: list[Trajectory], incoming: list[list[int]]) -> list[str]:
        """Sample one reply for every row; each row's tokens go onto its trajectory."""
        starts = [len(t.completion_ids) for t in trajectories]
        room = [min(self.sampling.max_reply_tokens, self.sampling.max_length - len(t)) for t in trajectories]
        logits = self._forward(*_padded(incoming, self.pad_id, self.policy.device))
        open_rows = [True] * len(trajectories)
        for step in range(max(room)):
            ids, logps = _sample(logits, self.warpers)
            values = self.judge.values(len(trajectories))
            for row, (token, logp) in enumerate(zip(ids.tolist(), logps.tolist(), strict=True)):
                if open_rows[row]:
                    trajectories[row].append_policy(token, logp, values[row])
                    open_rows[row] = token != self.chat.end_id and step + 1 < room[row]
            if not any(open_rows):
                break
            # closed rows wait behind a masked pad; the last token of a reply goes in with what answers it
            alive = torch.tensor([[int(is_open)] for is_open in open_rows], device=ids.device)
            logits = self._forward(torch.where(alive.bool(), ids[:, None], self.pad_id), alive)
        return [self.chat.decode(t.completion_ids[s:]) for t, s in zip(trajectories, starts, strict=True)]


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
    ) -> None:
        self.make_env, self.sampling, self.reward, self.on_error = make_env, sampling, reward, on_error
        self.critic, self.all_actions = critic, all_actions
        self._vectors: dict[int, TextVectorEnv] = {}
        self._watch = RewardWatch(on_error)

    def _environments(self, n: int) -> TextVectorEnv:
        if n not in self._vectors:
            vector = TextVectorEnv(self.make_env, n, self.reward, self.on_error)
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
        cut = sum(t.prompt_was_cut for t in rollouts.trajectories)
        if cut:
            trainer._log_metric("prompts/cut", cut / len(seeds))
        if not is_one_token_policy(trainer.accelerator.unwrap_model(trainer.model)):
            end_id = ChatFormat(trainer.processing_class).end_id
            ids, masks = zip(*((t.completion_ids, t.policy_mask) for t in rollouts.trajectories), strict=True)
            for name, share in reply_shares(ids, masks, end_id).items():
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
