"""Figures of supervised tasks, against scikit-learn, seqeval and what is counted by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import f1_score, log_loss

from rlobj.intervals import bootstrap_statistic
from rlobj.measures import classification, entities, f1_by_label, language, regression

NAMES = ["a", "b", "c"]


def test_a_classifier_is_measured_as_scikit_learn_measures_it() -> None:
    rng = np.random.default_rng(0)
    labels, logits = rng.integers(3, size=200), rng.normal(size=(200, 3))
    logits[np.arange(200), labels] += 1
    found = classification(labels, logits, NAMES)
    predicted = logits.argmax(1)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert found.metrics["accuracy"][0] == pytest.approx((predicted == labels).mean())
    assert found.metrics["macro_f1"][0] == pytest.approx(f1_score(labels, predicted, average="macro"))
    assert found.metrics["weighted_f1"][0] == pytest.approx(f1_score(labels, predicted, average="weighted"))
    assert found.metrics["ell"][0] == pytest.approx(log_loss(labels, p))
    for value, low, high in found.metrics.values():
        assert low < value < high
    assert found.report["b"]["support"] == (labels == 1).sum()
    assert np.trace(found.confusion) == (predicted == labels).sum()


def test_two_labels_have_the_cross_entropy_as_it_is_written() -> None:
    y, logits = np.array([1, 0, 1]), np.array([[0.0, 2.0], [1.0, 0.0], [0.5, 0.0]])
    p = 1 / (1 + np.exp(logits[:, 0] - logits[:, 1]))
    by_hand = -(y * np.log(p) + (1 - y) * np.log(1 - p)).mean()
    found = classification(y, logits, ["no", "yes"])
    assert found.metrics["ell"][0] == pytest.approx(by_hand)
    # pairs (row of yes, row of no): 2.0 > −1.0 and −0.5 > −1.0
    assert found.metrics["auc"][0] == 1.0


def test_labels_that_are_not_met_are_in_no_mean() -> None:
    labels, logits = np.array([0, 0, 1, 1]), np.eye(3)[[0, 0, 1, 1]] * 9
    found = classification(labels, logits, NAMES)
    assert found.metrics["macro_f1"] == (1.0, 1.0, 1.0)
    assert "c" not in found.report


def test_f1_from_a_confusion_matrix() -> None:
    # of a: 2 hits, 1 missed, 1 taken for it; of c: nothing
    confusion = np.array([[2, 1, 0], [1, 3, 0], [0, 0, 0]])
    assert f1_by_label(confusion) == pytest.approx([4 / 6, 6 / 8, 0.0])


def test_an_entity_is_right_if_kind_and_both_ends_are() -> None:
    true = [["B-per", "I-per", "O", "B-loc"], ["O", "B-per"], ["O", "O"]]
    said = [["B-per", "I-per", "O", "B-per"], ["O", "B-per"], ["B-loc", "O"]]
    found = entities(true, said, [0.1, 0.2, 0.3])
    # named: per 0–1 (right), per 3 (wrong kind), per 1 (right), loc 0 (there is none); there are 3
    assert found.metrics["precision"][0] == pytest.approx(2 / 4)
    assert found.metrics["recall"][0] == pytest.approx(2 / 3)
    assert found.metrics["f1"][0] == pytest.approx(2 * 2 / (4 + 3))
    assert found.metrics["tag_accuracy"][0] == pytest.approx(6 / 8)
    assert found.report["per"]["precision"] == pytest.approx(2 / 3)
    assert found.report["micro avg"]["f1-score"] == pytest.approx(found.metrics["f1"][0])


def test_half_an_entity_is_none() -> None:
    found = entities([["B-per", "I-per"]] * 2, [["B-per", "O"], ["B-per", "B-per"]], [0.1, 0.1])
    assert found.metrics["f1"][0] == 0


def test_numbers() -> None:
    found = regression(np.array([1.0, 2.0, 3.0, 10.0]), np.array([2.0, 3.0, 5.0, 6.0]))
    assert found.metrics["spearman"][0] == pytest.approx(1.0)
    x, y = np.array([3.0, 1.0, 4.0, 1.0, 5.0]), np.array([2.0, 7.0, 1.0, 8.0, 2.0])
    assert regression(x, y).metrics["spearman"][0] == pytest.approx(spearmanr(x, y).statistic), "with ties"
    assert found.metrics["mae"][0] == pytest.approx((1 + 1 + 2 + 4) / 4)
    assert found.metrics["rmse"][0] == pytest.approx(math.sqrt((1 + 1 + 4 + 16) / 4))
    assert found.metrics["pearson"][0] == pytest.approx(np.corrcoef([1, 2, 3, 10], [2, 3, 5, 6])[0, 1])


def test_perplexity_is_of_tokens_not_of_rows() -> None:
    found = language(np.array([1.0, 3.0]), np.array([3, 1]))
    assert found.metrics["ell"][0] == pytest.approx((3 * 1.0 + 1 * 3.0) / 4)
    assert found.metrics["perplexity"][0] == pytest.approx(math.exp(1.5))


def test_an_interval_over_rows_is_that_of_the_normal_law() -> None:
    data = np.random.default_rng(1).normal(size=400)
    value, low, high = bootstrap_statistic(lambda rows: float(data[rows].mean()), len(data))
    half = 1.96 * data.std() / math.sqrt(len(data))
    assert value == pytest.approx(data.mean())
    assert (low, high) == pytest.approx((value - half, value + half), abs=0.01)
    assert all(math.isnan(end) for end in bootstrap_statistic(lambda rows: 1.0, 1)[1:])
