"""Environments of other libraries as text environments.

Importing this module registers `adapters/FromGymnasium-v0`: `--env.id envs.adapters:adapters/FromGymnasium-v0`.
"""

from __future__ import annotations

import random
from typing import Any

import gymnasium
from gymnasium.envs.registration import register
from gymnasium.spaces import Discrete

from envs.core import Message, StepResult, TextEnv
from envs.spaces import Chat, Text

SHOWN = (Text, Chat, gymnasium.spaces.Text)
TAKEN = (Text, Discrete, gymnasium.spaces.Text)
"""Spaces of observations, and of actions, that a text environment can stand in for."""


class FromGymnasium(TextEnv):
    """Any Gymnasium environment that shows text and takes text or a `Discrete` action.

    | | |
    |---|---|
    | action | a text; where the environment's own is `Discrete`, its action of that number |
    | observation | the conversation: each text that the environment shows is a message of the user |
    | reward | what the environment gives for each turn; its own measure of the whole episode is 0 |
    | columns | `total`, the sum of the turns' rewards |
    | seed | passed on to the environment's `reset` |

    Args:
        env_id: what `gymnasium.make` makes, or an environment.
        env_kwargs: arguments for `gymnasium.make`.
        kwargs: those of `TextEnv`.
    """

    def __init__(
        self, env_id: str | gymnasium.Env[Any, Any], env_kwargs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.inner = gymnasium.make(env_id, **(env_kwargs or {})) if isinstance(env_id, str) else env_id
        space, actions = self.inner.observation_space, self.inner.action_space
        if not isinstance(space, SHOWN):
            raise ValueError(f"{env_id!r} shows {space}: expected text; wrap it in one that describes what it shows")
        if not isinstance(actions, TAKEN):
            raise ValueError(f"{env_id!r} takes {actions}: expected text or Discrete actions")
        # a policy may write anything, so what Gymnasium's own Text leaves out is for the environment to judge
        self.action_space = actions if isinstance(actions, Discrete) else Text()
        self._seen: list[Message] = []
        self._total = 0.0

    def close(self) -> None:
        self.inner.close()

    def _begin(self, seed: int, rng: random.Random) -> list[Message]:
        observation, _ = self.inner.reset(seed=seed)
        self._total, self._seen = 0.0, _messages(observation)
        return self._seen

    def _reply(self, action: Any) -> tuple[Message, StepResult]:
        message = {"role": "assistant", "content": str(action)}
        observation, reward, terminated, truncated, info = self.inner.step(action)
        new = _messages(observation)
        if isinstance(self.inner.observation_space, Chat):  # the whole conversation: only its new part is appended
            known = len(self._seen)
            self._seen, new = new, new[known:]
            new = new[1:] if new and new[0]["role"] == "assistant" else new
        self._total += float(reward)
        return message, StepResult(new, bool(terminated), bool(truncated), info, float(reward))

    def _columns(self) -> dict[str, Any]:
        return {"total": self._total}

    def own_reward(self) -> float:
        return 0.0  # the turns have earned it all


def as_text_env(env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
    """`env` itself, or in `FromGymnasium` where it is no text environment but shows and takes text."""
    if isinstance(env.unwrapped, TextEnv):
        return env
    is_text = isinstance(env.observation_space, SHOWN) and isinstance(env.action_space, TAKEN)
    return FromGymnasium(env) if is_text else env


def _messages(observation: Any) -> list[Message]:
    if isinstance(observation, str):
        return [{"role": "user", "content": observation}]
    return [dict(message) for message in observation]


if "adapters/FromGymnasium-v0" not in gymnasium.registry:
    register("adapters/FromGymnasium-v0", entry_point="envs.adapters:FromGymnasium")
