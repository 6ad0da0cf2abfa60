"""The objective of the project, and nothing else.

    L(θ) = −R(θ) + λ · ℓ(M_θ(x), y)

Legend: R is the return to maximise (or a surrogate whose gradient estimates ∇R), ℓ the supervised loss,
λ (`lambda_sup`) the weight of supervision. The sign convention and the place of λ are decided here once.
"""

from __future__ import annotations

import math
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

Scalar = TypeVar("Scalar", Tensor, float)


def objective(R: Scalar, ell: Scalar, lambda_sup: float) -> Scalar:
    """L(θ) = −R(θ) + λ·ℓ(M_θ(x), y).

    Args:
        R: return or its surrogate, shape (). Maximised.
        ell: supervised loss, shape (), in nats per target. Minimised.
        lambda_sup: λ ≥ 0. Multiplies ℓ, never R.
    """
    return -R + lambda_sup * ell


class GradientBalance(NamedTuple):
    """How the two terms pull on the parameters at one step."""

    norm_R: float
    """‖∇R‖₂."""
    norm_ell: float
    """‖∇ℓ‖₂, without λ."""
    ratio: float
    """λ‖∇ℓ‖ / ‖∇R‖: 1 means that both pull equally hard; inf where ∇R is zero."""
    cosine: float
    """cos(∇R, −∇ℓ): 1 where reward and supervision agree, −1 where they oppose; nan where either is zero."""
    lambda_acts: bool
    """Whether adding λ∇ℓ to −∇R changes at least one coordinate in the arithmetic of training."""


def surgery_correction(grad_R: Tensor, grad_ell: Tensor, lambda_sup: float) -> Tensor:
    """What PCGrad (Yu et al. 2020) adds to −∇R + λ∇ℓ: where the two terms oppose each other, each loses its part along
    the other; 0 where they do not.

    Args:
        grad_R, grad_ell: ∇R and ∇ℓ flattened, each (P,).

    Returns: (P,).
    """
    first, second = -grad_R, lambda_sup * grad_ell
    along = torch.dot(first, second)
    if not along < 0:
        return torch.zeros_like(grad_R)
    return -along / second.dot(second) * second - along / first.dot(first) * first


def gradient_balance(grad_R: Tensor, grad_ell: Tensor, lambda_sup: float) -> GradientBalance:
    """Compare the two gradients that the optimiser step sums.

    Args:
        grad_R: ∇R flattened, shape (P,).
        grad_ell: ∇ℓ flattened, shape (P,), in the same order.
        lambda_sup: λ ≥ 0.

    Raises:
        ValueError: the shapes differ.
    """
    if grad_R.shape != grad_ell.shape:
        raise ValueError(f"grad_R has shape {tuple(grad_R.shape)} and grad_ell {tuple(grad_ell.shape)}: expected equal")
    norm_R = torch.linalg.vector_norm(grad_R).item()
    norm_ell = torch.linalg.vector_norm(grad_ell).item()
    both = norm_R > 0 and norm_ell > 0
    cosine = -torch.dot(grad_R / norm_R, grad_ell / norm_ell).item() if both else math.nan
    ratio = lambda_sup * norm_ell / norm_R if norm_R > 0 else (math.inf if lambda_sup * norm_ell > 0 else math.nan)
    acts = bool((objective(grad_R, grad_ell, lambda_sup) != -grad_R).any())
    return GradientBalance(norm_R, norm_ell, ratio, cosine, acts)
