"""Classification as action: one text, one label, one reward."""

from __future__ import annotations

import csv
import json
import math
import os
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from envs.choice import ChoiceEnv, Example, nearest
from envs.core import Message, StepResult
from envs.vector import vector_entry_point

Costs = Mapping[str, Mapping[str, float]]

HANDOVER = "ask a human"
"""Name of the action that hands a text over."""

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


class ClassificationEnv(ChoiceEnv):
    """Choose a label for a text; the episode ends with the choice.

    | | |
    |---|---|
    | action | `Discrete`: a label's index in `label_names`; with `handover`, the last one asks a human |
    | observation | one user message, the text |
    | reward | 1 for the right label, 0 for another, unless `costs`, `handover` or a reward function say otherwise |
    | columns | `label` (the right one's name), `success` (it was chosen; handing over is no success), |
    | | with `handover`: `handed_over`; with `critical`: `missed` (None where the label is another) |
    | seed | seed i is text i, modulo their number |

    Args:
        texts: the texts; a few built-in ones if None.
        labels: the right label of each, by name.
        label_names: all labels, in the order of the actions; None takes the sorted set of `labels`.
        costs: right label -> chosen label -> reward, so a cost is a negative number; or the path of a JSON file of
            that, or of a CSV matrix (first column: right label; header: chosen labels). Pairs left out are worth 1
            where the label is right, 0 where it is not.
        handover: the reward for asking a human, its price; None has no such action. It is paid for the turn, so a
            reward function, which is asked for the whole episode, comes on top: it sees the column `handed_over`.
        critical: the label that must not be missed, for the column `missed`: another label was chosen.
    """

    def __init__(
        self,
        texts: Sequence[str] | None = None,
        labels: Sequence[str] | None = None,
        label_names: Sequence[str] | None = None,
        costs: Costs | str | os.PathLike[str] | None = None,
        handover: float | None = None,
        critical: str | None = None,
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
        if critical is not None and critical not in self.label_names:
            raise ValueError(_not_a_label("critical", critical, self.label_names))
        if handover is not None:
            _check_number("handover", handover)
            if HANDOVER in self.label_names:
                raise ValueError(f"a label is called {HANDOVER!r}, as the action of handover is: rename the label")
        self.costs, self.handover, self.critical = cost_matrix(costs, self.label_names), handover, critical
        self.population = len(self.texts)
        self._choose_among(self.label_names if handover is None else [*self.label_names, HANDOVER])
        self._index, self._chosen = 0, ""

    def examples(self, seeds: Iterable[int]) -> list[Example]:
        """The texts of `seeds` with their labels; none of them is handed over."""
        number = {name: i for i, name in enumerate(self.label_names)}
        indices = [seed % len(self.texts) for seed in seeds]
        return [([{"role": "user", "content": self.texts[i]}], number[self.labels[i]]) for i in indices]

    def _begin(self, seed: int, rng: random.Random) -> list[Message]:
        self._index, self._chosen = seed % len(self.texts), ""
        return [{"role": "user", "content": self.texts[self._index]}]

    def _reply(self, action: Any) -> tuple[Message, StepResult]:
        self._chosen = self.action_names[int(action)]
        paid = self.handover if self.handover is not None and self._chosen == HANDOVER else 0.0
        return {"role": "assistant", "content": self._chosen}, StepResult([], True, False, {}, float(paid))

    def _columns(self) -> dict[str, Any]:
        label = self.labels[self._index]
        columns: dict[str, Any] = {"label": label, "success": self._chosen == label}
        if self.handover is not None:
            columns["handed_over"] = self._chosen == HANDOVER
        if self.critical is not None:
            columns["missed"] = self._chosen not in (label, HANDOVER) if label == self.critical else None
        return columns

    def own_reward(self) -> float:
        label = self.labels[self._index]
        # handing over is paid when it is done, and is nobody's label
        return self.costs.get(label, {}).get(self._chosen, float(self._chosen == label))


make_vec = vector_entry_point(ClassificationEnv)


def cost_matrix(
    costs: Costs | str | os.PathLike[str] | None, label_names: Sequence[str]
) -> dict[str, dict[str, float]]:
    """The pairs of labels that `costs` gives a reward for, right -> chosen -> reward.

    Raises:
        ValueError: a label that does not exist, a reward that is not a finite number, or a file that cannot be read.
    """
    where = "costs"
    if isinstance(costs, str | os.PathLike):
        where = f"costs file {str(costs)!r}"
        costs = _read_costs(Path(costs))
    if not isinstance(costs, Mapping | None):
        raise ValueError(f"{where} is {costs!r}: expected {{right label: {{chosen label: reward}}}}, or a file of that")
    matrix: dict[str, dict[str, float]] = {}
    for right, row in (costs or {}).items():
        if right not in label_names:
            raise ValueError(_not_a_label(where, right, label_names))
        if not isinstance(row, Mapping):
            raise ValueError(f"{where}[{right!r}] is {row!r}: expected {{chosen label: reward}}")
        matrix[right] = {}
        for chosen, reward in row.items():
            if chosen not in label_names:
                raise ValueError(_not_a_label(f"{where}[{right!r}]", chosen, label_names))
            _check_number(f"{where}[{right!r}][{chosen!r}]", reward)
            matrix[right][chosen] = float(reward)
    return matrix


def _read_costs(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() != ".csv":
            return json.loads(text)
    except OSError as error:
        raise ValueError(f"costs file {str(path)!r} cannot be read: {error.strerror}") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"costs file {str(path)!r} is not JSON: {error} (a matrix belongs in a .csv file)") from error
    rows = [row for row in csv.reader(text.splitlines()) if row]
    header = [name.strip() for name in rows[0][1:]] if rows else []
    matrix: dict[str, dict[str, float]] = {}
    for row in rows[1:]:
        right, cells = row[0].strip(), row[1:]
        if len(cells) != len(header):
            raise ValueError(
                f"costs file {str(path)!r}, row {right!r} has {len(cells)} rewards for {len(header)} labels"
            )
        matrix[right] = {}
        for chosen, cell in zip(header, cells, strict=True):
            if cell.strip():  # an empty cell is a pair left out
                try:
                    matrix[right][chosen] = float(cell)
                except ValueError:
                    raise ValueError(
                        f"costs file {str(path)!r}, row {right!r}, column {chosen!r} is {cell!r}: expected a number"
                    ) from None
    return matrix


def _not_a_label(where: str, given: Any, label_names: Sequence[str]) -> str:
    shown = ", ".join(map(str, label_names[:10])) + (", …" if len(label_names) > 10 else "")
    return f"{where} names {given!r}, which is not a label{nearest(given, label_names)} (labels: {shown})"


def _check_number(where: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{where} is {value!r}: expected a finite number")
