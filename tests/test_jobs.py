"""Engines that run several jobs at once: processes here, and a Ray whose worker is killed on purpose."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest
from test_pipeline import SMALL

from rlobj.jobs import Job, Processes, run_arguments
from rlobj.ray_jobs import RayJobs
from rlobj.recipes import recipe_path

RECIPE = recipe_path("customer-service")


def wait(engine, until, seconds=300.0):
    """Jobs that ended before `until` was so, with whether they ended well."""
    ended, deadline = [], time.monotonic() + seconds
    while not until():
        assert time.monotonic() < deadline, "it takes too long"
        time.sleep(0.1)
        ended += engine.ended()
    return ended


def test_jobs_end_well_or_not_and_say_why(tmp_path):
    good, bad = Job("good", ("--version",), tmp_path / "logs/good.log"), Job("bad", ("rnu",), tmp_path / "bad.log")
    engine = Processes(workers=2, jobs=2)
    assert engine.has_room() and "2 at once" in engine.about
    engine.start(good)
    engine.start(bad)
    assert not engine.has_room() and set(engine.running) == {good, bad}
    assert sorted(wait(engine, lambda: not engine.running), key=str) == sorted([(good, True), (bad, False)], key=str)
    assert "did you mean 'run'" in bad.last_line and good.last_line.startswith("rlobj ")
    assert Job("none", (), tmp_path / "none.log").last_line == "it said nothing"


def test_there_are_no_more_workers_than_jobs():
    assert Processes(None, 1).workers == 1
    assert Processes(7, 1).workers == 7, "what the user says counts"


def test_without_ray_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"Ray is not installed: pip install 'rlobj\[ray\]'"):
        RayJobs(None)


@pytest.fixture
def ray_jobs():
    pytest.importorskip("ray", reason="pip install 'rlobj[ray]'")
    engine = RayJobs(None, cpus=1)
    yield engine
    engine.close()


def job_in(directory: Path) -> Job:
    fields = {**SMALL, "training.steps": 12, "objective.lambda_sup": "[0.1]", "name": "one", "output_dir": directory}
    return Job(
        f"job in {directory.name}", run_arguments(RECIPE, {**fields, "reward.kind": "environment"}), directory / "log"
    )


def worker_of(job: Job) -> int | None:
    """The process that Ray runs a job in: Ray names it so."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if (folder / "cmdline").read_bytes().startswith(f"ray::{job.name}".encode()):
                return int(folder.name)
        except OSError:  # it has ended
            continue
    return None


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own, of its own
def test_a_job_whose_worker_is_killed_goes_on_in_another_to_the_same_end(ray_jobs, tmp_path):
    killed, straight = job_in(tmp_path / "killed"), job_in(tmp_path / "straight")
    ray_jobs.start(killed)
    policies = killed.log.parent / "one/policies"
    wait(ray_jobs, lambda: list(policies.glob("checkpoints/*/checkpoint-*")))
    time.sleep(1)  # into the steps after the checkpoint
    first = worker_of(killed)
    assert first is not None
    os.kill(first, signal.SIGKILL)
    assert wait(ray_jobs, lambda: not ray_jobs.running) == [(killed, True)]
    assert "going on from checkpoint-" in killed.log.read_text(encoding="utf-8")
    ray_jobs.start(straight)
    assert wait(ray_jobs, lambda: not ray_jobs.running) == [(straight, True)]
    weights = [job.log.parent / "one/policies/lambda=0.1/model.safetensors" for job in (killed, straight)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_job_that_is_stopped_on_ray_saves_what_it_has(ray_jobs, tmp_path):
    job = job_in(tmp_path / "stopped")
    ray_jobs.start(job)
    wait(ray_jobs, lambda: (job.log.parent / "one/warm_start/stage.json").exists())
    ray_jobs.stop(job)
    assert wait(ray_jobs, lambda: not ray_jobs.running) == [(job, False)]
    assert "to go on: rlobj run" in job.log.read_text(encoding="utf-8")
