"""Trackers beside a training: how its runs are named and grouped there."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
from small import fixed_reward, fixed_rollout, small_args, small_policy, small_prompts

from rlobj.policies import load_causal, load_tokenizer
from rlobj.trackers import TRACKERS, begin_run, check_trackers, end_run
from rlobj.trainer import ObjectiveTrainer


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "before")  # and so it is again afterwards


def train(directory, names, group="λ = 0.1"):
    model = small_policy(directory / "model")
    args = small_args(directory / "checkpoints")
    begin_run(names, args, project="demo", group=group, run="seed 3", directory=directory / "trackers")
    trainer = ObjectiveTrainer(
        load_causal(model),
        args=args,
        processing_class=load_tokenizer(model),
        reward_funcs=fixed_reward,
        train_dataset=small_prompts(),
        rollout_func=fixed_rollout,
        lambda_sup=0.0,
    )
    trainer.train()
    end_run(names)
    return trainer


@pytest.mark.filterwarnings("ignore")  # the tracker's own
def test_tensorboard_has_each_run_under_its_lambda_and_seed(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer = train(tmp_path, ["tensorboard"])
    (events,) = (tmp_path / "trackers/tensorboard/λ = 0.1/seed 3").glob("events.*")
    read = EventAccumulator(str(events)).Reload()
    logged = [log["reward"] for log in trainer.state.log_history if "reward" in log]
    assert [each.value for each in read.Scalars("train/reward")] == pytest.approx(logged)
    assert (trainer.args.run_name, trainer.args.project) == ("λ = 0.1, seed 3", "demo")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_wandb_groups_by_lambda(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    runs, finish = [], wandb.finish
    monkeypatch.setattr(
        wandb, "finish", lambda: (runs.append((wandb.run.project, wandb.run.group, wandb.run.name)), finish())
    )
    for group in ("λ = 0", "λ = 0.1"):
        train(tmp_path, ["wandb"], group)
    assert len(list((tmp_path / "trackers/wandb").glob("offline-run-*/*.wandb"))) == 2
    assert runs == [("demo", "λ = 0", "λ = 0, seed 3"), ("demo", "λ = 0.1", "λ = 0.1, seed 3")]
    assert wandb.run is None, "each policy is a run of its own"


def test_wandb_that_does_not_answer_is_left_out(tmp_path, monkeypatch, caplog):
    def init(**given):
        raise ConnectionError("nobody answers")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    args = small_args(tmp_path)
    begin_run(["wandb", "tensorboard"], args, project="demo", group="λ = 0", run="seed 0", directory=tmp_path)
    assert args.report_to == ["tensorboard"]
    assert "wandb failed (nobody answers): training goes on without it" in caplog.text


def test_a_tracker_that_is_not_there_is_told_before_anything_is_trained(monkeypatch):
    with pytest.raises(ValueError, match=r"report_to is 'wanbd'; did you mean 'wandb'\?: expected none, or some of"):
        check_trackers(["wanbd"])
    monkeypatch.setattr("rlobj.trackers.find_spec", lambda name: None)
    for name in TRACKERS:
        with pytest.raises(ValueError, match=f"which is not installed: pip install {name}"):
            check_trackers([name])
