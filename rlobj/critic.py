"""A critic: the value of a state, read off the policy's own hidden state.

Its parameters φ are its own: no gradient of its loss reaches the policy's θ, so that L(θ) stays −R(θ) + λℓ. The hidden
states are those that the policy computes anyway, when it samples and when it is trained: no forward pass is added.

Legend: B episodes, T tokens, H the policy's hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainerCallback

from rlobj.config import PPOConfig
from rlobj.encoder_policy import is_one_token_policy
from rlobj.estimators import value_loss

FILE = "critic.safetensors"


class Critic(nn.Module):
    """V(state): two layers over the policy's last hidden state. It begins at 0 everywhere."""

    def __init__(self, state_size: int, hidden_size: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(state_size)
        self.hidden = nn.Linear(state_size, hidden_size)
        self.value = nn.Linear(hidden_size, 1)
        nn.init.zeros_(self.value.weight)
        nn.init.zeros_(self.value.bias)

    def forward(self, states: Tensor) -> Tensor:
        """Values (…,) of states (…, H), which get no gradient."""
        states = states.detach().to(self.hidden.weight.dtype)
        values: Tensor = self.value(torch.tanh(self.hidden(self.norm(states)))).squeeze(-1)
        return values


class Watched:
    """The hidden states of the policy's latest forward pass."""

    def __init__(self) -> None:
        self.states = torch.empty(0)
        """(B, T, H), or (B, 1, H) of an encoder."""


@contextmanager
def watching(policy: PreTrainedModel) -> Iterator[Watched]:
    """Keep the hidden states of each forward pass of `policy` within the block."""
    seen = Watched()

    def after_trunk(module: nn.Module, args: Any, output: Any) -> None:
        seen.states = output[0].detach()

    def before_head(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen.states = args[0].detach()[:, None]

    if is_one_token_policy(policy):
        handle = policy.get_output_embeddings().register_forward_pre_hook(before_head)
    else:
        handle = trunk(policy).register_forward_hook(after_trunk)
    try:
        yield seen
    finally:
        handle.remove()


def trunk(policy: Any) -> nn.Module:
    """The transformer below the language model's head, within adapters too."""
    inner = policy.get_base_model() if hasattr(policy, "get_base_model") else policy
    below: nn.Module = inner.base_model
    return below


@dataclass(frozen=True, slots=True)
class Judge:
    """A critic, if there is one, on the states of the policy's latest forward pass."""

    critic: Critic | None
    seen: Watched

    def values(self, rows: int) -> list[float]:
        """Value of the last state of each row; 0.0 where there is no critic."""
        if self.critic is None:
            return [0.0] * rows
        values: list[float] = self.critic(self.seen.states[:, -1].float()).tolist()
        return values


def backward_of_critic(values: Tensor, inputs: dict[str, Any], settings: PPOConfig, tokens: Tensor) -> float:
    """Backward pass of the critic's loss, where that is finite; it reaches the critic's parameters alone.

    Args:
        values: of a micro-batch, (B, T).
        inputs: with values, returns and value_mask of `rlobj.advantages`.
        tokens: what the sum over tokens is divided by, ().

    Returns: the loss.
    """
    total = value_loss(values, inputs["values"], inputs["returns"], inputs["value_mask"], settings.clip_value)
    loss = total / tokens
    if loss.isfinite():
        loss.backward()
    return loss.item()


class CriticKeeper(TrainerCallback):
    """Steps that the Trainer takes for the policy's parameters alone: average, clip, clear and save the critic's."""

    def __init__(self, critic: Critic, accelerator: Any) -> None:
        self.critic, self.accelerator = critic, accelerator

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for parameter in self.critic.parameters():
            if parameter.grad is not None:
                parameter.grad = self.accelerator.reduce(parameter.grad, reduction="mean")
        norm = nn.utils.clip_grad_norm_(self.critic.parameters(), args.max_grad_norm or float("inf"))
        if not norm.isfinite():
            self.critic.zero_grad()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.critic.zero_grad()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if state.is_world_process_zero and folder.is_dir():
            save_file(self.critic.state_dict(), folder / FILE)

    def load(self, checkpoint: str | Path) -> None:
        """Go on with the critic of a checkpoint.

        Raises:
            ValueError: the checkpoint has none: it was trained with another estimator.
        """
        path = Path(checkpoint) / FILE
        if not path.is_file():
            raise ValueError(f"{checkpoint} has no {FILE}: it was not trained with the estimator ppo")
        self.critic.load_state_dict(load_file(path, device=str(self.accelerator.device)))
