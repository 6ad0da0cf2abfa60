"""How long an environment is waited for, and how often it is begun again."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Patience:
    """With environments that fail.

    Raises:
        ValueError: a field is out of its range.
    """

    step_timeout: float | None = None
    """Seconds for one step or reset; None waits for ever. One that takes longer is left to itself in a thread of its
    own, which only the end of the program ends: code that computes for ever goes on taking its share of the
    processor."""
    restarts: int = 0
    """How often an episode whose step or reset raised or was late is begun again in a new environment, where what was
    said before is said again, so that the policy does not notice."""

    def __post_init__(self) -> None:
        if self.step_timeout is not None and not self.step_timeout > 0:
            raise ValueError(f"step_timeout is {self.step_timeout}: expected seconds above 0, or None")
        if self.restarts < 0:
            raise ValueError(f"restarts is {self.restarts}: expected at least 0")


def within(seconds: float | None, work: Callable[[], T], what: str = "a step") -> T:
    """What `work` returns, or raises, if that takes no longer.

    Raises:
        TimeoutError: it does.
    """
    if seconds is None:
        return work()
    done: SimpleQueue[tuple[T | None, BaseException | None]] = SimpleQueue()

    def run() -> None:
        try:
            done.put((work(), None))
        except BaseException as error:
            done.put((None, error))

    threading.Thread(target=run, daemon=True).start()
    try:
        value, error = done.get(timeout=seconds)
    except Empty:
        raise TimeoutError(f"{what} took longer than step_timeout, {seconds:g} s") from None
    if error is not None:
        raise error
    return value  # type: ignore[return-value]
