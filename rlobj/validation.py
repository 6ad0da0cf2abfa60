"""What makes a configuration impossible, said before anything is trained.

Every error is a ValueError of one or two lines: the key, its value, what is expected, what to do.
"""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING

from rlobj.checks import at_least, check_data_file, check_model_size, check_name
from rlobj.environment_checks import (
    CLASSIFICATION,
    DIALOGUE,
    check_environment,
    check_environment_kwargs,
    environment_class,
    is_choice,
)
from rlobj.lambdas import as_lambda, needs_labels
from rlobj.reward_checks import check_reward, check_reward_function
from rlobj.trl_fields import check_trl_fields

if TYPE_CHECKING:
    from rlobj.config import PPOConfig, RunConfig, TrainingConfig

TRAIN = "train"
"""In objective.sources: the labelled data that the warm start has."""


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
    check_environment(config.env.id)
    check_environment_kwargs(config.env.id, config.env.kwargs)
    _check_policy(config)
    check_reward(config)
    _check_supervision(config)
    check_reward_function(config.reward)
    check_trl_fields(config)  # last, with what stands on it: it imports TRL
    _check_batch(config.training)
    if config.training.trackers:
        from rlobj.trackers import check_trackers

        check_trackers(config.training.trackers)
    return config


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


def _check_policy(config: RunConfig) -> None:
    policy, env_id = config.policy, config.env.id
    check_model_size(policy, policy.kind == "causal")
    if policy.kind == "causal":
        if config.training.estimator == "exact":
            raise ValueError(
                f"training.estimator is 'exact', but {env_id} takes replies, which cannot be listed: set "
                "--training.estimator ppo"
            )
        if is_choice(env_id):
            raise ValueError(f"policy.kind is 'causal', but {env_id} takes labels: set --policy.kind encoder")
        if config.training.max_reply_tokens >= policy.max_length and policy.model is None:
            raise ValueError(
                f"training.max_reply_tokens is {config.training.max_reply_tokens}: expected less than "
                f"policy.max_length, {policy.max_length}"
            )
        return
    if not is_choice(env_id):
        raise ValueError(f"policy.kind is 'encoder', but {env_id} takes replies: set --policy.kind causal")
    if config.data.train is None and env_id == CLASSIFICATION:
        raise ValueError(
            "data.train is null: an encoder policy learns from labelled texts; give them with "
            "--data.train PATH (JSON lines, CSV, or a data set id)"
        )


def _check_adapter(config: RunConfig) -> None:
    if config.policy.head_only and config.policy.kind != "encoder":
        raise ValueError("policy.head_only is true, but policy.kind is 'causal': expected encoder, whose head it is")
    if config.policy.peft is not None and config.policy.kind != "causal":
        raise ValueError(
            f"policy.peft is {config.policy.peft} and policy.kind {config.policy.kind!r}: expected a causal policy"
        )


def _check_supervision(config: RunConfig) -> None:
    from envs.experts import has_expert

    env_id = config.env.id
    if config.data.train is not None or is_choice(env_id) or has_expert(environment_class(env_id)):
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
