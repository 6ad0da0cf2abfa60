"""The warm start as the reference of a KL: a frozen copy of ours, lent to TRL where it would load one itself."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from accelerate.utils import DistributedType
from transformers import PreTrainedModel
from trl import GRPOConfig
from trl.trainer.utils import add_fused_lm_head

from rlobj.encoder_policy import is_one_token_policy


def lends_reference(args: GRPOConfig, model: Any, kl_in: str) -> bool:
    """Whether the reference of β's term in the loss is a copy of ours. TRL would load one from where the policy
    came from: an encoder cannot be loaded so, and a model that was made here came from nowhere."""
    sharded = args.distributed_state.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)
    wanted = args.beta > 0 and kl_in == "loss" and isinstance(model, PreTrainedModel)
    return wanted and (is_one_token_policy(model) or not (sharded or args.sync_ref_model))


def frozen_copy(model: PreTrainedModel) -> PreTrainedModel:
    """The policy as it is now."""
    return copy.deepcopy(model).eval().requires_grad_(False)


@contextmanager
def without_beta(args: GRPOConfig, hidden: bool) -> Iterator[None]:
    """Hide β while TRL's trainer is built, so that it loads no reference."""
    beta = args.beta
    if hidden:
        args.beta = 0.0
    yield
    args.beta = beta


def lend(trainer: Any, reference: PreTrainedModel, beta: float) -> None:
    """Make a copy of ours the reference of TRL's trainer, as if it had loaded it."""
    trainer.ref_model, trainer.beta = reference, beta
    cast = trainer.args.cast_lm_head_to_fp32
    add_fused_lm_head(reference, temperature=trainer.temperature, cast_lm_head_to_fp32=cast)
