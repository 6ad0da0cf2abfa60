"""Trackers of others, which may fail, and the log on this machine, which goes on without them."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from rlobj.runs import atomic_write_text, finite

logger = logging.getLogger(__name__)

METRICS = "metrics.jsonl"
"""File beside the checkpoints: what was logged, a line for each time, with its step."""
EVENTS = tuple(name for name in dir(TrainerCallback) if name.startswith("on_"))


class MetricsLog(TrainerCallback):
    """Write what is logged to METRICS, at once. A resume takes away the lines of steps that are done again."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        path = Path(args.output_dir) / METRICS
        before = path.read_text(encoding="utf-8").splitlines() if state.global_step and path.exists() else []
        kept = [line for line in before if _step(line) <= state.global_step]
        atomic_write_text(path, "".join(f"{line}\n" for line in kept))

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if state.is_world_process_zero and logs:
            line = json.dumps(finite({"step": state.global_step, **logs}), ensure_ascii=False, allow_nan=False)
            with open(Path(args.output_dir) / METRICS, "a", encoding="utf-8") as file:
                file.write(f"{line}\n")


def read_metrics(directory: Path) -> list[dict[str, Any]]:
    """What METRICS in this folder has so far, of a training that runs, too; nothing where there is none."""
    try:
        lines = (directory / METRICS).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines if math.isfinite(_step(line))]


def _step(line: str) -> float:
    """The step of a line; infinite for one that a killed process did not write to its end."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")


def track(trainer: Trainer) -> None:
    """Write METRICS; and leave a tracker of `report_to` out, with a warning, from its first failure on (no network, no
    account), instead of ending the training with it.
    """
    trainer.add_callback(MetricsLog())
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, tuple(INTEGRATION_TO_CALLBACK.values())):
            _guard(callback)


def _guard(tracker: TrainerCallback) -> None:
    """Wrap the events of this one object, which keeps its class: callbacks are found and removed by it."""
    failed: list[Exception] = []

    def guarded(event: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(event)
        def call(args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
            if failed:
                return None
            try:
                return event(args, state, control, **kwargs)
            except Exception as error:
                failed.append(error)
                logger.warning(
                    "%s failed (%s: %s): training goes on without it, and %s has what is logged. To look at it later, "
                    "run the tracker in its offline mode, or set report_to to none",
                    type(tracker).__name__,
                    type(error).__name__,
                    error,
                    Path(args.output_dir) / METRICS,
                )
                return None

        return call

    for name in EVENTS:
        setattr(tracker, name, guarded(getattr(tracker, name)))
