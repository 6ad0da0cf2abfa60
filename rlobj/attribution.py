"""What a number that a model gives owes to each word: integrated gradients, Shapley values, and a test of both.

Both divide f(x) − f(x′), where x are the embeddings of a text, and x′ the same with an average embedding in the place
of each token of a word; captum computes them. Legend: T tokens, H size of an embedding, B rows, W words.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlobj.inference import BATCH_TOKENS
from rlobj.readings import Reading

Score = Callable[[Tensor, Tensor], Tensor]
"""Numbers (B,) of right-padded ids (B, T) with their mask (B, T); of each token (B, T)."""
MOST_LOGITS = 2**27
"""Of one forward pass of a policy, whose vocabulary may be large."""
MOST_STEPS = 1024
SHARES = (0.1, 0.2, 0.3, 0.5)
"""Of the words, that are deleted."""
RANDOM_DELETIONS = 200


@dataclass(frozen=True, slots=True)
class Gradients:
    """Integrated gradients of the words."""

    words: np.ndarray
    """(W,)"""
    difference: float
    """f(x) − f(x′), which they should add up to"""
    delta: float
    """by how much they do not"""
    steps: int


@dataclass(frozen=True, slots=True)
class Deletion:
    """How far f falls when words are taken out of the text."""

    words: tuple[int, ...]
    """those that were named most important, by their number in the text"""
    important: float
    """without them"""
    random: float
    """without as many at random: the mean"""
    low: float
    high: float
    """between these 95% of the random deletions lie"""
    above: float
    """share of the random deletions that f falls less by"""


class Explained:
    """A number f that a model gives a text, as a function of the words' embeddings.

    Args:
        model: its parameters need no gradient.
        score: f of ids.
        reading: the text.
        pad_id: what shorter texts of a batch are filled up with.
        suffix: ids behind the text's, which are no part of what is explained, such as a reply.
        word: whose first token f is of, where the score is one of each token.
        filler: what stands in the place of each token of a word that is deleted; None: the word is gone.
    """

    def __init__(
        self,
        model: Any,
        score: Score,
        reading: Reading,
        pad_id: int,
        suffix: Sequence[int] = (),
        word: int | None = None,
        filler: int | None = None,
    ) -> None:
        self.model, self.score, self.reading, self.pad_id, self.suffix = model, score, reading, pad_id, list(suffix)
        self.word, self.filler = word, filler
        self.place = None if word is None else reading.words[word].tokens[0]
        self.table = model.get_input_embeddings()
        self.tokens = min(BATCH_TOKENS, MOST_LOGITS // len(self.table.weight)) if suffix else BATCH_TOKENS
        self.ids = torch.tensor([[*reading.ids, *self.suffix]], device=model.device)
        self.word_of = torch.full((self.ids.size(1),), -1)
        for number, each in enumerate(reading.words):
            self.word_of[list(each.tokens)] = number
        self.word_of = self.word_of.to(model.device)
        with torch.no_grad():
            self.x = self.table(self.ids)  # (1, T, H)
            average = self.table.weight.float().mean(0).to(self.x)
            self.base = torch.where((self.word_of >= 0)[None, :, None], average, self.x)

    def of_embeddings(self, embeddings: Tensor) -> Tensor:
        """f, (B,), of embeddings (B, T, H) in the place of the text's."""
        ids = self.ids.expand(len(embeddings), -1)
        hook = self.table.register_forward_hook(lambda module, given, found: embeddings)
        try:
            found = self.score(ids, torch.ones_like(ids))
            return found if self.place is None else found[:, self.place]
        finally:
            hook.remove()

    @torch.no_grad()
    def of_words(self, present: Tensor) -> Tensor:
        """f, (B,), where only the words of `present` (B, W) are there, and an average word stands for the others."""
        kept = torch.cat([present.bool(), torch.ones_like(present[:, :1]).bool()], 1).to(self.x.device)
        return self.of_embeddings(torch.where(kept[:, self.word_of][..., None], self.x, self.base))

    @torch.inference_mode()
    def of_ids(self, rows: Sequence[Sequence[int]]) -> np.ndarray:
        """f of other texts, (rows,), in batches."""
        found = np.empty(len(rows))
        order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
        while order:
            width = max(len(rows[order[0]]) + len(self.suffix), 1)
            size = max(self.tokens // width, 1)
            batch, order = order[:size], order[size:]
            filled = [[*rows[i], *self.suffix] for i in batch]
            ids = torch.tensor(
                [[*row, *[self.pad_id] * (width - len(row))] for row in filled], device=self.model.device
            )
            mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in filled], device=self.model.device)
            scores = self.score(ids, mask).float().cpu().numpy()
            found[batch] = scores if self.place is None else scores[:, self.place]
        return found

    def value(self) -> float:
        """f of the text as it stands."""
        return float(self.of_ids([self.reading.ids])[0])

    @property
    def at_once(self) -> int:
        """Rows of one forward pass."""
        return max(self.tokens // self.ids.size(1), 1)


def integrated_gradients(explained: Explained, steps: int | None = None, tolerance: float = 0.01) -> Gradients:
    """(x − x′) · ∫₀¹ ∇f(x′ + α (x − x′)) dα, summed over a word's tokens (Sundararajan et al. 2017).

    Args:
        steps: of the integral; None doubles them from 32 until delta is below `tolerance` of what the words owe without
            their signs, or there are MOST_STEPS.
    """
    from captum.attr import IntegratedGradients

    taken = steps or 32
    method = IntegratedGradients(explained.of_embeddings)
    with torch.no_grad():
        ends = [float(explained.of_embeddings(each)) for each in (explained.x, explained.base)]
    while True:
        found = method.attribute(
            explained.x, explained.base, n_steps=taken, internal_batch_size=min(explained.at_once, taken)
        )
        words = _by_word(found[0].sum(-1), explained)
        difference = ends[0] - ends[1]
        delta = float(words.sum()) - difference
        enough = tolerance * float(np.abs(words).sum()) + 1e-6 * max(map(abs, ends))  # what float32 can tell
        if steps is not None or abs(delta) <= enough or taken >= MOST_STEPS:
            return Gradients(words, difference, delta, taken)
        taken *= 2


def _by_word(tokens: Tensor, explained: Explained) -> np.ndarray:
    """Sums over the tokens of each word, (W,), of (T,)."""
    sums = torch.zeros(len(explained.reading.words) + 1, dtype=torch.float64)
    sums.index_add_(0, (explained.word_of.cpu() + 1), tokens.detach().double().cpu())
    return sums[1:].numpy()


def shapley_values(explained: Explained, orders: int | None = None) -> np.ndarray:
    """What f rises by when a word joins those before it, as a mean over orders of the words, (W,) (Lundberg and Lee
    2017). They add up to f(x) − f(x′), and are the same each time. Up to four words: over all orders.

    Args:
        orders: drawn at random; None: 25, for texts of more than 80 words fewer, at least 5.
    """
    from captum.attr import ShapleyValues, ShapleyValueSampling

    count = len(explained.reading.words)
    everything, nothing = torch.ones(1, count), torch.zeros(1, count)
    at_once = {"perturbations_per_eval": explained.at_once}

    def rises(present: Tensor) -> Tensor:
        return explained.of_words(present).double().cpu()

    if count <= 4:
        found = ShapleyValues(rises).attribute(everything, nothing, **at_once)
    else:
        with _own_random_numbers(0):
            found = ShapleyValueSampling(rises).attribute(
                everything, nothing, n_samples=orders or max(5, min(25, 2000 // count)), **at_once
            )
    return np.asarray(found[0].double().numpy())


@contextmanager
def _own_random_numbers(seed: int) -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def deletions(explained: Explained, words: np.ndarray, shares: Sequence[float] = SHARES) -> list[Deletion]:
    """Take the words with the highest attribution out of the text, and as many at random: does f fall further?

    Deleted words are gone, not replaced: the test knows nothing of x′ (comprehensiveness, DeYoung et al. 2020). Only
    where f is of one word, whose place has to stay, is there a filler.

    Args:
        words: attribution, (W,).
        shares: of the words that are deleted; at least one is, and at least one stays.
    """
    reading, count = explained.reading, len(words)
    sizes = sorted({min(max(round(share * count), 1), count - 1) for share in shares} - {0})
    order = np.argsort(-words, kind="stable").tolist()
    rng = np.random.default_rng(0)
    asked = [reading.ids]
    for size in sizes:
        gone = [order[:size], *[rng.permutation(count)[:size].tolist() for _ in range(RANDOM_DELETIONS)]]
        asked += [reading.without(each, explained.filler) for each in gone]
    scores = explained.of_ids(asked)
    found = []
    for number, size in enumerate(sizes):
        falls = scores[0] - scores[1 + number * (RANDOM_DELETIONS + 1) :][: RANDOM_DELETIONS + 1]
        ours, others = float(falls[0]), falls[1:]
        low, high = np.quantile(others, [0.025, 0.975])
        less = float((others < ours).mean())
        found.append(Deletion(tuple(order[:size]), ours, float(others.mean()), float(low), float(high), less))
    return found


def agreement(one: np.ndarray, other: np.ndarray) -> float | None:
    """Spearman's rank correlation of two attributions; None where there is none."""
    from scipy import stats

    if len(one) < 2 or np.ptp(one) == 0 or np.ptp(other) == 0:
        return None
    value = float(stats.spearmanr(one, other).statistic)
    return value if math.isfinite(value) else None
