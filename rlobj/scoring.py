"""Log-probabilities of completions as TRL asks for them, and what the forward pass behind them said besides.

Legend: B rows, C tokens of the longest completion, H the policy's hidden size.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from rlobj.completions import can_score, score_in_parts
from rlobj.critic import watching

PLAIN = {"compute_entropy", "batch_size"}
"""What TRL may say of a forward pass over texts alone; the rest is of images and of experts."""


class Scoring:
    """Scores completions by `rlobj.completions` where that gives the policy's numbers, and as TRL does elsewhere.

    Args:
        encode_prompts_once: False: as TRL does everywhere.
        keeps_states: of passes of TRL's, too: a critic reads them.
    """

    def __init__(self, encode_prompts_once: bool, keeps_states: bool) -> None:
        self.encode_prompts_once, self.keeps_states = encode_prompts_once, keeps_states
        self.sampled: Tensor | None = None
        """log π by the policy that has just sampled, (B, C): asked for those, nothing is computed"""
        self.counted: Tensor | None = None
        """1 where a token is in the loss, (B, C); None: all tokens are scored"""
        self.logps = torch.empty(0)
        """of the latest pass, cut from the graph, (B, C)"""
        self.entropies: Tensor | None = None
        """of the latest pass, (B, C); None where they were not asked for"""
        self.states: Tensor | None = None
        """the policy's last hidden state before each token, of the latest pass that kept it, (B, C, H)"""

    def score(
        self,
        trainer: Any,
        as_trl: Callable[..., Any],
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """What `GRPOTrainer._get_per_token_logps_and_entropies` returns, whose own way is `as_trl`."""
        if self.sampled is not None:
            return self.sampled, None, None
        policy = trainer.accelerator.unwrap_model(model)
        plain = not args and all(kwargs[name] is None or kwargs[name] is False for name in kwargs.keys() - PLAIN)
        # a distributed wrapper's own forward must be called
        if self.encode_prompts_once and plain and policy is model and can_score(policy):
            scored = attention_mask[:, -logits_to_keep:] if self.counted is None else self.counted
            with trainer.accelerator.autocast():
                logps, entropies, self.states = score_in_parts(
                    policy, input_ids, attention_mask, scored, trainer.temperature, kwargs.get("batch_size")
                )
            found = logps, entropies, None
        else:
            with watching(policy) if self.keeps_states else nullcontext() as seen:
                found = as_trl(model, input_ids, attention_mask, logits_to_keep, *args, **kwargs)
            if seen is not None:  # the state before a completion token is that of the token before it
                self.states = seen.states[:, -logits_to_keep - 1 : -1] if seen.states.size(1) > 1 else seen.states
        self.logps, self.entropies = found[0].detach(), found[1]
        return found
