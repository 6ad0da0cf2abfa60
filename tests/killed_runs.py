"""Run by test_checkpoints: a small run to its end, and one that is killed -9 at random moments until it has come to it.

Children are forked from here, where everything is imported and nothing has been computed: a start costs nothing.
"""

import os
import random
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path

import matplotlib.figure  # noqa: F401  (the report's, before the children are made)
from safetensors.torch import load_file
from test_pipeline import small_run

PLACE = Path("customer-service/policies/lambda=0.3/model.safetensors")
FIELDS = {
    "training__steps": 6, "training__trl__save_steps": 1, "training__trl__num_iterations": 2, "env__eval_episodes": 2,
    "objective__lambda_sup": 0.3, "reward__kind": "environment",
}  # fmt: skip


def start(directory: Path) -> int:
    child = os.fork()
    if child == 0:
        try:
            small_run("customer-service", directory, **FIELDS)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return child


def wait(child: int, seconds: float | None = None) -> bool:
    """Whether the child came to a good end by itself; it is killed when the time is over."""
    end = None if seconds is None else time.monotonic() + seconds
    while end is None or time.monotonic() < end:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            assert status == 0, f"a run failed: {status}"
            return True
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def main(wanted: int, home: Path) -> None:
    began = time.monotonic()
    wait(start(home / "whole"))
    takes = time.monotonic() - began
    whole = load_file(home / "whole" / PLACE)
    kills, ends, rng = 0, 0, random.Random(wanted)
    while kills < wanted or ends == 0:
        while not wait(start(home / "killed"), rng.uniform(0.2, 0.7) * takes if kills < wanted else None):
            kills += 1
        killed = load_file(home / "killed" / PLACE)
        assert all((whole[name] == killed[name]).all() for name in whole), f"not the same after {kills} kills"
        ends += 1
        shutil.rmtree(home / "killed")
    print(f"{kills} kills, {ends} ends, the same to the last bit")


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
