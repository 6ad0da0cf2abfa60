"""Whole runs, small: what they write, what they do not do twice, and that a stopped one goes on exactly."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small import small_policy
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

import rlobj.reward_stage as reward_stage
from rlobj.cli import main
from rlobj.pipeline import run
from rlobj.recipes import load_recipe
from rlobj.results import lambda_directory, load_summary
from rlobj.runs import read_outputs
from rlobj.stages import Interrupted

SMALL = {
    "policy.hidden_size": 32, "policy.layers": 1, "policy.heads": 2, "env.eval_episodes": 8,
    "data.demonstrations": 60, "warm_start.epochs": 1, "reward.pairs": 40, "training.steps": 2,
    "training.prompts_per_step": 2, "training.num_generations": 4, "training.max_reply_tokens": 8,
    "objective.supervised_batch_size": 4,
}  # fmt: skip


def small_run(recipe: str, directory: Path, **fields: object) -> Path:
    settings = {**SMALL, "output_dir": directory, **{key.replace("__", "."): value for key, value in fields.items()}}
    return run(load_recipe(recipe, [f"--{key}={value}" for key, value in settings.items()]))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return small_run("customer-service", tmp_path_factory.mktemp("runs")).parent


def test_everything_is_an_ordinary_directory(finished):
    for policy in ("warm_start", "policies/lambda=0", "policies/lambda=0.3"):
        assert (finished / policy / "model.safetensors").is_file()
        assert AutoModelForCausalLM.from_pretrained(finished / policy).config.vocab_size == len(
            AutoTokenizer.from_pretrained(finished / policy)
        )
    assert AutoModelForSequenceClassification.from_pretrained(finished / "reward_model").config.num_labels == 1
    assert not list(finished.rglob("*.bin")), "training_args.bin and the like are pickles"
    assert not (finished / "checkpoints" / "warm_start").exists()


def test_an_ensemble_of_normalised_reward_models(tmp_path, monkeypatch, capsys):
    settings = {"reward__ensemble": 2, "reward__normalise": "true", "objective__lambda_sup": "[0.0]"}
    train, calls = reward_stage.train_reward_model, []

    def once(*args, **kwargs):
        calls.append(args[4].name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return train(*args, **kwargs)

    monkeypatch.setattr(reward_stage, "train_reward_model", once)
    with pytest.raises(KeyboardInterrupt):
        small_run("customer-service", tmp_path, **settings)
    report = small_run("customer-service", tmp_path, **settings)
    assert calls == ["member-0", "member-1", "member-1"], "a member that was done is not trained again"
    members = [report.parent / "reward_model" / f"member-{n}" for n in range(2)]
    weights = [load_file(member / "model.safetensors") for member in members]
    assert any((weights[0][name] != weights[1][name]).any() for name in weights[0])
    for member in members:
        fitted = json.loads((member / "config.json").read_text())["reward_normalisation"]
        assert fitted["std"] > 0
    assert any(line.count("prefers the better of two") == 2 for line in capsys.readouterr().out.splitlines())
    text = report.read_text(encoding="utf-8")
    assert "return in training against √KL" in text and "task success in training against √KL" in text
    again = small_run("customer-service", tmp_path, reward__model=report.parent / "reward_model", name="again",
                      reward__kappa=0.5, objective__lambda_sup="[0.0]")  # fmt: skip
    assert load_summary(again.parent)[1]["return"]


def rated_file(path: Path, rating: str, values: list[object]) -> str:
    said = ["hello", "i need a repair", "where are you", "a new phone", "bye", "the price ?", "open today ?", "help"]
    rows = [{"prompt": said[n % 8], "completion": f"answer {n}", rating: values[n % len(values)]} for n in range(48)]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("rating", "values", "words", "settings"),
    [
        ("score", [0.5, 2, -1], "correlation with the scores", {}),
        ("label", [0, 1, 1], "label right", {}),
        ("label", ["good", "bad", "so so"], "label right", {"reward__kwargs__label": "good"}),
        pytest.param(
            "label", [0, 1], "label right", {"reward__lora": "{r: 2}"},
            marks=pytest.mark.skipif(find_spec("peft") is None, reason="needs the extra 'peft'"),
        ),
    ],
)  # fmt: skip
def test_reward_models_from_ratings(tmp_path, capsys, rating, values, words, settings):
    rated = rated_file(tmp_path / "rated.jsonl", rating, values)
    report = small_run(
        "customer-service", tmp_path, data__rated=rated, objective__lambda_sup="[0.0]",
        **settings,
    )  # fmt: skip
    assert words in capsys.readouterr().out
    assert load_summary(report.parent)[1]["return"]
    AutoModelForSequenceClassification.from_pretrained(report.parent / "reward_model")
    assert not (report.parent / "reward_model" / "adapter_config.json").exists()


def test_bad_ratings_are_told_before_anything_is_trained(tmp_path):
    names = rated_file(tmp_path / "names.jsonl", "label", ["good", "bad"])
    with pytest.raises(ValueError, match=r"labels bad, good and reward\.kwargs\.label is None"):
        small_run("customer-service", tmp_path, data__rated=names)
    (tmp_path / "none.jsonl").write_text('{"prompt": "a", "completion": "b"}\n', encoding="utf-8")
    with pytest.raises(ValueError, match="expected messages, or prompt and completion, with score or label"):
        small_run("customer-service", tmp_path, data__rated=tmp_path / "none.jsonl")
    with pytest.raises(ValueError, match="both given"):
        small_run("customer-service", tmp_path, data__rated=names, data__preferences=names)
    assert not list(tmp_path.glob("customer-service/*"))


def test_the_table_holds_all_measures_with_intervals(finished):
    table = load_summary(finished)
    assert [row["name"] for row in table] == ["warm start", "λ = 0", "λ = 0.3"]
    for row in table:
        for metric in ("success", "return", "turns", "ell", "kl"):
            mean, low, high = row[metric]
            assert low <= mean <= high
    assert table[0]["kl"] == [0, 0, 0]
    assert table[1]["kl"][0] > 0


def test_gradient_balance_is_logged(finished):
    history = json.loads((finished / "policies" / "lambda=0.3" / "stage.json").read_text())["outputs"]["history"]
    first = history[0]
    assert first["gradient/ratio"] > 0
    assert -1 <= first["gradient/cosine"] <= 1
    assert first["objective/L"] == pytest.approx(-first["objective/return"] + 0.3 * first["objective/ell"], abs=1e-5)


def test_the_report_is_one_file(finished):
    text = (finished / "report.html").read_text(encoding="utf-8")
    assert "λ = 0.3" in text
    assert "<svg" in text
    assert 'src="http' not in text
    assert 'href="http' not in text


def test_a_run_again_trains_nothing(finished, capsys):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*.safetensors")}
    small_run("customer-service", finished.parent)
    said = capsys.readouterr().out
    assert said.count("done before, inputs unchanged") == 5
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*.safetensors")} == before


def test_another_lambda_trains_that_one_alone(finished, capsys):
    small_run("customer-service", finished.parent, objective__lambda_sup="[0.0, 0.3, 0.5]")
    said = capsys.readouterr().out
    assert said.count("done before, inputs unchanged") == 4
    assert "λ = 0.5: 2 steps in" in said


def test_more_episodes_of_evaluation_train_nothing(finished, capsys):
    small_run("customer-service", finished.parent, env__eval_episodes=9)
    assert capsys.readouterr().out.count("done before, inputs unchanged") == 4


def test_a_reward_model_alone_is_what_a_run_goes_on_from(tmp_path, capsys):
    settings = [f"--{key}={value}" for key, value in {**SMALL, "output_dir": tmp_path}.items()]
    assert main(["reward", "customer-service", *settings]) == 0
    folder = tmp_path / "customer-service"
    made = sorted(path.name for path in folder.iterdir())
    assert made == ["checkpoints", "config.yaml", "reward_model", "warm_start"]
    assert f"reward model  {folder / 'reward_model'}" in capsys.readouterr().out
    assert main(["run", "customer-service", *settings]) == 0
    assert capsys.readouterr().out.count("done before, inputs unchanged") == 2
    assert main(["reward", "movie-booking", f"--output_dir={tmp_path}"]) == 2
    assert "gives no preference pairs" in capsys.readouterr().err


def test_an_edited_reward_is_another_one(tmp_path, capsys):
    file = tmp_path / "mine.py"
    fields = {"reward__kind": "function", "reward__function": f"{file}:reward", "objective__lambda_sup": 0.0}
    for value in ("0.0", "0.0", "1.0 * len(str(c))"):
        file.write_text(f"def reward(prompts, completions, **columns):\n    return [{value} for c in completions]\n")
        small_run("customer-service", tmp_path, **fields)
    assert capsys.readouterr().out.count("policy: −R + λℓ with λ = 0: done before") == 1


STOPPING = """
import os, signal
from pathlib import Path

