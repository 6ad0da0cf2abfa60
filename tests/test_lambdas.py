"""Forms of λ by name, by hand; and the conversions between the field's conventions."""

from __future__ import annotations

import math

import pytest
import torch

from rlobj.controllers import Measured, Sampled, Steered, identity
from rlobj.lambdas import as_lambda
from rlobj.objective import objective
from rlobj.schedules import Constant, Linear


def test_forms_of_lambda():
    ramp = Linear(1.0, 0.0, steps=4)
    assert [ramp(s) for s in (0, 1, 2, 4, 9)] == [1.0, 0.75, 0.5, 0.0, 0.0]
    assert as_lambda(0.3)(17) == 0.3 and as_lambda(ramp) is ramp
    for bad in (-0.1, math.nan, math.inf):
        with pytest.raises(ValueError, match="expected a finite number >= 0"):
            Constant(bad)
    with pytest.raises(ValueError, match="steps=0"):
        Linear(0, 1, 0)


# Forms ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.25", {0: 0.25, 99: 0.25}),
        ("constant:value=0.25", {0: 0.25, 99: 0.25}),
        ("linear:start=0,end=0.3,steps=3", {0: 0.0, 1: 0.1, 3: 0.3, 50: 0.3}),
        ("cosine:start=1,end=0.5,steps=4", {0: 1.0, 1: 0.5 + 0.25 * (1 + math.sqrt(0.5)), 2: 0.75, 4: 0.5, 9: 0.5}),
        ("piecewise:2=0.5,4=0.1", {0: 0.5, 2: 0.5, 3: 0.3, 4: 0.1, 9: 0.1}),
        ("piecewise:0=0.5,4=0.1,hold=true", {0: 0.5, 3: 0.5, 4: 0.1, 9: 0.1}),
        ("chord:start=0.5,end=0.2,steps=10", {0: 1.0, 5: 0.35 / 0.65, 10: 0.25}),
        ("step:start=0.8,factor=0.5,steps=10", {0: 0.8, 9: 0.8, 10: 0.4, 29: 0.2}),
        ("warmup:value=0.3,steps=3", {0: 0.0, 1: 0.1, 3: 0.3, 50: 0.3}),
        ("gate:value=0.3,success=0.2", {0: 0.3}),
        ("entropy:value=0.5", {0: 0.0}),
        ("lagrange:bound=0.4,start=0.2", {0: 0.2}),
    ],
)
def test_forms_by_name(text, expected):
    form = as_lambda(text)
    assert {step: form(step) for step in expected} == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("liner:start=1,end=0,steps=4", "did you mean 'linear'"),
        ("a lot", "expected a number, or one of constant, linear"),
        ("-1", "expected a finite number >= 0"),
        ("linear:start=1,end=0", "linear needs start, end, steps"),
        ("linear:start=1,end=0,step=4", "linear has no 'step'; did you mean 'steps'"),
        ("linear:start=x,end=0,steps=4", "could not convert"),
        ("piecewise:4=1,2=0", "expected them to rise"),
        ("chord:start=1,end=0,steps=4", "expected a μ of 0 to below 1"),
        ("lagrange:ki=1", "expected one of them"),
        ("lagrange:bound=1,smoothing=1", "expected 0 to below 1"),
        ("gate:value=1,success=2", r"expected a share in \[0, 1\]"),
        ("gate:value=1,success=0,per=prompt", "expected step or group"),
        ("step:start=1,factor=2,steps=4", "expected 0 to 1"),
        ("linear:start=1,end=0,steps=4,tokens=4", "both given"),
        ("linear:start=1,end=0,tokens=4.5", "expected a whole number"),
        ("piecewise:0=1,over=words", "expected steps or tokens"),
        ("lagrange:bound=1,tokens=4", "lagrange has no 'tokens'"),
        ("no.such.module:function", "cannot be imported"),
        ("math:pi", "expected a function"),
    ],
)
def test_forms_that_are_none(text, message):
    with pytest.raises(ValueError, match=message):
        as_lambda(text)


