"""Reward models from preferences, by TRL's RewardTrainer (Bradley and Terry 1952)."""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset
from scipy.stats import binomtest
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from transformers.trainer_callback import PrinterCallback
from trl import RewardConfig, RewardTrainer

from reward_models.trained import TrainedReward, context_length, encode_conversation

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
) -> dict[str, Any]:
    """Train a sequence classifier to score the chosen conversation above the rejected one, and save it.

    Args:
        model: directory or Hub id whose weights are the beginning, with a new head of one output; or a loaded
            classifier with one output.
        train_pairs, eval_pairs: rows with `chosen` and `rejected`, and `prompt` if those do not begin with it; lists
            of messages, or texts.
        output_dir: becomes an ordinary Hugging Face directory (safetensors, tokenizer), all at once at the end.
        config: fields of trl.RewardConfig.
        resume: checkpoint of the same training to go on from.

    Returns:
        `accuracy` on the evaluation pairs (a tie counts half), `accuracy_interval` (95%, Wilson), and `history`, the
        training log.

    Raises:
        ValueError: no pairs, a missing column, unknown configuration, or a loss that is not finite.
    """
    config = dict(config or {})
    known = [each.name for each in dataclasses.fields(RewardConfig)]
    for name in config:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"trl.RewardConfig has no field {name!r}{hint}")
    output = Path(output_dir)
    fields = {"output_dir": str(output.parent / "checkpoints" / output.name), **DEFAULTS, **config}
    arguments = RewardConfig(**{**fields, "max_length": None})  # encode_conversation has cut what is too long
    model = _classifier(model, tokenizer, arguments.seed)
    limit = config.get("max_length") or context_length(model.config)
    train, held_out = (encode_pairs(tokenizer, pairs, limit) for pairs in (train_pairs, eval_pairs))
    trainer = RewardTrainer(
        model,
        arguments,
        train_dataset=Dataset.from_list(train),
        processing_class=tokenizer,
        callbacks=[*callbacks, _FiniteLoss()],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=resume)
    if trainer.accelerator.is_main_process:
        _save(model, tokenizer, output)
    PartialState().wait_for_everyone()
    return {**_judge(TrainedReward(output), held_out), "history": list(trainer.state.log_history)}


def encode_pairs(
    tokenizer: PreTrainedTokenizerBase, pairs: Iterable[dict[str, Any]], max_length: int | None
) -> list[dict[str, list[int]]]:
    """Pairs as `chosen_ids` and `rejected_ids`; those that differ in nothing that the model sees are left out.

    Raises:
        ValueError: a column is missing, or no pair is left.
    """
    rows = []
    for number, pair in enumerate(pairs):
        for column in ("chosen", "rejected"):
            if pair.get(column) is None:
                raise ValueError(f"preference pair {number} has the columns {sorted(pair)}: expected {column!r}")
        empty: Any = "" if isinstance(pair["chosen"], str) else []
        ids = [
            encode_conversation(tokenizer, pair.get("prompt") or empty, pair[column], max_length)
            for column in ("chosen", "rejected")
        ]
        if ids[0] != ids[1]:
            rows.append({"chosen_ids": ids[0], "rejected_ids": ids[1]})
    if not rows:
        raise ValueError("there are no preference pairs whose two sides differ: expected at least one")
    return rows


def _classifier(
    model: str | os.PathLike[str] | PreTrainedModel, tokenizer: PreTrainedTokenizerBase, seed: int
) -> PreTrainedModel:
    if isinstance(model, str | os.PathLike):
        torch.manual_seed(seed)  # of the new head
        model = AutoModelForSequenceClassification.from_pretrained(
            model, num_labels=1, use_safetensors=True, dtype=torch.float32
        )
    if model.config.num_labels != 1:
        raise ValueError(f"the model has {model.config.num_labels} outputs: expected one score (num_labels=1)")
    model.config.pad_token_id = tokenizer.pad_token_id
    return model


def _save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, output: Path) -> None:
    """Write beside the place, then take it: nobody sees half a model."""
    writing = output.with_name(f"{output.name}.writing")
    shutil.rmtree(writing, ignore_errors=True)
    model.save_pretrained(writing)
    tokenizer.save_pretrained(writing)
    shutil.rmtree(output, ignore_errors=True)
    os.replace(writing, output)


def _judge(reward: TrainedReward, pairs: list[dict[str, list[int]]]) -> dict[str, Any]:
    scores = reward.score_ids([ids for pair in pairs for ids in (pair["chosen_ids"], pair["rejected_ids"])])
    margins = [chosen - rejected for chosen, rejected in zip(scores[::2], scores[1::2], strict=True)]
    right = sum(1.0 if margin > 0 else 0.5 if margin == 0 else 0.0 for margin in margins)
    interval = binomtest(round(right), len(margins)).proportion_ci(0.95, method="wilson")
    return {"accuracy": right / len(margins), "accuracy_interval": (float(interval.low), float(interval.high))}


class _FiniteLoss(TrainerCallback):
    """A reward model whose loss was not finite is never saved."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        loss = (logs or {}).get("loss")
        if loss is not None and not math.isfinite(loss):
            raise ValueError(
                f"the reward model's loss is {loss} at step {state.global_step}: lower learning_rate "
                f"({args.learning_rate}) in reward.trl"
            )
