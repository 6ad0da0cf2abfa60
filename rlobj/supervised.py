"""The supervised side: rows with labels, ℓ on them, and the warm start.

Legend: B rows of a (micro-)batch, T tokens, V vocabulary, A labels.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from accelerate import PartialState
from datasets import Dataset
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from trl import SFTConfig, SFTTrainer

from rlobj.chat_format import IGNORED_LABEL, ChatFormat, Message
from rlobj.encoder_policy import is_one_token_policy
from rlobj.modes import evaluating
from rlobj.policies import save_policy
from rlobj.rollout import encode_text
from rlobj.tracking import track

# transformers on its own renamed field, which TRL's configuration still sets: nothing that a user could mend
warnings.filterwarnings("ignore", r"`\w*gradient_checkpointing\w*` is deprecated", FutureWarning)


class SupervisedRow(NamedTuple):
    """One labelled pair (x, y) as tokens."""

    input_ids: list[int]
    labels: list[int]
    """A causal policy's: a target per token, IGNORED_LABEL where there is none. An encoder's: the one label."""

    @property
    def targets(self) -> int:
        """How many targets the row has; the first token of a sequence predicts nothing before it."""
        return sum(label != IGNORED_LABEL for label in self.labels)


def dialogue_rows(
    tokenizer: PreTrainedTokenizerBase, dialogues: Iterable[Sequence[Message]], max_length: int
) -> list[SupervisedRow]:
    """Dialogues as rows for a causal policy: every assistant token is a target."""
    chat = ChatFormat(tokenizer)
    rows = [SupervisedRow(*chat.encode(messages, max_length)) for messages in dialogues]
    for row in rows:
        row.labels[0] = IGNORED_LABEL  # nothing stands before it to predict it from
    return _not_empty(rows)


def label_rows(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], labels: Sequence[int], max_length: int
) -> list[SupervisedRow]:
    """Labelled texts as rows for an encoder policy, encoded as the environment's observation is."""
    return _not_empty(
        [
            SupervisedRow(encode_text(tokenizer, [{"role": "user", "content": text}], max_length), [label])
            for text, label in zip(texts, labels, strict=True)
        ]
    )


def _not_empty(rows: list[SupervisedRow]) -> list[SupervisedRow]:
    kept = [row for row in rows if row.targets]
    if not kept:
        raise ValueError(f"none of the {len(rows)} supervised rows has a target: expected at least one (x, y) pair")
    return kept


TokenWeights = Literal["none", "chord"]


def supervised_loss_sum(
    model: torch.nn.Module, rows: Sequence[SupervisedRow], policy: PreTrainedModel, token_weights: TokenWeights = "none"
) -> Tensor:
    """Σ −w · log p(y | x) over the targets of `rows`, in nats, shape ().

    Args:
        model: what is called: the policy, or its distributed wrapper.
        rows: at least one.
        policy: the policy itself, for its kind, device and pad token.
        token_weights: "none": w is 1. "chord": w = p(1 − p), taken as a constant (Zhang et al. 2025): what the policy
            knows already, or holds for next to impossible, moves it little.
    """
    ids, mask, labels = right_padded(rows, policy)
    if token_weights == "chord":
        logits, targets = _logits_and_targets(model(input_ids=ids, attention_mask=mask).logits.float(), labels, policy)
        nll = F.cross_entropy(logits.transpose(1, 2), targets, ignore_index=IGNORED_LABEL, reduction="none")
        p = nll.detach().neg().exp()
        return (p * (1 - p) * nll).sum()
    if is_one_token_policy(policy):
        logits = model(input_ids=ids, attention_mask=mask).logits.float()
        return F.cross_entropy(logits, labels[:, 0], reduction="sum")
    # the model's own loss, as SFTTrainer calls it; divided by 1 it is the sum
    return model(input_ids=ids, attention_mask=mask, labels=labels, num_items_in_batch=1, use_cache=False).loss


def _logits_and_targets(logits: Tensor, labels: Tensor, policy: PreTrainedModel) -> tuple[Tensor, Tensor]:
    """Logits and what they should say, (B, T, V) and (B, T), side by side: a classifier's T is 1."""
    if is_one_token_policy(policy):
        return logits[:, None], labels[:, :1]
    return logits[:, :-1], labels[:, 1:]


def right_padded(rows: Sequence[SupervisedRow], policy: PreTrainedModel) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, mask and labels of `rows`, each (B, longest), on the policy's device."""
    pad_id = policy.config.get_text_config().pad_token_id or 0
    width = max(len(row.input_ids) for row in rows)

    def padded(values: Iterable[list[int]], fill: int) -> Tensor:
        return torch.tensor([v + [fill] * (width - len(v)) for v in values], device=policy.device)

    return (
        padded((row.input_ids for row in rows), pad_id),
        padded(([1] * len(row.input_ids) for row in rows), 0),
        padded((row.labels for row in rows), IGNORED_LABEL),
    )


