"""How replies are drawn from the policy: the library's own logits processors, and one uniform number per token.

Legend: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from transformers import LogitsProcessorList
from transformers.generation import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

Overflow = Literal["truncate", "drop_oldest", "error"]
OVERFLOWS: tuple[str, ...] = get_args(Overflow)
LongPrompts = Literal["cut", "drop", "error"]
LONG_PROMPTS: tuple[str, ...] = get_args(LongPrompts)


@dataclass(frozen=True, slots=True)
class Sampling:
    """How episodes are sampled: what a token is drawn from, and what ends a reply and an episode.

    Raises:
        ValueError: a field is out of its range.
    """

    max_reply_tokens: int = 64
    """Longest reply, in tokens, its end token included. A longer one is cut there."""
    max_length: int = 512
    """Longest dialogue, in tokens; see `overflow`."""
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float | None = None
    repetition_penalty: float = 1.0
    """As in `generate`: every token that the policy has read counts once, whoever wrote it."""
    stop: tuple[str, ...] = ()
    """A reply ends, too, with the token that completes one of these strings; they stay part of it."""
    max_episode_tokens: int | None = None
    """How many tokens the policy may write in one episode; the reply that uses up the last of them is cut, and the
    episode, unless it is over then, truncated."""
    max_turns: int = 1000
    """How many replies; an episode that is not over then is truncated."""
    overflow: Overflow = "truncate"
    """What an answer does that leaves no room for another reply. truncate: the episode is cut short. drop_oldest: the
    oldest turns are dropped (system messages stay) until the rest fills half of `max_length`, and that is encoded
    again; the trajectory begins anew there, with what the policy sees from then on. error: stop."""
    long_prompts: LongPrompts = "cut"
    """What is done about opening messages that leave no room for a reply of `max_reply_tokens`. cut: they keep their
    end, as labelled dialogues do (an encoder reads their beginning). drop: such episodes are left out, before the first
    step. error: stop, likewise."""
    concurrent: int | None = None
    """How many episodes are in the batch at a time; a new one takes the place of one that has ended. None: all."""

    def __post_init__(self) -> None:
        for name in ("max_reply_tokens", "max_length", "max_episode_tokens", "max_turns", "concurrent"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}: expected at least 1")
        for name in ("temperature", "repetition_penalty"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}: expected more than 0")
        if isinstance(self.stop, str) or not all(self.stop):
            raise ValueError(f"stop is {self.stop!r}: expected several strings, none of them empty")
        if self.overflow not in OVERFLOWS:
            raise ValueError(f"overflow is {self.overflow!r}: expected one of {', '.join(OVERFLOWS)}")
        if self.long_prompts not in LONG_PROMPTS:
            raise ValueError(f"long_prompts is {self.long_prompts!r}: expected one of {', '.join(LONG_PROMPTS)}")

    @classmethod
    def of(cls, args: Any, max_length: int, stop: Sequence[str] = (), **limits: Any) -> Sampling:
        """What a `trl.GRPOConfig` says, and what it has no fields for (`rlobj.config.RolloutConfig`)."""
        return cls(
            args.max_completion_length,
            max_length,
            args.temperature,
            args.top_k,
            args.top_p,
            args.min_p,
            args.repetition_penalty,
            stop if isinstance(stop, str) else tuple(stop),  # type: ignore[arg-type]
            **limits,
        )

    @property
    def is_policys_own(self) -> bool:
        """Whether tokens are drawn from softmax(logits / temperature), which is what TRL's loss takes for the policy,
        and not from a part of it."""
        return self.top_k == 0 and self.top_p == 1.0 and self.min_p is None and self.repetition_penalty == 1.0

    def processors(self) -> LogitsProcessorList:
        """The library's own logits processors, in the order of `generate`."""
        chosen = LogitsProcessorList()
        if self.repetition_penalty != 1.0:
            chosen.append(RepetitionPenaltyLogitsProcessor(float(self.repetition_penalty)))
        if self.temperature != 1.0:
            chosen.append(TemperatureLogitsWarper(self.temperature))
        if self.top_k:
            chosen.append(TopKLogitsWarper(self.top_k))
        if self.top_p < 1.0:
            chosen.append(TopPLogitsWarper(self.top_p))
        if self.min_p is not None:
            chosen.append(MinPLogitsWarper(self.min_p))
        return chosen


def draw(scores: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """One token per row from softmax(scores), by inverting its distribution function.

        token = min {v : Σ_{w ≤ v} p(w) > u}

    Args:
        scores: (B, V), -inf where a token may not be drawn.
        uniforms: (B,) in [0, 1), float64.

    Returns: ids and their log-probabilities, both (B,).
    """
    p = torch.softmax(scores.float(), dim=-1)
    reached = p.cumsum(-1, dtype=torch.float64)
    # the sum is not 1 to the last bit, and a product with it may round up to the sum itself
    target = torch.minimum(uniforms * reached[:, -1], torch.nextafter(reached[:, -1], torch.zeros_like(uniforms)))
    ids = torch.searchsorted(reached, target[:, None], right=True)
    return ids.squeeze(1), p.gather(1, ids).squeeze(1).log()


class Uniforms:
    """Random numbers of one episode, apart from those of all others: what it draws does not depend on which episodes
    are in the batch beside it, nor on when it began."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def of_reply(self, tokens: int) -> list[float]:
        """Numbers in [0, 1), one for each token that a reply may have."""
        numbers: list[float] = torch.rand(tokens, generator=self._generator, dtype=torch.float64).tolist()
        return numbers


def uniforms_of(episodes: int) -> list[Uniforms]:
    """Random numbers of so many episodes; torch's global random state says which, and moves on by one draw."""
    return [Uniforms(seed) for seed in torch.randint(2**62, (episodes,)).tolist()]
