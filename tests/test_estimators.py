"""Estimators of ∇R: against a hand-computed example, against enumeration, and in training."""

from __future__ import annotations

import itertools
import math

import gymnasium
import numpy as np
import pytest
import torch
from small import small_args, small_policy, small_rows
from test_vector import Counting
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

import envs  # noqa: F401  (registers them)
from rlobj.arguments import ObjectiveArguments
from rlobj.checkpoints import mark_whole
from rlobj.config import PPOConfig
from rlobj.encoder_policy import action_logits, as_one_token_policy
from rlobj.estimators import (
    above_baseline,
    expected_return,
    generalised_advantages,
    leave_one_out,
    value_loss,
    whitened,
)
from rlobj.policies import load_tokenizer, make_encoder, make_tokenizer
from rlobj.trainer import ObjectiveTrainer

# Mathematics ----------------------------------------------------------------------------------------------------------


def test_advantages_of_a_hand_computed_example():
    """Two policy tokens, one of the environment, one policy token; γ = 0.9, λ_GAE = 0.5.

    δ_3 = 1 + 0.9·0 − 0.4 = 0.6; δ_1 = 0 + 0.9·0.4 − 0.2 = 0.16; δ_0 = 0.5 + 0.9·0.2 − 0.1 = 0.58
    A_3 = 0.6; A_1 = 0.16 + 0.45·0.6 = 0.43; A_0 = 0.58 + 0.45·0.43 = 0.7735
    """
    rewards = torch.tensor([[0.5, 0.0, 0.0, 1.0]])
    values = torch.tensor([[0.1, 0.2, 9.0, 0.4]])
    mask = torch.tensor([[1, 1, 0, 1]])
    settings = PPOConfig(gamma=0.9, gae_lambda=0.5)
    advantages, returns = generalised_advantages(rewards, values, mask, torch.zeros(1), settings)
    assert_close(advantages, torch.tensor([[0.7735, 0.43, 0.0, 0.6]]))
    assert_close(returns, torch.tensor([[0.8735, 0.63, 0.0, 1.0]]))


def test_by_turn_a_discount_counts_turns():
    rewards = torch.tensor([[0.0, 0.0, 0.0, 1.0]])
    mask = torch.tensor([[1, 1, 0, 1]])
    settings = PPOConfig(gamma=0.5, gae_lambda=1.0, credit="turn")
    advantages, _ = generalised_advantages(rewards, torch.zeros(1, 4), mask, torch.zeros(1), settings)
    assert_close(advantages, torch.tensor([[0.5, 0.5, 0.0, 1.0]]))


def test_an_episode_cut_short_goes_on_in_the_critics_opinion():
    rewards, values, mask = torch.zeros(2, 2), torch.zeros(2, 2), torch.tensor([[1, 1], [1, 0]])
    advantages, _ = generalised_advantages(rewards, values, mask, torch.tensor([1.0, 2.0]), PPOConfig(gae_lambda=1.0))
    assert_close(advantages, torch.tensor([[1.0, 1.0], [2.0, 0.0]]))


def naive_gae(rewards, values, mask, bootstrap, gamma, gae_lambda):
    """Equation 16 of Schulman et al. (2016) as it is written: a sum over what is still to come, for each token."""
    result = np.zeros(len(rewards))
    places = [t for t in range(len(rewards)) if mask[t]]
    after = [values[t] for t in places[1:]] + [bootstrap]
    delta = [rewards[t] + gamma * after[i] - values[t] for i, t in enumerate(places)]
    for i, t in enumerate(places):
        result[t] = sum((gamma * gae_lambda) ** k * delta[i + k] for k in range(len(places) - i))
    return result


def test_the_recursion_is_the_sum():
    rng = np.random.default_rng(0)
    shape = (20, 12)
    rewards, values = rng.normal(size=shape), rng.normal(size=shape)
    mask, bootstrap = rng.integers(0, 2, size=shape), rng.normal(size=20)
    settings = PPOConfig(gamma=0.97, gae_lambda=0.8)
    found, _ = generalised_advantages(*map(torch.tensor, (rewards, values, mask, bootstrap)), settings)
    for row in range(20):
        expected = naive_gae(rewards[row], values[row], mask[row], bootstrap[row], 0.97, 0.8)
        assert_close(found[row], torch.tensor(expected))