def test_the_multiplier_holds_the_bound_where_the_optimum_is_known():
    # maximise R(x) = -(x - 2)² subject to ℓ(x) = x² ≤ 1: x* = 1, and from ∇R = λ∇ℓ, λ* = 1
    form, x = as_lambda("lagrange:bound=1,ki=0.05,kp=0.5,smoothing=0.5"), 2.0
    form.begin(x * x)
    for step in range(2000):
        x -= 0.05 * (2 * (x - 2) + form(step) * 2 * x)
        form.update(Measured(step, x * x))
    assert x == pytest.approx(1.0, abs=1e-3) and form(2000) == pytest.approx(1.0, abs=1e-2)


def test_the_multiplier_is_zero_where_reward_alone_keeps_the_bound():
    form = as_lambda("lagrange:factor=1.5,start=0.5")
    form.begin(1.0)
    for step in range(200):
        form.update(Measured(step, 1.2))
    assert form(200) == 0.0
    for step in range(2000):
        form.update(Measured(step, 9.0))
    assert form(0) == form.most
    for step in range(100):
        form.update(Measured(step, 1.0))
    assert form(0) < form.most, "what piled up at the largest λ need not be worked off"


def test_a_gate_opens_where_the_episodes_fail():
    form = as_lambda("gate:value=0.3,success=0.25,otherwise=0.1")
    seen = []
    for success in ((0.5, 0.5), (0.5, 0.0), (1.0,)):
        form.observe(Sampled(success))
        seen.append(form(0))
    assert seen == pytest.approx([0.1, 0.3, 0.1])
    with pytest.raises(ValueError, match="no column success"):
        form.observe(Sampled())


def test_a_gate_by_group_weighs_the_groups_that_fail():
    form = as_lambda("gate:value=0.4,success=0,per=group")
    form.observe(Sampled((0.0, 0.5, 1.0, 0.25)))
    assert form(0) == pytest.approx(0.4 / 4)


def test_the_weight_of_srft_by_hand():
    form = as_lambda("entropy")
    form.observe(Sampled(entropy=math.log(4)))  # as unsure as among four: 0.5 / 4
    assert form(0) == pytest.approx(0.125)
    with pytest.raises(ValueError, match="it is not known what"):
        form.observe(Sampled())


@pytest.mark.parametrize("text", ["linear:start=0,end=1,tokens=100", "piecewise:0=0,100=1,over=tokens"])
def test_a_schedule_over_tokens(text):
    form, seen = as_lambda(text), []
    for step, tokens in enumerate((30, 20, 0, 500)):
        seen.append(form(step))
        form.update(Measured(step, tokens=tokens))
    assert [*seen, form(4)] == pytest.approx([0.0, 0.3, 0.5, 0.5, 1.0])
    assert form.state == {"tokens": 550} and not form.needs_ell


def test_forms_are_told_apart_by_their_settings_and_never_by_their_state():
    form = as_lambda("lagrange:bound=0.4")
    before = identity(form)
    form.update(Measured(0, 3.0))
    assert identity(form) == before
    names = {
        identity(as_lambda(text))
        for text in ("lagrange:bound=0.4", "lagrange:bound=0.5", "lagrange:factor=0.4", f"{__name__}:doubling",
                     f"{__name__}:tripling", "linear:start=0,end=1,tokens=9", "linear:start=0,end=1,tokens=8")
    }  # fmt: skip
    assert len(names) == 7 and not any(" at 0x" in name for name in names)


def doubling(state, ell):
    return {"lambda_sup": 2 * state.get("lambda_sup", 0.5), "seen": [*state.get("seen", []), ell]}


def tripling(state, ell):
    return {"lambda_sup": 3 * state.get("lambda_sup", 0.5)}


