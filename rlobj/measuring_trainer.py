"""transformers' Trainer as `rlobj fit` and `rlobj pretrain` use it: their own evaluation, the best epoch kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments

from rlobj import __version__
from rlobj.checkpoints import CHECKPOINTS_AT_ONCE
from rlobj.config import ModelConfig
from rlobj.fit_config import LESS_IS_BETTER, FitSettings


class MeasuringTrainer(Trainer):
    """A Trainer whose evaluation is ours: the same predictions and figures as in the report.

    Of several processes each measures all rows, and takes the main one's word: a last bit that is another would part
    their ways where the best epoch is kept.

    Args:
        measure: of the model as it is, name -> value.
    """

    def __init__(self, *args: Any, measure: Callable[[], Mapping[str, float]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._measure = measure
        self.add_callback(TellEpoch())

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        (measured,) = broadcast_object_list([dict(self._measure())])
        found = {f"eval_{name}": value for name, value in measured.items()}
        self.log(found)
        self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, found)
        return found


class TellEpoch(TrainerCallback):
    """Tell a data set that changes from epoch to epoch which it is: of several processes accelerate tells the sampler
    alone."""

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        dataset = kwargs["train_dataloader"].dataset
        if hasattr(dataset, "set_epoch"):
            dataset.set_epoch(int(state.epoch or 0))


def trainer_arguments(
    settings: FitSettings, learning_rate: float, metric: str, seed: int, checkpoints: Path
) -> TrainingArguments:
    """transformers' configuration of a training; what the recipe sets in `trainer` wins."""
    fields: dict[str, Any] = {
        "output_dir": str(checkpoints),
        "num_train_epochs": settings.epochs,
        "learning_rate": learning_rate,
        "per_device_train_batch_size": settings.batch_size,
        "lr_scheduler_type": "linear",
        "warmup_steps": 0.1,  # below 1: a share of the steps
        "weight_decay": 0.01,
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "save_total_limit": CHECKPOINTS_AT_ONCE - 1,
        "load_best_model_at_end": True,
        "metric_for_best_model": metric,
        "greater_is_better": metric not in LESS_IS_BETTER,
        "logging_steps": 10,
        "report_to": "none",
        "disable_tqdm": True,
        "seed": seed,
        "dataloader_pin_memory": False,
        "remove_unused_columns": False,
    }
    args = TrainingArguments(**{**fields, **settings.trainer})
    if args.n_gpu > 1:  # torch's DataParallel, whose replicas would each take the targets of all
        raise ValueError(
            f"one process sees {args.n_gpu} GPUs: start one for each with torchrun --standalone --nproc_per_node "
            f"{args.n_gpu} -m rlobj …, or show it one with CUDA_VISIBLE_DEVICES=0"
        )
    return args


def how_it_was_trained(settings: FitSettings, trainer: Trainer, policy: ModelConfig) -> dict[str, str]:
    """What a report says of a training beside its data."""
    args, peft = trainer.args, getattr(policy, "peft", None)
    each = f" of each of {args.world_size} processes" if args.world_size > 1 else ""
    parts = f" in {args.gradient_accumulation_steps} parts" if args.gradient_accumulation_steps > 1 else ""
    libraries = ["torch", "transformers", *(["peft"] if peft else [])]
    size = args.per_device_train_batch_size * args.gradient_accumulation_steps
    facts = {
        "began with": policy.model or "a new model",
        "adapter": ", ".join(f"{name} {value}" for name, value in (peft or {}).items()),
        "learning rate": f"{args.learning_rate:g}",
        "epochs": f"{trainer.state.epoch or 0:g} of {settings.epochs:g}, {trainer.state.global_step} optimiser steps",
        "batch": f"{size} rows{each}{parts}",
        "other settings": ", ".join(f"{name} {value}" for name, value in settings.trainer.items()),
        "seed": str(args.seed),
        "versions": ", ".join([f"rlobj {__version__}", *[f"{name} {version(name)}" for name in libraries]]),
    }
    return {name: text for name, text in facts.items() if text}


def patience_of(settings: FitSettings) -> list[TrainerCallback]:
    """transformers' early stopping, if it is asked for."""
    return [] if settings.patience is None else [EarlyStoppingCallback(settings.patience)]
