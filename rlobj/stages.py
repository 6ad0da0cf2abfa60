"""Stages of a run: what each was begun and finished with, and what is done when that has changed since.

Computed results are never thrown away unasked: a stage that is half done with other inputs refuses, and a finished one
whose inputs have changed makes place for the new one and is kept.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, Literal

from accelerate import PartialState
from transformers import TrainerCallback

import rlobj.bad_steps as bad_steps
from rlobj.callbacks import FiniteGuard
from rlobj.checkpoints import (
    CHECKPOINTS_AT_ONCE,
    WholeCheckpoints,
    missing_state,
    newest_whole_checkpoint,
    telling_of_a_full_disk,
)
from rlobj.config import ModelConfig, dump
from rlobj.progress import StopWhenAsked, TrainingBar, say
from rlobj.recipes import Tree
from rlobj.runs import (
    atomic_write_json,
    atomic_write_text,
    done_with,
    is_done,
    mark_done,
    require_free_space,
    stage_key,
)
from rlobj.tracking import METRICS

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


class Interrupted(KeyboardInterrupt):
    """A run was asked to stop, and has saved what it had."""


class StageRunner(Generic[Tree]):
    """Runs the stages of one run, each unless its directory holds what the same inputs made.

    Args:
        config: of the run.
        max_bad_steps: non-finite steps in a row after which a guarded training gives up.
    """

    def __init__(self, config: Tree, max_bad_steps: int) -> None:
        self.config: Tree = config
        self.max_bad_steps = max_bad_steps
        self.directory = Path(config.output_dir) / config.name
        self.main, self.processes = PartialState().is_main_process, PartialState().num_processes
        self.stop: Any = None
        self.stage_number, self.stage_count = 0, 1

    def begin(self, stages: Sequence[Stage], models: int) -> None:
        """Settle, before the first stage, whether all of them can be run, and write the configuration.

        Args:
            models: how many the stages write.
        """
        check_half_done(stages, self.config.on_change, self.processes)
        if not all(stage.done for stage in stages):
            require_free_space(self.directory, _bytes_needed(self.config.policy, models))
        PartialState().wait_for_everyone()
        if self.main:
            self.directory.mkdir(parents=True, exist_ok=True)
            # what to do about a change is said for this once
            atomic_write_text(self.directory / "config.yaml", dump(replace(self.config, on_change="refuse")))

    def do(self, stage: Stage, work: Callable[[], dict[str, Any]]) -> None:
        """Run `work` unless the stage's directory holds what the same inputs made."""
        self.stage_number += 1
        heading = f"[{self.stage_number}/{self.stage_count}] {stage.what}"
        if stage.done:
            say(f"{heading}: done before, inputs unchanged")
            return
        say(heading)
        if self.main:
            make_ready(stage, self.directory, self.config.on_change, self.processes)
        PartialState().wait_for_everyone()
        with telling_of_a_full_disk(stage.checkpoints):
            outputs = work()
        if self.main:
            for kept in (bad_steps.FOLDER, METRICS):
                if (stage.checkpoints / kept).exists():
                    shutil.rmtree(stage.directory / kept, ignore_errors=True)
                    shutil.move(stage.checkpoints / kept, stage.directory / kept)
            mark_done(stage.directory, stage.key, outputs, stage.inputs)
            shutil.rmtree(stage.checkpoints, ignore_errors=True)
        PartialState().wait_for_everyone()
        if "says" in outputs:
            say(f"  {outputs['says']}")

    def resume(self, stage: Stage) -> str | None:
        """The newest whole checkpoint of a stage; newer ones that are damaged are removed."""
        newest, damaged = newest_whole_checkpoint(stage.checkpoints)
        for path, wrong in damaged.items():
            say(f"  {path.name} {wrong}; it is removed")
            if self.main:
                shutil.rmtree(path)
        if newest is None:
            return None
        say(f"  going on from {newest.name}")
        return str(newest)

    def callbacks(self, name: str, metrics: dict[str, str]) -> list[TrainerCallback]:
        """Of every stage: a bar with these metrics under these names, and an end when asked."""
        return [TrainingBar(name, metrics), StopWhenAsked(self.stop)]

    def supervised_callbacks(self, name: str, metrics: dict[str, str]) -> list[TrainerCallback]:
        """Of the stages that are not ObjectiveTrainer's, which has guards of its own."""
        return [*self.callbacks(name, metrics), FiniteGuard(self.max_bad_steps), WholeCheckpoints()]

    def stop_if_asked(self) -> None:
        """Raise Interrupted if a signal has asked for it."""
        if self.stop.requested:
            raise Interrupted(f"stopped; what was done is kept in {self.directory}")


def _bytes_needed(policy: ModelConfig, models: int) -> int:
    """About what a run writes: the weights of each model, and checkpoints of one, which hold them and two moments."""
    if policy.model is None:
        weights = 4 * (policy.vocab_size * policy.hidden_size + 16 * policy.layers * policy.hidden_size**2)
    else:
        weights = sum(file.stat().st_size for file in Path(policy.model).glob("*.safetensors"))
    return weights * (models + 3 * CHECKPOINTS_AT_ONCE)


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
