"""The best policy of a training is kept, not the last (FAULTS row 11), and resumes stay exact."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import PartialState
from safetensors.torch import load_file
from small import small_policy
from test_pipeline import STOPPING, small_run
from transformers import TrainerControl, TrainerState

from rlobj.best_policy import KeepBest, told
from rlobj.cli import main
from rlobj.pipeline import run
from rlobj.policies import load_causal
from rlobj.recipes import load_recipe
from rlobj.results import lambda_directory, load_summary
from rlobj.runs import read_outputs
from rlobj.stage_inputs import policy_inputs
from rlobj.stages import Interrupted

WORDS = ["red", "green", "blue"]


def test_the_weights_are_those_of_the_step_with_the_highest_value(tmp_path: Path) -> None:
    PartialState()
    policy = load_causal(small_policy(tmp_path / "policy"))
    value = {2: 0.1, 4: 0.7, 6: 0.7, 7: 0.3}
    best = KeepBest(2, lambda model: value[state.global_step], tmp_path / "best", lambda model: model)
    state = TrainerState(max_steps=7, is_world_process_zero=True)
    weights = {}
    for state.global_step in range(1, 8):
        with torch.no_grad():
            for parameter in policy.parameters():
                parameter.add_(1.0)
        weights[state.global_step] = {name: p.clone() for name, p in policy.state_dict().items()}
        best.on_step_end(None, state, TrainerControl(), model=policy)
    found = best.put_back(policy)
    assert found == {"step": 4, "value": 0.7, "values": {"2": 0.1, "4": 0.7, "6": 0.7, "7": 0.3}}
    assert all(torch.equal(p, weights[4][name]) for name, p in policy.state_dict().items())
    assert [file.name for file in (tmp_path / "best").glob("*.safetensors")] == ["step-4.safetensors"]
    assert told(found).startswith("the policy of step 4 of 7 is kept: 0.700 (at the end 0.300) by task success")


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = random.Random(0)
    rows = [{"text": f"{rng.choice('abcdefgh')} {word}", "label": word} for word in WORDS * 80]
    file = tmp_path_factory.mktemp("data") / "colours.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def perverse(directory: Path, texts: Path, **more: Any) -> Path:
    """A reward for what is wrong: the policy begins knowing better than it will in the end."""
    (directory / "perverse.py").write_text(
        "def reward(prompts, completions, success, **columns):\n    return [-float(each) for each in success]\n"
    )
    fields = {
        "data.train": texts, "data.rows_per_label": "null", "warm_start.epochs": 8, "warm_start.learning_rate": 3e-3,
        "policy.hidden_size": 32, "policy.layers": 1, "policy.heads": 2, "policy.max_length": 32,
        "training.steps": 20, "training.prompts_per_step": 4, "training.num_generations": 4,
        "training.learning_rate": 1e-2, "objective.lambda_sup": 0, "env.eval_episodes": 12, "reward.kind": "function",
        "reward.function": f"{directory / 'perverse.py'}:reward", "output_dir": directory, **more,
    }  # fmt: skip
    return run(load_recipe("customer-intents", [f"--{key}={value}" for key, value in fields.items()])).parent


def test_a_policy_that_unlearns_is_kept_as_it_was(tmp_path: Path, texts: Path) -> None:
    last = load_summary(perverse(tmp_path, texts, name="last"))
    kept_run = perverse(tmp_path, texts, name="kept", **{"training.keep_best": 1})
    kept = load_summary(kept_run)
    assert last[0] == kept[0], "the same warm start"
    assert last[1]["accuracy"][0] < 0.5 < kept[1]["accuracy"][0]
    outputs = read_outputs(lambda_directory(kept_run, 0.0))
    values = {int(step): value for step, value in outputs["best"]["values"].items()}
    assert list(values) == list(range(1, 21)) and values[20] < outputs["best"]["value"] == max(values.values())
    assert outputs["best"]["step"] == max(values, key=lambda step: (values[step], -step))
    assert f"the policy of step {outputs['best']['step']} of 20 is kept" in (kept_run / "report.html").read_text()


def test_choosing_leaves_the_training_as_it_was_and_a_stopped_one_goes_on_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "stopping.py").write_text(STOPPING)
    fields = {
        "reward__kind": "function", "reward__function": f"{tmp_path / 'stopping.py'}:reward",
        "objective__lambda_sup": 0.3, "training__steps": 5, "training__trl__save_steps": 1,
    }  # fmt: skip
    place = lambda_directory(Path("customer-service"), 0.3)

    def history(name: str) -> list[Any]:
        logs = read_outputs(tmp_path / name / place)["history"]
        return [(log["objective/return"], log["loss"], log["grad_norm"]) for log in logs[:5]]

    small_run("customer-service", tmp_path / "plain", **fields)
    small_run("customer-service", tmp_path / "whole", **fields, training__keep_best=2)
    assert history("plain") == history("whole"), "no draw of the training's was taken"
    monkeypatch.setenv("STOP_AT", str(tmp_path / "calls"))
    with pytest.raises(Interrupted):
        small_run("customer-service", tmp_path / "stopped", **fields, training__keep_best=2)
    small_run("customer-service", tmp_path / "stopped", **fields, training__keep_best=2)
    assert history("whole") == history("stopped")
    whole, stopped = (read_outputs(tmp_path / name / place)["best"] for name in ("whole", "stopped"))
    assert whole == stopped and list(map(int, whole["values"])) == [2, 4, 5]
    weights = [load_file(tmp_path / name / place / "model.safetensors") for name in ("whole", "stopped")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_how_many_episodes_choose_is_an_input_where_any_do() -> None:
    def inputs(*more: str) -> dict[str, Any]:
        return policy_inputs(load_recipe("customer-service", more), 0.0)

    assert inputs("--env.eval_episodes=5") == inputs()
    chosen = inputs("--training.keep_best=5")
    assert inputs("--training.keep_best=5", "--env.eval_episodes=5") != chosen != inputs()


def test_rows_to_choose_by_must_be_left(tmp_path: Path, texts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["run", "customer-intents", "--data.train", str(texts), "--training.keep_best", "5",
                 "--env.eval_episodes", "24", "--output_dir", str(tmp_path)]  # fmt: skip
    assert main(arguments) == 2
    assert (
        "env.eval_episodes is 24, and there are 24 held-out rows: expected at least twice as many"
        in capsys.readouterr().err
    )
    assert main([*arguments, "--training.keep_best=-1"]) == 2
    assert "training.keep_best is -1: expected a finite number of at least 0" in capsys.readouterr().err


def test_a_training_that_ends_before_anything_was_judged_keeps_its_last_policy(tmp_path: Path) -> None:
    settings = {"training__keep_best": 4, "training__steps": 6, "training__kl_every": 1, "training__kl_limit": 1e-9}
    run = small_run("customer-service", tmp_path, objective__lambda_sup=0.5, **settings).parent
    outputs = read_outputs(lambda_directory(run, 0.5))
    assert outputs["history"][-1]["step"] < 4
    assert list(outputs["best"]["values"]) == [str(outputs["best"]["step"])]
