"""What is half done or finished with other inputs than a run has now: told, and never thrown away unasked."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from test_pipeline import SMALL, STOPPING

from rlobj.checkpoints import WHOLE, mark_whole
from rlobj.cli import main
from rlobj.runs import done_with, mark_done
from rlobj.stages import BEGUN, InputsChanged, Stage, check_half_done, differences, make_ready

INPUTS = {"training.steps": 50, "training.learning_rate": 1e-3, "content of data.jsonl": "0123456789abcdef" * 4}


def half_done(directory: Path, inputs: dict, processes: int = 1) -> Stage:
    stage = Stage(directory / "policies" / "lambda=0", "policy", inputs)
    make_ready(stage, directory, "refuse", processes)
    (stage.checkpoints / "checkpoint-10").mkdir()
    for name in ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"):
        (stage.checkpoints / "checkpoint-10" / name).write_text(name)
    mark_whole(stage.checkpoints / "checkpoint-10", processes)
    return stage


def test_differences_name_what_was_and_what_is():
    now = {**INPUTS, "training.learning_rate": 5e-4, "content of data.jsonl": "fedcba9876543210" * 4, "new": [1, "ü"]}
    del now["training.steps"]
    assert differences(INPUTS, now) == [
        "training.learning_rate: 0.001 → 0.0005",
        'content of data.jsonl: "01234567…" → "fedcba98…"',
        'new: (none) → [1, "ü"]',
        "training.steps: 50 → (none)",
    ]
    assert differences({"a": (1, 2), "b": Path("x")}, {"b": "x", "a": [1, 2]}) == [], "what JSON cannot tell apart"


@pytest.mark.parametrize(
    ("now", "processes", "line"),
    [
        ({**INPUTS, "training.steps": 60}, 1, "training.steps: 50 → 60"),
        ({**INPUTS, "content of data.jsonl": "f" * 64}, 1, '"01234567…" → "ffffffff…"'),
        (INPUTS, 2, "processes: 1 → 2"),
    ],
)
def test_a_half_done_stage_with_other_inputs_refuses(tmp_path, capsys, now, processes, line):
    """Configuration, data, number of processes: FAULTS row 18."""
    begun = half_done(tmp_path, INPUTS)
    stage = Stage(begun.directory, begun.what, now)
    check_half_done([begun], "refuse", 1)
    with pytest.raises(
        InputsChanged, match=r"is half done \(checkpoint-10\), but not with what there is now"
    ) as refused:
        check_half_done([stage], "refuse", processes)
    assert line in str(refused.value) and "--on_change continue" in str(refused.value)
    assert (stage.checkpoints / "checkpoint-10" / WHOLE).exists()

    check_half_done([stage], "continue", processes)
    make_ready(stage, tmp_path, "continue", processes)
    assert (stage.checkpoints / "checkpoint-10").exists()
    check_half_done([stage], "refuse", processes)  # from now on it is this one's
    with pytest.raises(InputsChanged):
        check_half_done([begun], "refuse", 1)

    check_half_done([begun], "restart", 1)
    make_ready(begun, tmp_path, "restart", 1)
    assert [path.name for path in begun.checkpoints.iterdir()] == [BEGUN]
    said = capsys.readouterr().out
    assert "going on from checkpoint-10" in said and "checkpoint-10 is given up" in said and said.count(" → ") == 2


@pytest.mark.parametrize("text", [None, "", "[]", '{"inputs": 3'])
def test_checkpoints_of_nobody_knows_what(tmp_path, text):
    stage = half_done(tmp_path, INPUTS)
    (stage.checkpoints / BEGUN).unlink()
    if text is not None:
        (stage.checkpoints / BEGUN).write_text(text)
    with pytest.raises(InputsChanged, match="what it was begun with is not known"):
        check_half_done([stage], "refuse", 1)


def test_nothing_is_refused_where_nothing_would_be_lost(tmp_path):
    begun = half_done(tmp_path, INPUTS)
    other = Stage(begun.directory, begun.what, {})
    (begun.checkpoints / "checkpoint-10" / WHOLE).unlink()
    check_half_done([other], "refuse", 1)
    mark_done(begun.directory, other.key, {}, {})
    mark_whole(begun.checkpoints / "checkpoint-10", 1)
    check_half_done([other], "refuse", 1)


def test_a_finished_stage_makes_place_and_is_kept(tmp_path, capsys):
    stage = Stage(tmp_path / "policies" / "lambda=0", "policy", INPUTS)
    for steps in (50, 60, 70):
        now = Stage(stage.directory, stage.what, {**INPUTS, "training.steps": steps})
        assert not now.done
        make_ready(now, tmp_path, "refuse", 1)
        now.directory.mkdir(parents=True)
        (now.directory / "model.safetensors").write_text(str(steps))
        mark_done(now.directory, now.key, {}, now.inputs)
    kept = tmp_path / "previous" / "policies" / "lambda=0"
    assert (kept / "model.safetensors").read_text() == "60" and done_with(kept) == {**INPUTS, "training.steps": 60}
    said = capsys.readouterr().out
    assert said.count(f"the finished one is kept in {kept}") == 2 and "training.steps: 60 → 70" in said


def test_a_stopped_run_with_another_configuration(tmp_path, monkeypatch, capsys):
    """Refused with what differs and what to type; gone on with when that is typed."""
    reward = tmp_path / "stopping.py"
    reward.write_text(STOPPING)
    settings = {
        **SMALL, "training.steps": 4, "objective.lambda_sup": 0.3, "output_dir": tmp_path / "runs",
        "reward.kind": "function", "reward.function": f"{reward}:reward",
    }  # fmt: skip

    def typed(**changed: object) -> int:
        given = {**settings, **{name.replace("__", "."): value for name, value in changed.items()}}
        return main(["run", "customer-service", *(f"--{name}={value}" for name, value in given.items())])

    monkeypatch.setenv("STOP_AT", str(tmp_path / "calls"))
    assert typed() == 130
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*")}
    reward.write_text(STOPPING + "# edited\n")
    assert typed(training__learning_rate=0.0123) == 2
    refused = capsys.readouterr().err
    assert "  training.learning_rate: " in refused and " → 0.0123" in refused and f"code of {reward}: " in refused
    assert "  warm_start.learning_rate: " not in refused, "unchanged"
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*")} == before, "nothing is touched"
    assert typed(training__learning_rate=0.0123, on_change="continue") == 0
    assert "going on from checkpoint-3" in capsys.readouterr().out
    again = os.path.join(tmp_path, "runs", "customer-service", "config.yaml")
    assert "on_change: refuse" in Path(again).read_text(encoding="utf-8"), "said for this once"
