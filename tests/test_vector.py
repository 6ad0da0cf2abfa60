"""Many episodes at once: Gymnasium's vector API, one call of the reward, wrappers, and where rewards fall."""

from __future__ import annotations

import random

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers import RecordEpisodeStatistics, TimeLimit, TransformAction, TransformObservation
from small import small_policy

import envs  # noqa: F401
from envs.core import Message, StepResult, TextEnv
from envs.customer_service import CustomerServiceEnv
from envs.spaces import Text
from envs.vector import TextVectorEnv
from rlobj.policies import load_causal, load_tokenizer
from rlobj.rollout import Sampling, factory_of, play

SHIPPED = sorted(name for name in gymnasium.registry if name.startswith("rlobj/") and "Movie" not in name)


class Counting(TextEnv):
    """Earns its turn's number each turn, and 100 at the end, which comes after `length` turns (seed + 1 if None)."""

    def __init__(self, length: int | None = None, **kwargs) -> None:
        super().__init__(**kwargs)
        self.length, self.action_space = length, Text()

    def _begin(self, seed: int, rng: random.Random) -> list[Message]:
        self.turns, self.end = 0, seed + 1 if self.length is None else self.length
        return [{"role": "user", "content": f"seed {seed}"}]

    def _reply(self, action: str) -> tuple[Message, StepResult]:
        self.turns += 1
        over = self.turns >= self.end
        new = [] if over else [{"role": "user", "content": f"turn {self.turns}"}]
        return {"role": "assistant", "content": action}, StepResult(new, over, False, {}, float(self.turns))

    def _columns(self) -> dict:
        return {"turns": self.turns}

    def own_reward(self) -> float:
        return 100.0


@pytest.mark.parametrize("env_id", SHIPPED)
@pytest.mark.parametrize("mode", ["vector_entry_point", "sync", "async"])
def test_make_vec_and_its_statistics_wrapper(env_id, mode):
    kwargs = {"vector_kwargs": {"shared_memory": False}} if mode == "async" else {}
    vector = gymnasium.make_vec(env_id, num_envs=3, vectorization_mode=mode, **kwargs)
    vector = gymnasium.wrappers.vector.RecordEpisodeStatistics(vector)
    assert isinstance(vector.unwrapped, TextVectorEnv) == (mode == "vector_entry_point")
    observations, _ = vector.reset(seed=3)
    again, _ = vector.reset(seed=[3, 4, 5])
    assert observations == again and vector.observation_space.contains(observations)
    for _ in range(3):
        observations, rewards, *_ = vector.step(vector.action_space.sample())
        assert vector.observation_space.contains(observations) and rewards.shape == (3,)
    vector.close()


def test_vectorised_episodes_are_those_of_single_environments():
    vector = gymnasium.make_vec("rlobj/CustomerService-v0", num_envs=4, misunderstanding=0.3)
    singles = [CustomerServiceEnv(misunderstanding=0.3) for _ in range(4)]
    batch, _ = vector.reset(seed=10)
    assert list(batch) == [env.reset(seed=10 + i)[0] for i, env in enumerate(singles)]
    for text in ("which speed do you need ?", "how about comet fiber ?", "goodbye ."):
        batch, rewards, terminations, truncations, _ = vector.step((text,) * 4)
        for i, env in enumerate(singles):
            assert (batch[i], rewards[i], terminations[i], truncations[i]) == env.step(text)[:4]


def test_an_environment_is_reset_by_the_step_after_its_end():
    vector = TextVectorEnv(Counting, 2)
    vector.reset(seed=[0, 2])
    _, rewards, terminations, _, _ = vector.step(("a", "a"))
    assert rewards.tolist() == [101.0, 1.0] and terminations.tolist() == [True, False]
    observations, rewards, terminations, _, _ = vector.step(("ignored", "b"))
    assert rewards.tolist() == [0.0, 2.0] and not terminations.any()
    assert len(observations[0]) == 1, "a new episode, and the action that came with it was for nobody"
    assert vector.step(("a", "c"))[1][1] == 103.0


def test_reset_by_the_caller():
    vector = TextVectorEnv(lambda: Counting(1), 2, autoreset_mode=AutoresetMode.DISABLED)
    vector.reset(seed=0)
    assert vector.step(("a", "b"))[1].tolist() == [101.0, 101.0]
    vector.reset(seed=[7, 8], options={"reset_mask": np.array([True, True])})
    assert vector.step(("a", "b"))[1].tolist() == [101.0, 101.0]
    with pytest.raises(ValueError, match=r"autoreset_mode is SAME_STEP: .* expected NEXT_STEP or DISABLED"):
        TextVectorEnv(Counting, 2, autoreset_mode="SameStep")


