"""Rewards in processes of their own: what hangs or crashes costs its own episode alone, and nothing outlives us."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import gymnasium
import pytest
from small import small_args, small_policy

import envs  # noqa: F401
from envs.core import Episode
from envs.rewards import BadReward, score_episodes
from reward_models import load_reward
from rlobj.config import RewardConfig
from rlobj.policies import load_causal, load_tokenizer
from rlobj.reward_checks import composed
from rlobj.trainer import ObjectiveTrainer

HOME = Path(__file__).parents[1]
EPISODES = [
    Episode(
        seed, [{"role": "user", "content": "hello"}], [{"role": "assistant", "content": f"text {seed}"}], {"n": seed}
    )
    for seed in (4, 5, 6)
]
CODE = """
import asyncio, ctypes, os, re, subprocess, sys, time

class Told(Exception):
    def __init__(self, one, two):
        super().__init__("told")

def spin(n):
    if n == 5:
        while True:
            pass
    return float(n)

def batch(prompts, completions, n, **columns):
    return [spin(each) for each in n]

def one(messages, n):
    return spin(n)

def holds_the_lock(messages, n):
    return float(bool(re.match("(a+)+b", "a" * 40))) if n == 5 else float(n)

def child_of_a_child(messages, n, file="/dev/null"):
    if n == 5:
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        with open(file, "w") as told:
            told.write(str(child.pid))
        child.wait()
    return float(n)

async def awaits(messages, n):
    await asyncio.sleep(60 if n == 5 else 0)
    return float(n)

def leaves(prompts, completions, n, **columns):
    if 5 in n:
        os._exit(3)
    return n

def exits(messages, n):
    return sys.exit(4) if n == 5 else n

def crashes(messages, n):
    return ctypes.string_at(0) if n == 5 else n

def raises(messages, n):
    return {}["five"] if n == 5 else n

def raises_its_own(messages, n):
    if n == 5:
        raise Told(1, 2)
    return n

def down(prompts, completions, **columns):
    raise ConnectionError("refused")

def noisy(messages, n):
    print("x" * 100_000)
    os.write(1, b"noise")
    sys.stderr.write("")
    return os.getpid()

def much(messages):
    return "x" * 2**27

def a_lambda(messages):
    return lambda: 1

class Scaled:
    def __init__(self, factor):
        self.factor, self.calls = factor, 0

    def __call__(self, prompts, completions, n, **columns):
        self.calls += 1
        return [self.factor * each + 100 * self.calls for each in n]

def tells(prompts, completions, log_metric, trainer_state, **columns):
    log_metric("mine", trainer_state.global_step)
    return [1.0] * len(prompts)

def slow(messages, n):
    time.sleep(0.5)
    return os.getpid()

def starts_a_process(messages):
    import multiprocessing
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.map(float, ["2"])[0]

def third(prompts, completions, completion_ids, episode_seed=None, **columns):
    for ids in completion_ids:
        while sum(ids) % 3 == 0:
            pass
    return [float(len(set(ids))) for ids in completion_ids]
