"""λ in training: when ℓ is computed, what is logged, and how a resume goes on."""

from __future__ import annotations

import gymnasium
import pytest
import torch
from small import small_args, small_policy, small_rows
from test_parity import ours
from transformers import AutoModelForCausalLM

import envs  # noqa: F401  (registers them)
from rlobj.policies import load_tokenizer
from rlobj.supervised import mean_supervised_loss
from rlobj.trainer import ELL_ROWS, ObjectiveTrainer

CONTROLLED = {
    "tokens": "linear:start=0.5,end=0,tokens=400",
    "lagrange": "lagrange:factor=0.5,start=0.1,smoothing=0.5",
    "gate": "gate:value=0.3,success=0.2,per=group",
    "entropy": "entropy:value=0.5",
}


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return small_policy(tmp_path_factory.mktemp("policy"))


def length(prompts, completions, **columns):
    return [sum(len(m["content"]) for m in completion) / 10 for completion in completions]


OURS = ("kl_every", "kl_limit", "kl_in", "beta_target", "target_kl")


def in_an_environment(policy, directory, lambda_sup, **fields):
    settings = {name: fields.pop(name) for name in OURS if name in fields}
    tokenizer = load_tokenizer(policy)
    env = gymnasium.make("rlobj/CustomerService-v0", domain="repairs", max_turns=1, reward=length)
    defaults = {"per_device_train_batch_size": 4, "num_generations": 2, "max_completion_length": 6, "max_steps": 4}
    return ObjectiveTrainer(
        AutoModelForCausalLM.from_pretrained(policy), args=small_args(directory, **{**defaults, **fields}),
        processing_class=tokenizer, env=env, train_seeds=range(100), supervised=small_rows(tokenizer),
        supervised_batch_size=4, lambda_sup=lambda_sup, probe_every=0, max_length=300, **settings,
    )  # fmt: skip


def logged(trainer, name):
    return [log[name] for log in trainer.state.log_history if name in log]


def supervised_passes(trainer):
    """Optimiser steps in which ℓ was computed."""
    steps, compute = [], trainer.supervised_loss

    def counted(model):
        steps.append(trainer.state.global_step)
        return compute(model)

    trainer.supervised_loss = counted
    trainer.train()
    return steps


@pytest.mark.parametrize(
    ("lambda_sup", "probe_every", "expected"),
    [
        (0.0, 0, []),
        (0.0, 2, [0, 2]),
        ("piecewise:0=0,2=0.5,hold=true", 0, [2, 3]),
        ("piecewise:0=0,1000000=0,over=tokens", 0, []),
        ("lagrange:bound=1000", 0, [0, 1, 2, 3]),  # it asks after ℓ
    ],
)
def test_at_lambda_zero_no_supervised_pass_is_made_but_to_watch(policy, tmp_path, lambda_sup, probe_every, expected):
    trainer = ours(policy, tmp_path, lambda_sup=lambda_sup, probe_every=probe_every, args={"max_steps": 4})
    assert supervised_passes(trainer) == expected
    assert len(logged(trainer, "objective/lambda_sup")) == 4


@pytest.mark.parametrize("form", CONTROLLED)
def test_a_controller_goes_on_exactly(policy, tmp_path, form):
    whole = in_an_environment(policy, tmp_path / "whole", CONTROLLED[form])
    whole.train()
    first = in_an_environment(policy, tmp_path / "parts", CONTROLLED[form], save_strategy="steps", save_steps=2)
    first.train()
    again = in_an_environment(policy, tmp_path / "parts", CONTROLLED[form])
    again.train(resume_from_checkpoint=str(tmp_path / "parts/checkpoint-2"))
    assert logged(again, "objective/lambda_sup") == logged(whole, "objective/lambda_sup")
    assert again.lambda_form.state == whole.lambda_form.state
    for name, parameter in whole.model.state_dict().items():
        assert torch.equal(parameter, again.model.state_dict()[name]), name


def test_the_tokens_of_a_schedule_are_those_that_the_policy_wrote(policy, tmp_path):
    trainer = in_an_environment(policy, tmp_path, CONTROLLED["tokens"], num_iterations=2)
    written, generate = [], trainer._generate_and_score_completions

    def counted(inputs):
        batch = generate(inputs)
        written.append(int((batch["completion_mask"] * batch["tool_mask"]).sum()))
        return batch

    trainer._generate_and_score_completions = counted
    trainer.train()
    assert len(written) == 2 and trainer.lambda_form.state == {"tokens": 2 * sum(written)}


def test_the_weight_of_srft_follows_the_policy_that_sampled(policy, tmp_path):
    trainer = in_an_environment(policy, tmp_path, "entropy:value=0.5", max_steps=1)
    trainer.train()
    (lambda_sup,), (entropy,) = logged(trainer, "objective/lambda_sup"), logged(trainer, "entropy")
    # −log π of some 24 tokens is near the entropy over the whole vocabulary of a policy that is unsure of itself
    assert lambda_sup == pytest.approx(0.5 * 2.718281828**-entropy, rel=0.2)


def by_hand(state, ell):
    return {"lambda_sup": 0.2, "seen": state.get("seen", 0) + 1}


def by_hand_too(state, ell):
    return {"lambda_sup": 0.3, "heard": state.get("heard", 0) + 1}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("lagrange:bound=9,start=0.2", "lagrange:factor=1.5,start=0.3"),
        (f"{__name__}:by_hand", f"{__name__}:by_hand_too"),
        (0.2, f"{__name__}:by_hand_too"),
        (f"{__name__}:by_hand", 0.3),
    ],
)
def test_another_lambda_at_a_resume_begins_afresh(policy, tmp_path, before, after):
    first = ours(policy, tmp_path, lambda_sup=before, args={"max_steps": 2, "save_strategy": "steps", "save_steps": 2})
    first.train()
    again = ours(policy, tmp_path, lambda_sup=after, args={"max_steps": 3})
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert logged(again, "objective/lambda_sup")[-1] == 0.3
    state = getattr(again.lambda_form, "state", None)
    if isinstance(after, str) and after.startswith("lagrange"):
        now, start = (
            mean_supervised_loss(trainer.model, trainer.stream.rows, ELL_ROWS)
            for trainer in (again, ours(policy, tmp_path / "b", lambda_sup=0.1))
        )
        assert state["start_ell"] == pytest.approx(now, rel=0.5)
        assert state["start_ell"] == start, "the warm start's"
    elif state is not None:
        assert state == {"lambda_sup": 0.3, "heard": 2}, "told of the warm start, and of one step"


def test_L_is_there_in_every_step_on_a_generation(policy, tmp_path):
    trainer = in_an_environment(policy, tmp_path, 0.2, num_iterations=2)
    trainer.train()
    returns, ells = logged(trainer, "objective/return"), logged(trainer, "objective/ell")
    assert returns[0] == returns[1] == logged(trainer, "reward")[0] and returns[2] == returns[3] != returns[0]
    assert logged(trainer, "objective/L") == pytest.approx(
        [-r + 0.2 * ell for r, ell in zip(returns, ells, strict=True)]
    )


def test_L_is_the_measured_one_at_every_step(policy, tmp_path):
    trainer = ours(policy, tmp_path, lambda_sup="linear:start=0.4,end=0.1,steps=3")
    trainer.train()
    lambdas = logged(trainer, "objective/lambda_sup")
    assert lambdas == pytest.approx([0.4, 0.3, 0.2])
    whole = zip(logged(trainer, "reward"), logged(trainer, "objective/ell"), lambdas, strict=True)
    assert logged(trainer, "objective/L") == pytest.approx([-r + lam * ell for r, ell, lam in whole])