@torch.no_grad()
def supervised_losses(policy: PreTrainedModel, rows: Sequence[SupervisedRow], batch_size: int = 64) -> list[float]:
    """ℓ of each row by itself: mean −log p over its targets, in nats. For evaluation, with an interval over rows."""
    losses: list[float] = []
    with evaluating(policy):
        for start in range(0, len(rows), batch_size):
            ids, mask, labels = right_padded(rows[start : start + batch_size], policy)
            logits = policy(input_ids=ids, attention_mask=mask).logits.float()
            logits, targets = _logits_and_targets(logits, labels, policy)
            nll = F.cross_entropy(logits.transpose(1, 2), targets, ignore_index=IGNORED_LABEL, reduction="none")
            losses += (nll.sum(1) / (targets != IGNORED_LABEL).sum(1)).tolist()
    return losses


def mean_supervised_loss(policy: PreTrainedModel, rows: Sequence[SupervisedRow], most: int) -> float:
    """ℓ of about `most` rows from all over the data."""
    losses = supervised_losses(policy, rows[:: max(len(rows) // most, 1)])
    return sum(losses) / len(losses)


def warm_start(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[SupervisedRow],
    directory: str | Path,
    *,
    epochs: float,
    learning_rate: float,
    batch_size: int,
    seed: int,
    trl: dict[str, Any] | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    resume: str | None = None,
) -> list[dict[str, float]]:
    """Train the policy on labelled rows before any reward (RL4LMs' supervised warm start) and save it.

    A causal policy goes through TRL's `SFTTrainer`; its rows are tokenised already, and it leaves them as they are.
    Without rows or epochs the policy is saved as it came.

    Returns: the training log, one dict per logged step.
    """
    directory = Path(directory)
    if not rows or epochs == 0:
        if PartialState().is_main_process:
            save_policy(policy, tokenizer, directory)
        PartialState().wait_for_everyone()
        return []
    fields: dict[str, Any] = {
        "output_dir": str(directory.parent / "checkpoints" / directory.name),
        "num_train_epochs": epochs,
        "learning_rate": learning_rate,
        "per_device_train_batch_size": batch_size,
        "seed": seed,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 20,
        "logging_steps": 10,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "dataloader_pin_memory": False,
        "remove_unused_columns": False,
        **(trl or {}),
    }
    dataset = Dataset.from_list([row._asdict() for row in rows])
    if is_one_token_policy(policy):
        trainer: Any = _label_trainer(policy, dataset, fields, callbacks)
    else:
        trainer = SFTTrainer(
            policy,
            SFTConfig(**fields, max_length=None, dataset_kwargs={"skip_prepare_dataset": True}),
            train_dataset=dataset,
            processing_class=tokenizer,
            callbacks=list(callbacks),
        )
    quiet(trainer)
    track(trainer)
    trainer.train(resume_from_checkpoint=resume)
    whole = trainer.accelerator.get_state_dict(trainer.model)  # gathered by all, where FSDP splits it
    if trainer.accelerator.is_main_process:
        save_policy(policy, tokenizer, directory, whole)
    trainer.accelerator.wait_for_everyone()
    return list(trainer.state.log_history)


def _label_trainer(
    policy: PreTrainedModel, dataset: Dataset, fields: dict[str, Any], callbacks: Sequence[TrainerCallback]
) -> Any:
    """Cross-entropy on labels through transformers' Trainer: TRL has none for classifiers."""
    from transformers import Trainer, TrainingArguments

    def collate(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        ids, mask, labels = right_padded([SupervisedRow(**row) for row in rows], policy)
        return {"input_ids": ids, "attention_mask": mask, "labels": labels[:, 0]}

    def mean_loss(outputs: Any, labels: Tensor, num_items_in_batch: Tensor) -> Tensor:
        """ℓ over the labels of the whole step: the classifier's own is a mean over a part, and transformers adds parts
        and processes up as if it were divided by all."""
        return F.cross_entropy(outputs.logits.float(), labels, reduction="sum") / num_items_in_batch

    return Trainer(
        policy,
        TrainingArguments(**fields),
        train_dataset=dataset,
        data_collator=collate,
        callbacks=list(callbacks),
        compute_loss_func=mean_loss,
    )


def quiet(trainer: Any) -> None:
    """Take away the printing of raw log dicts: progress is shown by our own callback."""
    from transformers.trainer_callback import PrinterCallback

    trainer.remove_callback(PrinterCallback)
