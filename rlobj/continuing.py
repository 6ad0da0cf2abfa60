"""`rlobj continue`: a model that was trained on old data is trained on new, L(θ) = ℓ_new + λ·ℓ_old, and what it forgot
of the old is measured: each λ begins with the same model, and is judged on the same rows.

A continued run is gone on with likewise: all that was learned before is old then, rehearsed together and judged apart.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import TrainingArguments

from rlobj import __version__
from rlobj.continue_config import ContinueConfig, validate_continue
from rlobj.controllers import Controller
from rlobj.fit_config import FitConfig, FittedConfig, LabelledConfig, learning_rate_of
from rlobj.fit_data import PARTS, repeated
from rlobj.fit_tasks import TASKS, Regression, SupervisedTask, TextClassification, TokenClassification, TrainingRows
from rlobj.forgetting import figures_of
from rlobj.forgetting_report import forgetting_table, write_forgetting_report
from rlobj.inference import limit_of
from rlobj.lambdas import as_lambda
from rlobj.loading import require_whole_model
from rlobj.measuring_trainer import how_it_was_trained, trainer_arguments
from rlobj.modes import evaluating
from rlobj.policies import save_policy
from rlobj.pretraining import SelfSupervisedTrainer, TellController
from rlobj.progress import say
from rlobj.rehearsal import RehearsedNetwork, grow_head, load_trained, names_of, speak_in_deviations
from rlobj.results import lambda_directory, lambda_title
from rlobj.runs import atomic_write_json, graceful_signals, read_outputs
from rlobj.splitting import split_rows
from rlobj.stage_inputs import contents_of, named, weights_of
from rlobj.stages import Stage, StageRunner
from rlobj.steering import Steering
from rlobj.stream import SupervisedStream
from rlobj.supervised import SupervisedRow, quiet

ROWS_OF_ELL = 256
"""Old rows on which a controller of λ is told the ℓ to begin with."""


def go_on(config: ContinueConfig) -> Path:
    """Train each λ, unless that was done before; return the path of the report.

    Raises:
        ValueError: the configuration or its data are not usable, before anything is trained.
        InputsChanged, Interrupted: as `rlobj.fitting.fit`.
    """
    validate_continue(config)
    assert config.policy.model is not None
    require_whole_model("policy.model", config.policy.model)
    this = _Continuing(config)
    with graceful_signals() as this.stop:
        return this.all_stages()


class RehearsalTrainer(SelfSupervisedTrainer):
    """L(θ) = ℓ_new + λ·ℓ_old, with one gradient, one clip, one step; each divided by its own count over the global
    batch."""

    def ell_sum(self, rows: list[SupervisedRow]) -> Tensor:
        assert isinstance(self.network, RehearsedNetwork)
        return self.network.ell_sum(rows)


class _Continuing(StageRunner[ContinueConfig]):
    """A stage for the model as it was, one for each λ, and the report."""

    def __init__(self, config: ContinueConfig) -> None:
        super().__init__(config, config.fit.max_bad_steps)
        seeds = config.split_seed_of
        self.old = {side: self._task(source, seeds[side]) for side, source in config.former.items()}
        self.new = self._task(config.data, config.seed)
        self.tasks: dict[str, SupervisedTask] = {**self.old, "new": self.new}
        self.stage_count = 1 + len(config.objective.lambdas)
        self._settle_names()

    def _task(self, source: LabelledConfig, seed: int) -> SupervisedTask:
        config = self.config
        policy = FittedConfig(**asdict(config.policy))
        task: SupervisedTask = TASKS[config.task](FitConfig(config.name, config.task, policy, source, seed=seed))
        return task

    def _settle_names(self) -> None:
        """One list of labels for old and new data: the model's own first, in its order."""
        assert self.config.policy.model is not None
        self.known = names_of(self.config.task, self.config.policy.model)
        self.names = list(self.known)
        for side, task in self.tasks.items():
            if isinstance(task, TextClassification | TokenClassification):
                strange = [name for name in task.names if name not in self.names]
                if strange and side != "new":
                    raise ValueError(
                        f"{side}.train {self.config.former[side].train!r} has the labels {', '.join(strange[:5])}, "
                        f"which {self.config.policy.model!r} has not: expected what it was trained on"
                    )
                self.names += strange
        for task in self.tasks.values():
            if isinstance(task, TextClassification | TokenClassification):
                task.names = self.names
        self.units = (0.0, 1.0)
        if isinstance(self.new, Regression):
            numbers = [example.y for task in self.old.values() for example in task.parts["train"]]
            self.units = (float(np.mean(numbers)), float(np.std(numbers)))
        self._speak_in(0.0, 1.0)

    def _speak_in(self, mean: float, std: float) -> None:
        """In which units a regression's model speaks: a saved one in the numbers' own."""
        for task in self.tasks.values():
            if isinstance(task, Regression):
                task.mean, task.std = mean, std

    def _load(self) -> Any:
        assert self.config.policy.model is not None
        return load_trained(self.config.task, self.config.policy.model)

    # Stages -----------------------------------------------------------------------------------------------------------

    def inputs(self) -> dict[str, Any]:
        config = self.config
        files = [getattr(source, part) for source in (*config.former.values(), config.data) for part in PARTS]
        return {
            "rlobj": __version__,
            "task": config.task,
            **named("policy", asdict(config.policy)),
            **named("old", asdict(config.old)),
            "older": config.older,
            **named("data", asdict(config.data)),
            "seed": config.seed,
            **contents_of([*files, config.data.augment.get("synonyms")]),
            **weights_of(config.policy.model),
        }

    def stage_of(self, lambda_sup: float | str) -> Stage:
        config = self.config
        settings = {**named("objective", asdict(config.objective)), "objective.lambda_sup": lambda_sup}
        what = f"continue: ℓ_new + λℓ_old with {lambda_title(lambda_sup)}"
        inputs = {**self.inputs(), **named("fit", asdict(config.fit)), **settings}
        return Stage(lambda_directory(self.directory, lambda_sup), what, inputs)

    def all_stages(self) -> Path:
        lambdas = self.config.objective.lambdas
        before = Stage(self.directory / "before", "the model as it was, on old and new data", self.inputs(), kept=False)
        stages = [before, *[self.stage_of(value) for value in lambdas]]
        self._arguments(stages[-1])  # what transformers refuses is refused now
        self.begin(stages, models=len(lambdas))
        self.do(before, self.before)
        for value, stage in zip(lambdas, stages[1:], strict=True):
            self.do(stage, lambda value=value, stage=stage: self.work(value, stage))  # type: ignore[misc]
        report = self.directory / "report.html"
        if self.main:
            outputs = {lambda_title(v): read_outputs(s.directory) for v, s in zip(lambdas, stages[1:], strict=True)}
            then = read_outputs(before.directory)
            facts = {**self.facts(), **outputs[lambda_title(lambdas[-1])]["facts"], "made by": self.command()}
            table = write_forgetting_report(report, self.config.name, then, outputs, facts)
            atomic_write_json(self.directory / "summary.json", {"table": table})
            say("")
            say(forgetting_table(table))
            say(f"\nreport  {report}\nmodels  {self.directory / 'policies'}")
            say(f"use one: rlobj predict {self.directory} FILE --policy {stages[-1].directory.name}")
        return report

    def facts(self) -> dict[str, str]:
        facts: dict[str, str] = {"task": self.config.task}
        sources = {**self.config.former, "new": self.config.data}
        for side, task in self.tasks.items():
            facts[f"{side}: data"] = str(sources[side].train)
            facts |= {f"{side}: {name}": text for name, text in task.facts().items() if name in ("rows", "leak")}
        leaked = sum(
            repeated({"train": self.new.parts["train"], "test": task.parts["test"]}) for task in self.old.values()
        )
        if leaked:
            facts["leak"] = f"{leaked} rows of the old test stand in the new training data"
        if len(self.names) > len(self.known):
            facts["new labels"] = ", ".join(self.names[len(self.known) :])
        return facts

    def command(self) -> str:
        """That makes it again."""
        model = Path(str(self.config.policy.model))
        run = next((each for each in model.parents if (each / "config.yaml").is_file()), model)
        return shlex.join(["rlobj", "continue", str(run), "--config", str(self.directory / "config.yaml")])

    def before(self) -> dict[str, Any]:
        model, tokenizer = self._load()
        self._limit(model, tokenizer)
        return {"figures": self._figures(model, tokenizer)}

    def _figures(self, model: Any, tokenizer: Any) -> dict[str, Any]:
        return {side: figures_of(task, model, tokenizer, "test") for side, task in self.tasks.items()}

    def _limit(self, model: Any, tokenizer: Any) -> int:
        longest = self.config.policy.max_length
        tokenizer.model_max_length = min(limit_of(model, tokenizer) or longest, longest)
        return int(tokenizer.model_max_length)

    def _arguments(self, stage: Stage) -> TrainingArguments:
        settings = self.config.fit
        rate = learning_rate_of(settings, self.config.policy)
        last = {"load_best_model_at_end": False, "metric_for_best_model": None, "greater_is_better": None}
        kept = type(settings)(**{**asdict(settings), "trainer": {**last, **settings.trainer}})
        return trainer_arguments(kept, rate, "ell", self.config.seed, stage.checkpoints)

    def work(self, lambda_sup: float | str, stage: Stage) -> dict[str, Any]:
        config, form = self.config, as_lambda(lambda_sup)
        model, tokenizer = self._load()
        if self.names:
            grow_head(model, self.names, config.seed)
        if isinstance(self.new, Regression):
            speak_in_deviations(model, *self.units)
            self._speak_in(*self.units)
        limit = self._limit(model, tokenizer)
        network = RehearsedNetwork(self.new, model, tokenizer)
        old = self._old_rows(network, limit)
        trainer = RehearsalTrainer(
            network,
            self._arguments(stage),
            data_collator=network.pad,
            train_dataset=TrainingRows(self.new, tokenizer, limit, config.data.augment, config.seed),
            eval_dataset=[],
            callbacks=self.supervised_callbacks(lambda_title(lambda_sup), {"loss": "L", "objective/ell": "ℓ_old"}),
            measure=lambda: self._measured(model, tokenizer),
            lambda_sup=form,
            stream=SupervisedStream(old, config.objective.supervised_batch_size, config.seed),
        )
        if isinstance(form, Controller):
            some = old[:: max(len(old) // ROWS_OF_ELL, 1)]
            with evaluating(model), torch.no_grad():
                start = float(np.mean([network.ell_sum([row]).item() / row.targets for row in some]))
            trainer.add_callback(Steering(form, start))
            trainer.add_callback(TellController(form, trainer.ell_of_step))
        quiet(trainer)
        trainer.train(resume_from_checkpoint=self.resume(stage))
        self.stop_if_asked()
        self.new.finish(model)
        self._speak_in(0.0, 1.0)
        if self.main:
            save_policy(model, tokenizer, stage.directory)
        return {
            "history": trainer.state.log_history,
            "figures": self._figures(model, tokenizer),
            "facts": how_it_was_trained(config.fit, trainer, config.policy),
        }

    def _old_rows(self, network: RehearsedNetwork, limit: int) -> list[SupervisedRow]:
        """Rows of all that was learned before, together."""
        most = self.config.objective.rows
        examples = [example for task in self.old.values() for example in task.parts["train"]]
        if most is not None and most < len(examples):
            examples = split_rows(examples, most / len(examples), self.config.seed)[1]
        return network.old_rows([self.new.encode(network.tokenizer, example, limit) for example in examples])

    def _measured(self, model: Any, tokenizer: Any) -> dict[str, float]:
        """Each figure of the validation data, for the curves."""
        found: dict[str, float] = {}
        for side, task in self.tasks.items():
            figures: Mapping[str, Any] = figures_of(task, model, tokenizer, "validation")
            for name, figure in figures.items():
                found[f"{side}_{name}"] = figure.value(np.arange(len(figure.above)))
        return found
