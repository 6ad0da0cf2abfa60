"""An encoder classifier as a language model of one token, so that TRL's policy-gradient loop can train it.

The completion of a prompt is one action: its "token id" is the label's index. TRL asks a causal model for
log-probabilities of the completion through two doors, `base_model(...).last_hidden_state` and
`get_output_embeddings()`; an encoder answers the first with its pooled state at every position and the second with
its label head. The class of a loaded classifier is extended in place: parameters keep their names, so checkpoints
stay those of an ordinary `AutoModelForSequenceClassification`.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GenerationConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, SequenceClassifierOutput

from rlobj.modes import evaluating


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
    """Leave every weight but those of the label head as it is. No text is encoded twice: what the head reads of it
    stays the same, dropout left out."""
    policy.requires_grad_(False)
    policy.get_output_embeddings().requires_grad_(True)
    kind = type(policy)
    if not issubclass(kind, _HeadAlone):
        policy.__class__ = type(kind.__name__, (_HeadAlone, kind), {"__module__": kind.__module__})
    policy._kept_states = _states_of(policy)
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


_kept: dict[str, KeptStates] = {}
"""Digest of an encoder -> what it made of texts: all policies of a process that have this encoder share it."""


def _states_of(policy: PreTrainedModel) -> KeptStates:
    digest = sha256(policy.config.to_json_string().encode())
    head = {parameter.data_ptr() for parameter in policy.get_output_embeddings().parameters()}
    for name, weights in policy.state_dict().items():
        if weights.data_ptr() not in head:
            digest.update(f"{name} {weights.dtype}".encode() + weights.detach().float().cpu().numpy().tobytes())
    return _kept.setdefault(digest.hexdigest(), KeptStates())


class KeptStates:
    """What an encoder that is not trained makes of a text, kept by the text's tokens."""

    most = 200_000
    """texts that are kept, at the most"""

    def __init__(self) -> None:
        self._kept: dict[tuple[Any, ...], Tensor] = {}

    def __deepcopy__(self, memo: Any) -> KeptStates:
        return self  # the reference has the same encoder

    @torch.no_grad()
    def of(self, ids: Tensor, mask: Tensor, encode: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """States, (B, H), of texts padded on either side, (B, T)."""
        ids, mask, rows = different_prompts(*left_aligned(ids, mask))
        how = torch.is_autocast_enabled(ids.device.type), ids.device
        keys = [(*how, *text[: int(n)]) for text, n in zip(ids.tolist(), mask.sum(1).tolist(), strict=True)]
        new = [i for i, key in enumerate(keys) if key not in self._kept]
        if len(self._kept) + len(new) > self.most:
            self._kept.clear()
            new = list(range(len(keys)))
        if new:
            with evaluating(encode.__self__):  # type: ignore[attr-defined]
                for i in new:  # alone: were its last bits those of its batch, a resumed run would end with others
                    length = int(mask[i].sum())
                    self._kept[keys[i]] = encode(ids[i : i + 1, :length], mask[i : i + 1, :length])[0]
        return torch.stack([self._kept[key] for key in keys])[rows]


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
        ids, mask = left_aligned(input_ids[:, :-1], attention_mask[:, :-1])
        state = self._pooled(ids, mask)
        return BaseModelOutput(last_hidden_state=state[:, None].expand(-1, input_ids.size(1), -1))

    def _pooled(self, ids: Tensor, mask: Tensor) -> Tensor:
        """The state that the label head reads, (B, H)."""
        pooled: list[Tensor] = []
        hook = self._label_head[0].register_forward_pre_hook(lambda _, args: pooled.append(args[0]))
        try:
            # the class's own forward: TRL has replaced the instance's by one that calls `base_model`
            super().forward(input_ids=ids, attention_mask=mask)  # type: ignore[misc]
        finally:
            hook.remove()
        state = pooled[0]
        if state.dim() != 2:
            raise ValueError(
                f"the label head of {type(self).__name__} reads states of shape {tuple(state.shape)}: "
                "expected one pooled state per text, (B, H)"
            )
        return state


class _HeadAlone:
    """Mixed in front of a policy of one token whose head alone is trained."""

    _label_head: list[nn.Linear]
    _kept_states: KeptStates

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None
    ) -> SequenceClassifierOutput:
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        logits = self._label_head[0](self._pooled(input_ids, mask))
        loss = None if labels is None else F.cross_entropy(logits.float(), labels.view(-1))
        return SequenceClassifierOutput(loss=loss, logits=logits)

    def _pooled(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self._kept_states.of(ids, mask, super()._pooled)  # type: ignore[misc]


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
    if issubclass(type(policy), _HeadAlone):  # which sees to that itself
        known: Tensor = policy(input_ids=input_ids, attention_mask=attention_mask).logits
        return known
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
