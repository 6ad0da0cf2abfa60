"""A run's directory: whole files, stages that know their inputs, signals that end a run gently."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from rlobj import runs
from rlobj.runs import (
    atomic_dir,
    atomic_write_json,
    atomic_write_text,
    content_digest,
    graceful_signals,
    is_done,
    mark_done,
    read_outputs,
    recover,
    require_free_space,
    stage_key,
)


class CrashError(Exception):
    pass


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


# Whole files and directories


def test_a_crash_before_the_file_is_whole_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "sub" / "x.txt"
    atomic_write_text(path, "old λ")

    def crash(handle: int) -> None:
        raise CrashError

    monkeypatch.setattr(runs.os, "fsync", crash)
    with pytest.raises(CrashError):
        atomic_write_text(path, "new")
    assert path.read_text(encoding="utf-8") == "old λ"
    assert names(path.parent) == ["x.txt"]


def test_a_killed_writer_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("old")
    script = (
        "import os, sys; from rlobj import runs\n"
        "runs.os.replace = lambda *a: os._exit(9)\n"
        "runs.atomic_write_text(sys.argv[1], 'new')"
    )
    assert subprocess.run([sys.executable, "-c", script, str(path)], cwd=Path(__file__).parents[1]).returncode == 9
    assert path.read_text() == "old"
    atomic_write_text(path, "newer")
    assert path.read_text() == "newer"


def test_json_has_null_for_numbers_that_are_not_finite(tmp_path: Path) -> None:
    atomic_write_json(tmp_path / "x.json", {"a": [float("nan"), 1.5], "b": (float("inf"), {"c": -float("inf")})})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": [None, 1.5], "b": [None, {"c": None}]}


def test_a_directory_takes_its_place_only_when_it_is_whole(tmp_path: Path) -> None:
    place = tmp_path / "stage"
    with atomic_dir(place) as new:
        (new / "inner").mkdir()
        (new / "inner" / "a").write_text("1")
        assert not place.exists()
    with pytest.raises(CrashError), atomic_dir(place) as new:
        (new / "b").write_text("2")
        raise CrashError
    assert names(place) == ["inner"]
    with atomic_dir(place) as new:
        (new / "c").write_text("3")
    assert names(place) == ["c"]
    assert names(tmp_path) == ["stage"]


@pytest.mark.parametrize("killed_at", ["before the old one moved", "between the moves", "before the old one went"])
def test_recover_after_a_kill(tmp_path: Path, killed_at: str) -> None:
    place, new, old = tmp_path / "stage", tmp_path / ".stage.new", tmp_path / ".stage.old"
    present = {
        "before the old one moved": {place: "old", new: "half"},
        "between the moves": {old: "old", new: "new"},
        "before the old one went": {place: "new", old: "old"},
    }[killed_at]
    for directory, content in present.items():
        directory.mkdir()
        (directory / "x").write_text(content)
    recover(place)
    assert names(tmp_path) == ["stage"]
    assert (place / "x").read_text() == ("new" if killed_at == "before the old one went" else "old")


def test_too_little_space_is_said_with_a_remedy(tmp_path: Path) -> None:
    require_free_space(tmp_path / "not" / "yet", 1)
    with pytest.raises(OSError, match=r"MB needed: free some space or set --output_dir"):
        require_free_space(tmp_path / "not" / "yet", 10**18)


# Stages


def test_stage_key_depends_on_values_not_on_order() -> None:
    key = stage_key({"a": 1, "b": [1.5, None], "path": Path("x")})
    assert key == stage_key({"path": "x", "b": [1.5, None], "a": 1})
    assert key != stage_key({"a": 2, "b": [1.5, None], "path": "x"})
    with pytest.raises(ValueError):
        stage_key({"a": float("nan")})
    with pytest.raises(TypeError, match="expected a JSON value or a Path"):
        stage_key({"a": object()})


def test_content_digest_follows_content_and_names(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    before = content_digest(tmp_path)
    (tmp_path / ".hidden").write_text("no matter")
    os.utime(tmp_path / "a", (0, 0))
    assert content_digest(tmp_path) == before
    (tmp_path / "a").rename(tmp_path / "b")
    renamed = content_digest(tmp_path)
    (tmp_path / "b").write_text("2")
    assert len({before, renamed, content_digest(tmp_path)}) == 3


def test_a_stage_is_done_with_the_inputs_it_was_done_with(tmp_path: Path) -> None:
    assert not is_done(tmp_path / "stage", "key")
    mark_done(tmp_path / "stage", "key", {"accuracy": 0.5})
    assert is_done(tmp_path / "stage", "key")
    assert not is_done(tmp_path / "stage", "other key")
    assert read_outputs(tmp_path / "stage") == {"accuracy": 0.5}


@pytest.mark.parametrize("damage", ["", '{"key": "k', "[]", "\x00"])
def test_a_damaged_marker_counts_as_unfinished(tmp_path: Path, damage: str) -> None:
    mark_done(tmp_path, "key", {})
    (tmp_path / runs.MARKER).write_text(damage)
    assert not is_done(tmp_path, "key")
    with pytest.raises(ValueError, match="run the recipe again"):
        read_outputs(tmp_path)


# Signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_the_second_stops(number: signal.Signals, capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(number)
    with graceful_signals() as stop:
        assert not stop.requested
        signal.raise_signal(number)
        assert stop.requested
        assert "press again to stop now" in capsys.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    assert signal.getsignal(number) == before


def test_handlers_come_back_after_an_error() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(CrashError), graceful_signals():
        raise CrashError
    assert signal.getsignal(signal.SIGINT) == before


def test_outside_the_main_thread_nothing_is_changed() -> None:
    seen: list[bool] = []

    def work() -> None:
        with graceful_signals() as stop:
            seen.append(stop.requested)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]


def test_a_process_ends_by_itself_after_sigterm() -> None:
    script = (
        "import time; from rlobj.runs import graceful_signals\n"
        "with graceful_signals() as stop:\n"
        "    print('ready', flush=True)\n"
        "    while not stop.requested: time.sleep(0.01)\n"
        "    print('saved', flush=True)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], cwd=Path(__file__).parents[1], text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.05)
    process.terminate()
    said, asked = process.communicate(timeout=20)
    assert (process.returncode, said) == (0, "saved\n")
    assert "finishing the current step" in asked
