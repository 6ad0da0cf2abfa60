"""Gymnasium text environments: what a language policy can be rewarded in. They need neither torch nor rlobj.

Importing this package registers `rlobj/CustomerService-v0`, `rlobj/Classification-v0`, `rlobj/Recommendation-v0`,
`rlobj/Dialogue-v0`, `rlobj/MovieBooking-v0` and `rlobj/RandomWalk-v0`.
"""

from gymnasium.envs.registration import register

from envs.core import Episode, Message, StepResult, TextEnv
from envs.rewards import BadReward, resolve_reward, score_episodes
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


def _register(name: str, entry_point: str) -> None:
    vector_entry_point = f"{entry_point.partition(':')[0]}:make_vec"
    register(f"rlobj/{name}-v0", entry_point=entry_point, vector_entry_point=vector_entry_point)


# By name, so that a registered spec can be written as JSON, and nothing is read until an environment is made.
_register("CustomerService", "envs.customer_service:CustomerServiceEnv")
_register("Classification", "envs.classification:ClassificationEnv")
_register("Recommendation", "envs.recommendation:RecommendationEnv")
_register("Dialogue", "envs.dialogue:DialogueEnv")
_register("MovieBooking", "envs.movie_booking:MovieBookingEnv")
_register("RandomWalk", "envs.random_walk:RandomWalkEnv")