def test_leave_one_out_is_the_mean_of_the_others():
    returns = torch.tensor([1.0, 2.0, 6.0, 3.0])
    expected = torch.tensor([r - (12 - r) / 3 for r in returns.tolist()])
    assert_close(leave_one_out(returns - returns.mean(), 4), expected)


def test_whitening_takes_no_notice_of_masked_tokens():
    advantages = torch.tensor([[1.0, 2.0, 100.0], [3.0, 4.0, -50.0]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 0]])
    found = whitened(advantages, mask)
    kept = found[mask > 0]
    assert kept.mean() == pytest.approx(0, abs=1e-6)
    assert kept.std(unbiased=False) == pytest.approx(1, abs=1e-6)
    assert (found[:, 2] == 0).all()


def test_a_value_that_has_moved_far_is_held_back():
    before, returns, mask = torch.zeros(1, 1), torch.ones(1, 1), torch.ones(1, 1)
    values = torch.tensor([[0.5]], requires_grad=True)
    value_loss(values, before, returns, mask, clip=0.2).backward()
    assert values.grad.item() == 0, "it is beyond the clip on the way to the return: no further in this generation"
    free = torch.tensor([[0.5]], requires_grad=True)
    value_loss(free, before, returns, mask, clip=0.0).backward()
    assert free.grad.item() == pytest.approx(-0.5)


def exact_gradient(R, logits):
    """∇R of a return that was enumerated."""
    (gradient,) = torch.autograd.grad(R, logits)
    return gradient


