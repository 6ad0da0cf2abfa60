"""What makes a configuration impossible, said before anything is trained.

Every error is a ValueError of one or two lines: the key, its value, what is expected, what to do.
"""

from __future__ import annotations

import importlib
import inspect
import math
import os
import pkgutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlobj.lambdas import as_lambda, needs_labels
from rlobj.spelling import did_you_mean
from rlobj.trl_fields import check_trl_fields

if TYPE_CHECKING:
    from reward_models.protocol import Reward
    from rlobj.config import ModelConfig, PPOConfig, RewardConfig, RunConfig, TrainingConfig

TRAIN = "train"
"""In objective.sources: the labelled data that the warm start has."""
DATA_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".txt", ".parquet")

CUSTOMER_SERVICE, MOVIE_BOOKING, CLASSIFICATION, DIALOGUE = (
    f"rlobj/{name}-v0" for name in ("CustomerService", "MovieBooking", "Classification", "Dialogue")
)


def validate(config: RunConfig) -> RunConfig:
    """Return the configuration if it can be run.

    Raises:
        ValueError: the first thing that is impossible, with its key and the remedy.
    """
    check_name(config.name)
    _check_numbers(config)
    _check_lambdas(config.objective.lambdas)
    _check_data(config)
    _check_adapter(config)
    _check_environment(config.env.id)
    _check_environment_kwargs(config.env.id, config.env.kwargs)
    _check_policy(config)
    _check_reward(config)
    _check_supervision(config)
    _check_reward_function(config.reward)
    check_trl_fields(config)  # last, with what stands on it: it imports TRL
    _check_batch(config.training)
    if config.training.trackers:
        from rlobj.trackers import check_trackers

        check_trackers(config.training.trackers)
    return config


def check_name(name: str) -> None:
    if not name.strip() or name in (".", "..") or any(sign in name for sign in "/\\\0"):
        raise ValueError(f"name is {name!r}: expected the name of a folder, without slashes")


def _check_numbers(config: RunConfig) -> None:
    positive = {
        "env": ("train_episodes", "eval_episodes"),
        "reward": ("pairs",),
        "data": ("demonstrations",),
        "warm_start": ("learning_rate", "batch_size"),
        "objective": ("supervised_batch_size",),
        "rollout": ("max_turns",),
        "training": (
            "steps", "learning_rate", "prompts_per_step", "max_reply_tokens", "temperature", "max_bad_steps",
        ),
    }  # fmt: skip
    for section, names in positive.items():
        for name in names:
            at_least(f"{section}.{name}", getattr(getattr(config, section), name), 0, above=True)
    at_least("seed", config.seed, 0)
    at_least("training.keep_best", config.training.keep_best, 0)
    at_least("warm_start.epochs", config.warm_start.epochs, 0)
    at_least("objective.probe_every", config.objective.probe_every, 0)
    _check_kl(config.training)
    compares = config.training.estimator in ("grpo", "rloo")
    at_least("training.num_generations", config.training.num_generations, 2 if compares else 1)
    _check_ppo(config.ppo)
    for name in ("max_episode_tokens", "concurrent"):
        if (most := getattr(config.rollout, name)) is not None:
            at_least(f"rollout.{name}", most, 0, above=True)
    if config.env.step_timeout is not None:
        at_least("env.step_timeout", config.env.step_timeout, 0, above=True)
    at_least("env.restarts", config.env.restarts, 0)
    if not all(config.rollout.stop):
        raise ValueError(f"rollout.stop is {config.rollout.stop}: expected strings that are not empty")
    for name in ("limit", "rows_per_label"):
        if (rows := getattr(config.data, name)) is not None:
            at_least(f"data.{name}", rows, 0, above=True)
    if config.data.rows_per_label is not None and config.policy.kind != "encoder":
        raise ValueError(f"data.rows_per_label is {config.data.rows_per_label}: {config.env.id} has no labels to count")


def _check_kl(training: TrainingConfig) -> None:
    at_least("training.beta", training.beta, 0)
    at_least("training.kl_every", training.kl_every, 0)
    for name in ("kl_limit", "beta_target", "target_kl"):
        if (value := getattr(training, name)) is not None:
            at_least(f"training.{name}", value, 0, above=True)
    if training.kl_limit is not None:
        at_least("training.kl_every (with training.kl_limit)", training.kl_every, 1)
    if training.beta_target is not None:
        at_least("training.beta (with training.beta_target)", training.beta, 0, above=True)
    if training.estimator == "exact":
        if training.target_kl is not None:
            raise ValueError(
                f"training.target_kl is {training.target_kl}: the estimator exact learns from no sample; leave it out"
            )
        if training.kl_in == "reward":
            raise ValueError("training.kl_in is 'reward': the estimator exact samples nothing; set it to loss")
    for name, plain in (("top_p", 1.0), ("top_k", 0), ("min_p", None)):
        if training.kl_in == "reward" and training.beta > 0 and training.trl.get(name, plain) != plain:
            raise ValueError(
                f"training.kl_in is 'reward', and training.trl.{name} cuts the distribution that is sampled from, "
                "whose log-probabilities the warm start's cannot be compared with: leave it out, or set kl_in to loss"
            )


