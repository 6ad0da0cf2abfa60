"""An agenda-based simulated customer (Schatzmann et al. 2007, "Agenda-based user simulation for bootstrapping a POMDP
dialogue system").

The goal holds constraints (what the service must be) and requests (what the customer wants to be told). The agenda is a
stack of acts still to be done; what the agent says takes acts off it or puts acts on it, and the customer speaks from
its top. Patience runs out with every turn that does not help. What a customer may do beyond that is `Behaviour`; its
chances are drawn from a stream of their own, so a seed's goal is the same with and without.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from envs.domain import Domain, Understood, fill

HELD_OUT_BUCKETS = 5
"""One goal in so many is kept for evaluation."""


@dataclass(frozen=True, slots=True)
class Goal:
    """What a customer wants."""

    constraints: dict[str, str]
    requests: tuple[str, ...]

    def is_held_out(self, domain: str) -> bool:
        """Whether the goal is kept for evaluation: a property of the goal alone, the same in every process."""
        text = f"{domain}|{sorted(self.constraints.items())}|{sorted(self.requests)}"
        return zlib.crc32(text.encode()) % HELD_OUT_BUCKETS == 0


def draw_goal(domain: Domain, rng: random.Random, held_out: bool) -> Goal:
    """A goal that some entity fulfils, of those held out or of the others."""
    for _ in range(1000):
        entity = rng.choice(domain.entities)
        slots = list(domain.constraints)
        wanted = sorted(rng.sample(slots, rng.randint(max(len(slots) - 1, 1), len(slots))), key=slots.index)
        asked = rng.sample(list(domain.requests), min(rng.randint(1, 2), len(domain.requests)))
        goal = Goal({slot: entity[slot] for slot in wanted}, tuple(asked))
        if goal.is_held_out(domain.name) == held_out:
            return goal
    raise ValueError(f"domain {domain.name!r} has too few goals to keep some for evaluation: give it more entities")


@dataclass(frozen=True, slots=True)
class Behaviour:
    """How customers behave. Probabilities are in [0, 1], those per turn below 1."""

    misunderstanding: float = 0.05
    """Probability per turn that the customer does not hear the agent."""
    patience: int = 3
    """Turns that do not help before the customer leaves; for each service anew."""
    corrections: float = 0.0
    """Probability that the first wish is said wrongly, and put right in the next turn."""
    out_of_scope: float = 0.0
    """Probability per turn of a remark on something else instead of an answer; what the agent said is lost."""
    sold_out: float = 0.0
    """Probability of each entity that it is not to be had in this episode; the desk screen knows."""
    changes_of_mind: float = 1.0
    """Probability that a customer who is told rightly that nothing fits changes one wish; the others leave."""
    impatience: bool = False
    """Whether a customer whose patience runs down says so."""
    styles: tuple[str, ...] = ()
    """Ways of speaking, of the speech file's `styles`; each customer has one of them. "plain" is the usual one."""

    def __post_init__(self) -> None:
        for name in ("misunderstanding", "out_of_scope"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: expected a probability in [0, 1)")
        for name in ("corrections", "sold_out", "changes_of_mind"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}: expected a probability in [0, 1]")
        if self.patience < 1:
            raise ValueError(f"patience is {self.patience}: expected at least 1")


class Act(NamedTuple):
    """An entry of the agenda."""

    kind: Literal["inform", "request", "book"]
    slot: str = ""


class Customer:
    """One simulated customer in one dialogue.

    Args:
        behaviour: what the customer may do.
        chance: where the chances of `behaviour` are drawn from, but for misunderstanding.
        style: the customer's way of speaking.
    """

    def __init__(
        self,
        domain: Domain,
        goal: Goal,
        rng: random.Random,
        behaviour: Behaviour,
        chance: random.Random,
        style: str = "plain",
    ) -> None:
        self.domain, self.goal, self.rng, self.chance, self.behaviour = domain, goal, rng, chance, behaviour
        self.patience = behaviour.patience
        self.phrases = {**domain.speech["customer"], **domain.speech["styles"].get(style, {})}
        self.sold_out = frozenset(e["name"] for e in domain.entities if chance.random() < behaviour.sold_out)
        self.flexible = chance.random() < behaviour.changes_of_mind
        self._slips = chance.random() < behaviour.corrections
        self._to_correct: str | None = None  # the slot that was said wrongly
        requests = [Act("request", slot) for slot in reversed(goal.requests)]
        informs = [Act("inform", slot) for slot in goal.constraints]
        rng.shuffle(informs)
        self.agenda: list[Act] = [Act("book"), *requests, *informs]  # the top is at the end
        self.accepted: str | None = None
        self.offered: str | None = None
        self.informed = False
        """Whether an offer has fitted every constraint and was to be had."""
        self.booked: str | None = None
        self.asked_in_vain: set[str] = set()
        self.over = False

    @property
    def success(self) -> bool:
        """The service is booked, fits every constraint, and every request was answered truly."""
        return self.booked is not None and not self.agenda

    @property
    def matched(self) -> float:
        """Share of the constraints that the last offer fulfils, in [0, 1]."""
        if self.offered is None:
            return 0.0
        entity = self.domain.by_name[self.offered]
        return sum(entity[slot] == value for slot, value in self.goal.constraints.items()) / len(self.goal.constraints)

    @property
    def fewest_turns(self) -> int | None:
        """Turns of an agent that knows everything until success; None where there is no way to it."""
        if self._available(self.goal.constraints):
            return 2 + bool(self.goal.requests)
        return 3 + bool(self.goal.requests) if self.flexible and self._changes() else None

    def _available(self, constraints: Mapping[str, str]) -> bool:
        return any(entity["name"] not in self.sold_out for entity in self.domain.matching(constraints))

    def _changes(self) -> list[dict[str, str]]:
        """The goal's constraints with one value changed, where something is then to be had."""
        wanted = self.goal.constraints
        changed = [
            {**wanted, slot: value}
            for slot in wanted
            for value in self.domain.constraints[slot]["values"]
            if value != wanted[slot]
        ]
        return [constraints for constraints in changed if self._available(constraints)]

    def open(self, again: bool = False) -> str:
        """The first thing that the customer says: some of the constraints; `again`, after another service."""
        first = self.agenda[-1].slot
        others = [value for value in self.domain.constraints[first]["values"] if value != self.goal.constraints[first]]
        wrong = self.chance.choice(others) if self._slips and others else None
        self._to_correct = first if wrong else None
        told = [self._inform(first, wrong)]
        if self.agenda[-1].kind == "inform" and self.rng.random() < 0.4:
            join = self._pick("join")
            told = [fill(join, first=told[0], second=self._inform(self.agenda[-1].slot))]
        return self._say("next" if again else "opening", inform=told[0])

    def respond(self, text: str) -> str:
        """Hear the agent's text and answer it; `over` says afterwards whether that was the last word."""
        if self.rng.random() < self.behaviour.misunderstanding:
            return self._say("mishear")
        if self.chance.random() < self.behaviour.out_of_scope:
            return self._say("aside")
        patience = self.patience
        answer = self._react(self.domain.understand(text))
        if self.over:
            return answer
        if self._to_correct is not None:
            slot, self._to_correct = self._to_correct, None
            correction = self._say("correct", inform=self._inform(slot) + self.glue["stop"])
            if self.patience == patience:
                return self._join(correction, answer)
            self.patience = patience  # the agent could not know better
            return correction
        if self.patience == patience:
            return answer
        if self.patience <= 0:
            self.over = True
            return self._say("leave")
        return self._join(self._say("impatient"), answer) if self.behaviour.impatience else answer

    def _react(self, heard: Understood) -> str:
        name = heard.names[-1] if heard.names else None
        if "book" in heard.signs:
            return self._hear_booking(name or self.accepted)
        if "bye" in heard.signs:
            self.over = True
            return self._say("unfinished")
        if "none" in heard.signs and name is None:
            return self._hear_that_nothing_fits()
        if name is not None and name != self.accepted:
            return self._hear_offer(name)
        if self.accepted is not None and heard.facts:
            return self._hear_facts(heard.facts)
        asked = [slot for slot in heard.slots if slot in self.domain.constraints]
        if asked and self.accepted is None:
            return self._hear_question(asked)
        return self._hear_nothing("confused")

    def _hear_booking(self, name: str | None) -> str:
        if name is None or name != self.accepted or self.agenda != [Act("book")]:
            return self._hear_nothing("early")
        self.agenda.pop()
        self.booked, self.over = name, True
        return self._say("thanks")

    def _hear_that_nothing_fits(self) -> str:
        if self.accepted is not None or self._available(self.goal.constraints):
            return self._hear_nothing("confused")
        changes = self._changes()
        if not (self.flexible and changes):
            self.over = True
            return self._say("leave")
        before, after = self.goal.constraints, self.chance.choice(changes)
        self.goal = replace(self.goal, constraints=after)
        changed = next(slot for slot in after if after[slot] != before[slot])
        return self._say("change", inform=self._inform(changed) + self.glue["stop"])

    def _hear_offer(self, name: str) -> str:
        self.offered = name
        entity = self.domain.by_name[name]
        violated = [slot for slot, value in self.goal.constraints.items() if entity[slot] != value]
        if violated:
            self.patience -= 1
            self.accepted = None
            return self._say("reject", inform=self._inform(self.rng.choice(violated)) + self.glue["stop"])
        if name in self.sold_out:
            self.patience -= 1
            self.accepted = None
            return self._say("sold_out", name=name)
        self.accepted, self.informed = name, True
        self.agenda = [act for act in self.agenda if act.kind != "inform"]
        return self._join(self._say("accept", name=name), self._next())

    def _hear_facts(self, facts: Mapping[str, set[str]]) -> str:
        assert self.accepted is not None
        entity = self.domain.by_name[self.accepted]
        if any(values != {entity[slot]} for slot, values in facts.items()):
            return self._hear_nothing("wrong")
        answered = [act for act in self.agenda if act.kind == "request" and act.slot in facts]
        if not answered:
            return self._hear_nothing("confused")
        self.agenda = [act for act in self.agenda if act not in answered]
        return self._next()

    def _hear_question(self, slots: list[str]) -> str:
        told = []
        for slot in slots:
            if Act("inform", slot) in self.agenda:
                told.append(self._inform(slot) + self.glue["stop"])
            elif slot in self.goal.constraints:
                self.patience -= 1
                told.append(self._say("repeat", inform=self._inform(slot) + self.glue["stop"]))
            else:
                self.patience -= slot in self.asked_in_vain
                self.asked_in_vain.add(slot)
                told.append(self._say("any", slot=slot))
        return self._join(*told)

    def _hear_nothing(self, complaint: str) -> str:
        """Something that does not help: complain, and say again what is wanted, once a service is agreed on."""
        self.patience -= 1
        said = self._say(complaint)
        return self._join(said, self._next()) if self.accepted is not None else said

    def _next(self) -> str:
        """What stands on top of the agenda; requests are made together."""
        requests = [act.slot for act in reversed(self.agenda) if act.kind == "request"]
        if not requests:
            return self._say("book", name=self.accepted or "")
        asked = [self.rng.choice(self.domain.requests[slot]["customer_asks"]) for slot in requests]
        return self._say("request", requests=self.glue["and"].join(asked))

    def _inform(self, slot: str, value: str | None = None) -> str:
        """Say one constraint, or another value of its slot, and take it off the agenda."""
        if Act("inform", slot) in self.agenda:
            self.agenda.remove(Act("inform", slot))
        spec = self.domain.constraints[slot]
        way = self.rng.choice(spec["values"][value or self.goal.constraints[slot]])
        said = fill(self.rng.choice(spec["customer_says"]), value=way)
        return self._say("inform", inform=said, value=way) if "inform" in self.phrases else said

    @property
    def glue(self) -> dict[str, str]:
        """What stands between phrases and after them."""
        return self.domain.speech["glue"]  # type: ignore[no-any-return]

    def _join(self, *sentences: str) -> str:
        return self.glue["space"].join(sentences)

    def _pick(self, key: str) -> str:
        return str(self.rng.choice(self.phrases[key]))

    def _say(self, key: str, **values: str) -> str:
        return fill(self._pick(key), **values, thing=self.domain.thing, article=self.domain.article)
