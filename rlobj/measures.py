"""How good predictions are: the reports of scikit-learn and seqeval, and 95% intervals over rows beside them.

Legend: N rows, K labels; resamples are those of bootstrap intervals, 0 leaves these out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.special import log_softmax
from scipy.stats import rankdata

from rlobj.intervals import RESAMPLES, Interval, bootstrap_mean, bootstrap_statistic, wilson


@dataclass(frozen=True, slots=True)
class Measured:
    """What was found on one part of the data."""

    rows: int
    metrics: dict[str, Interval]
    """metric -> value and 95% interval over rows (over sentences for entities)"""
    report: dict[str, dict[str, float]] = field(default_factory=dict)
    """label, or mean over labels -> precision, recall, f1-score, support"""
    confusion: list[list[int]] = field(default_factory=list)
    """rows of the true label (down) that were given each label (across)"""
    same: str = ""
    """that the model says the same of every row, where they are not all alike"""


def _needs(library: str) -> ValueError:
    return ValueError(f"reports of classifiers need {library}: pip install 'rlobj[fit]'")


def classification(
    labels: np.ndarray, logits: np.ndarray, names: Sequence[str], resamples: int = RESAMPLES
) -> Measured:
    """Accuracy, F1 and ℓ of a classifier, and scikit-learn's report.

    ℓ is −log p(label), for two labels −[y log ŷ + (1 − y) log(1 − ŷ)]. A label that no row has and none was given is
    in no mean over labels.

    Args:
        labels: true indices, (N,).
        logits: (N, K).
        names: of the K labels.
    """
    try:
        from sklearn.metrics import classification_report, confusion_matrix, roc_auc_score
    except ImportError:
        raise _needs("scikit-learn") from None
    predicted, count = logits.argmax(1), len(names)
    right = int((predicted == labels).sum())
    pairs = labels * count + predicted

    def confusion_of(rows: np.ndarray) -> np.ndarray:
        return np.bincount(pairs[rows], minlength=count**2).reshape(count, count)

    def weighted(rows: np.ndarray) -> float:
        confusion = confusion_of(rows)
        return float(f1_by_label(confusion) @ confusion.sum(1) / len(rows))

    metrics = {
        "accuracy": (right / len(labels), *wilson(right, len(labels))),
        "macro_f1": bootstrap_statistic(lambda rows: macro_f1(confusion_of(rows)), len(labels), resamples),
        "weighted_f1": bootstrap_statistic(weighted, len(labels), resamples),
        "ell": bootstrap_mean((-log_softmax(logits, axis=1)[np.arange(len(labels)), labels]).tolist()),
    }
    if count == 2 and len(set(labels)) == 2:
        scores = logits[:, 1] - logits[:, 0]
        metrics["auc"] = (float(roc_auc_score(labels, scores)), math.nan, math.nan)
    met = sorted({*labels.tolist(), *predicted.tolist()})
    found = classification_report(
        labels, predicted, labels=met, target_names=[names[i] for i in met], output_dict=True, zero_division=0
    )
    report = {name: row for name, row in found.items() if isinstance(row, dict)}
    confusion = confusion_matrix(labels, predicted, labels=range(count)).tolist()
    alike = f"says {names[predicted[0]]!r} of every row" if len(set(predicted)) == 1 < len(set(labels)) else ""
    return Measured(len(labels), metrics, report, confusion, alike)


def f1_by_label(confusion: np.ndarray) -> np.ndarray:
    """F1 = 2·TP / (2·TP + FP + FN) of each label, (K,), from a confusion matrix (K, K); 0 where all three are 0."""
    hits = np.diag(confusion)
    total = confusion.sum(0) + confusion.sum(1)
    f1: np.ndarray = np.divide(2 * hits, total, out=np.zeros(len(hits)), where=total > 0)
    return f1


def macro_f1(confusion: np.ndarray) -> float:
    """Mean of F1 over the labels that were met."""
    return float(f1_by_label(confusion)[(confusion.sum(0) + confusion.sum(1)) > 0].mean())


def entities(
    true: Sequence[Sequence[str]],
    predicted: Sequence[Sequence[str]],
    losses: Sequence[float],
    resamples: int = RESAMPLES,
) -> Measured:
    """Precision, recall and F1 of whole entities in BIO tags, as conlleval counts them, and seqeval's report.

    An entity is right if its kind and both its ends are.

    Args:
        true, predicted: the tags of each sentence, as many in both.
        losses: ℓ of each sentence, the mean over its words.
    """
    try:
        from seqeval.metrics import classification_report
    except ImportError:
        raise _needs("seqeval") from None
    table = entity_counts(true, predicted)

    def ratio(of: tuple[float, float]) -> Any:
        def statistic(rows: np.ndarray) -> float:
            hits, found, there = table[rows].sum(0)
            total = of[0] * found + of[1] * there
            return float(hits / total) if total else 0.0

        return statistic

    weights = {"f1": (0.5, 0.5), "precision": (1.0, 0.0), "recall": (0.0, 1.0)}
    metrics = {name: bootstrap_statistic(ratio(weight), len(table), resamples) for name, weight in weights.items()}
    metrics["ell"] = bootstrap_mean(losses)
    words = [(a, b) for t, p in zip(true, predicted, strict=True) for a, b in zip(t, p, strict=True)]
    same = sum(a == b for a, b in words)
    metrics["tag_accuracy"] = (same / len(words), *wilson(same, len(words)))
    report: dict[str, dict[str, float]] = {}
    if table[:, 1:].sum():
        report = classification_report(
            [list(t) for t in true], [list(p) for p in predicted], output_dict=True, zero_division=0
        )
    report = {name: {key: float(value) for key, value in row.items()} for name, row in report.items()}
    alike = "finds no entity in any row" if table[:, 2].any() and not table[:, 1].any() else ""
    return Measured(len(table), metrics, report, same=alike)


def entity_counts(true: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> np.ndarray:
    """Of each sentence the entities that are right, that were found, and that there are, (N, 3)."""
    try:
        from seqeval.metrics.sequence_labeling import get_entities
    except ImportError:
        raise _needs("seqeval") from None
    counts = []
    for tags, guess in zip(true, predicted, strict=True):
        there, found = set(get_entities(list(tags))), set(get_entities(list(guess)))
        counts.append((len(there & found), len(found), len(there)))
    return np.array(counts)


def regression(values: np.ndarray, predicted: np.ndarray, resamples: int = RESAMPLES) -> Measured:
    """Correlations and errors of predicted numbers, both (N,)."""
    error = predicted - values

    n = len(values)
    return Measured(
        n,
        {
            "spearman": bootstrap_statistic(
                lambda rows: correlation(rankdata(values[rows]), rankdata(predicted[rows])), n, resamples
            ),
            "pearson": bootstrap_statistic(lambda rows: correlation(values[rows], predicted[rows]), n, resamples),
            "rmse": bootstrap_statistic(lambda rows: float(np.sqrt((error[rows] ** 2).mean())), n, resamples),
            "mae": bootstrap_mean(np.abs(error).tolist()),
        },
        same=f"says {predicted[0]:g} of every row" if np.ptp(predicted) == 0 < np.ptp(values) else "",
    )


def correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson's correlation of two (N,); NaN where either is constant. Of ranks it is Spearman's."""
    x, y = x - x.mean(), y - y.mean()
    scale = math.sqrt(float(x @ x) * float(y @ y))
    return float(x @ y) / scale if scale > 0 else math.nan


def language(losses: np.ndarray, targets: np.ndarray, resamples: int = RESAMPLES) -> Measured:
    """ℓ per target token and exp(ℓ), the perplexity, with intervals over rows.

    Args:
        losses: mean −log p over the targets of each row, (N,), in nats.
        targets: how many each row has, (N,).
    """

    def ell(rows: np.ndarray) -> float:
        return float(losses[rows] @ targets[rows] / targets[rows].sum())

    value = bootstrap_statistic(ell, len(losses), resamples)
    perplexity = (math.exp(value[0]), math.exp(value[1]), math.exp(value[2]))
    return Measured(len(losses), {"ell": value, "perplexity": perplexity})
