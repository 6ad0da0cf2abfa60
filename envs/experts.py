"""Demonstrations by scripted agents, and preference pairs: customer service has one of adjustable skill here; another
environment may offer its own by a method `expert(rng)`, whose `act(env, customer_says)` gives the agent's next words.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import gymnasium

from envs.core import FIRST_HELD_OUT_SEED, Message, TextEnv
from envs.customer_service import CustomerServiceEnv
from envs.domain import fill

MIXED_SKILL = (0.4, 1.0)
"""Skill of demonstrations is drawn uniformly from here: agents differ, and few are perfect."""

CEILING_SEEDS = range(FIRST_HELD_OUT_SEED, FIRST_HELD_OUT_SEED + 500)


class Agent(Protocol):
    """A scripted agent in the middle of one dialogue."""

    def act(self, env: Any, customer_says: str) -> str:
        """The agent's next words."""


class Expert:
    """Acts by the customer's last words and the desk screen, as any agent could.

    Args:
        skill: probability in [0, 1] of doing the right thing at each turn; otherwise one of the usual mistakes is
            made: a hasty offer, a needless question, a wrong answer, empty words, a rude goodbye.
    """

    def __init__(self, skill: float, rng: random.Random) -> None:
        if not 0 <= skill <= 1:
            raise ValueError(f"skill is {skill}: expected a probability in [0, 1]")
        self.skill, self.rng = skill, rng
        self._last = ""

    def act(self, env: CustomerServiceEnv, customer_says: str) -> str:
        """The agent's next words."""
        heard = env.domain.understand(customer_says)
        if "again" in heard.signs and self._last:
            return self._last
        if "aside" in heard.signs and self._last:
            return self._pick(env, "back", last=self._last)
        requests = [slot for slot in heard.slots if slot in env.domain.requests]
        if "wants_booking" in heard.signs and env.desk.offer is not None:
            right, mistakes = self._book(env), [self._filler, self._bye, self._other_offer]
        elif requests and env.desk.offer is not None:
            right, mistakes = self._answer(env, requests, wrong=False), [
                lambda env: self._answer(env, requests, wrong=True), self._filler, self._book]  # fmt: skip
        elif not env.desk.found:
            right, mistakes = self._pick(env, "none"), [self._other_offer, self._ask_again, self._filler]
        elif env.desk.missing:
            right, mistakes = self._ask(env, env.desk.missing[0]), [self._offer, self._ask_again, self._filler]
        else:
            right, mistakes = self._offer(env), [self._other_offer, self._ask_again, self._filler]
        self._last = right if self.rng.random() < self.skill else self.rng.choice(mistakes)(env)
        return self._last

    def _pick(self, env: CustomerServiceEnv, key: str, **values: str) -> str:
        return fill(self.rng.choice(env.domain.speech["agent"][key]), **values)

    def _ask(self, env: CustomerServiceEnv, slot: str) -> str:
        return str(self.rng.choice(env.domain.constraints[slot]["agent_asks"]))

    def _ask_again(self, env: CustomerServiceEnv) -> str:
        return self._ask(env, self.rng.choice(list(env.desk.known) or list(env.domain.constraints)))

    def _offer(self, env: CustomerServiceEnv) -> str:
        return self._pick(env, "offer", name=env.desk.found[0]) if env.desk.found else self._other_offer(env)

    def _other_offer(self, env: CustomerServiceEnv) -> str:
        return self._pick(env, "offer", name=self.rng.choice(env.domain.entities)["name"])

    def _answer(self, env: CustomerServiceEnv, slots: list[str], wrong: bool) -> str:
        facts = env.desk.facts()
        if wrong:
            slot = self.rng.choice(slots)
            facts[slot] = self.rng.choice([v for v in env.domain.requests[slot]["values"] if v != facts[slot]])
        answers = [fill(self.rng.choice(env.domain.requests[s]["agent_says"]), value=facts[s]) for s in slots]
        return self._pick(env, "answer", answers=env.domain.speech["glue"]["and"].join(answers))

    def _book(self, env: CustomerServiceEnv) -> str:
        return self._pick(env, "book", name=env.desk.offer or "")

    def _filler(self, env: CustomerServiceEnv) -> str:
        return self._pick(env, "filler")

    def _bye(self, env: CustomerServiceEnv) -> str:
        return self._pick(env, "bye")


