"""`ChoiceEnv`: text environments whose action is one of several named ones, taken once."""

from __future__ import annotations

import difflib
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

import gymnasium

from envs.core import Message, TextEnv

Example = tuple[list[Message], int]
"""An observation and the action that its label stands for: one pair (x, y) of ℓ."""


class ChoiceEnv(TextEnv):
    """A text, a choice among named actions, the end.

    Bandit feedback: only the reward of the chosen action is seen. What would have been right is in neither
    observations nor infos before the choice; it reaches a policy through `examples` alone, which are ℓ's.

    Subclasses call `_choose_among` and write `examples`.
    """

    action_names: list[str]
    """What each action is called, in their order: the classes of a classifier that is trained here."""
    population: int | None = None
    """How many different episodes there are: seed i is episode i modulo this. None: a new one for every seed."""

    @abstractmethod
    def examples(self, seeds: Iterable[int]) -> list[Example]:
        """Labelled examples from the episodes of `seeds`; one without a label gives none."""

    def _choose_among(self, names: Sequence[str]) -> None:
        self.action_names = list(names)
        self.action_space = gymnasium.spaces.Discrete(len(self.action_names))


def nearest(given: Any, known: Iterable[str]) -> str:
    """Say "; did you mean 'x'?" or nothing, to end a message with."""
    near = difflib.get_close_matches(str(given), list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
