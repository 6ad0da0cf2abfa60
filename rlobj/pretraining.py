"""`rlobj pretrain`: a self-supervised training on L(θ) = −P(T) + λ·ℓ(M_θ(x), y), from text to a report.

P(T) is of `rlobj.self_supervised`; ℓ is label cross-entropy beside masked tokens, and next-token cross-entropy of
replies beside causal ones. λ has the forms that it has beside a reward.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainerCallback

from rlobj import __version__
from rlobj.chat_format import IGNORED_LABEL
from rlobj.controllers import Controller, Measured
from rlobj.fit_config import FitConfig, FittedConfig, PretrainConfig, TaskName, learning_rate_of, validate_pretrain
from rlobj.fit_data import HELD_OUT, plain_texts
from rlobj.fit_report import fit_table, warnings_of, write_fit_report
from rlobj.fit_tasks import LanguageModeling, TextClassification
from rlobj.inference import limit_of
from rlobj.lambdas import LambdaForm, as_lambda
from rlobj.loading import require_whole_model
from rlobj.measuring_trainer import MeasuringTrainer, how_it_was_trained, patience_of, trainer_arguments
from rlobj.objective import objective
from rlobj.progress import say
from rlobj.runs import atomic_write_json, graceful_signals, read_outputs
from rlobj.schedules import checked_lambda
from rlobj.self_supervised import (
    MODEL,
    Batch,
    CausalNetwork,
    HiddenRows,
    MaskedNetwork,
    Network,
    performance_of,
    run_within_forward,
)
from rlobj.splitting import split_rows
from rlobj.stage_inputs import contents_of, named, weights_of
from rlobj.stages import Stage, StageRunner
from rlobj.steering import Steering
from rlobj.stream import SupervisedStream
from rlobj.supervised import SupervisedRow, quiet, supervised_loss_sum, supervised_losses

EVALUATED_TEXTS = 1000
"""Held-out texts that P is measured on, at the most."""


def pretrain(config: PretrainConfig) -> Path:
    """Train as a recipe says, unless that was done before; return the path of the report.

    Raises:
        ValueError, InputsChanged, Interrupted: as `rlobj.fitting.fit`.
    """
    validate_pretrain(config)
    if config.policy.model is not None:
        require_whole_model("policy.model", config.policy.model)
    this = _Pretraining(config)
    with graceful_signals() as this.stop:
        return this.all_stages()


class SelfSupervisedTrainer(MeasuringTrainer):
    """transformers' Trainer on L(θ) = −P(T) + λ·ℓ(M_θ(x), y), with one gradient, one clip, one step.

    Each term is divided by its own count over the whole global batch, so λ means the same for any micro-batch,
    accumulation and number of processes.

    Args:
        network: what P is asked of.
        lambda_sup: a form of λ.
        stream: rows of ℓ; None without.
        supervised: the policy whose ℓ it is, sharing the network's weights.
    """

    def __init__(
        self,
        network: Network,
        *args: Any,
        lambda_sup: LambdaForm,
        stream: SupervisedStream | None = None,
        supervised: PreTrainedModel | None = None,
        **kwargs: Any,
    ) -> None:
        run_within_forward(network.model)
        super().__init__(network.model, *args, **kwargs)
        self.network, self.lambda_form, self.stream, self.supervised = network, lambda_sup, stream, supervised
        self.model_accepts_loss_kwargs = True  # losses come divided by the count of the global batch
        self._micro, self._step = 0, -1
        self._ell: float | None = None  # of the latest step; None where it was not computed

    def compute_loss(
        self, model: nn.Module, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Tensor | None = None
    ) -> Tensor:
        self._count_micro_batches()
        lambda_sup = checked_lambda(self.lambda_form(self.state.global_step))
        with_ell = self.stream is not None and (lambda_sup > 0 or isinstance(self.lambda_form, Controller))

        def terms() -> tuple[Tensor, ...]:
            P = self.performance(inputs, num_items_in_batch)
            return (P, self.supervised_loss()) if with_ell else (P,)

        P, *ell = model(within=terms)
        if not ell:
            return -P  # type: ignore[no-any-return]  # 0·NaN is NaN
        self._ell = (self._ell or 0.0) + ell[0].item()
        return objective(P, ell[0], lambda_sup)

    def performance(self, inputs: Batch, hidden: Tensor | None) -> Tensor:
        """This micro-batch's share of P; the shares of all add up to the mean over what was hidden."""
        world = self.accelerator.num_processes
        count = (inputs["labels"] != IGNORED_LABEL).sum() if hidden is None else hidden
        tokens, halves = self.network.log_probabilities(inputs)
        P = tokens.sum() * (world / count.clamp(min=1))
        return P if halves is None else P + halves.mean() / self.current_gradient_accumulation_steps

    def supervised_loss(self) -> Tensor:
        """This micro-batch's share of ℓ, as in `ObjectiveTrainer`."""
        assert self.stream is not None
        world, accumulation = self.accelerator.num_processes, self.current_gradient_accumulation_steps
        part = self.accelerator.process_index * accumulation + self._micro
        rows, targets = self.stream.batch(self.state.global_step, part, world * accumulation)
        if not rows:
            return torch.zeros((), device=self.accelerator.device, requires_grad=True)
        return self.ell_sum(rows) * (world / targets)

    def ell_sum(self, rows: list[SupervisedRow]) -> Tensor:
        """Σ −log p over the targets of labelled rows, ()."""
        assert self.supervised is not None
        return supervised_loss_sum(self.supervised, rows, self.supervised)

    def _count_micro_batches(self) -> None:
        if self._step == self.state.global_step:
            self._micro += 1
        else:
            self._micro, self._step, self._ell = 0, self.state.global_step, None

    def ell_of_step(self) -> float:
        """ℓ of the latest step, over all processes."""
        ell = torch.tensor(self._ell or 0.0, device=self.accelerator.device)
        return float(self.accelerator.reduce(ell, reduction="mean").item())

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if self.stream is not None and "loss" in logs:
            if self._ell is not None:
                logs["objective/ell"] = self.ell_of_step()
            logs["objective/lambda_sup"] = self.lambda_form(max(self.state.global_step - 1, 0))
        super().log(logs, *args, **kwargs)


