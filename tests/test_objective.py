"""The formula, and the balance of its gradients."""

from __future__ import annotations

import math

import pytest
import torch

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
