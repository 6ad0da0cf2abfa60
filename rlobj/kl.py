"""KL to the warm start: measured, held down by a penalty in the loss or in the reward, and limited. KL to the policy
that sampled: how far the epochs over one generation may go.

Legend: B episodes, T tokens, V vocabulary or actions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainerCallback
from transformers.trainer_callback import ExportableState

from rlobj.encoder_policy import action_logits, is_one_token_policy
from rlobj.evaluation import sequence_kl
from rlobj.modes import evaluating
from rlobj.trajectories import Rollouts, Trajectory

GAIN, MOST_ERROR = 0.1, 0.2
"""Of the controller of β: what Ziegler et al. call K_β, and where the error is cut."""
ROWS = 16
"""Episodes that are read in one forward pass."""


def steered_beta(beta: float, kl: float, target: float) -> float:
    """β after a measured KL, by a controller that is proportional in log space (Ziegler et al. 2019, section 2.2).

        e = clip((KL − target) / target, −0.2, 0.2),      β ← β · (1 + 0.1 · e)

    Args:
        beta: above 0.
        kl, target: in the same unit, here nats per token.
    """
    error = min(max((kl - target) / target, -MOST_ERROR), MOST_ERROR)
    return beta * (1 + GAIN * error)


def sampled_kl(logps: Tensor, old_logps: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Sum and number of the estimates of KL(old ‖ now) at the tokens that the old policy sampled, both ().

    Each is ρ − 1 − log ρ with ρ = now / old: unbiased and never negative (Schulman 2020, "k3").

    Args:
        logps, old_logps: (B, T).
        mask: 1 at the policy's tokens, (B, T).
    """
    log_ratio = logps - old_logps
    return ((log_ratio.exp() - 1 - log_ratio) * mask).sum(), mask.sum()


@torch.no_grad()
def reference_logps(
    reference: Callable[..., Any], policy: PreTrainedModel, trajectories: Sequence[Trajectory], temperature: float
) -> list[list[float]]:
    """log π_ref of each completion token of each trajectory, at the temperature of sampling.

    Args:
        policy: for its kind and device.
    """
    result: list[list[float]] = []
    for start in range(0, len(trajectories), ROWS):
        some = trajectories[start : start + ROWS]
        rows = [t.prompt_ids + t.completion_ids for t in some]
        ids, mask = _right_padded(rows, policy.device)
        if is_one_token_policy(policy):
            prompts = _right_padded([t.prompt_ids for t in some], policy.device)
            logps = (action_logits(reference, *prompts).float() / temperature).log_softmax(-1)
            result += [[logps[n, t.completion_ids[0]].item()] for n, t in enumerate(some)]
            continue
        logits = reference(input_ids=ids, attention_mask=mask).logits[:, :-1].float() / temperature
        logps = logits.log_softmax(-1).gather(2, ids[:, 1:, None]).squeeze(2).cpu()
        for n, t in enumerate(some):
            first = len(t.prompt_ids) - 1
            result.append(logps[n, first : first + len(t.completion_ids)].tolist())
    return result


