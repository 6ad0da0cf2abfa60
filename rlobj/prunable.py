"""The models that `rlobj prune` takes: how each is begun with, what it is judged by, and what is timed."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import rlobj.reward_stage as reward_stage
from reward_models.trained import context_length
from reward_models.training import encode_pairs
from rlobj.config import TrainingConfig
from rlobj.encoder_policy import as_one_token_policy
from rlobj.evaluation_stage import judge
from rlobj.fit_config import FitConfig, learning_rate_of, metric_of
from rlobj.fit_tasks import TASKS, TrainingRows
from rlobj.fitting import supervised_trainer
from rlobj.grpo_config import grpo_config, sampling_of
from rlobj.inference import limit_of, logits_of
from rlobj.intervals import Interval, wilson
from rlobj.loading import ADAPTER, load_model
from rlobj.measuring_trainer import trainer_arguments
from rlobj.one_run import Run
from rlobj.policies import load_tokenizer
from rlobj.policy_stage import make_trainer
from rlobj.prediction import model_directory
from rlobj.pruning import ZerosStay, keep_zeros
from rlobj.recipes import read_recipe
from rlobj.results import config_of, lambda_directory
from rlobj.stage_inputs import contents, contents_of
from rlobj.stages import Stage, StageRunner
from rlobj.supervised import quiet, right_padded
from rlobj.tasks import make_task

TEXTS = 32
"""Held-out texts that a model is timed with."""
ROWS = 512
"""Training rows, to see by which heads and neurons the loss changes."""
REPLY = 16
"""Tokens of the reply that a language model is timed with."""


class Timed(NamedTuple):
    """Something that a model does to a number of texts."""

    do: Callable[[Any], Any]
    texts: int


class PrunableModel(ABC):
    """A model of a run."""

    config: Any
    """of the run, with its folder"""
    whole: Path
    name = ""
    """of its folder in RUN/pruned; of the one model of rlobj fit none"""
    metric: str
    inputs: Mapping[str, Any]
    """What the result depends on beside the weights."""
    tokenizer: PreTrainedTokenizerBase
    title: str
    """what it is"""
    counted_in: str | None = None
    """what training it afterwards is counted in: --epochs or --steps; None: it is not trained"""

    def begin(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The model to be made smaller, and its tokenizer."""
        return load_model(self.whole), self.tokenizer

    def batches(self, model: PreTrainedModel) -> Iterator[Mapping[str, Tensor]] | None:
        """Labelled batches, whose loss says what is important; None where there are none at hand."""
        return None

    def check(self, epochs: float, steps: int) -> None:
        """Refuse training afterwards that the model cannot have: passes over labelled data, steps of −R + λℓ.

        Raises:
            ValueError: it cannot.
        """
        for option, count in (("--epochs", epochs), ("--steps", steps)):
            if count and option != self.counted_in:
                instead = f"{self.counted_in} instead" if self.counted_in else "0, it is not trained on"
                raise ValueError(f"{option} {count} of {type(self).title}: expected {instead}")

    def train_on(
        self, model: Any, length: float, learning_rate: float | None, runner: StageRunner[Any], stage: Stage
    ) -> None:
        """Train what was made smaller, for so many epochs or steps; zeros of its linear layers stay."""
        raise NotImplementedError

    def finish(self, model: PreTrainedModel) -> None:  # noqa: B027
        """What the weights need before they are saved."""

    @abstractmethod
    def quality(self, model: PreTrainedModel) -> dict[str, Interval]:
        """Held-out data, the last of them those that nothing was chosen by -> the metric with its interval."""

    @abstractmethod
    def rows(self) -> Sequence[Sequence[int]]:
        """Held-out texts as tokens."""

    def timed(self) -> dict[str, Timed]:
        """What is timed: first one at a time, then many."""
        rows = self.rows()
        rows = rows[:: max(len(rows) // TEXTS, 1)][:TEXTS]
        tokenizer = self.tokenizer
        return {
            "one text": Timed(lambda model: [logits_of(model, tokenizer, [row]) for row in rows], len(rows)),
            "texts in batches": Timed(lambda model: logits_of(model, tokenizer, rows), len(rows)),
        }


class FittedModel(PrunableModel):
    """The model of a run of rlobj fit."""

    title, counted_in = "a model of rlobj fit", "--epochs"

    def __init__(self, run: Path) -> None:
        config = replace(read_recipe(FitConfig, str(run / "config.yaml")), output_dir=str(run.parent), name=run.name)
        self.whole, data = run / "model", config.data
        adapted = config.policy.peft is not None  # at a rate that is none for all weights
        settings = replace(config.fit, learning_rate=None) if adapted else config.fit
        self.config = replace(config, policy=replace(config.policy, model=str(self.whole), peft=None), fit=settings)
        self.metric = metric_of(config)
        self.inputs = contents_of([data.train, data.validation, data.test])

    def begin(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        self.task = TASKS[self.config.task](self.config)
        model, self.tokenizer = self.task.model(self.config.policy, self.config.seed)
        self.task.reopen(model)
        return model, self.tokenizer

    def batches(self, model: PreTrainedModel) -> Iterator[Mapping[str, Tensor]]:
        rows = TrainingRows(self.task, self.tokenizer, limit_of(model, self.tokenizer), {}, self.config.seed)
        generator = torch.Generator().manual_seed(self.config.seed)
        some = [rows[i] for i in torch.randperm(len(rows), generator=generator)[:ROWS].tolist()]
        for batch in DataLoader(some, batch_size=8, collate_fn=self.task.collator(self.tokenizer)):  # type: ignore
            yield {name: value.to(model.device) for name, value in batch.items()}

    def train_on(
        self, model: Any, length: float, learning_rate: float | None, runner: StageRunner[Any], stage: Stage
    ) -> None:
        config, metric = self.config, self.metric
        fit = replace(config.fit, epochs=length, learning_rate=learning_rate or config.fit.learning_rate)
        config = replace(config, fit=fit)
        rate = learning_rate_of(fit, config.policy)
        arguments = trainer_arguments(fit, rate, metric, config.seed, stage.checkpoints)
        watched = runner.supervised_callbacks("supervised", {"loss": "ℓ", f"eval_{metric}": metric})
        trainer = supervised_trainer(config, self.task, model, self.tokenizer, arguments, watched)
        quiet(trainer)
        trainer.train(resume_from_checkpoint=runner.resume(stage))

    def finish(self, model: PreTrainedModel) -> None:
        self.task.finish(model)

    def quality(self, model: PreTrainedModel) -> dict[str, Interval]:
        parts = ("validation", "test")
        return {part: self.task.measure(model, self.tokenizer, part).metrics[self.metric] for part in parts}

    def rows(self) -> list[list[int]]:
        limit = self.tokenizer.model_max_length
        return [self.task.encode(self.tokenizer, each, limit)["input_ids"] for each in self.task.parts["test"]]


class RewardModel(PrunableModel):
    """The reward model of a run of rlobj run: the share of held-out pairs whose better side scores higher."""

    name, metric, title = "reward_model", "accuracy", "a reward model"

    def __init__(self, run: Path) -> None:
        self.whole = run / "reward_model"
        if not (self.whole / "config.json").is_file():
            raise ValueError(f"{run} has no reward model of its own: expected a run that trains one, without ensemble")
        self.config = config_of(run)
        if self.config.data.rated is not None:
            raise ValueError(f"the reward model of {run} learned from data.rated: expected one that learned from pairs")
        self.inputs = contents(self.config)
        self.tokenizer = load_tokenizer(self.whole)
        _, held_out = reward_stage.rows_of(Run(self.config, make_task(self.config)))
        limit = context_length(load_model(self.whole).config, self.tokenizer)
        self.pairs = encode_pairs(self.tokenizer, held_out, limit, "held-out pairs")

    def rows(self) -> list[list[int]]:
        return [pair[side] for pair in self.pairs for side in ("chosen_ids", "rejected_ids")]

    def quality(self, model: PreTrainedModel) -> dict[str, Interval]:
        scores = [float(each[0]) for each in logits_of(model, self.tokenizer, self.rows())]
        right = sum((a > b) + (a == b) / 2 for a, b in zip(scores[::2], scores[1::2], strict=True))
        return {"held-out pairs": (right / len(self.pairs), *wilson(round(right), len(self.pairs)))}


class Policy(PrunableModel):
    """A policy of a run of rlobj run: what the run's evaluation says of it."""

    title, counted_in = "a policy", "--steps"

    def __init__(self, run: Path, policy: str | None) -> None:
        self.whole = model_directory(run, policy)
        self.name = self.whole.name
        self.config = config_of(run)
        self.run = Run(self.config, make_task(self.config))
        self.inputs = contents(self.config)
        self.tokenizer = load_tokenizer(self.whole)
        self.reward = reward_stage.reward_of(self.run)
        self.labels = self.run.task.label_names is not None
        lambdas = self.config.objective.lambdas
        self.lambda_sup = next((lam for lam in lambdas if lambda_directory(run, lam).name == self.name), None)
        self.metric = "accuracy" if self.labels else "success"
        self.train, self.held_out = self.run.rows(self.tokenizer)
        if not self.held_out:
            raise ValueError(f"{run} has no labelled rows: expected a run with some, which a model is timed with")

    def batches(self, model: PreTrainedModel) -> Iterator[Mapping[str, Tensor]]:
        for start in range(0, min(len(self.train), ROWS), 8):
            ids, mask, labels = right_padded(self.train[start : start + 8], model)
            yield {"input_ids": ids, "attention_mask": mask, "labels": labels[:, 0] if self.labels else labels}

    def check(self, epochs: float, steps: int) -> None:
        super().check(epochs, steps)
        if steps and self.lambda_sup is None:
            raise ValueError(f"--steps {steps} of {self.name}, which has no λ: expected a policy that was trained on R")

    def train_on(
        self, model: Any, length: float, learning_rate: float | None, runner: StageRunner[Any], stage: Stage
    ) -> None:
        training = self.config.training
        # an adapter's rate is none for all weights
        rate = training.learning_rate if self.config.policy.peft is None else TrainingConfig().learning_rate
        training = replace(training, steps=int(length), learning_rate=learning_rate or rate)
        assert self.lambda_sup is not None
        every_weight = replace(self.config.policy, peft=None)
        run = Run(replace(self.config, training=training, policy=every_weight), self.run.task)
        run.stop = runner.stop
        keep_zeros(model)
        kind, zeros = type(model), ZerosStay(model)
        if self.labels:
            run.as_policy(model)
        sampling, args = sampling_of(run.config), grpo_config(run.config, stage.checkpoints)
        trainer = make_trainer(run, self.lambda_sup, self.reward, args, sampling, model)
        quiet(trainer)
        trainer.add_callback(zeros)
        trainer.train(resume_from_checkpoint=runner.resume(stage))
        model.__class__ = kind  # a plain classifier again, as it is saved

    def quality(self, model: PreTrainedModel) -> dict[str, Interval]:
        run = self.run
        reference = run.load(run.warm_start)
        if self.labels:
            model = as_one_token_policy(copy.deepcopy(model))
        found, _ = judge(run, self.name, model, reference, self.reward, self.tokenizer, self.held_out)
        self.metric = next(each for each in (self.metric, "return") if each in found)
        return {f"{len(run.task.eval_seeds)} held-out episodes": found[self.metric]}

    def rows(self) -> list[list[int]]:
        return [row.input_ids for row in self.held_out]

    def timed(self) -> dict[str, Timed]:
        ways = super().timed()
        if self.labels:
            return ways
        openings = [torch.tensor([row[: len(row) // 2 + 1]]) for row in self.rows()[:8]]

        def reply(model: Any) -> None:
            for ids in openings:
                mask = torch.ones_like(ids)
                given = {"attention_mask": mask, "do_sample": False, "pad_token_id": self.tokenizer.pad_token_id}
                model.generate(ids, min_new_tokens=REPLY, max_new_tokens=REPLY, **given)

        return {f"{REPLY} tokens": Timed(reply, len(openings)), "dialogues read": ways["texts in batches"]}


def model_of(run: Path, policy: str | None, reward_model: bool) -> PrunableModel:
    """What a run's folder holds.

    Raises:
        ValueError: nothing that can be pruned.
    """
    keys = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8")) if (run / "config.yaml").is_file() else {}
    if "task" in keys and (run / "model" / ADAPTER).is_file():
        raise ValueError(f"{run / 'model'} is a prefix or prompt beside a model: prune what has weights of its own")
    if "task" in keys and (run / "model" / "config.json").is_file():
        return FittedModel(run)
    if "env" in keys:
        return RewardModel(run) if reward_model else Policy(run, policy)
    raise ValueError(f"{str(run)!r} holds no finished run of rlobj fit or rlobj run: expected its folder, as runs/NAME")
