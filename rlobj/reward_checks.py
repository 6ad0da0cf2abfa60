"""Whether a recipe's reward can be had; errors as in `rlobj.validation`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rlobj.checks import at_least
from rlobj.environment_checks import CUSTOMER_SERVICE, DIALOGUE
from rlobj.spelling import did_you_mean

if TYPE_CHECKING:
    from reward_models.protocol import Reward
    from rlobj.config import RewardConfig, RunConfig

TRAINED_REWARD_OPTIONS = ("label", "output", "raw", "dtype", "device", "max_tokens")
"""What reward.kwargs may be where reward.kind is trained: of `reward_models.TrainedReward`."""


def check_reward(config: RunConfig) -> None:
    reward = config.reward
    if reward.kind == "function" and not reward.function and not reward.compose:
        raise ValueError(
            "reward.function is null: reward.kind 'function' needs one, such as "
            "--reward.function mymodule:score (shipped ones: `rlobj list`)"
        )
    for name, kind in (("function", "function"), ("model", "trained")):
        value = getattr(reward, name)
        if value is not None and reward.kind != kind:
            raise ValueError(
                f"reward.{name} is {value!r}, but reward.kind is {reward.kind!r}: set --reward.kind {kind}"
            )
    user = config.env.kwargs.get("user")
    if reward.kind == "environment" and config.env.id == DIALOGUE and user not in (None, "replay"):
        raise ValueError(
            f"reward.kind is 'environment', which compares with the corpus's replies, but env.kwargs.user is {user!r}, "
            "who leads the dialogue elsewhere: set --reward.kind trained or function"
        )
    given = config.data.preferences or config.data.rated
    has_pairs = given is not None or config.env.id in (CUSTOMER_SERVICE, DIALOGUE)
    if reward.kind == "trained" and reward.model is None and not has_pairs:
        raise ValueError(
            f"reward.kind is 'trained', but {config.env.id} gives no preference pairs: set --reward.model, "
            "--data.preferences, or another --reward.kind"
        )


def check_reward_function(reward: RewardConfig) -> None:
    if (reward.on_error == "penalise") != (reward.penalty is not None):
        raise ValueError(
            f"reward.on_error is {reward.on_error!r} and reward.penalty is {reward.penalty}: expected a penalty with "
            "'penalise', and none otherwise"
        )
    if reward.penalty is not None and not math.isfinite(reward.penalty):
        raise ValueError(f"reward.penalty is {reward.penalty}: expected a finite number")
    for name in ("concurrency", "timeout"):
        if (value := getattr(reward, name)) is not None:
            at_least(f"reward.{name}", value, 0, above=True)
    if reward.isolated and (reward.kind != "function" or reward.timeout is None):
        raise ValueError(
            f"reward.isolated is true, reward.kind is {reward.kind!r} and reward.timeout is {reward.timeout}: expected "
            "--reward.kind function and --reward.timeout SECONDS, after which a call's process is killed"
        )
    if reward.compose:
        if reward.kind != "function" or reward.function is not None:
            raise ValueError("reward.compose needs reward.kind function, and takes the place of reward.function")
        try:
            composed(reward)
        except (TypeError, ValueError) as error:
            raise ValueError(f"reward.compose: {error}") from error
    if reward.kind == "trained":
        at_least("reward.ensemble", reward.ensemble, 1)
        at_least("reward.kappa", reward.kappa, 0)
        for name in reward.kwargs:
            if name not in TRAINED_REWARD_OPTIONS:
                raise ValueError(
                    f"reward.kwargs has {name!r}{did_you_mean(name, TRAINED_REWARD_OPTIONS)}: expected options of a "
                    f"trained reward ({', '.join(TRAINED_REWARD_OPTIONS)}), or a reward.function to give them to"
                )
        return
    if reward.function is None:
        if reward.kwargs:
            raise ValueError(f"reward.kwargs is {reward.kwargs}, but there is no reward.function for them: set it too")
        return
    from reward_models.functions import load_reward

    try:
        load_reward(reward.function, reward.kwargs)
    except (TypeError, ValueError) as error:
        raise ValueError(f"reward.function: {error}") from error


def composed(reward: RewardConfig) -> Reward:
    """The reward that reward.compose describes."""
    from reward_models.compose import compose
    from reward_models.functions import load_reward

    return compose(
        reward.compose,
        lambda name, kwargs: load_reward(
            name, kwargs, concurrency=reward.concurrency, timeout=reward.timeout, isolated=reward.isolated
        ),
    )
