"""Movie booking after TC-Bot (Li et al. 2017): find the showing that a customer means, answer, and book tickets.

The policy writes delexicalised text (Wen et al. 2015): "it is [theater] ." is spoken with the theater that the desk's
search has found. So a policy learns what to say when, and no names.
"""

from __future__ import annotations

import functools
import gzip
import json
import random
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from envs.core import FIRST_HELD_OUT_SEED, Message, StepResult, TextEnv
from envs.spaces import Text
from envs.vector import vector_entry_point

T = TypeVar("T")

NOT_SEARCHED = ("numberofpeople", "ticket")
"""Slots of a goal that say nothing of a showing."""
ASKING_ORDER = ("moviename", "starttime", "city", "date", "theater", "numberofpeople")
"""What the rule agent asks, in its order."""
ANSWERS_AGAIN = 0.25
WORDS = {"moviename": "film", "starttime": "time", "numberofpeople": "tickets"}
"""Slots that are called by another word than their name."""
SLOT_OF = {word: slot for slot, word in WORDS.items()}

ASKS = re.compile(r"\b(?:which|what|how many) (\w+)")
TELLS = re.compile(r"\[(\w+)\]")
BOOKS = re.compile(r"\bbook(?:ed)?\b")

INFORMS = {
    "moviename": ("i want to see {}", "the film is {}"),
    "starttime": ("at {}", "it should begin at {}"),
    "city": ("in {}", "we are in {}"),
    "date": ("on {}", "it is for {}"),
    "theater": ("at the {}", "we like the {}"),
    "numberofpeople": ("{} tickets", "we are {} people"),
}
OTHER_INFORMS = ("{slot} : {value}",)
REQUESTS = ("which {} is there ?", "what {} can i have ?")
WANTS_TICKET = ("please book it", "can you book that ?")
INDIFFERENT = ("any {} is fine", "i do not mind the {}")
PARDON = ("pardon ?", "sorry , what did you say ?")
THANKS, COMPLAINT = "thank you , goodbye", "that is not what i wanted , goodbye"
INAUDIBLE = "…"


@dataclass(frozen=True, slots=True)
class Goal:
    """What a customer wants: values that the showing must have, and what the customer wants to be told of it."""

    constraints: dict[str, str]
    requests: tuple[str, ...]


class KnowledgeBase:
    """Showings, each a dict of slots, searched by exact value; a showing that lacks a slot does not fit its value."""

    def __init__(self, rows: Sequence[dict[str, str]]) -> None:
        self.rows = rows
        self.values: dict[str, list[str]] = {}
        """The values of each slot."""
        index: dict[tuple[str, str], set[int]] = {}
        for number, row in enumerate(rows):
            for slot, value in row.items():
                index.setdefault((slot, value.casefold()), set()).add(number)
                self.values.setdefault(slot, []).append(value)
        self._index = index
        self.values = {slot: sorted(set(values)) for slot, values in self.values.items()}

    def fitting(self, wanted: dict[str, str]) -> list[int]:
        """Numbers of the rows that have every value of `wanted`, but for NOT_SEARCHED."""
        items = [(slot, value.casefold()) for slot, value in wanted.items() if slot not in NOT_SEARCHED]
        if not items:
            return list(range(len(self.rows)))
        return sorted(set.intersection(*(self._index.get(item, set()) for item in items)))

    def fits(self, row: int, slot: str, value: str) -> bool:
        return row in self._index.get((slot, value.casefold()), ())


@functools.lru_cache(maxsize=100_000)
def _search(
    kb: KnowledgeBase, known: frozenset[tuple[str, str]], asked: tuple[str, ...], told: frozenset[tuple[str, str]]
) -> tuple[int, int | None]:
    """How many showings fit what is known, and the one that says most of what was asked and was told: the first."""
    found = kb.fitting(dict(known))
    if not found or not (asked or told):
        return len(found), found[0] if found else None

    def merit(row: int) -> tuple[int, int]:
        return sum(slot in kb.rows[row] for slot in asked), sum(kb.fits(row, *item) for item in told)

    return len(found), max(found, key=merit)


def ceiling(goals: Sequence[Goal], kb: KnowledgeBase, answers: bool = False) -> int:
    """How many goals some showing fits: no policy can serve more.

    Args:
        answers: the showing must also have the slots that the customer asks for.
    """
    return sum(
        any(not answers or all(slot in kb.rows[row] for slot in goal.requests) for row in kb.fitting(goal.constraints))
        for goal in goals
    )


