"""Gymnasium text environments: what a language policy can be rewarded in. They need neither torch nor rlobj.

Importing this package registers `rlobj/CustomerService-v0`, `rlobj/Classification-v0` and `rlobj/Dialogue-v0`.
"""

from gymnasium.envs.registration import register

from envs.core import BadReward, Episode, Message, StepResult, TextEnv, resolve_reward, score_episodes
from envs.vector import TextVectorEnv

__all__ = [
    "BadReward",
    "Episode",
    "Message",
    "StepResult",
    "TextEnv",
    "TextVectorEnv",
    "resolve_reward",
    "score_episodes",
]

# By name, so that a registered spec can be written as JSON, and nothing is read until an environment is made.
register("rlobj/CustomerService-v0", entry_point="envs.customer_service:CustomerServiceEnv")
register("rlobj/Classification-v0", entry_point="envs.classification:ClassificationEnv")
register("rlobj/Dialogue-v0", entry_point="envs.dialogue:DialogueEnv")
