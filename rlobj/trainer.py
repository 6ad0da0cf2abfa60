"""`ObjectiveTrainer`: TRL's policy-gradient loop on L(θ) = −R(θ) + λ·ℓ(M_θ(x), y).

What is overridden of `trl.GRPOTrainer`, and nothing more: `__init__` (what to add), `_compute_loss` (the formula),
`_get_per_token_logps_and_entropies` (another way to the same numbers, and what else they tell),
`_generate_and_score_completions` (advantages of the estimators that TRL has not), `create_optimizer` (the critic),
`_load_from_checkpoint` (the critic, and what cannot be gone on from exactly), `_get_train_sampler` (epochs after a
resume) and `log` (L itself among the metrics). tests/test_trl_hooks.py says so when TRL changes one of them.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import gymnasium
import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import RepeatSampler

from envs.adapters import as_text_env
from envs.patience import Patience
from envs.rewards import OnError
from envs.vector import NO_PATIENCE
from reward_models.trained import require_vocabulary
from rlobj.adapters import RankUpdate, WithoutAdapter, has_adalora, require_resumable
from rlobj.advantages import put_advantages
from rlobj.alarms import Alarms
from rlobj.bad_steps import write_bad_step
from rlobj.callbacks import BaselineState, BetweenGenerations, FiniteGuard
from rlobj.checkpoints import WholeCheckpoints, require_exact
from rlobj.config import EstimatorName, PPOConfig, RolloutConfig
from rlobj.controllers import Controller
from rlobj.critic import Critic, CriticKeeper, backward_of_critic
from rlobj.encoder_policy import is_one_token_policy
from rlobj.episodes import EpochSampler, episode_dataset
from rlobj.exact import exact_return
from rlobj.gradient_probe import GradientProbe
from rlobj.kl import EpochsOfGeneration, WarmStartKL
from rlobj.lambdas import LambdaForm, as_lambda
from rlobj.long_prompts import fitting_prompts
from rlobj.objective import objective
from rlobj.policies import load_causal, take_out_dropout
from rlobj.reference import frozen_copy, lend, lends_reference, without_beta
from rlobj.rollout import EnvironmentRollout, episode_return, factory_of
from rlobj.sampling import Sampling
from rlobj.schedules import checked_lambda
from rlobj.scoring import Scoring
from rlobj.sharding import is_split
from rlobj.steering import Steering
from rlobj.stream import Source, SupervisedStream
from rlobj.supervised import SupervisedRow, TokenWeights, mean_supervised_loss, supervised_loss_sum
from rlobj.tracking import track
from rlobj.trainer_checks import (
    check_adapter,
    check_dataset,
    check_estimator,
    check_kl,
    check_lambda,
    check_sampling,
    check_split,
)
from rlobj.trajectories import Rollouts

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # rollout_func warns at every start; test_trl_hooks watches it

ELL_ROWS = 256
"""Rows on which a controller of λ is told the warm start's ℓ."""


