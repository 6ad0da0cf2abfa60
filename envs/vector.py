"""Many episodes at once, scored in one call of the reward."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from envs.core import Episode, Message, OnBadReward, Reward, StepResult, TextEnv, resolve_reward, score


class TextVectorEnv:
    """`num_envs` episodes side by side; those that have ended do not wait for the others.

    Not Gymnasium's vector API, whose step needs an action for every environment: here the running ones are stepped.

    Args:
        make_env: makes one environment.
        reward: scores all episodes in one call; None for the reward that the environments were made with, or their own.
        on_bad_reward: what a NaN or infinite reward does; see `envs.core.score_episodes`.
    """

    def __init__(
        self,
        make_env: Callable[[], TextEnv],
        num_envs: int,
        reward: Reward | str | None = None,
        on_bad_reward: OnBadReward = "error",
    ) -> None:
        if num_envs < 1:
            raise ValueError(f"num_envs is {num_envs}: expected at least 1")
        self.envs = [make_env() for _ in range(num_envs)]
        self.reward = resolve_reward(reward) or self.envs[0].reward
        self.on_bad_reward = on_bad_reward

    @property
    def num_envs(self) -> int:
        return len(self.envs)

    def reset(self, seeds: Sequence[int]) -> list[list[Message]]:
        """Begin one episode per seed; the first observations in their order."""
        if len(seeds) != self.num_envs:
            raise ValueError(f"reset got {len(seeds)} seeds for {self.num_envs} environments: expected one each")
        return [env.reset(seed=seed)[0] for env, seed in zip(self.envs, seeds, strict=True)]

    def step(self, actions: Mapping[int, Any]) -> dict[int, StepResult]:
        """Step the environments that `actions` names by index.

        Raises:
            ValueError, ResetNeeded: of one environment, with its index.
        """
        results = {}
        for index, action in actions.items():
            try:
                results[index] = self.envs[index].act(action)
            except Exception as error:
                error.add_note(f"in environment {index} of {self.num_envs}")
                raise
        return results

    def truncate(self, index: int) -> None:
        """End episode `index` for a reason outside of it."""
        self.envs[index].truncate()

    @property
    def episodes(self) -> list[Episode]:
        """The finished episodes, in the order of their seeds."""
        return [env.episode for env in self.envs]

    def final_rewards(self) -> list[float]:
        """The reward of every finished episode, from one call of the reward function."""
        return score(self.reward, self.envs, self.on_bad_reward)
