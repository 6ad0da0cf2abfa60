"""When a reward misbehaves: whatever it does, the declared policy decides, and nothing trained is lost."""

from __future__ import annotations

import asyncio
import logging
import math
from collections import Counter
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from small import small_args, small_policy

import envs  # noqa: F401
from envs.core import Episode
from envs.customer_service import CustomerServiceEnv
from envs.rewards import KINDS, BadReward, score_episodes
from envs.vector import TextVectorEnv
from reward_models import as_reward
from rlobj.policies import load_causal, load_tokenizer
from rlobj.rollout import EnvironmentRollout, Sampling
from rlobj.trainer import ObjectiveTrainer

EPISODES = [
    Episode(
        seed, [{"role": "user", "content": "hello"}], [{"role": "assistant", "content": f"text {seed}"}], {"n": seed}
    )
    for seed in (4, 5, 6)
]


def returning(*values: Any) -> Any:
    def reward(prompts, completions, n, **columns):
        return [values[each - 4] for each in n]

    return reward


async def never_awaited() -> float:
    return 1.0


GOOD = [1, 1.0, True, np.float32(1.0), np.int64(1), torch.tensor(1.0), torch.tensor([1.0]), np.array(1.0)]
BAD = [
    ("type", "1.0", r"returned '1.0' \(str\): expected a number or None"),
    ("type", b"1", "returned b'1'"),
    ("type", [1.0], r"returned \[1.0\] \(list\)"),
    ("type", 1j, "complex"),
    ("type", torch.ones(2), "Tensor"),
    ("type", torch.ones((), requires_grad=True), "carries a gradient: return value.detach"),
    ("nan", math.nan, "returned nan: expected a finite number"),
    ("nan", torch.tensor(math.nan), "returned nan"),
    ("infinite", -math.inf, "returned -inf"),
    ("infinite", np.float64("inf"), "returned inf"),
]


@pytest.mark.parametrize("value", GOOD, ids=lambda value: type(value).__name__)
def test_numbers_of_any_library(value):
    assert score_episodes(returning(value, 2, 3), EPISODES).values == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("whole", [np.array([1.0, 2.0, 3.0]), torch.tensor([1.0, 2.0, 3.0]), (1, 2, 3)])
def test_lists_of_any_library(whole):
    assert score_episodes(lambda **columns: whole, EPISODES).values == [1.0, 2.0, 3.0]


@pytest.mark.parametrize(("kind", "value", "message"), BAD)
def test_what_is_no_number_stops_is_skipped_or_penalised(kind, value, message):
    reward = returning(1.0, value, None)
    with pytest.raises(BadReward, match=message) as stopped:
        score_episodes(reward, EPISODES)
    assert "reward 'reward'" in str(stopped.value) and "for episode 5, which begins:" in str(stopped.value)
    assert "assistant: text 5" in str(stopped.value) and "user: hello" in str(stopped.value)
    skipped, penalised = (score_episodes(reward, EPISODES, policy) for policy in ("skip", -2.0))
    assert str(skipped.values) == "[1.0, nan, nan]" and str(penalised.values) == "[1.0, -2.0, nan]"
    assert [f.kind for f in skipped.failures] == [f.kind for f in penalised.failures] == [kind] and kind in KINDS


def test_none_is_no_failure():
    assert str(score_episodes(returning(None, 1.0, None), EPISODES)) == "Scores(values=[nan, 1.0, nan], failures=[])"


def test_a_coroutine_that_nobody_awaited():
    scores = score_episodes(lambda **columns: [1.0, never_awaited(), 2.0], EPISODES, "skip")
    assert scores.failures[0].kind == "type" and "returned a coroutine that nobody awaited" in scores.failures[0].text
    with pytest.raises(BadReward, match=r"is async .*as_reward\(reward\)"):

        async def reward(**columns):
            return [1.0] * 3

        score_episodes(reward, EPISODES)
    assert score_episodes(as_reward(reward), EPISODES).values == [1.0] * 3


