"""Several runs at once: jobs, and the engine that runs them as processes on this machine.

An engine has room for a job or not, starts it, says which have ended, and stops one so that it saves what it has; what
is to be run, and what comes of it, others know. `rlobj.ray_jobs` is the other engine.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Job:
    """One call of rlobj's command line."""

    name: str
    arguments: tuple[str, ...]
    """of rlobj: "run", a recipe, …"""
    log: Path
    """where it says what it does"""

    @property
    def last_line(self) -> str:
        """The last that it said."""
        text = self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""
        return next((line for line in reversed(text.splitlines()) if line.strip()), "it said nothing")


class Engine(Protocol):
    """What runs jobs."""

    @property
    def about(self) -> str:
        """How many at once, in words."""

    @property
    def running(self) -> Sequence[Job]:
        """Jobs that were started and have not ended."""

    def has_room(self) -> bool:
        """Whether a job that is started now would not have to wait here."""

    def start(self, job: Job) -> None:
        """Begin a job."""

    def ended(self) -> list[tuple[Job, bool]]:
        """The jobs that have ended since this was last asked, each with whether it ended well."""

    def stop(self, job: Job) -> None:
        """Ask a job to save and end."""

    def close(self) -> None:
        """Stop what runs, and wait for it."""


def run_arguments(recipe: Path, settings: dict[str, Any]) -> tuple[str, ...]:
    """Arguments of `rlobj run` with settings over a recipe."""
    return ("run", str(recipe), *(f"--{key}={value}" for key, value in settings.items()))


class Processes:
    """An engine of processes on this machine.

    Args:
        workers: jobs at once; None takes one for each core, or one where there is a GPU.
        jobs: how many there will be at most.
    """

    def __init__(self, workers: int | None, jobs: int) -> None:
        import torch

        cores = len(os.sched_getaffinity(0))
        self.workers = workers or min(1 if torch.cuda.is_available() else cores, max(jobs, 1))
        self.threads = max(cores // self.workers, 1)
        self._running: dict[Job, subprocess.Popen[bytes]] = {}

    @property
    def about(self) -> str:
        return f"{self.workers} at once, {self.threads} threads each"

    @property
    def running(self) -> Sequence[Job]:
        return list(self._running)

    def has_room(self) -> bool:
        return len(self._running) < self.workers

    def start(self, job: Job) -> None:
        threads = {"OMP_NUM_THREADS": str(self.threads), "MKL_NUM_THREADS": str(self.threads)}
        job.log.parent.mkdir(parents=True, exist_ok=True)
        with open(job.log, "ab") as log:
            # its own session: Ctrl-C reaches this process alone, which then stops the others in order
            self._running[job] = subprocess.Popen(
                [sys.executable, "-m", "rlobj", *job.arguments],
                stdout=log,
                stderr=log,
                env={**os.environ, **threads},
                start_new_session=True,
            )

    def ended(self) -> list[tuple[Job, bool]]:
        over = [job for job, process in self._running.items() if process.poll() is not None]
        return [(job, self._running.pop(job).returncode == 0) for job in over]

    def stop(self, job: Job) -> None:
        self._running[job].send_signal(signal.SIGINT)  # it saves, and ends

    def close(self) -> None:
        for job in self._running:
            self.stop(job)
        for process in self._running.values():
            process.wait()
        self._running.clear()
