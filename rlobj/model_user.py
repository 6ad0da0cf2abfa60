"""A causal language model as the user of a dialogue: it sees the conversation with the roles swapped."""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence

import torch

from rlobj.chat_format import ChatFormat, Message
from rlobj.data import swap_roles
from rlobj.policies import load_causal, load_tokenizer


class ModelUser:
    """A `user` for `rlobj/Dialogue-v0`: a model that was trained on the users' side of dialogues (`data.role: user`).

    The same conversation is always answered in the same words.

    Args:
        path: directory or Hub id of the model.
        max_tokens: longest answer, in tokens.
        temperature: of sampling.
    """

    def __init__(self, path: str | os.PathLike[str], max_tokens: int = 40, temperature: float = 1.0) -> None:
        self.model = load_causal(path).eval()
        self.chat = ChatFormat(load_tokenizer(path))
        self.max_tokens, self.temperature = max_tokens, temperature

    @torch.no_grad()
    def __call__(self, messages: Sequence[Message]) -> str | None:
        """The user's next words; None when the model has none, or the conversation has outgrown it."""
        ids = self.chat.prompt_ids(swap_roles(messages))
        if len(ids) + self.max_tokens > self.model.config.get_text_config().max_position_embeddings:
            return None
        with torch.random.fork_rng():
            torch.manual_seed(zlib.crc32(repr(ids).encode()))
            prompt = torch.tensor([ids], device=self.model.device)
            output = self.model.generate(
                input_ids=prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=self.max_tokens,
                do_sample=True,
                temperature=self.temperature,
                top_k=0,
                eos_token_id=self.chat.end_id,
                pad_token_id=self.chat.tokenizer.pad_token_id,
            )
        return self.chat.decode(output[0, len(ids) :].tolist()) or None