def _right_padded(rows: Sequence[list[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    width = max(len(row) for row in rows)
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=device)
    return ids, torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)


def penalise(
    trajectories: Sequence[Trajectory], returns: list[float], ref_logps: Sequence[Sequence[float]], beta: float
) -> list[float]:
    """Take β · (log π − log π_ref) from the reward of each of the policy's tokens, and their sum from the return (in
    place). The mean of the sum is β · KL(π ‖ π_ref) along an episode (Ziegler et al. 2019, equation 2).

    Returns: log π − log π_ref of each episode, in nats.
    """
    ratios = []
    for n, (trajectory, logps) in enumerate(zip(trajectories, ref_logps, strict=True)):
        ratio = [(p - q) * m for p, q, m in zip(trajectory.logps, logps, trajectory.policy_mask, strict=True)]
        for token, each in enumerate(ratio):
            trajectory.rewards[token] -= beta * each
        ratios.append(sum(ratio))
        returns[n] -= beta * ratios[-1]
    return ratios


class WarmStartKL(TrainerCallback, ExportableState):
    """Measures the KL to the warm start, steers β, and ends a training whose policy has moved too far. What it knows is
    kept in checkpoints.

    Args:
        every: log the KL every so many optimiser steps (`kl/episode`, and per token `kl/warm_start`); 0: never.
        limit: of `kl/warm_start`; above it, a checkpoint is saved and the training ends.
        beta: weight of the KL penalty.
        target: what β is steered to hold the KL at, in nats per token; None leaves it as it is.
        tell: is told when the limit is passed: a step and what happened.
    """

    def __init__(
        self,
        every: int,
        limit: float | None,
        beta: float,
        target: float | None,
        tell: Callable[[int, str], None],
    ) -> None:
        self.every, self.limit, self.target, self.tell = every, limit, target, tell
        self.beta, self.due, self.exceeded = beta, 0, False
        self._begun_with = beta
        self._was_over = False
        """whether the training had been ended by the limit before this resume"""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        kept = state.stateful_callbacks.get(type(self).__name__, {}) if state.global_step > 0 else {}
        known = kept.get("attributes", {"due": 0, "exceeded": False})
        self.due, self.exceeded = known["due"], known["exceeded"] and self.limit == kept["args"]["limit"]
        steered = kept.get("args") == self._settings()  # another β or target begins afresh
        self.beta = known["beta"] if steered else self._begun_with
        self._was_over = self.exceeded

    def state(self) -> dict[str, Any]:
        return {
            "args": self._settings(),
            "attributes": {"beta": self.beta, "due": self.due, "exceeded": self.exceeded},
        }

    def _settings(self) -> dict[str, Any]:
        return {"beta": self._begun_with, "target": self.target, "limit": self.limit}

    def end_of_step(self, trainer: Any) -> None:
        """Steer β by TRL's own measure of the optimiser step, where the penalty stands in the loss."""
        metrics, parts = trainer._metrics["train"], trainer.current_gradient_accumulation_steps
        metrics["kl/beta"].append(self.beta)
        self.steer(sum(metrics["kl"][-parts:]) / parts)

    def steer(self, kl: float) -> None:
        """Take note of a KL, in nats per token."""
        if self.target is not None and kl == kl:  # not nan
            self.beta = steered_beta(self.beta, kl, self.target)

    def measure(self, trainer: Any, reference: Callable[..., Any], trajectories: Sequence[Trajectory]) -> None:
        """Log how far the policy of these trajectories is from the warm start, when that is due."""
        step = trainer.state.global_step
        if not self.every or step < self.due:
            return
        self.due = step + self.every
        policy = trainer.accelerator.unwrap_model(trainer.model)
        with evaluating(policy):
            kl = sequence_kl(policy, reference, trajectories)
        trainer._log_metric("kl/episode", sum(kl) / len(kl))
        per_token = sum(kl) / max(sum(sum(t.policy_mask) for t in trajectories), 1)
        trainer._log_metric("kl/warm_start", per_token)
        here = torch.tensor(per_token, device=trainer.accelerator.device)
        everywhere = trainer.accelerator.reduce(here, reduction="mean").item()
        if self.limit is not None and everywhere > self.limit:
            self.exceeded = True
            self.tell(
                step,
                f"the policy's KL to the warm start rose to {everywhere:.2g} nats per token, above the limit of "
                f"{self.limit:g}: the training ends here. Lower training.learning_rate, or raise "
                "objective.lambda_sup or training.beta",
            )

    def penalise(self, trainer: Any, reference: Callable[..., Any], rollouts: Rollouts) -> None:
        """Take the penalty from the rewards of these rollouts, and steer β by what was found."""
        policy = trainer.accelerator.unwrap_model(trainer.model)
        with evaluating(policy):
            ref_logps = reference_logps(reference, policy, rollouts.trajectories, trainer.temperature)
        ratios = penalise(rollouts.trajectories, rollouts.returns, ref_logps, self.beta)
        trainer._log_metric("kl/beta", self.beta)
        trainer._log_metric("kl/penalty", self.beta * sum(ratios) / len(ratios))
        tokens = sum(sum(t.policy_mask) for t in rollouts.trajectories)
        both = torch.tensor([sum(ratios), float(tokens)], device=trainer.accelerator.device)
        total, count = trainer.accelerator.reduce(both, reduction="sum").tolist()
        self.steer(total / max(count, 1.0))

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._was_over:  # the Trainer takes one step at least before it ends
            drop_gradients([kwargs["model"]])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.exceeded:
            control.should_save = args.save_strategy != "no"
            control.should_training_stop = True


class EpochsOfGeneration(TrainerCallback):
    """Leaves out what remains of a generation's optimiser steps, once KL(sampling policy ‖ policy) is above the target:
    PPO's early stop. The step in which that is found is not taken either; learning rate and step count go on.

    Args:
        target: in nats per token; None: all steps are taken.
        modules: whose parameters a step moves.
    """

    def __init__(self, target: float | None, modules: Iterable[nn.Module]) -> None:
        self.target, self.modules = target, list(modules)
        self.over = False
        self._window: list[Tensor] = []

    def begin(self) -> None:
        """A new generation."""
        self.over = False

    def look(self, logps: Tensor, inputs: dict[str, Any]) -> None:
        """Take note of a micro-batch: log π of its tokens now, (B, T). One step on each generation has no old ones."""
        if self.target is not None and "old_per_token_logps" in inputs:
            mask = inputs["completion_mask"] * inputs.get("tool_mask", 1)
            self._window.append(torch.stack(sampled_kl(logps, inputs["old_per_token_logps"], mask)))

    def end_of_step(self, trainer: Any) -> None:
        """The KL of the optimiser step, over all micro-batches and processes."""
        if self._window:
            total, count = trainer.accelerator.reduce(torch.stack(self._window).sum(0), reduction="sum").tolist()
            self._window = []
            kl = total / max(count, 1.0)
            trainer._metrics["train"]["kl/sampling"].append(kl)
            self.over = self.target is not None and kl > self.target

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.over:
            drop_gradients(self.modules)


def drop_gradients(modules: Iterable[nn.Module]) -> None:
    """Without gradients the optimiser passes over every parameter: neither weights nor moments move."""
    for module in modules:
        for parameter in module.parameters():
            parameter.grad = None