@pytest.mark.parametrize("returned", [[1.0], [1.0] * 4, [], 1.0, "abc", {4: 1.0, 5: 1.0, 6: 1.0}, None])
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_wrong_count_is_never_stretched(returned, wrapped):
    def reward(**columns):
        return returned

    given = as_reward(reward) if wrapped else reward
    with pytest.raises(BadReward, match=r"returned .*(for 3 episodes|expected a list of 3 numbers)"):
        score_episodes(given, EPISODES)
    scores = score_episodes(given, EPISODES, "skip")
    assert [f.kind for f in scores.failures] == ["count"] * 3 and all(map(math.isnan, scores.values))


def test_an_exception_is_that_episodes():
    calls = []

    def picky(prompts, completions, n, completion_ids, **columns):
        calls.append((n, completion_ids))
        if 5 in n:
            raise KeyError("no five")
        return [float(each) for each in n]

    with pytest.raises(
        BadReward, match=r"'picky' raised KeyError: 'no five' \(.*test_reward_failures.py, line \d+\), for episode 5"
    ) as stopped:
        score_episodes(picky, EPISODES, columns={"completion_ids": [[1], [2], [3]]})
    assert isinstance(stopped.value.__cause__, KeyError)
    assert calls == [([4, 5, 6], [[1], [2], [3]]), ([4], [[1]]), ([5], [[2]])], "and no further"
    scores = score_episodes(picky, EPISODES, -1.0, {"completion_ids": [[1], [2], [3]]})
    assert scores.values == [4.0, -1.0, 6.0] and scores.failures[0].kind == "exception"


def test_an_exception_that_no_episode_raises_alone():
    def crowded(prompts, **columns):
        if len(prompts) > 1:
            raise RuntimeError("too many")
        return [1.0]

    with pytest.raises(BadReward, match=r"raised RuntimeError: too many .*3 episodes in one call, though for none"):
        score_episodes(crowded, EPISODES)
    assert score_episodes(crowded, EPISODES, "skip").values == [1.0] * 3


def test_what_comes_from_outside_is_not_asked_again():
    calls = []

    def down(**columns):
        calls.append(1)
        raise ConnectionError("refused")

    assert Counter(f.kind for f in score_episodes(down, EPISODES, "skip").failures) == {"exception": 3}
    assert len(calls) == 1


def test_one_late_episode_is_a_timeout():
    async def late(messages, n):
        await asyncio.sleep(10 if n == 5 else 0)
        return n

    scores = score_episodes(as_reward(late, timeout=0.1), EPISODES, "skip")
    assert str(scores.values) == "[4.0, nan, 6.0]" and [f.kind for f in scores.failures] == ["timeout"]
    with pytest.raises(BadReward, match="gave no answer within its timeout of 0.1 s"):  # noqa: RUF043
        score_episodes(as_reward(late, timeout=0.1), EPISODES)


@pytest.mark.parametrize("policy", ["error", "drop", math.nan, math.inf, True, None])
def test_policies_that_are_none(policy):
    with pytest.raises(ValueError, match=r"on_error is .*: expected 'stop', 'skip', or a finite number"):
        CustomerServiceEnv(on_error=policy)


def test_environments_follow_the_policy():
    def broken(**columns):
        raise ValueError("broken")

    env = gymnasium.make("rlobj/CustomerService-v0", reward=broken, on_error=-3.0)
    env.reset(seed=0)
    assert env.step("goodbye")[1] == -3.0
    vector = TextVectorEnv(lambda: CustomerServiceEnv(reward=broken, on_error="skip"), 2)
    vector.reset(seed=[0, 1])
    assert np.isnan(vector.step(["goodbye"] * 2)[1]).all()


# In training --------------------------------------------------------------------------------------------------------


