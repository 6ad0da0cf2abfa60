"""Recommendation: a user, a slate of items, one of them to put forward, and a click or none."""

from __future__ import annotations

import json
import math
import os
import random
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from envs.choice import ChoiceEnv, Example
from envs.clicks import ClickModel, Impression, checked_impression
from envs.core import Message, StepResult
from envs.vector import vector_entry_point

CATALOGUE = Path(__file__).parent / "datasets" / "catalogue.json"


class RecommendationEnv(ChoiceEnv):
    """Put the item of a slate forward that the user will click.

    | | |
    |---|---|
    | action | `Discrete(size of the slate)`: an item's slot |
    | observation | one user message: what the user says or has read, then the numbered items |
    | reward | 1 for a click, 0 for none; with `expected`, the probability of a click |
    | columns | `success` (clicked), `probability` (of a click), `best` (no other item was more probable), `slot` |
    | seed | decides user, slate, and of every item whether it would be clicked; with `impressions`, seed i is the |
    | | user and slate of impression i, modulo their number |

    Args:
        impressions: users and slates from a log, all slates of one size; None makes them up from a built-in catalogue,
            whose slates hold one item of each of five shelves, in the order of the shelves.
        click_model: an `envs.clicks.ClickModel`, or the path of a saved one; None fits one to `impressions`, or takes
            the built-in users'.
        expected: whether the reward is the probability of a click instead of a click: the same mean, less variance.
    """

    def __init__(
        self,
        impressions: Sequence[Impression] | None = None,
        click_model: ClickModel | str | os.PathLike[str] | None = None,
        expected: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        slate_size = len(_catalogue()["shelves"])
        if impressions is not None:
            impressions = [checked_impression(row, f"impression {i}") for i, row in enumerate(impressions)]
            sizes = sorted({len(row["slate"]) for row in impressions})
            if len(sizes) != 1:
                raise ValueError(f"the slates of impressions have {sizes or 'no'} items: expected one size for all")
            slate_size, self.population = sizes[0], len(impressions)
        if isinstance(click_model, str | os.PathLike):
            click_model = ClickModel.load(click_model)
        if click_model is None:
            click_model = built_in_users() if impressions is None else ClickModel.fit(impressions)
        self.impressions, self.click_model = impressions, click_model
        self.expected = expected
        self._choose_among([f"item {slot + 1}" for slot in range(slate_size)])
        self._slate: list[str] = []
        self._probabilities: list[float] = []
        self._would_click: list[bool] = []
        self._slot = 0

    def examples(self, seeds: Iterable[int]) -> list[Example]:
        """What was clicked in the log; without one, what users clicked when slots were drawn at random."""
        examples = []
        for seed in seeds:
            messages = self._begin(seed, random.Random(seed))
            if self.impressions is not None:
                row = self.impressions[seed % len(self.impressions)]
                slot, click = row["chosen"], bool(row["click"])
            else:
                slot = random.Random(f"logged {seed}").randrange(len(self.action_names))
                click = self._would_click[slot]
            if click:
                examples.append((messages, slot))
        return examples

    def _begin(self, seed: int, rng: random.Random) -> list[Message]:
        if self.impressions is None:
            user, self._slate = _made_up(rng)
        else:
            row = self.impressions[seed % len(self.impressions)]
            user, self._slate = row["user"], row["slate"]
        self._probabilities = self.click_model.probabilities(user, self._slate)
        self._would_click = [rng.random() < p for p in self._probabilities]
        items = [f"{slot + 1}. {item}" for slot, item in enumerate(self._slate)]
        return [{"role": "user", "content": "\n".join([user, *items])}]

    def _reply(self, action: Any) -> tuple[Message, StepResult]:
        self._slot = int(action)
        return {"role": "assistant", "content": self._slate[self._slot]}, StepResult([], True, False, {})

    def _columns(self) -> dict[str, Any]:
        probability = self._probabilities[self._slot]
        return {
            "success": self._would_click[self._slot],
            "probability": probability,
            "best": probability == max(self._probabilities),
            "slot": self._slot,
        }

    def own_reward(self) -> float:
        return self._probabilities[self._slot] if self.expected else float(self._would_click[self._slot])


make_vec = vector_entry_point(RecommendationEnv)


@lru_cache(maxsize=1)
def _catalogue() -> dict[str, Any]:
    catalogue: dict[str, Any] = json.loads(CATALOGUE.read_text(encoding="utf-8"))
    return catalogue


def built_in_users() -> ClickModel:
    """The users of the built-in catalogue: they click items with a topic that they named, rather those above."""
    topics = [topic for shelf in _catalogue()["shelves"].values() for topic in shelf]
    return ClickModel(bias=-2.5, affinity=2.2, position=-0.1, idf=dict.fromkeys(topics, math.log(len(topics) / 2)))


def _made_up(rng: random.Random) -> tuple[str, list[str]]:
    """A user with two interests, and a slate with an item of each shelf; at least one item has such an interest."""
    shelves = list(_catalogue()["shelves"].values())
    interests = rng.sample([topic for shelf in shelves for topic in shelf], 2)
    shown = [rng.choice(list(shelf)) for shelf in shelves]
    while not set(shown) & set(interests):
        shown = [rng.choice(list(shelf)) for shelf in shelves]
    text = rng.choice(_catalogue()["said"]).format(*interests)
    items = [f"{rng.choice(shelf[topic])} ({topic})" for shelf, topic in zip(shelves, shown, strict=True)]
    return text[0].upper() + text[1:], items
