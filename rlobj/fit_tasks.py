"""The supervised tasks: what is read, which model it is, how it is encoded, how it is measured.

Each task is one small class; training is the same for all (`rlobj.fitting`). Legend: N rows, K labels.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from scipy.special import log_softmax
from torch.utils.data import Dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertForSequenceClassification,
    BertForTokenClassification,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from reward_models.trained import require_vocabulary
from rlobj.adapters import MERGED, METHODS
from rlobj.chat_format import IGNORED_LABEL
from rlobj.config import ModelConfig
from rlobj.encoder_policy import label_head
from rlobj.fit_config import FitConfig
from rlobj.fit_data import Example, Parts, augmented, classified, read_synonyms, repeated, scored, tagged, written
from rlobj.inference import encode, encode_words, limit_of, logits_of, tags_of
from rlobj.intervals import RESAMPLES
from rlobj.measures import Measured, classification, entities, language, regression
from rlobj.policies import (
    load_causal,
    load_encoder,
    load_tokenizer,
    make_causal,
    make_encoder,
    make_encoder_tokenizer,
    make_tokenizer,
)
from rlobj.supervised import SupervisedRow, dialogue_rows, supervised_losses

Encoded = dict[str, Any]
"""`input_ids` and `labels`, as a Trainer's collator takes them."""


class SupervisedTask(ABC):
    """What differs between the supervised tasks."""

    parts: Parts
    metrics: tuple[str, ...]
    """those that a table shows, the first of them what a bar shows"""
    peft_type = "SEQ_CLS"
    """what peft calls the task"""
    peft_methods = tuple(METHODS)
    """the methods of policy.peft that it can be learned with"""

    def texts(self) -> list[str]:
        """Training text for a new tokenizer."""
        return [example.x for example in self.parts["train"]]

    @abstractmethod
    def model(self, policy: ModelConfig, seed: int) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Model and tokenizer to begin with."""

    @abstractmethod
    def encode(self, tokenizer: PreTrainedTokenizerBase, example: Example, limit: int | None) -> Encoded:
        """One example as tokens."""

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Callable[[list[Encoded]], dict[str, torch.Tensor]]:
        """What makes a padded batch of encoded examples."""
        return DataCollatorWithPadding(tokenizer)

    @abstractmethod
    def measure(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, part: str, resamples: int = RESAMPLES
    ) -> Measured:
        """How good the model is on one part of the data, with intervals unless resamples is 0."""

    def finish(self, model: PreTrainedModel) -> None:  # noqa: B027  (most tasks have nothing to do)
        """What the weights need before they are saved."""

    def reopen(self, model: PreTrainedModel) -> None:  # noqa: B027
        """What saved weights need before they are trained on: the inverse of `finish`."""

    def facts(self) -> dict[str, str]:
        """What a report says of the data."""
        rows = ", ".join(f"{len(rows)} {part}" for part, rows in self.parts.items())
        twice = repeated(self.parts)
        return {
            "rows": rows,
            **({"leak": f"{twice} rows of the test stand in the training data, too"} if twice else {}),
        }

    def _encoder(self, policy: ModelConfig, seed: int, names: list[str], auto: Any, new: Any) -> tuple[Any, Any]:
        if policy.model is not None:
            tokenizer = load_tokenizer(policy.model)
            tokenizer.padding_side = "right"  # encoders count positions from the left
            torch.manual_seed(seed)  # of the new head
            model = load_encoder(policy.model, names, auto)
            require_vocabulary(model, tokenizer, f"policy.model {policy.model!r}")
        else:
            tokenizer = make_encoder_tokenizer(self.texts(), policy.vocab_size, policy.max_length)
            model = make_encoder(
                tokenizer,
                names,
                hidden_size=policy.hidden_size,
                layers=policy.layers,
                heads=policy.heads,
                max_length=policy.max_length,
                seed=seed,
                head=new,
            )
        return model, tokenizer


class TextClassification(SupervisedTask):
    """One of several labels for a text."""

    metrics = ("accuracy", "macro_f1", "weighted_f1", "auc", "ell")

    def __init__(self, config: FitConfig) -> None:
        self.parts, self.names = classified(config.data, config.seed)

    def model(self, policy: ModelConfig, seed: int) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        model, tokenizer = self._encoder(
            policy, seed, self.names, AutoModelForSequenceClassification, BertForSequenceClassification
        )
        known = [model.config.id2label[i] for i in range(len(self.names))]
        if set(known) == set(self.names):
            self.names = known  # a classifier keeps the order of its labels
        elif not all(name.startswith("LABEL_") for name in known):
            raise ValueError(
                f"policy.model {policy.model!r} decides between {', '.join(known[:5])}, the data between "
                f"{', '.join(self.names[:5])}: expected the same labels, or an encoder without a label head"
            )
        model.config.id2label = dict(enumerate(self.names))
        model.config.label2id = {name: i for i, name in enumerate(self.names)}
        return model, tokenizer

    def encode(self, tokenizer: PreTrainedTokenizerBase, example: Example, limit: int | None) -> Encoded:
        return {"input_ids": encode(tokenizer, example.x, limit), "labels": self.names.index(example.y)}

    def measure(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, part: str, resamples: int = RESAMPLES
    ) -> Measured:
        labels, logits = self.judged(model, tokenizer, part)
        return classification(labels, logits, self.names, resamples)

    def judged(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, part: str
    ) -> tuple[np.ndarray, np.ndarray]:
        """True labels (N,) and logits (N, K) of one part."""
        rows = [encode(tokenizer, example.x, limit_of(model, tokenizer)) for example in self.parts[part]]
        labels = np.array([self.names.index(example.y) for example in self.parts[part]])
        return labels, np.stack(logits_of(model, tokenizer, rows))

    def facts(self) -> dict[str, str]:
        judged = [example.y for example in self.parts["test"]]
        most = max(judged.count(name) for name in self.names) / len(judged)
        return {**super().facts(), "labels": str(len(self.names)), "the most frequent label": f"{most:.1%} of the test"}


class TokenClassification(SupervisedTask):
    """A BIO tag for each word. A word's first token carries its tag; the others are not in the loss."""

    metrics = ("f1", "precision", "recall", "tag_accuracy", "ell")
    peft_type = "TOKEN_CLS"
    peft_methods = (*MERGED, "prefix")  # peft gives the tokens of a prompt tags, too

    def __init__(self, config: FitConfig) -> None:
        self.parts, self.names = tagged(config.data, config.seed)

    def texts(self) -> list[str]:
        return [" ".join(example.x) for example in self.parts["train"]]

    def model(self, policy: ModelConfig, seed: int) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        return self._encoder(policy, seed, self.names, AutoModelForTokenClassification, BertForTokenClassification)

    def encode(self, tokenizer: PreTrainedTokenizerBase, example: Example, limit: int | None) -> Encoded:
        ids, begins = encode_words(tokenizer, example.x, limit)
        # a tag that the training data have not is no target
        number = {name: i for i, name in enumerate(self.names)}
        labels = [IGNORED_LABEL if word is None else number.get(example.y[word], IGNORED_LABEL) for word in begins]
        return {"input_ids": ids, "labels": labels}

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Callable[[list[Encoded]], dict[str, torch.Tensor]]:
        return DataCollatorForTokenClassification(tokenizer, label_pad_token_id=IGNORED_LABEL)

    def measure(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, part: str, resamples: int = RESAMPLES
    ) -> Measured:
        return entities(*self.judged(model, tokenizer, part), resamples)

    def judged(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, part: str
    ) -> tuple[list[list[str]], list[list[str]], list[float]]:
        """True and predicted tags of each sentence of one part, and ℓ of those that have a target."""
        examples, limit = self.parts[part], limit_of(model, tokenizer)
        encoded = [encode_words(tokenizer, example.x, limit) for example in examples]
        logits = logits_of(model, tokenizer, [ids for ids, _ in encoded])
        predicted = [
            tags_of(each, begins, len(example.x), self.names)
            for each, (_, begins), example in zip(logits, encoded, examples, strict=True)
        ]
        losses = []
        for each, example in zip(logits, examples, strict=True):
            targets = np.array(self.encode(tokenizer, example, limit)["labels"])
            kept = (targets != IGNORED_LABEL) & (targets < each.shape[1])
            if kept.any():
                losses.append(-log_softmax(each[kept], axis=1)[np.arange(kept.sum()), targets[kept]].mean())
        return [example.y for example in examples], predicted, losses


