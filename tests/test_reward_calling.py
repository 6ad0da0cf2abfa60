"""Every form of reward function: batch or one episode, sync or async, with parameters, concurrent, too slow."""

from __future__ import annotations

import asyncio
import functools
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from reward_models import as_reward, load_reward

PROMPTS = [[{"role": "user", "content": "hi"}]] * 3
SAID = [[{"role": "assistant", "content": "a" * n}] for n in (1, 2, 3)]


def length(prompts, completions, factor=1.0, **columns):
    return [factor * len(completion[-1]["content"]) for completion in completions]


async def async_length(prompts, completions, **columns):
    await asyncio.sleep(0)
    return length(prompts, completions)


def one_length(messages):
    assert [m["role"] for m in messages] == ["user", "assistant"]
    return float(len(messages[-1]["content"]))


async def async_one_length(messages, turns=0):
    await asyncio.sleep(0)
    return len(messages[-1]["content"]) + turns


class Counting:
    """A class: made with the parameters, then called."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, completions, **columns):
        return length(None, completions, self.factor)


def make_length(factor: float):
    return functools.partial(length, factor=factor)


@pytest.mark.parametrize(
    ("function", "kwargs"),
    [
        (length, {}),
        (async_length, {}),
        (one_length, {}),
        (async_one_length, {}),
        (lambda **columns: length(**columns), {}),
        (lambda **columns: async_length(**columns), {}),  # a coroutine that nobody would have awaited
        (lambda completions: length(None, completions), {}),  # takes no columns
        (functools.partial(length, factor=1.0), {}),
        (Counting, {"factor": 1.0}),
        (Counting(1.0), {}),
        (make_length, {"factor": 1.0}),
    ],
)
@pytest.mark.parametrize("concurrency", [None, 1, 2, 8])
def test_every_form_gives_the_same(function, kwargs, concurrency):
    reward = as_reward(function, kwargs, concurrency=concurrency)
    assert reward(prompts=PROMPTS, completions=SAID, label=["x"] * 3) == [1.0, 2.0, 3.0]
    assert reward(PROMPTS, SAID) == [1.0, 2.0, 3.0], "by position too"


def test_parameters_and_columns():
    assert as_reward(length, {"factor": 2})(PROMPTS, SAID) == [2.0, 4.0, 6.0]
    assert as_reward(async_one_length)(PROMPTS, SAID, turns=[10, 20, 30], other=object()) == [11, 22, 33]
    assert as_reward(async_one_length, {"turns": 5})(PROMPTS, SAID, turns=[10, 20, 30]) == [6, 7, 8], "given ones win"
    texts = as_reward(one_length)(["hi"] * 2, ["a", "ab"])
    assert texts == [1.0, 2.0], "TRL's prompts and completions may be text"


@pytest.mark.parametrize(
    ("function", "kwargs", "message"),
    [
        (length, {"factr": 2}, "reward 'length' has no parameter 'factr'; did you mean 'factor'"),
        (length, {"completions": []}, "has no parameter 'completions'"),
        (one_length, {"factor": 2}, r"'one_length' has no parameter 'factor' \(it has none\)"),
        (Counting, {"fctor": 1}, "did you mean 'factor'"),
        (Counting, {}, "'factor' is not given"),
        (lambda text: 1.0, {}, r"takes \(text\), and 'text' is not given: expected \(prompts, completions"),
    ],
)
def test_parameters_that_do_not_fit(function, kwargs, message):
    with pytest.raises(ValueError, match=message):
        as_reward(function, kwargs)


def test_what_is_no_reward():
    with pytest.raises(TypeError, match="is 3: expected a function"):
        as_reward(3)
    with pytest.raises(TypeError, match="'make' made 4: expected a function"):

        def make(n: int) -> int:
            return n

        as_reward(make, {"n": 4})
    for wrong in ({"concurrency": 0}, {"timeout": 0.0}, {"timeout": float("nan")}):
        with pytest.raises(ValueError, match=r"is (0|0\.0|nan): expected"):
            as_reward(length, **wrong)


@pytest.mark.parametrize("returned", [[1.0], "abc", 1.0, {0: 1.0, 1: 1.0, 2: 1.0}, None])
def test_another_number_of_values_is_no_list(returned):
    with pytest.raises(ValueError, match=r"returned .* (for|expected a list of) 3"):
        as_reward(lambda **columns: returned)(PROMPTS, SAID)


@pytest.mark.parametrize("is_async", [True, False])
def test_so_many_at_once_and_no_more(is_async):
    running, most, lock = 0, 0, threading.Lock()

    def begin(step: int) -> None:
        nonlocal running, most
        with lock:
            running += step
            most = max(most, running)

    async def slow(messages):
        begin(1)
        await asyncio.sleep(0.05)
        begin(-1)
        return 1.0

    def slow_in_thread(messages):
        begin(1)
        time.sleep(0.05)
        begin(-1)
        return 1.0

    started = time.perf_counter()
    reward = as_reward(slow if is_async else slow_in_thread, concurrency=4)
    assert reward(PROMPTS * 4, SAID * 4) == [1.0] * 12
    assert most == 4 and 0.15 <= time.perf_counter() - started < 0.5


@pytest.mark.parametrize("is_async", [True, False])
def test_a_slow_call_is_that_episodes_failure(is_async):
    async def slow(messages):
        await asyncio.sleep(10 if len(messages[-1]["content"]) == 2 else 0)
        return 1.0

    def slow_in_thread(messages):
        time.sleep(2 if len(messages[-1]["content"]) == 2 else 0)
        return 1.0

    reward = as_reward(slow if is_async else slow_in_thread, timeout=0.2)
    started = time.perf_counter()
    first, second, third = reward.outcomes(PROMPTS, SAID)
    assert (first, third) == (1.0, 1.0) and isinstance(second, TimeoutError)
    assert "no answer within its timeout of 0.2 s" in str(second) and time.perf_counter() - started < 1.5
    with pytest.raises(TimeoutError, match="timeout of"):
        reward(PROMPTS, SAID)


def test_a_slow_batch_function_times_out():
    def stuck(prompts, completions, **columns):
        time.sleep(2)
        return [0.0] * 3

    with pytest.raises(TimeoutError, match="'stuck' gave no answer within its timeout"):
        as_reward(stuck, timeout=0.1)(PROMPTS, SAID)


def test_an_async_function_that_blocks_is_told_so(monkeypatch):
    monkeypatch.setattr("reward_models.calling.GRACE", 0.2)

    async def blocking(messages):
        time.sleep(1)
        return 1.0

    with pytest.raises(TimeoutError, match="'blocking' blocks its event loop"):
        as_reward(blocking, timeout=0.05, concurrency=8)(PROMPTS, SAID)
    assert as_reward(async_length)(PROMPTS, SAID) == [1.0, 2.0, 3.0], "the next reward has another loop"


def test_inside_a_running_loop():
    async def notebook():
        return as_reward(async_length)(PROMPTS, SAID)

    assert asyncio.run(notebook()) == [1.0, 2.0, 3.0]


def test_one_loop_for_clients_that_live_between_calls():
    loops = set()

    async def watching(messages):
        loops.add(asyncio.get_running_loop())
        return 0.0

    reward = as_reward(watching)
    reward(PROMPTS, SAID)
    reward(PROMPTS, SAID)
    assert len(loops) == 1


def test_an_exception_stands_in_its_episodes_place():
    def picky(messages):
        if len(messages[-1]["content"]) == 2:
            raise KeyError("two")
        return 1.0

    for concurrency in (None, 3):
        outcomes = as_reward(picky, concurrency=concurrency).outcomes(PROMPTS, SAID)
        assert outcomes[::2] == [1.0, 1.0] and isinstance(outcomes[1], KeyError)


def test_entry_points_are_found(tmp_path: Path) -> None:
    (tmp_path / "their_rewards.py").write_text("def polite(messages, weight=1.0):\n    return weight\n")
    info = tmp_path / "their_rewards-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-rewards\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text("[rlobj.rewards]\nextra-polite = their_rewards:polite\n")
    script = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from reward_models import load_reward\n"
        "print(load_reward('extra-polite', {'weight': 0.5})([[]], [[]]))\n"
        "try: load_reward('extra-polit')\nexcept ValueError as error: print(error)"
    )
    home = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", script], cwd=home, capture_output=True, text=True, check=True)
    scores, error = done.stdout.splitlines()
    assert scores == "[0.5]" and "did you mean 'extra-polite'" in error and "installed: extra-polite" in error


def test_shipped_ones_take_parameters_by_name() -> None:
    reward: Any = load_reward("length_window", {"low": 2, "high": 3})
    assert reward.__name__ == "length_window"
    with pytest.raises(ValueError, match="'length_window' has no parameter 'hihg'; did you mean 'high'"):
        load_reward("length_window", {"hihg": 3})
