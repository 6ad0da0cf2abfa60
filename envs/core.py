"""`TextEnv`: what every text environment here is."""

from __future__ import annotations

import math
import random
import sys
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from unicodedata import category

import gymnasium
from gymnasium.error import ResetNeeded

from envs.rewards import OnError, Reward, check_on_error, resolve_reward, score
from envs.spaces import ROLES, Chat

Message = dict[str, str]

FIRST_HELD_OUT_SEED = 1_000_000
"""Seeds from here on are for evaluation: an environment that makes up its episodes keeps their goals apart."""


@dataclass(frozen=True, slots=True)
class Episode:
    """What a reward function sees of one finished episode."""

    seed: int
    prompt: list[Message]
    """The first observation."""
    completion: list[Message]
    """Everything after it: the policy's messages and the environment's answers."""
    columns: dict[str, Any]
    """What else is known of the episode, by name, such as success or label."""


class StepResult(NamedTuple):
    """What one action led to, before any reward."""

    new_messages: list[Message]
    """What the environment appended after the policy's own message."""
    terminated: bool
    truncated: bool
    info: dict[str, Any]
    reward: float = 0.0
    """What this turn earned; the episode's reward is added at its end."""


class TextEnv(gymnasium.Env[list[Message], Any]):
    """A Gymnasium environment whose observation is the whole conversation so far.

    Reward falls where the environment says: each turn may earn some (`StepResult.reward`), and at the end the whole
    episode earns that of the injected reward function, or the environment's own measure (`own_reward`).
    The seed given to `reset` decides the whole episode, apart from the actions; without one, it is drawn from
    `np_random`.

    What `_begin`, `_reply` and `_columns` return is checked and copied: an environment may use its dictionaries again,
    and what cannot be taken is a TypeError or ValueError that names the environment, the episode and the turn.

    Subclasses set `action_space` and write `_begin`, `_reply`, `_columns` and `own_reward`.

    Args:
        reward: reward function, or its "module:name"; None for the environment's own measure.
        on_error: what a failed reward does: "stop", "skip" (the reward is NaN), or a number, the penalty.
        render_mode: "ansi" (`render` returns the conversation), "human" (every message is printed), or None.
    """

    metadata = {"render_modes": ["ansi", "human"], "render_fps": 1}  # noqa: RUF012  (Gymnasium's own declaration)

    def __init__(
        self,
        reward: Reward | str | None = None,
        on_error: OnError = "stop",
        render_mode: str | None = None,
    ) -> None:
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f"render_mode is {render_mode!r}: expected 'ansi', 'human' or None")
        self.reward, self.on_error, self.render_mode = resolve_reward(reward), check_on_error(on_error), render_mode
        self.observation_space = Chat()
        self._messages: list[Message] = []
        self._opening = 0  # messages of the first observation
        self._seed, self._turn = -1, 0
        self._running = False
        self._shown = 0
        self.scored_by_caller = False
        """Whether `step` leaves the reward of the whole episode to a caller that scores many at once."""

    # What a subclass writes -----------------------------------------------------------------------------------------

    @abstractmethod
    def _begin(self, seed: int, rng: random.Random) -> list[Message]:
        """The opening messages of episode `seed`; all chance of the episode comes from `rng`."""

    @abstractmethod
    def _reply(self, action: Any) -> tuple[Message, StepResult]:
        """The policy's message that `action` stands for, and what the environment makes of it."""

    @abstractmethod
    def _columns(self) -> dict[str, Any]:
        """What the finished episode hands to reward functions, by name."""

    @abstractmethod
    def own_reward(self) -> float:
        """The environment's own measure of the finished episode, beyond what its turns have earned."""

    def context(self, messages: Sequence[Message]) -> list[Message]:
        """Messages that the policy is shown after the last one of `messages`, when a person plays the user."""
        return []

    # Gymnasium ------------------------------------------------------------------------------------------------------

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[list[Message], dict[str, Any]]:
        super().reset(seed=seed)
        self._seed = int(self.np_random.integers(FIRST_HELD_OUT_SEED)) if seed is None else int(seed)
        self._turn = 0
        self._messages = self._taken(self._begin(self._seed, random.Random(self._seed)))
        if not self._messages:
            raise ValueError(f"{self._whose()} begins with no message: expected at least one to answer")
        self._opening = len(self._messages)
        self._running, self._shown = True, 0
        self._show()
        return self._observation(), {"seed": self._seed}

    def step(self, action: Any) -> tuple[list[Message], float, bool, bool, dict[str, Any]]:
        result = self.act(action)
        reward = result.reward
        if (result.terminated or result.truncated) and not self.scored_by_caller:
            reward += score(self.reward, [self], self.on_error).values[0]
        return self._observation(), reward, result.terminated, result.truncated, result.info

    def act(self, action: Any) -> StepResult:
        """A step without the reward of the whole episode and without its observation, for callers that have both.

        Raises:
            ResetNeeded: the episode has ended, or none has begun.
            ValueError: the action is not in the action space.
        """
        if not self._running:
            raise ResetNeeded("step was called before reset, or after the end of the episode: call reset first")
        if not self.action_space.contains(action):
            raise ValueError(f"action is {action!r} ({type(action).__name__}): expected one of {self.action_space}")
        self._turn += 1
        message, result = self._reply(action)
        result = self._checked(result)
        self._messages += [*self._taken([message]), *result.new_messages]
        self._running = not (result.terminated or result.truncated)
        self._show()
        return result if self._running else result._replace(info={**self._columns(), **result.info})

    def truncate(self) -> None:
        """End the episode here, for a reason outside of it, such as the policy's context being full."""
        self._running = False

    def render(self) -> str | None:
        """The conversation so far, one message a line, in mode "ansi"; mode "human" has printed it already."""
        if self.render_mode is None:
            gymnasium.logger.warn("render was called without a render_mode: gymnasium.make(…, render_mode='ansi')")
        return "\n".join(_line(message) for message in self._messages) if self.render_mode == "ansi" else None

    @property
    def episode(self) -> Episode:
        """The finished episode.

        Raises:
            ResetNeeded: it has not ended, or none has begun.
        """
        if self._running or not self._messages:
            raise ResetNeeded("the episode has not ended: step until terminated or truncated")
        opening, rest = self._messages[: self._opening], self._messages[self._opening :]
        return Episode(self._seed, opening, rest, dict(self._columns()))

    def _checked(self, result: StepResult) -> StepResult:
        """What a turn led to, as what it must be: copies of its messages and its info, and plain numbers.

        Raises:
            TypeError: one of them is something else.
            ValueError: the turn's reward is not finite.
        """
        messages, terminated, truncated, info, reward = result
        if not isinstance(info, Mapping):
            raise TypeError(f"{self._whose()} has the info {info!r:.80}: expected a dictionary")
        try:
            number = float(reward)
        except (TypeError, ValueError):
            raise TypeError(f"{self._whose()} earned {reward!r:.80}: expected a number") from None
        if not math.isfinite(number):
            raise ValueError(f"{self._whose()} earned {reward!r}: expected a finite number")
        return StepResult(self._taken(messages), bool(terminated), bool(truncated), dict(info), number)

    def _taken(self, messages: Any) -> list[Message]:
        """Copies of what the environment says.

        Raises:
            TypeError: that is no list of messages.
        """
        expected = f"expected a list of {{'role': one of {', '.join(ROLES)}, 'content': a text}}"
        if not isinstance(messages, list | tuple):
            raise TypeError(f"{self._whose()} says {messages!r:.80} ({type(messages).__name__}): {expected}")
        for message in messages:
            if not isinstance(message, Mapping) or not _is_message(message):
                raise TypeError(f"{self._whose()} says {message!r:.120}: {expected}")
        return [{"role": message["role"], "content": message["content"]} for message in messages]

    def _whose(self) -> str:
        return f"{type(self).__name__}, episode {self._seed}, {f'turn {self._turn}' if self._turn else 'its opening'}"

    def _observation(self) -> list[Message]:
        return [dict(message) for message in self._messages]

    def _show(self) -> None:
        if self.render_mode == "human":
            for message in self._messages[self._shown :]:
                sys.stdout.write(_line(message) + "\n")
        self._shown = len(self._messages)


def _is_message(message: Mapping[str, Any]) -> bool:
    return message.keys() == {"role", "content"} and message["role"] in ROLES and isinstance(message["content"], str)


def _line(message: Message) -> str:
    """A message for a person's eyes: what would move the cursor, or no terminal can print, becomes U+FFFD."""
    shown = "".join("\ufffd" if category(c) in ("Cc", "Cs") and c not in "\n\t" else c for c in message["content"])
    return f"{message['role']:>9}: {shown}"
