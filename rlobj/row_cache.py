"""A key-value cache of rows that grow each at its own pace.

The library's caches give all rows one length: rows that wait for others take up masked places, every new token copies
the whole cache, and a new text can not take the place of one that has ended. Here token t of a row lies at place t of
its row, whatever the others do, and nothing is copied when a row grows.

Legend: B rows, P places of a row, R rows that are read now, S tokens read now, H heads, D size of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import DynamicLayer


class RowCache(Cache):
    """Keys and values of B rows. `read` passes tokens through a policy and appends them to some of the rows.

    Args:
        policy: a causal language model with full attention in all its layers.
        rows: B.
        longest: most tokens that a row will have.

    Raises:
        ValueError: the policy attends to less than the whole of a row.
    """

    def __init__(self, policy: PreTrainedModel, rows: int, longest: int) -> None:
        config = policy.config.get_text_config()
        _require_full_attention(config, longest)
        self.policy, self.device = policy, policy.device
        self.lengths = [0] * rows
        self.ids = torch.zeros(rows, 0, dtype=torch.long, device=self.device)
        """(B, P)"""
        self.places = 0
        """how many there are in each row; the last one takes what is thrown away"""
        self.at = torch.empty(0, dtype=torch.long)
        """where the tokens read now are put, (R·S,), rows and places counted in one"""
        self.rows: Tensor | None = None
        """which rows are read now, (R,); None for all"""
        self.reach = 0
        """how many places those rows take up, with what they read now"""
        super().__init__(layers=[_RowLayer(self) for _ in range(config.num_hidden_layers)])

    def read(self, tokens: Sequence[Sequence[int]], rows: Sequence[int] | None = None) -> Tensor:
        """Append tokens to rows; return logits behind the last token of each, (R, V).

        Args:
            tokens: of each row of `rows`; at least one for each.
            rows: their indices, rising; None for all.
        """
        rows = range(len(self.lengths)) if rows is None else rows
        width = max(map(len, tokens))
        padded = torch.tensor([[0] * (width - len(t)) + list(t) for t in tokens], device=self.device)
        # position of each token in its row; what stands before the first one is negative
        begins = [self.lengths[row] - width + len(t) for row, t in zip(rows, tokens, strict=True)]
        positions = torch.tensor(begins, device=self.device)[:, None] + torch.arange(width, device=self.device)
        if any(len(t) < width for t in tokens):
            starts = torch.tensor([self.lengths[row] for row in rows], device=self.device)
            positions = positions.masked_fill(positions < starts[:, None], -1)
        return self._forward(padded, positions, rows, [len(t) for t in tokens])

    def _forward(self, ids: Tensor, positions: Tensor, rows: Sequence[int], counts: Sequence[int]) -> Tensor:
        for row, count in zip(rows, counts, strict=True):
            self.lengths[row] += count
        self.reach = max(self.lengths[row] for row in rows)
        if self.reach >= self.places:
            self._grow(max(self.reach + 1, 2 * self.places))
        index = torch.tensor(list(rows), device=self.device)
        self.rows = None if len(rows) == len(self.lengths) else index
        places = torch.where(positions < 0, self.places - 1, positions)
        self.at = (index[:, None] * self.places + places).flatten()
        self.ids.view(-1).index_copy_(0, self.at, ids.flatten())
        positions = positions.clamp(min=0)
        output = self.policy(
            input_ids=ids,
            attention_mask=self._attention(positions),
            position_ids=positions,
            past_key_values=self,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: Tensor = output.logits[:, -1]
        return logits

    def _attention(self, positions: Tensor) -> Tensor:
        """What is added to attention scores, (R, 1, S, reach): a token sees its row up to its own position."""
        hidden = torch.arange(self.reach, device=self.device) > positions[:, None, :, None]
        dtype = self.policy.dtype
        if torch.is_autocast_enabled(self.device.type):
            dtype = torch.get_autocast_dtype(self.device.type)
        return torch.zeros(hidden.shape, dtype=dtype, device=self.device).masked_fill(hidden, torch.finfo(dtype).min)

    def history(self) -> Tensor:
        """The tokens of every row, (B, longest); behind its last, a row repeats its first."""
        lengths = torch.tensor(self.lengths, device=self.device)
        ids = self.ids[:, : int(lengths.max())]
        beyond = torch.arange(ids.size(1), device=self.device) >= lengths[:, None]
        return torch.where(beyond, ids[:, :1], ids)

    def copy(self, source: int, target: int, length: int) -> None:
        """Let row `target` begin with the first `length` tokens of row `source`."""
        self.lengths[target] = length
        for kept in (self.ids, *(kept for layer in self.layers for kept in (layer.keys, layer.values))):
            kept[target, :length] = kept[source, :length]

    def clear(self, row: int) -> None:
        """Empty a row, for another text."""
        self.lengths[row] = 0

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all rows but these."""
        index = torch.tensor(list(rows), device=self.device)
        self.lengths = [self.lengths[row] for row in rows]
        self.ids = self.ids[index]
        for layer in self.layers:
            layer.keys, layer.values = layer.keys[index], layer.values[index]

    def _grow(self, places: int) -> None:
        self.ids = _wider(self.ids, places)
        for layer in self.layers:
            if layer.is_initialized:
                layer.keys, layer.values = (_wider(kept, places) for kept in (layer.keys, layer.values))
        self.places = places


class _RowLayer(DynamicLayer):
    """Keys and values of one layer, (B, P, H, D) each."""

    def __init__(self, cache: RowCache) -> None:
        super().__init__()
        self.cache = cache

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values = (self._empty(states) for states in (key_states, value_states))
        self.is_initialized = True

    def _empty(self, states: Tensor) -> Tensor:
        # zeros: what a mask hides must still be finite
        return states.new_zeros(len(self.cache.lengths), self.cache.places, states.size(1), states.size(3))

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Put states (R, H, S, D) where they belong; return those of the rows so far, (R, H, reach, D) each."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        return self._put(self.keys, key_states), self._put(self.values, value_states)

    def _put(self, kept: Tensor, states: Tensor) -> Tensor:
        kept.view(-1, *kept.shape[2:]).index_copy_(0, self.cache.at, states.transpose(1, 2).flatten(0, 1))
        taken = kept[:, : self.cache.reach]
        return (taken if self.cache.rows is None else taken[self.cache.rows]).transpose(1, 2)

    def get_seq_length(self) -> int:
        return self.cache.reach


def _wider(kept: Tensor, places: int) -> Tensor:
    wider = kept.new_zeros(kept.size(0), places, *kept.shape[2:])
    wider[:, : kept.size(1)] = kept
    return wider


def _require_full_attention(config: Any, longest: int) -> None:
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    window = getattr(config, "sliding_window", None)
    if kinds <= {"full_attention", "sliding_attention"} and (window is None or window >= longest):
        return
    if kinds == {"full_attention"} and getattr(config, "layer_types", None):
        return
    seen = f"its layers are {', '.join(sorted(kinds))}" + (f" with a window of {window} tokens" if window else "")
    raise ValueError(
        f"the policy is a {config.model_type} that does not attend to a whole dialogue ({seen}): episodes of up to "
        f"max_length {longest} tokens need full attention; choose another model, or a max_length within the window"
    )