"""


@pytest.fixture(scope="module")
def code(tmp_path_factory):
    file = tmp_path_factory.mktemp("rewards") / "mine.py"
    file.write_text(CODE)
    return file


@pytest.fixture
def isolated(code):
    def load(name, kwargs=None, timeout=1.0, concurrency=None):
        return load_reward(f"{code}:{name}", kwargs, timeout=timeout, concurrency=concurrency, isolated=True)

    return load


@pytest.mark.parametrize("name", ["batch", "one", "holds_the_lock", "child_of_a_child", "awaits"])
def test_a_hang_costs_its_own_episode(isolated, name):
    reward = isolated(name)
    began = time.monotonic()
    for _ in range(2):  # it goes on afterwards
        scores = score_episodes(reward, EPISODES, "skip")
        assert str(scores.values) == "[4.0, nan, 6.0]" and [f.kind for f in scores.failures] == ["timeout"]
        assert (
            "gave no answer within its timeout of 1 s: its process was killed, for episode 5" in scores.failures[0].text
        )
    assert time.monotonic() - began < 20
    with pytest.raises(BadReward, match="its process was killed, for episode 5"):
        score_episodes(reward, EPISODES)


@pytest.mark.parametrize(
    ("name", "how"),
    [("leaves", "with exit status 3"), ("exits", "with exit status 4"), ("crashes", "by signal SIGSEGV")],
)
def test_the_end_of_the_process_is_an_error(isolated, name, how):
    scores = score_episodes(isolated(name, timeout=20), EPISODES, "skip")
    assert str(scores.values) == "[4.0, nan, 6.0]" and [f.kind for f in scores.failures] == ["exception"]
    assert (
        f"the process of reward {name!r} ended in the middle of a call, {how}, for episode 5" in scores.failures[0].text
    )


def test_what_it_raises_is_told_as_if_it_were_here(isolated, code):
    scores = score_episodes(isolated("raises"), EPISODES, "skip")
    line = CODE[: CODE.index('{}["five"]')].count("\n") + 1
    assert f"raised KeyError: 'five' ({code}, line {line}), for episode 5" in scores.failures[0].text
    scores = score_episodes(isolated("raises_its_own"), EPISODES, "skip")
    assert f"raised RuntimeError: Told: told ({code}, line" in scores.failures[0].text, "it cannot be unpickled"
    reward = isolated("down")
    assert "raised ConnectionError: refused" in score_episodes(reward, EPISODES, "skip").failures[2].text


def test_noise_harms_nothing(isolated, capfd):
    reward = isolated("noisy")
    first, second = (score_episodes(reward, EPISODES).values for _ in range(2))
    assert len({*first, *second}) == 1 and first[0] != os.getpid(), "one process for all calls"


@pytest.mark.parametrize(
    ("name", "words"), [("much", "134217.* bytes: expected at most"), ("a_lambda", "cannot be sent")]
)
def test_what_cannot_be_sent_back(isolated, name, words):
    with pytest.raises((TypeError, ValueError), match=words):
        isolated(name)([[]], [[]])


def test_what_cannot_be_sent_there(isolated):
    with pytest.raises(
        TypeError, match=r"'batch' has a process of its own, and its argument 'odd' \(function\) cannot"
    ):
        isolated("batch")([[]], [[]], n=[1], odd=lambda: 1)


def test_parameters_state_and_what_is_logged(isolated):
    reward = isolated("Scaled", {"factor": 2})
    assert [list(reward([[]], [[]], n=[3])) for _ in range(2)] == [[106], [206]]
    logged = {}
    state = type("State", (), {})()
    state.global_step = 7
    assert isolated("tells")([[]], [[]], log_metric=logged.__setitem__, trainer_state=state) == [1.0]
    assert logged == {"mine": 7}


def test_processes_at_the_same_time(isolated):
    reward = isolated("slow", concurrency=3, timeout=20)
    assert len(set(score_episodes(reward, EPISODES).values)) == 3
    began = time.monotonic()
    assert len(set(score_episodes(reward, EPISODES).values)) == 3
    assert time.monotonic() - began < 1.4, "not one after the other"


def test_functions_may_start_processes(isolated):
    assert isolated("starts_a_process", timeout=20)([[]], [[]]) == [2.0]


def test_shipped_ones_and_settings(code, isolated):
    reward = load_reward("length_window", {"high": 2}, timeout=5, isolated=True)
    assert reward([[]], [[{"role": "assistant", "content": "three words here"}]]) == load_reward(
        "length_window", {"high": 2}
    )([[]], [[{"role": "assistant", "content": "three words here"}]])
    with pytest.raises(ValueError, match="isolated is true and timeout is None: expected the seconds after which"):
        load_reward("success", isolated=True)
    with pytest.raises(ValueError, match="did you mean 'batch'"):
        isolated("bath")
    with pytest.raises(ValueError, match="no parameter 'facto'; did you mean 'factor'"):
        isolated("Scaled", {"facto": 2})


def running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks processes up in /proc")


@needs_proc
def test_what_it_has_started_ends_with_it(isolated, tmp_path):
    with pytest.raises(TimeoutError):
        isolated("child_of_a_child", {"file": str(tmp_path / "pid")})([[]], [[]], n=[5])
    time.sleep(0.2)
    assert not running((tmp_path / "pid").read_text())


@needs_proc
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, None], ids=["killed", "terminated", "ends"])
def test_no_process_outlives_the_one_that_started_it(tmp_path, code, how):
    (tmp_path / "spins.py").write_text(
        "import os\n"
        "def spins(messages, file, stays):\n"
        "    open(file, 'w').write(str(os.getpid()))\n"
        "    while stays:\n        pass\n"
        "    return 1.0\n"
    )
    file = tmp_path / "pid"
    script = (
        "from reward_models import load_reward\n"
        f"reward = load_reward({str(tmp_path / 'spins.py') + ':spins'!r}, "
        f"{{'file': {str(file)!r}, 'stays': {how is not None}}}, timeout=100, isolated=True)\n"
        "reward([[]], [[]])\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": str(HOME)})
    until = time.monotonic() + 30
    while not (file.exists() and file.read_text()) and time.monotonic() < until:
        time.sleep(0.05)
    if how is not None:
        assert running(file.read_text())
        parent.send_signal(how)
    parent.wait(20)
    while running(file.read_text()) and time.monotonic() < until:
        time.sleep(0.05)
    assert not running(file.read_text())


def test_parts_of_a_composition(code):
    """What a recipe describes: the part that hangs takes its own episode out, with what the others say of it."""
    tree = {"sum": {"slow": {"reward": f"{code}:batch", "weight": 2}, "fixed": {"reward": f"{code}:raises"}}}
    reward = composed(RewardConfig(kind="function", compose=tree, timeout=1.0, isolated=True))
    scores = score_episodes(reward, EPISODES, "skip")
    assert str(scores.values) == "[12.0, nan, 18.0]" and len(scores.failures) == 1


def test_a_run_goes_on_without_the_episodes_that_hang(tmp_path, isolated):
    """A real rollout: those whose tokens add up to a multiple of three hang, the others keep their rewards."""
    directory = small_policy(tmp_path / "policy")
    seen = []

    class Watched:
        """The reward, with a look at what it was asked and what it gave."""

        __name__ = "third"

        def __init__(self):
            self.inner = isolated("third", timeout=0.5)

        def outcomes(self, prompts, completions, completion_ids, **columns):
            values = self.inner.outcomes(prompts, completions, completion_ids=completion_ids, **columns)
            seen.extend(zip(completion_ids, values, strict=True))
            return values

        def __call__(self, prompts, completions, **columns):
            raise AssertionError("outcomes is asked")

    trainer = ObjectiveTrainer(
        load_causal(directory),
        args=small_args(tmp_path / "out", max_steps=2),
        processing_class=load_tokenizer(directory),
        env=gymnasium.make("rlobj/CustomerService-v0", disable_env_checker=True),
        reward=Watched(),
        on_error="skip",
        train_seeds=list(range(6)) * 9,
        max_length=128,
    )
    trainer.train()
    steps = trainer.state.log_history[:2]
    shares = [step["reward/failed"] for step in steps]
    assert all(step.get("reward/failed/timeout", 0.0) == share for step, share in zip(steps, shares, strict=True))
    assert all(step["reward/none"] == 0.0 for step in steps), "a failure, not a reward that does not apply"
    kept = [(ids, value) for ids, value in seen if sum(ids) % 3]
    assert len(kept) == len(seen) == 16 - round(8 * sum(shares)) and 0 < sum(shares) < 2
    assert all(value == len(set(ids)) for ids, value in kept)
    assert all(math.isfinite(step["loss"]) for step in steps)
