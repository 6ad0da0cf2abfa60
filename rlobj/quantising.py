"""Linear layers in 8 bits, by torch's dynamic quantisation: weights as int8 with a scale for each output, activations
quantised when they come. It runs on CPUs alone.

torch announces that torch.ao.quantization will move to torchao; 2.11 to 2.13 have it.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlobj.encoder_policy import label_head


def quantised(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of the model whose linear layers compute in int8, but for the last: vocabulary or labels."""
    with _quietly():
        from torch.ao.quantization import per_channel_dynamic_qconfig, quantize_dynamic

        layers = {name: per_channel_dynamic_qconfig for name in _quantised_names(model)}
        found: PreTrainedModel = quantize_dynamic(model, layers)
    return found


def _quantised_names(model: PreTrainedModel) -> Iterator[str]:
    # the vocabulary is tied to the embeddings; labels are few
    top = model.get_output_embeddings() if model.can_generate() else label_head(model)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and module is not top:
            yield name


def is_int8(model: nn.Module) -> bool:
    """Whether layers of a model compute in 8 bits."""
    return any(True for _ in _int8_layers(model))


def int8_tensors(model: nn.Module) -> dict[str, Tensor]:
    """All that a quantised model holds as tensors for safetensors: of each int8 layer NAME.int8, NAME.scale and
    NAME.bias, of all others their parameters and buffers."""
    found: dict[str, Tensor] = {}
    layers = dict(_int8_layers(model))
    for name, layer in layers.items():
        weight, bias = layer._weight_bias()
        found[f"{name}.int8"], found[f"{name}.scale"] = weight.int_repr(), weight.q_per_channel_scales().clone()
        if bias is not None:
            found[f"{name}.bias"] = bias.detach().clone()
    kept = set()
    for name, value in model.state_dict().items():
        of_int8 = any(name.startswith(f"{layer}.") for layer in layers)
        if isinstance(value, Tensor) and not of_int8 and value.data_ptr() not in kept:
            kept.add(value.data_ptr())  # a vocabulary that is tied to the embeddings stands there once
            found[name] = value.detach().clone().contiguous()
    return found


def fill_int8(model: PreTrainedModel, tensors: dict[str, Tensor]) -> PreTrainedModel:
    """The quantised model of a freshly made one and `int8_tensors`.

    Raises:
        ValueError: tensors and model do not belong together.
    """
    names = {name.removesuffix(".int8") for name in tensors if name.endswith(".int8")}
    parts = {f"{name}.{part}" for name in names for part in ("int8", "scale", "bias")}
    lacking = model.load_state_dict({k: v for k, v in tensors.items() if k not in parts}, strict=False).missing_keys
    own = model.state_dict()
    there = {own[name].data_ptr() for name in tensors if name in own}  # weights that are tied have one place
    lacking = [name for name in lacking if name not in parts and own[name].data_ptr() not in there]
    lacking = [name for name in lacking if f"{name.removesuffix('.weight')}.int8" not in parts]
    if lacking:
        raise ValueError(f"the int8 weights lack {lacking[:5]}: are they of another model?")
    ready = quantised(model)
    for name, layer in _int8_layers(ready):
        scales = tensors[f"{name}.scale"]
        with _quietly():
            zeros = torch.zeros(len(scales), dtype=torch.long)
            weight = torch._make_per_channel_quantized_tensor(tensors[f"{name}.int8"], scales, zeros, 0)
            layer.set_weight_bias(weight, tensors.get(f"{name}.bias"))
    return ready


def _int8_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    from torch.ao.nn.quantized.dynamic import Linear

    for name, module in model.named_modules():
        if isinstance(module, Linear):
            yield name, module


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """torch on its own future, and on tensors whose type it deprecates: nothing that a user could mend."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
