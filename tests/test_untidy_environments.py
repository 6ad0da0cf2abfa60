"""What environments give that is no text, no number, or will be another thing later (FAULTS row 25)."""

from __future__ import annotations

import copy
import random
from typing import Any

import gymnasium
import numpy as np
import pytest
from small import small_policy

from envs.adapters import FromGymnasium
from envs.core import Message, StepResult, TextEnv
from envs.spaces import Chat, Text
from envs.vector import TextVectorEnv
from rlobj.policies import load_causal, load_tokenizer
from rlobj.rollout import Sampling, play

HELLO = {"role": "user", "content": "hello"}


class Untidy(TextEnv):
    """Two turns; what it says, earns and knows is what it was made with."""

    def __init__(
        self, opening: Any = None, says: Any = (HELLO,), info: Any = None, reward: Any = 0.0, over: Any = 2
    ) -> None:
        super().__init__()
        self.opening = [HELLO] if opening is None else opening
        self.says, self.info, self.earns, self.over = says, {} if info is None else info, reward, over
        self.action_space = Text()

    def _begin(self, seed: int, rng: random.Random) -> list[Message]:
        self.turns = 0
        return self.opening

    def _reply(self, action: str) -> tuple[Message, StepResult]:
        self.turns += 1
        message = {"role": "assistant", "content": action}
        return message, StepResult(self.says, self.turns == self.over, False, self.info, self.earns)

    def _columns(self) -> dict[str, Any]:
        return {}

    def own_reward(self) -> float:
        return 0.0


@pytest.mark.parametrize(
    ("opening", "message"),
    [
        (None, None),
        ("hello", r"Untidy, episode 7, its opening says 'hello' \(str\): expected a list of \{'role': one of system"),
        ([{"role": "user", "content": 3}], r"Untidy, episode 7, its opening says \{'role': 'user', 'content': 3\}"),
        ([{"role": "user", "content": None}], "'content': None"),
        ([{"role": "customer", "content": "x"}], "'role': 'customer'"),
        ([{"role": "user", "content": "x", "name": "y"}], "'name': 'y'"),
        (["hello"], "says 'hello'"),
        ([], "Untidy, episode 7, its opening begins with no message: expected at least one to answer"),
    ],
)
def test_an_opening_that_is_no_conversation(opening: Any, message: str | None) -> None:
    env = Untidy(opening)
    if message is None:
        assert env.reset(seed=7)[0] == [HELLO]
    else:
        with pytest.raises((TypeError, ValueError), match=message):
            env.reset(seed=7)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"says": b"bye"}, r"Untidy, episode 7, turn 1 says b'bye' \(bytes\): expected a list"),
        ({"says": [HELLO, {"role": "user", "content": float("nan")}]}, "'content': nan"),
        ({"info": ["x"]}, r"Untidy, episode 7, turn 1 has the info \['x'\]: expected a dictionary"),
        ({"reward": None}, "Untidy, episode 7, turn 1 earned None: expected a number"),
        ({"reward": "much"}, "earned 'much': expected a number"),
        ({"reward": float("nan")}, "earned nan: expected a finite number"),
        ({"reward": np.float32("inf")}, r"earned .*inf.*: expected a finite number"),
    ],
)
def test_a_turn_that_is_none(kwargs: dict[str, Any], message: str) -> None:
    env = Untidy(**kwargs)
    env.reset(seed=7)
    with pytest.raises((TypeError, ValueError), match=message):
        env.step("x")


def test_numbers_of_numpy_are_numbers() -> None:
    env = Untidy(reward=np.float32(0.5), over=np.int64(1))
    env.reset(seed=7)
    _, reward, terminated, truncated, _ = env.step("x")
    assert (reward, terminated, truncated) == (0.5, True, False)
    assert [type(each) for each in (reward, terminated, truncated)] == [float, bool, bool]


