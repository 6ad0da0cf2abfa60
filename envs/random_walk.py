"""Walks to a goal in a small directed graph: trlX's task of random walks, made again from its description.

Demonstrations are random walks, most of them long; the reward is how near a walk is to the shortest one. So the reward
has much to improve on what ℓ teaches, the best is known, and minutes on a CPU are enough to see it.
"""

from __future__ import annotations

import random
from collections import deque
from itertools import pairwise
from typing import Any

from envs.core import Message, StepResult, TextEnv
from envs.spaces import Text
from envs.vector import vector_entry_point

LETTERS = "abcdefghijklmnopqrstuvwxyz"


class RandomWalkEnv(TextEnv):
    """Say a walk from a node to the goal, along the edges of a graph that the demonstrations alone show.

    | | |
    |---|---|
    | action | text: the nodes of the walk, apart by spaces, the first one that which was named: `k c b a` |
    | observation | one user message, the node to begin at: `k` |
    | reward | optimality: 1 for a shortest walk, falling evenly to 0 for one of `longest` nodes; 0 for what |
    | | is no walk to the goal |
    | columns | `success` (the goal was reached), `optimality`, `reference` (a shortest walk) |
    | seed | decides where the walk begins |

    Args:
        nodes: of the graph, the goal, `a`, among them.
        longest: nodes of a walk at most.
        edges: probability of an edge from one node to another.
        graph_seed: decides the graph.
    """

    goal = LETTERS[0]

    def __init__(
        self, nodes: int = 21, longest: int = 10, edges: float = 0.1, graph_seed: int = 0, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if not 3 <= nodes <= len(LETTERS):
            raise ValueError(f"nodes is {nodes}: expected 3 to {len(LETTERS)}, a letter for each")
        if not 0 < edges <= 1:
            raise ValueError(f"edges is {edges}: expected a probability above 0")
        self.action_space, self.longest = Text(), longest
        self.follow = _graph(nodes, longest, edges, graph_seed)
        self.distance = _distances(self.follow)
        self._walk: list[str] = []
        self._start = self.goal

    def shortest(self, start: str) -> list[str]:
        """A shortest walk to the goal."""
        walk = [start]
        while walk[-1] != self.goal:
            walk.append(min(self.follow[walk[-1]], key=lambda node: (self.distance[node], node)))
        return walk

    def reaches(self, start: str, walk: list[str]) -> bool:
        """Whether a walk leads from here along edges to the goal, in time."""
        along = all(after in self.follow.get(node, ()) for node, after in pairwise(walk))
        return along and walk[:1] == [start] and walk[-1] == self.goal and len(walk) <= self.longest

    def optimality(self, start: str, walk: list[str]) -> float:
        """How near a walk is to the shortest, in [0, 1]."""
        best = self.distance[start] + 1
        if not self.reaches(start, walk):
            return 0.0
        return 1.0 if len(walk) == best else (self.longest - len(walk)) / (self.longest - best)

    def expert(self, rng: random.Random) -> Walker:
        """Who walks at random, as in the demonstrations."""
        return Walker(rng)

    def _begin(self, seed: int, rng: random.Random) -> list[Message]:
        self._start, self._walk = rng.choice(sorted(set(self.follow) - {self.goal})), []
        return [{"role": "user", "content": self._start}]

    def _reply(self, action: Any) -> tuple[Message, StepResult]:
        self._walk = str(action).split()
        return {"role": "assistant", "content": str(action)}, StepResult([], True, False, {})

    def _columns(self) -> dict[str, Any]:
        return {
            "success": self.reaches(self._start, self._walk),
            "optimality": self.own_reward(),
            "reference": " ".join(self.shortest(self._start)),
        }

    def own_reward(self) -> float:
        return self.optimality(self._start, self._walk)


class Walker:
    """Follows edges at random until the goal, or until the walk is as long as one may be."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng

    def act(self, env: RandomWalkEnv, start: str) -> str:
        """A walk from here."""
        walk = [start]
        while walk[-1] != env.goal and len(walk) < env.longest:
            walk.append(self.rng.choice(env.follow[walk[-1]]))
        return " ".join(walk)


def _graph(nodes: int, longest: int, edges: float, seed: int) -> dict[str, list[str]]:
    """Node -> those that it has an edge to. Graphs are drawn until one leads from every node to the goal in time."""
    rng, names = random.Random(f"graph {seed}"), LETTERS[:nodes]
    for _ in range(10_000):
        follow = {node: [to for to in names if to != node and rng.random() < edges] for node in names}
        follow[LETTERS[0]] = []  # who has come to the goal stays there
        distance = _distances(follow)
        if len(distance) == nodes and max(distance.values()) < longest:
            return follow
    raise ValueError(
        f"no graph of {nodes} nodes with edges={edges:g} leads from everywhere to the goal in {longest} nodes: "
        "expected more edges"
    )


def _distances(follow: dict[str, list[str]]) -> dict[str, int]:
    """Edges from each node to the goal, of those nodes that lead there: breadth first, backwards."""
    distance, waiting = {LETTERS[0]: 0}, deque([LETTERS[0]])
    while waiting:
        node = waiting.popleft()
        for before in follow:
            if before not in distance and node in follow[before]:
                distance[before] = distance[node] + 1
                waiting.append(before)
    return distance


make_vec = vector_entry_point(RandomWalkEnv)
