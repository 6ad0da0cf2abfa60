"""Rollouts against plain forward passes over the finished token sequences."""

from __future__ import annotations

import copy
from itertools import groupby
from operator import itemgetter

import gymnasium
import pytest
import torch
from small import TEXTS, small_args, small_policy
from trl import GRPOTrainer

import envs  # noqa: F401
from envs.core import StepResult, TextEnv
from envs.spaces import Text
from envs.vector import TextVectorEnv
from rlobj.chat_format import ChatFormat
from rlobj.critic import Critic
from rlobj.policies import load_causal, load_tokenizer
from rlobj.rollout import episode_prompt, episode_seed, factory_of, play
from rlobj.row_cache import RowCache
from rlobj.sampling import Sampling, draw
from rlobj.trainer import ObjectiveTrainer
from rlobj.trajectories import episode_shares


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


SAMPLINGS = [
    {"temperature": 0.7},
    {"top_k": 3},
    {"top_p": 0.6},
    {"min_p": 0.5},
    {"repetition_penalty": 1.5},
    {"temperature": 0.7, "top_k": 5, "repetition_penalty": 1.3},
]


def plain_logp(logits, token, before, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0):
    """log-probability of a token among those that may be drawn, from the logits of a plain forward pass, (V,).

    Args:
        before: the tokens that the policy has read.
    """
    seen = torch.zeros_like(logits, dtype=torch.bool)
    seen[before] = True
    penalised = torch.where(logits > 0, logits / repetition_penalty, logits * repetition_penalty)
    p = (torch.where(seen, penalised, logits).double() / temperature).softmax(-1)
    ranked = p.sort(descending=True).values
    sum_before = ranked.cumsum(0) - ranked  # of what stands before each in the order of probability
    least = max(ranked[top_k - 1 if top_k else -1], ranked[sum_before < top_p].min(), min_p * ranked[0])
    return float((p[token] / p[p >= least].sum()).log())


def assert_logps_are_plain(model, trajectories, **options):
    for t in trajectories:
        ids = t.prompt_ids + t.completion_ids
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0]
        assert len(t.logps) == len(t.policy_mask) == len(t.completion_ids)
        for i, (logp, own) in enumerate(zip(t.logps, t.policy_mask, strict=True), len(t.prompt_ids)):
            plain = plain_logp(logits[i - 1], ids[i], ids[:i], **options) if own else 0.0
            assert logp == pytest.approx(plain, abs=1e-4)


@pytest.mark.parametrize("options", SAMPLINGS, ids=str)
@pytest.mark.parametrize("concurrent", [None, 2], ids=["all at once", "two at a time"])
def test_sampled_logps_are_those_of_a_plain_forward_pass(policy, make_env, options, concurrent):
    result = rollouts(policy, make_env, [1, 4, 4, 2], concurrent=concurrent, **options)
    assert len({len(t) for t in result.trajectories}) > 2, "episodes of one length would not test the rows"
    assert all(0 < sum(t.policy_mask) < len(t.policy_mask) for t in result.trajectories)
    assert_logps_are_plain(policy[0], result.trajectories, **options)


def test_what_an_episode_draws_does_not_depend_on_its_company(policy, make_env):
    together = rollouts(policy, make_env, [1, 4, 4, 2])
    assert together.trajectories[1].completion_ids != together.trajectories[2].completion_ids
    for concurrent in (1, 2, 4):
        assert [
            (t.prompt_ids, t.completion_ids, t.policy_mask, t.rewards)
            for t in rollouts(policy, make_env, [1, 4, 4, 2], concurrent=concurrent).trajectories
        ] == [(t.prompt_ids, t.completion_ids, t.policy_mask, t.rewards) for t in together.trajectories]


@pytest.mark.parametrize("concurrent", [None, 2])
def test_a_token_is_read_once_and_a_prompt_once_for_its_group(policy, make_env, monkeypatch, concurrent):
    reads = []
    read = RowCache.read

    def counted(cache, tokens, rows=None):
        reads.append([len(t) for t in tokens])
        return read(cache, tokens, rows)

    monkeypatch.setattr(RowCache, "read", counted)
    result = rollouts(policy, make_env, [4, 4, 4, 4, 1, 1, 1], concurrent=concurrent)
    assert max(map(len, reads)) == (concurrent or 7)
    # of the last reply the last token is not read: nothing follows it
    completions = sum(len(t.completion_ids) - 1 for t in result.trajectories)
    prompts = {tuple(t.prompt_ids) for t in result.trajectories}
    once = sum(map(len, prompts)) + 7 - len(prompts)  # to know what follows, each row reads the prompt's last token
    total = sum(map(sum, reads))
    if concurrent is None:
        assert total == once + completions
    else:  # an episode that begins when none of its group is left reads the prompt again
        assert once + completions <= total < sum(len(t.prompt_ids) for t in result.trajectories) + completions


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


