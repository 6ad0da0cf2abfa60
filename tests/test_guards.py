"""What a training that goes wrong is kept from, and what is said of it."""

from __future__ import annotations

import json
import logging
import math
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import gymnasium
import pytest
import torch
from small import fixed_rollout, small_args, small_policy, small_prompts, small_rows

import envs  # noqa: F401
from rlobj.alarms import PATIENCE, Alarms
from rlobj.callbacks import FiniteGuard, TrainingDiverged
from rlobj.policies import load_causal, load_tokenizer
from rlobj.trainer import ObjectiveTrainer
from rlobj.trajectories import Trajectory, reply_shares

# Losses and gradients that are not finite (FAULTS row 7) ------------------------------------------------------------


def poisoned(tmp_path, bad_calls, **fields):
    """A trainer whose reward is infinite for one row in the generations of these numbers."""
    directory = small_policy(tmp_path / "policy")
    tokenizer, calls = load_tokenizer(directory), iter(range(100))

    def reward(completions, fixed_return, **columns):
        is_bad = next(calls) in bad_calls
        return [math.inf if is_bad and i == 3 else value for i, value in enumerate(fixed_return)]

    args = small_args(tmp_path / "out", scale_rewards="none", save_strategy="steps", save_steps=1, **fields)
    return ObjectiveTrainer(
        str(directory), reward, args, small_prompts(), rollout_func=fixed_rollout, processing_class=tokenizer,
        supervised=small_rows(tokenizer), supervised_batch_size=4, lambda_sup=0.5,
    )  # fmt: skip


def test_a_bad_step_is_not_applied_and_its_batch_is_written(tmp_path, caplog):
    trainer = poisoned(tmp_path, {1})
    with caplog.at_level(logging.WARNING, "rlobj"):
        trainer.train()
    before, after = (load_causal(tmp_path / f"out/checkpoint-{step}").state_dict() for step in (1, 2))
    assert all(torch.equal(before[name], after[name]) for name in before), "step 2 moved nothing"
    last = load_causal(tmp_path / "out/checkpoint-3").state_dict()
    assert any(not torch.equal(after[name], last[name]) for name in last), "step 3 goes on"
    assert all(weights.isfinite().all() for weights in last.values())

    (path,) = (tmp_path / "out").rglob("bad_steps/*.json")
    assert path.name == "step-2.json" and str(path) in caplog.text
    bad = json.loads(path.read_text(encoding="utf-8"))
    rewards = [row["rewards"]["reward"] for row in bad["rows"]]
    assert rewards.count("inf") == 1 and len(rewards) == 8
    decode = trainer.processing_class.decode
    blamed = []
    for row in bad["rows"]:
        assert row["completion"] == decode(row["completion_ids"]) and row["prompt"] == decode(row["prompt_ids"])
        blamed.append(not abs(float(row["loss"])) < 1e30)
        mean = sum(-float(a) * p for a, p in zip(row["advantages"], row["logps"], strict=True)) / len(row["logps"])
        assert blamed[-1] or row["loss"] == pytest.approx(mean, rel=1e-5)
    assert sum(blamed) == 3, "those that were compared with the infinite reward; its own advantage is ∞ − ∞, made 0"
    assert len(bad["supervised rows"]) == 4 and all(row["loss"] > 0 for row in bad["supervised rows"])
    told = trainer.alarms.told[0]
    assert told["name"] == "not finite" and told["step"] == 2 and str(path) in told["text"]


def test_bad_steps_in_a_row_stop_the_run_with_the_reason(tmp_path):
    trainer = poisoned(tmp_path, {1, 2, 3, 4}, max_steps=9)
    with pytest.raises(TrainingDiverged, match=r"3 steps in a row up to step 4 had a (loss|gradient) .*step-4\.json"):
        trainer.train()
    for checkpoint in (tmp_path / "out").glob("checkpoint-*"):
        assert all(w.isfinite().all() for w in load_causal(checkpoint).state_dict().values())


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_the_loss_and_every_gradient_are_looked_at(what, tmp_path):
    model, written, told = torch.nn.Linear(2, 1), [], []
    guard = FiniteGuard(
        2,
        lambda: what != "loss",
        lambda names: written.append(names) or tmp_path / "x",
        lambda *said: told.append(said),
    )
    for step in (4, 5):
        model(torch.ones(1, 2)).sum().backward()
        if what == "gradient":
            model.weight.grad[0, 1] = math.nan
        stops = pytest.raises(TrainingDiverged, match=f"2 steps in a row up to step 6 had a {what} that is not .*x")
        with stops if step == 5 else nullcontext():
            guard.on_pre_optimizer_step(None, SimpleNamespace(global_step=step), None, model=model)
        assert all(p.grad is None for p in model.parameters())
    assert written == [["weight"] if what == "gradient" else []] * 2
    assert told[0][0] == 5 and f"whose {what} is not finite; it was not applied" in told[0][1]