def test_a_controller_of_ones_own():
    form = as_lambda(f"{__name__}:doubling")
    form.begin(3.0)
    form.update(Measured(0, 2.0))
    assert form(1) == 2.0 and form.state["seen"] == [3.0, 2.0]
    with pytest.raises(ValueError, match="expected a dict with lambda_sup"):
        Steered(lambda state, ell: {}).begin(1.0)
    with pytest.raises(ValueError, match="checkpoints cannot hold"):
        Steered(lambda state, ell: {"lambda_sup": 1, "seen": {ell}}).begin(1.0)


# Conversions of the README --------------------------------------------------------------------------------------------


def gradient_at(loss):
    """The gradient of a loss of θ and of two terms that depend on it."""
    theta = torch.tensor([0.3, -1.2], dtype=torch.float64, requires_grad=True)
    R, ell = -((theta - 1) ** 2).sum(), (theta**4).sum()
    return torch.autograd.grad(loss(theta, R, ell), theta)[0]


def entropy_of(theta):
    return torch.distributions.Categorical(logits=theta).entropy()


def at_this_entropy(text):
    """λ of a form that has been told the entropy of the policy θ."""
    form = as_lambda(text)
    form.observe(Sampled(entropy=entropy_of(torch.tensor([0.3, -1.2], dtype=torch.float64)).item()))
    return form(0)


@pytest.mark.parametrize(
    ("theirs", "lambda_sup", "factor"),
    [
        (lambda theta, R, ell: -R + 0.3 * ell, 0.3, 1.0),  # InstructGPT's γ, GNMT's α, sft_loss_coef, bc_loss_weight
        (lambda theta, R, ell: -0.6 * R + 0.4 * ell, 0.4 / 0.6, 0.6),  # Paulus et al., γ = 0.6
        (lambda theta, R, ell: -(1 - 0.4) * R + 0.4 * ell, as_lambda("chord:start=0.4,end=0.4,steps=1")(0), 0.6),
        (lambda theta, R, ell: -2.5 * R + ell, 1 / 2.5, 2.5),  # TD3+BC
        (lambda theta, R, ell: -0.1 * R + 2 * ell, 2 / 0.1, 0.1),  # rl_loss_weight and bc_loss_weight
        (lambda theta, R, ell: -R + 0.5 * (-entropy_of(theta)).exp().detach() * ell,
         at_this_entropy("entropy:value=0.5"), 1.0),  # SRFT
    ],
)  # fmt: skip
def test_conversions_of_the_readme(theirs, lambda_sup, factor):
    ours = gradient_at(lambda theta, R, ell: objective(R, ell, lambda_sup))
    torch.testing.assert_close(gradient_at(theirs), factor * ours, rtol=1e-12, atol=0)


def test_the_conversion_of_hpt_where_demonstrations_are_drawn_from_all():
    """Their loss is −R_q of a prompt that succeeds, the demonstration's NLL of one that fails. A failed group's returns
    are all alike, so its part of R has no gradient; and each demonstration stands for ℓ."""
    success = (0.5, 0.0, 1.0, 0.0)
    form = as_lambda("gate:value=1,success=0,per=group")
    form.observe(Sampled(success))

    def theirs(theta, R, ell):
        return sum(-(q + 1) * R if share > 0 else ell for q, share in enumerate(success)) / len(success)

    def surrogate(R):
        return sum((q + 1) * R for q, share in enumerate(success) if share > 0) / len(success)

    ours = gradient_at(lambda theta, R, ell: objective(surrogate(R), ell, form(0)))
    torch.testing.assert_close(gradient_at(theirs), ours, rtol=1e-12, atol=0)


def test_a_coefficient_on_a_mean_of_means_is_lambda_where_micro_batches_have_as_many_targets():
    """verl's trainers with an sft_loss_coef average each micro-batch's NLL by itself."""
    nll = torch.tensor([0.5, 1.5, 2.0, 4.0])
    even = (nll[:2].mean() + nll[2:].mean()) / 2
    assert even == nll.mean()
    uneven = (nll[:1].mean() + nll[1:].mean()) / 2
    assert uneven != nll.mean(), "their coefficient means another thing, then; λ does not"
