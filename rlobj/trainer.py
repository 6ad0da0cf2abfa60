"""`ObjectiveTrainer`: TRL's policy-gradient loop on L(θ) = −R(θ) + λ·ℓ(M_θ(x), y).

What is overridden of `trl.GRPOTrainer`, and nothing more: `__init__` (what to add), `_compute_loss` (the formula),
`_get_per_token_logps_and_entropies` (keeps what it returns), `_generate_and_score_completions` (advantages of the
estimators that TRL has not), `create_optimizer` and `_load_from_checkpoint` (the critic), `_get_train_sampler` (epochs
after a resume) and `log` (L itself among the metrics). tests/test_trl_hooks.py says so when TRL changes one of them.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import gymnasium
import torch
from accelerate.utils import DistributedType
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import RepeatSampler, add_fused_lm_head

from envs.adapters import as_text_env
from envs.patience import Patience
from envs.rewards import OnError
from envs.vector import NO_PATIENCE
from rlobj.adapters import RankUpdate, WithoutAdapter, has_adalora
from rlobj.alarms import Alarms
from rlobj.bad_steps import write_bad_step
from rlobj.callbacks import BaselineState, BetweenGenerations, FiniteGuard
from rlobj.checkpoints import WholeCheckpoints, require_exact
from rlobj.completions import can_score, score_in_parts
from rlobj.config import ESTIMATORS, EstimatorName, PPOConfig, RolloutConfig
from rlobj.controllers import Controller, Lagrange
from rlobj.critic import Critic, CriticKeeper, watching
from rlobj.encoder_policy import action_logits, is_one_token_policy
from rlobj.estimators import (
    BASELINE_DECAY,
    expected_return,
    generalised_advantages,
    leave_one_out,
    value_loss,
    whitened,
)
from rlobj.evaluation import categorical_kl
from rlobj.kl import EpochsOfGeneration, WarmStartKL
from rlobj.lambdas import LambdaForm, as_lambda, needs_labels
from rlobj.objective import GradientBalance, gradient_balance, objective, surgery_correction
from rlobj.policies import load_causal, take_out_dropout
from rlobj.rollout import EnvironmentRollout, episode_prompt, episode_return, factory_of
from rlobj.sampling import Sampling
from rlobj.schedules import checked_lambda
from rlobj.sharding import is_split
from rlobj.steering import Steering
from rlobj.stream import Source, SupervisedStream
from rlobj.supervised import SupervisedRow, TokenWeights, supervised_loss_sum, supervised_losses
from rlobj.tracking import track
from rlobj.trajectories import Rollouts

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # rollout_func warns at every start; test_trl_hooks watches it

SUPPORTED_LOSS_TYPES = ("grpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo")
"""Loss types whose denominator counts over the whole global batch, so that λ keeps its meaning when the batch is split.
`bnpo` divides by the tokens of the micro-batch alone."""
PLAIN = {"compute_entropy", "batch_size"}
"""What TRL may say of a forward pass over texts alone; the rest is of images and of experts."""
ELL_ROWS = 256
"""Rows on which a controller of λ is told the warm start's ℓ."""


