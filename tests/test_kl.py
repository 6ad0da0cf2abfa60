"""KL to the warm start in the loss, in the reward, steered and limited; KL to the policy that sampled; entropy."""

from __future__ import annotations

import math

import pytest
import torch
from small import small_policy
from test_estimators import TEXTS, bandit_trainer
from test_lambda_training import in_an_environment, logged
from torch.testing import assert_close

from rlobj.encoder_policy import action_logits
from rlobj.kl import penalise, reference_logps, sampled_kl, steered_beta
from rlobj.rollout import Trajectory

NO_DROPOUT = {"disable_dropout": True}


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return small_policy(tmp_path_factory.mktemp("policy"))


# By hand --------------------------------------------------------------------------------------------------------------


def test_beta_follows_the_kl_in_small_steps():
    assert steered_beta(0.5, kl=0.11, target=0.1) == pytest.approx(0.5 * (1 + 0.1 * 0.1))
    assert steered_beta(0.5, kl=9.0, target=0.1) == pytest.approx(0.5 * 1.02), "the error is cut at 0.2"
    assert steered_beta(0.5, kl=0.0, target=0.1) == pytest.approx(0.5 * 0.98)


def test_the_sampled_kl_is_that_of_the_distributions():
    old, now = torch.tensor([0.5, 0.3, 0.2]).log().double(), torch.tensor([0.2, 0.2, 0.6]).log().double()
    drawn = torch.multinomial(old.exp(), 20_000, replacement=True, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(1, len(drawn))
    total, count = sampled_kl(now[drawn][None], old[drawn][None], mask)
    exact = (old.exp() * (old - now)).sum()
    assert total / count == pytest.approx(exact.item(), rel=0.05)
    total, count = sampled_kl(torch.tensor([[-1.0, -2.0]]), torch.tensor([[-1.0, -3.0]]), torch.tensor([[1, 0]]))
    assert (total.item(), count.item()) == (0, 1), "a masked token counts for nothing"


def test_the_penalty_lands_on_the_tokens_of_the_policy():
    trajectory = Trajectory([1], [2, 3, 4], [1, 0, 1], [-1.0, 0.0, -2.0], [0.0, 0.0, 5.0], [0.0] * 3)
    returns = [5.0]
    ratios = penalise([trajectory], returns, [[-1.5, -9.0, -1.0]], beta=0.1)
    assert ratios == pytest.approx([0.5 - 1.0])
    assert trajectory.rewards == pytest.approx([-0.05, 0.0, 5.1]) and returns == pytest.approx([5.05])


# In training ----------------------------------------------------------------------------------------------------------


def probabilities(model, tokenizer):
    rows = tokenizer(list(TEXTS.values()), padding=True, return_tensors="pt")
    return action_logits(model.eval(), rows["input_ids"], rows["attention_mask"]).softmax(-1).detach()


@pytest.mark.parametrize(
    ("estimator", "fields", "tolerance"),
    [("exact", {"num_generations": 1}, 0.01), ("reinforce", {"per_device_train_batch_size": 48}, 0.1)],
)
def test_the_optimum_under_a_penalty_is_the_known_one(tmp_path, estimator, fields, tolerance):
    """max Σ π(a) r(a) − β KL(π ‖ π_ref) is reached by π ∝ π_ref · exp(r / β)."""
    beta, where = 0.5, "loss" if estimator == "exact" else "reward"
    trainer = bandit_trainer(
        tmp_path, estimator, steps=70, beta=beta, kl_in=where, **NO_DROPOUT, **fields, learning_rate=7e-3
    )
    trainer.train()
    best = probabilities(trainer.reference, trainer.processing_class) * (torch.eye(3) / beta).exp()
    assert_close(probabilities(trainer.model, trainer.processing_class), best / best.sum(-1, keepdim=True),
                 atol=tolerance, rtol=0.0)  # fmt: skip


def test_an_encoder_is_held_by_the_loss_too(tmp_path):
    """TRL's own KL term, with our copy of the encoder as its reference."""
    free, held = (
        bandit_trainer(tmp_path, "grpo", steps=40, beta=beta, **NO_DROPOUT, num_iterations=2) for beta in (1e-9, 2.0)
    )
    for trainer in (free, held):
        trainer.train()
    kls = [logged(trainer, "kl") for trainer in (free, held)]
    assert kls[0][0] == pytest.approx(0, abs=1e-6) and kls[1][0] == pytest.approx(0, abs=1e-6), "it begins as the copy"
    assert kls[1][-1] < 0.5 * kls[0][-1]


@pytest.mark.parametrize("kl_in", ["loss", "reward"])
def test_beta_is_steered_and_goes_on_exactly(policy, tmp_path, kl_in):
    settings = {"beta": 0.1, "beta_target": 1e-4, "kl_in": kl_in, "kl_every": 3, "max_steps": 6}
    whole = in_an_environment(policy, tmp_path / "whole", 0.1, **settings)
    whole.train()
    betas = logged(whole, "kl/beta")
    assert len(betas) == 6 and betas[0] == pytest.approx(0.1) and betas[-1] != betas[1]
    in_an_environment(policy, tmp_path / "parts", 0.1, **settings, save_strategy="steps", save_steps=4).train()
    again = in_an_environment(policy, tmp_path / "parts", 0.1, **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "parts/checkpoint-4"))
    for name in ("kl/beta", "kl/warm_start"):
        assert logged(again, name) == logged(whole, name)
    for name, parameter in whole.model.state_dict().items():
        assert torch.equal(parameter, again.model.state_dict()[name]), name


