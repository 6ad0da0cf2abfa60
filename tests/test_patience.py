"""Environments that raise, hang, or never end (FAULTS row 24)."""

from __future__ import annotations

import json
import random
import sys
import time

import gymnasium
import pytest
import torch
from small import small_policy

from envs.core import Message, StepResult, TextEnv
from envs.patience import Patience
from envs.spaces import Text
from envs.vector import TextVectorEnv
from rlobj.cli import main
from rlobj.episodes import episode_dataset
from rlobj.policies import load_causal, load_tokenizer
from rlobj.rollout import Sampling, play


class Faulty(TextEnv):
    """Four turns; the third of episode 1 fails, in as many environments as `faults` has left."""

    def __init__(self, faults: list[str], fickle: bool = False) -> None:
        super().__init__()
        self.faults, self.fickle, self.action_space = faults, fickle, Text()

    def _begin(self, seed: int, rng: random.Random) -> list[Message]:
        self.turns, self.rng = 0, random.Random() if self.fickle else rng
        return [{"role": "user", "content": f"seed {seed}"}]

    def _reply(self, action: str) -> tuple[Message, StepResult]:
        self.turns += 1
        if self._seed == 1 and self.turns == 3 and self.faults:
            if self.faults.pop() == "raise":
                raise ConnectionError("the line is dead")
            time.sleep(5)
        new = [{"role": "user", "content": f"turn {self.turns} {self.rng.random()}"}]
        return {"role": "assistant", "content": action}, StepResult(new, self.turns == 4, False, {}, float(self.turns))

    def _columns(self) -> dict:
        return {}

    def own_reward(self) -> float:
        return 0.0


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    path = small_policy(tmp_path_factory.mktemp("policy"))
    return load_causal(path), load_tokenizer(path)


def played(policy, faults, patience, **kwargs):
    torch.manual_seed(0)
    return play(
        *policy, TextVectorEnv(lambda: Faulty(faults, **kwargs), 3, patience=patience), [0, 1, 2], Sampling(4, 300)
    )


@pytest.mark.parametrize(
    ("fault", "patience", "kind"),
    [
        ("raise", Patience(), ConnectionError),
        ("raise", Patience(restarts=1), ConnectionError),
        ("hang", Patience(step_timeout=0.1), TimeoutError),
        ("hang", Patience(step_timeout=0.1, restarts=1), TimeoutError),
    ],
)
def test_an_environment_that_fails_is_named(policy, fault, patience, kind):
    with pytest.raises(kind) as error:
        played(policy, [fault] * 2, patience)
    (note,) = error.value.__notes__
    again = ", begun again 1 times" if patience.restarts else ""
    assert note == f"in environment 1 of 3: episode 1, turn 3{again}"


@pytest.mark.parametrize("wrapped", [False, True])
def test_an_episode_that_is_begun_again_goes_on_as_if_nothing_had_happened(policy, wrapped):
    limit = lambda env: gymnasium.wrappers.TimeLimit(env, 9) if wrapped else env  # noqa: E731
    faults = ["raise", "hang"]
    patience = Patience(step_timeout=0.2, restarts=2)

    def run(left):
        torch.manual_seed(0)
        vector = TextVectorEnv(lambda: limit(Faulty(left)), 3, patience=patience)
        return play(*policy, vector, [0, 1, 2], Sampling(4, 300))

    result, smooth = run(faults), run([])
    assert not faults
    assert result.trajectories == smooth.trajectories and result.returns == smooth.returns == [10.0] * 3
    assert result.episodes == smooth.episodes


class Reluctant(Faulty):
    """Episode 1 cannot be reset, as often as `faults` has one left."""

    def _begin(self, seed: int, rng: random.Random) -> list[Message]:
        if seed == 1 and self.faults:
            if self.faults.pop() == "raise":
                raise ConnectionError("nobody picks up")
            time.sleep(5)
        return super()._begin(seed, rng)


def reset_of(faults: list[str], patience: Patience) -> TextVectorEnv:
    vector = TextVectorEnv(lambda: Reluctant(faults), 3, patience=patience)
    vector.reset(seed=[0, 1, 2])
    return vector


@pytest.mark.parametrize(
    ("faults", "patience", "error", "again"),
    [
        (["raise"], Patience(), "nobody picks up", ""),
        (["hang"], Patience(step_timeout=0.1), r"a reset took longer than step_timeout, 0\.1 s", ""),
        (["raise"] * 3, Patience(restarts=2), "nobody picks up", ", begun again 2 times"),
    ],
)
def test_an_environment_that_cannot_be_reset_is_named(faults, patience, error, again):
    with pytest.raises(OSError, match=error) as raised:
        reset_of(faults, patience)
    assert raised.value.__notes__ == [f"in environment 1 of 3: episode 1, at its reset{again}"]
    assert not faults


