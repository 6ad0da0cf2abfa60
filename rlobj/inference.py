"""What a trained model says of texts: in batches of like length, in the order that was asked.

Legend: K labels, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from reward_models.trained import as_plain_text, context_length
from rlobj.modes import evaluating

BATCH_TOKENS = 8192
"""Tokens of one forward pass, padding counted."""


def encode(tokenizer: PreTrainedTokenizerBase, text: str, limit: int | None) -> list[int]:
    """Ids of a text, cut behind `limit`; nothing that people write is read as a control token."""
    kept = {} if limit is None else {"truncation": True, "max_length": limit}
    return list(tokenizer(as_plain_text(tokenizer, text), **kept)["input_ids"])


def encode_words(
    tokenizer: PreTrainedTokenizerBase, words: Sequence[str], limit: int | None
) -> tuple[list[int], list[int | None]]:
    """Ids of a list of words, and for each token the word that it begins: None inside words and of special tokens.

    Raises:
        ValueError: the tokenizer does not know which word a token is of.
    """
    if not tokenizer.is_fast:
        raise ValueError(f"tokenizer {tokenizer.name_or_path!r} is not a fast one: it cannot say where words begin")
    kept = {} if limit is None else {"truncation": True, "max_length": limit}
    encoded = tokenizer([as_plain_text(tokenizer, word) for word in words], is_split_into_words=True, **kept)
    places = encoded.word_ids()
    begins = [
        place if place is not None and place not in places[:token] else None for token, place in enumerate(places)
    ]
    return list(encoded["input_ids"]), begins


def limit_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Longest text in tokens."""
    return context_length(model.config, tokenizer)


@torch.inference_mode()
def logits_of(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Sequence[int]]
) -> list[np.ndarray]:
    """Logits of each row of ids: (K,) of a classifier of texts, (T, K) of one of tokens."""
    found: list[np.ndarray] = [np.empty(0)] * len(rows)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    while order:
        size = max(BATCH_TOKENS // max(len(rows[order[-1]]), 1), 1)
        order, batch = order[:-size], order[-size:]
        width = max(max(len(rows[i]) for i in batch), 1)
        ids = torch.tensor([[*rows[i], *[tokenizer.pad_token_id] * (width - len(rows[i]))] for i in batch])
        mask = torch.tensor([[1] * len(rows[i]) + [0] * (width - len(rows[i])) for i in batch])
        with evaluating(model):
            logits = model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device)).logits
        for i, each in zip(batch, logits.float().cpu().numpy(), strict=True):
            found[i] = each[: len(rows[i])] if each.ndim == 2 else each
    return found


def tags_of(logits: np.ndarray, begins: Sequence[int | None], words: int, names: Sequence[str]) -> list[str]:
    """A tag for each word, from its first token; O for words that no token begins, such as those that were cut off.

    Args:
        logits: (T, K).
        begins: for each token the word that it begins, or None.
    """
    tags = ["O"] * words
    for token, word in enumerate(begins):
        if word is not None:
            tags[word] = names[int(logits[token].argmax())]
    return tags
