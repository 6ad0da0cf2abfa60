"""An agenda-based simulated customer (Schatzmann et al. 2007, "Agenda-based user simulation for bootstrapping a POMDP
dialogue system").

The goal holds constraints (what the service must be) and requests (what the customer wants to be told). The agenda is a
stack of acts still to be done; what the agent says takes acts off it or puts acts on it, and the customer speaks from
its top. Patience runs out with every turn that does not help.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
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


class Act(NamedTuple):
    """An entry of the agenda."""

    kind: Literal["inform", "request", "book"]
    slot: str = ""


class Customer:
    """One simulated customer in one dialogue.

    Args:
        misunderstanding: probability that the customer does not hear what the agent said.
        patience: turns that do not help before the customer leaves.
    """

    def __init__(
        self, domain: Domain, goal: Goal, rng: random.Random, misunderstanding: float = 0.05, patience: int = 3
    ) -> None:
        self.domain, self.goal, self.rng = domain, goal, rng
        self.misunderstanding, self.patience = misunderstanding, patience
        requests = [Act("request", slot) for slot in reversed(goal.requests)]
        informs = [Act("inform", slot) for slot in goal.constraints]
        rng.shuffle(informs)
        self.agenda: list[Act] = [Act("book"), *requests, *informs]  # the top is at the end
        self.accepted: str | None = None
        self.offered: str | None = None
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

    def open(self) -> str:
        """The first thing that the customer says: some of the constraints."""
        told = [self._inform(self.agenda[-1].slot)]
        if self.agenda[-1].kind == "inform" and self.rng.random() < 0.4:
            join = self._pick("join")
            told = [fill(join, first=told[0], second=self._inform(self.agenda[-1].slot))]
        return self._say("opening", inform=told[0])

    def respond(self, text: str) -> str:
        """Hear the agent's text and answer it; `over` says afterwards whether that was the last word."""
        if self.rng.random() < self.misunderstanding:
            return self._say("mishear")
        heard = self.domain.understand(text)
        patience = self.patience
        answer = self._react(heard)
        if self.over:
            return answer
        if self.patience < patience and self.patience <= 0:
            self.over = True
            return self._say("leave")
        return answer

    def _react(self, heard: Understood) -> str:
        name = heard.names[-1] if heard.names else None
        if "book" in heard.signs:
            return self._hear_booking(name or self.accepted)
        if "bye" in heard.signs:
            self.over = True
            return self._say("unfinished")
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

    def _hear_offer(self, name: str) -> str:
        self.offered = name
        entity = self.domain.by_name[name]
        violated = [slot for slot, value in self.goal.constraints.items() if entity[slot] != value]
        if violated:
            self.patience -= 1
            self.accepted = None
            return self._say("reject", inform=self._inform(self.rng.choice(violated)) + self.glue["stop"])
        self.accepted = name
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

    def _inform(self, slot: str) -> str:
        """Say one constraint, and take it off the agenda."""
        if Act("inform", slot) in self.agenda:
            self.agenda.remove(Act("inform", slot))
        spec = self.domain.constraints[slot]
        way = self.rng.choice(spec["values"][self.goal.constraints[slot]])
        return fill(self.rng.choice(spec["customer_says"]), value=way)

    @property
    def glue(self) -> dict[str, str]:
        """What stands between phrases and after them."""
        return self.domain.speech["glue"]  # type: ignore[no-any-return]

    def _join(self, *sentences: str) -> str:
        return self.glue["space"].join(sentences)

    def _pick(self, key: str) -> str:
        return str(self.rng.choice(self.domain.speech["customer"][key]))

    def _say(self, key: str, **values: str) -> str:
        return fill(self._pick(key), **values, thing=self.domain.thing, article=self.domain.article)