# Limits ---------------------------------------------------------------------------------------------------------------


def test_generation_options_that_episodes_do_not_have_are_refused(policy, tmp_path):
    args = small_args(tmp_path, generation_kwargs={"typical_p": 0.9})
    with pytest.raises(ValueError, match=r"generation_kwargs is .*sampled by rlobj itself"):
        ObjectiveTrainer(policy[0], args=args, env=gymnasium.make("rlobj/CustomerService-v0"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stop": "end"}, "stop is 'end': expected several strings"),
        ({"stop": ("",)}, "none of them empty"),
        ({"concurrent": 0}, "concurrent is 0: expected at least 1"),
        ({"temperature": 0.0}, r"temperature is 0\.0: expected more than 0"),
        ({"overflow": "drop"}, "overflow is 'drop': expected one of truncate, drop_oldest, error"),
    ],
)
def test_what_sampling_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**options)


def test_a_stop_string_ends_the_reply(policy, make_env):
    model, tokenizer = policy
    whole = rollouts(policy, make_env, range(4), max_reply_tokens=12)
    assert any(t.replies_cut for t in whole.trajectories)
    stops = ("a", "e", "o")
    result = rollouts(policy, make_env, range(4), max_reply_tokens=12, stop=stops)
    chat, stopped = ChatFormat(tokenizer), 0
    for t in result.trajectories:
        runs = groupby(zip(t.completion_ids, t.policy_mask, strict=True), itemgetter(1))
        for ids in ([id for id, _ in run] for own, run in runs if own):
            assert not any(stop in chat.verbatim(ids[:-1]) for stop in stops)
            stopped += any(stop in chat.verbatim(ids) for stop in stops)
    assert stopped
    assert_logps_are_plain(model, result.trajectories)
    assert sum(t.replies_cut for t in result.trajectories) < sum(t.replies_cut for t in whole.trajectories)


def test_an_episode_has_a_budget_of_tokens_and_of_replies(policy, make_env):
    result = rollouts(policy, make_env, range(4), max_episode_tokens=12)
    written = [sum(t.policy_mask) for t in result.trajectories]
    assert max(written) == 12
    assert [t.limit for t in result.trajectories] == ["max_episode_tokens" if n == 12 else None for n in written]
    result = rollouts(policy, make_env, range(4), max_turns=2)
    assert [t.limit for t in result.trajectories] == ["max_turns"] * 4
    assert all(sum(m["role"] == "assistant" for m in e.completion) == 2 for e in result.episodes)
    assert episode_shares(result.trajectories)["episodes/out_of_turns"] == 1.0


def test_a_dialogue_that_outgrows_the_context_can_stop_the_rollout(policy, make_env):
    with pytest.raises(ValueError, match=r"into max_length, 260 tokens, after \d replies: raise max_length"):
        rollouts(policy, make_env, range(3), max_length=260, overflow="error")


def test_the_oldest_turns_can_be_dropped(policy):
    """What is left of the trajectory is what the policy saw and wrote from then on."""
    system = {"role": "system", "content": "be kind"}
    make_env = lambda: Chatty(system)  # noqa: E731
    result = rollouts(policy, make_env, range(3), max_length=90, overflow="drop_oldest", concurrent=2)
    assert_logps_are_plain(policy[0], result.trajectories)
    for t, episode in zip(result.trajectories, result.episodes, strict=True):
        assert len(episode.completion) == 2 * 12 - 1 and t.limit is None and t.oldest_dropped > 1
        assert len(t) <= 90
        seen = policy[1].decode(t.prompt_ids)
        assert seen.startswith("<|system|> be kind<|end|><|user|> turn"), "the system's message stays"
        assert not any(f"turn {early}" in seen for early in (0, 2, 3))
    assert result.returns == [12.0] * 3, "what was earned before counts"
    assert all(t.earned_before > 0 for t in result.trajectories)
    assert episode_shares(result.trajectories)["episodes/overflow"] == 1.0


