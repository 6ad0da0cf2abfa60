"""Rewards with TRL's signature: shipped functions, the user's own, trained reward models, and sums of them.

`reward(prompts, completions, **columns) -> list[float | None]`, one value per episode; None means no reward.
Importing this package loads no torch; what trained reward models need loads it when it is asked for.
"""

import importlib
from typing import TYPE_CHECKING, Any

from reward_models.calling import as_reward
from reward_models.compose import WeightedSum
from reward_models.functions import list_rewards, load_reward
from reward_models.protocol import Message, Reward

if TYPE_CHECKING:
    from reward_models.rated import train_on_ratings
    from reward_models.trained import EnsembleReward, TrainedReward, normalise
    from reward_models.training import train_reward_model

__all__ = [
    "EnsembleReward",
    "Message",
    "Reward",
    "TrainedReward",
    "WeightedSum",
    "as_reward",
    "list_rewards",
    "load_reward",
    "normalise",
    "train_on_ratings",
    "train_reward_model",
]

_HEAVY = {
    "EnsembleReward": "reward_models.trained",
    "TrainedReward": "reward_models.trained",
    "normalise": "reward_models.trained",
    "train_on_ratings": "reward_models.rated",
    "train_reward_model": "reward_models.training",
}


def __getattr__(name: str) -> Any:
    if name in _HEAVY:
        return getattr(importlib.import_module(_HEAVY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
