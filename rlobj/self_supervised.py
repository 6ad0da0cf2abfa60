"""What is hidden from a model, and how probable the model holds it: the performance term P(T) of L(θ) = −P(T) + λ·ℓ.

P is the mean log-probability of masked tokens and of whether a second half is a text's own, or of each next token. The
supervised model, whose ℓ stands beside it, shares the network's weights.

Legend: B texts, T tokens, V vocabulary.
"""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset
from transformers import (
    BertForMaskedLM,
    BertForSequenceClassification,
    DataCollatorForLanguageModeling,
    DataCollatorForTokenClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from reward_models.trained import as_plain_text
from rlobj.chat_format import IGNORED_LABEL
from rlobj.encoder_policy import as_one_token_policy
from rlobj.fit_config import PretrainConfig
from rlobj.fit_tasks import LanguageModeling, TextClassification, causal_row, new_or_given_causal
from rlobj.inference import limit_of
from rlobj.intervals import bootstrap_mean, wilson
from rlobj.measures import Measured
from rlobj.modes import evaluating
from rlobj.policies import load_encoder, load_masked, load_tokenizer, make_encoder, make_encoder_tokenizer, save_policy

MODEL, CLASSIFIER = "model", "classifier"
"""Folders of a run: what P was asked of, and the supervised model where λ was above 0."""
Batch = dict[str, Tensor]


def log_probability_sums(logits: Tensor, targets: Tensor, texts: Tensor, count: int) -> Tensor:
    """Of each text Σ log p of the tokens that were hidden, in nats, (count,); the mean over tokens is P.

    Args:
        logits: of hidden tokens alone, (N, V).
        targets: what they are, (N,).
        texts: which text each is of, (N,).
    """
    nll = F.cross_entropy(logits.float(), targets, reduction="none")
    return nll.new_zeros(count).index_add(0, texts, -nll)


class Network:
    """A model that P is asked of, what hides tokens from it, and the supervised model that shares its weights.

    Args:
        model: the causal or masked language model.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    supervised: PreTrainedModel | None

    def log_probabilities(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Of each text Σ log p of its hidden tokens, (B,); and log p of what its halves are, (B,), or None."""
        raise NotImplementedError

    def rows(self, texts: Sequence[str]) -> Sequence[Any]:
        """What `collate` takes, of each text."""
        raise NotImplementedError

    def collate(self, rows: Sequence[Any], seed: int) -> Batch:
        """A batch with `labels` where tokens are hidden, at random but the same for the same rows and seed."""
        raise NotImplementedError

    def save(self, run_dir: Path) -> None:
        """Write the model and, where there is one, the supervised model."""
        raise NotImplementedError


def run_within_forward(model: PreTrainedModel) -> None:
    """Let a model's forward pass run a computation that takes more than one of its own: `model(within=f)` is `f()`.

    The wrapper that adds up the gradients of several processes looks at one forward pass, and goes wrong where
    parameters take part beside it.
    """
    plain = model.forward

    @functools.wraps(plain)
    def forward(*args: Any, within: Callable[[], Any] | None = None, **kwargs: Any) -> Any:
        return plain(*args, **kwargs) if within is None else within()

    model.forward = forward  # type: ignore[method-assign]


class CausalNetwork(Network):
    """Each next token; ℓ is that of a policy's replies, by the same weights."""

    def __init__(self, config: PretrainConfig, texts: Sequence[str], labelled: LanguageModeling | None) -> None:
        known = [*texts, *(labelled.texts() if labelled is not None else [])]
        self.model, self.tokenizer = new_or_given_causal(config.policy, known, config.seed)
        self.tokenizer.padding_side = "right"
        self.supervised = self.model
        self.pad = DataCollatorForTokenClassification(self.tokenizer, label_pad_token_id=IGNORED_LABEL)

    def rows(self, texts: Sequence[str]) -> Sequence[Any]:
        limit = limit_of(self.model, self.tokenizer)
        rows = [causal_row(self.tokenizer, text, limit) for text in texts]
        return [row._asdict() for row in rows if row.targets]

    def collate(self, rows: Sequence[Any], seed: int) -> Batch:
        return dict(self.pad(list(rows)))

    def log_probabilities(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        logits = self.model(**inputs, use_cache=False).logits
        labels = batch["labels"][:, 1:]
        hidden = labels != IGNORED_LABEL
        return log_probability_sums(logits[:, :-1][hidden], labels[hidden], hidden.nonzero()[:, 0], len(labels)), None

    def save(self, run_dir: Path) -> None:
        save_policy(self.model, self.tokenizer, run_dir / MODEL)


class MaskedNetwork(Network):
    """Masked tokens (Devlin et al. 2019), and if asked whether the second half of a text is its own; ℓ is that of a
    classifier on the same encoder."""

    def __init__(self, config: PretrainConfig, texts: Sequence[str], labelled: TextClassification | None) -> None:
        policy, names = config.policy, labelled.names if labelled is not None else ["0", "1"]
        if policy.model is not None:
            self.tokenizer = load_tokenizer(policy.model)
            torch.manual_seed(config.seed)  # of new heads
            self.model, classifier = load_masked(policy.model), load_encoder(policy.model, names)
        else:
            size: dict[str, Any] = {
                "hidden_size": policy.hidden_size, "layers": policy.layers, "heads": policy.heads,
                "max_length": policy.max_length, "seed": config.seed,
            }  # fmt: skip
            known = [*texts, *(labelled.texts() if labelled else [])]
            self.tokenizer = make_encoder_tokenizer(known, policy.vocab_size, policy.max_length)
            self.model, classifier = (
                make_encoder(self.tokenizer, names, **size, head=head)
                for head in (BertForMaskedLM, BertForSequenceClassification)
            )
        self.tokenizer.padding_side = "right"
        if self.tokenizer.mask_token is None:
            raise ValueError(f"tokenizer of {policy.model!r} has no mask token: set objective.performance to causal")
        self.next_sentence = config.objective.next_sentence
        self._share(classifier)
        self.supervised = as_one_token_policy(classifier) if labelled is not None else None
        self.mask = DataCollatorForLanguageModeling(self.tokenizer, mlm_probability=config.objective.mask_share)
        self.limit = min(limit_of(self.model, self.tokenizer) or policy.max_length, policy.max_length)
        self.tokenizer.model_max_length = self.limit
        self.texts: Sequence[str] = texts

    def _share(self, classifier: PreTrainedModel) -> None:
        """One encoder for both; the other modules of the classifier become the model's own, so that the Trainer sees
        them and checkpoints hold them."""
        shared = self.model.base_model_prefix
        setattr(self.model, shared, getattr(classifier, shared))
        self.model.tie_weights()
        for name, module in classifier.named_children():
            if name != shared:
                setattr(self.model, f"supervised_{name}", module)
        if self.next_sentence:
            self.model.next_sentence = nn.Linear(self.model.config.hidden_size, 2)

    def rows(self, texts: Sequence[str]) -> Sequence[Any]:
        self.texts = texts
        return list(texts)

    def collate(self, rows: Sequence[Any], seed: int) -> Batch:
        if not self.next_sentence:
            return self._masked([(text,) for text in rows], seed)
        rng = random.Random(seed)
        own = [rng.random() < 0.5 for _ in rows]
        halves = [
            (first, second if same else split_in_halves(rng.choice(self.texts))[1])
            for (first, second), same in zip(map(split_in_halves, rows), own, strict=True)
        ]
        return {**self._masked(halves, seed), "next_labels": torch.tensor([int(same) for same in own])}

    def _masked(self, texts: Sequence[tuple[str, ...]], seed: int) -> Batch:
        encoded = [
            dict(
                self.tokenizer(
                    *[as_plain_text(self.tokenizer, part) for part in parts],
                    truncation=True,
                    max_length=self.limit,
                    return_special_tokens_mask=True,
                )
            )
            for parts in texts
        ]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return dict(self.mask(encoded))

    def log_probabilities(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        labels, seen = batch["labels"], []
        hidden = labels != IGNORED_LABEL

        def keep_the_hidden(module: nn.Module, args: Any, output: Any) -> Any:
            """The head over the vocabulary costs more than the encoder: it reads the states of hidden tokens alone."""
            states = output.last_hidden_state
            seen.append(states[:, 0] if output.get("pooler_output") is None else output.pooler_output)
            output["last_hidden_state"] = states[hidden][None]
            return output

        hook = getattr(self.model, self.model.base_model_prefix).register_forward_hook(keep_the_hidden)
        try:
            inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids") if name in batch}
            logits = self.model(**inputs).logits[0]
        finally:
            hook.remove()
        tokens = log_probability_sums(logits, labels[hidden], hidden.nonzero()[:, 0], len(labels))
        if not self.next_sentence:
            return tokens, None
        logits = self.model.next_sentence(seen[0])
        return tokens, -F.cross_entropy(logits.float(), batch["next_labels"], reduction="none")

    def save(self, run_dir: Path) -> None:
        for name, _ in list(self.model.named_children()):
            if name.startswith("supervised_") or name == "next_sentence":
                delattr(self.model, name)
        save_policy(self.model, self.tokenizer, run_dir / MODEL)
        if self.supervised is not None:
            save_policy(self.supervised, self.tokenizer, run_dir / CLASSIFIER)


def split_in_halves(text: str) -> tuple[str, str]:
    """A text cut near its middle, behind the end of a sentence or else behind a word (a character where there are no
    spaces); neither half is empty unless the text has one character."""
    middle = len(text) / 2
    for signs in (".!?。！？\n", " ", text):
        places = [i + 1 for i, sign in enumerate(text[:-1]) if sign in signs and text[: i + 1].strip()]
        places = [i for i in places if text[i:].strip()]
        if places:
            cut = min(places, key=lambda i: abs(i - middle))
            return text[:cut].strip(), text[cut:].strip()
    return text, ""


class HiddenRows(Dataset[tuple[int, Any]]):
    """Rows, each with a seed of what is hidden in this epoch: a pure function of (seed, epoch, row), since batches are
    read ahead, and a shared random state would not go on exactly from a checkpoint."""

    def __init__(self, network: Network, texts: Sequence[str], seed: int) -> None:
        self.network, self.rows, self.seed, self.epoch = network, network.rows(texts), seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Told by the Trainer, before each epoch and when it goes on within one."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[int, Any]:
        return crc32(f"{self.seed} {self.epoch} {index}".encode()), self.rows[index]

    def collate(self, pairs: Sequence[tuple[int, Any]]) -> Batch:
        """The batch of these rows, by the first one's seed."""
        return self.network.collate([row for _, row in pairs], pairs[0][0])


@torch.no_grad()
def performance_of(network: Network, rows: Sequence[Any], batch_size: int = 64) -> Measured:
    """P on held-out text, with the same tokens hidden each time; and how often halves are told rightly."""
    model = network.model
    values: list[float] = []
    right: list[bool] = []
    for start in range(0, len(rows), batch_size):
        made = network.collate(rows[start : start + batch_size], seed=start)
        batch = {name: each.to(model.device) for name, each in made.items()}
        counts = (batch["labels"] != IGNORED_LABEL).sum(1)
        with evaluating(model):
            tokens, halves = network.log_probabilities(batch)
        values += (tokens / counts)[counts > 0].tolist()  # a short text may have nothing hidden
        right += [] if halves is None else (halves > math.log(0.5)).tolist()
    metrics = {"P": bootstrap_mean(values)}
    if right:
        metrics["next_sentence"] = (sum(right) / len(right), *wilson(sum(right), len(right)))
    return Measured(len(rows), metrics)
