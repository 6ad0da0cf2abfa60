"""`rlobj fit`: a supervised training from labelled data to a report, by transformers' Trainer.

The best epoch by the validation data is kept, and judged on the test data, which nothing was chosen by.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from reward_models.hub import require_model
from rlobj import __version__
from rlobj.fit_config import FitConfig, learning_rate_of, metric_of, validate_fit
from rlobj.fit_report import fit_table, write_fit_report
from rlobj.fit_tasks import TASKS, SupervisedTask, TrainingRows
from rlobj.inference import limit_of
from rlobj.measures import Measured
from rlobj.measuring_trainer import MeasuringTrainer, patience_of, trainer_arguments
from rlobj.policies import save_policy
from rlobj.progress import say
from rlobj.runs import atomic_write_json, graceful_signals, read_outputs
from rlobj.stage_inputs import contents_of, named, weights_of
from rlobj.stages import Stage, StageRunner
from rlobj.supervised import quiet


def fit(config: FitConfig) -> Path:
    """Train as a recipe says, unless that was done before; return the path of the report.

    Raises:
        ValueError: the configuration or its data are not usable, before anything is trained.
        InputsChanged: training is half done with other inputs, and config.on_change is "refuse".
        Interrupted: asked to stop by a signal; the same command goes on.
    """
    validate_fit(config)
    if config.policy.model is not None:
        require_model("policy.model", config.policy.model)
    this = _Fit(config, TASKS[config.task](config))
    with graceful_signals() as this.stop:
        return this.all_stages()


class _Fit(StageRunner[FitConfig]):
    """The one stage of a supervised training, and its report."""

    def __init__(self, config: FitConfig, task: SupervisedTask) -> None:
        super().__init__(config, config.fit.max_bad_steps)
        self.task = task

    def stage(self) -> Stage:
        config = self.config
        inputs = {
            "rlobj": __version__,
            "task": config.task,
            **named("policy", asdict(config.policy)),
            **named("data", asdict(config.data)),
            **named("fit", asdict(config.fit)),
            "seed": config.seed,
            **contents_of([config.data.train, config.data.validation, config.data.test]),
            **contents_of([config.data.augment.get("synonyms")]),
            **weights_of(config.policy.model),
        }
        return Stage(self.directory / "model", f"fit: {config.task}", inputs)

    def all_stages(self) -> Path:
        stage = self.stage()
        self._arguments(stage)  # what transformers refuses is refused now
        self.begin([stage], models=1)
        self.do(stage, lambda: self.work(stage))
        outputs, report = read_outputs(stage.directory), self.directory / "report.html"
        if self.main:
            write_fit_report(report, self.config.name, outputs)
            atomic_write_json(self.directory / "summary.json", {"table": _table(outputs)})
            say("")
            say(fit_table(outputs))
            say(f"\nreport  {report}\nmodel   {stage.directory}\nuse it: rlobj predict {self.directory} FILE")
        return report

    def _arguments(self, stage: Stage) -> TrainingArguments:
        settings = self.config.fit
        rate = learning_rate_of(settings, self.config.policy)
        return trainer_arguments(settings, rate, metric_of(self.config), self.config.seed, stage.checkpoints)

    def work(self, stage: Stage) -> dict[str, Any]:
        config, task = self.config, self.task
        model, tokenizer = task.model(config.policy, config.seed)
        limit = min(limit_of(model, tokenizer) or config.policy.max_length, config.policy.max_length)
        tokenizer.model_max_length = limit  # saved with the model, which is used as it was trained
        metric = metric_of(config)
        trainer = MeasuringTrainer(
            model,
            self._arguments(stage),
            data_collator=task.collator(tokenizer),
            train_dataset=TrainingRows(task, tokenizer, limit, config.data.augment, config.seed),
            eval_dataset=[],
            callbacks=[
                *patience_of(config.fit),
                *self.supervised_callbacks("labels", {"loss": "ℓ", f"eval_{metric}": metric}),
            ],
            measure=lambda: {name: value for name, (value, *_) in self.measure(model, tokenizer).metrics.items()},
        )
        quiet(trainer)
        trainer.train(resume_from_checkpoint=self.resume(stage))
        self.stop_if_asked()
        task.finish(model)
        if self.main:
            save_policy(model, tokenizer, stage.directory)
        found = {part: asdict(task.measure(model, tokenizer, part)) for part in ("validation", "test")}
        parameters = sum(p.numel() for p in model.parameters())
        return {
            "task": config.task,
            "metrics": list(task.metrics),
            "names": getattr(task, "names", []),
            "history": trainer.state.log_history,
            "best": {"metric": metric, "value": trainer.state.best_metric, "step": trainer.state.best_global_step},
            "measured": found,
            "facts": {**task.facts(), "seed": str(config.seed), "rlobj": __version__, "parameters": f"{parameters:,}"},
            "says": f"{parameters:,} parameters; best {metric} on the validation data {trainer.state.best_metric:.3f}",
        }

    def measure(self, model: Any, tokenizer: Any) -> Measured:
        return self.task.measure(model, tokenizer, "validation", resamples=0)


def _table(outputs: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    return [{"name": part, **found["metrics"]} for part, found in outputs["measured"].items()]
