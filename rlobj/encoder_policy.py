"""An encoder classifier as a language model of one token, so that TRL's policy-gradient loop can train it.

The completion of a prompt is one action: its "token id" is the label's index. TRL asks a causal model for
log-probabilities of the completion through two doors, `base_model(...).last_hidden_state` and
`get_output_embeddings()`; an encoder answers the first with its pooled state at every position and the second with
its label head. The class of a loaded classifier is extended in place: parameters keep their names, so checkpoints
stay those of an ordinary `AutoModelForSequenceClassification`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput


def as_one_token_policy(classifier: PreTrainedModel) -> PreTrainedModel:
    """Extend `classifier` (in place) with what TRL's loop asks of a causal language model.

    Raises:
        ValueError: its label head is not one linear layer over a pooled state.
    """
    head = label_head(classifier)
    kind = type(classifier)
    # the extended class keeps its name: save_pretrained writes it to config.json
    classifier.__class__ = type(kind.__name__, (_OneToken, kind), {"__module__": kind.__module__})
    classifier._label_head = [head]  # in a list: a second registration would save its weights twice
    classifier.generation_config = GenerationConfig()
    return classifier


def train_head_only(policy: PreTrainedModel) -> PreTrainedModel:
    """Leave every weight but those of the label head as it is."""
    policy.requires_grad_(False)
    policy.get_output_embeddings().requires_grad_(True)
    return policy


def label_head(classifier: PreTrainedModel) -> nn.Linear:
    """The last linear layer of a classifier, with an output for each label.

    Raises:
        ValueError: there is none.
    """
    heads = [m for m in classifier.modules() if isinstance(m, nn.Linear) and m.out_features == classifier.num_labels]
    if not heads:
        raise ValueError(
            f"{type(classifier).__name__} has no linear layer of {classifier.num_labels} outputs: expected an encoder "
            "with a label head (BERT, RoBERTa, DistilBERT, DeBERTa, ModernBERT, …)"
        )
    return heads[-1]


def left_aligned(input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Move each row's tokens to the left edge: encoders count positions from there, TRL pads prompts on the left.

    Args:
        input_ids: (B, T).
        attention_mask: (B, T), 1 where a token stands.
    """
    order = attention_mask.argsort(dim=1, descending=True, stable=True)
    return input_ids.gather(1, order), attention_mask.gather(1, order)


class _OneToken:
    """Mixed in front of a `*ForSequenceClassification` class."""

    _label_head: list[nn.Linear]

    def get_output_embeddings(self) -> nn.Linear:
        return self._label_head[0]

    @property
    def base_model(self) -> Any:
        return self._pooled_at_every_position

    def _pooled_at_every_position(
        self, input_ids: Tensor, attention_mask: Tensor, use_cache: bool = False
    ) -> BaseModelOutput:
        """The state that the label head reads, (B, P + 1, H), from the prompt alone: the action is not its input."""
        pooled: list[Tensor] = []
        hook = self._label_head[0].register_forward_pre_hook(lambda _, args: pooled.append(args[0]))
        try:
            ids, mask = left_aligned(input_ids[:, :-1], attention_mask[:, :-1])
            # the class's own forward: TRL has replaced the instance's by one that calls this method
            type(self).forward(self, input_ids=ids, attention_mask=mask)  # type: ignore[attr-defined]
        finally:
            hook.remove()
        state = pooled[0]
        if state.dim() != 2:
            raise ValueError(
                f"the label head of {type(self).__name__} reads states of shape {tuple(state.shape)}: "
                "expected one pooled state per text, (B, H)"
            )
        return BaseModelOutput(last_hidden_state=state[:, None].expand(-1, input_ids.size(1), -1))


def different_prompts(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Each prompt once, without columns of padding alone.

    Args:
        ids, mask: (B, P).

    Returns: ids and mask of the different prompts, both (G, P'), and which of them each row has, (B,).
    """
    marked = torch.where(mask.bool(), ids, -1)[:, mask.any(0)]
    prompts, rows = torch.unique(marked, dim=0, return_inverse=True)
    present = prompts >= 0
    return prompts.clamp(min=0), present.to(mask.dtype), rows


def action_logits(policy: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Logits over labels, (B, A), for prompts padded on either side, (B, P). Equal prompts are encoded once."""
    ids, mask, rows = different_prompts(*left_aligned(input_ids, attention_mask))
    # ahead of whoever watches the label head: from here on there is a state for every row
    hook = policy.get_output_embeddings().register_forward_pre_hook(lambda _, args: (args[0][rows],), prepend=True)
    try:
        logits: Tensor = policy(input_ids=ids, attention_mask=mask).logits
    finally:
        hook.remove()
    return logits


def is_one_token_policy(policy: torch.nn.Module) -> bool:
    """Whether the policy acts by choosing a label."""
    return isinstance(policy, _OneToken)
