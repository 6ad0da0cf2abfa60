"""Environments of other libraries as text environments."""

from __future__ import annotations

import gymnasium
import pytest
from gymnasium.spaces import Discrete
from gymnasium.spaces import Text as GymnasiumText

from envs import TextVectorEnv
from envs.adapters import FromGymnasium
from envs.spaces import Text


class Countdown(gymnasium.Env):
    """Shows a number and rewards it: as text, or as its `Discrete` action."""

    def __init__(self, discrete: bool = False) -> None:
        self.observation_space = GymnasiumText(20)
        self.action_space = Discrete(10) if discrete else Text()

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = int(self.np_random.integers(2, 9))
        return str(self.left), {}

    def step(self, action):
        right = str(action) == str(self.left)
        self.left -= 1
        return str(self.left), float(right), self.left == 0, False, {"right": right}


@pytest.mark.parametrize("discrete", [False, True])
def test_turns_are_messages_and_their_rewards_are_kept(discrete):
    env = FromGymnasium(Countdown(discrete))
    messages, _ = env.reset(seed=4)
    start, rewards, done = int(messages[0]["content"]), [], False
    while not done:
        shown = messages[-1]["content"]
        messages, reward, done, truncated, info = env.step(int(shown) if discrete else shown)
        rewards.append(reward)
        assert env.observation_space.contains(messages) and not truncated and info["right"]
    assert rewards == [1.0] * start
    assert [m["content"] for m in messages[1::2]] == [str(n) for n in range(start, 0, -1)]
    assert env.episode.columns == {"total": float(start)} and env.own_reward() == 0
    assert FromGymnasium(Countdown()).reset(seed=4)[0] == [{"role": "user", "content": str(start)}]


def test_a_conversation_is_appended_and_not_repeated():
    def play(env):
        messages, _ = env.reset(seed=3)
        rewards, done = [], False
        while not done:
            messages, reward, terminated, truncated, _ = env.step("Which service would you like?")
            rewards.append(reward)
            done = terminated or truncated
        return messages, rewards

    plain = gymnasium.make("rlobj/CustomerService-v0", disable_env_checker=True)
    inner = gymnasium.make("rlobj/CustomerService-v0", disable_env_checker=True)
    assert play(FromGymnasium(inner)) == play(plain)


def test_by_id():
    env = gymnasium.make("envs.adapters:adapters/FromGymnasium-v0", env_id="rlobj/CustomerService-v0")
    assert env.reset(seed=1)[0] == gymnasium.make("rlobj/CustomerService-v0").reset(seed=1)[0]


def test_what_is_not_text_is_refused():
    with pytest.raises(ValueError, match=r"CartPole-v1.*expected text"):
        FromGymnasium("CartPole-v1")


def test_many_at_once_need_no_wrapping():
    vector = TextVectorEnv(lambda: gymnasium.wrappers.TimeLimit(Countdown(), 2), 3)
    first, _ = vector.reset(seed=[5, 6, 7])
    assert [m[0]["content"] for m in first] == [
        FromGymnasium(Countdown()).reset(seed=s)[0][0]["content"] for s in (5, 6, 7)
    ]
    _, rewards, *_ = vector.step([first[0][0]["content"], "no", first[2][0]["content"]])
    assert rewards.tolist() == [1.0, 0.0, 1.0]
    _, _, terminated, truncated, _ = vector.step(["no"] * 3)
    assert all(terminated | truncated), "the time limit is kept"
    with pytest.raises(TypeError, match=r"make_env makes .*CartPole.*: expected a text environment"):
        TextVectorEnv(lambda: gymnasium.make("CartPole-v1"), 2)
