"""A click model: how likely a user is to click an item of a slate, fitted from logged clicks.

    P(click) = σ(bias + affinity · Σ_{w in user and item} idf(w) + position · slot)

idf(w) = log(users / users who said w), so that a word which everybody says counts nothing; slots are counted from 0.
Three weights, which a few hundred impressions determine.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

Impression = Mapping[str, Any]
"""What was shown, and what became of it: `user` (text), `slate` (texts), `chosen` (slot from 0), `click` (0 or 1)."""

_WORD = re.compile(r"[\u4e00-\u9fff]|[^\W\u4e00-\u9fff]+")  # a Chinese character is a word


def words(text: str) -> set[str]:
    """The different words of a text, in small letters."""
    return set(_WORD.findall(text.lower()))


@dataclass(frozen=True)
class ClickModel:
    """The weights of the formula above."""

    bias: float
    affinity: float
    position: float
    idf: dict[str, float]
    """Of every word that users said; an item's other words count nothing."""

    def probabilities(self, user: str, slate: Sequence[str]) -> list[float]:
        """P(click) of every item, were it the one that is recommended."""
        said = words(user)
        logits = [
            self.bias + self.affinity * _shared(said, item, self.idf) + self.position * slot
            for slot, item in enumerate(slate)
        ]
        return [1 / (1 + math.exp(-logit)) for logit in logits]

    @classmethod
    def fit(cls, impressions: Sequence[Impression], l2: float = 1e-2) -> ClickModel:
        """Logistic regression on logged clicks, by Newton's method.

        Args:
            l2: weight of the penalty ½·l2·‖w‖² (bias apart) beside the sum of losses; it keeps weights finite where
                clicks are separable.

        Raises:
            ValueError: a row is not an impression, or all were clicked, or none.
        """
        impressions = [checked_impression(row, f"impression {i}") for i, row in enumerate(impressions)]
        clicks = np.array([float(row["click"]) for row in impressions])
        if clicks.min(initial=1) == clicks.max(initial=0):
            raise ValueError(
                f"{int(clicks.sum())} of {len(clicks)} impressions were clicked: expected some and not all"
            )
        idf = _idf([row["user"] for row in impressions])
        shared = [_shared(words(row["user"]), row["slate"][row["chosen"]], idf) for row in impressions]
        X = np.array([[1.0, s, float(row["chosen"])] for s, row in zip(shared, impressions, strict=True)])
        bias, affinity, position = _newton(X, clicks, np.array([0.0, l2, l2])).tolist()
        return cls(bias, affinity, position, idf)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model as JSON."""
        Path(path).write_text(json.dumps(asdict(self), ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ClickModel:
        """Read what `save` wrote.

        Raises:
            ValueError: the file is not a click model.
        """
        try:
            return cls(**json.loads(Path(path).read_text(encoding="utf-8")))
        except (OSError, TypeError, ValueError) as error:
            raise ValueError(
                f"click model {str(path)!r} cannot be read: {error} (ClickModel.save writes one)"
            ) from error


def checked_impression(row: Impression, where: str) -> Impression:
    """The row, if it is an impression.

    Raises:
        ValueError: what is wrong with it.
    """
    missing = [key for key in ("user", "slate", "chosen", "click") if key not in row]
    if missing:
        raise ValueError(f"{where} has no {missing[0]!r}: expected user, slate, chosen and click (it has {list(row)})")
    slate, chosen = row["slate"], row["chosen"]
    if not isinstance(row["user"], str) or not row["user"].strip():
        raise ValueError(f"{where}: user is {row['user']!r}: expected a text that is not empty")
    if not isinstance(slate, list) or len(slate) < 2 or not all(isinstance(item, str) and item for item in slate):
        raise ValueError(f"{where}: slate is {slate!r}: expected a list of at least two texts")
    if isinstance(chosen, bool) or not isinstance(chosen, int) or not 0 <= chosen < len(slate):
        raise ValueError(f"{where}: chosen is {chosen!r}: expected a slot of the slate, 0 to {len(slate) - 1}")
    if row["click"] not in (0, 1):
        raise ValueError(f"{where}: click is {row['click']!r}: expected 0 or 1")
    return row


def _shared(said: set[str], item: str, idf: Mapping[str, float]) -> float:
    return sum(idf.get(word, 0.0) for word in sorted(said & words(item)))  # sorted: one order of floating-point sums


def _idf(users: Sequence[str]) -> dict[str, float]:
    counts = Counter(word for user in users for word in words(user))
    return {word: math.log(len(users) / count) for word, count in sorted(counts.items())}


def _newton(X: np.ndarray, y: np.ndarray, l2: np.ndarray, steps: int = 50) -> np.ndarray:
    """Weights of a logistic regression. X: (N, D); y: (N,), 0 or 1; l2: (D,)."""
    w = np.zeros(X.shape[1])
    for _ in range(steps):
        p = 1 / (1 + np.exp(-np.clip(X @ w, -30, 30)))
        gradient = X.T @ (p - y) + l2 * w
        hessian = (X * (p * (1 - p))[:, None]).T @ X + np.diag(l2 + 1e-9)
        move = np.linalg.solve(hessian, gradient)
        w = w - move
        if np.abs(move).max() < 1e-10:
            break
    return w
