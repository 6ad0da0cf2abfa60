"""Reward models from rated conversations: scores (regression) or labels (classification), by transformers' Trainer."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from datasets import Dataset
from scipy import stats
from transformers import DataCollatorWithPadding, PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerCallback
from transformers.trainer_callback import PrinterCallback

from reward_models.trained import TrainedReward, encode_conversation, quiet, require_chat_and_padding
from reward_models.training import (
    FiniteLoss,
    classifier,
    merged,
    require_finite_weights,
    save_whole,
    set_limit,
    training_arguments,
    with_lora,
)

YES_OR_NO = ({False, True}, {0, 1})
"""Labels of an outcome: one output, the log-odds of its being reached, is a reward as it is."""


def train_on_ratings(
    model: str | os.PathLike[str] | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    train_rows: Iterable[dict[str, Any]],
    eval_rows: Iterable[dict[str, Any]],
    output_dir: str | os.PathLike[str],
    config: dict[str, Any] | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    resume: str | None = None,
    lora: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Train a sequence classifier on conversations that somebody rated, and save it.

    Rows with a number in `score` train a regression (mean squared error). Rows with a `label` train a classifier: of an
    outcome (0 or 1, false or true) the model's one output is its log-odds; of named labels there is an output for
    each, and `TrainedReward(path, label=…)` makes one of them a reward.

    Args:
        model: see `train_reward_model`.
        train_rows, eval_rows: conversations, `messages` or `prompt` and `completion`, with `score` or `label`.
        output_dir: becomes an ordinary Hugging Face directory (safetensors, tokenizer), all at once at the end.
        config: fields of trl.RewardConfig.
        resume: checkpoint of the same training to go on from.
        lora: see `train_reward_model`.

    Returns: on the evaluation rows: of scores `correlation` (Pearson's) and `rank_correlation` (Spearman's), with
        `correlation_interval` (95%, Fisher); of labels `accuracy` with `accuracy_interval` (95%, Wilson) and
        `most_frequent`, the share of the most frequent label, and of outcomes `auc`; and `history`, the training log.

    Raises:
        ValueError: no rows, a missing column, a rating that is none, a label that only the evaluation rows have, or
            a loss or weight that is not finite, in which case nothing is saved.
    """
    arguments = training_arguments(config or {}, Path(output_dir))
    tokenizer = copy.deepcopy(tokenizer)  # it gets a pad token and a limit, which are not the caller's
    require_chat_and_padding(tokenizer)
    train, held_out = list(train_rows), list(eval_rows)
    column, names = _what_is_rated(train, held_out)
    with quiet():
        model = classifier(model, tokenizer, arguments.seed, len(names) or 1)
        if names:
            model.config.id2label = dict(enumerate(names))
            model.config.label2id = {name: index for index, name in enumerate(names)}
        # what the library's loss is chosen by; a binary cross-entropy of one output is the outcome's
        model.config.problem_type = (
            "single_label_classification" if names
            else "multi_label_classification" if column == "label" else "regression"
        )  # fmt: skip
        limit = set_limit(tokenizer, model, (config or {}).get("max_length"))
        model = with_lora(model, lora)
        trainer = Trainer(
            model,
            arguments,
            train_dataset=Dataset.from_list(_encoded(tokenizer, train, column, names, limit)),
            data_collator=DataCollatorWithPadding(tokenizer),
            processing_class=tokenizer,
            callbacks=[*callbacks, FiniteLoss()],
        )
        # the losses are means over a part of a step: unasked, transformers adds up parts and processes undivided
        trainer.model_accepts_loss_kwargs = False
        trainer.remove_callback(PrinterCallback)
        trainer.train(resume_from_checkpoint=resume)
        model = merged(model)
        require_finite_weights(model, arguments.learning_rate)
        if trainer.accelerator.is_main_process:
            save_whole(model, tokenizer, Path(output_dir))
    PartialState().wait_for_everyone()
    encoded = _encoded(tokenizer, held_out, column, names, limit)
    metrics = _judge_labels(output_dir, encoded, names) if column == "label" else _judge_scores(output_dir, encoded)
    return {**metrics, "history": list(trainer.state.log_history)}


