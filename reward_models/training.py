"""Reward models from preferences, by TRL's RewardTrainer (Bradley and Terry 1952)."""

from __future__ import annotations

import copy
import dataclasses
import math
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset
from scipy.stats import binomtest
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from transformers.trainer_callback import PrinterCallback
from trl import RewardConfig, RewardTrainer

from reward_models.calling import nearest
from reward_models.trained import (
    NORMALISATION,
    TrainedReward,
    context_length,
    encode_conversation,
    quiet,
    require_chat_and_padding,
)

DEFAULTS: dict[str, Any] = {
    "num_train_epochs": 1,
    "learning_rate": 5e-4,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 10,
    "per_device_train_batch_size": 32,
    "logging_steps": 10,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "dataloader_pin_memory": False,
    "center_rewards_coefficient": 0.01,
}
"""Fields of trl.RewardConfig unless the caller sets them. Centring keeps returns near 0 (Eisenstein et al. 2023)."""


def train_reward_model(
    model: str | os.PathLike[str] | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    train_pairs: Iterable[dict[str, Any]],
    eval_pairs: Iterable[dict[str, Any]],
    output_dir: str | os.PathLike[str],
    config: dict[str, Any] | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    resume: str | None = None,
    lora: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Train a sequence classifier to score the chosen conversation above the rejected one, and save it.

    Args:
        model: directory or Hub id whose weights are the beginning, with a new head of one output; or a loaded
            classifier with one output.
        train_pairs, eval_pairs: rows with `chosen` and `rejected`, and `prompt` if those do not begin with it; lists
            of messages, or texts. A `margin` is by how much the chosen one should score higher (Touvron et al. 2023).
        output_dir: becomes an ordinary Hugging Face directory (safetensors, tokenizer), all at once at the end.
        config: fields of trl.RewardConfig. Conversations longer than `max_length`, or than the model's context, keep
            their end; the saved model is used with the same limit.
        resume: checkpoint of the same training to go on from.
        lora: fields of peft.LoraConfig ({"r": 8}): train an adapter and the head alone; it is merged when saved.

    Returns:
        `accuracy` on the evaluation pairs (a tie counts half), `accuracy_interval` (95%, Wilson, of the number of
        pairs that were right, rounded), and `history`, the training log.

    Raises:
        ValueError: no pairs, a missing column, unknown configuration, a tokenizer without chat template, or a loss or
            weight that is not finite, in which case nothing is saved.
    """
    arguments = training_arguments(config or {}, Path(output_dir))
    tokenizer = copy.deepcopy(tokenizer)  # it gets a pad token and a limit, which are not the caller's
    require_chat_and_padding(tokenizer)
    with quiet():
        model = classifier(model, tokenizer, arguments.seed)
        limit = set_limit(tokenizer, model, (config or {}).get("max_length"))
        model = with_lora(model, lora)
        train = encode_pairs(tokenizer, train_pairs, limit, "train_pairs")
        held_out = encode_pairs(tokenizer, eval_pairs, limit, "eval_pairs")
        trainer = RewardTrainer(
            model,
            arguments,
            train_dataset=Dataset.from_list(train),
            eval_dataset=Dataset.from_list(held_out),
            processing_class=tokenizer,
            callbacks=[*callbacks, FiniteLoss()],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train(resume_from_checkpoint=resume)
        model = merged(model)
        require_finite_weights(model, arguments.learning_rate)
        if trainer.accelerator.is_main_process:
            save_whole(model, tokenizer, Path(output_dir))
    PartialState().wait_for_everyone()
    return {**_judge(TrainedReward(output_dir), held_out), "history": list(trainer.state.log_history)}


def require_fields(given: Iterable[str], config_class: Any, called: str) -> list[str]:
    """The fields of a configuration class, if all that are given are among them.

    Raises:
        ValueError: one is not.
    """
    known = [each.name for each in dataclasses.fields(config_class)]
    for name in given:
        if name not in known:
            raise ValueError(f"{called} has no field {name!r}{nearest(name, known)}")
    return known


def training_arguments(config: dict[str, Any], output: Path) -> RewardConfig:
    known = require_fields(config, RewardConfig, "trl.RewardConfig")
    fields = {"output_dir": str(output.parent / "checkpoints" / output.name), **DEFAULTS, **config}
    if "activation_checkpointing" in known and "gradient_checkpointing" not in config:
        # the newer name of the field; the older one warns
        fields.setdefault("activation_checkpointing", fields.pop("gradient_checkpointing"))
    fields["max_length"] = None  # encode_conversation has cut what is too long
    fields["logging_nan_inf_filter"] = False  # it would log a mean in place of NaN, and hide it from FiniteLoss
    return RewardConfig(**fields)


def encode_pairs(
    tokenizer: PreTrainedTokenizerBase, pairs: Iterable[dict[str, Any]], max_length: int | None, name: str
) -> list[dict[str, Any]]:
    """Pairs as `chosen_ids` and `rejected_ids`, and their `margin` where they have one; those that differ in nothing
    that the model sees are left out.

    Args:
        name: what errors call the pairs.

    Raises:
        ValueError: a column is missing, or no pair is left.
    """
    rows = []
    for number, pair in enumerate(pairs):
        for column in ("chosen", "rejected"):
            if pair.get(column) is None:
                raise ValueError(
                    f"{name}[{number}] has nothing in {column!r}, of columns {sorted(pair)}: expected messages"
                )
        empty: Any = "" if isinstance(pair["chosen"], str) else []
        ids = [
            encode_conversation(tokenizer, pair.get("prompt") or empty, pair[column], max_length)
            for column in ("chosen", "rejected")
        ]
        if ids[0] != ids[1]:
            margin = {} if pair.get("margin") is None else {"margin": _margin(pair["margin"], f"{name}[{number}]")}
            rows.append({"chosen_ids": ids[0], "rejected_ids": ids[1], **margin})
    with_margin = sum("margin" in row for row in rows)
    if with_margin not in (0, len(rows)):
        raise ValueError(f"{name} has a margin in {with_margin} of {len(rows)} pairs: expected all or none")
    if not rows:
        raise ValueError(
            f"{name} has no pair whose two sides differ within max_length={max_length}: expected at least one"
        )
    return rows


def _margin(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{where} has the margin {value!r}: expected a finite number")
    return float(value)


def set_limit(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, wanted: int | None) -> int | None:
    """Longest conversation in tokens: as wanted, or what the model takes, whichever is less."""
    limits = (wanted, context_length(model.config, tokenizer))
    limit = min((each for each in limits if each is not None), default=None)
    if limit is not None:
        tokenizer.model_max_length = limit  # saved with the model, so that it is used as it was trained
    return limit


def classifier(
    model: str | os.PathLike[str] | PreTrainedModel, tokenizer: PreTrainedTokenizerBase, seed: int, num_labels: int = 1
) -> PreTrainedModel:
    """A classifier of so many outputs; from a directory or Hub id its head is new."""
    if isinstance(model, str | os.PathLike):
        torch.manual_seed(seed)  # of the new head
        model = AutoModelForSequenceClassification.from_pretrained(
            model, num_labels=num_labels, use_safetensors=True, trust_remote_code=False, dtype=torch.float32
        )
    if model.config.num_labels != num_labels:
        wanted = "one score (num_labels=1)" if num_labels == 1 else f"num_labels={num_labels}"
        raise ValueError(f"the model has {model.config.num_labels} outputs: expected {wanted}")
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    if hasattr(model.config, NORMALISATION):  # of the weights it begins with
        delattr(model.config, NORMALISATION)
    return model


def with_lora(model: PreTrainedModel, lora: Mapping[str, Any] | None) -> PreTrainedModel:
    """A classifier with an adapter (Hu et al. 2021) of which, with its head, alone is trained; itself without `lora`.

    Raises:
        ValueError: peft is not installed, or a field is none of LoraConfig's.
    """
    if lora is None:
        return model
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise ValueError("lora needs peft: pip install 'rlobj[peft]'") from None
    require_fields(lora, LoraConfig, "peft.LoraConfig")
    adapted: Any = get_peft_model(model, LoraConfig(**{"target_modules": "all-linear", "task_type": "SEQ_CLS", **lora}))
    return adapted  # type: ignore[no-any-return]


def merged(model: Any) -> PreTrainedModel:
    """The classifier with its adapter's weights added to its own."""
    plain: PreTrainedModel = model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
    return plain


def save_whole(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, output: Path) -> None:
    """Write beside the place, then take it: nobody sees half a model; the old one goes last."""
    writing, old = (output.with_name(f"{output.name}.{what}") for what in ("writing", "old"))
    shutil.rmtree(writing, ignore_errors=True)
    model.save_pretrained(writing)
    tokenizer.save_pretrained(writing)
    if output.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.replace(output, old)
    os.replace(writing, output)
    shutil.rmtree(old, ignore_errors=True)


def _judge(reward: TrainedReward, pairs: list[dict[str, Any]]) -> dict[str, Any]:
    scores = reward.score_ids([ids for pair in pairs for ids in (pair["chosen_ids"], pair["rejected_ids"])])
    margins = [chosen - rejected for chosen, rejected in zip(scores[::2], scores[1::2], strict=True)]
    right = sum(1.0 if margin > 0 else 0.5 if margin == 0 else 0.0 for margin in margins)
    interval = binomtest(round(right), len(margins)).proportion_ci(0.95, method="wilson")
    return {"accuracy": right / len(margins), "accuracy_interval": (float(interval.low), float(interval.high))}


class FiniteLoss(TrainerCallback):
    """A reward model whose loss was not finite is never saved."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        for name in ("loss", "train_loss"):  # the latter is the mean of all steps, also of those after the last log
            loss = (logs or {}).get(name)
            if loss is not None and not math.isfinite(loss):
                raise ValueError(
                    f"the reward model's loss is {loss} at step {state.global_step}: expected a finite number; lower "
                    f"learning_rate ({args.learning_rate})"
                )


def require_finite_weights(model: PreTrainedModel, learning_rate: float) -> None:
    """The last step's gradient is in the weights, but in no loss."""
    for name, weights in model.named_parameters():
        if not torch.isfinite(weights).all():
            raise ValueError(f"the reward model's {name} is not finite: lower learning_rate ({learning_rate})")
