"""BLEU, chrF and ROUGE against a reference, by the libraries of the extra `text-metrics`: sacrebleu and rouge-score."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Sequence
from typing import Any

from reward_models.shipped import Said, best_over_references
from reward_models.words import is_ideograph, words


def bleu(
    prompts: Sequence[Said],
    completions: Sequence[Said],
    column: str = "reference",
    tokenize: str | None = None,
    **columns: Any,
) -> list[float | None]:
    """BLEU of the policy's last message against the column `reference`, 0 to 1, by sentence (extra `text-metrics`).

    `tokenize` is sacrebleu's; None takes "zh" for Chinese references, "13a" for others.
    """
    metric = _library("sacrebleu", "bleu").sentence_bleu

    def score(text: str, want: str) -> float:
        tokenizer = tokenize or ("zh" if any(map(is_ideograph, want)) else "13a")
        return float(metric(text, [want], tokenize=tokenizer).score) / 100

    return best_over_references("bleu", score, completions, column, columns)


def chrf(
    prompts: Sequence[Said],
    completions: Sequence[Said],
    column: str = "reference",
    word_order: int = 0,
    **columns: Any,
) -> list[float | None]:
    """chrF of the policy's last message against the column `reference`, 0 to 1 (extra `text-metrics`).

    `word_order=2` is chrF++ (Popović 2017).
    """
    metric = _library("sacrebleu", "chrf").sentence_chrf

    def score(text: str, want: str) -> float:
        return float(metric(text, [want], word_order=word_order).score) / 100

    return best_over_references("chrf", score, completions, column, columns)


def rouge(
    prompts: Sequence[Said],
    completions: Sequence[Said],
    column: str = "reference",
    kind: str = "rougeL",
    **columns: Any,
) -> list[float | None]:
    """ROUGE's F1 of the policy's last message against the column `reference`, 0 to 1 (extra `text-metrics`).

    `kind` is rougeL, rouge1, rouge2, … Words are those of any script, each Chinese character by itself.
    """
    scorer = _rouge_scorer(kind)

    def score(text: str, want: str) -> float:
        return float(scorer.score(want, text)[kind].fmeasure)

    return best_over_references("rouge", score, completions, column, columns)


class _Words:
    """rouge-score's own tokenizer knows no letters but ASCII's."""

    def tokenize(self, text: str) -> list[str]:
        return words(text)


@functools.cache
def _rouge_scorer(kind: str) -> Any:
    if not kind.startswith("rouge") or (kind != "rougeL" and not kind[5:].isdigit()):
        raise ValueError(f"kind is {kind!r}: expected rougeL, rouge1, rouge2, …")
    return _library("rouge_score.rouge_scorer", "rouge").RougeScorer([kind], tokenizer=_Words())


def _library(module: str, reward: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(
            f"reward {reward!r} needs the extra text-metrics: pip install 'rlobj[text-metrics]'"
        ) from error
