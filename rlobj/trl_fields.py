"""Which fields of TRL's and transformers' configuration a recipe may set in `trl` and `trainer`, and to what."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from rlobj.spelling import did_you_mean

if TYPE_CHECKING:
    from rlobj.config import RunConfig

LOSS_TYPES = ("grpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo")
"""Those whose denominator counts over the whole global batch, so that λ keeps its meaning when the batch is split:
`bnpo` divides by the tokens of the micro-batch alone."""

EVERYWHERE = {
    "output_dir": "output_dir and name",
    "seed": "seed",
    "data_seed": "seed",
    "model_init_kwargs": "policy.model",
    "trust_remote_code": None,
    "push_to_hub": None,
    "resume_from_checkpoint": None,
    "remove_unused_columns": None,
}
RESERVED: dict[str, dict[str, str | None]] = {
    "training.trl": EVERYWHERE
    | {
        "max_steps": "training.steps",
        "num_train_epochs": "training.steps",
        "learning_rate": "training.learning_rate",
        "num_generations": "training.num_generations",
        "per_device_train_batch_size": "training.prompts_per_step and training.num_generations",
        "generation_batch_size": "training.prompts_per_step and training.num_generations",
        "max_completion_length": "training.max_reply_tokens",
        "temperature": "training.temperature",
        "beta": "training.beta",
        "reward_weights": "reward.function",
        "use_vllm": None,  # rlobj plays the episodes of environments itself
    },
    "warm_start.trl": EVERYWHERE
    | {
        "num_train_epochs": "warm_start.epochs",
        "max_steps": "warm_start.epochs",
        "learning_rate": "warm_start.learning_rate",
        "per_device_train_batch_size": "warm_start.batch_size",
        "max_length": "policy.max_length",
    },
    "reward.trl": EVERYWHERE | {"model_init_kwargs": "reward.model"},
    "trainer": EVERYWHERE
    | {
        "num_train_epochs": "epochs",
        "max_steps": "epochs",
        "learning_rate": "learning_rate",
        "per_device_train_batch_size": "batch_size",
        "metric_for_best_model": "metric",
        "greater_is_better": None,
        "load_best_model_at_end": None,
    },
}
"""Fields of TRL that rlobj sets itself -> the key of rlobj to use (None: rlobj decides)."""


def check_trl_fields(config: RunConfig) -> None:
    """Check training.trl, warm_start.trl and reward.trl; TRL is imported only if one of them has a field.

    Raises:
        ValueError: a field that TRL does not have, that rlobj sets itself, or of the wrong type.
    """
    given = {
        "training.trl": ("GRPOConfig", config.training.trl),
        "warm_start.trl": ("SFTConfig", config.warm_start.trl),
        "reward.trl": ("RewardConfig", config.reward.trl),
    }
    for section, (kind, fields) in given.items():
        if not fields:
            continue
        import trl

        known = {each.name: each.default for each in dataclasses.fields(getattr(trl, kind))}
        for name, value in fields.items():
            _check_field(f"{section}.{name}", name, value, known, f"trl.{kind}", RESERVED[section])


def check_trainer_fields(section: str, fields: dict[str, Any]) -> None:
    """Check a `trainer` mapping against transformers.TrainingArguments, which is imported only if it has a field.

    Args:
        section: where it stands, such as "fit".

    Raises:
        ValueError: as `check_trl_fields`.
    """
    if not fields:
        return
    from transformers import TrainingArguments

    known = {each.name: each.default for each in dataclasses.fields(TrainingArguments)}
    reserved = {
        name: key if key is None or name in EVERYWHERE else f"{section}.{key}"
        for name, key in RESERVED["trainer"].items()
    }
    for name, value in fields.items():
        _check_field(f"{section}.trainer.{name}", name, value, known, "transformers.TrainingArguments", reserved)


def _check_field(
    key: str, name: str, value: Any, known: dict[str, Any], kind: str, reserved: dict[str, str | None]
) -> None:
    if name in reserved:
        instead = reserved[name]
        remedy = f"use {instead} instead" if instead else "leave it out"
        raise ValueError(f"{key} cannot be set: rlobj sets it itself; {remedy}")
    if name not in known:
        raise ValueError(f"unknown key {key!r}: {kind} has no such field{did_you_mean(name, known)}")
    expected = {bool: (bool,), int: (int,), float: (int, float)}.get(type(known[name]))
    # a bool is an int to Python, not to a reader
    if (
        expected
        and value is not None
        and (not isinstance(value, expected) or isinstance(value, bool) != (bool in expected))
    ):
        raise ValueError(f"{key} is {value!r}: expected {type(known[name]).__name__}, as in {known[name]!r}")
    if name == "loss_type" and kind == "trl.GRPOConfig" and value not in LOSS_TYPES:
        why = "divides by the tokens of a micro-batch, so λ would change its meaning with the split" * (value == "bnpo")
        raise ValueError(
            f"{key} is {value!r}{', which ' + why if why else ''}: expected one of {', '.join(LOSS_TYPES)}"
        )
