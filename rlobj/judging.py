"""How far a reward can be trusted: its opinion of pairs of which people said which is better.

After RewardBench (Lambert et al. 2024): accuracy on pairs; and what accuracy hides: calibration, and length.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

import rlobj.pictures as pictures
import rlobj.report as report
from rlobj.intervals import Interval, bootstrap_mean, wilson
from rlobj.progress import bar
from rlobj.runs import atomic_write_json

Pair = dict[str, list[dict[str, str]]]
"""Two dialogues, `chosen` and `rejected`."""
CHUNK = 512
"""Pairs between two movements of the progress bar."""
BINS = 10


@dataclass(frozen=True, slots=True)
class Reliability:
    """Pairs on whose order the reward is about as sure: how sure, and how often it is right."""

    pairs: int
    confidence: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a reward does on preference pairs. Intervals are 95%; None where there is nothing to measure."""

    pairs: int
    accuracy: Interval
    """share of pairs whose chosen side scores higher; ties count half"""
    ties: float
    """share of pairs that score the same"""
    unscored: int
    """pairs of which the reward gave one side none; they are left out of everything else"""
    calibration_error: float
    """expected calibration error (Naeini et al. 2015) of sigmoid(score difference), as Bradley and Terry read it"""
    reliability: list[Reliability]
    length_correlation: float | None
    """Spearman's, of score with the characters of the completion"""
    accuracy_when_chosen_is_longer: Interval | None
    accuracy_when_chosen_is_shorter: Interval | None
    texts_per_second: float
    chosen: list[float]
    """scores, in the order of the pairs"""
    rejected: list[float]
    agreement: Interval | None = None
    """share of pairs that another reward orders in the same way"""
    rank_correlation: float | None = None
    """Spearman's, of the two rewards' scores of all texts"""


def judge(reward: Any, pairs: Sequence[Pair], against: Any = None) -> Judgement:
    """Score both sides of each pair.

    Args:
        reward: of TRL's signature.
        against: another reward, to compare with.

    Raises:
        ValueError: the reward scores no pair.
    """
    began = time.perf_counter()
    chosen, rejected = _scores(reward, pairs, "scoring")
    seconds = time.perf_counter() - began
    known = np.isfinite(chosen) & np.isfinite(rejected)
    if not known.any():
        raise ValueError(f"the reward gave none of the {len(pairs)} pairs two finite scores: nothing to judge")
    kept = [pair for pair, ok in zip(pairs, known, strict=True) if ok]
    lengths = np.array([[_length(pair, side) for side in ("chosen", "rejected")] for pair in kept])
    margins = (chosen - rejected)[known]
    scores = np.concatenate([chosen[known], rejected[known]])
    longer, shorter = lengths[:, 0] > lengths[:, 1], lengths[:, 0] < lengths[:, 1]
    reliability = _reliability(margins)
    agreement = rank = None
    if against is not None:
        theirs = [side[known] for side in _scores(against, pairs, "scoring with the other")]
        agreement = bootstrap_mean((np.sign(margins) == np.sign(theirs[0] - theirs[1])).astype(float).tolist())
        rank = _correlation(scores, np.concatenate(theirs))
    return Judgement(
        pairs=len(kept),
        accuracy=_accuracy(margins),
        ties=float((margins == 0).mean()),
        unscored=len(pairs) - len(kept),
        calibration_error=sum(r.pairs * abs(r.accuracy - r.confidence) for r in reliability) / len(kept),
        reliability=reliability,
        length_correlation=_correlation(scores, lengths.T.ravel()),
        accuracy_when_chosen_is_longer=_accuracy(margins[longer]) if longer.any() else None,
        accuracy_when_chosen_is_shorter=_accuracy(margins[shorter]) if shorter.any() else None,
        texts_per_second=2 * len(pairs) / seconds,
        chosen=chosen[known].tolist(),
        rejected=rejected[known].tolist(),
        agreement=agreement,
        rank_correlation=rank,
    )


