"""A module's mode: for as long as something is measured, without dropout."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """In the mode eval, and then in the one before, also where something is raised."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