def test_a_reset_that_fails_is_tried_in_a_new_environment(policy):
    faults = ["raise", "hang"]
    vector = TextVectorEnv(lambda: Reluctant(faults), 3, patience=Patience(step_timeout=0.2, restarts=2))
    torch.manual_seed(0)
    result = play(*policy, vector, [0, 1, 2], Sampling(4, 300))
    assert result.trajectories == played(policy, [], Patience()).trajectories and not faults


def test_gymnasiums_step_names_what_fails_too():
    vector = TextVectorEnv(lambda: Faulty(["raise"]), 3)
    vector.reset(seed=[0, 1, 2])
    for _ in range(2):
        vector.step(("a",) * 3)
    with pytest.raises(ConnectionError) as raised:
        vector.step(("a",) * 3)
    assert raised.value.__notes__ == ["in environment 1 of 3: episode 1, a step"]
    assert isinstance(vector.envs[0], Faulty), "the vector holds its environments again"


def test_a_data_set_of_episodes_names_the_one_that_cannot_be_reset():
    with pytest.raises(ConnectionError) as raised:
        episode_dataset(Reluctant(["raise"]), [0, 1])
    assert raised.value.__notes__ == ["at the reset of episode 1"]


def test_the_command_line_says_where_it_was(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "unwilling.py").write_text(UNWILLING)
    path = small_policy(tmp_path / "policy")
    arguments = ["--env.id", "unwilling:unwilling/Env-v0", "--policy.model", str(path), "--policy.max_length", "100"]
    assert main(["run", "environment", *arguments, "--objective.lambda_sup", "0", "--warm_start.epochs", "0",
                 "--training.steps", "2", "--output_dir", str(tmp_path)]) == 2  # fmt: skip
    assert capsys.readouterr().err.endswith("error: nobody picks up\nat the reset of episode 3\n")


def test_a_reward_model_is_normalised_with_the_same_patience(tmp_path, monkeypatch, capsys):
    """The warm start plays the training's episodes for it."""
    monkeypatch.syspath_prepend(str(tmp_path))
    once = "begun.append(seed) if seed == 3 else None\n        if begun == [3] and"
    source = UNWILLING.replace("unwilling", "unsteady").replace("if seed == 3", f"{once} seed == 3")
    (tmp_path / "unsteady.py").write_text(f"begun = []\n{source}")
    path = small_policy(tmp_path / "policy")
    pairs = [{"prompt": f"hello {n}", "chosen": f"good day {n}", "rejected": f"go {n}"} for n in range(6)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))

    def status(restarts: int) -> int:
        return main(["reward", "environment", "--env.id", "unsteady:unsteady/Env-v0", "--policy.model", str(path),
                     "--policy.max_length", "100", "--objective.lambda_sup", "0", "--warm_start.epochs", "0",
                     "--reward.kind", "trained", "--reward.normalise", "true", "--training.steps", "2",
                     "--data.preferences", str(tmp_path / "pairs.jsonl"), "--env.restarts", str(restarts),
                     "--name", f"restarts-{restarts}", "--output_dir", str(tmp_path)])  # fmt: skip

    assert status(0) == 2
    assert "error: nobody picks up\nin environment 3 of 16: episode 3, at its reset\n" in capsys.readouterr().err
    sys.modules["unsteady"].begun.clear()
    assert status(1) == 0
    assert sys.modules["unsteady"].begun == [3, 3], "begun again, once"


UNWILLING = """
import gymnasium
from envs import StepResult, TextEnv
from envs.spaces import Text

class Unwilling(TextEnv):
    action_space = Text()

    def _begin(self, seed, rng):
        if seed == 3:
            raise ConnectionError("nobody picks up")
        return [{"role": "user", "content": "hello"}]

    def _reply(self, action):
        return {"role": "assistant", "content": action}, StepResult([], True, False, {})

    def _columns(self):
        return {}

    def own_reward(self):
        return 0.0

gymnasium.register("unwilling/Env-v0", entry_point=Unwilling)
"""


def test_an_episode_that_is_another_when_begun_again_is_told(policy):
    with pytest.raises(ValueError, match="episode 1 was another when it was begun again"):
        played(policy, ["raise"], Patience(restarts=1), fickle=True)


def test_patience_has_bounds():
    with pytest.raises(ValueError, match="step_timeout is 0: expected seconds above 0"):
        Patience(step_timeout=0)
    with pytest.raises(ValueError, match="restarts is -1: expected at least 0"):
        Patience(restarts=-1)