@pytest.mark.parametrize(("estimator", "scale"), [("rloo", 1), ("reinforce", 1), ("grpo", 2 / 3)])
def test_over_all_groups_the_estimate_is_the_exact_gradient(estimator, scale):
    """Every group of 3 actions out of 4, weighted by its probability. A baseline may be any number that does not look
    at the action; the group's own mean does, and shortens the gradient by (G − 1) / G."""
    rng = np.random.default_rng(3)
    logits = torch.tensor(rng.normal(size=4), requires_grad=True)
    rewards = torch.tensor(rng.normal(size=4))
    logps = logits.log_softmax(-1)
    estimate = torch.zeros((), dtype=torch.float64)
    for group in itertools.product(range(4), repeat=3):
        returns, chosen = rewards[list(group)], logps[list(group)]
        advantages = returns - (0.3 if estimator == "reinforce" else returns.mean())
        if estimator == "rloo":
            advantages = leave_one_out(advantages, 3)
        estimate = estimate + chosen.sum().exp().detach() * (advantages * chosen).mean()
    found = exact_gradient(estimate, logits)
    R = (logits.softmax(-1) * rewards).sum()
    assert_close(found, scale * exact_gradient(R, logits), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("credit", ["token", "turn"])
def test_over_all_episodes_generalised_advantages_give_the_exact_gradient(credit):
    """Two tokens of three words, with one of the environment between them: with λ_GAE = 1 any critic will do, and with
    less the true one."""
    rng = np.random.default_rng(4)
    first, second = (torch.tensor(rng.normal(size=size), requires_grad=True) for size in (3, (3, 3)))
    earned, ended = torch.tensor(rng.normal(size=3)), torch.tensor(rng.normal(size=(3, 3)))
    p, q = first.softmax(-1), second.softmax(-1)
    true_second = (q * ended).sum(-1)
    R = (p * (earned + true_second)).sum()
    episodes = torch.tensor(list(itertools.product(range(3), repeat=2)))
    a, b = episodes.T
    logps = torch.stack([p.log()[a], torch.zeros(9, dtype=torch.float64), q.log()[a, b]], dim=1)
    rewards = torch.stack([earned[a], torch.zeros(9, dtype=torch.float64), ended[a, b]], dim=1)
    mask = torch.tensor([[1, 0, 1]]).expand(9, 3)
    true = torch.stack([R.expand(9), torch.full((9,), 99.0), true_second[a]], dim=1).detach()
    wrong = torch.tensor(rng.normal(size=(1, 3))).expand(9, 3)
    exact = torch.autograd.grad(R, (first, second), retain_graph=True)
    for values, gae_lambda in ((wrong, 1.0), (true, 0.3)):
        settings = PPOConfig(gae_lambda=gae_lambda, credit=credit)
        advantages, _ = generalised_advantages(rewards, values, mask, torch.zeros(9, dtype=torch.float64), settings)
        surrogate = (logps.sum(1).exp().detach() * (advantages * logps).sum(1)).sum()
        found = torch.autograd.grad(surrogate, (first, second), retain_graph=True)
        assert_close(found, exact, rtol=1e-10, atol=1e-12)


def test_the_expected_return_is_a_sum_over_actions():
    logits = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    table = torch.arange(12.0).reshape(3, 4)
    by_hand = np.mean(
        [np.exp(a - np.logaddexp.reduce(a)) @ r for a, r in zip(logits.numpy(), table.numpy(), strict=True)]
    )
    assert expected_return(logits, table).item() == pytest.approx(by_hand, abs=1e-6)


def test_an_episode_without_the_return_of_an_action_teaches_nothing():
    logits = torch.zeros(2, 2, requires_grad=True)
    expected_return(logits, torch.tensor([[1.0, 0.0], [math.nan, 5.0]])).backward()
    assert_close(logits.grad, torch.tensor([[0.125, -0.125], [0.0, 0.0]]))


# In training ----------------------------------------------------------------------------------------------------------

TEXTS = {"red": "the red door", "blue": "a blue boat", "green": "one green cat"}


def bandit():
    return gymnasium.make(
        "rlobj/Classification-v0", texts=list(TEXTS.values()), labels=list(TEXTS), label_names=list(TEXTS)
    )


def bandit_trainer(directory, estimator, steps=60, reward=None, on_error="stop", kl_in="loss", **fields):
    tokenizer = make_tokenizer(TEXTS.values(), vocab_size=300, max_length=16)
    encoder = make_encoder(tokenizer, list(TEXTS), hidden_size=16, layers=1, heads=2, max_length=16, seed=0)
    if estimator == "rloo":
        fields["scale_rewards"] = "none"
    defaults = {"per_device_train_batch_size": 12, "num_generations": 4, "max_steps": steps, "learning_rate": 1e-2}
    args = small_args(directory, **{**defaults, **fields})
    return ObjectiveTrainer(
        as_one_token_policy(encoder), args=args, processing_class=tokenizer, env=bandit(), estimator=estimator,
        train_seeds=[i % 3 for i in range(1000)], reward=reward, on_error=on_error, kl_in=kl_in,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("estimator", "generations"), [("grpo", 4), ("rloo", 4), ("reinforce", 1), ("ppo", 1), ("exact", 1)]
)
def test_every_estimator_solves_a_bandit(tmp_path, estimator, generations):
    trainer = bandit_trainer(tmp_path, estimator, steps=90, num_generations=generations, seed=4)
    trainer.train()
    returns = [log["objective/return"] for log in trainer.state.log_history if "objective/return" in log]
    assert sum(returns[-5:]) / 5 > 0.9 > 0.6 > returns[0]


def test_the_exact_gradient_is_that_of_the_enumerated_return(tmp_path):
    plain = {"learning_rate": 1.0, "optim": "sgd", "max_grad_norm": 0.0, "disable_dropout": True}
    trainer = bandit_trainer(tmp_path, "exact", steps=1, num_generations=1, **plain)
    policy, tokenizer = trainer.model, trainer.processing_class
    before = {name: p.detach().clone() for name, p in policy.named_parameters()}
    rows = tokenizer(list(TEXTS.values()), padding=True, return_tensors="pt")
    logits = action_logits(policy, rows["input_ids"], rows["attention_mask"])
    (logits.softmax(-1) * torch.eye(3)).sum(-1).mean().backward()
    expected = {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}
    policy.zero_grad()
    trainer.train()
    for name, gradient in expected.items():
        moved = trainer.model.get_parameter(name).detach() - before[name]
        assert_close(moved, gradient, atol=2e-6, rtol=1e-4)


def hates_boats(prompts, completions, **columns):
    return [math.nan if "boat" in prompt[0]["content"] else 1.0 for prompt in prompts]


def test_exact_counts_failures_of_every_action_and_goes_on(tmp_path):
    trainer = bandit_trainer(tmp_path, "exact", steps=3, num_generations=1, reward=hates_boats, on_error="skip")
    trainer.train()
    failed = [log["reward/failed"] for log in trainer.state.log_history if "reward/failed" in log]
    assert any(share > 0 for share in failed)
    assert all(p.isfinite().all() for p in trainer.model.parameters())
    assert all(math.isfinite(log["loss"]) for log in trainer.state.log_history if "loss" in log)


def per_letter(prompts, completions, **columns):
    return [sum(len(message["content"]) for message in completion) / 10 for completion in completions]


def dialogue_trainer(directory, **fields):
    policy = small_policy(directory / "policy")
    tokenizer = load_tokenizer(policy)
    env = gymnasium.make("rlobj/CustomerService-v0", domain="repairs", max_turns=2, reward=per_letter)
    defaults = {"per_device_train_batch_size": 4, "num_generations": 2, "max_completion_length": 6, "max_steps": 2}
    args = small_args(directory / "run", **{**defaults, **fields})
    return ObjectiveTrainer(
        AutoModelForCausalLM.from_pretrained(policy), args=args, processing_class=tokenizer, env=env, estimator="ppo",
        train_seeds=range(100), supervised=small_rows(tokenizer), lambda_sup=0.1, max_length=300,
    )  # fmt: skip


def test_values_kept_from_sampling_are_those_of_a_forward_pass(tmp_path):
    trainer = dialogue_trainer(tmp_path)
    with torch.no_grad():  # at its beginning the critic says 0 everywhere
        trainer.critic.value.weight.normal_(generator=torch.Generator().manual_seed(0))
    trainer.model.train()
    rows = [dict(trainer.train_dataset[i]) for i in (0, 0, 1, 1)]
    batch = trainer._generate_and_score_completions(rows)
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    states = trainer.model.base_model(input_ids=ids, attention_mask=mask).last_hidden_state
    values = trainer.critic(states[:, -batch["completion_ids"].size(1) - 1 : -1])
    written = batch["value_mask"] > 0
    assert written.any()
    assert_close(batch["values"][written], values[written], atol=1e-4, rtol=1e-4)
    assert any(row["bootstrap"] != 0 for row in rows), "two turns are too few: these episodes are cut short"


def test_rewards_of_turns_reach_the_advantages_of_the_tokens_before_them(tmp_path):
    """One sample per prompt; with a critic that says 0, γ and λ_GAE of 1, and nothing whitened, a token's advantage is
    what it and all tokens after it have earned."""
    gymnasium.register("test/Counting-v0", Counting)
    try:
        env, policy = gymnasium.make("test/Counting-v0"), small_policy(tmp_path / "policy")
        fields = {"per_device_train_batch_size": 4, "num_generations": 1, "max_completion_length": 4, "max_steps": 1}
        trainer = ObjectiveTrainer(
            AutoModelForCausalLM.from_pretrained(policy), args=small_args(tmp_path, **fields), env=env,
            processing_class=load_tokenizer(policy), estimator="ppo", train_seeds=[0, 1, 2, 3], max_length=128,
            ppo=PPOConfig(gamma=1.0, gae_lambda=1.0, whiten=False),
        )  # fmt: skip
        rows = [dict(trainer.train_dataset[i]) for i in range(4)]
        batch = trainer._generate_and_score_completions(rows)
    finally:
        del gymnasium.registry["test/Counting-v0"]
    for row, found, mask in zip(rows, batch["advantages"], batch["value_mask"], strict=True):
        rewards = torch.tensor(row["token_rewards"])
        to_go = rewards.flip(0).cumsum(0).flip(0)
        written = mask[: len(rewards)] > 0
        assert_close(found[: len(rewards)][written], to_go[written])
        assert len(set(to_go[written].tolist())) == (rewards != 0).sum(), "another one for each turn"
    assert max(len(set(row["token_rewards"])) for row in rows) > 3, "some have several turns"


def test_the_critic_moves_no_parameter_of_the_policy(tmp_path):
    trainer = dialogue_trainer(tmp_path)
    names = {id(p) for p in trainer.model.parameters()}
    assert not names & {id(p) for p in trainer.critic.parameters()}
    before = trainer.critic.value.weight.detach().clone()
    trainer.train()
    assert not torch.equal(before, trainer.critic.value.weight)
    logged = {key for log in trainer.state.log_history for key in log}
    assert {"critic/value_loss", "critic/explained_variance", "objective/ell"} <= logged


def test_a_stopped_ppo_goes_on_exactly(tmp_path):
    whole = dialogue_trainer(tmp_path / "whole", max_steps=4)
    whole.train()
    first = dialogue_trainer(tmp_path / "parts", max_steps=4, save_strategy="steps", save_steps=2)
    first.train()
    again = dialogue_trainer(tmp_path / "parts", max_steps=4)
    again.train(resume_from_checkpoint=str(tmp_path / "parts/run/checkpoint-2"))
    for ours, theirs in ((again.model, whole.model), (again.critic, whole.critic)):
        for name, parameter in theirs.state_dict().items():
            assert torch.equal(parameter, ours.state_dict()[name]), name


@pytest.mark.parametrize("estimator", ["reinforce", "rloo", "exact"])
def test_other_estimators_go_on_exactly(tmp_path, estimator):
    """`reinforce` with its moving baseline."""
    fields = {"num_generations": 4 if estimator == "rloo" else 1, "save_strategy": "steps", "save_steps": 2}
    whole = bandit_trainer(tmp_path, estimator, steps=4, **fields)
    whole.train()
    again = bandit_trainer(tmp_path, estimator, steps=4, **fields)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    for name, parameter in whole.model.state_dict().items():
        assert torch.equal(parameter, again.model.state_dict()[name]), name
    assert again.baseline == whole.baseline and (whole.baseline is not None) == (estimator == "reinforce")


def test_a_checkpoint_without_a_critic_is_refused(tmp_path):
    trainer = dialogue_trainer(tmp_path, save_strategy="steps", save_steps=1)
    trainer.train()
    (tmp_path / "run/checkpoint-1/critic.safetensors").unlink()
    mark_whole(tmp_path / "run/checkpoint-1", 1)  # as another estimator writes it
    with pytest.raises(ValueError, match="has no critic"):
        dialogue_trainer(tmp_path).train(resume_from_checkpoint=str(tmp_path / "run/checkpoint-1"))


def test_what_cannot_be_is_refused(tmp_path):
    with pytest.raises(ValueError, match="scale_rewards"):
        ObjectiveTrainer("x", args=small_args(tmp_path), env=bandit(), estimator="rloo")
    with pytest.raises(ValueError, match="needs env"):
        ObjectiveTrainer("x", lambda **columns: [], small_args(tmp_path), estimator="ppo")
    with pytest.raises(ValueError, match="chooses labels"):
        ObjectiveTrainer("x", args=small_args(tmp_path), env=bandit(), estimator="exact")
    with pytest.raises(ValueError, match="compares at least 2"):
        ObjectiveTrainer("x", args=ObjectiveArguments("y", num_generations=1, use_cpu=True, bf16=False), env=bandit())


def test_a_generation_without_returns_leaves_the_moving_mean_as_it_was():
    nothing = torch.full((3,), math.nan)
    advantages, baseline = above_baseline(nothing, math.nan, None)
    assert baseline is None and not advantages.any()
    advantages, baseline = above_baseline(torch.tensor([1.0, 3.0, math.nan]), 2.0, baseline)
    assert baseline == 2.0 and advantages.tolist() == [-1.0, 1.0, 0.0]
    assert above_baseline(nothing, math.nan, baseline)[1] == 2.0
