"""What a person sees while a stage runs: its name, a bar, the figure that matters."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from accelerate import PartialState
from tqdm import tqdm
from transformers import TrainerCallback

BAR = "{desc:<26} {percentage:3.0f}% |{bar:24}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"


def say(line: str) -> None:
    """Print one line, from the main process alone."""
    if PartialState().is_main_process:
        tqdm.write(line)


@contextmanager
def bar(name: str, total: int) -> Iterator[tqdm[Any]]:
    """A progress bar on a terminal; elsewhere one line when it ends."""
    started = time.monotonic()
    main = PartialState().is_main_process
    with tqdm(total=total, desc=f"  {name}", bar_format=BAR, disable=None if main else True) as progress:
        yield progress
        hidden, done = progress.disable, progress.n
    if hidden:
        of = "" if done == total else f" of {total}"
        say(f"  {name}: {done}{of} in {time.monotonic() - started:.0f} s")


def advance(progress: tqdm[Any], done: int) -> None:
    """Move a bar on to `done`; a hidden one counts too."""
    progress.update(done - progress.n)
    progress.n = done


class TrainingBar(TrainerCallback):
    """A bar over optimiser steps, with the latest of the named metrics behind it."""

    def __init__(self, name: str, metrics: dict[str, str]) -> None:
        self.name, self.metrics = name, metrics
        self._context: Any = None
        self._bar: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._context = bar(self.name, state.max_steps)
        self._bar = self._context.__enter__()
        advance(self._bar, state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        advance(self._bar, state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        shown = [
            f"{label} {logs[key]:.3g}" for key, label in self.metrics.items() if logs and logs.get(key) is not None
        ]
        if self._bar is not None and shown:
            self._bar.set_postfix_str(", ".join(shown), refresh=False)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._context.__exit__(None, None, None)


class StopWhenAsked(TrainerCallback):
    """End training behind the current step, with a checkpoint, when a signal has asked for it."""

    def __init__(self, stop: Any) -> None:
        self.stop = stop

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.stop.requested:
            control.should_save = control.should_training_stop = True
