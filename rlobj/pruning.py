"""Weights set to 0 by their size, through torch.nn.utils.prune: over the whole model, in each layer, or two of four.

What is pruned are the linear layers of the body, not embeddings, norms or what stands on top of it (label head,
vocabulary). A mask stays on its weight in training, until `keep_zeros` leaves the zeros in the weight itself; from
then on `ZerosStay` holds them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from transformers import PreTrainedModel, TrainerCallback


def linear_layers(model: PreTrainedModel) -> dict[str, nn.Linear]:
    """The layers that are pruned, by name.

    Raises:
        ValueError: there is none.
    """
    found = {name: each for name, each in model.base_model.named_modules() if isinstance(each, nn.Linear)}
    if not found:
        raise ValueError(f"{type(model).__name__} has no torch.nn.Linear in its body: expected a transformer that has")
    return found


def mask_smallest(model: PreTrainedModel, amount: float) -> None:
    """Mask the smallest share `amount` of all weights (Han et al. 2015): some layers lose more than others."""
    weights = [(layer, "weight") for layer in linear_layers(model).values()]
    prune.global_unstructured(weights, prune.L1Unstructured, amount=amount)


def mask_smallest_of_each_layer(model: PreTrainedModel, amount: float) -> None:
    """Mask the smallest share `amount` of the weights of each layer."""
    for layer in linear_layers(model).values():
        prune.l1_unstructured(layer, "weight", amount=amount)


def mask_two_of_four(model: PreTrainedModel) -> None:
    """Mask the two smallest of each four weights that follow one another in a row (Mishra et al. 2021).

    Raises:
        ValueError: a layer's inputs cannot be counted off in fours.
    """
    layers = linear_layers(model)
    for name, layer in layers.items():
        if layer.in_features % 4:
            raise ValueError(
                f"2:4 counts inputs in fours, and {name} has {layer.in_features} of them: use layer instead"
            )
    for layer in layers.values():
        prune.custom_from_mask(layer, "weight", two_of_four(layer.weight))


def two_of_four(weight: Tensor) -> Tensor:
    """A mask of the two largest of each four, (outputs, inputs): 1 stays, 0 goes."""
    fours = weight.detach().abs().reshape(-1, 4)
    return torch.zeros_like(fours).scatter_(1, fours.topk(2, dim=1).indices, 1.0).reshape(weight.shape)


def keep_zeros(model: nn.Module) -> None:
    """Take the masks away and leave what they let through in the weights."""
    for module in model.modules():
        if prune.is_pruned(module) and hasattr(module, "weight_mask"):
            prune.remove(module, "weight")


class ZerosStay(TrainerCallback):
    """Keep the zeros of a model's linear layers through every optimiser step.

    A masked weight cannot be copied by deepcopy, as the reference of a KL is; a weight with zeros can.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        weights = [layer.weight for layer in linear_layers(model).values()]
        self.gone = [(weight, weight.detach() == 0) for weight in weights]

    @torch.no_grad()
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for weight, gone in self.gone:
            weight[gone.to(weight.device)] = 0


@torch.no_grad()
def weights_not_zero(model: nn.Module) -> int:
    """How many parameters are other than 0; those that are shared count once."""
    return sum(int(torch.count_nonzero(parameter)) for parameter in model.parameters())
