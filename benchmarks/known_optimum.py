"""Two small environments whose best return is known, and policies that begin from nothing: does an estimator learn?

`Bandit`: a contextual bandit for an encoder policy; the best arm of every context stands in a table. `Chain`: a walk
for a causal policy, one step a token, whose best return dynamic programming gives, and where what pays at once pays
little.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import product
from typing import Any

import gymnasium
import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from envs import StepResult, TextEnv
from envs.choice import ChoiceEnv, Example
from envs.core import Message
from envs.spaces import Text
from rlobj.chat_format import END_TOKEN, PAD_TOKEN, ROLE_TOKENS
from rlobj.policies import with_chat_format

CONTEXTS = [f"{colour} {shape}" for colour, shape in product(("red", "blue", "green", "grey"), ("cat", "dog", "owl"))]
LETTERS = ("f", "t")
ARMS = [f"arm {number}" for number in range(5)]


class Bandit(ChoiceEnv):
    """Two words, five arms, each of which pays 1 with a probability that depends on both words together.

    Args:
        expected: pay the probability itself: what an arm is worth, without chance.
    """

    chances = np.random.default_rng(0).uniform(0.1, 0.5, (len(CONTEXTS), len(ARMS)))
    """of each arm in each context, (contexts, arms)"""
    chances[range(len(CONTEXTS)), np.random.default_rng(1).integers(len(ARMS), size=len(CONTEXTS))] = 0.9

    def __init__(self, expected: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.expected, self._context, self._luck, self._arm = expected, 0, 0.0, 0
        self._choose_among(ARMS)

    def examples(self, seeds: Iterable[int]) -> list[Example]:
        return [(self._begin(seed, random.Random(seed)), int(self.chances[self._context].argmax())) for seed in seeds]

    def _begin(self, seed: int, rng: random.Random) -> list[Message]:
        self._context, self._luck = rng.randrange(len(CONTEXTS)), rng.random()
        return [{"role": "user", "content": CONTEXTS[self._context]}]

    def _reply(self, action: Any) -> tuple[Message, StepResult]:
        self._arm = int(action)
        return {"role": "assistant", "content": ARMS[self._arm]}, StepResult([], True, False, {})

    def _columns(self) -> dict[str, Any]:
        chances = self.chances[self._context]
        return {"worth": float(chances[self._arm]), "regret": float(chances.max() - chances[self._arm])}

    def own_reward(self) -> float:
        chance = float(self.chances[self._context, self._arm])
        return chance if self.expected else float(self._luck < chance)

    @classmethod
    def best_return(cls) -> float:
        """Of the policy that knows every arm."""
        return float(cls.chances.max(axis=1).mean())


class Chain(TextEnv):
    """A walk along places 0 to N − 1, one letter a step: `f` goes forward and earns nothing, `t` stays and takes
    place / (N − 1).

    A reply is up to `letters` letters; whatever else is said is lost. After each reply the wind blows the walker back
    by 0, 1 or 2 places, and the next message says where it stands. What pays at once, `t`, pays far less in the end
    than to go forward first.
    """

    PLACES, WIND = 6, (0, 1, 2)

    def __init__(self, letters: int = 4, turns: int = 3, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.action_space, self.letters, self.turns = Text(), letters, turns
        self._place, self._left, self._rng = 0, 0, random.Random()

    def _begin(self, seed: int, rng: random.Random) -> list[Message]:
        self._place, self._left, self._rng = rng.choice(self.WIND), self.turns, rng
        return self._standing()

    def _standing(self) -> list[Message]:
        return [{"role": "user", "content": f"at {self._place}"}]

    def _reply(self, action: Any) -> tuple[Message, StepResult]:
        earned = 0.0
        for letter in action.split()[: self.letters]:
            if letter in LETTERS:
                self._place, reward = self.moved(self._place, letter)
                earned += reward
        self._left -= 1
        self._place = max(self._place - self._rng.choice(self.WIND), 0)
        over = self._left == 0
        answer = [] if over else self._standing()
        return {"role": "assistant", "content": action}, StepResult(answer, over, False, {}, earned)

    def _columns(self) -> dict[str, Any]:
        return {"place": self._place}

    def own_reward(self) -> float:
        return 0.0  # the turns have earned it all

    @classmethod
    def moved(cls, place: int, letter: str) -> tuple[int, float]:
        """The place behind a letter, and what the letter earns."""
        return (min(place + 1, cls.PLACES - 1), 0.0) if letter == "f" else (place, place / (cls.PLACES - 1))

    def best_return(self, letters: str = "ft") -> float:
        """Mean over starts of V(s) = max over letters of r + V(s'), the wind averaged out (Bellman 1957)."""

        @cache
        def value(place: int, left: int, turns: int) -> float:
            """With so many letters of this turn, and turns, still to come."""
            if left == 0:
                after = [max(place - wind, 0) for wind in self.WIND]
                return 0.0 if turns == 1 else sum(value(p, self.letters, turns - 1) for p in after) / len(after)
            moves = [self.moved(place, letter) for letter in letters]
            return max(reward + value(to, left - 1, turns) for to, reward in moves)

        return sum(value(place, self.letters, self.turns) for place in self.WIND) / len(self.WIND)


for _class in (Bandit, Chain):
    gymnasium.register(f"rlobj-benchmarks/{_class.__name__}-v0", entry_point=_class)


def word_tokenizer(words: Sequence[str], max_length: int) -> PreTrainedTokenizerFast:
    """A token for each word, so that a policy from nothing has few to choose from."""
    special = [PAD_TOKEN, END_TOKEN, *ROLE_TOKENS]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys([*special, *words]))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=PAD_TOKEN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return with_chat_format(tokenizer, max_length)