@pytest.mark.parametrize(
    ("more", "concurrent"), [({"overflow": "drop_oldest"}, None), ({"overflow": "drop_oldest"}, 2), ({}, 2)], ids=str
)
def test_a_critics_values_outlive_dropped_turns_and_new_episodes_in_old_rows(policy, more, concurrent):
    """They are those of a plain forward pass over what the policy saw, wherever it stood in the batch."""
    model, tokenizer = policy
    critic = Critic(model.config.hidden_size, 8)
    with torch.no_grad():  # at its beginning it says 0 everywhere
        critic.value.weight.normal_(generator=torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    sampling = Sampling(5, 90, max_turns=11, concurrent=concurrent, **more)
    vector = TextVectorEnv(lambda: Chatty({"role": "system", "content": "be kind"}), 5)
    trajectories = play(model, tokenizer, vector, range(5), sampling, critic).trajectories
    assert all((t.oldest_dropped > 1) == bool(more) for t in trajectories)
    for t in trajectories:
        ids = torch.tensor([t.prompt_ids + t.completion_ids])
        with torch.no_grad():
            plain = critic(model.base_model(input_ids=ids).last_hidden_state)[0, len(t.prompt_ids) - 1 :]
        own = torch.tensor(t.policy_mask, dtype=torch.bool)
        torch.testing.assert_close(torch.tensor(t.values)[own], plain[:-1][own], atol=1e-4, rtol=1e-4)
        assert not torch.tensor(t.values)[~own].any() and own.any()
        assert t.limit and t.bootstrap != 0, "cut short: it goes on in the critic's opinion"
    assert len({round(value, 6) for t in trajectories for value in t.values}) > 50


class Chatty(TextEnv):
    """Twelve turns, each of which earns 1."""

    def __init__(self, system) -> None:
        super().__init__()
        self.system, self.action_space = system, Text()

    def _begin(self, seed, rng):
        self.turns = 0
        return [self.system, {"role": "user", "content": f"turn 0 of {seed}"}]

    def _reply(self, action):
        self.turns += 1
        over = self.turns == 12
        new = [] if over else [{"role": "user", "content": f"turn {self.turns}"}]
        return {"role": "assistant", "content": action}, StepResult(new, over, False, {}, 1.0)

    def _columns(self):
        return {}

    def own_reward(self):
        return 0.0


# Drawing --------------------------------------------------------------------------------------------------------------


def test_draw_inverts_the_distribution_function():
    p = torch.tensor([0.125, 0.0, 0.5, 0.25, 0.125])
    uniforms = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    ids, logps = draw(p.log().expand(1000, -1), uniforms)
    assert torch.bincount(ids, minlength=5).tolist() == [125, 0, 500, 250, 125]
    torch.testing.assert_close(logps, p.log()[ids])


def test_draw_at_the_edges():
    scores = torch.tensor([[float("-inf"), 0.3, 1.7, float("-inf")]]).expand(2, -1)
    edges = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    assert draw(scores, edges)[0].tolist() == [1, 2], "never one of no probability"


def test_logps_that_trl_needs_are_not_computed_again(policy, tmp_path, monkeypatch):
    """Two optimiser steps on one generation need those of the policy that sampled."""
    asked = []
    original = GRPOTrainer._get_per_token_logps_and_entropies

    def watched(trainer, *args, **kwargs):
        asked.append(torch.is_grad_enabled())
        return original(trainer, *args, **kwargs)

    monkeypatch.setattr(GRPOTrainer, "_get_per_token_logps_and_entropies", watched)
    trainer = ObjectiveTrainer(
        small_copy(policy[0]), args=small_args(tmp_path, num_iterations=2, max_steps=1, temperature=0.7, **EIGHT),
        processing_class=policy[1], env=gymnasium.make("rlobj/CustomerService-v0"), train_seeds=range(4),
        encode_prompts_once=False,
    )  # fmt: skip
    trainer.train()
    assert asked == [True], "the training's own pass alone"
    (inputs,) = trainer.micro_batches
    before = small_copy(policy[0])
    trainer.model.load_state_dict(before.state_dict())
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
    with torch.no_grad():
        again, *_ = original(trainer, trainer.model, ids, mask, inputs["completion_ids"].size(1))
    own = (inputs["completion_mask"] * inputs["tool_mask"]).bool()
    torch.testing.assert_close(inputs["old_per_token_logps"][own], again[own], rtol=1e-4, atol=1e-4)
    # a part of the distribution is not the policy that TRL's loss knows
    trainer = ObjectiveTrainer(
        small_copy(policy[0]), args=small_args(tmp_path, num_iterations=2, max_steps=1, top_k=3, **EIGHT),
        processing_class=policy[1], env=gymnasium.make("rlobj/CustomerService-v0"), train_seeds=range(4),
        encode_prompts_once=False,
    )  # fmt: skip
    asked.clear()
    trainer.train()
    assert asked == [False, True]


EIGHT = {"max_completion_length": 4}


def small_copy(model):
    return copy.deepcopy(model).train()
