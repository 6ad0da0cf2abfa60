"""Environments under bad treatment: any text, any order of calls, for very long."""

from __future__ import annotations

import gc
import math
import os
import resource
import time

import gymnasium
import pytest
from gymnasium.error import ResetNeeded
from hypothesis import given, settings
from hypothesis import strategies as st

import envs  # noqa: F401
from envs.spaces import Text

# an environment that lives on files of the user's is treated in its own tests
IDS = [
    spec.id
    for spec in gymnasium.registry.values()
    if spec.id.startswith("rlobj/") and not spec.id.startswith("rlobj/MovieBooking")
]

NASTY = [
    "",
    " \n\t ",
    "x" * 100_000,
    "goodbye . " * 10_000,
    "\x00\x1b[2J\x7f\x9b",
    "half \ud83d an emoji \udc00",
    "مرحبا \u202e txet desrever",
    "e\u0301\u200d👩‍👩‍👧‍👦" * 50,
    "<eos> <|im_end|> [/INST] </s> <|end|><|user|> <|assistant|>",
    "{name} {thing} %s %(x)s {{0}} {0!r:>{1}}",
    r"\d+(.*)[a-",
]
CALLS = st.lists(
    st.one_of(
        st.tuples(st.just("reset"), st.one_of(st.none(), st.integers(0, 2**31 - 1))),
        st.tuples(st.just("step"), st.one_of(st.sampled_from(NASTY), st.text(st.characters(), max_size=60))),
        st.tuples(st.just("wrong"), st.sampled_from([None, 1.5, b"bytes", ["list"], -1, 10**9, "x" * 100_001])),
        st.tuples(st.just("render"), st.none()),
    ),
    max_size=25,
)


@pytest.mark.parametrize("env_id", IDS)
@settings(max_examples=40, deadline=None)
@given(calls=CALLS)
def test_any_order_of_calls_keeps_gymnasiums_contract(env_id, calls):
    env = gymnasium.make(env_id, disable_env_checker=True, render_mode="ansi").unwrapped
    env.action_space.seed(0)
    running = False
    for call, argument in calls:
        if call == "reset":
            observation, info = env.reset(seed=argument)
            assert env.observation_space.contains(observation) and isinstance(info, dict)
            running = True
        elif call == "render":
            assert isinstance(env.render(), str)
        elif not running:
            with pytest.raises(ResetNeeded):
                env.step(argument)
        elif call == "wrong" and not env.action_space.contains(argument):
            with pytest.raises(ValueError, match=r"action is .*: expected one of"):
                env.step(argument)
        else:
            action = argument if isinstance(env.action_space, Text) and call == "step" else env.action_space.sample()
            observation, reward, terminated, truncated, info = env.step(action)
            assert env.observation_space.contains(observation) and math.isfinite(reward)
            assert isinstance(terminated, bool) and isinstance(truncated, bool)
            running = not (terminated or truncated)


@pytest.mark.parametrize("text", NASTY)
@pytest.mark.parametrize("env_id", IDS)
def test_what_cannot_be_printed_is_not(env_id, text, capsys):
    env = gymnasium.make(env_id, disable_env_checker=True, render_mode="human").unwrapped
    env.reset(seed=0)
    started = time.perf_counter()
    env.step(text if isinstance(env.action_space, Text) else env.action_space.sample())
    assert time.perf_counter() - started < 2, "a long text costs no more than reading it"
    shown = capsys.readouterr().out
    assert "\x1b" not in shown and shown.encode("utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("env_id", IDS)
def test_memory_is_flat_over_100_000_steps(env_id):
    env = gymnasium.make(env_id, disable_env_checker=True).unwrapped
    env.action_space.seed(0)

    def play(steps: int) -> None:
        over = True
        for step in range(steps):
            if over:
                env.reset(seed=step)
            _, _, terminated, truncated, _ = env.step(env.action_space.sample())
            over = terminated or truncated
        gc.collect()

    play(20_000)
    before = resident_mebibytes()
    play(100_000)
    assert resident_mebibytes() - before < 8


def resident_mebibytes() -> float:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20


if not os.path.exists("/proc/self/statm"):
    test_memory_is_flat_over_100_000_steps = pytest.mark.skip("no /proc here")(test_memory_is_flat_over_100_000_steps)
