"""The stream of labelled rows that ℓ reads during reinforcement learning: a pure function of (seed, step)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from rlobj.supervised import SupervisedRow

BLOCK = 1024
"""Places of the stream whose sources are drawn together."""


class Source(NamedTuple):
    """Rows, and how often they are drawn beside those of other sources."""

    rows: Sequence[SupervisedRow]
    weight: float
    """Their share of the stream is this over the sum of the weights."""


class SupervisedBatch(NamedTuple):
    """One micro-batch of ℓ, and what its sum is divided by."""

    rows: list[SupervisedRow]
    targets: int
    """Targets of the whole global batch of this optimiser step, over all micro-batches and processes."""


class SupervisedStream:
    """Shuffled batches of labelled rows, which go on exactly after a resume.

    Every optimiser step takes the next `batch_size` rows of an endless sequence; processes and micro-batches share them
    out without overlap. Each source is a sequence of epochs, every one in an order of its own; of several sources, each
    place of the stream draws one with the probability that is its weight's share.

    Raises:
        ValueError: no rows, a source without rows, a weight that is not a positive number, a batch size below 1.
    """

    def __init__(self, rows: Sequence[SupervisedRow] | Sequence[Source], batch_size: int, seed: int) -> None:
        if not rows:
            raise ValueError("the supervised stream has no rows: give labelled pairs, or set lambda_sup to 0")
        if batch_size < 1:
            raise ValueError(f"supervised_batch_size is {batch_size}: expected at least 1")
        sources = [each if isinstance(each, Source) else None for each in rows]
        several = [each for each in sources if each is not None]
        if not several:
            several = [Source(rows, 1.0)]  # type: ignore[arg-type]
        elif len(several) < len(sources):
            raise ValueError("the supervised stream has rows and sources mixed: expected Source(rows, weight) of all")
        for number, source in enumerate(several):
            if not source.rows or not (math.isfinite(source.weight) and source.weight > 0):
                raise ValueError(
                    f"source {number} of the supervised stream has {len(source.rows)} rows and the weight "
                    f"{source.weight}: expected at least one row and a finite weight above 0"
                )
        self.rows = [row for source in several for row in source.rows]
        self.batch_size = batch_size
        self._mixture = _Mixture([source.weight for source in several], seed)
        first = [seed] if len(several) == 1 else None
        self._epochs = [_Epochs(source.rows, first or [seed, n + 1]) for n, source in enumerate(several)]

    def batch(self, step: int, part: int = 0, parts: int = 1) -> SupervisedBatch:
        """Part `part` of `parts` of the global batch of optimiser step `step`."""
        places = (self._mixture.place(step * self.batch_size + i) for i in range(self.batch_size))
        rows = [self._epochs[source].row(position) for source, position in places]
        return SupervisedBatch(rows[part::parts], sum(row.targets for row in rows))


class _Epochs:
    """Rows over and over, each time in another order."""

    def __init__(self, rows: Sequence[SupervisedRow], seed: list[int]) -> None:
        self.rows, self.seed = rows, seed
        self._orders: dict[int, np.ndarray] = {}

    def row(self, position: int) -> SupervisedRow:
        epoch, offset = divmod(position, len(self.rows))
        if epoch not in self._orders:
            # two epochs at most are in use at once: where a batch crosses from one to the next
            self._orders = {e: o for e, o in self._orders.items() if e >= epoch - 1}
            self._orders[epoch] = np.random.default_rng([*self.seed, epoch]).permutation(len(self.rows))
        return self.rows[int(self._orders[epoch][offset])]


class _Mixture:
    """Which source each place of the stream draws from, and the how manieth of that source's rows it is."""

    def __init__(self, weights: Sequence[float], seed: int) -> None:
        self.shares, self.seed = np.array(weights) / sum(weights), seed
        self._before = [np.zeros(len(weights), dtype=np.int64)]
        """rows of each source in the blocks before block 0, 1, …"""
        self._drawn: tuple[int, np.ndarray] = (-1, np.empty(0, dtype=np.int64))

    def place(self, position: int) -> tuple[int, int]:
        if len(self.shares) == 1:
            return 0, position
        block, offset = divmod(position, BLOCK)
        while len(self._before) <= block:
            drawn = np.bincount(self._block(len(self._before) - 1), minlength=len(self.shares))
            self._before.append(self._before[-1] + drawn)
        sources = self._block(block)
        source = int(sources[offset])
        return source, int(self._before[block][source] + (sources[:offset] == source).sum())

    def _block(self, block: int) -> np.ndarray:
        if self._drawn[0] != block:
            rng = np.random.default_rng([self.seed, 0, block])
            self._drawn = block, rng.choice(len(self.shares), BLOCK, p=self.shares)
        return self._drawn[1]