class ObjectiveTrainer(GRPOTrainer):
    """Train a policy on −R + λℓ.

    R comes either from a Gymnasium text environment (`env`), whose reward and episodes are the objective, or from
    `reward_funcs` and `train_dataset` exactly as in `trl.GRPOTrainer`.

    Args:
        model: the warm-started policy: a directory, a Hub id, or a loaded model. A classifier prepared by
            `as_one_token_policy` acts by choosing labels.
        args: `trl.GRPOConfig`; its `loss_type` must be one of `rlobj.trainer_checks.SUPPORTED_LOSS_TYPES`.
        env: environment made by `gymnasium.make`; `train_seeds` say which episodes are trained on.
        reward: reward of finished episodes, TRL's signature; None for the one that `env` was made with, or its own.
        on_error: what a failed reward does: "stop", "skip" (no learning from that episode), or a number, the penalty.
        train_seeds: seeds of the episodes to train on, one per prompt.
        supervised: labelled rows of ℓ (`dialogue_rows`, `label_rows`), or several `rlobj.stream.Source(rows, weight)`;
            needed for λ > 0. With λ = 0 it is only watched, every `probe_every` steps.
        lambda_sup: λ ≥ 0: a number, a function of the optimiser step, a controller, or a text that names one (see
            `rlobj.lambdas.as_lambda`).
        supervised_batch_size: rows of ℓ in one optimiser step, over all micro-batches and processes.
        token_weights: of ℓ's targets, see `rlobj.supervised.supervised_loss_sum`.
        surgery: "pcgrad" takes from −∇R and λ∇ℓ what they have against each other, before they are clipped; it costs
            two more backward passes at every step.
        probe_every: measure ∇R and ∇ℓ apart every so many optimiser steps, at the cost of two more backward passes;
            0 for the first step alone.
        kl_every: with `env`, log KL(π ‖ warm start) every so many steps, along an episode (`kl/episode`) and a
            token (`kl/warm_start`), in nats; keeps a copy of the warm start. 0: never.
        kl_limit: where a measured `kl/warm_start` is above, save a checkpoint, if any are saved, and end the training.
        kl_in: where `args.beta` weighs the KL to the warm start: in TRL's "loss", or (with `env`) in the "reward", as
            −β · (log π − log π_ref) of each token that the policy wrote.
        beta_target: steer β so that this KL stays at so many nats per token (Ziegler et al. 2019).
        target_kl: of several optimiser steps on one generation, leave out those that come after KL(sampling policy ‖
            policy) has risen above so many nats per token.
        max_bad_steps: stop after so many non-finite steps in a row.
        max_length: longest dialogue in tokens.
        dropout: keep the model's dropout. It is taken out unless asked for, whatever `args.disable_dropout` says:
            episodes are sampled without it, and would be another policy's than the one that learns from them.
        estimator: of ∇R, one of `rlobj.config.ESTIMATORS`; all but grpo need `env`. With ppo, reinforce and exact
            an `ObjectiveArguments` as `args` may have `num_generations=1`.
        ppo: settings of the critic.
        rollout: what ends the replies and episodes of `env`, and what is done about prompts that are too long.
        patience: with steps of `env` that raise or hang.
        encode_prompts_once: run each prompt of a micro-batch through the policy once for all its completions, and only
            the policy's own tokens through the vocabulary (`rlobj.completions`). False: TRL's own passes, whose results
            are those of `trl.GRPOTrainer` to the last bit.

    Raises:
        ValueError: λ > 0 without rows, an unsupported `loss_type`, λ negative or not finite.
        LambdaIsDead: at the first step with λ > 0, if λ∇ℓ changes nothing.
        TrainingDiverged: after `max_bad_steps` steps that were not finite.
    """

    beta: float
    """TRL's weight of the KL in its loss, which `rlobj.kl` may steer"""
    train_dataset: Any

    def __init__(
        self,
        model: str | PreTrainedModel,
        reward_funcs: Any = None,
        args: GRPOConfig | None = None,
        train_dataset: Dataset | None = None,
        *,
        env: gymnasium.Env[Any, Any] | None = None,
        reward: Callable[..., Any] | str | None = None,
        on_error: OnError = "stop",
        train_seeds: Sequence[int] | None = None,
        supervised: Sequence[SupervisedRow] | Sequence[Source] | None = None,
        lambda_sup: float | str | LambdaForm = 0.0,
        supervised_batch_size: int = 32,
        token_weights: TokenWeights = "none",
        surgery: Literal["none", "pcgrad"] = "none",
        probe_every: int = 10,
        kl_every: int = 0,
        kl_limit: float | None = None,
        kl_in: Literal["loss", "reward"] = "loss",
        beta_target: float | None = None,
        target_kl: float | None = None,
        max_bad_steps: int = 3,
        max_length: int = 512,
        dropout: bool = False,
        estimator: EstimatorName = "grpo",
        ppo: PPOConfig | None = None,
        rollout: RolloutConfig | None = None,
        patience: Patience = NO_PATIENCE,
        encode_prompts_once: bool = True,
        **kwargs: Any,
    ) -> None:
        args = args or GRPOConfig("rlobj-output", gradient_checkpointing=False)
        self.lambda_form = as_lambda(lambda_sup)
        self.stream = SupervisedStream(supervised, supervised_batch_size, args.seed) if supervised else None
        self.token_weights, self.kl_in = token_weights, kl_in
        self.estimator, self.ppo = estimator, ppo or PPOConfig()
        adapted = kwargs.get("peft_config") is not None
        chooses_labels = isinstance(model, PreTrainedModel) and is_one_token_policy(model)
        check_estimator(estimator, args, env, chooses_labels)
        check_sampling(args, env, chooses_labels)
        check_lambda(self.lambda_form, args, token_weights, self.stream is not None)
        check_kl(args, env, estimator, kl_in, kl_every, kl_limit, beta_target)
        check_adapter(adapted, chooses_labels)
        penalises = kl_in == "reward" and args.beta > 0
        if isinstance(model, str) and (estimator == "ppo" or kl_every or penalises):
            model = load_causal(model)
        measures = bool(kl_every or penalises) and env is not None and isinstance(model, PreTrainedModel)
        lends = lends_reference(args, model, kl_in) and not adapted
        self.reference: PreTrainedModel | WithoutAdapter | None = None
        if (measures or lends) and not adapted:
            self.reference = frozen_copy(model)
        self.critic: Critic | None = None
        self.baseline: float | None = None
        if estimator == "ppo":
            assert not isinstance(model, str)
            self.critic = Critic(model.config.hidden_size, self.ppo.hidden_size).to(model.device)
        self._keeps_logps = False
        check_dataset(env, train_dataset)
        sampling, rollout = None, rollout or RolloutConfig()
        if env is not None:
            sampling = Sampling.of(args, max_length, **asdict(rollout))
            self._keeps_logps = sampling.is_policys_own
            actions = model.config.num_labels if estimator == "exact" else 0  # type: ignore[union-attr]
            kwargs["rollout_func"] = EnvironmentRollout(
                factory_of(env), sampling, reward, on_error, self.critic, actions, patience
            )
            reward_funcs = episode_return
            train_dataset = episode_dataset(as_text_env(env), train_seeds if train_seeds is not None else range(1000))
        self.scoring = Scoring(encode_prompts_once, keeps_states=self.critic is not None)
        self.probe = GradientProbe(probe_every, surgery)
        self.alarms = Alarms(estimator)
        self.kl = WarmStartKL(
            kl_every, kl_limit, args.beta, beta_target, lambda step, text: self.alarms.tell("KL limit", step, text)
        )
        self._micro = 0
        self._ell_window: list[Tensor] = []
        self._return = math.nan
        self.exact_resume = True
        """whether a checkpoint that cannot be gone on from exactly is refused"""
        self.micro_batches: list[dict[str, Any]] = []
        """of the current optimiser step, for whoever asks what was in it"""
        self._losses_are_finite: list[Tensor] = []
        with without_beta(args, hidden=lends or penalises):
            super().__init__(model, reward_funcs, args, train_dataset, **kwargs)
        policy = self.accelerator.unwrap_model(self.model)
        require_vocabulary(policy, self.processing_class, f"policy {policy.name_or_path!r}")
        self.train_dataset, told = fitting_prompts(
            self.train_dataset, policy, self.processing_class, sampling, self.args, rollout.long_prompts
        )
        if told is not None:
            self.alarms.tell("long prompts", 0, told)
        if not dropout:
            take_out_dropout(self.model)
        self.is_split = is_split(self)
        if self.is_split:
            rows = self.stream.batch_size if self.stream is not None else None
            parts = self.accelerator.num_processes * args.gradient_accumulation_steps
            check_split(surgery, self.critic is not None, rows, parts)
        if isinstance(self.reference, PreTrainedModel):
            self.reference.to(self.accelerator.device)
            if lends:
                lend(self, self.reference, args.beta)
        elif measures:
            self.reference = WithoutAdapter(self.accelerator.unwrap_model(self.model))
        if not args.use_adaptive_entropy:
            self._entropy_bonus_enabled = False  # TRL's is a mean of micro-batches' means, which the split changes
        self._add_callbacks(max_bad_steps, target_kl)

    # The formula ------------------------------------------------------------------------------------------------

    def _compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any]) -> Tensor:
        if self.model.training and self.epochs.over:
            return self._left_out()
        R = self._surrogate(model, inputs)
        if not self.model.training:
            return -R
        if self._micro == 0:
            self.micro_batches, self._losses_are_finite = [], []
        self.micro_batches.append(inputs)
        lambda_sup = checked_lambda(self.lambda_form(self.state.global_step))
        ell = self._ell(model, R, lambda_sup)
        self._end_of_micro_batch(R, ell, lambda_sup)
        # 0·NaN is NaN, and λ = 0 must equal TRL to the last bit
        L = -R if lambda_sup == 0 or ell is None else objective(R, ell, lambda_sup)
        loss = self.probe.operate(L, self.model)
        self._losses_are_finite.append(loss.detach().isfinite())
        return loss

    def _surrogate(self, model: torch.nn.Module, inputs: dict[str, Any]) -> Tensor:
        """This micro-batch's share of R, (): exact, or a surrogate whose gradient estimates ∇R."""
        if self.beta != 0:
            self.beta = self.kl.beta
        if self.estimator == "exact":
            return exact_return(self, model, inputs)
        self.scoring.counted = inputs["completion_mask"] * inputs.get("tool_mask", 1)
        R: Tensor = -super()._compute_loss(model, inputs)
        self.scoring.counted = None
        if not self.model.training:
            return R
        if self.entropy_coef != 0 and not self.args.use_adaptive_entropy:
            R = R + self._entropy_bonus(inputs)
        if self.critic is not None:
            assert self.scoring.states is not None
            values = self.critic(self.scoring.states)
            value_loss = backward_of_critic(values, inputs, self.ppo, self._tokens_of_step(inputs))
            self._metrics["train"]["critic/value_loss"].append(value_loss)
        self.epochs.look(self.scoring.logps, inputs)
        return R

    def _ell(self, model: torch.nn.Module, R: Tensor, lambda_sup: float) -> Tensor | None:
        """This micro-batch's share of ℓ, (), its gradient measured beside R's where that is due; None where nobody
        asks for it."""
        step = self.state.global_step
        probing = self.stream is not None and not self.is_split and self.probe.is_due(step, lambda_sup)
        if self.stream is None or not (lambda_sup > 0 or probing or self._needs_ell):
            return None
        # with λ = 0, ℓ is watched only: it must not move the random state that R's training sees
        needs_gradient = torch.set_grad_enabled(lambda_sup > 0 or probing)
        with needs_gradient, torch.random.fork_rng(enabled=lambda_sup == 0):
            ell = self.supervised_loss(model)
        if probing:
            self.probe.measure(R, ell, self.model)
        return ell

    def _left_out(self) -> Tensor:
        """The loss of a micro-batch of a step that is not taken."""
        if self._micro == 0:
            self.micro_batches, self._losses_are_finite = [], []
        self._micro = (self._micro + 1) % self.current_gradient_accumulation_steps
        if self._micro == 0:
            self._metrics["train"]["objective/lambda_sup"].append(self.lambda_form(self.state.global_step))
            self._metrics["train"]["kl/steps_left_out"].append(1.0)
        return torch.zeros((), device=self.accelerator.device, requires_grad=True)

    def _loss_is_finite(self) -> bool:
        """Whether the loss of the current step is, in all processes."""
        finite = torch.stack(self._losses_are_finite).all() if self._losses_are_finite else torch.tensor(True)
        not_finite = 1.0 - finite.to(self.accelerator.device, torch.float32)
        return self._over_processes(not_finite).item() == 0

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
            total = supervised_loss_sum(model, rows, self.model, self.token_weights)
        return total * (world / targets)

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: Tensor, attention_mask: Tensor, logits_to_keep: int, *args: Any, **kwargs: Any
    ) -> Any:
        as_trl = super()._get_per_token_logps_and_entropies
        return self.scoring.score(self, as_trl, model, input_ids, attention_mask, logits_to_keep, *args, **kwargs)

    def _tokens_of_step(self, inputs: dict[str, Any]) -> Tensor:
        """The policy's tokens in an optimiser step, (): what a micro-batch's sum over tokens is divided by, so that the
        processes' mean of the gradients is that of the mean over the global batch."""
        tokens = inputs["num_items_in_batch"].clamp(min=1) / self.accelerator.num_processes
        share: Tensor = tokens * self.current_gradient_accumulation_steps / self.args.steps_per_generation
        return share

    def _entropy_bonus(self, inputs: dict[str, Any]) -> Tensor:
        """This micro-batch's share of entropy_coef times the mean entropy per token of the policy, ()."""
        mask = inputs["completion_mask"] * inputs.get("tool_mask", 1)
        return self.entropy_coef * (self.scoring.entropies * mask).sum() / self._tokens_of_step(inputs)

    # Estimators of ∇R -------------------------------------------------------------------------------------------

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        if self.model.training:
            self.epochs.begin()
        batch = super()._generate_and_score_completions(inputs)
        self.scoring.sampled = None
        mine = slice(self.accelerator.process_index * len(inputs), (self.accelerator.process_index + 1) * len(inputs))
        for name, values in self._logs["rewards"].items():  # of all processes, the latest generation last
            latest = list(values)[-self.accelerator.num_processes * len(inputs) :]
            batch[f"rewards/{name}"] = torch.tensor(latest, device=self.accelerator.device)[mine]
        put_advantages(self, inputs, batch)
        if self.steering is not None and self.model.training:
            self.steering.observe(self, inputs, batch)
        return batch

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        if self.critic is not None and not any("of_critic" in group for group in optimizer.param_groups):
            group = {"params": list(self.critic.parameters()), "lr": self.ppo.learning_rate, "of_critic": True}
            optimizer.add_param_group({**group, "weight_decay": 0.0})
        return optimizer

    def _get_train_sampler(self, dataset: Dataset | None = None) -> RepeatSampler:
        plain = super()._get_train_sampler(dataset)
        return EpochSampler(plain, lambda: self.state.epoch or 0.0)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        require_resumable(self.model, resume_from_checkpoint)
        if self.exact_resume:
            require_exact(Path(resume_from_checkpoint), self.accelerator.num_processes)
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.critic is not None:
            self._critic_keeper.load(resume_from_checkpoint)

    def look_at(self, rollouts: Rollouts) -> None:
        """Measure how far the policy that played is from the warm start; take the penalty, if it is in the reward."""
        if self._keeps_logps and self.beta == 0:  # TRL would compute them again, where it needs them
            rows = [torch.tensor(t.logps, device=self.accelerator.device) for t in rollouts.trajectories]
            self.scoring.sampled = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        if self.reference is None:
            return
        self.kl.measure(self, self.reference, rollouts.trajectories)
        if self.kl_in == "reward" and self.kl.beta > 0:
            self.kl.penalise(self, self.reference, rollouts)

    # What goes on around a step ---------------------------------------------------------------------------------

    def _add_callbacks(self, max_bad_steps: int, target_kl: float | None) -> None:
        self.add_callback(self.alarms)
        moved = [self.model, *([self.critic] if self.critic is not None else [])]
        self.epochs = EpochsOfGeneration(target_kl, moved)
        self.add_callback(self.epochs)
        self.add_callback(self.kl)
        self.add_callback(
            FiniteGuard(
                max_bad_steps,
                self._loss_is_finite,
                lambda parameters: write_bad_step(self, parameters),
                lambda step, text: self.alarms.tell("not finite", step, text),
            )
        )
        self.add_callback(BetweenGenerations())  # behind those that ask for a checkpoint
        if has_adalora(self.model):
            self.add_callback(RankUpdate(self.model))
        if self.critic is not None:
            self.critic.to(self.accelerator.device)
            self._critic_keeper = CriticKeeper(self.critic, self.accelerator)
            self.add_callback(self._critic_keeper)
        if self.estimator == "reinforce":
            self.add_callback(BaselineState(self))
        self.steering: Steering | None = None
        self._needs_ell = isinstance(self.lambda_form, Controller) and self.lambda_form.needs_ell
        if isinstance(self.lambda_form, Controller):
            start = None
            if self._needs_ell:
                assert self.stream is not None
                policy = self.accelerator.unwrap_model(self.model)
                start = mean_supervised_loss(policy, self.stream.rows, ELL_ROWS)
            self.steering = Steering(self.lambda_form, start)
            self.add_callback(self.steering)
        track(self)
        self.add_callback(WholeCheckpoints())  # behind those that save something

    # What is measured ---------------------------------------------------------------------------------------------

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
        self.epochs.end_of_step(self)
        if self.beta != 0:
            self.kl.end_of_step(self)
        ell_of_step = None
        if self._ell_window:
            ell_of_step = self._over_processes(torch.stack(self._ell_window).sum()).item()
            metrics["objective/ell"].append(ell_of_step)
            self._ell_window = []
        if self.steering is not None:
            self.steering.update(self, ell_of_step)
        for name, value in self.probe.end_of_step(lambda_sup, self._over_processes).items():
            metrics[name].append(value)

    def _over_processes(self, value: Tensor) -> Tensor:
        return self.accelerator.reduce(value, reduction="mean")

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        metrics = self._metrics["train"]

        def mean(name: str) -> float:
            values = metrics.get(name) or [0.0]
            return sum(values) / len(values)

        if self.model.training and metrics.get("objective/lambda_sup"):
            if metrics.get("reward"):  # a step on rollouts that were there before has the return of these
                self._return = mean("reward") + mean("kl/penalty")  # the environment's own
            metrics["objective/return"].append(self._return)
            lambda_sup = mean("objective/lambda_sup")
            if lambda_sup == 0 or metrics.get("objective/ell"):  # a step that was left out has no ℓ
                metrics["objective/L"].append(objective(self._return, mean("objective/ell"), lambda_sup))
        super().log(logs, start_time)
