"""Whole heads and neurons taken out of a transformer: smaller matrices, by torch-pruning.

Which of them go is said by the norm of their weights, or by how much the loss is expected to change without them
(Michel et al. 2019). As many go in each layer, which is what a configuration of transformers can say.

Legend: H heads of a layer, D width of a head, F neurons of a feed-forward block.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlobj.modes import evaluating

ATTENTION = (
    (("self.query", "self.key", "self.value"), "output.dense"),  # BERT, RoBERTa, ELECTRA, …
    (("q_proj", "k_proj", "v_proj"), "o_proj"),  # Llama, Mistral, Qwen, …
    (("q_lin", "k_lin", "v_lin"), "out_lin"),  # DistilBERT
)
"""Names within an attention block: query, key and value, and what reads their result."""
FEED_FORWARD = (
    (("intermediate.dense",), "output.dense"),
    (("gate_proj", "up_proj"), "down_proj"),
    (("lin1",), "lin2"),
)
"""Names within a feed-forward block: what writes its neurons, and what reads them."""

NAMES: dict[str, Sequence[tuple[tuple[str, ...], str]]] = {"heads": ATTENTION, "neurons": FEED_FORWARD}


@dataclass(frozen=True, slots=True)
class Block:
    """Layers that write some units, and the one that reads them."""

    name: str
    """of the module that holds them, within the model"""
    writes: tuple[nn.Linear, ...]
    reads: nn.Linear


def blocks(model: PreTrainedModel, names: Sequence[tuple[tuple[str, ...], str]]) -> list[Block]:
    """The blocks of a model whose layers have these names.

    Raises:
        ValueError: there is none.
    """
    found = []
    for place, module in model.named_modules():
        for writes, reads in names:
            layers = [_linear(module, path) for path in (*writes, reads)]
            if None not in layers:
                found.append(Block(place, tuple(layers[:-1]), layers[-1]))  # type: ignore[arg-type]
    if not found:
        raise ValueError(
            f"{type(model).__name__} has none of the layers {', '.join(reads for _, reads in names)} beside what they "
            "read: expected a transformer with parts named as in BERT, DistilBERT or Llama; magnitude takes any"
        )
    return found


def _linear(module: nn.Module, path: str) -> nn.Linear | None:
    try:
        found = module.get_submodule(path)
    except AttributeError:
        return None
    return found if isinstance(found, nn.Linear) else None


def head_width(model: PreTrainedModel) -> int:
    """D."""
    config: Any = model.config.get_text_config()
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


# What goes ------------------------------------------------------------------------------------------------------------


def units_of(model: PreTrainedModel, block: Block, what: str) -> int:
    """H (of keys and values, where several queries share one), or F."""
    return block.reads.in_features if what == "neurons" else block.writes[1].out_features // head_width(model)


@torch.no_grad()
def norms(model: PreTrainedModel, what: str) -> dict[str, Tensor]:
    """Block -> the L2 norm, squared, of all weights that write or read each unit, (units,)."""
    found = {}
    for block in blocks(model, NAMES[what]):
        units = units_of(model, block, what)
        written = [layer.weight.square().reshape(units, -1).sum(1) for layer in block.writes]
        found[block.name] = torch.stack([*written, block.reads.weight.T.square().reshape(units, -1).sum(1)]).sum(0)
    return found


def changes_of_loss(model: PreTrainedModel, what: str, batches: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Block -> by how much the loss is expected to change without each unit: Σ over batches of |Σ w · ∂ℓ/∂w|, (units,).

    To first order, a unit that is gone changes the loss as the weights do that read it (Michel et al. 2019, eq. 2).

    Args:
        batches: what the model takes, with labels.
    """
    found: dict[str, Tensor] = {}
    for batch in batches:
        model.zero_grad(set_to_none=True)
        with evaluating(model):
            model(**batch).loss.backward()
        for block in blocks(model, NAMES[what]):
            weight = block.reads.weight
            assert weight.grad is not None
            change = (weight * weight.grad).detach().T.reshape(units_of(model, block, what), -1).sum(1).abs()
            found[block.name] = found.get(block.name, torch.zeros_like(change)) + change
    model.zero_grad(set_to_none=True)
    return found


