"""The engine that runs jobs as Ray tasks: on a cluster whose machines share this file system, or on a Ray of its own.

A job runs in the Ray worker itself: where that is lost, so is all that it had started, and Ray gives the job to another
worker, which goes on from the newest whole checkpoint.
"""

from __future__ import annotations

import os
import runpy
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from rlobj.jobs import Job


class RayJobs:
    """An engine of Ray tasks.

    Args:
        address: of a cluster ("auto", "ray://host:10001", "host:6379"); None begins a Ray on this machine.
        cpus, gpus: what each job asks for; the cluster decides how many run at once.
        retries: how often a job is given to another worker after its own was lost.

    Raises:
        ValueError: Ray is not installed, or no cluster answers at the address.
    """

    def __init__(self, address: str | None, cpus: float = 1, gpus: float = 0, retries: int = 3) -> None:
        try:
            import ray
        except ImportError:
            raise ValueError("engine is 'ray', and Ray is not installed: pip install 'rlobj[ray]'") from None
        self._ray, self._cpus, self._gpus = ray, cpus, gpus
        try:
            ray.init(address=address or "local", include_dashboard=False if address is None else None,
                     log_to_driver=False, logging_level="warning")  # fmt: skip
        except ConnectionError as error:
            raise ValueError(f"no Ray cluster answers at address {address!r}: {error}") from None
        # a worker ends with its job: what a library keeps in a process does not reach the next one
        options = {"num_cpus": cpus, "num_gpus": gpus, "max_retries": retries, "max_calls": 1}
        self._task = ray.remote(**options)(_run_here)
        self._running: dict[Job, Any] = {}

    @property
    def about(self) -> str:
        found = self._ray.cluster_resources()
        there = f"{found.get('CPU', 0):g} CPUs and {found.get('GPU', 0):g} GPUs"
        return f"on Ray with {there}, {self._cpus:g} and {self._gpus:g} for each"

    @property
    def running(self) -> Sequence[Job]:
        return list(self._running)

    def has_room(self) -> bool:
        return True  # Ray keeps those that have to wait

    def start(self, job: Job) -> None:
        job.log.parent.mkdir(parents=True, exist_ok=True)
        here, threads = os.getcwd(), str(max(int(self._cpus), 1))
        self._running[job] = self._task.options(name=job.name).remote(job.arguments, str(job.log), here, threads)

    def ended(self) -> list[tuple[Job, bool]]:
        of = {reference: job for job, reference in self._running.items()}
        over = self._ray.wait(list(of), num_returns=len(of), timeout=0)[0] if of else []
        found = [(of[reference], self._ended_well(reference)) for reference in over]
        for job, _ in found:
            del self._running[job]
        return found

    def _ended_well(self, reference: Any) -> bool:
        try:
            return bool(self._ray.get(reference) == 0)
        except self._ray.exceptions.RayError:  # the worker was lost once too often, or the task was cancelled
            return False

    def stop(self, job: Job) -> None:
        self._ray.cancel(self._running[job])  # as Ctrl-C in the worker: it saves, and ends

    def close(self) -> None:
        for job in self._running:
            self.stop(job)
        if self._running:
            self._ray.wait(list(self._running.values()), num_returns=len(self._running))
        self._running.clear()
        self._ray.shutdown()


def _run_here(arguments: Sequence[str], log: str, directory: str, threads: str) -> int:
    """Run a job in this process; return its exit status."""
    os.environ |= {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}  # before torch is imported
    os.chdir(directory)  # paths of a run may be relative
    with open(log, "ab") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    sys.argv = ["rlobj", *arguments]
    try:
        runpy.run_module("rlobj", run_name="__main__")
    except SystemExit as end:
        return int(end.code or 0)
    except BaseException:
        traceback.print_exc()  # into the log; Ray would keep it to itself
        return 1
    return 0