def _check_ppo(ppo: PPOConfig) -> None:
    for name in ("gamma", "gae_lambda"):
        if not 0 <= getattr(ppo, name) <= 1:
            raise ValueError(f"ppo.{name} is {getattr(ppo, name)}: expected 0 to 1")
    at_least("ppo.clip_value", ppo.clip_value, 0)
    for name in ("learning_rate", "hidden_size"):
        at_least(f"ppo.{name}", getattr(ppo, name), 0, above=True)


def at_least(key: str, value: float, low: float, above: bool = False) -> None:
    if not math.isfinite(value) or value < low or (above and value == low):
        raise ValueError(f"{key} is {value}: expected a finite number {'above' if above else 'of at least'} {low}")


def _check_lambdas(lambdas: list[float | str]) -> None:
    key = "objective.lambda_sup"
    if not lambdas:
        raise ValueError(f"{key} is empty: expected one λ or several, such as [0.0, 0.1]")
    for value in lambdas:
        if isinstance(value, str):
            try:
                as_lambda(value)
            except ValueError as error:
                raise ValueError(f"objective.{error}") from None
        elif not math.isfinite(value) or value < 0:
            raise ValueError(
                f"{key} is {value}: expected a finite λ of at least 0; to weigh ℓ less, bring it towards 0"
            )
    if len(set(lambdas)) < len(lambdas):
        raise ValueError(f"{key} is {lambdas}: each λ may stand in it once")


def _check_data(config: RunConfig) -> None:
    if config.data.rated is not None and config.data.preferences is not None:
        raise ValueError("data.rated and data.preferences are both given: the reward model learns from one of them")
    for name in ("train", "eval", "preferences", "rated"):
        check_data_file(f"data.{name}", getattr(config.data, name))
    for name, weight in config.objective.sources.items():
        at_least(f"objective.sources.{name}", weight, 0, above=True)
        if name != TRAIN:
            check_data_file("objective.sources", name)
    if config.data.eval is not None and config.data.train is None:
        raise ValueError(f"data.eval is {config.data.eval!r} but data.train is null: set --data.train too")


def check_data_file(key: str, value: str | None) -> None:
    """Refuse a file that is empty or is not there; None, and names of data sets, pass."""
    if value is None:
        return
    path = Path(value)
    if not value.strip():
        raise ValueError(f"{key} is empty: expected a file or a data set id")
    if path.is_file() and path.stat().st_size == 0:
        raise ValueError(f"{key} is {value!r}: the file is empty")
    if path.suffix.lower() in DATA_SUFFIXES and not path.exists():
        beside = [str(each) for each in path.parent.iterdir()] if path.parent.is_dir() else []
        raise ValueError(f"{key} is {value!r}: there is no such file{did_you_mean(value, beside)}")


def _check_environment(env_id: str) -> None:
    import gymnasium

    import envs  # noqa: F401  (registers ours)
    from envs.adapters import ADAPTERS, spec_of

    module, colon, name = env_id.partition(":")
    if colon and module in ADAPTERS:
        try:
            spec_of(env_id)
        except ImportError as error:
            raise ValueError(f"env.id is {env_id!r}: {error}") from error
        return
    if colon:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise ValueError(f"env.id is {env_id!r}: cannot import {module!r} ({error})") from error
    else:
        name = env_id
    known = list(gymnasium.registry)
    if name not in known:
        ours = sorted(each for each in known if each.startswith("rlobj/"))
        hint = did_you_mean(name, ours) or did_you_mean(name, known)
        raise ValueError(
            f"env.id is {env_id!r}: not registered with Gymnasium{hint} (ours: {', '.join(ours)}; "
            f'"module:id" imports a module that registers one; {", ".join(ADAPTERS)}: "library:name")'
        )


def environment_class(env_id: str) -> type:
    """The class of the environments of this id; `object` where something else makes them."""
    import gymnasium

    from envs.adapters import spec_of

    spec = spec_of(env_id)
    if isinstance(spec, str):
        spec = gymnasium.spec(spec.rpartition(":")[2])  # its module is imported by now
    entry_point = spec.entry_point
    made = pkgutil.resolve_name(entry_point) if isinstance(entry_point, str) else entry_point
    return made if isinstance(made, type) else object


def _is_choice(env_id: str) -> bool:
    """Whether the action is one of several named ones."""
    from envs.choice import ChoiceEnv

    return issubclass(environment_class(env_id), ChoiceEnv)


def _check_environment_kwargs(env_id: str, kwargs: dict[str, Any]) -> None:
    """Refuse names that a text environment does not take; the values are its own affair."""
    from envs import TextEnv

    made = environment_class(env_id)
    if not issubclass(made, TextEnv):
        return
    lineage = [each for each in made.__mro__ if issubclass(each, TextEnv) and "__init__" in vars(each)]
    known = {name for each in lineage for name in inspect.signature(each).parameters} - {"kwargs"}
    for name in kwargs:
        if name not in known:
            raise ValueError(
                f"unknown key 'env.kwargs.{name}': {env_id} has no such argument{did_you_mean(name, known)} "
                f"(it has {', '.join(sorted(known))})"
            )


