"""What is logged stays on this machine, whatever becomes of a tracker."""

from __future__ import annotations

import json
import logging

import pytest
from small import fixed_reward, fixed_rollout, small_args, small_policy, small_prompts
from transformers import TrainerCallback
from transformers.integrations import TrackioCallback

from rlobj.policies import load_tokenizer
from rlobj.tracking import METRICS
from rlobj.trainer import ObjectiveTrainer


class Offline(TrackioCallback):
    """transformers' tracker as it behaves without a network: at its start, or from a later step on."""

    def __init__(self, fails_at: str) -> None:
        self.fails_at, self.calls = fails_at, 0

    def happens(self, event: str) -> None:
        self.calls += 1
        if event == self.fails_at:
            raise ConnectionError("cannot reach the server")

    def on_train_begin(self, args, state, control, **kwargs):
        self.happens("begin")

    def on_log(self, args, state, control, **kwargs):
        self.happens(f"log {state.global_step}")

    def on_train_end(self, args, state, control, **kwargs):
        self.happens("end")


def trainer_of(tmp_path, callbacks=(), **fields):
    if not (tmp_path / "policy").exists():
        small_policy(tmp_path / "policy")
    return ObjectiveTrainer(
        str(tmp_path / "policy"), fixed_reward, small_args(tmp_path / "out", **fields), small_prompts(),
        rollout_func=fixed_rollout, processing_class=load_tokenizer(tmp_path / "policy"), callbacks=list(callbacks),
    )  # fmt: skip


def lines_of(tmp_path) -> list[dict]:
    return [json.loads(line) for line in (tmp_path / "out" / METRICS).read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(("fails_at", "calls"), [("begin", 1), ("log 2", 3), ("end", 6)])
def test_an_offline_tracker_is_told_once_and_the_local_log_goes_on(tmp_path, caplog, fails_at, calls):
    """FAULTS row 28."""
    tracker = Offline(fails_at)
    with caplog.at_level(logging.WARNING, "rlobj"):
        trainer_of(tmp_path, [tracker]).train()
    (record,) = [record for record in caplog.records if record.name == "rlobj.tracking"]
    said = record.getMessage()
    assert "Offline failed (ConnectionError: cannot reach the server): training goes on without it" in said
    assert str(tmp_path / "out" / METRICS) in said and "report_to to none" in said
    assert tracker.calls == calls, "it is not asked again"
    assert [line["step"] for line in lines_of(tmp_path)] == [1, 2, 3, 3]
    assert all("objective/L" in line for line in lines_of(tmp_path)[:3])


def test_other_callbacks_may_end_a_training(tmp_path):
    class Mine(TrainerCallback):
        def on_log(self, args, state, control, **kwargs):
            raise ConnectionError("mine")

    with pytest.raises(ConnectionError, match="mine"):
        trainer_of(tmp_path, [Mine()]).train()


def test_a_resume_takes_away_what_is_done_again(tmp_path):
    fields = {"save_strategy": "steps", "save_steps": 1}
    trainer_of(tmp_path, **fields).train()
    straight = lines_of(tmp_path)
    with open(tmp_path / "out" / METRICS, "a", encoding="utf-8") as file:
        file.write('{"step": 3, "loss": 0.')  # killed while it wrote
    trainer_of(tmp_path, **fields).train(resume_from_checkpoint=str(tmp_path / "out/checkpoint-2"))
    again = lines_of(tmp_path)
    assert [line["step"] for line in again] == [1, 2, 3, 3] and again[:2] == straight[:2]
    assert again[2]["loss"] == straight[2]["loss"]
    trainer_of(tmp_path, **fields).train()
    assert [line["step"] for line in lines_of(tmp_path)] == [1, 2, 3, 3], "a new training begins a new log"
