"""Checkpoints that are whole: marked when all of them is on disk, looked at before they are gone on from."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import PartialState
from safetensors import SafetensorError
from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from rlobj.runs import atomic_write_json, content_digest

WHOLE = "whole"
"""File that is written into a checkpoint last: the digest of each of its files, and how many processes wrote them.
Without it, the process died while it was saving."""
STATE = {
    "optimizer": "the optimiser",
    "scheduler": "the schedule of the learning rate",
    "rng_state": "the random state",
}
"""What an exact resume needs beside the weights: how its files' names begin -> what they hold."""
CHECKPOINTS_AT_ONCE = 3
"""The latest, the one to fall back on, and one that is being written."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class CheckpointDamaged(ValueError):
    """A checkpoint is not what was written, or lacks what an exact resume needs."""


class WholeCheckpoints(TrainerCallback):
    """Mark each checkpoint once all of it is written. It comes last of the callbacks, some of which save, too."""

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        folder = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        PartialState().wait_for_everyone()  # each process writes its own random state
        if state.is_world_process_zero and folder.is_dir():
            mark_whole(folder, args.world_size)


def mark_whole(folder: Path, processes: int) -> None:
    """Bring all files of a checkpoint to the disk, then say so."""
    (folder / WHOLE).unlink(missing_ok=True)  # a checkpoint that is written over
    for path in (*_files(folder), folder):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    digests = {str(path.relative_to(folder)): content_digest(path) for path in _files(folder)}
    atomic_write_json(folder / WHOLE, {"processes": processes, "files": digests})


def newest_whole_checkpoint(folder: Path) -> tuple[Path | None, dict[Path, str]]:
    """The newest checkpoint in `folder` that is as it was written; and of the newer ones, what is wrong with each."""
    numbered = {
        int(path.name.rpartition("-")[2]): path
        for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*")
        if path.name.rpartition("-")[2].isdigit()
    }
    damaged: dict[Path, str] = {}
    for _, path in sorted(numbered.items(), reverse=True):
        wrong = damage(path)
        if wrong is None:
            return path, damaged
        damaged[path] = wrong
    return None, damaged


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, or None. State that is missing altogether is another matter: `missing_state`."""
    try:
        digests = json.loads((checkpoint / WHOLE).read_text(encoding="utf-8"))["files"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return "was not written to its end"
    for name, digest in digests.items():
        path = checkpoint / name
        if not path.is_file():
            if not name.startswith(tuple(STATE)):
                return f"lacks {name}"
        elif content_digest(path) != digest:
            return f"is damaged: {name} is not as it was written (its checksum differs)"
    return None


def missing_state(checkpoint: Path) -> list[str]:
    """What an exact resume needs and the checkpoint has not, in words."""
    written = list(json.loads((checkpoint / WHOLE).read_text(encoding="utf-8"))["files"])
    return [
        f"{what} ({kind}*)"
        for kind, what in STATE.items()
        if not any(checkpoint.glob(f"{kind}*"))
        or any(name.startswith(kind) and not (checkpoint / name).exists() for name in written)
    ]


def require_exact(checkpoint: Path, processes: int) -> None:
    """See to it that a resume from `checkpoint` goes on exactly.

    Raises:
        CheckpointDamaged: it is not as it was written, lacks state, or other processes wrote it.
    """
    wrong = damage(checkpoint)
    if wrong is not None:
        raise CheckpointDamaged(f"{checkpoint} {wrong}: go on from an older one")
    missing = missing_state(checkpoint)
    if missing:
        raise CheckpointDamaged(
            f"{checkpoint} lacks {', '.join(missing)}: put it back, go on from an older checkpoint, or set "
            "exact_resume=False to go on with its weights alone"
        )
    by = json.loads((checkpoint / WHOLE).read_text(encoding="utf-8"))["processes"]
    if by != processes:
        raise CheckpointDamaged(
            f"{checkpoint} was written by {by} processes, and here are {processes}, who would share out the episodes "
            "otherwise: start as many, or set exact_resume=False"
        )


@contextmanager
def telling_of_a_full_disk(checkpoints: Path) -> Iterator[None]:
    """Where there is no space left: remove the checkpoint that was being written, and say which one is kept.

    Raises:
        OSError (ENOSPC): in place of whatever the library at hand raised.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if not _is_full(error, checkpoints):
            raise
        newest, damaged = newest_whole_checkpoint(checkpoints)
        for path in damaged:
            shutil.rmtree(path, ignore_errors=True)
        kept = f"{newest.name} is kept" if newest else "no checkpoint was written before"
        raise OSError(
            errno.ENOSPC,
            f"no space left to write to; {kept}: free some, and the same command goes on",
            str(checkpoints),
        ) from error


def _is_full(error: BaseException, folder: Path) -> bool:
    told = isinstance(error, OSError) and error.errno in FULL
    if told or re.search(r"no space left|quota exceeded|file too large", str(error), re.IGNORECASE):
        return True
    # torch says no more than that writing failed: see whether a file as large as the last good ones has a place
    if not re.search(r"iostream error|inline_container|StreamWriter", str(error)) or not folder.is_dir():
        return False
    newest = newest_whole_checkpoint(folder)[0]
    largest = max((path.stat().st_size for path in _files(newest)), default=2**20) if newest else 2**20
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, largest)
    except OSError as refused:
        return refused.errno in FULL
    return False


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())
