"""∇R and ∇ℓ apart: their balance, the proof that λ acts, and surgery on what they have against each other.

Legend: P parameters that are trained, flattened.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from rlobj.objective import GradientBalance, gradient_balance, surgery_correction


class LambdaIsDead(ValueError):
    """λ > 0 was asked for and changes no parameter's gradient."""


class GradientProbe:
    """Measures both gradients of an optimiser step; the backward pass of the step itself is left as it is.

    Args:
        every: optimiser steps from one measurement to the next; 0: until λ > 0 is proven to act, and no more.
        surgery: "pcgrad" measures at every step with λ > 0, and keeps what surgery adds to the gradient.
    """

    def __init__(self, every: int, surgery: Literal["none", "pcgrad"]) -> None:
        self.every, self.surgery = every, surgery
        self.correction: Tensor | None = None
        """what surgery adds to the gradient of this step, (P,), until it is taken"""
        self._window: list[tuple[Tensor, Tensor]] = []
        self._lambda_proven = False

    def is_due(self, step: int, lambda_sup: float) -> bool:
        """Whether the gradients of this optimiser step are measured."""
        if self.surgery != "none" and lambda_sup > 0:
            return True
        return (lambda_sup > 0 and not self._lambda_proven) or (self.every > 0 and step % self.every == 0)

    def measure(self, R: Tensor, ell: Tensor, model: nn.Module) -> None:
        """Keep ∇R and ∇ℓ of a micro-batch."""
        parameters = _trained(model)

        def flat(term: Tensor) -> Tensor:
            grads = torch.autograd.grad(term, parameters, retain_graph=True, allow_unused=True)
            return torch.cat(
                [(torch.zeros_like(p) if g is None else g).flatten() for g, p in zip(grads, parameters, strict=True)]
            )

        self._window.append((flat(R), flat(ell)))

    def end_of_step(self, lambda_sup: float, over_processes: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Compare what the micro-batches of an optimiser step left, if they were measured.

        Args:
            over_processes: the mean of a tensor over processes.

        Returns: metrics, those that are finite.

        Raises:
            LambdaIsDead: λ > 0, and λ∇ℓ changes nothing.
        """
        if not self._window:
            return {}
        grad_R, grad_ell = (over_processes(sum(grads)) for grads in zip(*self._window, strict=True))
        self._window = []
        balance = gradient_balance(grad_R, grad_ell, lambda_sup)
        if lambda_sup > 0 and not self._lambda_proven:
            self._lambda_proven = _acts(balance, lambda_sup)
        if self.surgery == "pcgrad" and lambda_sup > 0:
            self.correction = surgery_correction(grad_R, grad_ell, lambda_sup)
        found = {f"gradient/{name}": getattr(balance, name) for name in ("norm_R", "norm_ell", "ratio", "cosine")}
        return {name: value for name, value in found.items() if math.isfinite(value)}

    def operate(self, loss: Tensor, model: nn.Module) -> Tensor:
        """The loss, (), with a term whose gradient is the correction, if there is one: it is summed with the others'
        before they are clipped. The value stays what it was."""
        if self.correction is None:
            return loss
        parameters = _trained(model)
        parts = torch.split(self.correction, [p.numel() for p in parameters])
        pull = torch.stack([(p * part.view_as(p)).sum() for p, part in zip(parameters, parts, strict=True)]).sum()
        self.correction = None
        return loss + (pull - pull.detach())


def _trained(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def _acts(balance: GradientBalance, lambda_sup: float) -> bool:
    """Whether λ is proven to act. A gradient that is not finite is the guard's affair, and proves nothing about λ."""
    finite = math.isfinite(balance.norm_ell) and math.isfinite(balance.norm_R)
    if finite and not balance.lambda_acts:
        raise LambdaIsDead(
            f"lambda_sup is {lambda_sup} but changes no gradient: ‖∇ℓ‖ is {balance.norm_ell:.3g}, ‖∇R‖ is "
            f"{balance.norm_R:.3g}. Expected λ‖∇ℓ‖ to be felt: raise lambda_sup, check that the supervised "
            "labels are not all masked, or set lambda_sup to 0"
        )
    return math.isfinite(balance.norm_ell) and balance.lambda_acts