def least(importance: Mapping[str, Tensor], amount: float, what: str) -> dict[str, list[int]]:
    """Block -> the least important of its units, the share `amount` of them.

    Raises:
        ValueError: that is none, or all of them.
    """
    found = {}
    for block, each in importance.items():
        remove = round(len(each) * amount)
        if not 0 < remove < len(each):
            raise ValueError(
                f"amount {amount} of {len(each)} {what} in a layer is {remove}: expected at least one, and not all"
            )
        found[block] = sorted(each.argsort()[:remove].tolist())
    return found


# Taking it out --------------------------------------------------------------------------------------------------------


def remove_neurons(model: PreTrainedModel, gone: Mapping[str, list[int]]) -> None:
    """Take neurons out of feed-forward blocks, as many of each, in place.

    The configuration says so, too: plain `from_pretrained` loads the result.
    """
    for block in blocks(model, FEED_FORWARD):
        _take_out(block, [gone[block.name]] * len(block.writes), gone[block.name])
        left = block.reads.in_features
    config: Any = model.config.get_text_config()
    setattr(config, "hidden_dim" if hasattr(config, "hidden_dim") else "intermediate_size", left)


def remove_heads(model: PreTrainedModel, gone: Mapping[str, list[int]]) -> bool:
    """Take heads out of attention blocks, as many of each, in place.

    Returns: whether the configuration says so, too (Llama and its kin). That of BERT and its kin cannot: a head of
        theirs is hidden_size / num_attention_heads wide.

    Raises:
        ValueError: transformers takes no configuration with so many heads.
    """
    config: Any = model.config.get_text_config()
    if getattr(config, "head_dim", None) is None:
        take_heads_out(model, gone)
        return False
    left = config.num_key_value_heads - len(next(iter(gone.values())))
    queries = config.num_attention_heads // config.num_key_value_heads * left
    if config.hidden_size % queries:
        fitting = [n for n in range(1, config.num_attention_heads) if config.hidden_size % n == 0]
        raise ValueError(
            f"{queries} of {config.num_attention_heads} heads would be left, and transformers wants a number "
            f"that divides hidden_size {config.hidden_size}: expected an amount that leaves one of {fitting}"
        )
    take_heads_out(model, gone)
    config.num_attention_heads, config.num_key_value_heads = queries, left
    return True


def take_heads_out(model: PreTrainedModel, gone: Mapping[str, list[int]]) -> None:
    """Take these heads out of the blocks of these names."""
    width = head_width(model)
    for block in blocks(model, ATTENTION):
        columns = [list(_columns(layer, block, gone[block.name], width)) for layer in block.writes]
        _take_out(block, columns, columns[0])  # what is read are the queries' heads


def put_zeros_back(model: PreTrainedModel, gone: Mapping[str, list[int]]) -> None:
    """The inverse of `take_heads_out`: matrices of full size in which these heads say nothing; outputs stay equal."""
    width = head_width(model)
    for block in blocks(model, ATTENTION):
        heads = block.writes[1].out_features // width + len(gone[block.name])
        for layer in (*block.writes, block.reads):
            dim = int(layer is block.reads)
            here = layer.weight.shape[dim] // (heads - len(gone[block.name]))  # outputs (inputs) of one head
            left = [head for head in range(heads) if head not in gone[block.name]]
            kept = [head * here + i for head in left for i in range(here)]
            size = list(layer.weight.shape)
            size[dim] = heads * here
            place = torch.tensor(kept)
            layer.weight = nn.Parameter(layer.weight.new_zeros(size).index_copy(dim, place, layer.weight.detach()))
            if layer.bias is not None and dim == 0:
                layer.bias = nn.Parameter(layer.bias.new_zeros(size[0]).index_copy(0, place, layer.bias.detach()))
            layer.out_features, layer.in_features = layer.weight.shape


def _columns(layer: nn.Linear, block: Block, heads: Sequence[int], width: int) -> Iterator[int]:
    """The outputs of a layer that belong to heads of keys; queries have as many or a multiple of them."""
    shared = layer.out_features // block.writes[1].out_features * width
    for head in heads:
        yield from range(head * shared, (head + 1) * shared)


def _take_out(block: Block, written: Sequence[list[int]], read: list[int]) -> None:
    try:
        import torch_pruning
    except ImportError:
        raise ValueError("taking heads or neurons out needs torch-pruning: pip install 'rlobj[prune]'") from None
    for layer, rows in zip(block.writes, written, strict=True):
        torch_pruning.prune_linear_out_channels(layer, rows)
    torch_pruning.prune_linear_in_channels(block.reads, read)
