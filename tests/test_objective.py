"""The formula, the balance of its gradients, and λ's forms."""

from __future__ import annotations

import math

import pytest
import torch

from rlobj.lambdas import Constant, Linear, Measured, Steered, as_lambda
from rlobj.objective import gradient_balance, objective, surgery_correction


def test_objective_is_minus_R_plus_lambda_ell_and_so_is_its_gradient():
    theta = torch.tensor([0.3, -1.2], dtype=torch.float64, requires_grad=True)
    R, ell = (theta**2).sum(), (theta * torch.tensor([2.0, 5.0])).sum()
    loss = objective(R, ell, 0.25)
    assert loss.item() == pytest.approx(-(0.09 + 1.44) + 0.25 * (0.6 - 6.0), rel=1e-12)
    loss.backward()
    # d(−θ²)/dθ + 0.25·(2, 5)
    assert theta.grad.tolist() == pytest.approx([-0.6 + 0.5, 2.4 + 1.25], rel=1e-12)


def test_one_summed_gradient_follows_lambda_where_two_clipped_steps_do_not():
    """Two quadratics, R = −θ²/2 and ℓ = (θ−1)²/2: the optimum of −R + λℓ lies at λ/(1+λ)."""
    for lam in (0.1, 1.0, 10.0):
        theta = torch.zeros((), dtype=torch.float64, requires_grad=True)
        optimiser = torch.optim.SGD([theta], lr=0.05)
        for _ in range(2000):
            optimiser.zero_grad()
            objective(-(theta**2) / 2, (theta - 1) ** 2 / 2, lam).backward()
            optimiser.step()
        assert theta.item() == pytest.approx(lam / (1 + lam), abs=1e-6)


def test_surgery_by_hand():
    """−∇R is (1, 0) and λ∇ℓ (−1, 1): less their parts along each other, (½, ½) and (0, 1)."""
    grad_R, grad_ell = torch.tensor([-1.0, 0.0]), torch.tensor([-2.0, 2.0])
    total = -grad_R + 0.5 * grad_ell + surgery_correction(grad_R, grad_ell, 0.5)
    assert total.tolist() == [0.5, 1.5]
    assert surgery_correction(-grad_R, grad_ell, 0.5).tolist() == [0, 0], "they agree"
    assert surgery_correction(grad_R, 0 * grad_ell, 0.5).tolist() == [0, 0]


def test_gradient_balance_by_hand():
    balance = gradient_balance(torch.tensor([3.0, 4.0]), torch.tensor([0.0, -2.0]), 0.5)
    assert (balance.norm_R, balance.norm_ell) == (5.0, 2.0)
    assert balance.ratio == pytest.approx(0.5 * 2 / 5)
    assert balance.cosine == pytest.approx(0.8)  # lowering ℓ raises θ₂, as raising R does
    assert balance.lambda_acts


def test_lambda_is_dead_where_float_arithmetic_swallows_it():
    assert not gradient_balance(torch.ones(3), torch.ones(3), 1e-12).lambda_acts
    assert not gradient_balance(torch.ones(3), torch.zeros(3), 1.0).lambda_acts
    nothing = gradient_balance(torch.zeros(3), torch.ones(3), 1.0)
    assert nothing.ratio == math.inf and math.isnan(nothing.cosine) and nothing.lambda_acts


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
        ("gate:value=0.3,success=0.2", {0: 0.3}),
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


def test_a_gate_follows_the_success_of_the_step_before():
    form = as_lambda("gate:value=0.3,success=0.25,otherwise=0.1")
    seen = []
    for step, success in enumerate((0.5, 0.25, 1.0)):
        form.update(Measured(step, 1.0, success))
        seen.append(form(step + 1))
    assert seen == [0.1, 0.3, 0.1]
    with pytest.raises(ValueError, match="no column success"):
        form.update(Measured(3, 1.0))


def doubling(state, ell):
    return {"lambda_sup": 2 * state.get("lambda_sup", 0.5), "seen": [*state.get("seen", []), ell]}


def test_a_controller_of_ones_own():
    form = as_lambda(f"{__name__}:doubling")
    form.begin(3.0)
    form.update(Measured(0, 2.0))
    assert form(1) == 2.0 and form.state["seen"] == [3.0, 2.0]
    with pytest.raises(ValueError, match="expected a dict with lambda_sup"):
        Steered(lambda state, ell: {}).begin(1.0)
    with pytest.raises(ValueError, match="checkpoints cannot hold"):
        Steered(lambda state, ell: {"lambda_sup": 1, "seen": {ell}}).begin(1.0)


@pytest.mark.parametrize(
    ("theirs", "lambda_sup", "factor"),
    [
        (lambda R, ell: -R + 0.3 * ell, 0.3, 1.0),  # InstructGPT's γ, GNMT's α
        (lambda R, ell: -0.6 * R + 0.4 * ell, 0.4 / 0.6, 0.6),  # Paulus et al., γ = 0.6
        (lambda R, ell: -(1 - 0.4) * R + 0.4 * ell, as_lambda("chord:start=0.4,end=0.4,steps=1")(0), 0.6),
        (lambda R, ell: -2.5 * R + ell, 1 / 2.5, 2.5),  # TD3+BC
    ],
)
def test_conversions_of_the_readme(theirs, lambda_sup, factor):
    theta = torch.tensor([0.3, -1.2], requires_grad=True)

    def gradient(loss):
        return torch.autograd.grad(loss, theta)[0]

    R, ell = -((theta - 1) ** 2).sum(), (theta**4).sum()
    their_gradient, our_gradient = gradient(theirs(R, ell)), None
    R, ell = -((theta - 1) ** 2).sum(), (theta**4).sum()
    our_gradient = gradient(objective(R, ell, lambda_sup))
    assert torch.allclose(their_gradient, factor * our_gradient)
