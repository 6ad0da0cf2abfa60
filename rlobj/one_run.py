"""One run: what its stages share, and how each of them is done once."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

import rlobj.bad_steps as bad_steps
from rlobj.callbacks import FiniteGuard
from rlobj.checkpoints import WholeCheckpoints, newest_whole_checkpoint, telling_of_a_full_disk
from rlobj.config import RunConfig
from rlobj.encoder_policy import as_one_token_policy
from rlobj.policies import load_causal, load_encoder
from rlobj.progress import StopWhenAsked, TrainingBar, say
from rlobj.runs import mark_done
from rlobj.stage_inputs import trains_reward
from rlobj.stages import Stage, make_ready
from rlobj.supervised import SupervisedRow
from rlobj.tasks import Task
from rlobj.tracking import METRICS


class Interrupted(KeyboardInterrupt):
    """A run was asked to stop, and has saved what it had."""


class Run:
    """What the stages of one run share, and how each of them is done once."""

    def __init__(self, config: RunConfig, task: Task) -> None:
        self.config, self.task = config, task
        self.directory = Path(config.output_dir) / config.name
        self.warm_start = self.directory / "warm_start"
        self.main, self.processes = PartialState().is_main_process, PartialState().num_processes
        self.stop: Any = None
        self.trains_reward = trains_reward(config)
        self.stage_count = 4 + len(config.objective.lambdas) - (config.reward.kind != "trained")
        self.stage_number = 0
        self._encoded: tuple[list[SupervisedRow], list[SupervisedRow]] | None = None

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
        """The newest whole checkpoint of a stage; damaged ones are removed."""
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
        return [*self.callbacks(name, metrics), FiniteGuard(self.config.training.max_bad_steps), WholeCheckpoints()]

    def stop_if_asked(self) -> None:
        """Raise Interrupted if a signal has asked for it."""
        if self.stop.requested:
            raise Interrupted(f"stopped; what was done is kept in {self.directory}")

    def rows(self, tokenizer: PreTrainedTokenizerBase) -> tuple[list[SupervisedRow], list[SupervisedRow]]:
        """Labelled rows to train on and held out, encoded once for all stages: they share one tokenizer."""
        if self._encoded is None:
            self._encoded = self.task.rows(tokenizer)
        return self._encoded

    def load(self, directory: Path) -> PreTrainedModel:
        """A policy of this run."""
        labels = self.task.label_names
        return load_causal(directory) if labels is None else as_one_token_policy(load_encoder(directory, labels))