def test_the_reference_of_the_reward_is_the_warm_start(policy, tmp_path):
    trainer = in_an_environment(policy, tmp_path, 0.0, beta=0.5, kl_in="reward", temperature=0.7, max_steps=3)
    trainer.train()
    penalties = logged(trainer, "kl/penalty")
    assert penalties[0] == pytest.approx(0, abs=1e-4), "nothing has moved yet: log π is that of the warm start"
    assert abs(penalties[2]) > 1e-3
    assert trainer.beta == 0 and trainer.ref_model is None, "no second penalty in the loss"
    returns = zip(logged(trainer, "objective/return"), logged(trainer, "reward"), penalties, strict=True)
    assert all(mean == pytest.approx(reward + penalty, rel=1e-5) for mean, reward, penalty in returns)


def test_log_probabilities_of_the_reference_are_those_of_a_plain_pass(policy, tmp_path):
    trainer = in_an_environment(policy, tmp_path, 0.0, kl_every=1)
    some = [Trajectory([1, 5, 6], [7, 8, 9]), Trajectory([1], [4, 6])]
    found = reference_logps(trainer.reference, trainer.model, some, temperature=0.5)
    for trajectory, logps in zip(some, found, strict=True):
        ids = trajectory.prompt_ids + trajectory.completion_ids
        plain = (trainer.reference(torch.tensor([ids])).logits[0] / 0.5).log_softmax(-1)
        expected = [plain[t - 1, ids[t]].item() for t in range(len(trajectory.prompt_ids), len(ids))]
        assert logps == pytest.approx(expected, abs=1e-5)


def test_epochs_over_a_generation_stop_where_the_policy_has_moved_too_far(policy, tmp_path):
    settings = {"num_iterations": 4, "max_steps": 8, "learning_rate": 3e-2}
    trainer = in_an_environment(policy, tmp_path, 0.1, target_kl=0.01, **settings)
    weights, taken = [], []

    class Watch(type(trainer.epochs)):
        def on_step_end(self, args, state, control, **kwargs):
            weights.append(torch.cat([p.detach().flatten() for p in trainer.model.parameters()]).clone())
            taken.append(not trainer.epochs.over)

    trainer.add_callback(Watch(None, []))
    before = torch.cat([p.detach().flatten() for p in trainer.model.parameters()]).clone()
    trainer.train()
    for n, (took, now) in enumerate(zip(taken, weights, strict=True)):
        assert took == (not torch.equal(now, weights[n - 1] if n else before))
    assert taken[0] and taken[4] and not all(taken), "a new generation begins anew"
    measured = logged(trainer, "kl/sampling")
    assert max(measured) > 0.01 and measured[0] == pytest.approx(0, abs=1e-6)
    assert len(logged(trainer, "objective/lambda_sup")) == 8
    assert sum(logged(trainer, "kl/steps_left_out")) == 8 - len(measured)


def test_a_training_that_was_ended_by_the_limit_stays_ended(policy, tmp_path):
    settings = {"kl_every": 1, "kl_limit": 1e-9, "save_strategy": "steps", "save_steps": 1, "max_steps": 8}
    ended = in_an_environment(policy, tmp_path, 0.1, **settings)
    ended.train()
    last = ended.state.global_step
    assert last < 8
    again = in_an_environment(policy, tmp_path, 0.1, **settings)
    again.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{last}"))
    assert again.state.global_step == last + 1
    for name, parameter in ended.model.state_dict().items():
        assert torch.equal(parameter, again.model.state_dict()[name]), name
    raised = in_an_environment(policy, tmp_path, 0.1, **{**settings, "kl_limit": 1e9})
    raised.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{last}"))
    assert raised.state.global_step == 8, "another limit, another training"


def test_the_entropy_bonus_leads_to_the_known_optimum(tmp_path):
    """max Σ π(a) r(a) + c H(π) is reached by π ∝ exp(r / c)."""
    trainer = bandit_trainer(
        tmp_path, "exact", steps=100, num_generations=1, entropy_coef=0.5, learning_rate=5e-3, **NO_DROPOUT
    )
    trainer.train()
    best = (torch.eye(3) / 0.5).softmax(-1)
    assert_close(probabilities(trainer.model, trainer.processing_class), best, atol=0.01, rtol=0.0)


def test_settings_that_cannot_be(policy, tmp_path):
    with pytest.raises(ValueError, match="expected a beta above 0 to begin with"):
        in_an_environment(policy, tmp_path, 0.1, beta_target=0.1)
    with pytest.raises(ValueError, match="top_p, top_k, min_p or repetition_penalty change"):
        in_an_environment(policy, tmp_path, 0.1, beta=0.1, kl_in="reward", top_k=5)
    with pytest.raises(ValueError, match="episodes that are sampled"):
        bandit_trainer(tmp_path, "exact", num_generations=1, beta=0.1, kl_in="reward")
    assert math.isfinite(steered_beta(1.0, 0.0, 0.1))
