"""`ObjectiveTrainer`: TRL's policy-gradient loop on L(θ) = −R(θ) + λ·ℓ(M_θ(x), y).

What is overridden of `trl.GRPOTrainer`, and nothing more: `__init__` (what to add), `_compute_loss` (the formula) and
`log` (L itself among the metrics). tests/test_trl_hooks.py says so when TRL changes one of them.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel, TrainerCallback
from transformers.trainer_callback import ExportableState
from trl import GRPOConfig, GRPOTrainer

from envs.adapters import as_text_env
from envs.core import OnBadReward
from rlobj.encoder_policy import is_one_token_policy
from rlobj.lambdas import Controller, LambdaForm, Measured, as_lambda, checked_lambda, needs_labels
from rlobj.objective import GradientBalance, gradient_balance, objective
from rlobj.rollout import EnvironmentRollout, Sampling, episode_prompt, episode_return, factory_of
from rlobj.supervised import SupervisedRow, SupervisedStream, supervised_loss_sum, supervised_losses

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # rollout_func warns at every start; test_trl_hooks watches it

logger = logging.getLogger(__name__)

SUPPORTED_LOSS_TYPES = ("grpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo")
"""Loss types whose denominator counts over the whole global batch, so that λ keeps its meaning when the batch is split.
`bnpo` divides by the tokens of the micro-batch alone."""
ELL_ROWS = 256
"""Rows on which a controller of λ is told the warm start's ℓ."""


class LambdaIsDead(ValueError):
    """λ > 0 was asked for and changes no parameter's gradient."""


class TrainingDiverged(RuntimeError):
    """Several optimiser steps in a row had a loss or gradient that is not finite; none of them was applied."""