# Warnings (FAULTS rows 8 to 10) ---------------------------------------------------------------------------------------

FINE = {"entropy": 2.0, "reward_std": 0.3, "frac_reward_zero_std": 0.0, "replies/truncated": 0.1, "replies/empty": 0.0}
ARGS = SimpleNamespace(max_completion_length=40)


def logged(alarms: Alarms, *steps: dict) -> list[str]:
    for number, logs in enumerate(steps, start=1):
        alarms.on_log(ARGS, SimpleNamespace(global_step=number), None, logs)
    return [each["name"] for each in alarms.told]


def test_a_label_has_no_end_to_run_past():
    """TRL counts every completion that does not end with the end token as clipped; a choice of a label never does."""
    labels = {"entropy": 2.0, "reward_std": 0.3, "completions/clipped_ratio": 1.0, "completions/mean_length": 1.0}
    assert logged(Alarms("reinforce"), *[labels] * 9) == []
    assert logged(Alarms("reinforce"), *[{**labels, "completions/mean_length": 8.0}] * 9) == ["replies truncated"]


@pytest.mark.parametrize(
    ("estimator", "change", "name", "remedy"),
    [
        ("grpo", {"frac_reward_zero_std": 0.95}, "no advantage", "training.num_generations"),
        ("ppo", {"reward_std": 0.0}, "no advantage", "what the reward gives"),
        ("grpo", {"entropy": 0.001}, "entropy collapse", "training.temperature"),
        ("grpo", {"kl": 3.0}, "KL runaway", "objective.lambda_sup"),
        ("grpo", {"replies/truncated": 1.0}, "replies truncated", "max_reply_tokens (40)"),
        ("grpo", {"replies/empty": 1.0}, "replies empty", "gives an empty reply"),
    ],
)
def test_each_warning_is_said_once_when_it_lasts(caplog, estimator, change, name, remedy):
    bad = {**FINE, **change}
    assert logged(Alarms(estimator), *[FINE] * 9) == []
    assert logged(Alarms(estimator), FINE, *[bad] * (PATIENCE - 1), FINE, bad) == [], "a bad step is no bad training"
    alarms = Alarms(estimator)
    with caplog.at_level(logging.WARNING, "rlobj"):
        assert logged(alarms, FINE, *[bad] * 9) == [name]
    assert len(caplog.records) == 1 and remedy in caplog.text
    assert alarms.told[0]["step"] == 1 + PATIENCE
    alarms.on_log(ARGS, SimpleNamespace(global_step=99), None, {"train_runtime": 3.0})  # no step

    resumed = Alarms(estimator)
    state = SimpleNamespace(global_step=10, stateful_callbacks={"Alarms": json.loads(json.dumps(alarms.state()))})
    resumed.on_train_begin(ARGS, state, None)
    assert logged(resumed, *[bad] * 9) == [name] and resumed.told == alarms.told, "nor again after a resume"


def test_what_is_a_truncated_or_an_empty_reply():
    end = 1
    one = Trajectory([2], [5, 6, end, 9, 9, 7, 7, 7, 9], [1, 1, 1, 0, 0, 1, 1, 1, 0], replies_cut=1)
    other = Trajectory([2], [end, 9, end], [1, 0, 1])
    assert reply_shares([one, other], end) == {"replies/truncated": 1 / 4, "replies/empty": 2 / 4}
    assert reply_shares([], end) == {"replies/truncated": 0, "replies/empty": 0}


def test_replies_without_an_end_and_rewards_without_a_difference(tmp_path, caplog):
    """In a real training; the supervised term goes on learning."""
    directory = small_policy(tmp_path / "policy")
    tokenizer = load_tokenizer(directory)
    trainer = ObjectiveTrainer(
        load_causal(directory), args=small_args(tmp_path / "out", max_steps=4, max_completion_length=3),
        processing_class=tokenizer, env=gymnasium.make("rlobj/CustomerService-v0", disable_env_checker=True),
        reward=lambda prompts, **columns: [0.5] * len(prompts), train_seeds=list(range(8)), max_length=128,
        supervised=small_rows(tokenizer), lambda_sup=1.0,
    )  # fmt: skip
    trainer.train()
    assert {each["name"] for each in trainer.alarms.told} == {"no advantage", "replies truncated"}
    assert "max_reply_tokens (3)" in caplog.text
    ells = [log["objective/ell"] for log in trainer.state.log_history if "objective/ell" in log]
    assert ells[-1] < ells[0], "λℓ trains on"


def test_the_report_has_them(tmp_path):
    from rlobj.results import lambda_directory, warnings_of
    from rlobj.runs import mark_done

    told = [{"name": "KL runaway", "step": 7, "text": "the policy's KL is high"}]
    mark_done(lambda_directory(Path(tmp_path), 0.0), "key", {"warnings": told})
    mark_done(lambda_directory(Path(tmp_path), 0.3), "key", {})
    assert warnings_of(tmp_path, 0.0) == told and warnings_of(tmp_path, 0.3) == []