class Regression(SupervisedTask):
    """A number for a text. It is learned in units of its standard deviation, which the saved head has in it."""

    metrics = ("spearman", "pearson", "rmse", "mae")

    def __init__(self, config: FitConfig) -> None:
        self.parts = scored(config.data, config.seed)
        values = [example.y for example in self.parts["train"]]
        self.mean, self.std = float(np.mean(values)), float(np.std(values))

    def model(self, policy: ModelConfig, seed: int) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        model, tokenizer = self._encoder(
            policy, seed, ["score"], AutoModelForSequenceClassification, BertForSequenceClassification
        )
        model.config.problem_type = "regression"
        return model, tokenizer

    def encode(self, tokenizer: PreTrainedTokenizerBase, example: Example, limit: int | None) -> Encoded:
        return {"input_ids": encode(tokenizer, example.x, limit), "labels": (example.y - self.mean) / self.std}

    def measure(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, part: str, resamples: int = RESAMPLES
    ) -> Measured:
        return regression(*self.judged(model, tokenizer, part), resamples)

    def judged(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, part: str
    ) -> tuple[np.ndarray, np.ndarray]:
        """True and predicted numbers of one part, both (N,)."""
        rows = [encode(tokenizer, example.x, limit_of(model, tokenizer)) for example in self.parts[part]]
        predicted = np.array([float(each[0]) for each in logits_of(model, tokenizer, rows)])
        return np.array([example.y for example in self.parts[part]]), predicted * self.std + self.mean

    @torch.no_grad()
    def finish(self, model: PreTrainedModel) -> None:
        head = label_head(model)
        head.weight.mul_(self.std)
        head.bias.mul_(self.std).add_(self.mean)
        self.mean, self.std = 0.0, 1.0

    @torch.no_grad()
    def reopen(self, model: PreTrainedModel) -> None:
        head = label_head(model)
        head.weight.div_(self.std)
        head.bias.sub_(self.mean).div_(self.std)