class TellController(TrainerCallback):
    """Tell a controller of λ what ℓ was, behind each optimiser step."""

    def __init__(self, controller: Controller, ell: Callable[[], float]) -> None:
        self.controller, self.ell = controller, ell

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.controller.update(Measured(state.global_step - 1, self.ell()))


# The run --------------------------------------------------------------------------------------------------------------


class _Pretraining(StageRunner[PretrainConfig]):
    """The one stage of a self-supervised training, and its report."""

    def __init__(self, config: PretrainConfig) -> None:
        super().__init__(config, config.pretrain.max_bad_steps)
        assert config.text.train is not None
        self.form = as_lambda(config.objective.lambda_sup)
        self.train, self.held_out = self._texts(config.text.train, config.text.validation)
        self.labelled: Any = None
        if config.data.train is not None:
            masked = config.objective.performance == "masked"
            task: TaskName = "text-classification" if masked else "language-modeling"
            policy = FittedConfig(**asdict(config.policy))
            labelled = FitConfig(config.name, task, policy, config.data, seed=config.seed)
            self.labelled = TextClassification(labelled) if masked else LanguageModeling(labelled)

    def _texts(self, train: str, validation: str | None) -> tuple[list[str], list[str]]:
        source = self.config.text

        def read(file: str, limit: int | None) -> list[str]:
            return [
                example.x for example in plain_texts(file, source.text_column, limit, source.only, "text.text_column")
            ]

        if validation is None:
            kept, held_out = split_rows(read(train, source.limit), HELD_OUT, self.config.seed)
        else:
            kept, held_out = read(train, source.limit), read(validation, None)
        if len(held_out) > EVALUATED_TEXTS:
            held_out = split_rows(held_out, EVALUATED_TEXTS / len(held_out), seed=0)[1]
        return kept, held_out

    def stage(self) -> Stage:
        config = self.config
        inputs = {
            "rlobj": __version__,
            **named("policy", asdict(config.policy)),
            **named("text", asdict(config.text)),
            **named("data", asdict(config.data)),
            **named("objective", asdict(config.objective)),
            **named("pretrain", asdict(config.pretrain)),
            "seed": config.seed,
            **contents_of([config.text.train, config.text.validation]),
            **contents_of([config.data.train, config.data.validation, config.data.test]),
            **weights_of(config.policy.model),
        }
        return Stage(self.directory / MODEL, f"pretrain: {config.objective.performance} tokens", inputs)

    def all_stages(self) -> Path:
        stage = self.stage()
        self.begin([stage], models=2)
        self.do(stage, lambda: self.work(stage))
        outputs, report = read_outputs(stage.directory), self.directory / "report.html"
        if self.main:
            command = shlex.join(["rlobj", "pretrain", str(self.directory / "config.yaml")])
            write_fit_report(report, self.config.name, outputs, command)
            table = [{"name": part, **found["metrics"]} for part, found in outputs["measured"].items()]
            atomic_write_json(self.directory / "summary.json", {"table": table})
            say("")
            say(fit_table(outputs))
            for warning in warnings_of(outputs):
                say(f"warning: {warning}")
            say(f"\nreport  {report}\nmodel   {stage.directory}")
            say(f"go on:  rlobj fit RECIPE --policy.model {self.directory}")
        return report

    def work(self, stage: Stage) -> dict[str, Any]:
        config, settings = self.config, self.config.pretrain
        masked = config.objective.performance == "masked"
        network = (MaskedNetwork if masked else CausalNetwork)(config, self.train, self.labelled)
        held_out = network.rows(self.held_out)  # before those to train on, whose texts halves are drawn from
        rows = HiddenRows(network, self.train, config.seed)
        rate = learning_rate_of(settings, config.policy)
        trainer = SelfSupervisedTrainer(
            network,
            trainer_arguments(settings, rate, "P", config.seed, stage.checkpoints),
            data_collator=rows.collate,
            train_dataset=rows,
            eval_dataset=[],
            callbacks=[
                *patience_of(settings),
                *self.supervised_callbacks("self-supervised", {"loss": "L", "eval_P": "P"}),
            ],
            measure=lambda: {name: value for name, (value, *_) in performance_of(network, held_out).metrics.items()},
            lambda_sup=self.form,
            stream=self._stream(network),
            supervised=network.supervised,
        )
        if isinstance(self.form, Controller):
            trainer.add_callback(Steering(self.form, self._ell(network, "train")))
            trainer.add_callback(TellController(self.form, trainer.ell_of_step))
        quiet(trainer)
        trainer.train(resume_from_checkpoint=self.resume(stage))
        self.stop_if_asked()
        measured = {"held-out text": asdict(performance_of(network, held_out)), **self._supervised_results(network)}
        if self.main:
            network.save(self.directory)
        return self._outputs(network, trainer, measured)

    def _stream(self, network: Network) -> SupervisedStream | None:
        if self.labelled is None:
            return None
        rows = self._rows(network, "train")
        return SupervisedStream(rows, self.config.objective.supervised_batch_size, self.config.seed)

    def _rows(self, network: Network, part: str) -> list[SupervisedRow]:
        limit, task = limit_of(network.model, network.tokenizer), self.labelled
        rows = [task.encode(network.tokenizer, example, limit) for example in task.parts[part]]
        whole = isinstance(task, TextClassification)
        return [SupervisedRow(row["input_ids"], [row["labels"]] if whole else row["labels"]) for row in rows]

    def _ell(self, network: Network, part: str) -> float:
        assert network.supervised is not None
        return float(np.mean(supervised_losses(network.supervised, self._rows(network, part))))

    def _supervised_results(self, network: Network) -> dict[str, Any]:
        if self.labelled is None:
            return {}
        return {
            f"labelled {part}": asdict(self.labelled.measure(network.supervised, network.tokenizer, part))
            for part in ("validation", "test")
        }

    def _outputs(self, network: Network, trainer: Any, measured: Mapping[str, Any]) -> dict[str, Any]:
        parameters = sum(p.numel() for p in network.model.parameters())
        facts = {"texts": f"{len(self.train)} to learn from, {len(self.held_out)} held out"}
        facts |= {"λ": str(self.config.objective.lambda_sup), "parameters": f"{parameters:,}"}
        facts |= how_it_was_trained(self.config.pretrain, trainer, self.config.policy)
        names = [name for found in measured.values() for name in found["metrics"]]
        return {
            "task": f"−P(T) + λℓ, P of {self.config.objective.performance} tokens",
            "metrics": list(dict.fromkeys(names)),
            "names": getattr(self.labelled, "names", []),
            "history": trainer.state.log_history,
            "best": {"metric": "P", "value": trainer.state.best_metric, "step": trainer.state.best_global_step},
            "measured": measured,
            "facts": facts,
            "says": f"{parameters:,} parameters; best P on held-out text {trainer.state.best_metric:.3f}",
        }