def _scores(reward: Any, pairs: Sequence[Pair], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Scores of the chosen and of the rejected sides; NaN where the reward gives none."""
    sides: dict[str, list[float]] = {"chosen": [], "rejected": []}
    with bar(name, len(pairs)) as progress:
        for start in range(0, len(pairs), CHUNK):
            chunk = pairs[start : start + CHUNK]
            for side, scores in sides.items():
                prompts, completions = zip(*(_parts(pair, side) for pair in chunk), strict=True)
                given = reward(prompts=list(prompts), completions=list(completions))
                scores += [float("nan") if score is None else float(score) for score in given]
            progress.advance(start + len(chunk))
    return np.array(sides["chosen"]), np.array(sides["rejected"])


def _parts(pair: Pair, side: str) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """What both sides begin with, and what follows on this one."""
    shared = 0
    for ours, theirs in zip(pair["chosen"], pair["rejected"], strict=False):
        if ours != theirs:
            break
        shared += 1
    return pair[side][:shared], pair[side][shared:]


def _length(pair: Pair, side: str) -> int:
    return sum(len(message["content"]) for message in _parts(pair, side)[1])


def _accuracy(margins: np.ndarray) -> Interval:
    if (margins == 0).any():
        return bootstrap_mean(((np.sign(margins) + 1) / 2).tolist())
    wins = int((margins > 0).sum())
    return wins / len(margins), *wilson(wins, len(margins))


def _reliability(margins: np.ndarray) -> list[Reliability]:
    """In bins of confidence from 1/2 to 1."""
    with np.errstate(over="ignore"):
        confidence = 1 / (1 + np.exp(-np.abs(margins)))
    right = (np.sign(margins) + 1) / 2
    place = np.minimum(((confidence - 0.5) * 2 * BINS).astype(int), BINS - 1)
    return [
        Reliability(int((place == i).sum()), float(confidence[place == i].mean()), float(right[place == i].mean()))
        for i in range(BINS)
        if (place == i).any()
    ]


def _correlation(x: np.ndarray, y: np.ndarray) -> float | None:
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    return float(stats.spearmanr(x, y).statistic)


# What a person sees ---------------------------------------------------------------------------------------------------


def lines(found: Judgement) -> list[tuple[str, str]]:
    """Name and value of each figure."""
    other = [
        ("agreement with the other", _with_interval(found.agreement)),
        ("rank correlation with the other", _figure(found.rank_correlation)),
    ]
    return [
        ("pairs", f"{found.pairs}{f' ({found.unscored} more without a score)' if found.unscored else ''}"),
        ("accuracy", _with_interval(found.accuracy)),
        ("… where the chosen is longer", _with_interval(found.accuracy_when_chosen_is_longer)),
        ("… where the chosen is shorter", _with_interval(found.accuracy_when_chosen_is_shorter)),
        ("ties", f"{found.ties:.1%}"),
        ("calibration error (ECE)", _figure(found.calibration_error)),
        ("rank correlation with length", _figure(found.length_correlation)),
        *(other if found.agreement is not None else []),
        ("texts a second", f"{found.texts_per_second:,.0f}"),
    ]


def _with_interval(value: Interval | None) -> str:
    return "–" if value is None else f"{value[0]:.3f} [{value[1]:.3f}, {value[2]:.3f}]"


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def write_judgement(found: Judgement, directory: Path, name: str, data: str) -> Path:
    """Write judgement.json and judgement.html; return the latter's path."""
    directory.mkdir(parents=True, exist_ok=True)
    atomic_write_json(directory / "judgement.json", {"reward": name, "data": data, **asdict(found)})
    plots = [
        pictures.drawing("reliability-", "reliability", partial(_draw_reliability, found)),
        pictures.drawing("scores-", "scores", partial(_draw_scores, found)),
    ]
    return report.write_page(
        directory / "judgement.html",
        f"{name} on {data}",
        [
            report.definitions(dict(lines(found))),
            f"<div class='plots'>{''.join(plots)}</div>",
            "<p class='meaning'>Reliability: how often the reward is right, by how sure it is (sigmoid of the "
            "difference of scores); on the dashed line it is as sure as it should be. In brackets: 95% intervals.</p>",
        ],
    )


def _draw_reliability(found: Judgement, axes: Any) -> None:
    axes.plot([0.5, 1], [0.5, 1], linestyle="--", linewidth=1, color="gray")
    axes.plot([r.confidence for r in found.reliability], [r.accuracy for r in found.reliability], marker="o", ms=4)
    axes.set(xlabel="confidence", ylabel="accuracy", ylim=(0, 1.02))


def _draw_scores(found: Judgement, axes: Any) -> None:
    edges = np.histogram_bin_edges([*found.chosen, *found.rejected], bins=30)
    for side in ("chosen", "rejected"):
        axes.hist(getattr(found, side), bins=edges, alpha=0.55, label=side)
    axes.set(xlabel="score", ylabel="texts")
    axes.legend(frameon=False)