def test_episodes_that_end_together_are_scored_in_one_call():
    calls = []

    def reward(prompts, completions, turns, **columns):
        calls.append(turns)
        return [10.0 * n for n in turns]

    vector = TextVectorEnv(lambda: Counting(reward=reward), 4)
    vector.reset(seed=[0, 0, 1, 5])
    assert vector.step(("a",) * 4)[1].tolist() == [11.0, 11.0, 1.0, 1.0]
    assert vector.step(("a",) * 4)[1].tolist() == [0.0, 0.0, 22.0, 2.0]
    assert calls == [[1, 1], [2]]


def test_a_time_limit_truncates_and_is_scored():
    def sevens(prompts, completions, **columns):
        return [7.0] * len(prompts)

    vector = gymnasium.make_vec(
        "rlobj/CustomerService-v0", num_envs=2, max_episode_steps=2, reward=lambda **_: [7.0, 7.0]
    )
    vector.reset(seed=0)
    assert vector.step(("hm", "hm"))[1].tolist() == [0.0, 0.0]
    _, rewards, terminations, truncations, _ = vector.step(("hm", "hm"))
    assert rewards.tolist() == [7.0, 7.0] and truncations.all() and not terminations.any()


def test_what_cannot_be_vectorised_is_named():
    with pytest.raises(TypeError, match=r"make_env makes .*CartPole.*: expected a text environment"):
        TextVectorEnv(lambda: gymnasium.make("CartPole-v1"), 1)
    with pytest.raises(ValueError, match="num_envs is 0"):
        TextVectorEnv(Counting, 0)


# Wrappers and single environments -------------------------------------------------------------------------------------


@pytest.mark.parametrize("env_id", SHIPPED)
def test_standard_wrappers_around_one_environment(env_id):
    env = RecordEpisodeStatistics(TimeLimit(gymnasium.make(env_id, render_mode="ansi"), 3))
    env.reset(seed=1)
    env.action_space.seed(1)
    total, over = 0.0, False
    while not over:
        _, reward, terminated, truncated, info = env.step(env.action_space.sample())
        total, over = total + float(reward), terminated or truncated
    assert info["episode"]["r"] == pytest.approx(total)
    assert env.render().count("assistant:") == info["episode"]["l"]


def test_the_return_is_the_turns_rewards_and_the_episodes():
    env = Counting(3)
    env.reset(seed=0)
    assert [env.step("a")[1] for _ in range(3)] == [1.0, 2.0, 103.0]


# Rollouts -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    path = small_policy(tmp_path_factory.mktemp("policy"))
    return load_causal(path), load_tokenizer(path)


def test_rewards_stand_at_the_tokens_that_earned_them(policy):
    torch.manual_seed(0)
    rollouts = play(*policy, TextVectorEnv(Counting, 3), [0, 1, 3], Sampling(max_reply_tokens=4))
    assert rollouts.returns == [101.0, 103.0, 110.0]
    for t, turns in zip(rollouts.trajectories, (1, 2, 4), strict=True):
        assert len(t.rewards) == len(t.completion_ids)
        ends = [i for i in range(len(t)) if t.policy_mask[i : i + 2] in ([1, 0], [1])]
        assert [t.rewards[i] for i in ends] == [*map(float, range(1, turns)), 100.0 + turns]
        assert sum(t.rewards) == sum(t.rewards[i] for i in ends), "nothing is earned in between"


class Anonymous(gymnasium.Wrapper):
    """A wrapper that does not record how it was made."""


def test_a_rollout_keeps_time_limit_and_wrappers(policy):
    gymnasium.register("test/Counting-v0", entry_point=Counting)
    try:
        env = gymnasium.make("test/Counting-v0", max_episode_steps=2)
        loud = TransformAction(env, lambda text: f"{text}!", None)
        rollouts = play(*policy, TextVectorEnv(factory_of(loud), 2), [0, 5], Sampling(max_reply_tokens=4))
        assert rollouts.returns == [101.0, 103.0]
        assert [e.columns["turns"] for e in rollouts.episodes] == [1, 2]
        assert all(e.completion[0]["content"].endswith("!") for e in rollouts.episodes)
        with pytest.raises(TypeError, match="its wrapper Anonymous does not say how it was made"):
            factory_of(Anonymous(env))
    finally:
        del gymnasium.registry["test/Counting-v0"]


def test_a_wrapper_that_rewrites_what_was_said_is_refused(policy):
    def shouting(messages):
        return [{**m, "content": m["content"].upper() + "!" * len(messages)} for m in messages]

    vector = TextVectorEnv(lambda: TransformObservation(Counting(3), shouting, None), 2)
    with pytest.raises(ValueError, match="changes messages that the policy has seen"):
        play(*policy, vector, [0, 1], Sampling(max_reply_tokens=4))
