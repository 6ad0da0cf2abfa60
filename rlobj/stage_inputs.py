"""What the result of each stage depends on: fields of the configuration, and digests of what they name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from envs.datasets import shipped
from reward_models.trained import member_paths
from rlobj import __version__
from rlobj.config import RunConfig
from rlobj.runs import content_digest
from rlobj.tasks import MODEL_USER

TOLD_TO_OTHERS = ("report_to", "project")
"""Fields of training that its result does not depend on."""


def warm_inputs(config: RunConfig) -> dict[str, Any]:
    """Of the warm start."""
    return {
        "rlobj": __version__,
        **named("policy", asdict(config.policy)),
        **named("env", {k: v for k, v in asdict(config.env).items() if k != "eval_episodes"}),
        **named("data", asdict(config.data)),
        **named("warm_start", asdict(config.warm_start)),
        "seed": config.seed,
        **contents(config),
    }


def reward_inputs(config: RunConfig) -> dict[str, Any]:
    """Of the reward alone: whatever it is made of."""
    wanted = config.reward
    inputs: dict[str, Any] = {"reward.kind": wanted.kind}
    if trains_reward(config):
        inputs |= {"reward.pairs": wanted.pairs, **named("reward.trl", wanted.trl)}
        inputs |= {"reward.lora": wanted.lora}
        inputs |= {"reward.ensemble": wanted.ensemble, "reward.normalise": wanted.normalise}
    elif wanted.kind == "trained":
        assert wanted.model is not None
        inputs |= {"reward.model": wanted.model, **weights_of(wanted.model)}
    elif wanted.compose:
        inputs |= {"reward.compose": wanted.compose, **_code_of(wanted.compose)}
    elif wanted.kind == "function":
        inputs |= {"reward.function": wanted.function, **_code_of(wanted.function)}
        inputs |= named("reward.kwargs", wanted.kwargs)
    return inputs


def policy_inputs(config: RunConfig, lambda_sup: float | str) -> dict[str, Any]:
    """Of the policy of one λ."""
    return {
        **warm_inputs(config),
        **reward_inputs(config),
        **named("training", {k: v for k, v in asdict(config.training).items() if k not in TOLD_TO_OTHERS}),
        **named("rollout", asdict(config.rollout)),
        **(named("ppo", asdict(config.ppo)) if config.training.estimator == "ppo" else {}),
        **({"env.eval_episodes": config.env.eval_episodes} if config.training.keep_best else {}),
        **named("objective", asdict(config.objective)),
        "objective.lambda_sup": lambda_sup,
        **contents_of(config.objective.sources),
        "reward.on_failure": config.reward.on_failure,
        **(_how_the_reward_is_used(config) if config.reward.kind == "trained" else {}),
    }


def trains_reward(config: RunConfig) -> bool:
    """Whether the run trains a reward model of its own."""
    return config.reward.kind == "trained" and config.reward.model is None


def _how_the_reward_is_used(config: RunConfig) -> dict[str, Any]:
    wanted = config.reward
    return {"reward.kappa": wanted.kappa, **named("reward.kwargs", wanted.kwargs)}


def named(section: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields by their dotted names, as on the command line."""
    return {f"{section}.{name}": value for name, value in fields.items()}


def contents(config: RunConfig) -> dict[str, str]:
    """Digests of the files that the data and the environment's arguments name, and of the weights of the model that is
    begun with and of one that plays the user: what has changed in place is another input."""
    given = [
        config.data.train,
        config.data.eval,
        config.data.preferences,
        config.data.rated,
        *config.env.kwargs.values(),
    ]
    names = [name.removeprefix(MODEL_USER) for name in given if isinstance(name, str) and name]
    found = contents_of(names)
    for name in [*names, config.policy.model or ""]:
        found |= weights_of(name)
    return found


def contents_of(names: Iterable[str | None]) -> dict[str, str]:
    """Digests of the files and shipped data sets among the names: what has changed in place is another input."""
    given = [name for name in names if name]
    files = {name: Path(name) if Path(name).is_file() else shipped().get(name) for name in given}
    return {f"content of {name}": content_digest(file) for name, file in files.items() if file is not None}


def weights_of(model: str | None) -> dict[str, str]:
    """Digests of the weights of a model's directory and of an ensemble's members."""
    files = [Path(model), *member_paths(model)] if model else []
    weights = [folder / "model.safetensors" for folder in files]
    return {f"weights of {file.parent}": content_digest(file) for file in weights if file.is_file()}


def _code_of(rewards: Any) -> dict[str, str]:
    """Digests of the user's files that rewards stand in: edited, they are others."""
    if isinstance(rewards, dict):
        return {name: code for pair in rewards.items() for part in pair for name, code in _code_of(part).items()}
    if isinstance(rewards, list):
        return {name: code for part in rewards for name, code in _code_of(part).items()}
    file = Path(str(rewards).rpartition(":")[0])
    return {f"code of {file}": content_digest(file)} if file.suffix == ".py" and file.is_file() else {}
