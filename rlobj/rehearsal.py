"""A trained model on new data, with rehearsal of the old: L(θ) = ℓ_new(θ) + λ·ℓ_old(θ).

It is L(θ) = −R(θ) + λ·ℓ with −ℓ_new as R: what is maximised is the log-probability of the new data's labels. The same
`objective`, the same forms of λ.

Legend: B rows, T tokens, K labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from rlobj.chat_format import IGNORED_LABEL
from rlobj.encoder_policy import label_head
from rlobj.fit_tasks import Encoded, LanguageModeling, Regression, SupervisedTask, TextClassification
from rlobj.policies import load_causal, load_encoder, load_tokenizer
from rlobj.self_supervised import Batch, Network
from rlobj.supervised import SupervisedRow


def log_probabilities(logits: Tensor, labels: Tensor, task: SupervisedTask, smoothing: float = 0.0) -> Tensor:
    """log p of each target, (B,), or of all those that are (N,): of a label, a tag, the next token; of a number
    −(ŷ − y)², in units of the old data's deviation: twice that of a Gaussian, but for a constant.

    Args:
        logits: (B, K) or (B, T, K).
        labels: (B,) or (B, T), IGNORED_LABEL where there is no target.
        smoothing: share of each target that all labels have a part of.
    """
    logits = logits.float()
    if isinstance(task, Regression):
        return -((logits[:, 0] - labels) ** 2)
    if isinstance(task, LanguageModeling):
        logits, labels = logits[:, :-1], labels[:, 1:]
    kept = labels != IGNORED_LABEL
    return -F.cross_entropy(logits[kept], labels[kept], reduction="none", label_smoothing=smoothing)


class RehearsedNetwork(Network):
    """A model whose P is the mean log-probability of the new data's targets, and whose ℓ is that of the old ones.

    Args:
        task: how a row is encoded, and what its targets are.
    """

    def __init__(self, task: SupervisedTask, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.task, self.model, self.tokenizer, self.supervised = task, model, tokenizer, None
        self.pad = task.collator(tokenizer)

    def log_probabilities(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask") if name in batch}
        return log_probabilities(self.model(**inputs).logits, batch["labels"], self.task), None

    def ell_sum(self, rows: Sequence[SupervisedRow]) -> Tensor:
        """Σ −log p over the targets of old rows, ()."""
        batch = self.pad([self._encoded(row) for row in rows])
        here = {name: values.to(self.model.device) for name, values in batch.items()}
        return -self.log_probabilities(here)[0].sum()

    def old_rows(self, encoded: Sequence[Encoded]) -> list[SupervisedRow]:
        """Encoded examples as rows of the stream, those without a target left out."""
        rows = [SupervisedRow(e["input_ids"], e["labels"] if _is_list(e) else [e["labels"]]) for e in encoded]
        return [row for row in rows if row.targets]

    def _encoded(self, row: SupervisedRow) -> Encoded:
        one = isinstance(self.task, TextClassification | Regression)
        return {"input_ids": row.input_ids, "labels": row.labels[0] if one else row.labels}


def _is_list(encoded: Encoded) -> bool:
    return isinstance(encoded["labels"], list)


def load_trained(task: str, path: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A trained model of a task with its tokenizer."""
    tokenizer = load_tokenizer(path)
    if task == "language-modeling":
        return load_causal(path), tokenizer
    tokenizer.padding_side = "right"  # encoders count positions from the left
    auto: Any = (
        AutoModelForTokenClassification if task == "token-classification" else AutoModelForSequenceClassification
    )
    return load_encoder(path, names_of(task, path) or ["score"], auto), tokenizer


def names_of(task: str, path: str) -> list[str]:
    """The names of a classifier's labels, in their order; none of a model of numbers or text."""
    if task in ("regression", "language-modeling"):
        return []
    config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    return [str(config.id2label[index]) for index in range(config.num_labels)]


@torch.no_grad()
def grow_head(model: PreTrainedModel, names: Sequence[str], seed: int) -> None:
    """Give a classifier outputs for more labels, in place: those it has stay as they are, in front; a new one begins
    with small random weights and the mean of the others' biases.

    Args:
        names: of all labels.
    """
    old = label_head(model)
    known = old.out_features
    if len(names) > known:
        new = nn.Linear(old.in_features, len(names), bias=old.bias is not None).to(old.weight.device, old.weight.dtype)
        generator = torch.Generator().manual_seed(seed)
        new.weight.copy_(torch.randn(new.weight.shape, generator=generator) * float(old.weight.std()))
        new.weight[:known] = old.weight
        if old.bias is not None:
            new.bias.fill_(float(old.bias.mean()))
            new.bias[:known] = old.bias
        place = next(name for name, module in model.named_modules() if module is old)
        parent, _, last = place.rpartition(".")
        setattr(model.get_submodule(parent), last, new)
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: index for index, name in enumerate(names)}
    model.num_labels = len(names)


@torch.no_grad()
def speak_in_deviations(model: PreTrainedModel, mean: float, std: float) -> None:
    """Let a regression that speaks in the numbers' own units say how many deviations they are from the mean, in place:
    the inverse of `Regression.finish`."""
    head = label_head(model)
    head.bias.sub_(mean).div_(std)
    head.weight.div_(std)
