"""The reward of a run: a function, a model that is there, or one that the run trains."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from typing import Any

import torch
from accelerate import PartialState

import rlobj.data as data
from envs.patience import Patience
from envs.vector import TextVectorEnv
from reward_models.functions import load_reward
from reward_models.rated import YES_OR_NO, train_on_ratings
from reward_models.trained import load_trained, member_paths, normalise
from reward_models.training import train_reward_model
from rlobj.grpo_config import sampling_of
from rlobj.long_prompts import fitting_seeds
from rlobj.one_run import Run
from rlobj.policies import load_tokenizer
from rlobj.reward_checks import composed
from rlobj.rollout import factory_of, play
from rlobj.runs import atomic_write_json
from rlobj.splitting import split_rated
from rlobj.stage_inputs import reward_inputs, warm_inputs
from rlobj.stages import Stage
from rlobj.tasks import HELD_OUT

NORMALISED_ON = 256
"""Episodes of the warm start whose scores make 0 and 1 of a reward model that is normalised."""


def stages_of(run: Run) -> list[Stage]:
    """The stage that trains the reward model, if there is one."""
    inputs = {**warm_inputs(run.config), **reward_inputs(run.config)}
    stage = Stage(run.directory / "reward_model", "reward model: trained on preference pairs", inputs)
    return [stage] if run.trains_reward else []


def reward_of(run: Run) -> Any:
    """The reward that policies are trained on, its model trained first unless that is done; None: the environment's."""
    wanted = run.config.reward
    if wanted.kind == "environment":
        return None
    if wanted.compose:
        return composed(wanted)
    if wanted.kind == "function":
        assert wanted.function is not None
        return load_reward(
            wanted.function,
            wanted.kwargs,
            concurrency=wanted.concurrency,
            timeout=wanted.timeout,
            isolated=wanted.isolated,
        )
    if wanted.model is not None:
        return _load_reward(run, wanted.model)
    (stage,) = stages_of(run)
    run.do(stage, lambda: _train(run, stage))
    return _load_reward(run, str(stage.directory))


def rows_of(run: Run) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What the reward model learns from, and what of it is held out."""
    if run.config.data.rated is None:
        return run.task.pairs()
    rows = data.rated_rows(run.config.data.rated)
    names = {row["label"] for row in rows if row.get("label") is not None}
    label = run.config.reward.kwargs.get("label")
    if not any(names <= outcome for outcome in YES_OR_NO) and label not in names:
        raise ValueError(
            f"data.rated has the labels {', '.join(sorted(map(str, names)))} and reward.kwargs.label is {label!r}: "
            "expected the one that is rewarded, such as --reward.kwargs.label good"
        )
    return split_rated(rows, HELD_OUT, run.config.seed)


def _train(run: Run, stage: Stage) -> dict[str, Any]:
    """Train the reward model, or the members of an ensemble of them."""
    wanted, rated = run.config.reward, run.config.data.rated
    pairs, held_out = rows_of(run)
    several = wanted.ensemble > 1
    # members that are done outlive an interruption beside the checkpoints, until all are
    made = [stage.checkpoints / f"member-{n}" for n in range(wanted.ensemble)] if several else [stage.directory]
    says = []
    for n, place in enumerate(made):
        if several and (place / "accuracy.json").exists():
            metrics = json.loads((place / "accuracy.json").read_text(encoding="utf-8"))
        else:
            metrics = (train_reward_model if rated is None else train_on_ratings)(
                str(run.warm_start),
                load_tokenizer(run.warm_start),
                pairs,
                held_out,
                place,
                {"seed": run.config.seed + n, **wanted.trl},
                callbacks=run.supervised_callbacks(
                    "preferences" if rated is None else "ratings", {"loss": "loss", "accuracy": "accuracy"}
                ),
                lora=wanted.lora,
                resume=None if several else run.resume(stage),
            )
            run.stop_if_asked()
            if several and run.main:
                atomic_write_json(place / "accuracy.json", metrics)
        says.append(_how_good(metrics))
    if wanted.normalise and run.main:
        conversations = _warm_conversations(run)
        for place in made:
            normalise(place, conversations)
    if several and run.main:
        stage.directory.mkdir(parents=True, exist_ok=True)
        for place in made:
            shutil.rmtree(stage.directory / place.name, ignore_errors=True)
            os.replace(place, stage.directory / place.name)
    PartialState().wait_for_everyone()
    rows = "pairs" if rated is None else "rated conversations"
    return {**metrics, "says": f"{', '.join(says)}, on {len(held_out)} held-out {rows} (95% interval)"}


def _how_good(metrics: Mapping[str, Any]) -> str:
    """What a reward model reached on its held-out rows, in words."""
    if "correlation" in metrics:
        low, high = metrics["correlation_interval"]
        return f"correlation with the scores {metrics['correlation']:.2f} [{low:.2f}, {high:.2f}]"
    low, high = metrics["accuracy_interval"]
    beside = f" (the most frequent label: {metrics['most_frequent']:.1%})" if "most_frequent" in metrics else ""
    what = "label right" if beside else "prefers the better of two"
    return f"{what} {metrics['accuracy']:.1%} [{low:.1%}, {high:.1%}]{beside}"


def _warm_conversations(run: Run) -> list[tuple[Any, Any]]:
    """What the warm start says in some episodes of the training."""
    config, make_env, sampling = run.config, factory_of(run.task.train_env), sampling_of(run.config)
    policy, tokenizer = run.load(run.warm_start), load_tokenizer(run.warm_start)
    seeds = fitting_seeds(make_env, list(run.task.train_seeds)[:NORMALISED_ON], policy, tokenizer, sampling)
    patience = Patience(config.env.step_timeout, config.env.restarts)
    environments = TextVectorEnv(make_env, len(seeds), patience=patience)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        rollouts = play(policy, tokenizer, environments, seeds, sampling)
    return [(episode.prompt, episode.completion) for episode in rollouts.episodes]


def _load_reward(run: Run, path: str) -> Any:
    wanted = run.config.reward
    options = {"kappa": wanted.kappa} if member_paths(path) else {}
    return load_trained(path, **options, **wanted.kwargs)
