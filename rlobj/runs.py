"""A run's directory: files that are whole or absent, stages that are not done twice, signals that end a run gently.

Standard library only. One process writes to a run at a time.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

MARKER = "stage.json"


# Whole files and directories ------------------------------------------------------------------------------------


def atomic_write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 file that is never seen half-written, even after a crash."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        with open(new, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)
    _sync(path.parent)


def rounded(value: Any) -> Any:
    """A JSON value with six significant digits in each of its numbers, for people to read."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {key: rounded(each) for key, each in value.items()}
    return [rounded(each) for each in value] if isinstance(value, list | tuple) else value


def atomic_write_json(path: str | Path, value: Any) -> None:
    """Write JSON, indented. Numbers that are not finite become null: JSON has no NaN."""
    atomic_write_text(path, json.dumps(finite(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


@contextlib.contextmanager
def atomic_dir(path: str | Path) -> Iterator[Path]:
    """Yield an empty directory that takes the place of `path` when the block ends well, and vanishes otherwise.

    An existing directory stays until then. What a killed process left behind is cleared on the way in.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    recover(path)
    new, old = _beside(path)
    new.mkdir()
    try:
        yield new
        for each in sorted(new.rglob("*"), reverse=True):
            _sync(each)
        _sync(new)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    if path.exists():
        os.replace(path, old)
    os.replace(new, path)
    _sync(path.parent)
    if old.exists():
        shutil.rmtree(old)


def recover(path: str | Path) -> None:
    """Undo an `atomic_dir` that was killed: drop the unfinished directory, put back the one it was to replace."""
    path = Path(path)
    new, old = _beside(path)
    if new.exists():
        shutil.rmtree(new)
    if old.exists() and path.exists():
        shutil.rmtree(old)
    elif old.exists():
        os.replace(old, path)


def require_free_space(path: str | Path, needed: int) -> None:
    """Raise OSError (ENOSPC) unless `needed` bytes are free where `path` is or will be."""
    existing = Path(path).absolute()
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise OSError(
            errno.ENOSPC,
            f"{free / 1e6:.0f} MB free, {needed / 1e6:.0f} MB needed: free some space or set --output_dir",
            str(path),
        )


def _beside(path: Path) -> tuple[Path, Path]:
    return path.with_name(f".{path.name}.new"), path.with_name(f".{path.name}.old")


def _sync(path: Path) -> None:
    if path.is_symlink():
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# Stages ---------------------------------------------------------------------------------------------------------


def stage_key(inputs: Mapping[str, Any]) -> str:
    """SHA-256 of a stage's inputs: equal for equal JSON values, whatever the order of keys.

    Raises:
        TypeError: an input is no JSON value (a Path is one, as its text).
        ValueError: an input is NaN or infinite.
    """
    text = json.dumps(inputs, sort_keys=True, separators=(",", ":"), allow_nan=False, default=_path_text)
    return hashlib.sha256(text.encode()).hexdigest()


def content_digest(path: str | Path) -> str:
    """SHA-256 of a file, or of a directory's visible files and their names: an input that may change in place."""
    path = Path(path)
    if path.is_dir():
        parts = {
            str(each.relative_to(path)): content_digest(each)
            for each in sorted(path.rglob("*"))
            if each.is_file() and not any(part.startswith(".") for part in each.relative_to(path).parts)
        }
        return stage_key(parts)
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_done(directory: str | Path, key: str) -> bool:
    """Whether the stage in `directory` was finished with these inputs. An unreadable marker counts as unfinished."""
    return _marker(directory).get("key") == key


def mark_done(
    directory: str | Path, key: str, outputs: Mapping[str, Any], inputs: Mapping[str, Any] | None = None
) -> None:
    """Write a stage's marker, the last thing that the stage writes."""
    marker = {"key": key, "inputs": dict(inputs or {}), "outputs": dict(outputs)}
    atomic_write_json(Path(directory) / MARKER, marker)


def done_with(directory: str | Path) -> dict[str, Any] | None:
    """The inputs that a stage was finished with; None if it is not finished."""
    marker = _marker(directory)
    return marker.get("inputs", {}) if "outputs" in marker else None


def read_outputs(directory: str | Path) -> dict[str, Any]:
    """What a finished stage said of itself.

    Raises:
        ValueError: the stage is not finished.
    """
    marker = _marker(directory)
    if "outputs" not in marker:
        raise ValueError(f"{directory} holds no finished stage ({MARKER} is missing or damaged): run the recipe again")
    outputs: dict[str, Any] = marker["outputs"]
    return outputs


def _marker(directory: str | Path) -> dict[str, Any]:
    try:
        marker = json.loads((Path(directory) / MARKER).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return {}
    return marker if isinstance(marker, dict) else {}


def _path_text(value: Any) -> str:
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"a stage's input is {value!r} ({type(value).__name__}): expected a JSON value or a Path")


# Signals --------------------------------------------------------------------------------------------------------


class StopRequest:
    """Whether the user asked to stop: loops look at `requested` between steps."""

    def __init__(self) -> None:
        self.requested = False

    def handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        print("\nfinishing the current step, saving; press again to stop now", file=sys.stderr, flush=True)


@contextlib.contextmanager
def graceful_signals() -> Iterator[StopRequest]:
    """Turn the first Ctrl-C or SIGTERM into a request, the second into KeyboardInterrupt at once.

    Outside the main thread, which alone receives signals, the request is never made.
    """
    stop = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, stop.handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
