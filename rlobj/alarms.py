"""Warnings of a training that goes nowhere, in plain words with the usual remedy: each once, kept for the report."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

logger = logging.getLogger(__name__)

PATIENCE = 3
"""Logged steps in a row that a condition must hold for."""
NEARLY_ALL = 0.9
COLLAPSED = 0.02
"""An entropy below this share of where it began, and below this many nats per token, has collapsed."""
RUNAWAY_KL = 1.0
"""Nats per token away from the warm start: what it wrote is hardly ever written any more."""


WINDOW = 10
"""Steps whose mean success and reward are compared: those of one step are noise."""
FALLEN = 0.1
"""How far success must fall below its best to be told."""


class Alarms(TrainerCallback, ExportableState):
    """Looks at what is logged. What was told stays in checkpoints, so that a resume does not tell it again.

    Args:
        estimator: of ∇R, which says when there is nothing to learn from.
    """

    def __init__(self, estimator: str) -> None:
        self.estimator = estimator
        self.told: list[dict[str, Any]] = []
        """name, step and text of each warning, in the order they were told"""
        self._in_a_row: dict[str, int] = {}
        self._entropy_at_first: float | None = None
        self._gamed = GamedReward()

    def tell(self, name: str, step: int, text: str) -> None:
        """Warn, unless a warning of this name was told before."""
        if any(each["name"] == name for each in self.told):
            return
        self.told.append({"name": name, "step": step, "text": text})
        logger.warning("up to step %d %s (said once)", step, text)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if not logs or "entropy" not in logs:  # not a step's
            return
        if self._entropy_at_first is None:
            self._entropy_at_first = float(logs["entropy"])
        now = dict(
            self._conditions(state.global_step, {k: v for k, v in logs.items() if isinstance(v, int | float)}, args)
        )
        self._in_a_row = {name: self._in_a_row.get(name, 0) + 1 for name in now}
        for name, text in now.items():
            if self._in_a_row[name] >= PATIENCE:
                self.tell(name, state.global_step, text)

    def _conditions(self, step: int, logs: Mapping[str, float], args: Any) -> Iterator[tuple[str, str]]:
        """Name and text of what is wrong with this step."""
        alike = logs.get("frac_reward_zero_std", 0.0) if self.estimator in ("grpo", "rloo") else 0.0
        if alike >= NEARLY_ALL or (self.estimator != "exact" and logs.get("reward_std") == 0):
            yield (
                "no advantage",
                f"{max(alike, float(logs.get('reward_std') == 0)):.0%} of the groups of episodes had one reward for "
                f"all: {self.estimator} learns from differences, so R moved next to nothing (λℓ alone did). Unless the "
                "policy does all there is to do: look at what the reward gives (rlobj try-reward), or raise "
                "training.num_generations or training.temperature; frac_reward_zero_std logs the share of such groups",
            )
        entropy, first = logs["entropy"], self._entropy_at_first or 0.0
        if entropy < COLLAPSED * min(first, 1.0):
            yield (
                "entropy collapse",
                f"the policy's entropy fell to {entropy:.2g} nats per token from {first:.2g}: it hardly tries anything "
                "new. Unless it does all there is to do: lower training.learning_rate, or raise training.temperature, "
                "training.beta or objective.lambda_sup",
            )
        kl = logs.get("kl", logs.get("kl/warm_start", 0.0))
        if kl > RUNAWAY_KL:
            yield (
                "KL runaway",
                f"the policy's KL to the warm start is {kl:.2g} nats per token: it speaks another language, and "
                "rewards learned from text no longer hold. Look at task success beside the return; lower "
                "training.learning_rate, or raise objective.lambda_sup or training.beta",
            )
        if "environment/success" in logs and "reward" in logs:
            fell = self._gamed.seen(step, logs["environment/success"], logs["reward"])
            if fell is not None:
                at, best, now = fell
                yield (
                    "over-optimisation",
                    f"task success fell to {now:.2f} from {best:.2f} about step {at}, while the reward rose: the "
                    "policy games the reward (Gao et al. 2022). Set training.keep_best, or take fewer steps; "
                    "raise objective.lambda_sup or training.beta; or mend the reward: more pairs, --reward.ensemble 4",
                )
        cut = logs.get("replies/truncated", logs.get("completions/clipped_ratio", 0.0))
        if cut >= NEARLY_ALL and logs.get("completions/mean_length") != 1:  # a label is a whole reply, and has no end
            yield (
                "replies truncated",
                f"{cut:.0%} of the replies ran into training.max_reply_tokens ({args.max_completion_length}) before "
                "they ended: the reward judges halves of sentences. Raise it, or let the warm start learn where "
                "replies end (warm_start.epochs)",
            )
        if logs.get("replies/empty", 0.0) >= NEARLY_ALL:
            yield (
                "replies empty",
                f"{logs['replies/empty']:.0%} of the replies were empty: the policy ends them at once. Look at what "
                "the reward gives an empty reply (rlobj try-reward REWARD ''), or raise objective.lambda_sup",
            )

    def state(self) -> dict[str, Any]:
        kept: dict[str, Any] = {
            "told": self.told,
            "in_a_row": self._in_a_row,
            "entropy_at_first": self._entropy_at_first,
        }
        kept["gamed"] = asdict(self._gamed)
        return {"args": {}, "attributes": kept}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        kept = state.stateful_callbacks.get(type(self).__name__, {}) if state.global_step > 0 else {}
        attributes = kept.get("attributes", {})
        self.told = list(attributes.get("told", self.told))  # what was told before the first step
        self._in_a_row = dict(attributes.get("in_a_row", {}))
        self._entropy_at_first = attributes.get("entropy_at_first")
        gamed = attributes.get("gamed", {"recent": [], "best": None})
        self._gamed = GamedReward([(success, reward) for success, reward in gamed["recent"]], gamed["best"])


@dataclass
class GamedReward:
    """Whether success is below its best while the reward is above what it was then, both as means of WINDOW steps."""

    recent: list[tuple[float, float]] = field(default_factory=list)
    """success and reward of the latest steps"""
    best: tuple[int, float, float] | None = None
    """step, success and reward of the window with the most success"""

    def seen(self, step: int, success: float, reward: float) -> tuple[int, float, float] | None:
        """Take a step's figures; return the step of the best, its success, and success now, where it has fallen."""
        self.recent = [*self.recent, (success, reward)][-WINDOW:]
        if len(self.recent) < WINDOW:
            return None
        now, earned = (fmean(column) for column in zip(*self.recent, strict=True))
        if self.best is None or now > self.best[1]:
            self.best = (step, now, earned)
        at, best, then = self.best
        return (at, best, now) if best - now >= FALLEN and earned > then else None
