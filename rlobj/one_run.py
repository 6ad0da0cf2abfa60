"""One run of reinforcement learning: what its stages share."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlobj.config import RunConfig
from rlobj.encoder_policy import as_one_token_policy, train_head_only
from rlobj.policies import load_causal, load_encoder
from rlobj.stage_inputs import trains_reward
from rlobj.stages import StageRunner
from rlobj.supervised import SupervisedRow
from rlobj.tasks import Task


class Run(StageRunner[RunConfig]):
    """What the stages of one run share."""

    def __init__(self, config: RunConfig, task: Task) -> None:
        super().__init__(config, config.training.max_bad_steps)
        self.task = task
        self.warm_start = self.directory / "warm_start"
        self.trains_reward = trains_reward(config)
        self.stage_count = 4 + len(config.objective.lambdas) - (config.reward.kind != "trained")
        self._encoded: tuple[list[SupervisedRow], list[SupervisedRow]] | None = None

    def rows(self, tokenizer: PreTrainedTokenizerBase) -> tuple[list[SupervisedRow], list[SupervisedRow]]:
        """Labelled rows to train on and held out, encoded once for all stages: they share one tokenizer."""
        if self._encoded is None:
            self._encoded = self.task.rows(tokenizer)
        return self._encoded

    def load(self, directory: Path) -> PreTrainedModel:
        """A policy of this run."""
        labels = self.task.label_names
        return load_causal(directory) if labels is None else self.as_policy(load_encoder(directory, labels))

    def as_policy(self, classifier: PreTrainedModel) -> PreTrainedModel:
        """A classifier (in place) that chooses among labels; what of it is trained, the configuration says."""
        policy = as_one_token_policy(classifier)
        return train_head_only(policy) if self.config.policy.head_only else policy