# Files ----------------------------------------------------------------------------------------------------------------


def load_goals(path: str | Path) -> list[Goal]:
    """Goals of a JSON lines file (.gz too): objects with `inform_slots`, by name, and `request_slots`.

    Raises:
        ValueError: of the first line that is none, with its number.
    """
    goals = []
    for where, line in _lines(path):
        informs, requests = line.get("inform_slots", {}), line.get("request_slots", [])
        if not _is_row(informs) or not isinstance(requests, dict | list) or not (informs or requests):
            raise ValueError(
                f'{where}: expected {{"inform_slots": {{slot: text}}, "request_slots": [slot]}}, '
                f"found {str(line)[:100]}"
            )
        goals.append(Goal(informs, tuple(sorted({str(slot) for slot in requests} - {"ticket"}))))
    return goals


def load_knowledge_base(path: str | Path) -> KnowledgeBase:
    """Showings of a JSON lines file (.gz too), one object a line, slots by name; `id` is left out.

    Raises:
        ValueError: of the first line that is none, with its number.
    """
    rows = []
    for where, line in _lines(path):
        row = {slot: value for slot, value in line.items() if slot != "id"}
        if not _is_row(row):
            raise ValueError(f"{where}: expected an object of texts by slot, found {str(line)[:100]}")
        rows.append(row)
    return KnowledgeBase(rows)


def _is_row(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())


def _lines(path: str | Path) -> Iterable[tuple[str, dict[str, Any]]]:
    opener = gzip.open if str(path).endswith(".gz") else open
    count = 0
    with opener(path, "rt", encoding="utf-8") as file:
        for number, text in enumerate(file, 1):
            try:
                line = json.loads(text)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number} is not JSON: {error}") from None
            if not isinstance(line, dict):
                raise ValueError(f"{path}, line {number}: expected an object, found {text[:100]!r}")
            count += 1
            yield f"{path}, line {number}", line
    if not count:
        raise ValueError(f"{path} is empty: expected one JSON object a line")


def _load(goals: str | None, knowledge_base: str | None) -> tuple[list[Goal], KnowledgeBase]:
    if (goals is None) != (knowledge_base is None):
        raise ValueError("goals and knowledge_base belong together: give both files, or neither for built-in examples")
    if goals is None or knowledge_base is None:
        return examples()
    return _once(load_goals, goals, _state(goals)), _once(load_knowledge_base, knowledge_base, _state(knowledge_base))


def _state(path: str) -> tuple[int, int]:
    """What changes when a file is written again."""
    stat = Path(path).stat()
    return stat.st_mtime_ns, stat.st_size


@functools.lru_cache(maxsize=12)
def _once(load: Callable[[str], T], path: str, state: tuple[int, int]) -> T:
    """Many environments of a batch read the same files."""
    return load(path)


@functools.lru_cache(maxsize=1)
def examples() -> tuple[list[Goal], KnowledgeBase]:
    """A made-up town's showings and customers, for trying things without files."""
    rng = random.Random("movie booking")
    films, cities = ("the long tide", "paper moon", "night bus", "two brothers"), ("ashford", "brook", "calder")
    rows = [
        {"moviename": film, "city": city, "theater": theater, "date": date, "starttime": time}
        for film in films
        for city in cities
        for theater in (f"{city} palace", f"{city} roxy")
        for date in ("today", "tomorrow", "saturday")
        for time in rng.sample(("3 pm", "6 pm", "8 pm", "10 pm"), 2)
    ]
    goals = []
    for _ in range(60):
        row = rng.choice(rows)
        requests = rng.sample(("theater", "date", "starttime"), rng.randint(0, 3))
        constraints = {slot: value for slot, value in row.items() if slot not in requests}
        goals.append(Goal({**constraints, "numberofpeople": str(rng.randint(1, 6))}, tuple(sorted(requests))))
    return goals, KnowledgeBase(rows)


# The two who talk -----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class UserAct:
    """What the customer says, before it is put into words."""

    informs: dict[str, str] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    """Slots, or "ticket"."""
    indifferent: list[str] = field(default_factory=list)
    pardon: bool = False


