"""TRL's configuration of the policy stage, its adapter, and how its episodes are sampled."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import PartialState
from trl import GRPOConfig

from rlobj.adapters import peft_config_of
from rlobj.arguments import ObjectiveArguments
from rlobj.checkpoints import CHECKPOINTS_AT_ONCE
from rlobj.config import RunConfig
from rlobj.sampling import Sampling


def grpo_config(config: RunConfig, output_dir: Path) -> GRPOConfig:
    """TRL's configuration of the policy stage; whatever the recipe sets in training.trl wins."""
    training = config.training
    accumulation = int(training.trl.get("gradient_accumulation_steps", 1))
    parts = PartialState().num_processes * accumulation
    batch, rest = divmod(training.prompts_per_step * training.num_generations, parts)
    if rest:
        raise ValueError(
            f"training.prompts_per_step × num_generations is {batch * parts + rest}, which {parts} parts "
            "(processes × gradient_accumulation_steps) do not share out evenly: change one of them"
        )
    fields: dict[str, Any] = {
        "output_dir": str(output_dir),
        "max_steps": training.steps,
        "learning_rate": training.learning_rate,
        "num_generations": training.num_generations,
        "per_device_train_batch_size": batch,
        "max_completion_length": training.max_reply_tokens,
        "temperature": training.temperature,
        "beta": training.beta,
        "seed": config.policy_seed,
        "lr_scheduler_type": "constant_with_warmup",
        "warmup_steps": 3,
        **({"scale_rewards": "none"} if training.estimator == "rloo" else {}),
        "shuffle_dataset": False,  # the order of episodes is the task's, one pass over it
        "logging_steps": 1,
        "save_steps": max(training.steps // 4, 1),
        "save_total_limit": CHECKPOINTS_AT_ONCE - 1,
        "report_to": "none",
        "disable_tqdm": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "disable_dropout": True,
        "dataloader_pin_memory": False,
    }
    return ObjectiveArguments(**{**fields, **training.trl})


def adapter_config(config: RunConfig) -> Any:
    """peft's configuration of the policy's adapter; None without one."""
    policy = config.policy
    return None if policy.peft is None else peft_config_of(policy.peft, config.training.steps)


def sampling_of(config: RunConfig) -> Sampling:
    """How a run samples, in training as in evaluation."""
    args = grpo_config(config, Path(config.output_dir) / config.name)
    return Sampling.of(args, config.policy.max_length, **asdict(config.rollout))
