"""transformers' Trainer as `rlobj fit` and `rlobj pretrain` use it: their own evaluation, the best epoch kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments

from rlobj.checkpoints import CHECKPOINTS_AT_ONCE
from rlobj.fit_config import LESS_IS_BETTER, FitSettings


class MeasuringTrainer(Trainer):
    """A Trainer whose evaluation is ours: the same predictions and figures as in the report.

    Args:
        measure: of the model as it is, name -> value.
    """

    def __init__(self, *args: Any, measure: Callable[[], Mapping[str, float]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._measure = measure

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        found = {f"eval_{name}": value for name, value in self._measure().items()}
        self.log(found)
        self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, found)
        return found


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
    return TrainingArguments(**{**fields, **settings.trainer})


def patience_of(settings: FitSettings) -> list[TrainerCallback]:
    """transformers' early stopping, if it is asked for."""
    return [] if settings.patience is None else [EarlyStoppingCallback(settings.patience)]
