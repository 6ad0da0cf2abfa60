"""Resident memory over a long training, which must not grow: megabytes after the first tenth, and at the end.

python benchmarks/memory.py [--steps 1000]
"""

from __future__ import annotations

import argparse
import gc
import tempfile
from dataclasses import replace
from typing import Any

import psutil
import torch
from measuring import Measured, report, silence
from rl_step import SIZES, both
from transformers import TrainerCallback

from rlobj.supervised import quiet

GOAL = 1.05
SMALL = replace(SIZES["demo"], hidden_size=32, layers=1, vocabulary=1_200, prompt_words=12, reply_tokens=8, rows=16)


class Resident(TrainerCallback):
    """Megabytes of this process after every step."""

    def __init__(self) -> None:
        self.megabytes: list[float] = []
        self.process = psutil.Process()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % 10 == 0:
            gc.collect()
            self.megabytes.append(self.process.memory_info().rss / 2**20)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000)
    given = parser.parse_args()
    silence()
    torch.set_num_threads(1)  # so small a policy only waits for a second one
    with tempfile.TemporaryDirectory() as folder:
        trainer = both(folder, SMALL, False, max_steps=given.steps, logging_steps=10)[1]
        quiet(trainer)
        resident = Resident()
        trainer.add_callback(resident)
        trainer.train()
    tenth = max(len(resident.megabytes) // 10, 1)
    early, late = max(resident.megabytes[: 2 * tenth]), max(resident.megabytes[-tenth:])
    line = Measured(
        f"memory over {given.steps:,} steps, end against the first fifth",
        f"{early:.0f} MB", f"{late:.0f} MB", late / early, late / early, late / early, f"flat (≤ {GOAL})",
    )  # fmt: skip
    report("memory", [line])


if __name__ == "__main__":
    main()
