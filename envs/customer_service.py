"""Customer service: several turns of text with a simulated customer, and a desk screen that looks things up."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from envs.choice import nearest
from envs.core import FIRST_HELD_OUT_SEED, Message, StepResult, TextEnv
from envs.domain import Domain, fill, load_domain
from envs.simulator import Behaviour, Customer, draw_goal
from envs.spaces import Text
from envs.vector import vector_entry_point

CLASSIC_SUCCESS = 20
"""What success is worth in turns, in the dialogue literature (PyDial, Ultes et al. 2017)."""


class CustomerServiceEnv(TextEnv):
    """Find the service that a customer wants, answer the customer's questions, and book it.

    | | |
    |---|---|
    | action | `Text`: what the agent says |
    | observation | messages: the customer's (`user`), the desk screen's (`tool`), the agent's (`assistant`) |
    | reward | 1 for success, else 0, at the end, unless a reward function is given |
    | success | a service is booked that fits every constraint, and every request was answered truly |
    | inform | a service was offered that fits every constraint and is to be had |
    | columns | `success`, `inform`, `matched` (share of constraints that the last offer fulfils), `turns`, |
    | | `classic_return` (20 for success, -1 a turn, as in the dialogue literature), `domain` |
    | terminated | the customer says goodbye, contented or not |
    | truncated | after `max_turns` turns of the agent for each service |
    | seed | decides goal and customer; from FIRST_HELD_OUT_SEED on, goals that smaller seeds never have |

    Args:
        domain: a shipped domain's name, or the path of a domain file (see envs/domain.py); or several, of one language:
            the customer wants a service of each, one after the other. Success is then success in all.
        max_turns: turns of the agent before the episode is cut, for each service.
        misunderstanding, patience, corrections, out_of_scope, sold_out, changes_of_mind, impatience, styles: how
            customers behave, see envs.simulator.Behaviour. `styles` may be True, for all styles and the plain one.
    """

    def __init__(
        self,
        domain: str | Sequence[str] = "broadband",
        max_turns: int = 8,
        misunderstanding: float = 0.05,
        patience: int = 3,
        corrections: float = 0.0,
        out_of_scope: float = 0.0,
        sold_out: float = 0.0,
        changes_of_mind: float = 1.0,
        impatience: bool = False,
        styles: bool | Sequence[str] = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if max_turns < 1:
            raise ValueError(f"max_turns is {max_turns}: expected at least 1")
        names = [domain] if isinstance(domain, str) else list(domain)
        if not names:
            raise ValueError("domain is an empty list: expected the name of a domain, or several")
        self.domains = [load_domain(name) for name in names]
        if any(each.speech != self.domains[0].speech for each in self.domains):
            raise ValueError(f"domain is {names}: expected domains of one speech, for it is one customer who speaks")
        self.max_turns = max_turns
        self.behaviour = Behaviour(
            misunderstanding=misunderstanding,
            patience=patience,
            corrections=corrections,
            out_of_scope=out_of_scope,
            sold_out=sold_out,
            changes_of_mind=changes_of_mind,
            impatience=impatience,
            styles=self._styles(styles),
        )
        self.action_space = Text()
        self.customers: list[Customer] = []
        self.desk = Desk(self.domains)
        self._service = 0
        self._turns = 0

    def _styles(self, styles: bool | Sequence[str]) -> tuple[str, ...]:
        known = ("plain", *self.domains[0].speech["styles"])
        if isinstance(styles, bool):
            return known if styles else ()
        chosen = (styles,) if isinstance(styles, str) else tuple(styles)
        for style in chosen:
            if style not in known:
                raise ValueError(f"styles has {style!r}{nearest(style, known)} (known: {', '.join(known)})")
        return chosen

    @property
    def customer(self) -> Customer:
        """The customer, with the service that is wanted now."""
        return self.customers[self._service]

    @property
    def domain(self) -> Domain:
        """The domain of the service that is wanted now."""
        return self.domains[self._service]

    def _begin(self, seed: int, rng: random.Random) -> list[Message]:
        chance = random.Random(f"behaviour {seed}")
        style = chance.choice(self.behaviour.styles or ("plain",))
        held_out = seed >= FIRST_HELD_OUT_SEED
        goals = [draw_goal(domain, rng, held_out) for domain in self.domains]
        self.customers = [
            Customer(domain, goal, rng, self.behaviour, chance, style)
            for domain, goal in zip(self.domains, goals, strict=True)
        ]
        self.desk = Desk(self.domains, [customer.sold_out for customer in self.customers])
        self._service = self._turns = 0
        return self._customer_says(self.customer.open())

    def _customer_says(self, text: str) -> list[Message]:
        self.desk.hear_customer(text)
        return [{"role": "user", "content": text}, {"role": "tool", "content": self.desk.screen()}]

    def _reply(self, action: Any) -> tuple[Message, StepResult]:
        self._turns += 1
        self.desk.hear_agent(action)
        answer = self.customer.respond(action)
        if self.customer.success and self._service + 1 < len(self.customers):
            self._service += 1
            answer = self.customer.open(again=True)
        over = self.customer.over
        new = [{"role": "user", "content": answer}] if over else self._customer_says(answer)
        result = StepResult(new, over, not over and self._turns >= self._most_turns, {})
        return {"role": "assistant", "content": action}, result

    @property
    def _most_turns(self) -> int:
        return self.max_turns * len(self.domains)

    def _columns(self) -> dict[str, Any]:
        customers = self.customers
        success = all(customer.success for customer in customers)
        return {
            "success": success,
            "inform": all(customer.informed for customer in customers),
            "matched": sum(customer.matched for customer in customers) / len(customers),
            "turns": self._turns,
            "classic_return": CLASSIC_SUCCESS * success - self._turns,
            "domain": "+".join(domain.name for domain in self.domains),
        }

    def own_reward(self) -> float:
        return float(all(customer.success for customer in self.customers))

    def can_succeed(self) -> bool:
        """Whether the customer who was just drawn by `reset` can be served at all, by an agent that knows everything:
        something to be had fits, now or after a change of mind, and the turns suffice."""
        needed = [customer.fewest_turns for customer in self.customers]
        return None not in needed and sum(turns or 0 for turns in needed) <= self._most_turns

    def context(self, messages: Sequence[Message]) -> list[Message]:
        """The desk screen after the customer's last words, from the conversation alone (and what is sold out)."""
        desk = Desk(self.domains, [customer.sold_out for customer in self.customers])
        for message in messages:
            if message["role"] == "assistant":
                desk.hear_agent(message["content"])
            elif message["role"] == "user":
                desk.hear_customer(message["content"])
        return [{"role": "tool", "content": desk.screen()}]


