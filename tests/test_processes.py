"""Several processes: one that fails takes the others with it, within a bound."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small import small_policy

from rlobj.checkpoints import newest_whole_checkpoint

HERE = Path(__file__).parent


def launched(script: str, *arguments: object, timeout: float) -> subprocess.CompletedProcess[str]:
    """Run a script of this folder in two processes of one training."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    return subprocess.run(
        [*launch, str(HERE / script), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path]), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=timeout, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("how", "raised_by_the_other"),
    [("raises", "Connection closed by peer"), pytest.param("hangs", "Timed out waiting", marks=pytest.mark.slow)],
)
def test_one_process_fails_and_no_other_waits_for_ever(tmp_path, how, raised_by_the_other):
    """FAULTS row 30; where one hangs, the bound is the timeout of the processes, here 10 seconds."""
    directory, began = small_policy(tmp_path / "policy"), time.monotonic()
    done = launched("failing_ranks.py", directory, tmp_path / "out", how, timeout=300)
    assert done.returncode != 0
    raised = {line[8]: line for line in done.stdout.splitlines() if line.startswith("process ") and "raised" in line}
    assert raised_by_the_other in raised["0"]
    assert how == "hangs" or raised["1"] == "process 1 raised ZeroDivisionError: this process alone"
    when = float(done.stdout.split("failing at ")[1].split()[0])
    assert time.monotonic() - when < 60 and began < when
    assert newest_whole_checkpoint(tmp_path / "out")[0] == tmp_path / "out/checkpoint-2", "what was trained is kept"