def reward(prompts, completions, turns, **columns):
    if os.environ.get("STOP_AT"):
        counter = Path(os.environ["STOP_AT"])
        calls = int(counter.read_text()) + 1 if counter.exists() else 1
        counter.write_text(str(calls))
        if calls == 3:
            os.kill(os.getpid(), signal.SIGTERM)
    return [0.1 * len(c[0]["content"]) - t for c, t in zip(completions, turns)]
"""


@pytest.mark.parametrize("lambda_sup", [0.3, "lagrange:factor=0.5,start=0.1,smoothing=0.5"])
def test_a_stopped_run_goes_on_exactly(tmp_path, monkeypatch, lambda_sup):
    (tmp_path / "stopping.py").write_text(STOPPING)
    fields = {
        "reward__kind": "function",
        "reward__function": f"{tmp_path / 'stopping.py'}:reward",
        "objective__lambda_sup": lambda_sup,
        "training__steps": 5,
    }
    small_run("customer-service", tmp_path / "whole", **fields)
    monkeypatch.setenv("STOP_AT", str(tmp_path / "calls"))
    with pytest.raises(Interrupted, match="what was done is kept in"):
        small_run("customer-service", tmp_path / "stopped", **fields)
    policy = lambda_directory(Path("customer-service"), lambda_sup)
    place = policy / "model.safetensors"
    assert not (tmp_path / "stopped" / place).exists()
    small_run("customer-service", tmp_path / "stopped", **fields)
    whole, stopped = (load_file(tmp_path / name / place) for name in ("whole", "stopped"))
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)
    tables = [load_summary(tmp_path / name / "customer-service") for name in ("whole", "stopped")]
    assert tables[0] == tables[1]
    lambdas = [
        [log["objective/lambda_sup"] for log in read_outputs(tmp_path / name / policy)["history"][:5]]
        for name in ("whole", "stopped")
    ]
    assert lambdas[0] == lambdas[1] and (len(set(lambdas[0])) == 5) == isinstance(lambda_sup, str)


def test_a_run_stopped_among_shared_rollouts_goes_on_exactly(tmp_path, monkeypatch):
    """Two optimiser steps learn from each generation; the signal comes while the third is made."""
    (tmp_path / "stopping.py").write_text(STOPPING)
    fields = {
        "reward__kind": "function",
        "reward__function": f"{tmp_path / 'stopping.py'}:reward",
        "objective__lambda_sup": 0.3,
        "training__steps": 8,
        "training__trl__num_iterations": 2,
        "training__trl__save_steps": 3,
    }
    small_run("customer-service", tmp_path / "whole", **fields)
    monkeypatch.setenv("STOP_AT", str(tmp_path / "calls"))
    with pytest.raises(Interrupted):
        small_run("customer-service", tmp_path / "stopped", **fields)
    kept = [path.name for path in (tmp_path / "stopped").rglob("checkpoint-*")]
    assert sorted(kept) == ["checkpoint-4", "checkpoint-6"], "3 and 5 lie among shared rollouts"
    small_run("customer-service", tmp_path / "stopped", **fields)
    place = lambda_directory(Path("customer-service"), 0.3) / "model.safetensors"
    whole, stopped = (load_file(tmp_path / name / place) for name in ("whole", "stopped"))
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)


def test_a_checkpoint_that_was_not_written_to_its_end_is_not_gone_on_from(tmp_path, monkeypatch, capsys):
    (tmp_path / "stopping.py").write_text(STOPPING)
    fields = {
        "reward__kind": "function",
        "reward__function": f"{tmp_path / 'stopping.py'}:reward",
        "objective__lambda_sup": 0.3,
        "training__steps": 5,
        "training__trl__save_steps": 1,
    }
    small_run("customer-service", tmp_path / "whole", **fields)
    monkeypatch.setenv("STOP_AT", str(tmp_path / "calls"))
    with pytest.raises(Interrupted):
        small_run("customer-service", tmp_path / "killed", **fields)
    newest = max((tmp_path / "killed").rglob("checkpoint-*"))
    assert newest.name == "checkpoint-3"
    (newest / "whole").unlink()
    os.truncate(newest / "model.safetensors", 100)
    small_run("customer-service", tmp_path / "killed", **fields)
    said = capsys.readouterr().out
    assert "checkpoint-3 was not written to its end" in said and "going on from checkpoint-2" in said
    place = lambda_directory(Path("customer-service"), 0.3) / "model.safetensors"
    whole, killed = (load_file(tmp_path / name / place) for name in ("whole", "killed"))
    assert all(torch.equal(whole[name], killed[name]) for name in whole)


KILLS = 30


@pytest.mark.slow
def test_a_run_killed_at_any_moment_goes_on_exactly(tmp_path):
    """kill -9 at random moments, again and again, until the run has come to its end."""
    settings = {**SMALL, "training.steps": 6, "training.trl.save_steps": 1, "objective.lambda_sup": 0.3}
    command = [sys.executable, "-m", "rlobj", "run", "customer-service"]
    command += [f"--{key}={value}" for key, value in settings.items()]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}

    def start(name: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([*command, f"--output_dir={tmp_path / name}"], env=environment)

    began = time.monotonic()
    assert start("whole").wait() == 0
    takes = time.monotonic() - began
    rng, kills = random.Random(0), 0
    while kills < KILLS:
        run_again = start("killed")
        try:
            assert run_again.wait(timeout=rng.uniform(0.4, 1.0) * takes) == 0
        except subprocess.TimeoutExpired:
            run_again.kill()
            run_again.wait()
            kills += 1
            continue
        if kills < KILLS:  # it was done before it was killed often enough: once more from the beginning
            compare_policies(tmp_path)
            shutil.rmtree(tmp_path / "killed")
    assert start("killed").wait() == 0
    compare_policies(tmp_path)


def compare_policies(directory: Path) -> None:
    place = Path("customer-service/policies/lambda=0.3/model.safetensors")
    whole, killed = (load_file(directory / name / place) for name in ("whole", "killed"))
    assert all(torch.equal(whole[name], killed[name]) for name in whole)


def test_what_trl_refuses_is_refused_before_anything_is_trained(tmp_path):
    with pytest.raises(ValueError, match="load_best_model_at_end"):
        small_run("customer-service", tmp_path, training__trl__load_best_model_at_end="true")
    assert not (tmp_path / "customer-service" / "warm_start").exists()


def test_a_reward_model_is_trained_without_fsdp(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match="begin with `rlobj reward RECIPE`"):
        small_run("customer-service", tmp_path)
    assert not list(tmp_path.glob("*/*"))


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def test_classification_from_a_file(tmp_path):
    rows = [
        {"text": f"{a} box is {c}", "label": c}
        for a in ("the", "my", "your", "our", "her")
        for c in ("red", "blue", "绿")
    ]
    data = write_jsonl(tmp_path / "intents.jsonl", rows * 3)
    report = small_run("banking-intents", tmp_path, data__train=data, data__rows_per_label=2)
    assert "6 of them with their label for ℓ" in report.read_text(encoding="utf-8")
    table = load_summary(report.parent)
    assert {"success", "accuracy", "ell", "kl"} <= table[1].keys()
    model = AutoModelForSequenceClassification.from_pretrained(report.parent / "policies" / "lambda=0.1")
    assert sorted(model.config.id2label.values()) == ["blue", "red", "绿"]


def test_corpus_of_dialogues_from_a_file(tmp_path):
    words = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta"]
    rows = [
        {"messages": [{"role": "user", "content": f"say {w} {n}"}, {"role": "assistant", "content": f"{w} it is {n}"}]}
        for w in words
        for n in range(5)
    ]
    data = write_jsonl(tmp_path / "corpus.jsonl", [*rows, {"messages": [{"role": "user", "content": "hello?"}]}])
    report = small_run("corpus-dialogue", tmp_path, data__train=data)
    table = load_summary(report.parent)
    assert "success" not in table[0], "a corpus knows no task success"
    assert {"return", "ell", "kl"} <= table[1].keys()
    assert "1 dialogues: 1 without an assistant" in report.read_text(encoding="utf-8")


def test_an_environment_of_somebody_elses_without_any_labels(tmp_path):
    model = small_policy(tmp_path / "model")
    report = small_run(
        "environment", tmp_path, env__id="envs.adapters:adapters/FromGymnasium-v0", policy__model=model,
        warm_start__epochs=0, env__kwargs='{"env_id": "rlobj/CustomerService-v0"}', policy__max_length=300,
    )  # fmt: skip
    table = load_summary(report.parent)
    assert [row["name"] for row in table] == ["warm start", "λ = 0"] and "ell" not in table[0]
    untouched = [load_file(path / "model.safetensors") for path in (model, report.parent / "warm_start")]
    assert all(torch.equal(weights, untouched[1][name]) for name, weights in untouched[0].items())
    with pytest.raises(ValueError, match=r"policy.model is null, and without labelled data"):
        small_run("environment", tmp_path, env__id="envs.adapters:adapters/FromGymnasium-v0", warm_start__epochs=0)


def test_customer_service_learns_from_dialogues_of_the_users_own(tmp_path):
    rows = [
        {"messages": [{"role": "user", "content": f"i need plan {n}"}, {"role": "assistant", "content": "which one ?"}]}
        for n in range(20)
    ]
    data = write_jsonl(tmp_path / "mine.jsonl", rows)
    report = small_run("customer-service", tmp_path, data__train=data, reward__kind="environment")
    assert "18 to train on, 2 held out" in report.read_text(encoding="utf-8")
    assert {"success", "ell"} <= load_summary(report.parent)[1].keys()


@pytest.mark.slow
def test_two_processes_run_the_pipeline_together(tmp_path):
    settings = [f"--{key}={value}" for key, value in {**SMALL, "output_dir": tmp_path}.items()]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*launch, "-m", "rlobj", "run", "customer-service", *settings],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("[1/6] warm start") == 1, "one process speaks"
    assert len(load_summary(tmp_path / "customer-service")) == 3