def _what_is_rated(train: Sequence[dict[str, Any]], held_out: Sequence[dict[str, Any]]) -> tuple[str, list[str]]:
    """The column of the ratings, and the names of the labels; none of scores and outcomes."""
    if not train or not held_out:
        raise ValueError(f"there are {len(train)} rows to train on and {len(held_out)} held out: expected some of both")
    column = next((each for each in ("score", "label") if train[0].get(each) is not None), None)
    if column is None:
        raise ValueError(f"train_rows[0] has the columns {sorted(train[0])}: expected score (a number) or label")
    for name, rows in (("train_rows", train), ("eval_rows", held_out)):
        for number, row in enumerate(rows):
            value = row.get(column)
            if value is None:
                raise ValueError(f"{name}[{number}] has nothing in {column!r}, which the first row has")
            if column == "score" and (
                isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value)
            ):
                raise ValueError(f"{name}[{number}] has the score {value!r}: expected a finite number")
    if column == "score":
        return column, []
    labels = {row["label"] for row in train}
    unknown = {row["label"] for row in held_out} - labels
    if unknown or len(labels) < 2:
        raise ValueError(
            f"the labels to train on are {sorted(map(str, labels))}"
            + (f", and held-out rows have {sorted(map(str, unknown))}" if unknown else ": expected at least two")
        )
    return column, [] if labels in YES_OR_NO else sorted(map(str, labels))


def _encoded(
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[dict[str, Any]],
    column: str,
    names: Sequence[str],
    limit: int | None,
) -> list[dict[str, Any]]:
    indices = {name: index for index, name in enumerate(names)}
    encoded = []
    for number, row in enumerate(rows):
        said = row.get("completion", row.get("messages"))
        if said is None:
            raise ValueError(f"row {number} has the columns {sorted(row)}: expected messages, or prompt and completion")
        empty: Any = "" if isinstance(said, str) else []
        target: Any = row[column]
        if names:
            target = indices[str(target)]
        elif column == "label":
            target = [float(target)]
        encoded.append(
            {"input_ids": encode_conversation(tokenizer, row.get("prompt") or empty, said, limit), "labels": target}
        )
    return encoded


def _judge_scores(path: str | os.PathLike[str], rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    given = TrainedReward(path).score_ids([row["input_ids"] for row in rows])
    wanted = [float(row["labels"]) for row in rows]
    if len(rows) < 4 or len(set(given)) < 2 or len(set(wanted)) < 2:  # nothing to correlate
        return {"correlation": math.nan, "correlation_interval": (math.nan, math.nan), "rank_correlation": math.nan}
    found = stats.pearsonr(given, wanted)
    interval = found.confidence_interval(0.95)
    return {
        "correlation": float(found.statistic),
        "correlation_interval": (float(interval.low), float(interval.high)),
        "rank_correlation": float(stats.spearmanr(given, wanted).statistic),
    }


def _judge_labels(path: str | os.PathLike[str], rows: Sequence[dict[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    ids = [row["input_ids"] for row in rows]
    if names:
        logits = np.array([TrainedReward(path, label=name).score_ids(ids) for name in names])
        wanted = np.array([row["labels"] for row in rows])
        right = logits.argmax(0) == wanted
        extra = {}
    else:
        scores = np.array(TrainedReward(path).score_ids(ids))
        wanted = np.array([row["labels"][0] for row in rows])
        right = (scores > 0) == (wanted > 0)
        extra = {"auc": _auc(scores[wanted > 0], scores[wanted <= 0])}
    interval = stats.binomtest(int(right.sum()), len(rows)).proportion_ci(0.95, method="wilson")
    return {
        "accuracy": float(right.mean()),
        "accuracy_interval": (float(interval.low), float(interval.high)),
        "most_frequent": float(np.unique(wanted, return_counts=True)[1].max() / len(rows)),
        **extra,
    }


def _auc(positive: np.ndarray, negative: np.ndarray) -> float:
    """Probability that a positive one scores above a negative one (Mann and Whitney 1947)."""
    if not len(positive) or not len(negative):
        return math.nan
    return float(stats.mannwhitneyu(positive, negative).statistic / (len(positive) * len(negative)))
