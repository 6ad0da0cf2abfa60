"""Many episodes at once, scored in one call of the reward."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import gymnasium
import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import TimeLimit

from envs.adapters import as_text_env
from envs.core import Episode, Message, StepResult, TextEnv
from envs.patience import Patience, within
from envs.rewards import OnError, Reward, Scores, check_on_error, resolve_reward, score

NO_PATIENCE = Patience()


class TextVectorEnv(SyncVectorEnv):
    """`num_envs` episodes side by side. Those that end together are scored in one call of the reward.

    Two ways to use it. Gymnasium's: `step` takes an action for every environment, and one whose episode has ended is
    reset by the step after (`AutoresetMode.NEXT_STEP`, or by the caller with `AutoresetMode.DISABLED`). The rollout's:
    `act` steps the environments that it names, so that those that have ended do not wait for the others, and
    `final_scores` scores all at the end.

    Args:
        make_env: makes one text environment, or any of Gymnasium's that shows and takes text; wrappers around it are
            kept. A wrapper sees what its turns earn, but not the reward of the whole episode, which is added behind it.
        reward: scores all episodes in one call; None for the reward that the environments were made with, or their own.
        on_error: what a failed reward does, see `envs.rewards.score_episodes`; None as the environments say.
        patience: with environments that raise or hang when they are reset, or when `act` steps them.

    Whatever a reset or step raises names the environment, its episode and its turn.
    """

    def __init__(
        self,
        make_env: Callable[[], gymnasium.Env[Any, Any]],
        num_envs: int,
        reward: Reward | str | None = None,
        on_error: OnError | None = None,
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
        patience: Patience = NO_PATIENCE,
    ) -> None:
        if num_envs < 1:
            raise ValueError(f"num_envs is {num_envs}: expected at least 1")
        if AutoresetMode(autoreset_mode) == AutoresetMode.SAME_STEP:
            raise ValueError(
                "autoreset_mode is SAME_STEP: an episode must outlive the step that ends it, to be scored with the "
                "others; expected NEXT_STEP or DISABLED"
            )
        self.make_env, self.patience = make_env, patience
        super().__init__([self._make] * num_envs, copy=False, autoreset_mode=autoreset_mode)
        self._actions: list[list[Any]] = [[] for _ in self.envs]  # of each episode so far, by `act`
        self._restarts = [0] * num_envs
        self.reward = resolve_reward(reward) or self._inner[0].reward
        self.on_error = self._inner[0].on_error if on_error is None else check_on_error(on_error)

    def _make(self) -> gymnasium.Env[Any, Any]:
        env = as_text_env(self.make_env())
        if not isinstance(env.unwrapped, TextEnv):
            raise TypeError(f"make_env makes {env!r}: expected a text environment (envs.TextEnv)")
        env.unwrapped.scored_by_caller = True
        return env

    @property
    def _inner(self) -> list[TextEnv]:
        return [cast("TextEnv", env.unwrapped) for env in self.envs]

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        self._actions = [[] for _ in self.envs]
        self._restarts = [0] * self.num_envs
        with self._stood_in_for():
            return super().reset(seed=seed, options=options)

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        played = ~self._autoreset_envs  # the others are reset by this step
        with self._stood_in_for():
            observations, rewards, terminations, truncations, infos = super().step(actions)
        ended = [int(i) for i in np.flatnonzero(played & (terminations | truncations))]
        for i in ended:
            self.truncate(i)  # a wrapper may have ended it
        rewards[ended] += score(self.reward, [self._inner[i] for i in ended], self.on_error).values if ended else []
        return observations, rewards, terminations, truncations, infos

    @contextmanager
    def _stood_in_for(self) -> Iterator[None]:
        """While Gymnasium resets or steps the environments, let it reach them through what names them in errors."""
        envs = self.envs
        self.envs = [cast("gymnasium.Env[Any, Any]", _StandIn(self, envs, index)) for index in range(self.num_envs)]
        try:
            yield
        finally:
            self.envs = envs

    def _reset_patiently(
        self, envs: list[gymnasium.Env[Any, Any]], index: int, seed: int | None, options: dict[str, Any] | None
    ) -> tuple[Any, dict[str, Any]]:
        while True:
            try:
                return within(
                    self.patience.step_timeout, lambda: envs[index].reset(seed=seed, options=options), "a reset"
                )
            except Exception as error:
                if self._restarts[index] == self.patience.restarts:
                    error.add_note(f"{self._where(index, seed)}, at its reset{self._tried(index)}")
                    raise
                self._restarts[index] += 1
                envs[index] = self._make()

    def _where(self, index: int, seed: int | None) -> str:
        episode = "an episode without a seed" if seed is None else f"episode {seed}"
        return f"in environment {index} of {self.num_envs}: {episode}"

    def _tried(self, index: int) -> str:
        return f", begun again {self._restarts[index]} times" if self.patience.restarts else ""

    def act(self, actions: Mapping[int, Any]) -> dict[int, StepResult]:
        """Step the environments that `actions` names by index, each without the reward of its whole episode.

        Raises:
            TimeoutError: a step took longer than the patience's `step_timeout`.
            Exception: whatever a step raised. Both name the environment, its episode and its turn, once the patience's
                `restarts` are used up.
        """
        return {index: self._act_patiently(index, action) for index, action in actions.items()}

    def _act_patiently(self, index: int, action: Any) -> StepResult:
        known, seed, again = list(self._inner[index]._messages), self._inner[index]._seed, False
        while True:
            try:
                if again:
                    within(self.patience.step_timeout, lambda: self._begin_again(index, seed, known))
                result = within(self.patience.step_timeout, lambda: self._act(index, action))
            except Exception as error:
                if self._restarts[index] == self.patience.restarts or isinstance(error, ResetNeeded):
                    turn = len(self._actions[index]) + 1
                    error.add_note(f"{self._where(index, seed)}, turn {turn}{self._tried(index)}")
                    raise
                self._restarts[index] += 1
                again = True
            else:
                self._actions[index].append(action)
                return result

    def _begin_again(self, index: int, seed: int, known: list[Message]) -> None:
        """Play the episode of an environment up to here in a new one.

        Args:
            known: the episode's messages so far.

        Raises:
            ValueError: it is another episode there.
        """
        env = self._make()
        self._env_obs[index], _ = env.reset(seed=seed)
        self.envs[index] = env
        for action in self._actions[index]:
            self._act(index, action)
        if self._inner[index]._messages != known:
            raise ValueError(
                f"episode {seed} was another when it was begun again: expected the seed and what the policy says to "
                "decide it; set restarts to 0"
            )

    def _act(self, index: int, action: Any) -> StepResult:
        env, inner = self.envs[index], self._inner[index]
        if env is inner:
            return inner.act(action)
        before: list[Message] = list(self._env_obs[index])  # type: ignore[call-overload]
        observation, reward, terminated, truncated, info = env.step(action)
        if observation[: len(before)] != before:
            raise ValueError(
                f"a wrapper of {env} changes messages that the policy has seen: expected messages to be added alone"
            )
        if self.envs[index] is env:  # or the step was late, and another has taken its place
            self._env_obs[index] = observation
        if terminated or truncated:
            inner.truncate()
        return StepResult(observation[len(before) + 1 :], terminated, truncated, info, float(reward))

    def truncate(self, index: int) -> None:
        """End episode `index` for a reason outside of it."""
        self._inner[index].truncate()

    @property
    def episodes(self) -> list[Episode]:
        """The finished episodes, in the order of their seeds."""
        return [env.episode for env in self._inner]

    def final_scores(self, columns: Mapping[str, Any] | None = None) -> Scores:
        """The reward of every finished episode beyond that of its turns, from one call of the reward function.

        Args:
            columns: what else to call it with, such as `completion_ids`.
        """
        return score(self.reward, self._inner, self.on_error, columns)


class _StandIn:
    """One environment of a vector, as far as Gymnasium's vector calls it."""

    def __init__(self, vector: TextVectorEnv, envs: list[gymnasium.Env[Any, Any]], index: int) -> None:
        self.vector, self.envs, self.index = vector, envs, index

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return self.vector._reset_patiently(self.envs, self.index, seed, options)

    def step(self, action: Any) -> Any:
        try:
            return self.envs[self.index].step(action)
        except Exception as error:
            env = cast("TextEnv", self.envs[self.index].unwrapped)
            error.add_note(f"{self.vector._where(self.index, env._seed)}, a step")
            raise


def vector_entry_point(env_class: type[TextEnv]) -> Callable[..., TextVectorEnv]:
    """What `gymnasium.make_vec` calls to make many environments of one kind."""

    def make_vec(num_envs: int, max_episode_steps: int | None = None, **kwargs: Any) -> TextVectorEnv:
        def make_env() -> gymnasium.Env[Any, Any]:
            env = env_class(**kwargs)
            return env if max_episode_steps is None else TimeLimit(env, max_episode_steps)

        return TextVectorEnv(make_env, num_envs)

    return make_vec
