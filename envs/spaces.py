"""Spaces of text: any Unicode string, and conversations of chat messages.

Gymnasium's own `Text` knows a fixed set of characters; what people and language models write has no such set.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np

ROLES = ("system", "user", "assistant", "tool")

_SAMPLE_WORDS = ("yes", "no", "thank", "you", "hello", "客服", "grüße", "🙂", "order", "?", "42")


class Text(gymnasium.Space[str]):
    """Every string of at most `max_length` characters, the empty one included."""

    def __init__(self, max_length: int = 100_000, seed: int | np.random.Generator | None = None) -> None:
        if max_length < 1:
            raise ValueError(f"max_length is {max_length}: expected at least 1 character")
        self.max_length = max_length
        super().__init__(dtype=str, seed=seed)

    @property
    def is_np_flattenable(self) -> bool:
        return False

    def sample(self, mask: Any = None, probability: Any = None) -> str:
        """A few random words of several scripts."""
        words = self.np_random.choice(_SAMPLE_WORDS, size=int(self.np_random.integers(0, 8)))
        return " ".join(words)[: self.max_length]

    def contains(self, x: Any) -> bool:
        return isinstance(x, str) and len(x) <= self.max_length

    def __repr__(self) -> str:
        return f"Text(max_length={self.max_length})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Text) and self.max_length == other.max_length


class Chat(gymnasium.Space[list[dict[str, str]]]):
    """Every list of messages `{"role": …, "content": …}` with a role of ROLES and content of `text`."""

    def __init__(self, text: Text | None = None, seed: int | np.random.Generator | None = None) -> None:
        self.text = text or Text()
        super().__init__(seed=seed)

    @property
    def is_np_flattenable(self) -> bool:
        return False

    def seed(self, seed: int | None = None) -> Any:
        self.text.seed(seed)
        return super().seed(seed)

    def sample(self, mask: Any = None, probability: Any = None) -> list[dict[str, str]]:
        """A random conversation of up to four messages."""
        roles = self.np_random.choice(ROLES, size=int(self.np_random.integers(1, 5)))
        return [{"role": str(role), "content": self.text.sample()} for role in roles]

    def contains(self, x: Any) -> bool:
        return isinstance(x, Sequence) and not isinstance(x, str) and all(self._is_message(each) for each in x)

    def _is_message(self, x: Any) -> bool:
        return (
            isinstance(x, dict)
            and x.keys() == {"role", "content"}
            and x["role"] in ROLES
            and self.text.contains(x["content"])
        )

    def __repr__(self) -> str:
        return f"Chat({self.text})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Chat) and self.text == other.text
