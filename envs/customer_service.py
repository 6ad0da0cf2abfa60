"""Customer service: several turns of text with a simulated customer, and a desk screen that looks things up."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from envs.core import FIRST_HELD_OUT_SEED, Message, StepResult, TextEnv
from envs.domain import Domain, fill, load_domain
from envs.simulator import Customer, draw_goal
from envs.spaces import Text
from envs.vector import vector_entry_point


class CustomerServiceEnv(TextEnv):
    """Find the service that a customer wants, answer the customer's questions, and book it.

    | | |
    |---|---|
    | action | `Text`: what the agent says |
    | observation | messages: the customer's (`user`), the desk screen's (`tool`), the agent's (`assistant`) |
    | reward | 1 for success, else 0, at the end, unless a reward function is given |
    | success | a service is booked that fits every constraint, and every request was answered truly |
    | columns | `success`, `matched` (share of constraints that the last offer fulfils), `turns`, `domain` |
    | terminated | the customer says goodbye, contented or not |
    | truncated | after `max_turns` turns of the agent |
    | seed | decides goal and customer; from FIRST_HELD_OUT_SEED on, goals that smaller seeds never have |

    Args:
        domain: a shipped domain's name, or the path of a domain file (see envs/domain.py).
        max_turns: turns of the agent before the episode is cut.
        misunderstanding: probability per turn that the customer does not hear the agent, in [0, 1).
        patience: turns that do not help before the customer leaves.
    """

    def __init__(
        self,
        domain: str = "broadband",
        max_turns: int = 8,
        misunderstanding: float = 0.05,
        patience: int = 3,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not 0 <= misunderstanding < 1:
            raise ValueError(f"misunderstanding is {misunderstanding}: expected a probability in [0, 1)")
        if max_turns < 1 or patience < 1:
            raise ValueError(f"max_turns is {max_turns}, patience is {patience}: expected at least 1 each")
        self.domain = load_domain(domain)
        self.max_turns, self.misunderstanding, self.patience = max_turns, misunderstanding, patience
        self.action_space = Text()
        self.customer: Customer
        self.desk: Desk
        self._turns = 0

    def _begin(self, seed: int, rng: random.Random) -> list[Message]:
        goal = draw_goal(self.domain, rng, held_out=seed >= FIRST_HELD_OUT_SEED)
        self.customer = Customer(self.domain, goal, rng, self.misunderstanding, self.patience)
        self.desk, self._turns = Desk(self.domain), 0
        return self._customer_says(self.customer.open())

    def _customer_says(self, text: str) -> list[Message]:
        self.desk.hear_customer(text)
        return [{"role": "user", "content": text}, {"role": "tool", "content": self.desk.screen()}]

    def _reply(self, action: Any) -> tuple[Message, StepResult]:
        self._turns += 1
        self.desk.hear_agent(action)
        answer = self.customer.respond(action)
        over = self.customer.over
        new = [{"role": "user", "content": answer}] if over else self._customer_says(answer)
        result = StepResult(new, over, not over and self._turns >= self.max_turns, {})
        return {"role": "assistant", "content": action}, result

    def _columns(self) -> dict[str, Any]:
        customer = self.customer
        return {
            "success": customer.success,
            "matched": customer.matched,
            "turns": self._turns,
            "domain": self.domain.name,
        }

    def own_reward(self) -> float:
        return float(self.customer.success)

    def context(self, messages: Sequence[Message]) -> list[Message]:
        """The desk screen after the customer's last words, from the conversation alone."""
        desk = Desk(self.domain)
        for message in messages:
            if message["role"] == "assistant":
                desk.hear_agent(message["content"])
            elif message["role"] == "user":
                desk.hear_customer(message["content"])
        return [{"role": "tool", "content": desk.screen()}]


make_vec = vector_entry_point(CustomerServiceEnv)


class Desk:
    """What the agent's screen shows: a search with what the customer has said, or the record of the last offer.

    A function of the words spoken: it knows nothing of the customer's goal.
    """

    def __init__(self, domain: Domain) -> None:
        self.domain = domain
        self.known: dict[str, str] = {}
        self.indifferent: set[str] = set()
        self.offer: str | None = None
        self._asked: list[str] = []

    def hear_agent(self, text: str) -> None:
        heard = self.domain.understand(text)
        if heard.names:
            self.offer = heard.names[-1]
        self._asked = [slot for slot in heard.slots if slot in self.domain.constraints]

    def hear_customer(self, text: str) -> None:
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
        """Names of the entities that fit what is known."""
        return [entity["name"] for entity in self.domain.matching(self.known)]

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
