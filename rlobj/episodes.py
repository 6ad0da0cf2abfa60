"""Episodes as the data set of TRL's trainer: one prompt for each seed, in an order that outlives a resume."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gymnasium
import torch
from datasets import Dataset
from trl.trainer.utils import RepeatSampler

from rlobj.chat_format import Message
from rlobj.rollout import episode_prompt


def episode_dataset(env: gymnasium.Env[Any, Any], seeds: Sequence[int]) -> Dataset:
    """A prompt column with the opening messages of every seed's episode.

    Raises:
        ValueError: no seeds.
    """
    if not len(seeds):
        raise ValueError("train_seeds is empty: expected at least one episode to train on")
    return Dataset.from_list([{"prompt": episode_prompt(seed, opening_of(env, int(seed)))} for seed in seeds])


def opening_of(env: gymnasium.Env[Any, Any], seed: int) -> list[Message]:
    """The opening messages of an episode; what its reset raises names it."""
    try:
        opening: list[Message] = env.reset(seed=seed)[0]
    except Exception as error:
        error.add_note(f"at the reset of episode {seed}")
        raise
    return opening


class EpochSampler(RepeatSampler):
    """TRL's order of prompts, from whichever epoch it is begun in: TRL's own begins with the first epoch's again when a
    training is resumed."""

    def __init__(self, plain: RepeatSampler, epoch: Callable[[], float]) -> None:
        self.__dict__.update(vars(plain))
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        if self.shuffle:
            self.generator.manual_seed(self.seed)
            for _ in range(int(self.epoch() + 1e-6)):  # those of the epochs that are over
                torch.randperm(self.num_samples, generator=self.generator)
        order: Iterator[int] = super().__iter__()
        return order
