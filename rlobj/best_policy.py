"""The best policy of a training by episodes that it is neither trained on nor judged by in the end."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import TrainerCallback

from rlobj.runs import atomic_write_json

BEST = "best_policy"
"""Folder beside a stage's checkpoints."""


class KeepBest(TrainerCallback):
    """Judges the policy every so many steps and after the last, and keeps the weights of the best.

    What was kept outlives a kill: a step that is taken again after a resume is judged again, to the same value.

    Args:
        every: optimiser steps from one time to the next.
        judge: what is to be as high as can be; the main process alone is asked.
        folder: where the weights are kept.
        unwrap: from what a trainer calls its model to the policy.
    """

    def __init__(
        self, every: int, judge: Callable[[Any], float], folder: Path, unwrap: Callable[[Any], nn.Module]
    ) -> None:
        self.every, self.judge, self.folder, self.unwrap = every, judge, folder, unwrap

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.every and state.global_step < state.max_steps:
            return
        if state.is_world_process_zero:
            self._look(state.global_step, self.unwrap(kwargs["model"]))
        PartialState().wait_for_everyone()

    def look_at_last(self, step: int, policy: nn.Module) -> None:
        """Judge what a training ended with, where it ended before its last step."""
        if PartialState().is_main_process and str(step) not in self.found().get("values", {}):
            self._look(step, policy)
        PartialState().wait_for_everyone()

    def _look(self, step: int, policy: nn.Module) -> None:
        known = self.found()
        value = self.judge(policy)
        values = {**{int(at): each for at, each in known.get("values", {}).items()}, step: value}
        better = not known or value > known["value"]  # of equals the one nearer to the warm start
        best: dict[str, Any] = {"step": step, "value": value} if better else known
        if better:
            self.folder.mkdir(parents=True, exist_ok=True)
            writing = self.folder / f"{step}.writing"
            save_file({name: p.detach().contiguous().cpu() for name, p in _trained(policy)}, writing)
            os.replace(writing, self.folder / _weights_of(step))
        # what says which weights are the best is written when they are there; those before are removed after it
        atomic_write_json(self.folder / "best.json", {**best, "values": values})
        for file in self.folder.glob("*.safetensors"):
            if file.name != _weights_of(best["step"]):
                file.unlink()

    def found(self) -> dict[str, Any]:
        """`step` and `value` of the best so far, and `values` by step; nothing before the first time."""
        file = self.folder / "best.json"
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        return found

    @torch.no_grad()
    def put_back(self, policy: nn.Module) -> dict[str, Any]:
        """Give a policy the best weights; return what was found."""
        found = self.found()
        weights = load_file(self.folder / _weights_of(found["step"]))
        for name, parameter in _trained(policy):
            parameter.copy_(weights[name])
        return found


def told(found: Mapping[str, Any]) -> str:
    """What was kept, in words."""
    values = {int(step): value for step, value in found["values"].items()}
    last = max(values)
    at_the_end = "" if last == found["step"] else f" (at the end {values[last]:.3f})"
    chosen = f"{found['value']:.3f}{at_the_end}"
    return (
        f"the policy of step {found['step']} of {last} is kept: {chosen} by task success, accuracy or return "
        "in the episodes that it was chosen by"
    )


def _weights_of(step: int) -> str:
    return f"step-{step}.safetensors"


def _trained(policy: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The parameters that training moves, tied ones once."""
    return [(name, parameter) for name, parameter in policy.named_parameters() if parameter.requires_grad]