class Recycling(TextEnv):
    """Says, knows and remembers everything in the same few objects, and writes over them."""

    def __init__(self) -> None:
        super().__init__()
        self.action_space = Text()
        self.opening, self.message, self.said = [dict(HELLO)], dict(HELLO), []
        self.info: dict[str, Any] = {}
        self.columns: dict[str, Any] = {}

    def _begin(self, seed: int, rng: random.Random) -> list[Message]:
        self.turns, self.opening[0]["content"] = 0, f"seed {seed}"
        self.info.clear()
        self.columns.clear()
        self.columns["seed"] = seed
        return self.opening

    def _reply(self, action: str) -> tuple[Message, StepResult]:
        self.turns += 1
        self.info["turn"], self.message["content"] = self.turns, f"turn {self.turns}"
        self.said[:] = [self.message]
        self.columns["turns"] = self.turns
        return {"role": "assistant", "content": action}, StepResult(self.said, self.turns == 3, False, self.info)

    def _columns(self) -> dict[str, Any]:
        return self.columns

    def own_reward(self) -> float:
        return float(self.turns)


def test_what_was_given_stays_as_it_was() -> None:
    env = Recycling()
    first, info = env.reset(seed=4)
    seen = [(first, info), *[(o, i) for o, _, _, _, i in (env.step(f"a{n}") for n in range(3))]]
    kept = copy.deepcopy(seen)
    episode = env.episode
    assert [m["content"] for m in episode.prompt + episode.completion] == [
        "seed 4", "a0", "turn 1", "a1", "turn 2", "a2", "turn 3",
    ]  # fmt: skip
    assert [i.get("turn") for _, i in seen] == [None, 1, 2, 3]
    env.reset(seed=5)
    env.step("b")
    assert seen == kept and episode.columns == {"seed": 4, "turns": 3}
    assert len(env.opening) == 1, "what the environment keeps is its own"


def test_episodes_of_such_environments_are_those_of_tidy_ones(tmp_path) -> None:
    path = small_policy(tmp_path)
    policy = load_causal(path), load_tokenizer(path)
    rollouts = play(*policy, TextVectorEnv(Recycling, 2), [4, 9], Sampling(4, 120))
    for seed, episode in zip((4, 9), rollouts.episodes, strict=True):
        said = [m["content"] for m in episode.prompt + episode.completion if m["role"] == "user"]
        assert said == [f"seed {seed}", "turn 1", "turn 2", "turn 3"]
        assert episode.columns == {"seed": seed, "turns": 3}
    assert rollouts.returns == [3.0, 3.0]


class Foreign(gymnasium.Env):
    """Another library's environment, which shows what it is given, one after the other."""

    def __init__(self, shown: list[Any], space: gymnasium.Space[Any]) -> None:
        self.shown, self.observation_space, self.action_space = shown, space, gymnasium.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.left = list(self.shown)
        return self.left.pop(0), {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self.left.pop(0), 1.0, not self.left, False, {}


@pytest.mark.parametrize(
    ("shown", "space", "message"),
    [
        (["one", 2.5], Text(), r"the environment shows 2\.5 \(float\): expected text"),
        (["one", None], Text(), r"the environment shows None \(NoneType\): expected text"),
        ([[HELLO], ["bye"]], Chat(), "shows a conversation that is not the one before with more behind it"),
        ([[HELLO], [HELLO, "bye"]], Chat(), "FromGymnasium, episode 0, turn 1 says 'bye'"),
    ],
)
def test_another_librarys_environment_that_shows_no_text(shown: list[Any], space: Any, message: str) -> None:
    env = FromGymnasium(Foreign(shown, space))
    env.reset(seed=0)
    with pytest.raises((TypeError, ValueError), match=message):
        env.step(0)


def test_actions_that_it_does_not_take_are_refused_before_it_sees_them() -> None:
    env = FromGymnasium(Foreign(["one", "two"], Text()))
    env.reset(seed=0)
    for action in (2, -1, "left", 0.5, None):
        with pytest.raises(ValueError, match=r"action is .*: expected one of Discrete\(2\)"):
            env.step(action)
    assert env.step(1)[0][-1] == {"role": "user", "content": "two"}, "the episode goes on"


def test_text_of_numpy_is_text() -> None:
    env = FromGymnasium(Foreign([np.str_("one"), np.str_("two")], Text()))
    assert type(env.reset(seed=0)[0][0]["content"]) is str
    assert env.step(0)[0][-1]["content"] == "two"