class LambdaIsDead(ValueError):
    """λ > 0 was asked for and changes no parameter's gradient."""


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
        rollout: what ends the replies and episodes of `env`.
        patience: with steps of `env` that raise or hang.
        encode_prompts_once: run each prompt of a micro-batch through the policy once for all its completions, and only
            the policy's own tokens through the vocabulary (`rlobj.completions`). False: TRL's own passes, whose results
            are those of `trl.GRPOTrainer` to the last bit.

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
        self.probe_every, self.token_weights, self.surgery = probe_every, token_weights, surgery
        self._correction: Tensor | None = None
        self.estimator, self.ppo = estimator, ppo or PPOConfig()
        self.encode_prompts_once = encode_prompts_once
        self._scored: Tensor | None = None
        self._states: Tensor | None = None
        self.critic: Critic | None = None
        self.baseline: float | None = None
        self.kl_in = kl_in
        self._check(args, model, env)
        penalises = kl_in == "reward" and args.beta > 0
        if isinstance(model, str) and (estimator == "ppo" or kl_every or penalises):
            model = load_causal(model)
        if kl_limit is not None and not kl_every:
            raise ValueError(f"kl_limit is {kl_limit} and kl_every {kl_every}: the KL must be measured to be limited")
        if beta_target is not None and args.beta == 0:
            raise ValueError(f"beta_target is {beta_target} and beta is 0: expected a beta above 0 to begin with")
        measures = bool(kl_every or penalises) and env is not None and isinstance(model, PreTrainedModel)
        self.reference: PreTrainedModel | WithoutAdapter | None = None
        adapted = kwargs.get("peft_config") is not None
        if adapted and isinstance(model, PreTrainedModel) and is_one_token_policy(model):
            raise ValueError("peft_config is given: an encoder policy cannot wear an adapter yet; leave it out")
        holds = self._holds_the_reference(args, model) and not adapted
        if (measures or holds) and not adapted:
            self.reference = copy.deepcopy(model).eval().requires_grad_(False)  # type: ignore[union-attr]
        self._keeps_logps = False
        if env is not None:
            sampling = Sampling.of(args, max_length, **asdict(rollout or RolloutConfig()))
            self._keeps_logps = sampling.is_policys_own
            if estimator == "ppo":
                assert not isinstance(model, str)
                self.critic = Critic(model.config.hidden_size, self.ppo.hidden_size).to(model.device)
            actions = model.config.num_labels if estimator == "exact" else 0  # type: ignore[union-attr]
            kwargs["rollout_func"] = EnvironmentRollout(
                factory_of(env), sampling, reward, on_error, self.critic, actions, patience
            )
            reward_funcs = episode_return
            train_dataset = episode_dataset(as_text_env(env), train_seeds if train_seeds is not None else range(1000))
        self._sampled_logps: Tensor | None = None
        self._micro = 0
        self.steering: Steering | None = None
        self._needs_ell = isinstance(self.lambda_form, Controller) and self.lambda_form.needs_ell
        self._ell_window: list[Tensor] = []
        self._probe_window: list[tuple[Tensor, Tensor]] = []
        self._lambda_proven = False
        self._return = math.nan
        self.exact_resume = True
        """whether a checkpoint that cannot be gone on from exactly is refused"""
        self.alarms = Alarms(estimator)
        self.micro_batches: list[dict[str, Any]] = []
        """of the current optimiser step, for whoever asks what was in it"""
        self._losses_are_finite: list[Tensor] = []
        beta = args.beta
        if holds or penalises:
            args.beta = 0.0  # TRL need not load a reference
        super().__init__(model, reward_funcs, args, train_dataset, **kwargs)
        args.beta = beta
        if not dropout:
            take_out_dropout(self.model)
        self.is_split = is_split(self)
        self._check_split()
        if isinstance(self.reference, PreTrainedModel):
            self.reference.to(self.accelerator.device)
        elif measures:
            self.reference = WithoutAdapter(self.accelerator.unwrap_model(self.model))
        if holds:
            self.ref_model, self.beta = self.reference, beta
            cast = args.cast_lm_head_to_fp32
            add_fused_lm_head(self.ref_model, temperature=self.temperature, cast_lm_head_to_fp32=cast)
        if not args.use_adaptive_entropy:
            self._entropy_bonus_enabled = False  # TRL's is a mean of micro-batches' means, which the split changes
        self.add_callback(self.alarms)
        moved = [self.model, *([self.critic] if self.critic is not None else [])]
        self.epochs = EpochsOfGeneration(target_kl, moved)
        self.add_callback(self.epochs)
        self.kl = WarmStartKL(
            kl_every, kl_limit, beta, beta_target, lambda step, text: self.alarms.tell("KL limit", step, text)
        )
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
        if estimator == "reinforce":
            self.add_callback(BaselineState(self))
        if isinstance(self.lambda_form, Controller):
            self.steering = Steering(self.lambda_form, self._ell_of_the_start() if self._needs_ell else None)
            self.add_callback(self.steering)
        track(self)
        self.add_callback(WholeCheckpoints())  # behind those that save something

    def _check(self, args: GRPOConfig, model: Any, env: Any) -> None:
        if self.estimator not in ESTIMATORS:
            raise ValueError(f"estimator is {self.estimator!r}: expected one of {', '.join(ESTIMATORS)}")
        if self.estimator != "grpo" and env is None:
            raise ValueError(f"estimator is {self.estimator}: it needs env, whose episodes say what each token earned")
        if env is not None and args.generation_kwargs:
            raise ValueError(
                f"generation_kwargs is {args.generation_kwargs!r}: episodes of env are sampled by rlobj itself, which "
                "has temperature, top_p, top_k, min_p, repetition_penalty and what RolloutConfig says; leave it out"
            )
        if args.repetition_penalty != 1 and isinstance(model, PreTrainedModel) and is_one_token_policy(model):
            raise ValueError(
                f"repetition_penalty is {args.repetition_penalty}: an encoder policy chooses one label, which repeats "
                "nothing; set it to 1.0"
            )
        if env is not None and args.use_vllm:
            raise ValueError(
                "use_vllm is True: rlobj plays the episodes of env itself; vLLM generates where reward_funcs and "
                "train_dataset are given instead. Set use_vllm to False"
            )
        if self.estimator in ("grpo", "rloo") and args.num_generations < 2:
            raise ValueError(
                f"num_generations is {args.num_generations}: {self.estimator} compares at least 2 episodes"
            )
        if self.estimator == "rloo" and args.scale_rewards != "none":
            raise ValueError(
                f"scale_rewards is {args.scale_rewards!r}: rloo leaves returns in their own scale; set it to none"
            )
        if self.estimator == "exact" and not (isinstance(model, PreTrainedModel) and is_one_token_policy(model)):
            raise ValueError("estimator is exact: expected a policy that chooses labels (as_one_token_policy)")
        if self.estimator == "exact" and args.use_adaptive_entropy:
            raise ValueError("use_adaptive_entropy is set: the estimator exact has a fixed entropy_coef alone")
        if args.loss_type not in SUPPORTED_LOSS_TYPES:
            raise ValueError(
                f"loss_type is {args.loss_type!r}: expected one of {', '.join(SUPPORTED_LOSS_TYPES)}, whose "
                "denominators span the global batch, so that lambda_sup means the same however the batch is split"
            )
        if self.token_weights != "none" and isinstance(self.lambda_form, Lagrange):
            raise ValueError(
                f"token_weights is {self.token_weights!r} and lambda_sup {self.lambda_form}: its bound is one of the "
                "unweighted ℓ, which is not what is measured then; set token_weights to none, or give another form"
            )
        if self.stream is None and needs_labels(self.lambda_form):
            raise ValueError(
                f"lambda_sup is {self.lambda_form} but no supervised rows were given: "
                "pass supervised=…, or lambda_sup=0 to train on reward alone"
            )
        if self.kl_in == "reward" and args.beta > 0:
            self._check_penalty(args, env)

    def _check_penalty(self, args: GRPOConfig, env: Any) -> None:
        if env is None or self.estimator == "exact":
            raise ValueError(
                f"kl_in is reward, with estimator {self.estimator}: expected env, and episodes that are sampled; set "
                "kl_in to loss"
            )
        if args.top_p < 1 or args.top_k or args.min_p or args.repetition_penalty != 1:
            raise ValueError(
                "kl_in is reward, and top_p, top_k, min_p or repetition_penalty change what is sampled from, so that "
                "its log-probabilities cannot be compared with the warm start's: set kl_in to loss"
            )

    def _holds_the_reference(self, args: GRPOConfig, model: Any) -> bool:
        """Whether the reference of β's term in the loss is a copy of ours. TRL would load one from where the policy
        came from: an encoder cannot be loaded so, and a model that was made here came from nowhere."""
        sharded = args.distributed_state.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)
        wanted = args.beta > 0 and self.kl_in == "loss" and isinstance(model, PreTrainedModel)
        return wanted and (is_one_token_policy(model) or not (sharded or args.sync_ref_model))

    def _check_split(self) -> None:
        parts = self.accelerator.num_processes * self.args.gradient_accumulation_steps
        if self.is_split and self.surgery != "none":
            raise ValueError(
                f"surgery is {self.surgery!r}, and FSDP splits the gradients that it compares: set it to none"
            )
        if self.is_split and self.critic is not None:
            raise ValueError(
                "estimator is ppo: FSDP takes an optimiser of the policy's parameters alone, not of the critic's; "
                "take another estimator, or launch without FSDP"
            )
        if self.is_split and self.stream is not None and self.stream.batch_size < parts:
            raise ValueError(
                f"supervised_batch_size is {self.stream.batch_size} for {parts} parts (processes × accumulation): "
                "expected at least one row for each, since with FSDP all must take the same forward passes"
            )

    # The formula ------------------------------------------------------------------------------------------------

    def _compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any]) -> Tensor:
        if self.model.training and self.epochs.over:
            return self._left_out()
        if self.beta != 0:
            self.beta = self.kl.beta
        if self.estimator == "exact":
            R = self._expected_return(model, inputs)
        else:
            self._scored = inputs["completion_mask"] * inputs.get("tool_mask", 1)
            R = -super()._compute_loss(model, inputs)  # surrogate; its gradient estimates ∇R
            self._scored = None
            if self.entropy_coef != 0 and self.model.training and not self.args.use_adaptive_entropy:
                R = R + self._entropy_bonus(inputs)
            if self.critic is not None and self.model.training:
                self._criticise(inputs)
            if self.model.training:
                self.epochs.look(self._latest_logps, inputs)
        if not self.model.training:
            return -R
        if self._micro == 0:
            self.micro_batches, self._losses_are_finite = [], []
        self.micro_batches.append(inputs)
        lambda_sup = checked_lambda(self.lambda_form(self.state.global_step))
        probing = self._is_probed(lambda_sup)
        ell = None
        if self.stream is not None and (lambda_sup > 0 or probing or self._needs_ell):
            # with λ = 0, ℓ is watched only: it must not move the random state that R's training sees
            needs_gradient = torch.set_grad_enabled(lambda_sup > 0 or probing)
            with needs_gradient, torch.random.fork_rng(enabled=lambda_sup == 0):
                ell = self.supervised_loss(model)
            if probing:
                self._probe(R, ell)
        self._end_of_micro_batch(R, ell, lambda_sup)
        # 0·NaN is NaN, and λ = 0 must equal TRL to the last bit
        loss = -R if lambda_sup == 0 or ell is None else objective(R, ell, lambda_sup)
        if self._correction is not None:
            loss, self._correction = loss + self._pulling(self._correction), None
        self._losses_are_finite.append(loss.detach().isfinite())
        return loss

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

    def _ell_of_the_start(self) -> float:
        """ℓ of the warm start, on rows from all over the data."""
        assert self.stream is not None
        rows = self.stream.rows
        some = rows[:: max(len(rows) // ELL_ROWS, 1)]
        losses = supervised_losses(self.accelerator.unwrap_model(self.model), some)
        return sum(losses) / len(losses)

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: Tensor, attention_mask: Tensor, logits_to_keep: int, *args: Any, **kwargs: Any
    ) -> Any:
        if self._sampled_logps is not None:  # asked for those of the policy that has just sampled
            return self._sampled_logps, None, None
        policy = self.accelerator.unwrap_model(model)
        plain = not args and all(kwargs[name] is None or kwargs[name] is False for name in kwargs.keys() - PLAIN)
        # a distributed wrapper's own forward must be called
        if self.encode_prompts_once and plain and policy is model and can_score(policy):
            scored = attention_mask[:, -logits_to_keep:] if self._scored is None else self._scored
            with self.accelerator.autocast():
                logps, entropies, self._states = score_in_parts(
                    policy, input_ids, attention_mask, scored, self.temperature, kwargs.get("batch_size")
                )
            found = logps, entropies, None
        else:
            with watching(policy) if self.critic else nullcontext() as seen:
                found = super()._get_per_token_logps_and_entropies(
                    model, input_ids, attention_mask, logits_to_keep, *args, **kwargs
                )
            if seen is not None:  # the state before a completion token is that of the token before it
                self._states = seen.states[:, -logits_to_keep - 1 : -1] if seen.states.size(1) > 1 else seen.states
        self._latest_logps, self._latest_entropies = found[0].detach(), found[1]
        return found

    def _tokens_of_step(self, inputs: dict[str, Any]) -> Tensor:
        """The policy's tokens in an optimiser step, (): what a micro-batch's sum over tokens is divided by, so that the
        processes' mean of the gradients is that of the mean over the global batch."""
        tokens = inputs["num_items_in_batch"].clamp(min=1) / self.accelerator.num_processes
        share: Tensor = tokens * self.current_gradient_accumulation_steps / self.args.steps_per_generation
        return share

    def _entropy_bonus(self, inputs: dict[str, Any]) -> Tensor:
        """This micro-batch's share of entropy_coef times the mean entropy per token of the policy, ()."""
        mask = inputs["completion_mask"] * inputs.get("tool_mask", 1)
        return self.entropy_coef * (self._latest_entropies * mask).sum() / self._tokens_of_step(inputs)

    # Estimators of ∇R -------------------------------------------------------------------------------------------

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        if self.model.training:
            self.epochs.begin()
        batch = super()._generate_and_score_completions(inputs)
        self._sampled_logps = None
        mine = slice(self.accelerator.process_index * len(inputs), (self.accelerator.process_index + 1) * len(inputs))
        for name, values in self._logs["rewards"].items():  # of all processes, the latest generation last
            latest = list(values)[-self.accelerator.num_processes * len(inputs) :]
            batch[f"rewards/{name}"] = torch.tensor(latest, device=self.accelerator.device)[mine]
        if self.estimator == "rloo":
            batch["advantages"] = leave_one_out(batch["advantages"], self.num_generations)
        elif self.estimator == "reinforce":
            batch["advantages"] = self._above_baseline(inputs)
        elif self.estimator == "ppo":
            self._advantages_of_critic(inputs, batch)
        elif self.estimator == "exact":
            batch["action_returns"] = torch.tensor([row["action_returns"] for row in inputs]).to(batch["advantages"])
        if self.steering is not None and self.model.training:
            self.steering.observe(self, inputs, batch)
        return batch

    def _above_baseline(self, inputs: Sequence[dict[str, Any]]) -> Tensor:
        """Returns less the moving mean of earlier generations, (B,); 0 where an episode has no return."""
        returns = torch.tensor([row["episode_return"] for row in inputs], device=self.accelerator.device)
        mean = self.accelerator.gather(returns).nanmean().item()
        if self.baseline is None:
            self.baseline = mean
        advantages = torch.nan_to_num(returns - self.baseline, nan=0.0)
        if math.isfinite(mean):
            self.baseline += (1 - BASELINE_DECAY) * (mean - self.baseline)
        return advantages

    def _advantages_of_critic(self, inputs: Sequence[dict[str, Any]], batch: dict[str, Any]) -> None:
        """Put advantages, values and returns of every token, (B, T), into the batch."""
        mask = batch["completion_mask"] * batch.get("tool_mask", 1)

        def padded(name: str) -> Tensor:
            rows = [torch.tensor(row[name], device=mask.device) for row in inputs]
            wide = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
            return torch.nn.functional.pad(wide, (0, mask.size(1) - wide.size(1)))

        rewards, values = padded("token_rewards"), padded("token_values")
        bootstrap = torch.tensor([row["bootstrap"] for row in inputs], device=mask.device)
        scored = rewards.isfinite().all(dim=1, keepdim=True)  # an episode without a reward teaches nothing
        mask = mask * scored
        advantages, returns = generalised_advantages(rewards.nan_to_num(), values, mask, bootstrap, self.ppo)
        if self.ppo.whiten:
            advantages = whitened(advantages, mask, self.accelerator.reduce)
        spread = returns[mask > 0].var()
        if spread > 0:
            left = (returns - values)[mask > 0].var()
            self._metrics["train"]["critic/explained_variance"].append(1 - (left / spread).item())
        batch |= {"advantages": advantages, "values": values, "returns": returns, "value_mask": mask}

    def _criticise(self, inputs: dict[str, Any]) -> None:
        """Backward pass of the critic's loss; it reaches the critic's parameters alone."""
        assert self.critic is not None and self._states is not None
        mask = inputs["value_mask"]
        total = value_loss(self.critic(self._states), inputs["values"], inputs["returns"], mask, self.ppo.clip_value)
        loss = total / self._tokens_of_step(inputs)
        if loss.isfinite():
            loss.backward()
        self._metrics["train"]["critic/value_loss"].append(loss.item())

    def _expected_return(self, model: torch.nn.Module, inputs: dict[str, Any]) -> Tensor:
        """This micro-batch's share of the exact R."""
        with self.accelerator.autocast():
            logits = action_logits(model, inputs["prompt_ids"], inputs["prompt_mask"])  # type: ignore[arg-type]
        warped = logits.float() / self.temperature
        entropy = torch.distributions.Categorical(logits=warped).entropy().mean()
        self._metrics["train"]["entropy"].append(entropy.item())
        parts = self.current_gradient_accumulation_steps if self.model.training else 1
        R = expected_return(warped, inputs["action_returns"])
        if self.entropy_coef != 0:
            R = R + self.entropy_coef * entropy
        if self.beta != 0:
            with torch.no_grad():
                reference = action_logits(self.ref_model, inputs["prompt_ids"], inputs["prompt_mask"])
            kl = categorical_kl(warped, reference / self.temperature).mean()
            self._metrics["train"]["kl"].append(self._over_processes(kl.detach()).item())
            R = R - self.beta * kl
        return R / parts

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
        if has_adalora(self.model):
            raise ValueError(
                f"{resume_from_checkpoint} is of an AdaLoRA adapter: peft saves neither the importance of ranks nor "
                "those that were cut, so training cannot go on from it; begin again, or use LoRA or IA3"
            )
        if self.exact_resume:
            require_exact(Path(resume_from_checkpoint), self.accelerator.num_processes)
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.critic is not None:
            self._critic_keeper.load(resume_from_checkpoint)

    def look_at(self, rollouts: Rollouts) -> None:
        """Measure how far the policy that played is from the warm start; take the penalty, if it is in the reward."""
        if self._keeps_logps and self.beta == 0:  # TRL would compute them again, where it needs them
            rows = [torch.tensor(t.logps, device=self.accelerator.device) for t in rollouts.trajectories]
            self._sampled_logps = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        if self.reference is None:
            return
        self.kl.measure(self, self.reference, rollouts.trajectories)
        if self.kl_in == "reward" and self.kl.beta > 0:
            self.kl.penalise(self, self.reference, rollouts)

    # What is measured ---------------------------------------------------------------------------------------------

    def _is_probed(self, lambda_sup: float) -> bool:
        if self.stream is None or self.is_split:
            return False
        step = self.state.global_step
        if self.surgery != "none" and lambda_sup > 0:
            return True
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

    def _pulling(self, gradient: Tensor) -> Tensor:
        """A term, (), whose gradient is this one, (P,): it is summed with the others' before they are clipped."""
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        parts = gradient.split([p.numel() for p in parameters])
        pull = torch.stack([(p * part.view_as(p)).sum() for p, part in zip(parameters, parts, strict=True)]).sum()
        return pull - pull.detach()  # the value of the loss stays what it was

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
        if self._probe_window:
            grad_R, grad_ell = (self._over_processes(sum(grads)) for grads in zip(*self._probe_window, strict=True))
            self._probe_window = []
            self._report(gradient_balance(grad_R, grad_ell, lambda_sup), lambda_sup)
            if self.surgery == "pcgrad" and lambda_sup > 0:
                self._correction = surgery_correction(grad_R, grad_ell, lambda_sup)

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


def episode_dataset(env: gymnasium.Env[Any, Any], seeds: Sequence[int]) -> Dataset:
    """A prompt column with the opening messages of every seed's episode.

    Raises:
        ValueError: no seeds.
    """
    if not len(seeds):
        raise ValueError("train_seeds is empty: expected at least one episode to train on")
    return Dataset.from_list([{"prompt": episode_prompt(s, env.reset(seed=int(s))[0])} for s in seeds])


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
        return super().__iter__()


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