class ObjectiveTrainer(GRPOTrainer):
    """Train a policy on −R + λℓ.

    R comes either from a Gymnasium text environment (`env`), whose reward and episodes are the objective, or from
    `reward_funcs` and `train_dataset` exactly as in `trl.GRPOTrainer`.

    Args:
        model: the warm-started policy: a directory, a Hub id, or a loaded model. A classifier prepared by
            `as_one_token_policy` acts by choosing labels.
        args: `trl.GRPOConfig`; its `loss_type` must be one of SUPPORTED_LOSS_TYPES.
        env: environment made by `gymnasium.make`; `train_seeds` say which episodes are trained on.
        reward: reward of finished episodes, TRL's signature; None for the one that `env` was made with, or its own.
        train_seeds: seeds of the episodes to train on, one per prompt.
        supervised: labelled rows of ℓ (`dialogue_rows`, `label_rows`); needed for λ > 0. With λ = 0 it is only
            watched, every `probe_every` steps.
        lambda_sup: λ ≥ 0: a number, a function of the optimiser step, a controller, or a text that names one (see
            `rlobj.lambdas.as_lambda`).
        supervised_batch_size: rows of ℓ in one optimiser step, over all micro-batches and processes.
        probe_every: measure ∇R and ∇ℓ apart every so many optimiser steps, at the cost of two more backward passes;
            0 for the first step alone.
        max_bad_steps: stop after so many non-finite steps in a row.
        max_length: longest dialogue in tokens.

    Raises:
        ValueError: λ > 0 without rows, an unsupported `loss_type`, λ negative or not finite.
        LambdaIsDead: at the first step with λ > 0, if λ∇ℓ changes nothing.
        TrainingDiverged: after `max_bad_steps` steps that were not finite.
    """

    def __init__(
        self,
        model: str | PreTrainedModel,
        reward_funcs: Any = None,
        args: GRPOConfig | None = None,
        train_dataset: Dataset | None = None,
        *,
        env: gymnasium.Env[Any, Any] | None = None,
        reward: Callable[..., Any] | str | None = None,
        on_bad_reward: OnBadReward = "error",
        train_seeds: Sequence[int] | None = None,
        supervised: Sequence[SupervisedRow] | None = None,
        lambda_sup: float | str | LambdaForm = 0.0,
        supervised_batch_size: int = 32,
        probe_every: int = 10,
        max_bad_steps: int = 3,
        max_length: int = 512,
        **kwargs: Any,
    ) -> None:
        args = args or GRPOConfig("rlobj-output", gradient_checkpointing=False)
        self.lambda_form = as_lambda(lambda_sup)
        self.stream = SupervisedStream(supervised, supervised_batch_size, args.seed) if supervised else None
        self.probe_every = probe_every
        self._check(args, model)
        if env is not None:
            sampling = Sampling(
                args.max_completion_length, max_length, args.temperature, args.top_k, args.top_p, args.min_p
            )
            kwargs["rollout_func"] = EnvironmentRollout(factory_of(env), sampling, reward, on_bad_reward)
            reward_funcs = episode_return
            train_dataset = episode_dataset(as_text_env(env), train_seeds if train_seeds is not None else range(1000))
        self._micro = 0
        self._ell_window: list[Tensor] = []
        self._probe_window: list[tuple[Tensor, Tensor]] = []
        self._lambda_proven = False
        self._success: float | None = None
        super().__init__(model, reward_funcs, args, train_dataset, **kwargs)
        self.add_callback(FiniteGuard(max_bad_steps))
        if isinstance(self.lambda_form, Controller):
            self.add_callback(ControllerState(self.lambda_form, self._ell_of_the_start))

    def _check(self, args: GRPOConfig, model: Any) -> None:
        if args.loss_type not in SUPPORTED_LOSS_TYPES:
            raise ValueError(
                f"loss_type is {args.loss_type!r}: expected one of {', '.join(SUPPORTED_LOSS_TYPES)}, whose "
                "denominators span the global batch, so that lambda_sup means the same however the batch is split"
            )
        if self.stream is None and needs_labels(self.lambda_form):
            raise ValueError(
                f"lambda_sup is {self.lambda_form} but no supervised rows were given: "
                "pass supervised=…, or lambda_sup=0 to train on reward alone"
            )
        if args.beta != 0 and isinstance(model, PreTrainedModel) and is_one_token_policy(model):
            raise ValueError(f"beta is {args.beta}: an encoder policy has no reference model yet; set beta to 0")

    # The formula ------------------------------------------------------------------------------------------------

    def _compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any]) -> Tensor:
        R = -super()._compute_loss(model, inputs)  # surrogate; its gradient estimates ∇R
        if not self.model.training:
            return -R
        lambda_sup = checked_lambda(self.lambda_form(self.state.global_step))
        probing = self._is_probed(lambda_sup)
        ell = None
        if self.stream is not None and (lambda_sup > 0 or probing or isinstance(self.lambda_form, Controller)):
            # with λ = 0, ℓ is watched only: it must not move the random state that R's training sees
            watching = torch.set_grad_enabled(lambda_sup > 0 or probing)
            with watching, torch.random.fork_rng(enabled=lambda_sup == 0):
                ell = self.supervised_loss(model)
            if probing:
                self._probe(R, ell)
        self._end_of_micro_batch(R, ell, lambda_sup)
        if lambda_sup == 0 or ell is None:  # 0·NaN is NaN, and λ = 0 must equal TRL to the last bit
            return -R
        return objective(R, ell, lambda_sup)

    def supervised_loss(self, model: torch.nn.Module) -> Tensor:
        """This micro-batch's share of ℓ: the shares of all micro-batches and processes add up to the mean over the
        targets of the global batch, once the processes' gradients are averaged.
        """
        assert self.stream is not None
        world, accumulation = self.accelerator.num_processes, self.current_gradient_accumulation_steps
        part = self.accelerator.process_index * accumulation + self._micro
        rows, targets = self.stream.batch(self.state.global_step, part, world * accumulation)
        if not rows:
            return torch.zeros((), device=self.accelerator.device, requires_grad=True)
        with self.accelerator.autocast():
            return supervised_loss_sum(model, rows, self.model) * (world / targets)

    def _ell_of_the_start(self) -> float:
        """ℓ of the policy as it is, on rows from all over the data."""
        assert self.stream is not None
        rows = self.stream.rows
        some = rows[:: max(len(rows) // ELL_ROWS, 1)]
        losses = supervised_losses(self.accelerator.unwrap_model(self.model), some)
        return sum(losses) / len(losses)

    # What is measured ---------------------------------------------------------------------------------------------

    def _is_probed(self, lambda_sup: float) -> bool:
        if self.stream is None:
            return False
        step = self.state.global_step
        return (lambda_sup > 0 and not self._lambda_proven) or (self.probe_every > 0 and step % self.probe_every == 0)

    def _probe(self, R: Tensor, ell: Tensor) -> None:
        """Keep ∇R and ∇ℓ of this micro-batch, flattened; the backward pass of the step itself is left as it is."""
        parameters = [p for p in self.model.parameters() if p.requires_grad]

        def flat(term: Tensor) -> Tensor:
            grads = torch.autograd.grad(term, parameters, retain_graph=True, allow_unused=True)
            return torch.cat(
                [(torch.zeros_like(p) if g is None else g).flatten() for g, p in zip(grads, parameters, strict=True)]
            )

        self._probe_window.append((flat(R), flat(ell)))

    def _end_of_micro_batch(self, R: Tensor, ell: Tensor | None, lambda_sup: float) -> None:
        metrics = self._metrics["train"]
        metrics["objective/surrogate"].append(R.item() * self.current_gradient_accumulation_steps)
        if ell is not None:
            self._ell_window.append(ell.detach())
        self._micro += 1
        if self._micro < self.current_gradient_accumulation_steps:
            return
        self._micro = 0
        metrics["objective/lambda_sup"].append(lambda_sup)
        if self._ell_window:
            ell_of_step = self._over_processes(torch.stack(self._ell_window).sum()).item()
            metrics["objective/ell"].append(ell_of_step)
            self._ell_window = []
            # several optimiser steps may follow one generation: the success is then the latest that is known
            self._success = (metrics.get("environment/success") or [self._success])[-1]
            if isinstance(self.lambda_form, Controller) and math.isfinite(ell_of_step):
                self.lambda_form.update(Measured(self.state.global_step, ell_of_step, self._success))
        if self._probe_window:
            grad_R, grad_ell = (self._over_processes(sum(grads)) for grads in zip(*self._probe_window, strict=True))
            self._probe_window = []
            self._report(gradient_balance(grad_R, grad_ell, lambda_sup), lambda_sup)

    def _over_processes(self, value: Tensor) -> Tensor:
        return self.accelerator.reduce(value, reduction="mean")

    def _report(self, balance: GradientBalance, lambda_sup: float) -> None:
        for name in ("norm_R", "norm_ell", "ratio", "cosine"):
            value = getattr(balance, name)
            if math.isfinite(value):
                self._metrics["train"][f"gradient/{name}"].append(value)
        if lambda_sup > 0 and not self._lambda_proven:
            # a non-finite gradient is the guard's affair, and proves nothing about λ
            if math.isfinite(balance.norm_ell) and math.isfinite(balance.norm_R) and not balance.lambda_acts:
                raise LambdaIsDead(
                    f"lambda_sup is {lambda_sup} but changes no gradient: ‖∇ℓ‖ is {balance.norm_ell:.3g}, ‖∇R‖ is "
                    f"{balance.norm_R:.3g}. Expected λ‖∇ℓ‖ to be felt: raise lambda_sup, check that the supervised "
                    "labels are not all masked, or set lambda_sup to 0"
                )
            self._lambda_proven = math.isfinite(balance.norm_ell) and balance.lambda_acts

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        metrics = self._metrics["train"]
        if self.model.training and metrics.get("reward") and metrics.get("objective/lambda_sup"):
            mean = {
                k: sum(metrics[k]) / len(metrics[k])
                for k in ("reward", "objective/lambda_sup", "objective/ell")
                if metrics.get(k)
            }
            metrics["objective/return"].append(mean["reward"])
            metrics["objective/L"].append(
                objective(mean["reward"], mean.get("objective/ell", 0.0), mean["objective/lambda_sup"])
            )
        super().log(logs, start_time)


def episode_dataset(env: gymnasium.Env[Any, Any], seeds: Sequence[int]) -> Dataset:
    """A prompt column with the opening messages of every seed's episode.

    Raises:
        ValueError: no seeds.
    """
    if not len(seeds):
        raise ValueError("train_seeds is empty: expected at least one episode to train on")
    return Dataset.from_list([{"prompt": episode_prompt(s, env.reset(seed=int(s))[0])} for s in seeds])


class ControllerState(TrainerCallback, ExportableState):
    """Tell a controller of λ what it begins with, and keep its state in checkpoints (trainer_state.json)."""

    def __init__(self, controller: Controller, ell_of_the_start: Callable[[], float]) -> None:
        self.controller, self.ell_of_the_start = controller, ell_of_the_start

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        kept = state.stateful_callbacks.get(type(self).__name__, {}) if state.global_step > 0 else {}
        if kept.get("args") == self._kind():
            self.controller.state = dict(kept["attributes"])
        else:  # a new training, or a λ that was changed on the way
            self.controller.begin(self.ell_of_the_start())

    def state(self) -> dict[str, Any]:
        return {"args": self._kind(), "attributes": dict(self.controller.state)}

    def _kind(self) -> dict[str, str]:
        return {"form": type(self.controller).__name__}


class FiniteGuard(TrainerCallback):
    """Keep a gradient that is not finite away from the weights; give up after some in a row.

    The gradients are taken away, so the optimiser passes over every parameter: neither weights nor moments move.
    """

    def __init__(self, max_bad_steps: int) -> None:
        self.max_bad_steps = max_bad_steps
        self.bad_in_a_row = 0

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        parameters = [p for p in kwargs["model"].parameters() if p.grad is not None]
        if not parameters or torch.stack([p.grad.isfinite().all() for p in parameters]).all():
            self.bad_in_a_row = 0
            return
        for parameter in parameters:
            parameter.grad = None
        self.bad_in_a_row += 1
        logger.warning(
            "step %d has a gradient that is not finite: not applied (%d in a row)",
            state.global_step + 1,
            self.bad_in_a_row,
        )
        if self.bad_in_a_row >= self.max_bad_steps:
            raise TrainingDiverged(
                f"{self.bad_in_a_row} steps in a row up to step {state.global_step + 1} had a gradient that is not "
                "finite; none was applied. Lower training.learning_rate, or look at the reward's scale"
            )
