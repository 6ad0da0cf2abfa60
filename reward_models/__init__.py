"""Rewards with TRL's signature: shipped functions, the user's own, trained reward models, and sums of them.

`reward(prompts, completions, **columns) -> list[float | None]`, one value per episode; None means no reward.
Importing this package loads no torch; `TrainedReward` and `train_reward_model` load it when they are asked for.
"""

import importlib
from typing import TYPE_CHECKING, Any

from reward_models.calling import as_reward
from reward_models.compose import WeightedSum
from reward_models.functions import list_rewards, load_reward
from reward_models.protocol import Message, Reward

if TYPE_CHECKING:
    from reward_models.trained import TrainedReward
    from reward_models.training import train_reward_model

__all__ = [
    "Message",
    "Reward",
    "TrainedReward",
    "WeightedSum",
    "as_reward",
    "list_rewards",
    "load_reward",
    "train_reward_model",
]

_HEAVY = {"TrainedReward": "reward_models.trained", "train_reward_model": "reward_models.training"}


def __getattr__(name: str) -> Any:
    if name in _HEAVY:
        return getattr(importlib.import_module(_HEAVY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
