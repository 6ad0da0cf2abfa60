"""Log-probabilities of completions for the loss, with the least arithmetic that gives them.

`trl.GRPOTrainer` runs every row of a group through the policy with its own copy of the prompt, and on a CPU multiplies
every position, prompts and padding too, with the vocabulary. Here a prompt is encoded once for all the rows that share
it, as in sampling, and only the tokens that are scored meet the vocabulary. The numbers are the same to rounding.

Legend: B rows, G different prompts, P and C tokens of the longest prompt and completion, N scored tokens, H the
policy's hidden size, V vocabulary.
"""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from transformers import DynamicCache, PreTrainedModel

from rlobj.critic import trunk, watching
from rlobj.encoder_policy import action_logits, different_prompts, is_one_token_policy

LOGITS_AT_ONCE = 2**21
"""Logits that are worked on at a time, in numbers: what a cache of a few MB holds."""
KEPT_PROBABILITIES = 2**26
"""Up to so many probabilities are kept for the backward pass; more are computed a second time."""


class Completions(NamedTuple):
    """A micro-batch: prompts padded on the left, completions on the right, as TRL does."""

    prompt_ids: Tensor
    """(B, P)."""
    prompt_mask: Tensor
    """(B, P), 1 where a token stands."""
    ids: Tensor
    """(B, C)."""
    mask: Tensor
    """(B, C), 1 where a token stands, the policy's or the environment's."""
    scored: Tensor
    """(B, C), True where a log-probability is asked for."""


class Scores(NamedTuple):
    """What the policy says of a micro-batch's completions; 0 where nothing is scored."""

    logps: Tensor
    """log π(token | what stands before it), (B, C)."""
    entropies: Tensor
    """Entropy of π there, in nats, (B, C)."""
    states: Tensor
    """The policy's last hidden state before each token, (B, C, H), cut from the graph."""


def can_score(policy: Any) -> bool:
    """Whether `score` gives this policy's numbers: it reads a cache as it reads a text, and its logits are its last
    state times the vocabulary, unscaled.
    """
    if isinstance(policy, FSDPModule):
        return False  # its own forward gathers what is split, as often in each process
    if is_one_token_policy(policy):
        return True
    inner = policy.get_base_model() if hasattr(policy, "get_base_model") else policy
    config = inner.config.get_text_config()
    scales = ("final_logit_softcapping", "logit_scale", "output_multiplier", "lm_head_multiplier", "logits_scaling")
    asked = inspect.signature(trunk(policy).forward).parameters
    return (
        all(getattr(config, name, None) in (None, 1.0) for name in scales)
        and {"position_ids", "past_key_values"} <= set(asked)
        and not getattr(inner, "_is_stateful", False)
        and not getattr(inner, "is_gradient_checkpointing", False)
    )


def score(policy: PreTrainedModel, batch: Completions, temperature: float = 1.0) -> Scores:
    """Log-probabilities and entropies of the scored tokens under π = softmax(logits / temperature).

    Args:
        policy: a causal language model, in adapters or not, or a one-token policy; see `can_score`.
    """
    if is_one_token_policy(policy):
        return _of_actions(policy, batch, temperature)
    prompts, prompt_mask, rows = different_prompts(batch.prompt_ids, batch.prompt_mask)
    inner: Any = policy.get_base_model() if hasattr(policy, "get_base_model") else policy
    head = inner.get_output_embeddings()
    width = max(int(batch.mask.any(0).sum()), 1)
    ids, mask, scored = batch.ids[:, :width], batch.mask[:, :width], batch.scored[:, :width].bool()
    states = _states_before(trunk(policy), prompts, prompt_mask, rows, ids, mask)
    chosen = states[scored]
    device = chosen.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else head.weight.dtype
    logps, entropies = TokenLogps.apply(chosen, head.weight, head.bias, ids[scored], temperature, dtype)

    def spread(values: Tensor) -> Tensor:
        wide = values.new_zeros(scored.shape).masked_scatter(scored, values)
        return nn.functional.pad(wide, (0, batch.ids.size(1) - width))

    seen = nn.functional.pad(states.detach(), (0, 0, 0, batch.ids.size(1) - width))
    return Scores(spread(logps), spread(entropies), seen)


def score_in_parts(
    policy: PreTrainedModel,
    input_ids: Tensor,
    attention_mask: Tensor,
    scored: Tensor,
    temperature: float,
    rows: int | None = None,
) -> Scores:
    """`score` as TRL asks for it: prompts and completions in one tensor, so many rows at a time.

    Args:
        input_ids, attention_mask: (B, P + C).
        scored: (B, C).
        rows: at a time; None for all at once.
    """
    prompt = input_ids.size(1) - scored.size(1)
    fields = (
        *(x[:, part] for part in (slice(prompt), slice(prompt, None)) for x in (input_ids, attention_mask)),
        scored,
    )
    parts = zip(*(field.split(rows or len(scored)) for field in fields), strict=True)
    scores = [score(policy, Completions(*part), temperature) for part in parts]
    return Scores(*(torch.cat(each) for each in zip(*scores, strict=True)))


