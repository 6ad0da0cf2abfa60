"""What `ObjectiveTrainer` refuses, before anything is loaded: arguments that do not go together."""

from __future__ import annotations

from typing import Any

from datasets import Dataset
from trl import GRPOConfig

from rlobj.config import ESTIMATORS
from rlobj.controllers import Lagrange
from rlobj.lambdas import LambdaForm, needs_labels
from rlobj.spelling import did_you_mean
from rlobj.trl_fields import LOSS_TYPES

SUPPORTED_LOSS_TYPES = LOSS_TYPES


def check_estimator(estimator: str, args: GRPOConfig, env: Any, chooses_labels: bool) -> None:
    """Raise ValueError unless there is such an estimator, and it can learn from these episodes."""
    if estimator not in ESTIMATORS:
        raise ValueError(f"estimator is {estimator!r}: expected one of {', '.join(ESTIMATORS)}")
    if estimator != "grpo" and env is None:
        raise ValueError(f"estimator is {estimator}: it needs env, whose episodes say what each token earned")
    if estimator in ("grpo", "rloo") and args.num_generations < 2:
        raise ValueError(f"num_generations is {args.num_generations}: {estimator} compares at least 2 episodes")
    if estimator == "rloo" and args.scale_rewards != "none":
        raise ValueError(
            f"scale_rewards is {args.scale_rewards!r}: rloo leaves returns in their own scale; set it to none"
        )
    if estimator == "exact" and not chooses_labels:
        raise ValueError("estimator is exact: expected a policy that chooses labels (as_one_token_policy)")
    if estimator == "exact" and args.use_adaptive_entropy:
        raise ValueError("use_adaptive_entropy is set: the estimator exact has a fixed entropy_coef alone")


def check_sampling(args: GRPOConfig, env: Any, chooses_labels: bool) -> None:
    """Raise ValueError for a setting of TRL's generation that rlobj's, or the policy, has not."""
    if env is not None and args.generation_kwargs:
        raise ValueError(
            f"generation_kwargs is {args.generation_kwargs!r}: episodes of env are sampled by rlobj itself, which "
            "has temperature, top_p, top_k, min_p, repetition_penalty and what RolloutConfig says; leave it out"
        )
    if args.repetition_penalty != 1 and chooses_labels:
        raise ValueError(
            f"repetition_penalty is {args.repetition_penalty}: an encoder policy chooses one label, which repeats "
            "nothing; set it to 1.0"
        )
    if env is not None and args.use_vllm:
        raise ValueError(
            "use_vllm is True: rlobj plays the episodes of env itself; vLLM generates where reward_funcs and "
            "train_dataset are given instead. Set use_vllm to False"
        )


def check_dataset(env: Any, train_dataset: Any) -> None:
    """Raise ValueError for a data set with which TRL would end at step 0, or in the middle."""
    if env is not None or not isinstance(train_dataset, Dataset):
        return
    if not len(train_dataset):
        raise ValueError("train_dataset is empty: expected at least one prompt to train on")
    if "prompt" not in train_dataset.column_names:
        known = train_dataset.column_names
        raise ValueError(
            f"train_dataset has the columns {', '.join(known)}: expected prompt{did_you_mean('prompt', known)}"
        )


def check_lambda(form: LambdaForm, args: GRPOConfig, token_weights: str, has_rows: bool) -> None:
    """Raise ValueError where λ could not mean what it says."""
    if args.loss_type not in SUPPORTED_LOSS_TYPES:
        raise ValueError(
            f"loss_type is {args.loss_type!r}: expected one of {', '.join(SUPPORTED_LOSS_TYPES)}, whose "
            "denominators span the global batch, so that lambda_sup means the same however the batch is split"
        )
    if token_weights != "none" and isinstance(form, Lagrange):
        raise ValueError(
            f"token_weights is {token_weights!r} and lambda_sup {form}: its bound is one of the "
            "unweighted ℓ, which is not what is measured then; set token_weights to none, or give another form"
        )
    if not has_rows and needs_labels(form):
        raise ValueError(
            f"lambda_sup is {form} but no supervised rows were given: "
            "pass supervised=…, or lambda_sup=0 to train on reward alone"
        )


def check_kl(
    args: GRPOConfig,
    env: Any,
    estimator: str,
    kl_in: str,
    kl_every: int,
    kl_limit: float | None,
    beta_target: float | None,
) -> None:
    """Raise ValueError where a KL is to be limited, steered or paid for that cannot be, or is not, measured."""
    if kl_in == "reward" and args.beta > 0 and (env is None or estimator == "exact"):
        raise ValueError(
            f"kl_in is reward, with estimator {estimator}: expected env, and episodes that are sampled; set "
            "kl_in to loss"
        )
    warps = args.top_p < 1 or args.top_k or args.min_p or args.repetition_penalty != 1
    if kl_in == "reward" and args.beta > 0 and warps:
        raise ValueError(
            "kl_in is reward, and top_p, top_k, min_p or repetition_penalty change what is sampled from, so that "
            "its log-probabilities cannot be compared with the warm start's: set kl_in to loss"
        )
    if kl_limit is not None and not kl_every:
        raise ValueError(f"kl_limit is {kl_limit} and kl_every {kl_every}: the KL must be measured to be limited")
    if beta_target is not None and args.beta == 0:
        raise ValueError(f"beta_target is {beta_target} and beta is 0: expected a beta above 0 to begin with")


def check_adapter(adapted: bool, chooses_labels: bool) -> None:
    """Raise ValueError for an adapter on a policy that cannot wear one."""
    if adapted and chooses_labels:
        raise ValueError("peft_config is given: an encoder policy cannot wear an adapter yet; leave it out")


def check_split(surgery: str, has_critic: bool, supervised_batch_size: int | None, parts: int) -> None:
    """Raise ValueError for what cannot be done with a policy that FSDP splits.

    Args:
        supervised_batch_size: None without rows.
        parts: processes × accumulation.
    """
    if surgery != "none":
        raise ValueError(f"surgery is {surgery!r}, and FSDP splits the gradients that it compares: set it to none")
    if has_critic:
        raise ValueError(
            "estimator is ppo: FSDP takes an optimiser of the policy's parameters alone, not of the critic's; "
            "take another estimator, or launch without FSDP"
        )
    if supervised_batch_size is not None and supervised_batch_size < parts:
        raise ValueError(
            f"supervised_batch_size is {supervised_batch_size} for {parts} parts (processes × accumulation): "
            "expected at least one row for each, since with FSDP all must take the same forward passes"
        )
