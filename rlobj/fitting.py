"""`rlobj fit`: a supervised training from labelled data to a report, by transformers' Trainer.

The best epoch by the validation data is kept, and judged on the test data, which nothing was chosen by.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, TrainingArguments

from reward_models.training import merged
from rlobj import __version__
from rlobj.adapters import (
    RankUpdate,
    has_adalora,
    parameter_counts,
    peft_config_of,
    require_resumable,
    trained_whole,
    virtual_tokens,
    with_adapter,
)
from rlobj.fit_config import FitConfig, learning_rate_of, metric_of, validate_fit
from rlobj.fit_report import fit_table, warnings_of, write_fit_report
from rlobj.fit_tasks import TASKS, LanguageModeling, SupervisedTask, TrainingRows
from rlobj.inference import limit_of
from rlobj.loading import require_whole_model, save_adapter
from rlobj.measuring_trainer import MeasuringTrainer, how_it_was_trained, patience_of, trainer_arguments
from rlobj.policies import save_policy
from rlobj.progress import say
from rlobj.rehearsal import log_probabilities
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
        require_whole_model("policy.model", config.policy.model)
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
        if self.config.policy.peft is not None:
            self._adapter(steps=10, whole=[])
        self.begin([stage], models=1)
        self.do(stage, lambda: self.work(stage))
        outputs, report = read_outputs(stage.directory), self.directory / "report.html"
        if self.main:
            command = shlex.join(["rlobj", "fit", str(self.directory / "config.yaml")])
            write_fit_report(report, self.config.name, outputs, command)
            atomic_write_json(self.directory / "summary.json", {"table": _table(outputs)})
            say("")
            say(fit_table(outputs))
            for warning in warnings_of(outputs):
                say(f"warning: {warning}")
            say(f"\nreport  {report}\nmodel   {stage.directory}\nuse it: rlobj predict {self.directory} FILE")
        return report

    def _arguments(self, stage: Stage) -> TrainingArguments:
        settings = self.config.fit
        rate = learning_rate_of(settings, self.config.policy)
        return trainer_arguments(settings, rate, metric_of(self.config), self.config.seed, stage.checkpoints)

    def _adapter(self, steps: int, whole: Sequence[str]) -> Any:
        """peft's configuration of the adapter."""
        config = self.config
        assert config.policy.peft is not None
        return peft_config_of(config.policy.peft, steps, self.task.peft_type, self.task.peft_methods, whole)

    def _adapted(self, model: Any) -> Any:
        """The model with its adapter, if the recipe has one."""
        config = self.config
        if config.policy.peft is None:
            return model
        assert config.policy.model is not None
        parts = config.fit.trainer.get("gradient_accumulation_steps", 1)
        rows_a_step = config.fit.batch_size * parts * self.processes
        steps = math.ceil(len(self.task.parts["train"]) / rows_a_step) * config.fit.epochs
        adapter = self._adapter(math.ceil(steps), trained_whole(model, config.policy.model))
        return with_adapter(model, adapter, config.policy.model)

    def work(self, stage: Stage) -> dict[str, Any]:
        config, task = self.config, self.task
        model, tokenizer = task.model(config.policy, config.seed)
        model = self._adapted(model)
        trained, every = parameter_counts(model)
        metric = metric_of(config)
        watched = self.supervised_callbacks("supervised", {"loss": "ℓ", f"eval_{metric}": metric})
        arguments = self._arguments(stage)
        # peft does not load an AdaLoRA adapter of other ranks over one: the last epoch is kept, when all are shared out
        arguments.load_best_model_at_end = arguments.load_best_model_at_end and not has_adalora(model)
        trainer = supervised_trainer(config, task, model, tokenizer, arguments, watched)
        if has_adalora(model):
            trainer.add_callback(RankUpdate(model))
        quiet(trainer)
        checkpoint = self.resume(stage)
        if checkpoint is not None:
            require_resumable(model, checkpoint)
        trainer.train(resume_from_checkpoint=checkpoint)
        self.stop_if_asked()
        best = {"value": trainer.state.best_metric, "step": trainer.state.best_global_step}
        if has_adalora(model):  # the last one
            values = [log[f"eval_{metric}"] for log in trainer.state.log_history if f"eval_{metric}" in log]
            best = {"value": values[-1], "step": trainer.state.global_step, "last": True}
        model = merged(model)
        task.finish(model)
        if self.main and virtual_tokens(model):
            save_adapter(model, tokenizer, stage.directory)
        elif self.main:
            save_policy(model, tokenizer, stage.directory)
        found = {part: asdict(task.measure(model, tokenizer, part)) for part in ("validation", "test")}
        return {
            "task": config.task,
            "metrics": list(task.metrics),
            "names": getattr(task, "names", []),
            "history": trainer.state.log_history,
            "best": {"metric": metric, **best},
            "measured": found,
            "facts": {
                **task.facts(),
                "parameters": f"{every:,}, {trained:,} of them trained",
                **how_it_was_trained(config.fit, trainer, config.policy),
            },
            "trained": trained,
            "says": f"{trained:,} of {every:,} parameters trained; {metric} on the validation data {best['value']:.3f}",
        }


def supervised_trainer(
    config: FitConfig,
    task: SupervisedTask,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    arguments: TrainingArguments,
    callbacks: Sequence[TrainerCallback],
) -> MeasuringTrainer:
    """What trains a model on the task's training rows and measures it on the validation rows."""
    room = (limit_of(model, tokenizer) or math.inf) - virtual_tokens(model)
    limit = int(min(room, config.policy.max_length))
    tokenizer.model_max_length = limit  # saved with the model, which is used as it was trained

    def measure() -> dict[str, float]:
        metrics = task.measure(model, tokenizer, "validation", resamples=0).metrics
        return {name: value for name, (value, *_) in metrics.items()}

    def mean_loss(outputs: Any, labels: Tensor, num_items_in_batch: Tensor) -> Tensor:
        """ℓ over the targets of the global batch. Encoders' own is a mean over their part of it, which transformers
        adds up over parts and processes as if it were divided by all."""
        smoothing = arguments.label_smoothing_factor
        return -log_probabilities(outputs.logits, labels, task, smoothing).sum() / num_items_in_batch

    # peft adds AdaLoRA's orthogonality of ranks to the loss that the model itself gives
    own_loss = isinstance(task, LanguageModeling) or has_adalora(model)
    trainer = MeasuringTrainer(
        model,
        arguments,
        compute_loss_func=None if own_loss else mean_loss,
        data_collator=task.collator(tokenizer),
        train_dataset=TrainingRows(task, tokenizer, limit, config.data.augment, config.seed),
        eval_dataset=[],
        callbacks=[*patience_of(config.fit), *callbacks],
        measure=measure,
    )
    if own_loss and not isinstance(task, LanguageModeling):
        trainer.model_accepts_loss_kwargs = False  # a mean over its part: parts and processes are to be averaged
    return trainer


def _table(outputs: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    return [{"name": part, **found["metrics"]} for part, found in outputs["measured"].items()]
