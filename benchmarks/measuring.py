"""What the speed scripts share: two sides take turns in one process, and their ratio is given with its spread.

Turns lie beside one another in time, so whatever else the machine does weighs on both; the ratio is the median of the
turns' own ratios.
"""

from __future__ import annotations

import json
import logging
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback
from transformers import logging as transformers_logging

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, slots=True)
class Measured:
    """One line of the table."""

    what: str
    peer: str
    """The peer's figure, with its unit."""
    ours: str
    ratio: float
    least: float
    most: float
    goal: str
    turns: int = 1

    def turned(self) -> Measured:
        """The same with peer and ours changed over: what ours costs, where the ratio said what it saves."""
        return replace(self, peer=self.ours, ours=self.peer)


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def in_turns(sides: dict[str, Callable[[], float]], turns: int) -> dict[str, list[float]]:
    """What each side reports of each of its turns. A first turn of each, which warms up, is left out."""
    for side in sides.values():
        side()
    found: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(turns):
        # who goes first changes
        for name in list(sides) if turn % 2 == 0 else reversed(sides):
            found[name].append(sides[name]())
    return found


def compared(what: str, peer: list[float], ours: list[float], goal: str, unit: str = "s", per: float = 1.0) -> Measured:
    """How many times faster ours is, from seconds of paired turns.

    Args:
        per: with another unit than seconds: how much of it is done in one turn.
    """
    ratios = sorted(a / b for a, b in zip(peer, ours, strict=True))

    def figure(taken: list[float]) -> str:
        median = statistics.median(taken)
        return f"{median:.3g} s" if unit == "s" else f"{per / median:,.0f} {unit}"

    middle = statistics.median(ratios)
    return Measured(what, figure(peer), figure(ours), middle, ratios[0], ratios[-1], goal, len(ratios))


class StepClock(TrainerCallback):
    """Seconds in the optimiser steps of the latest training, rollouts included."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self._started = 0.0

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.steps = []

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self._started = time.perf_counter()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.steps.append(time.perf_counter() - self._started)


def step_seconds(trainer: Any) -> Callable[[], float]:
    """A turn of a trainer: it trains `max_steps` steps from where its weights are; mean seconds of one."""
    from rlobj.supervised import quiet

    clock = StepClock()
    trainer.add_callback(clock)
    quiet(trainer)

    def turn() -> float:
        trainer.train()
        return statistics.mean(clock.steps)

    return turn


def silence() -> None:
    """Nothing on the screen but the figures."""
    warnings.simplefilter("ignore")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.disable(logging.WARNING)


def machine() -> dict[str, Any]:
    """What figures were measured on."""
    return {"threads": torch.get_num_threads(), "torch": torch.__version__, "machine": platform.machine()}


def report(script: str, lines: list[Measured]) -> None:
    """Print the lines, and keep them for the table in the README (`benchmarks/table.py`)."""
    for line in lines:
        print(
            f"{line.what}: peer {line.peer}, ours {line.ours}, ratio {line.ratio:.2f} "
            f"({line.least:.2f} to {line.most:.2f} in {line.turns} turns); goal {line.goal}",
            flush=True,
        )
    RESULTS.mkdir(exist_ok=True)
    record = {**machine(), "lines": [asdict(line) for line in lines]}
    (RESULTS / f"{script}.json").write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
