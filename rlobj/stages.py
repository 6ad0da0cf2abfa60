"""Stages of a run: what each was begun and finished with, and what is done when that has changed since.

Computed results are never thrown away unasked: a stage that is half done with other inputs refuses, and a finished one
whose inputs have changed makes place for the new one and is kept.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rlobj.checkpoints import missing_state, newest_whole_checkpoint
from rlobj.progress import say
from rlobj.runs import atomic_write_json, done_with, is_done, stage_key

OnChange = Literal["refuse", "continue", "restart"]
BEGUN = "begun.json"
"""File beside a stage's checkpoints: the inputs that they were made with."""
PREVIOUS = "previous"
"""Folder of a run for finished stages whose inputs have changed since: the latest of each."""
PROCESSES = "processes"


class InputsChanged(ValueError):
    """A stage is half done with other inputs than the run has now."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage: where it writes, how it is called, and all that its result depends on."""

    directory: Path
    what: str
    inputs: Mapping[str, Any]
    """name, such as training.steps, -> JSON value"""
    kept: bool = True
    """whether a finished one is worth keeping when its inputs change"""

    @property
    def key(self) -> str:
        return stage_key(self.inputs)

    @property
    def done(self) -> bool:
        return is_done(self.directory, self.key)

    @property
    def checkpoints(self) -> Path:
        return self.directory.parent / "checkpoints" / self.directory.name


def check_half_done(stages: Sequence[Stage], on_change: OnChange, processes: int) -> None:
    """See to it that the stages that were begun can be gone on with, before the first of them runs.

    Raises:
        InputsChanged: one has checkpoints that were made with other inputs, or by another number of processes, and
            `on_change` is "refuse".
    """
    for stage in stages:
        newest = None if stage.done else newest_whole_checkpoint(stage.checkpoints)[0]
        if newest is None:
            continue
        changed = [*_changed_since_begun(stage, processes), *_lacking(newest)]
        if not changed:
            continue
        lines = "".join(f"\n  {line}" for line in changed)
        if on_change == "refuse":
            raise InputsChanged(
                f"{stage.directory} is half done ({newest.name}), but not with what there is now:{lines}\n"
                "change that back to go on exactly; or add --on_change continue to go on from there with the new ones, "
                "or --on_change restart to begin this stage again (its checkpoints are removed)"
            )
        doing = f"going on from {newest.name}" if on_change == "continue" else f"{newest.name} is given up"
        say(f"{stage.directory}: not what it was begun with; {doing}{lines}")


def make_ready(stage: Stage, run_dir: Path, on_change: OnChange, processes: int) -> None:
    """Clear the way for a stage that is not done: main process alone, after `check_half_done`."""
    finished_with = done_with(stage.directory)
    if finished_with is not None and stage.kept:
        kept = run_dir / PREVIOUS / stage.directory.relative_to(run_dir)
        shutil.rmtree(kept, ignore_errors=True)
        kept.parent.mkdir(parents=True, exist_ok=True)
        os.replace(stage.directory, kept)
        say(f"  its inputs have changed; the finished one is kept in {kept}")
        for line in differences(finished_with, stage.inputs):
            say(f"    {line}")
    newest = newest_whole_checkpoint(stage.checkpoints)[0]
    if on_change != "continue" and (_changed_since_begun(stage, processes) or (newest and _lacking(newest))):
        shutil.rmtree(stage.checkpoints, ignore_errors=True)
    atomic_write_json(stage.checkpoints / BEGUN, {"inputs": dict(stage.inputs), PROCESSES: processes})


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """A line for each name whose value is another, in the form "name: before → now"."""
    there = [name for name in now if name not in before or _as_json(before[name]) != _as_json(now[name])]
    gone = [name for name in before if name not in now]
    return [f"{name}: {_shown(before, name)} → {_shown(now, name)}" for name in [*there, *gone]]


def _changed_since_begun(stage: Stage, processes: int) -> list[str]:
    try:
        begun = json.loads((stage.checkpoints / BEGUN).read_text(encoding="utf-8"))
        before, by = begun["inputs"], begun[PROCESSES]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return ["(what it was begun with is not known)"]
    return [*differences(before, stage.inputs), *differences({PROCESSES: by}, {PROCESSES: processes})]


def _lacking(checkpoint: Path) -> list[str]:
    return [
        f"{checkpoint.name} lacks {what}: without it, what follows is not exact" for what in missing_state(checkpoint)
    ]


def _as_json(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))


def _shown(values: Mapping[str, Any], name: str) -> str:
    if name not in values:
        return "(none)"
    text = json.dumps(values[name], ensure_ascii=False, default=str)
    text = re.sub(r"\b([0-9a-f]{8})[0-9a-f]{56}\b", r"\1…", text)  # digests of contents
    return text if len(text) <= 80 else f"{text[:79]}…"