class Customer:
    """An agenda (Schatzmann et al. 2007): correct, answer, tell a constraint not told yet, ask, have it booked."""

    def __init__(self, goal: Goal, rng: random.Random) -> None:
        self.goal, self.rng = goal, rng
        self.untold = dict(goal.constraints)
        self.answers: dict[str, str] = {}

    def open(self) -> UserAct:
        """The film, if there is one in mind, another constraint, and a question."""
        chosen = {"moviename"} & self.untold.keys()
        if self.untold:
            chosen.add(self.rng.choice(sorted(self.untold)))
        request = self.rng.choice(self.goal.requests) if self.goal.requests else "ticket"
        return UserAct(self._tell(sorted(chosen)), [request])

    def respond(self, asked: Sequence[str], told: dict[str, str]) -> UserAct:
        """The answer to an agent who asked for some slots and told values of others."""
        constraints, requests = self.goal.constraints, self.goal.requests
        self.answers |= {slot: value for slot, value in told.items() if slot in requests}
        act = UserAct(
            self._tell(
                [s for s, value in told.items() if s in constraints and value.casefold() != constraints[s].casefold()]
                + [s for s in asked if s in constraints]
            ),
            [s for s in asked if s in requests and s not in self.answers],
            [s for s in asked if s not in constraints and s not in requests],
        )
        act.informs |= {slot: self.answers[slot] for slot in asked if slot in self.answers}
        if not told and not asked:
            act.pardon = True
        elif not (act.informs or act.requests or act.indifferent):
            self._go_on(act)
        return act

    def _go_on(self, act: UserAct) -> None:
        open_requests = [slot for slot in self.goal.requests if slot not in self.answers]
        if self.untold:
            act.informs = self._tell([self.rng.choice(sorted(self.untold))])
        else:
            act.requests = [self.rng.choice(open_requests) if open_requests else "ticket"]

    def _tell(self, slots: Sequence[str]) -> dict[str, str]:
        for slot in slots:
            self.untold.pop(slot, None)
        return {slot: self.goal.constraints[slot] for slot in slots}


class Desk:
    """The agent's screen: what was heard, how many showings fit, and which questions are open.

    It knows what has been said, and nothing of the goal.
    """

    def __init__(self, kb: KnowledgeBase) -> None:
        self.kb = kb
        self.known: dict[str, str] = {}
        self.indifferent: list[str] = []
        self.asked: list[str] = []
        self.told: dict[str, str] = {}
        self.wants_ticket = False

    def hear_customer(self, act: UserAct) -> None:
        self.known |= act.informs
        self.indifferent += [slot for slot in act.indifferent if slot not in self.indifferent]
        self.asked += [slot for slot in act.requests if slot != "ticket" and slot not in self.asked]
        self.wants_ticket = "ticket" in act.requests
        self.told = {s: value for s, value in self.told.items() if s not in act.informs or act.informs[s] == value}

    @property
    def found(self) -> tuple[int, int | None]:
        """How many showings fit what the customer said, and the one that the desk speaks of."""
        return _search(self.kb, frozenset(self.known.items()), tuple(self.asked), frozenset(self.told.items()))

    @property
    def open_questions(self) -> list[str]:
        """What the customer has asked and not been told, or was told of another showing than the present one."""
        _, row = self.found
        slots = [*self.asked, *(slot for slot in self.told if slot not in self.asked and slot not in NOT_SEARCHED)]
        return [s for s in slots if row is None or s not in self.told or not self.kb.fits(row, s, self.told[s])]

    def tell(self, slots: Iterable[str]) -> dict[str, str]:
        """Values of the present showing, as far as it has them; they count as told."""
        _, row = self.found
        facts = {**({} if row is None else self.kb.rows[row])}
        if "numberofpeople" in self.known:
            facts["numberofpeople"] = self.known["numberofpeople"]
        told = {slot: facts[slot] for slot in slots if slot in facts}
        self.told |= told
        return told

    def screen(self) -> str:
        count, _ = self.found
        many = "none" if count == 0 else "one" if count == 1 else "few" if count <= 5 else "many"
        known = [WORDS.get(slot, slot) for slot in _ordered({*self.known, *self.indifferent})]
        asked = [WORDS.get(slot, slot) for slot in _ordered(self.open_questions)] + ["ticket"] * self.wants_ticket
        return f"known {' '.join(known) or 'nothing'} | {many} | asked {' '.join(asked) or 'nothing'}"


def _ordered(slots: Iterable[str]) -> list[str]:
    return sorted(slots, key=lambda s: (ASKING_ORDER.index(s) if s in ASKING_ORDER else len(ASKING_ORDER), s))


