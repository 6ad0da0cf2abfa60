"""What a person sees while a stage runs: its name, a bar, the figure that matters."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from accelerate import PartialState
from tqdm import tqdm
from transformers import TrainerCallback

LINE_EVERY = 30.0
"""Seconds between two lines of progress where there is no terminal to draw a bar on."""
BAR = "{desc:<26} {percentage:3.0f}% |{bar:24}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"


def say(line: str) -> None:
    """Print one line, from the main process alone."""
    if PartialState().is_main_process:
        tqdm.write(line)


class _Bar(tqdm):
    """A bar on a terminal; elsewhere, such as in a log file, a line now and then, and one when it ends."""

    def __init__(self, name: str, total: int, main: bool, unit: str) -> None:
        self.n = 0
        super().__init__(total=total, desc=f"  {name}", bar_format=BAR, disable=None if main else True)
        self.name, self.whole, self.began, self.latest = name, total, time.monotonic(), ""
        self.of = f" {unit}" if unit else ""
        self.next_line = self.began + LINE_EVERY

    def advance(self, done: int) -> None:
        """Move on to `done`; a hidden bar counts too."""
        self.update(done - self.n)
        self.n = done
        now = time.monotonic()
        if self.disable and now >= self.next_line and done < self.whole:
            self.next_line = now + LINE_EVERY
            say(f"  {self.name}: {done} of {self.whole}{self.of} in {now - self.began:.0f} s{self.latest}")

    def show(self, figures: str) -> None:
        """The figures that stand behind the bar from now on."""
        self.latest = f", {figures}"
        self.set_postfix_str(figures, refresh=False)


@contextmanager
def bar(name: str, total: int, unit: str = "") -> Iterator[_Bar]:
    """A progress bar over a total of units."""
    with _Bar(name, total, PartialState().is_main_process, unit) as progress:
        yield progress
        hidden, done = progress.disable, progress.n
    if hidden:
        of = "" if done == total else f" of {total}"
        say(f"  {name}: {done}{of}{progress.of} in {time.monotonic() - progress.began:.0f} s{progress.latest}")


class TrainingBar(TrainerCallback):
    """A bar over optimiser steps, with the latest of the named metrics behind it."""

    def __init__(self, name: str, metrics: dict[str, str]) -> None:
        self.name, self.metrics = name, metrics
        self._context: Any = None
        self._bar: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._context = bar(self.name, state.max_steps, "steps")
        self._bar = self._context.__enter__()
        self._bar.advance(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._bar.advance(state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        shown = [
            f"{label} {logs[key]:.3g}" for key, label in self.metrics.items() if logs and logs.get(key) is not None
        ]
        if self._bar is not None and shown:
            self._bar.show(", ".join(shown))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._context.__exit__(None, None, None)


class StopWhenAsked(TrainerCallback):
    """End training behind the current step, with a checkpoint, when a signal has asked for it."""

    def __init__(self, stop: Any) -> None:
        self.stop = stop

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.stop.requested:
            control.should_save = control.should_training_stop = True