def _check_policy(config: RunConfig) -> None:
    policy, env_id = config.policy, config.env.id
    check_model_size(policy, policy.kind == "causal")
    if policy.kind == "causal":
        if config.training.estimator == "exact":
            raise ValueError(
                f"training.estimator is 'exact', but {env_id} takes replies, which cannot be listed: set "
                "--training.estimator ppo"
            )
        if _is_choice(env_id):
            raise ValueError(f"policy.kind is 'causal', but {env_id} takes labels: set --policy.kind encoder")
        if config.training.max_reply_tokens >= policy.max_length and policy.model is None:
            raise ValueError(
                f"training.max_reply_tokens is {config.training.max_reply_tokens}: expected less than "
                f"policy.max_length, {policy.max_length}"
            )
        return
    if not _is_choice(env_id):
        raise ValueError(f"policy.kind is 'encoder', but {env_id} takes replies: set --policy.kind causal")
    if config.data.train is None and env_id == CLASSIFICATION:
        raise ValueError(
            "data.train is null: an encoder policy learns from labelled texts; give them with "
            "--data.train PATH (JSON lines, CSV, or a data set id)"
        )


def check_model_size(policy: ModelConfig, causal: bool) -> None:
    """Refuse a length or size that is not positive, and the size of a new model that cannot be made."""
    for name in ("hidden_size", "layers", "heads", "vocab_size", "max_length"):
        at_least(f"policy.{name}", getattr(policy, name), 0, above=True)
    if policy.model is not None:
        return
    # a causal model turns pairs of a head's numbers (rotary positions), so their number is even
    parts = policy.heads * (2 if causal else 1)
    if policy.hidden_size % parts:
        why = "policy.heads × 2" if causal else "policy.heads"
        raise ValueError(f"policy.hidden_size is {policy.hidden_size}: expected a multiple of {parts} ({why})")


def _check_reward(config: RunConfig) -> None:
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


TRAINED_REWARD_OPTIONS = ("label", "output", "raw", "dtype", "device", "max_tokens")
"""What reward.kwargs may be where reward.kind is trained: of `reward_models.TrainedReward`."""


def _check_adapter(config: RunConfig) -> None:
    if config.policy.head_only and config.policy.kind != "encoder":
        raise ValueError("policy.head_only is true, but policy.kind is 'causal': expected encoder, whose head it is")
    if config.policy.peft is not None and config.policy.kind != "causal":
        raise ValueError(
            f"policy.peft is {config.policy.peft} and policy.kind {config.policy.kind!r}: expected a causal policy"
        )


def _check_reward_function(reward: RewardConfig) -> None:
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


def _check_supervision(config: RunConfig) -> None:
    from envs.experts import has_expert

    env_id = config.env.id
    if config.data.train is not None or _is_choice(env_id) or has_expert(environment_class(env_id)):
        return
    if env_id == DIALOGUE and not config.env.kwargs.get("prompts"):
        raise ValueError(
            "data.train is null: a corpus of dialogues is needed; give it with --data.train PATH "
            "(JSON lines with messages, or a data set id)"
        )
    wants = [value for value in config.objective.lambdas if needs_labels(as_lambda(value))]
    if TRAIN in config.objective.sources:
        raise ValueError(f"objective.sources names {TRAIN!r}, but there is no labelled data: set --data.train PATH")
    if wants and not config.objective.sources:
        raise ValueError(
            f"objective.lambda_sup is {wants[0]}, but there is no labelled data for ℓ: give it with "
            "--data.train PATH, or set --objective.lambda_sup 0"
        )
    if config.warm_start.epochs > 0:
        raise ValueError(
            f"warm_start.epochs is {config.warm_start.epochs}, but there is no labelled data for it: give it with "
            "--data.train PATH, or set --warm_start.epochs 0"
        )
    if config.policy.model is None:
        raise ValueError(
            "policy.model is null, and without labelled data nothing teaches a new model to write: give a model with "
            "--policy.model, or labelled dialogues with --data.train PATH"
        )


def _check_batch(training: TrainingConfig) -> None:
    """Each process and each micro-batch takes an equal part of a step's episodes."""
    accumulation = training.trl.get("gradient_accumulation_steps", 1)
    at_least("training.trl.gradient_accumulation_steps", accumulation, 1)
    processes = int(os.environ.get("WORLD_SIZE", "1"))  # set by accelerate launch and torchrun
    episodes = training.prompts_per_step * training.num_generations
    if episodes % (processes * accumulation):
        raise ValueError(
            f"training.prompts_per_step × training.num_generations is {episodes}: expected a multiple of "
            f"{processes * accumulation} (processes × training.trl.gradient_accumulation_steps)"
        )
