"""The next reply in a corpus of dialogues."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

from envs.core import Message, StepResult, TextEnv
from envs.spaces import ROLES, Text
from envs.vector import vector_entry_point

EXAMPLES: list[tuple[list[Message], str]] = [
    ([{"role": "user", "content": "where is my order ?"}], "may i have the order number , please ?"),
    ([{"role": "user", "content": "i want my money back"}], "i am sorry to hear that . what went wrong ?"),
    (
        [
            {"role": "user", "content": "do you ship to norway ?"},
            {"role": "assistant", "content": "yes , we do ."},
            {"role": "user", "content": "how long does it take ?"},
        ],
        "it takes about five days .",
    ),
]


class DialogueEnv(TextEnv):
    """Answer the last message of a dialogue; the episode ends with the reply.

    | | |
    |---|---|
    | action | `Text`: the reply |
    | observation | the messages of the dialogue so far |
    | reward | F1 over the words of reply and reference (0 without one), unless a reward function is given |
    | columns | `reference` (the corpus's own reply, or None) |
    | seed | seed i is dialogue i, modulo their number |

    Args:
        prompts: dialogues up to where the reply is wanted; a few built-in ones if None.
        references: the corpus's reply to each.
    """

    def __init__(
        self,
        prompts: Sequence[Sequence[Message]] | None = None,
        references: Sequence[str | None] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if prompts is None:
            prompts, references = [prompt for prompt, _ in EXAMPLES], [reply for _, reply in EXAMPLES]
        if not len(prompts):
            raise ValueError("prompts is empty: expected at least one dialogue")
        if references is not None and len(references) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts and {len(references)} references: expected one per prompt")
        self.prompts, self.references = prompts, references
        self.action_space = Text()
        self._index, self._text = 0, ""

    def _begin(self, seed: int, rng: random.Random) -> list[Message]:
        self._index, self._text = seed % len(self.prompts), ""
        prompt = self.prompts[self._index]
        if not prompt or any(message.get("role") not in ROLES for message in prompt):
            raise ValueError(f"prompt {self._index} is {prompt!r}: expected messages with roles of {', '.join(ROLES)}")
        return [{"role": message["role"], "content": message["content"]} for message in prompt]

    def _reply(self, action: Any) -> tuple[Message, StepResult]:
        self._text = action
        return {"role": "assistant", "content": action}, StepResult([], True, False, {})

    def _columns(self) -> dict[str, Any]:
        return {"reference": None if self.references is None else self.references[self._index]}

    def own_reward(self) -> float:
        reference = self._columns()["reference"]
        return 0.0 if reference is None else word_f1(self._text, reference)


make_vec = vector_entry_point(DialogueEnv)


def word_f1(text: str, reference: str) -> float:
    """Harmonic mean of precision and recall over lower-case words, each counted as often as it stands there (the
    answer measure of SQuAD, Rajpurkar et al. 2016)."""
    words, wanted = Counter(text.lower().split()), Counter(reference.lower().split())
    common = (words & wanted).total()
    return 2 * common / (words.total() + wanted.total()) if common else 0.0
