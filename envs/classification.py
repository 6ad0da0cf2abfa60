"""Classification as action: one text, one label, one reward."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import gymnasium

from envs.core import Message, StepResult, TextEnv

EXAMPLES = [
    ("the parcel came a day early , thank you", "praise"),
    ("very friendly help on the phone", "praise"),
    ("everything works , i am happy", "praise"),
    ("the box was broken and nobody answers", "complaint"),
    ("i was charged twice this month", "complaint"),
    ("still waiting after two weeks", "complaint"),
    ("how do i change my address ?", "question"),
    ("when does the shop open on sunday ?", "question"),
    ("can i pay by card ?", "question"),
]


class ClassificationEnv(TextEnv):
    """Choose a label for a text; the episode ends with the choice.

    | | |
    |---|---|
    | action | `Discrete(len(label_names))`: a label's index |
    | observation | one user message, the text |
    | reward | 1 for the right label, 0 for another, unless a reward function is given |
    | columns | `label` (the right one's name), `success` |
    | seed | seed i is text i, modulo their number |

    Args:
        texts: the texts; a few built-in ones if None.
        labels: the right label of each, by name.
        label_names: all labels, in the order of the actions; None takes the sorted set of `labels`.
    """

    def __init__(
        self,
        texts: Sequence[str] | None = None,
        labels: Sequence[str] | None = None,
        label_names: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if (texts is None) != (labels is None):
            raise ValueError("texts and labels belong together: give both, or neither for the built-in examples")
        self.texts = [text for text, _ in EXAMPLES] if texts is None else texts
        self.labels = [label for _, label in EXAMPLES] if labels is None else labels
        if not self.texts or len(self.texts) != len(self.labels):
            raise ValueError(f"{len(self.texts)} texts and {len(self.labels)} labels: expected one label per text")
        self.label_names = sorted(set(self.labels)) if label_names is None else list(label_names)
        unknown = sorted(set(self.labels) - set(self.label_names))
        if unknown:
            raise ValueError(f"labels {unknown[:5]} are not in label_names {self.label_names[:10]}")
        self.action_space = gymnasium.spaces.Discrete(len(self.label_names))
        self._index, self._chosen = 0, ""

    def _begin(self, seed: int, rng: random.Random) -> list[Message]:
        self._index, self._chosen = seed % len(self.texts), ""
        return [{"role": "user", "content": self.texts[self._index]}]

    def _reply(self, action: Any) -> tuple[Message, StepResult]:
        self._chosen = self.label_names[int(action)]
        return {"role": "assistant", "content": self._chosen}, StepResult([], True, False, {})

    def _columns(self) -> dict[str, Any]:
        label = self.labels[self._index]
        return {"label": label, "success": self._chosen == label}

    def own_reward(self) -> float:
        return float(self._chosen == self.labels[self._index])
