"""How far a policy has moved from its warm start, and what proxy and truth do meanwhile."""

from __future__ import annotations

import json
from dataclasses import asdict

import gymnasium
import pytest
import torch
from small import small_args, small_policy, small_rows
from transformers import AutoModelForCausalLM

from rlobj.alarms import WINDOW, GamedReward
from rlobj.drift import against_kl, drift_pictures, mean_over_seeds
from rlobj.pictures import Point
from rlobj.policies import load_tokenizer
from rlobj.trainer import ObjectiveTrainer


def trained(directory, steps=3, resume=None, **options):
    policy = small_policy(directory / "policy")
    tokenizer = load_tokenizer(policy)
    env = gymnasium.make("rlobj/CustomerService-v0", domain="repairs", max_turns=2)
    fields = {"per_device_train_batch_size": 4, "num_generations": 2, "max_completion_length": 6, "max_steps": steps}
    args = small_args(directory / "run", **fields, learning_rate=1e-2, save_strategy="steps", save_steps=2)
    trainer = ObjectiveTrainer(
        AutoModelForCausalLM.from_pretrained(policy), args=args, processing_class=tokenizer, env=env,
        train_seeds=range(100), supervised=small_rows(tokenizer), lambda_sup=0.1, max_length=300, **options,
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def logged(trainer, key):
    return [log[key] for log in trainer.state.log_history if key in log]


def test_measuring_the_kl_changes_no_bit_and_goes_on_after_a_resume(tmp_path):
    plain = trained(tmp_path / "plain")
    measured = trained(tmp_path / "measured", kl_every=1)
    for name, weights in plain.model.state_dict().items():
        assert torch.equal(weights, measured.model.state_dict()[name]), name
    kl = logged(measured, "kl/episode")
    assert len(kl) == 3
    assert kl[0] == pytest.approx(0, abs=1e-6) and kl[2] > kl[0]
    assert logged(measured, "kl/warm_start")[2] < kl[2], "a token is less than an episode"
    assert not logged(plain, "kl/episode")
    again = trained(tmp_path / "measured", kl_every=1, resume=str(tmp_path / "measured/run/checkpoint-2"))
    assert logged(again, "kl/episode")[-1] == pytest.approx(kl[2]), "against the warm start, not the checkpoint"


def test_a_policy_that_moves_too_far_is_stopped_with_a_checkpoint(tmp_path):
    trainer = trained(tmp_path, steps=6, kl_every=1, kl_limit=1e-9)
    assert trainer.state.global_step == 2, "the first step begins at the warm start"
    assert (tmp_path / "run/checkpoint-2").is_dir()
    (limit,) = [each for each in trainer.alarms.told if each["name"] == "KL limit"]
    assert "the training ends here" in limit["text"]
    with pytest.raises(ValueError, match="must be measured"):
        trained(tmp_path, kl_limit=0.1)


def told(measured):
    watch = GamedReward()
    found = [watch.seen(step, *each) for step, each in enumerate(measured, 1)]
    again = GamedReward(**json.loads(json.dumps(asdict(watch))))
    assert again.seen(999, 0.0, 0.0) == watch.seen(999, 0.0, 0.0), "goes on from a checkpoint"
    return found[-1]


def test_a_reward_that_is_gamed_is_told():
    up = [(0.3 + 0.01 * i, 0.01 * i) for i in range(40)]
    down = [(0.7 - 0.02 * i, 0.4 + 0.01 * i) for i in range(20)]
    assert told(up) is None
    step, best, now = told(up + down)
    assert 40 <= step <= 40 + WINDOW and best > 0.6 and now < 0.5
    assert told([(success, 1 - reward) for success, reward in up + down]) is None, "both fall"
    assert told([(1.0, 0.0)] * (WINDOW - 1)) is None


def test_proxy_and_truth_are_means_between_two_measurements_of_the_kl():
    history = [
        {"objective/return": 9.0},  # before the first
        {"kl/episode": 4.0, "objective/return": 1.0, "environment/success": 0.5},
        {"objective/return": 3.0, "environment/success": 0.7},
        {"kl/episode": 9.0, "objective/return": 5.0},
    ]
    found = against_kl(history)
    assert found == {"return": [Point(2, 2.0), Point(3, 5.0)], "task success": [Point(2, pytest.approx(0.6))]}
    assert [p[:2] for p in mean_over_seeds([[Point(1, 2.0)], [Point(3, 4.0), Point(9, 9.0)]])] == [(2, 3)]
    pictures = drift_pictures({"λ = 0": found, "λ = 1": {"return": [Point(0, 0.0)]}})
    assert [len(picture.series) for picture in pictures] == [2, 1]
    assert drift_pictures({"λ = 0": {}}) == []
