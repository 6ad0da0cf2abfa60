"""What a model forgot: its quality on the same rows before and after, as differences within rows.

Legend: N rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from scipy.special import log_softmax
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlobj.fit_tasks import LanguageModeling, Regression, SupervisedTask, TextClassification, TokenClassification
from rlobj.intervals import RESAMPLES, Interval, bootstrap_statistic
from rlobj.measures import entity_counts

LESS_IS_BETTER = ("ell", "mae")


class Figure(NamedTuple):
    """A figure that is Σ over rows of one number over Σ of another, kept by row."""

    above: list[float]
    below: list[float]

    def value(self, rows: np.ndarray) -> float:
        """Of these rows, (N,)."""
        total = float(np.asarray(self.below)[rows].sum())
        return float(np.asarray(self.above)[rows].sum()) / total if total else 0.0


Figures = dict[str, Figure]


def figures_of(task: SupervisedTask, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, part: str) -> Figures:
    """Accuracy and ℓ of a classifier, F1 of entities, the mean absolute error of numbers, or ℓ of text, on one part.

    A label that the model has not yet is never right; ℓ, which would be infinite, is left out then.
    """
    if isinstance(task, TextClassification):
        labels, logits = task.judged(model, tokenizer, part)
        ones = [1.0] * len(labels)
        known = logits.shape[1]
        found = {"accuracy": Figure((logits.argmax(1) == labels).astype(float).tolist(), ones)}
        if labels.max() < known:
            ell = -log_softmax(logits, axis=1)[np.arange(len(labels)), labels]
            found["ell"] = Figure(ell.tolist(), ones)
        return found
    if isinstance(task, TokenClassification):
        true, predicted, _ = task.judged(model, tokenizer, part)
        counts = entity_counts(true, predicted).astype(float)
        return {"f1": Figure((2 * counts[:, 0]).tolist(), (counts[:, 1] + counts[:, 2]).tolist())}
    if isinstance(task, Regression):
        values, numbers = task.judged(model, tokenizer, part)
        return {"mae": Figure(np.abs(numbers - values).tolist(), [1.0] * len(values))}
    assert isinstance(task, LanguageModeling)
    losses, targets = task.judged(model, tokenizer, part)
    return {"ell": Figure((losses * targets).tolist(), targets.astype(float).tolist())}


def compared(
    before: Mapping[str, Any], after: Mapping[str, Any], resamples: int = RESAMPLES
) -> dict[str, dict[str, Interval]]:
    """Each figure `before` and `after`, and the `change` between them, with 95% intervals over rows: those of the
    change are of differences within rows.

    Args:
        before, after: figures of the same rows, as `figures_of` gives them or JSON keeps them.
    """
    found: dict[str, dict[str, Interval]] = {}
    for name, kept in after.items():
        now = Figure(*kept)
        n = len(now.above)
        found[name] = {"after": bootstrap_statistic(now.value, n, resamples)}
        if name not in before:
            continue
        then = Figure(*before[name])
        if len(then.above) != n:
            raise ValueError(f"{name} is of {len(then.above)} rows before and of {n} after: expected the same rows")
        found[name]["before"] = bootstrap_statistic(then.value, n, resamples)
        found[name]["change"] = bootstrap_statistic(_change(now, then), n, resamples)
    return found


def _change(now: Figure, then: Figure) -> Any:
    return lambda rows: now.value(rows) - then.value(rows)