make_vec = vector_entry_point(CustomerServiceEnv)


class Desk:
    """What the agent's screen shows: a search with what the customer has said, or the record of the last offer.

    A function of the words spoken and of what is sold out: it knows nothing of the customer's goal. Of several domains
    it shows the first, and the next when the customer turns to it.
    """

    def __init__(self, domains: Sequence[Domain], sold_out: Sequence[frozenset[str]] = ()) -> None:
        self._waiting = list(zip(domains, sold_out or [frozenset[str]()] * len(domains), strict=True))
        self._next_domain()

    def _next_domain(self) -> None:
        self.domain, self.sold_out = self._waiting.pop(0)
        self.known: dict[str, str] = {}
        self.indifferent: set[str] = set()
        self.offer: str | None = None
        self._asked: list[str] = []

    def hear_agent(self, text: str) -> None:
        heard = self.domain.understand(text)
        if heard.names and heard.names[-1] not in self.sold_out:
            self.offer = heard.names[-1]
        self._asked = [slot for slot in heard.slots if slot in self.domain.constraints]

    def hear_customer(self, text: str) -> None:
        heard = self.domain.understand(text)
        if "next" in heard.signs and self._waiting:
            self._next_domain()
            heard = self.domain.understand(text)
        self.known |= heard.constraints
        if "any" in heard.signs:
            self.indifferent |= {slot for slot in self._asked if slot not in heard.constraints}
        self.indifferent -= heard.constraints.keys()
        offer = self.domain.by_name.get(self.offer or "")
        if offer is not None and any(offer[slot] != value for slot, value in heard.constraints.items()):
            self.offer = None  # the customer has said what is wrong with it

    @property
    def missing(self) -> list[str]:
        """Constraints that the customer has said nothing of."""
        return [s for s in self.domain.constraints if s not in self.known and s not in self.indifferent]

    @property
    def found(self) -> list[str]:
        """Names of the entities that fit what is known and are to be had."""
        fitting = (entity["name"] for entity in self.domain.matching(self.known))
        return [name for name in fitting if name not in self.sold_out]

    def facts(self) -> dict[str, str]:
        """What a customer may ask of the last offer."""
        assert self.offer is not None
        return {slot: self.domain.by_name[self.offer][slot] for slot in self.domain.requests}

    def screen(self) -> str:
        """The screen as text, a line of few words."""
        words = self.domain.speech["screen"]
        if self.offer is not None:
            facts = " , ".join(f"{slot} {value}" for slot, value in self.facts().items())
            return fill(words["record"], name=self.offer, facts=facts)
        if not self.found:
            return str(words["none"])
        values = {"count": str(len(self.found)), "first": self.found[0], "slots": " , ".join(self.missing)}
        return fill(words["missing" if self.missing else "complete"], **values)
