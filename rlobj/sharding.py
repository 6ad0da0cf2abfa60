"""Parameters that are split over processes: what rlobj can do with them, and where it needs them whole."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.distributed.fsdp import FSDPModule


def is_split(trainer: Any) -> bool:
    """Whether FSDP splits the parameters of a trainer's model; its gradients then cannot be measured apart.

    Raises:
        ValueError: they are split in a way in which episodes cannot be played: by FSDP 1, or DeepSpeed's stage 3.
    """
    state = trainer.accelerator.state
    plugin = getattr(state, "deepspeed_plugin", None)
    if plugin is not None and plugin.zero_stage == 3:
        raise ValueError(
            "DeepSpeed's zero_stage is 3: no episode is played with a split policy; set it to 2, or use FSDP"
        )
    plugin = getattr(state, "fsdp_plugin", None)
    if plugin is not None and plugin.fsdp_version != 2:
        raise ValueError(f"fsdp_version is {plugin.fsdp_version}: expected 2, as in rlobj/launch/fsdp.yaml")
    return plugin is not None


@contextmanager
def whole_parameters(trainer: Any) -> Iterator[None]:
    """Gather what FSDP has split, for as long as the processes do not take the same forward passes.

    Each of them plays its own episodes: a forward pass that waits for the others' would wait for ever.
    """
    units = [module for module in trainer.model.modules() if isinstance(module, FSDPModule)]
    for unit in units:
        unit.unshard()
        unit.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        for unit in units:
            # the outermost stays whole between forward and backward pass, as FSDP itself has it
            splits_again = unit is not trainer.model and trainer.accelerator.state.fsdp_plugin.reshard_after_forward
            unit.set_reshard_after_forward(splits_again, recurse=False)
            unit.reshard()
