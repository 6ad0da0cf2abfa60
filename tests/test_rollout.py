"""Rollouts against plain forward passes over the finished token sequences."""

from __future__ import annotations

from itertools import groupby
from operator import itemgetter

import gymnasium
import pytest
import torch
from small import TEXTS, small_args, small_policy

import envs  # noqa: F401
from envs.vector import TextVectorEnv
from rlobj.chat_format import ChatFormat
from rlobj.policies import load_causal, load_tokenizer
from rlobj.rollout import Sampling, episode_prompt, episode_seed, factory_of, play
from rlobj.trainer import ObjectiveTrainer


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    path = small_policy(tmp_path_factory.mktemp("policy"))
    return load_causal(path), load_tokenizer(path)


@pytest.fixture(scope="module")
def make_env():
    return factory_of(gymnasium.make("rlobj/CustomerService-v0", misunderstanding=0.3, patience=6))


def rollouts(policy, make_env, seeds, **sampling):
    torch.manual_seed(1)
    fields = {"max_reply_tokens": 5, "max_length": 1000, **sampling}
    return play(*policy, TextVectorEnv(make_env, len(seeds)), seeds, Sampling(**fields))


def test_logps_are_those_of_one_forward_pass_over_the_whole_dialogue(policy, make_env):
    model, _ = policy
    result = rollouts(policy, make_env, range(6), temperature=0.7)
    lengths = {len(t) for t in result.trajectories}
    assert len(lengths) > 1, "episodes of one length would not test the padding"
    for t in result.trajectories:
        ids = torch.tensor([t.prompt_ids + t.completion_ids])
        with torch.no_grad():
            logps = torch.log_softmax(model(input_ids=ids).logits / 0.7, -1)[0, :-1]
        logps = logps.gather(1, ids[0, 1:, None])[:, 0][len(t.prompt_ids) - 1 :]
        mask = torch.tensor(t.policy_mask).bool()
        assert 0 < mask.sum() < len(mask)
        torch.testing.assert_close(torch.tensor(t.logps)[mask], logps[mask], rtol=1e-4, atol=1e-4)
        assert all(logp == 0.0 for logp, own in zip(t.logps, t.policy_mask, strict=True) if not own)


def test_tokens_are_the_dialogue_and_the_mask_is_the_policys_share(policy, make_env):
    _, tokenizer = policy
    chat = ChatFormat(tokenizer)
    result = rollouts(policy, make_env, range(4))
    for t, episode in zip(result.trajectories, result.episodes, strict=True):
        assert t.prompt_ids == chat.prompt_ids(episode.prompt)
        assert len(t.completion_ids) == len(t.policy_mask) == len(t.logps)
        pieces = [
            (own, [x for x, _ in run])
            for own, run in groupby(zip(t.completion_ids, t.policy_mask, strict=True), itemgetter(1))
        ]
        said = [m["content"] for m in episode.completion if m["role"] == "assistant"]
        assert [chat.decode(ids) for own, ids in pieces if own] == said
        turns = [m for m in episode.completion if m["role"] != "assistant"]
        answers = [chat.continuation_ids(turns[i : i + 2]) for i in range(0, 2 * (len(said) - 1), 2)]
        # a reply that was cut gets its end token from the environment's side
        assert [ids[-len(a) :] for (own, ids), a in zip(pieces[1::2], answers, strict=True)] == answers
        assert all(len(ids) - len(a) in (0, 1) for (_, ids), a in zip(pieces[1::2], answers, strict=True))


def test_a_full_context_truncates_the_episode(policy, make_env):
    result = rollouts(policy, make_env, range(3), max_length=260)
    assert all(len(t) <= 260 for t in result.trajectories)
    assert not any(e.columns["success"] for e in result.episodes)


def test_a_prompt_that_does_not_fit_keeps_its_end(policy, make_env):
    whole = rollouts(policy, make_env, range(3)).trajectories
    assert not any(t.prompt_was_cut for t in whole)
    for cut, t in zip(rollouts(policy, make_env, range(3), max_length=20).trajectories, whole, strict=True):
        assert len(t.prompt_ids) > 15
        assert cut.prompt_was_cut and cut.prompt_ids == t.prompt_ids[-15:]
        assert 0 < len(cut.completion_ids) <= 5


def test_one_reward_call_for_all_episodes(policy, make_env):
    calls = []

    def reward(prompts, completions, success, **columns):
        calls.append(len(completions))
        return [len(c) + 0.5 for c in completions]

    environments = TextVectorEnv(make_env, 5, reward)
    result = play(*policy, environments, range(5), Sampling(5, 1000))
    assert calls == [5]
    assert result.returns == [len(e.completion) + 0.5 for e in result.episodes]


def test_the_policy_keeps_its_mode(policy, make_env):
    model, _ = policy
    for training in (True, False):
        model.train(training)
        rollouts(policy, make_env, range(2))
        assert model.training is training


def test_a_prompt_names_its_episode():
    messages = [{"role": "user", "content": TEXTS[0]}, {"role": "tool", "content": TEXTS[1]}]
    assert episode_seed(episode_prompt(17, messages)) == 17
    with pytest.raises(ValueError, match="does not say which episode"):
        episode_seed(messages)


def test_factory_needs_an_environment_that_was_made():
    with pytest.raises(TypeError, match=r"gymnasium\.make"):
        factory_of(gymnasium.make("CartPole-v1"))


@pytest.mark.parametrize(("name", "value"), [("repetition_penalty", 1.2), ("generation_kwargs", {"typical_p": 0.9})])
def test_sampling_that_episodes_do_not_have_is_refused(policy, make_env, tmp_path, name, value):
    env = gymnasium.make("rlobj/CustomerService-v0")
    with pytest.raises(ValueError, match=f"{name} is .*sampled by rlobj itself"):
        ObjectiveTrainer(policy[0], args=small_args(tmp_path, **{name: value}), env=env)


@pytest.mark.parametrize("options", [{"top_k": 3}, {"top_p": 0.6}, {"min_p": 0.5}])
def test_logps_are_those_of_the_tokens_that_may_be_drawn(policy, make_env, options):
    (t,) = rollouts(policy, make_env, [2], temperature=0.7, **options).trajectories
    with torch.no_grad():
        p = (policy[0](input_ids=torch.tensor([t.prompt_ids + t.completion_ids])).logits[0] / 0.7).softmax(-1)
    for i, (token, logp, own) in enumerate(zip(t.completion_ids, t.logps, t.policy_mask, strict=True)):
        if not own:
            continue
        at = p[len(t.prompt_ids) + i - 1]
        ranked = at.sort(descending=True).values
        before = ranked.cumsum(0) - ranked  # what stands before each in the order of probability
        least = {
            "top_k": ranked[2],
            "top_p": ranked[before < options.get("top_p", 1)].min(),
            "min_p": options.get("min_p", 0) * ranked[0],
        }[next(iter(options))]
        assert logp == pytest.approx(float((at[token] / at[at >= least].sum()).log()), abs=1e-4)
