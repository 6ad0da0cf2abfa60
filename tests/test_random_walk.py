"""Walks in a small graph: what is best is known, and so is what a walk is worth."""

from __future__ import annotations

import random
from itertools import pairwise

import gymnasium
import pytest
from gymnasium.utils.env_checker import check_env

import envs  # noqa: F401  (registers)
from envs.experts import demonstrations
from envs.random_walk import RandomWalkEnv


@pytest.fixture
def env():
    env = RandomWalkEnv()
    # a small graph by hand: d → c → b → a, d → b, c → d
    env.follow = {"a": [], "b": ["a"], "c": ["b", "d"], "d": ["c", "b"]}
    env.distance = {"a": 0, "b": 1, "c": 2, "d": 2}
    return env


def test_optimality_by_hand(env):
    assert env.shortest("d") == ["d", "b", "a"]
    assert env.optimality("d", ["d", "b", "a"]) == 1.0
    assert env.optimality("d", ["d", "c", "b", "a"]) == pytest.approx((10 - 4) / (10 - 3))
    longest = ["d", "c"] * 4 + ["b", "a"]
    assert len(longest) == 10 and env.reaches("d", longest) and env.optimality("d", longest) == 0.0
    for walk in ([], ["d"], ["d", "a"], ["c", "b", "a"], ["d", "b", "x"], ["d", "c", *longest]):
        assert not env.reaches("d", walk) and env.optimality("d", walk) == 0.0


def test_an_episode_is_one_walk():
    env = gymnasium.make("rlobj/RandomWalk-v0").unwrapped
    (asked,), _ = env.reset(seed=3)
    best = " ".join(env.shortest(asked["content"]))
    _, reward, terminated, truncated, info = env.step(best)
    assert (reward, terminated, truncated) == (1.0, True, False)
    assert info["success"] and info["optimality"] == 1.0 and info["reference"] == best
    env.reset(seed=3)
    assert env.step("not a walk")[1] == 0.0 and not env.episode.columns["success"]
    check_env(env, skip_render_check=True)


def test_the_graph_leads_everywhere_to_the_goal_and_demonstrations_can_be_improved():
    env = RandomWalkEnv()
    assert len(env.follow) == 21 and max(env.distance.values()) < 10
    assert RandomWalkEnv().follow == env.follow and RandomWalkEnv(graph_seed=1).follow != env.follow
    walks = [row["messages"][-1]["content"].split() for row in demonstrations(lambda: env, 300)]
    assert all(after in env.follow[node] for walk in walks for node, after in pairwise(walk))
    worth = [env.optimality(walk[0], walk) for walk in walks]
    assert 0.1 < sum(worth) / len(worth) < 0.8, "better than nothing, far from the best"
    assert max(len(walk) for walk in walks) == 10


@pytest.mark.parametrize(
    ("given", "words"),
    [({"nodes": 27}, "nodes is 27: expected 3 to 26"), ({"edges": 0}, "edges is 0"), ({"edges": 1e-6}, "more edges")],
)
def test_what_makes_no_graph_is_said(given, words):
    with pytest.raises(ValueError, match=words):
        RandomWalkEnv(**given)


def test_the_expert_walks_at_random(env):
    walks = {env.expert(random.Random(seed)).act(env, "d") for seed in range(20)}
    assert "d b a" in walks and len(walks) > 3
