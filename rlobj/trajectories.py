"""Episodes as tokens.

Legend: T completion tokens of one episode.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Literal

from envs.core import Episode
from envs.rewards import Failure

Limit = Literal["max_length", "max_episode_tokens", "max_turns"]


@dataclass(slots=True)
class Trajectory:
    """One episode as tokens, or what followed when its oldest turns were dropped. The lists over completion tokens have
    equal length."""

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
    replies_cut: int = 0
    """How many replies ran into a limit before they ended."""
    limit: Limit | None = None
    """Which of the sampling's limits cut the episode short."""
    oldest_dropped: int = 0
    """How often the oldest turns were dropped; the trajectory is what was seen and written since the last time."""
    earned_before: float = 0.0
    """What turns earned before that."""

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.completion_ids)

    @property
    def total_reward(self) -> float:
        """The undiscounted return of the whole episode."""
        return self.earned_before + sum(self.rewards)

    def append_policy(self, ids: Sequence[int], logps: Sequence[float], values: Sequence[float]) -> None:
        """A reply, (T,) each."""
        self._append(ids, 1)
        self.logps += logps
        self.values += values

    def append_environment(self, ids: Sequence[int]) -> None:
        """What others say, (T,)."""
        self._append(ids, 0)
        self.logps += [0.0] * len(ids)
        self.values += [0.0] * len(ids)

    def _append(self, ids: Sequence[int], by_policy: int) -> None:
        self.completion_ids += ids
        self.policy_mask += [by_policy] * len(ids)
        self.rewards += [0.0] * len(ids)


@dataclass(frozen=True, slots=True)
class Rollouts:
    """What a batch of episodes gave, in the order of its seeds."""

    trajectories: list[Trajectory]
    episodes: list[Episode]
    returns: list[float]
    """Undiscounted return of each episode, the sum of its rewards; nan where the reward function gave none."""
    failures: list[Failure] = field(default_factory=list)
    """What went wrong with the reward, where that does not stop."""


def reply_shares(trajectories: Sequence[Trajectory], end_id: int) -> dict[str, float]:
    """Of the policy's replies in these episodes, the shares that did not come to their end, and that were nothing else.

    A reply is what stands between others' tokens.
    """
    replies = []
    for t in trajectories:
        pairs = zip(t.completion_ids, t.policy_mask, strict=True)
        replies += [[id for id, _ in run] for wrote, run in groupby(pairs, key=lambda pair: pair[1]) if wrote]
    n = max(len(replies), 1)
    return {
        "replies/truncated": sum(t.replies_cut for t in trajectories) / n,
        "replies/empty": sum(reply == [end_id] for reply in replies) / n,
    }


def episode_shares(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """Of these episodes, the shares whose opening messages lost their beginning, and that ran into each limit.

    `episodes/overflow` counts those that outgrew the context, whether they were cut short or lost their oldest turns.
    """
    n = len(trajectories)
    return {
        "prompts/cut": sum(t.prompt_was_cut for t in trajectories) / n,
        "episodes/overflow": sum(t.limit == "max_length" or t.oldest_dropped > 0 for t in trajectories) / n,
        "episodes/out_of_tokens": sum(t.limit == "max_episode_tokens" for t in trajectories) / n,
        "episodes/out_of_turns": sum(t.limit == "max_turns" for t in trajectories) / n,
    }
