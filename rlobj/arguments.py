"""`ObjectiveArguments`: `trl.GRPOConfig`, with one episode per prompt where that is enough to learn from."""

from __future__ import annotations

from dataclasses import dataclass

from trl import GRPOConfig


@dataclass
class ObjectiveArguments(GRPOConfig):
    """`trl.GRPOConfig` that takes `num_generations=1`, which ppo, reinforce and exact can learn from."""

    def __post_init__(self) -> None:
        one = self.num_generations == 1 and self.per_device_train_batch_size > 1
        if one:  # GRPOConfig refuses it; any divisor of the batch passes its checks
            self.num_generations: int = self.per_device_train_batch_size
        super().__post_init__()
        if one:
            self.num_generations = 1