def _states_before(
    encode: nn.Module, prompts: Tensor, prompt_mask: Tensor, rows: Tensor, ids: Tensor, mask: Tensor
) -> Tensor:
    """The last hidden state before each completion token, (B, C, H)."""
    if len(prompts) == len(rows):  # nobody shares: one pass over all
        whole = torch.cat([prompt_mask[rows], mask], dim=1)
        every = encode(
            input_ids=torch.cat([prompts[rows], ids], dim=1)[:, :-1],
            attention_mask=whole[:, :-1],
            position_ids=(whole.cumsum(1) - 1).clamp(min=0)[:, :-1],
            use_cache=False,
        )
        states: Tensor = every.last_hidden_state[:, prompts.size(1) - 1 :]
        return states
    cache = DynamicCache(config=encode.config)
    positions = (prompt_mask.cumsum(1) - 1).clamp(min=0)
    openings = encode(
        input_ids=prompts,
        attention_mask=prompt_mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state
    first = openings[rows, -1:]
    if ids.size(1) == 1:
        return first
    cache.batch_select_indices(rows)
    whole = torch.cat([prompt_mask[rows], mask], dim=1)[:, :-1]
    rest = encode(
        input_ids=ids[:, :-1],
        attention_mask=whole,
        position_ids=(whole.cumsum(1) - 1).clamp(min=0)[:, prompts.size(1) :],
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state
    return torch.cat([first, rest], dim=1)


def _of_actions(policy: PreTrainedModel, batch: Completions, temperature: float) -> Scores:
    """Scores of a policy whose one token is a label."""
    with watching(policy) as seen:
        logits = action_logits(policy, batch.prompt_ids, batch.prompt_mask).float() / temperature
    every = torch.log_softmax(logits, dim=-1)
    entropies = -(every.exp() * every).sum(1, keepdim=True)
    return Scores(every.gather(1, batch.ids[:, :1]), entropies, seen.states)


class TokenLogps(torch.autograd.Function):
    """log π(y) and the entropy of π = softmax((state · Wᵀ + b) / temperature), a tile of tokens at a time.

    Both gradients are worked out by hand, ∂ log π(y)/∂z = 1[y] − π and ∂H/∂z = −π (log π + H), because the plain
    composition walks through (N, V) numbers in memory a dozen times.
    """

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        """States (N, H), weight (V, H), bias (V,), targets (N,); returns (N,) and (N,), in float32 or wider.

        `dtype` is the products'.
        """
        wide = torch.promote_types(torch.float32, states.dtype)
        logps, entropies = states.new_empty(len(states), dtype=wide), states.new_empty(len(states), dtype=wide)
        wants_gradient = any(ctx.needs_input_grad[:3])
        kept: list[Tensor] | None = [] if len(states) * len(weight) <= KEPT_PROBABILITIES and wants_gradient else None
        head = weight.to(dtype)
        for tile in _tiles(len(states), len(weight)):
            log_p = _log_softmax(states[tile].to(dtype), head, bias, temperature, wide)
            p = log_p.exp()
            logps[tile] = log_p.gather(1, targets[tile, None]).squeeze(1)
            entropies[tile] = -(log_p.clamp_(min=torch.finfo(wide).min).mul_(p)).sum(1)
            if kept is not None:
                kept.append(p)
        ctx.save_for_backward(states, weight, bias, targets, entropies)
        ctx.kept, ctx.temperature, ctx.dtype = kept, temperature, dtype
        ctx.set_materialize_grads(False)
        return logps, entropies

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        states, weight, bias, targets, entropies = ctx.saved_tensors
        of_logps, of_entropies = grads
        if of_logps is None and of_entropies is None:
            return (None,) * 6
        head = weight.to(ctx.dtype)
        for_states = torch.empty_like(states) if ctx.needs_input_grad[0] else None
        for_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        for_bias = torch.zeros_like(bias) if bias is not None and ctx.needs_input_grad[2] else None
        for number, tile in enumerate(_tiles(len(states), len(weight))):
            here = states[tile].to(ctx.dtype)
            if ctx.kept is not None:
                p = ctx.kept[number]
            else:
                p = _log_softmax(here, head, bias, ctx.temperature, entropies.dtype).exp_()
            d = torch.zeros_like(p) if of_logps is None else p * (-of_logps[tile, None])
            if of_logps is not None:
                d.scatter_add_(1, targets[tile, None], of_logps[tile, None].to(d.dtype))
            if of_entropies is not None:
                d -= of_entropies[tile, None] * (torch.xlogy(p, p) + p * entropies[tile, None])
            d = d.div_(ctx.temperature) if ctx.temperature != 1.0 else d
            if for_bias is not None:
                for_bias += d.sum(0)
            d = d.to(ctx.dtype)
            if for_states is not None:
                for_states[tile] = d @ head
            if for_weight is not None:
                if ctx.dtype == weight.dtype:
                    for_weight.addmm_(d.T, here)
                else:
                    for_weight += d.T @ here
        return for_states, for_weight, for_bias, None, None, None


def _tiles(tokens: int, vocabulary: int) -> list[slice]:
    size = max(LOGITS_AT_ONCE // vocabulary, 1)
    return [slice(start, start + size) for start in range(0, tokens, size)]


def _log_softmax(states: Tensor, head: Tensor, bias: Tensor | None, temperature: float, wide: torch.dtype) -> Tensor:
    logits = nn.functional.linear(states, head).to(wide)
    if bias is not None:
        logits += bias
    if temperature != 1.0:
        logits /= temperature
    return torch.log_softmax(logits, dim=-1)