def _dialogue(env: TextEnv, expert: Agent, seed: int) -> list[Message]:
    env.reset(seed=seed)
    messages = list(env._messages)
    while True:
        customer_says = next(m["content"] for m in reversed(messages) if m["role"] == "user")
        text = expert.act(env, customer_says)
        result = env.act(text)
        messages += [{"role": "assistant", "content": text}, *result.new_messages]
        if result.terminated or result.truncated:
            return messages


def demonstrations(
    make_env: Callable[[], gymnasium.Env[Any, Any]], n: int, skill: float | None = None, seed: int = 0
) -> list[dict[str, Any]]:
    """Dialogues of experts with customers of training seeds.

    Args:
        skill: of every expert; None draws each one's from MIXED_SKILL. An environment's own expert has none.

    Returns:
        n rows with `messages`, `success`, `seed`; the same for the same arguments.
    """
    return [
        {"messages": messages, "success": env.episode.columns["success"], "seed": episode}
        for env, messages, episode in _dialogues(make_env, n, skill, random.Random(f"demonstrations {seed}"))
    ]


def preference_pairs(make_env: Callable[[], gymnasium.Env[Any, Any]], n: int, seed: int = 0) -> list[dict[str, Any]]:
    """Pairs of dialogues with the same customer, the better one first.

    Better is what did more for the customer: success, then the share of constraints that the offer fulfilled, then
    fewer turns. Equal ones make no pair.

    Returns:
        n rows with `chosen` and `rejected`, both whole dialogues.

    Raises:
        ValueError: the environment is not customer service.
    """
    made = make_env().unwrapped
    if not isinstance(made, CustomerServiceEnv):
        raise ValueError(f"make_env makes {made!r}, whose expert always acts alike: its dialogues make no pairs")
    rng = random.Random(f"preferences {seed}")
    pairs: list[dict[str, Any]] = []
    while len(pairs) < n:
        episode = rng.randrange(FIRST_HELD_OUT_SEED)
        ranked = []
        for env, messages, _ in _dialogues(make_env, 2, None, rng, episode):
            columns = env.episode.columns
            ranked.append(((columns["success"], columns["matched"], -columns["turns"]), messages))
        (rank_a, a), (rank_b, b) = ranked
        if rank_a != rank_b:
            pairs.append({"chosen": a, "rejected": b} if rank_a > rank_b else {"chosen": b, "rejected": a})
    return pairs


def _dialogues(
    make_env: Callable[[], gymnasium.Env[Any, Any]],
    n: int,
    skill: float | None,
    rng: random.Random,
    episode: int | None = None,
) -> Iterator[tuple[TextEnv, list[Message], int]]:
    env = make_env().unwrapped
    if not isinstance(env, TextEnv) or not has_expert(type(env)):
        raise TypeError(f"make_env makes {env!r}: expected CustomerServiceEnv, or an environment with a method expert")
    for _ in range(n):
        chosen = rng.randrange(FIRST_HELD_OUT_SEED) if episode is None else episode
        agent: Agent
        if isinstance(env, CustomerServiceEnv):
            agent = Expert(rng.uniform(*MIXED_SKILL) if skill is None else skill, random.Random(rng.getrandbits(64)))
        else:
            agent = env.expert(random.Random(rng.getrandbits(64)))  # type: ignore[attr-defined]
        yield env, _dialogue(env, agent, chosen), chosen


def ceiling(make_env: Callable[[], gymnasium.Env[Any, Any]], seeds: Sequence[int] = CEILING_SEEDS) -> float | None:
    """Share of the episodes of `seeds` that can end in success at all: nothing is played, what each customer wants is
    held against what is to be had. None for an environment that does not know (it has no method `can_succeed`).
    """
    env: Any = make_env().unwrapped
    if not hasattr(env, "can_succeed"):
        return None
    possible = 0
    for seed in seeds:
        env.reset(seed=seed)
        possible += env.can_succeed()
    return possible / len(seeds)


def has_expert(environment: type) -> bool:
    """Whether `demonstrations` can be made in an environment of this class."""
    return issubclass(environment, CustomerServiceEnv) or hasattr(environment, "expert")