class LanguageModeling(SupervisedTask):
    """The next token: every token of a plain text, or what the assistant says in a dialogue."""

    metrics = ("ell", "perplexity")
    peft_type = "CAUSAL_LM"
    peft_methods = (*MERGED, "prefix")

    def __init__(self, config: FitConfig) -> None:
        self.parts = written(config.data, config.seed)

    def texts(self) -> list[str]:
        xs = [example.x for example in self.parts["train"]]
        return [x if isinstance(x, str) else "\n".join(message["content"] for message in x) for x in xs]

    def model(self, policy: ModelConfig, seed: int) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        return new_or_given_causal(policy, self.texts(), seed)

    def encode(self, tokenizer: PreTrainedTokenizerBase, example: Example, limit: int | None) -> Encoded:
        return causal_row(tokenizer, example.x, limit)._asdict()

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Callable[[list[Encoded]], dict[str, torch.Tensor]]:
        tokenizer.padding_side = "right"
        return DataCollatorForTokenClassification(tokenizer, label_pad_token_id=IGNORED_LABEL)

    def measure(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, part: str, resamples: int = RESAMPLES
    ) -> Measured:
        return language(*self.judged(model, tokenizer, part), resamples)

    def judged(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, part: str
    ) -> tuple[np.ndarray, np.ndarray]:
        """ℓ of each row of one part that has targets, and how many it has, both (N,)."""
        limit = limit_of(model, tokenizer)
        rows = [causal_row(tokenizer, example.x, limit) for example in self.parts[part]]
        rows = [row for row in rows if row.targets]
        return np.array(supervised_losses(model, rows)), np.array([row.targets for row in rows])


def new_or_given_causal(
    policy: ModelConfig, texts: Sequence[str], seed: int
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The causal model that is given with its tokenizer, or new ones for these texts."""
    if policy.model is not None:
        model, known = load_causal(policy.model), load_tokenizer(policy.model)
        require_vocabulary(model, known, f"policy.model {policy.model!r}")
        return model, known
    tokenizer = make_tokenizer(texts, policy.vocab_size, policy.max_length)
    size = {"hidden_size": policy.hidden_size, "layers": policy.layers, "heads": policy.heads}
    return make_causal(tokenizer, **size, max_length=policy.max_length, seed=seed), tokenizer


def causal_row(tokenizer: PreTrainedTokenizerBase, x: Any, limit: int | None) -> SupervisedRow:
    """A plain text, of which every token but the first is a target, or a dialogue, of which the assistant's are."""
    if not isinstance(x, str):
        return dialogue_rows(tokenizer, [x], limit or tokenizer.model_max_length)[0]
    ids = encode(tokenizer, x, None)
    if not ids or ids[-1] != tokenizer.eos_token_id:
        ids.append(tokenizer.eos_token_id)
    ids = ids[:limit]
    return SupervisedRow(ids, [IGNORED_LABEL, *ids[1:]])


TASKS: dict[str, type[Any]] = {
    "text-classification": TextClassification,
    "token-classification": TokenClassification,
    "regression": Regression,
    "language-modeling": LanguageModeling,
}


class TrainingRows(Dataset[Encoded]):
    """Encoded examples; with augmentation they are changed and encoded anew in each epoch, a pure function of (seed,
    epoch, row): batches are read ahead, so a shared random state would not go on exactly from a checkpoint."""

    def __init__(
        self,
        task: SupervisedTask,
        tokenizer: PreTrainedTokenizerBase,
        limit: int | None,
        augment: dict[str, Any],
        seed: int,
    ) -> None:
        self.task, self.tokenizer, self.limit = task, tokenizer, limit
        self.seed, self.epoch = seed, 0
        self.augment = dict(augment)
        if "synonyms" in augment:
            self.augment["synonyms"] = read_synonyms(augment["synonyms"])
        self.rows = [task.encode(tokenizer, example, limit) for example in task.parts["train"]]
        self.rows = [row for row in self.rows if _has_target(row)]
        if not self.rows:
            raise ValueError("none of the training rows has a target within policy.max_length: raise it")

    def set_epoch(self, epoch: int) -> None:
        """Told by the Trainer, before each epoch and when it goes on within one."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Encoded:
        if not self.augment:
            return self.rows[index]
        example = self.task.parts["train"][index]
        rng = random.Random(f"augment {self.seed} {self.epoch} {index}")
        text = augmented(example.x, rng, **self.augment)
        return self.task.encode(self.tokenizer, example._replace(x=text), self.limit)


def _has_target(row: Encoded) -> bool:
    labels = row["labels"]
    return not isinstance(labels, list) or any(label != IGNORED_LABEL for label in labels)
