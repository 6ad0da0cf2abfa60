"""Several processes: one that fails takes the others with it, within a bound; all verbs that train do as one does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from safetensors.torch import load_file
from small import fixed_reward, fixed_rollout, small_args, small_policy, small_prompts, small_rows
from test_fitting import rows
from transformers import BertForMaskedLM

import rlobj
from rlobj.checkpoints import newest_whole_checkpoint
from rlobj.cli import main
from rlobj.policies import load_tokenizer, make_encoder, make_encoder_tokenizer, save_policy
from rlobj.results import load_summary
from rlobj.trainer import ObjectiveTrainer

HERE = Path(__file__).parent


def launched(script: str, *arguments: object, timeout: float, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a script of this folder in two processes of one training."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    return subprocess.run(
        [*launch, str(HERE / script), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path]), "OMP_NUM_THREADS": "1"} | environment,
        capture_output=True, text=True, timeout=timeout, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("how", "raised_by_the_other"),
    [("raises", "Connection closed by peer"), pytest.param("hangs", "Timed out waiting", marks=pytest.mark.slow)],
)
def test_one_process_fails_and_no_other_waits_for_ever(tmp_path, how, raised_by_the_other):
    """FAULTS row 30; where one hangs, the bound is the timeout of the processes, here 10 seconds."""
    directory, began = small_policy(tmp_path / "policy"), time.monotonic()
    done = launched("failing_ranks.py", directory, tmp_path / "out", how, timeout=300)
    assert done.returncode != 0
    raised = {line[8]: line for line in done.stdout.splitlines() if line.startswith("process ") and "raised" in line}
    assert raised_by_the_other in raised["0"]
    assert how == "hangs" or raised["1"] == "process 1 raised ZeroDivisionError: this process alone"
    when = float(done.stdout.split("failing at ")[1].split()[0])
    assert time.monotonic() - when < 60 and began < when
    assert newest_whole_checkpoint(tmp_path / "out")[0] == tmp_path / "out/checkpoint-2", "what was trained is kept"


@pytest.mark.slow
@pytest.mark.parametrize("what", ["kl_in", "target_kl"])
def test_two_processes_agree_on_the_kl(tmp_path, what):
    """A penalty that is steered, and optimiser steps that are left out: both are of all processes' episodes, and both
    processes end with the same policy, though each has played episodes of its own."""
    done = launched("kl_of_ranks.py", small_policy(tmp_path / "policy"), tmp_path / "out", what, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = {line[8]: json.loads(line.partition(": ")[2]) for line in done.stdout.splitlines() if "process " in line}
    one, other = ranks["0"], ranks["1"]
    assert one["weights"] == other["weights"] and one["moved"] > 0
    assert one["played"] != other["played"], "or there would be nothing to agree on"
    assert one["beta"] == other["beta"] and one["left_out"] == other["left_out"]
    if what == "kl_in":
        assert len(set(one["beta"])) > 1, "it is steered"
        assert max(map(abs, one["penalty"])) > 0
    else:
        assert 0 < sum(one["left_out"]) < len(one["left_out"]) * 3


LAUNCH = Path(rlobj.__file__).parent / "launch"


def environment_of(name: str) -> dict[str, str]:
    """What `accelerate launch` tells its processes by a file of rlobj/launch."""
    parser = launch_command_parser()
    given, *_ = _validate_launch_command(
        parser.parse_args(["--config_file", str(LAUNCH / name), "-m", "rlobj", "run", "customer-service"])
    )
    assert given.num_processes == 2 and given.mixed_precision == "no"
    if given.use_deepspeed:
        given.deepspeed_fields_from_accelerate_config = ""
        return prepare_deepspeed_cmd_env(given)[1]
    return prepare_multi_gpu_env(given)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("gpus.yaml", {}),
        ("fsdp.yaml", {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT"}),
        ("deepspeed.yaml", {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}),
    ],
)
def test_accelerate_reads_the_launch_files(name, told):
    environment = environment_of(name)
    assert {key: environment.get(key) for key in told} == told
    strangers = {"ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"} - told.keys()
    assert not any(environment.get(key) == "true" for key in strangers)
    assert {path.name for path in LAUNCH.iterdir()} == {"gpus.yaml", "fsdp.yaml", "deepspeed.yaml"}


@pytest.mark.slow
def test_split_parameters_learn_what_whole_ones_do(tmp_path):
    """FSDP, with ℓ and a resume; and episodes that each process plays at a length of its own."""
    directory = small_policy(tmp_path / "policy")
    told = {key: value for key, value in environment_of("fsdp.yaml").items() if "FSDP" in key}
    done = launched("split_parameters.py", directory, tmp_path, timeout=300, **told)
    assert done.returncode == 0, done.stderr[-3000:]
    turns = {line[8]: line.partition(": ")[2] for line in done.stdout.splitlines() if "turns in 2 steps" in line}
    assert turns["0"].startswith("[2, 2]") and not turns["1"].startswith("[2, 2]"), "not the same forward passes"
    for words in ("estimator is ppo: FSDP", "surgery is 'pcgrad', and FSDP", "supervised_batch_size is 1 for 2 parts"):
        assert done.stdout.count(words) == 2

    assert load_summary(tmp_path / "customer-service")[1]["name"] == "λ = 0.3", "a whole run, of a recipe"
    args = small_args(tmp_path / "one", per_device_train_batch_size=16, max_steps=2, optim="sgd",
                      optim_args="momentum=0.9")  # fmt: skip
    tokenizer = load_tokenizer(directory)
    one = ObjectiveTrainer(
        str(directory), fixed_reward, args, small_prompts(), rollout_func=fixed_rollout, processing_class=tokenizer,
        supervised=small_rows(tokenizer), supervised_batch_size=7, lambda_sup=0.7,
    )  # fmt: skip
    before = load_file(directory / "model.safetensors")
    one.train()
    split, again = (load_file(tmp_path / f"fixed-{name}" / "model.safetensors") for name in ("end", "again"))
    for name, weights in split.items():
        assert torch.equal(weights, again[name]), "a resume is exact"
        torch.testing.assert_close(weights, one.model.state_dict()[name], rtol=1e-4, atol=1e-6)
        assert name not in before or not torch.equal(weights, before[name]), "it has learned"


def commands(runs: Path, data: Path, **split: int) -> list[list[str]]:
    """Supervised and self-supervised trainings of the same global batches, and what is trained on after them."""

    def told(settings: dict[str, Any], section: str) -> list[str]:
        batch = {"batch_size": 4, "epochs": 2, "learning_rate": 0.3, "trainer.optim": "sgd"}
        named = {f"{section}.{name}": value for name, value in {**batch, **split}.items()}
        return [f"--{name}={value}" for name, value in {"output_dir": runs, **named, **settings}.items()]

    model = {"policy.model": data / "encoder", "policy.max_length": 32}
    files = {f"data.{part}": data / f"{part}.jsonl" for part in ("train", "validation", "test")}
    words = {"task": "token-classification", "data.text_column": "words", "data.label_column": "tags"}
    texts = {f"text.{part}": data / f"{part}.jsonl" for part in ("train", "validation")}
    both = {"objective.next_sentence": "true", "objective.lambda_sup": 0.5, "objective.supervised_batch_size": 7}
    more = ["--data", str(data / "new.jsonl"), "--lambda_sup", "0", "1", "lagrange:factor=0.5,start=0.5"]
    return [
        ["fit", "bert-classifier", *told({"name": "texts", **model, **files}, "fit")],
        ["fit", "bert-classifier", *told({"name": "words", **model, **files, **words}, "fit")],
        ["pretrain", "masked", *told({"name": "masked", **model, **files, **texts, **both}, "pretrain")],
        ["continue", str(runs / "texts"), *more, *told({}, "fit")],
    ]


@pytest.mark.slow
def test_two_processes_fit_pretrain_and_continue_as_one_does(tmp_path):
    """The same batches in two parts by one process, and by two: the same weights, and the same figures of test data
    that no number of processes divides."""
    sizes = {"train": 40, "validation": 17, "test": 23, "new": 50}
    for part, size in sizes.items():
        made = [{**row, "label": f"{part} {row['label']}" if part == "new" else row["label"]} for row in rows(size)]
        (tmp_path / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
    texts = [row["text"] for row in rows(40)]
    tokenizer = make_encoder_tokenizer(texts, vocab_size=350, max_length=32)
    encoder = make_encoder(tokenizer, ["a"], hidden_size=16, layers=1, heads=2, max_length=32, seed=0,
                           head=BertForMaskedLM)  # fmt: skip
    encoder.config.hidden_dropout_prob = encoder.config.attention_probs_dropout_prob = 0.0
    save_policy(encoder, tokenizer, tmp_path / "encoder")
    one, two = tmp_path / "one", tmp_path / "two"
    for command in commands(one, tmp_path, **{"trainer.gradient_accumulation_steps": 2}):
        assert main(command) == 0
    done = launched("verbs_of_ranks.py", json.dumps(commands(two, tmp_path)), timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("[1/1] fit: text-classification") == 1, "one of them speaks"
    found = sorted(path.relative_to(one) for path in one.rglob("model.safetensors"))
    assert len(found) == 2 + 2 + 3, "a classifier beside the masked model, and one for each λ"
    for path in found:
        here, there = load_file(one / path), load_file(two / path)
        for name, weights in here.items():
            torch.testing.assert_close(weights, there[name], rtol=1e-3, atol=1e-5, msg=f"{path}: {name}")
    for path in one.glob("*/summary.json"):
        tables = [json.loads((runs / path.relative_to(one)).read_text())["table"] for runs in (one, two)]
        assert str(tables[0]).count("[") > 4
        assert figures_of(tables[0]) == pytest.approx(figures_of(tables[1]), rel=1e-3, abs=1e-4)


def figures_of(table: list[dict[str, Any]]) -> list[float]:
    """All the numbers of a summary."""
    return [x for row in table for value in row.values() if not isinstance(value, str) for x in value if x is not None]
