"""A policy probed in its environment: on the episodes of its run's evaluation, where users write otherwise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from envs.patience import Patience
from rlobj.chat_format import Message
from rlobj.evaluation import evaluate
from rlobj.grpo_config import sampling_of
from rlobj.probed import Judged, Labels, Pairs, Probed, Row, Writing
from rlobj.results import config_of
from rlobj.subjects import Subject
from rlobj.tasks import make_task


class Rewritten(gymnasium.ObservationWrapper[Any, Any, Any]):
    """An environment whose users write otherwise: what the policy reads is changed, and nothing else.

    Args:
        writings: for each seed of an episode.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], writings: Mapping[int, Writing]) -> None:
        super().__init__(env)
        self.writings = writings
        self.writing: Writing | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.writing = None if seed is None else self.writings.get(seed)
        return super().reset(seed=seed, options=options)

    def observation(self, observation: Any) -> Any:
        return observation if self.writing is None else self.writing(observation)


class Episodes(Probed):
    """A policy that talks, judged by its environment: is the task done?"""

    quality, number = "task success", "task success"

    def __init__(self, subject: Subject, run: Path, limit: int) -> None:
        super().__init__(subject)
        self.config = config_of(run)
        self.task = make_task(self.config)
        self.seeds = list(self.task.eval_seeds)[:limit]
        said, self.plain = self._play({})
        self.rows = [Row([messages], columns={"seed": seed}) for seed, messages in zip(self.seeds, said, strict=True)]

    def opening(self, row: Row) -> str:
        """What the user says first: how much is said later depends on the policy."""
        return next((m["content"] for m in row.sides[0] if m["role"] in self.roles), "")

    def judge(self, rows: Sequence[Row]) -> Judged:
        writings = {row.columns["seed"]: row.writing for row in rows if row.writing is not None}
        # all are played, so that each draws the random numbers that it drew as it stands
        played = self._play(writings)[1] if writings else self.plain
        done = played[[self.seeds.index(row.columns["seed"]) for row in rows]]
        return Judged(done, done, [])

    def _play(self, writings: Mapping[int, Writing]) -> tuple[list[list[Message]], np.ndarray]:
        """What was said in each episode of the evaluation, and whether its task was done."""
        found = evaluate(
            self.subject.model,
            self.subject.tokenizer,
            lambda: Rewritten(self.task.make_eval_env(), writings),
            None,
            # every episode is played, however long its opening becomes: rows are found by their places
            replace(sampling_of(self.config), long_prompts="cut"),
            self.seeds,
            [],
            None,
            sampling_seed=self.config.seed,
            patience=Patience(self.config.env.step_timeout, self.config.env.restarts),
        )
        if "success" not in found.per_episode:
            raise ValueError(
                f"{self.config.env.id} does not say whether the task is done: give FILE, dialogues by whose replies "
                "the policy is judged"
            )
        return [[*e.prompt, *e.completion] for e in found.episodes], np.array(found.per_episode["success"])


def probed_in_run(subject: Subject, run: Path, limit: int, label: str | None) -> Probed:
    """A policy on the evaluation episodes of its own run, an encoder on their texts, a reward model on held-out pairs.

    Raises:
        ValueError: the environment does not say whether the task is done, or the reward model learned from no pairs.
    """
    if subject.kind == "policy":
        return Episodes(subject, run, limit)
    config = config_of(run)
    task = make_task(config)
    if subject.kind == "score":
        if config.data.rated is not None:
            raise ValueError(f"the reward model of {run} learned from ratings: give FILE with chosen and rejected")
        return Pairs(subject, [Row([pair["chosen"], pair["rejected"]]) for pair in task.pairs()[1][:limit]])
    env: Any = task.make_eval_env().unwrapped
    examples = env.examples(list(task.eval_seeds)[:limit])
    return Labels(subject, [Row([messages], env.action_names[action]) for messages, action in examples], label)
