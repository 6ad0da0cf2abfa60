"""Evaluation against naive computations."""

from __future__ import annotations

import gymnasium
import pytest
import torch
from small import small_policy, small_rows

import envs  # noqa: F401
from envs.core import FIRST_HELD_OUT_SEED
from envs.vector import TextVectorEnv
from rlobj.evaluation import evaluate, sequence_kl
from rlobj.policies import load_causal, load_tokenizer
from rlobj.rollout import Sampling, factory_of, play
from rlobj.supervised import supervised_losses

SAMPLING = Sampling(max_reply_tokens=6, max_length=1000)


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    path = small_policy(tmp_path_factory.mktemp("a"), seed=1)
    other = small_policy(tmp_path_factory.mktemp("b"), seed=2)
    make_env = factory_of(gymnasium.make("rlobj/CustomerService-v0"))
    return load_causal(path), load_causal(other), load_tokenizer(path), make_env


def test_kl_is_the_sum_over_the_policys_tokens(setting):
    policy, reference, tokenizer, make_env = setting
    rollouts = play(policy, tokenizer, TextVectorEnv(make_env, 3), [1, 2, 3], SAMPLING)
    for trajectory, value in zip(
        rollouts.trajectories, sequence_kl(policy, reference, rollouts.trajectories), strict=True
    ):
        ids = torch.tensor([trajectory.prompt_ids + trajectory.completion_ids])
        with torch.no_grad():
            p, q = (model(input_ids=ids).logits[0].log_softmax(-1) for model in (policy, reference))
        naive = 0.0
        for offset, own in enumerate(trajectory.policy_mask):
            at = len(trajectory.prompt_ids) + offset - 1  # what predicts this token
            naive += own * sum(float(p[at, v].exp() * (p[at, v] - q[at, v])) for v in range(p.size(1)))
        assert value == pytest.approx(naive, rel=1e-3)


def test_kl_to_itself_is_zero(setting):
    policy, _, tokenizer, make_env = setting
    rollouts = play(policy, tokenizer, TextVectorEnv(make_env, 2), [1, 2], SAMPLING)
    assert sequence_kl(policy, policy, rollouts.trajectories) == pytest.approx([0.0, 0.0], abs=1e-6)


def test_measures_are_means_of_their_episodes(setting):
    policy, reference, tokenizer, make_env = setting
    seeds = range(FIRST_HELD_OUT_SEED, FIRST_HELD_OUT_SEED + 7)
    rows = small_rows(tokenizer, 5)

    def reward(prompts, completions, **columns):
        return [float(len(c)) for c in completions]

    result = evaluate(policy, tokenizer, make_env, reward, SAMPLING, seeds, rows, reference, batch_size=3)
    assert [episode.seed for episode in result.episodes] == list(seeds)
    assert result.per_episode["return"] == [float(len(e.completion)) for e in result.episodes]
    assert result.per_episode["turns"] == [float(e.columns["turns"]) for e in result.episodes]
    assert result.metrics["turns"][0] == pytest.approx(sum(result.per_episode["turns"]) / 7)
    assert result.per_episode["ell"] == supervised_losses(policy, rows)
    assert len(result.per_episode["kl"]) == 7


def test_evaluation_repeats_itself_and_leaves_the_random_state_alone(setting):
    policy, _, tokenizer, make_env = setting
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, second = (
        evaluate(policy, tokenizer, make_env, None, SAMPLING, range(4), [], None, sampling_seed=3) for _ in range(2)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert [e.completion for e in first.episodes] == [e.completion for e in second.episodes]


def test_dropped_rewards_are_left_out_of_the_mean_return(setting):
    policy, _, tokenizer, make_env = setting

    def reward(prompts, completions, **columns):
        return [None, *[2.0] * (len(completions) - 1)]

    result = evaluate(policy, tokenizer, make_env, reward, SAMPLING, range(4), [], None)
    assert result.metrics["return"] == (2.0, 2.0, 2.0)