class RuleAgent:
    """Asks what it does not know in a fixed order, answers once, books: it never waits to hear everything.

    Where questions are left open, it answers one more with the probability ANSWERS_AGAIN: who sees only agents that
    never do cannot come to do it.
    """

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self._to_ask = list(ASKING_ORDER)
        self._answered = False

    def act(self, env: MovieBookingEnv, customer_says: str) -> str:
        desk = env.desk
        while self._to_ask:
            slot = self._to_ask.pop(0)
            if slot not in desk.known and slot not in desk.asked:
                return f"which {WORDS.get(slot, slot)} ?"
        if desk.open_questions and (not self._answered or self.rng.random() < ANSWERS_AGAIN):
            self._answered = True
            return f"it is [{WORDS.get(desk.open_questions[0], desk.open_questions[0])}] ."
        return "i book it ."


# The environment ------------------------------------------------------------------------------------------------------


class MovieBookingEnv(TextEnv):
    """Book the tickets that a customer wants.

    | | |
    |---|---|
    | action | `Text`: "which SLOT" asks, "[SLOT]" is spoken as the value of the showing found, "book" books it |
    | observation | messages: the customer's (`user`), the desk screen's (`tool`), the agent's own text (`assistant`) |
    | reward | −1 a turn; at the end 2 · max_turns for success, −max_turns for failure, or the given function's |
    | success | the showing booked fits every constraint, as does the number of tickets, and every request was \
answered with a value of that showing |
    | columns | `success`, `inform` (the showing booked fits every constraint), `matched` (the share of them that it \
fulfils), `turns` of the agent |
    | terminated | something is booked |
    | truncated | after `max_turns` turns of both sides |
    | seed | decides goal and customer; `held_out_every` gives seeds from FIRST_HELD_OUT_SEED on goals of their own |

    The last turn costs nothing beside its outcome. SLOT is film, time, tickets, city, date, theater or any other slot
    of the files by name.

    Args:
        goals: JSON lines of customers' goals; a made-up town's if None (see `load_goals`).
        knowledge_base: JSON lines of showings (see `load_knowledge_base`).
        max_turns: turns of both sides before the dialogue has failed.
        error_rate: probability that the desk mishears a slot of the customer's: loses it, or hears another value.
        held_out_every: keep each so manieth goal from training seeds; 0 lets all seeds have all goals.
        templates: JSON file of sentences by dialogue act, in TC-Bot's form, for the customer; None for the built-in
            ones, which also serve where the file has no sentence.
    """

    def __init__(
        self,
        goals: str | None = None,
        knowledge_base: str | None = None,
        max_turns: int = 40,
        error_rate: float = 0.0,
        held_out_every: int = 0,
        templates: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not 0 <= error_rate < 1:
            raise ValueError(f"error_rate is {error_rate}: expected a probability in [0, 1)")
        if max_turns < 2:
            raise ValueError(f"max_turns is {max_turns}: expected at least 2, one of each side")
        self.goals, self.kb = _load(goals, knowledge_base)
        if held_out_every < 0 or held_out_every == 1 or held_out_every > len(self.goals):
            raise ValueError(f"held_out_every is {held_out_every}: expected 0, or 2 to {len(self.goals)} (the goals)")
        self.max_turns, self.error_rate, self.held_out_every = max_turns, error_rate, held_out_every
        self.templates = {} if templates is None else _once(_load_templates, templates, _state(templates))
        self.action_space = Text()
        self.customer: Customer
        self.desk: Desk
        self._rng = random.Random(0)
        self._turns, self._success = 0, False
        self._booked: int | None = None

    def expert(self, rng: random.Random) -> RuleAgent:
        """The rule agent, whose dialogues are demonstrations."""
        return RuleAgent(rng)

    def _begin(self, seed: int, rng: random.Random) -> list[Message]:
        goals = self.goals
        if self.held_out_every:
            # of each goal's copies all are on one side
            distinct = sorted({_key(goal) for goal in goals})
            held_out = set(distinct[:: self.held_out_every])
            goals = [goal for goal in goals if (_key(goal) in held_out) == (seed >= FIRST_HELD_OUT_SEED)]
        self._rng = rng
        self.customer, self.desk = Customer(rng.choice(goals), rng), Desk(self.kb)
        self._turns, self._booked, self._success = 0, None, False
        return self._customer_says(self.customer.open())

    def _customer_says(self, act: UserAct) -> list[Message]:
        heard = self._mishear(act)
        self.desk.hear_customer(heard)
        return [
            {"role": "user", "content": _in_words(heard, self._rng, self.templates)},
            {"role": "tool", "content": self.desk.screen()},
        ]

    def _mishear(self, act: UserAct) -> UserAct:
        if not self.error_rate:
            return act
        informs = {}
        for slot, value in act.informs.items():
            if self._rng.random() >= self.error_rate:
                informs[slot] = value
            elif self._rng.random() < 0.5 and slot in self.kb.values:
                informs[slot] = self._rng.choice(self.kb.values[slot])
        requests = [slot for slot in act.requests if self._rng.random() >= self.error_rate]
        return UserAct(informs, requests, act.indifferent, act.pardon)

    def _reply(self, action: Any) -> tuple[Message, StepResult]:
        self._turns += 1
        message = {"role": "assistant", "content": action}
        words = action.casefold()
        if BOOKS.search(words):
            self._book()
            return message, StepResult(
                [{"role": "user", "content": THANKS if self._success else COMPLAINT}], True, False, {}
            )
        asked = [SLOT_OF.get(word, word) for word in ASKS.findall(words)]
        asked = [slot for slot in asked if slot in self.kb.values or slot in NOT_SEARCHED[:1]]
        told = self.desk.tell(SLOT_OF.get(word, word) for word in TELLS.findall(words))
        if 2 * self._turns + 2 > self.max_turns:
            return message, StepResult([], False, True, {})
        return message, StepResult(self._customer_says(self.customer.respond(asked, told)), False, False, {}, -1.0)

    def _book(self) -> None:
        _, self._booked = self.desk.found
        goal, row = self.customer.goal, self._booked
        number = goal.constraints.get("numberofpeople")
        self._success = (
            row is not None
            and self._matched() == 1
            and (number is None or self.desk.known.get("numberofpeople") == number)
            and all(self.kb.fits(row, slot, self.customer.answers.get(slot, "")) for slot in goal.requests)
        )

    def _matched(self) -> float:
        wanted = [item for item in self.customer.goal.constraints.items() if item[0] not in NOT_SEARCHED]
        if self._booked is None:
            return 0.0
        return sum(self.kb.fits(self._booked, *item) for item in wanted) / len(wanted) if wanted else 1.0

    def _columns(self) -> dict[str, Any]:
        matched = self._matched()
        return {"success": self._success, "inform": matched == 1, "matched": matched, "turns": self._turns}

    def own_reward(self) -> float:
        return float(2 * self.max_turns if self._success else -self.max_turns)


make_vec = vector_entry_point(MovieBookingEnv)


def _key(goal: Goal) -> str:
    return json.dumps([sorted(goal.constraints.items()), goal.requests])


# Words ----------------------------------------------------------------------------------------------------------------

Templates = dict[tuple[str, frozenset[str], frozenset[str]], str]
"""A customer's sentence by dialogue act, slots informed, and slots requested; values stand as $slot$."""


def _load_templates(path: str) -> Templates:
    opener = gzip.open if path.endswith(".gz") else open
    with opener(path, "rt", encoding="utf-8") as file:
        content = json.load(file)
    try:
        return {
            (act, frozenset(one["inform_slots"]), frozenset(one["request_slots"])): one["nl"]["usr"]
            for act, sentences in content["nl_templates"]["dia_acts"].items()
            for one in sentences
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"templates {path!r}: expected nl_templates → dia_acts → act → list of inform_slots, request_slots and "
            f"nl.usr ({type(error).__name__}: {error})"
        ) from None


def _in_words(act: UserAct, rng: random.Random, templates: Templates) -> str:
    kind = "request" if act.requests else "inform"
    template = templates.get((kind, frozenset(act.informs), frozenset(act.requests)))
    if template is not None and not act.indifferent:
        return re.sub(r"\$(\w+)\$", lambda found: act.informs.get(found[1], found[0]), template)
    if act.pardon:
        return rng.choice(PARDON)
    parts = []
    for slot, value in act.informs.items():
        phrase = rng.choice(INFORMS.get(slot, OTHER_INFORMS))
        parts.append(phrase.format(value) if slot in INFORMS else phrase.format(slot=slot, value=value))
    parts += [rng.choice(INDIFFERENT).format(WORDS.get(slot, slot)) for slot in act.indifferent]
    for slot in act.requests:
        parts.append(
            rng.choice(WANTS_TICKET) if slot == "ticket" else rng.choice(REQUESTS).format(WORDS.get(slot, slot))
        )
    return " , ".join(parts) or INAUDIBLE