def trainer_of(tmp_path, reward, on_error="stop", **fields):
    directory = small_policy(tmp_path / "policy")
    return ObjectiveTrainer(
        load_causal(directory),
        args=small_args(tmp_path / "out", **fields),
        processing_class=load_tokenizer(directory),
        env=gymnasium.make("rlobj/CustomerService-v0", disable_env_checker=True),
        reward=reward,
        on_error=on_error,
        train_seeds=list(range(6)) * 9,
        max_length=128,
    )


def test_a_failure_loses_nothing_that_is_trained(tmp_path):
    """Stopped by its reward in the third step, then mended, a run ends where an undisturbed one does."""

    def good(prompts, completions, completion_ids, **columns):
        return [len(set(ids)) / 8 for ids in completion_ids]

    class FailsInTheThirdCall:
        calls = 0

        def __call__(self, prompts, completions, **columns):
            self.calls += 1
            if self.calls > 2:
                torch.rand(3)  # and moves the random state
                raise RuntimeError("the third")
            return good(prompts, completions, **columns)

    fields = {"max_steps": 4, "save_strategy": "steps", "save_steps": 100}
    straight = trainer_of(tmp_path / "a", good, **fields)
    straight.train()
    broken = trainer_of(tmp_path / "b", FailsInTheThirdCall(), **fields)
    with pytest.raises(BadReward, match="raised RuntimeError: the third") as stopped:
        broken.train()
    assert "checkpoint-2 holds the 2 steps" in stopped.value.__notes__[-1]
    mended = trainer_of(tmp_path / "b", good, **fields)
    mended.train(resume_from_checkpoint=str(tmp_path / "b/out/checkpoint-2"))
    for ours, theirs in zip(mended.model.parameters(), straight.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_failures_are_counted_and_told_once(tmp_path, caplog):
    def sometimes(prompts, completions, completion_ids, log_metric, trainer_state, **columns):
        log_metric("mine", float(trainer_state.global_step))
        values: list[Any] = [float(len(set(ids))) for ids in completion_ids]
        return ["text", math.nan, None, *values[3:]]

    trainer = trainer_of(tmp_path, sometimes, "skip", max_steps=2)
    with caplog.at_level(logging.WARNING, "rlobj"):
        trainer.train()
    first, second = trainer.state.log_history[:2]
    assert first["reward/failed"] == first["reward/none"] * 2 == 2 / 8
    assert first["reward/failed/type"] == first["reward/failed/nan"] == 1 / 8
    assert (first["mine"], second["mine"]) == (0.0, 1.0), "a reward is told what TRL tells its own"
    assert sum("told once" in record.getMessage() for record in caplog.records) == 2, "one for each kind"


def test_nothing_scored_at_all_is_not_trained_on(tmp_path):
    with pytest.raises(BadReward, match="no episode of 3 rollouts in a row had a reward that did not fail"):
        trainer_of(tmp_path, lambda prompts, **columns: [math.nan] * len(prompts), "skip", max_steps=5).train()


def test_a_constant_reward_is_told_once(tmp_path, caplog):
    trainer = trainer_of(tmp_path, lambda prompts, **columns: [0.5] * len(prompts), max_steps=5)
    with caplog.at_level(logging.WARNING, "rlobj"):
        trainer.train()
    told = [
        r.getMessage() for r in caplog.records if "of the groups of episodes had one reward for all" in r.getMessage()
    ]
    assert len(told) == 1 and "R moved next to nothing" in told[0]


def test_rollouts_of_trl_too(tmp_path):
    """The same policy where TRL's own trainer plays the environment."""
    rollout = EnvironmentRollout(CustomerServiceEnv, Sampling(4, 128), lambda **columns: [], on_error=-1.0)
    trainer = trainer_of(tmp_path, None)
    trainer.model.train()
    prompts = [each["prompt"] for each in list(trainer.train_dataset)[:2]]
    assert rollout(prompts, trainer)["episode_return"] == [-1.0, -1.0]
