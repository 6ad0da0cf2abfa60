"""Checkpoints under bad treatment: cut, garbled, robbed of files, on a full disk, killed while they are written."""

from __future__ import annotations

import errno
import json
import os
import pickle
import resource
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small import fixed_reward, fixed_rollout, small_args, small_policy, small_prompts, small_rows
from test_pipeline import SMALL, STOPPING

from rlobj.checkpoints import (
    CheckpointDamaged,
    damage,
    mark_whole,
    missing_state,
    newest_whole_checkpoint,
    require_exact,
    telling_of_a_full_disk,
)
from rlobj.cli import main
from rlobj.policies import load_causal, load_tokenizer
from rlobj.trainer import ObjectiveTrainer

HERE = Path(__file__).parent
FILES = ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json")


def checkpoint(folder: Path, step: int) -> Path:
    place = folder / f"checkpoint-{step}"
    place.mkdir(parents=True)
    for name in FILES:
        (place / name).write_text(f"{name} of {step}" * 100)
    mark_whole(place, 1)
    return place


def cut(path: Path) -> None:
    os.truncate(path, 10)


def garble(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[7] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("harm", [cut, garble])
@pytest.mark.parametrize("name", FILES)
def test_the_one_before_takes_the_place_of_a_damaged_one(tmp_path, harm, name):
    """FAULTS row 15."""
    old, new = checkpoint(tmp_path, 9), checkpoint(tmp_path, 10)
    assert newest_whole_checkpoint(tmp_path) == (new, {})
    harm(new / name)
    found, damaged = newest_whole_checkpoint(tmp_path)
    assert found == old and damaged == {new: f"is damaged: {name} is not as it was written (its checksum differs)"}
    with pytest.raises(CheckpointDamaged, match="go on from an older one"):
        require_exact(new, 1)


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_missing_state_is_refused_not_made_up(tmp_path, name):
    """FAULTS row 16; Trainer goes on without a word."""
    place = checkpoint(tmp_path, 1)
    require_exact(place, 1)
    (place / name).unlink()
    assert damage(place) is None and len(missing_state(place)) == 1
    with pytest.raises(CheckpointDamaged, match=rf"lacks the .* \({name.partition('.')[0]}\*\): put it back"):
        require_exact(place, 1)


def test_missing_weights_and_other_processes(tmp_path):
    place = checkpoint(tmp_path, 1)
    with pytest.raises(CheckpointDamaged, match="was written by 1 processes, and here are 2"):
        require_exact(place, 2)
    (place / "model.safetensors").unlink()
    assert damage(place) == "lacks model.safetensors"
    (place / "whole").write_text("")
    assert damage(place) == "was not written to its end"


def trainer_of(tmp_path, directory, **fields):
    tokenizer = load_tokenizer(tmp_path / "policy")
    args = small_args(tmp_path / directory, save_strategy="steps", save_steps=1, **fields)
    return ObjectiveTrainer(
        str(tmp_path / "policy"), fixed_reward, args, small_prompts(4), rollout_func=fixed_rollout,
        processing_class=tokenizer, supervised=small_rows(tokenizer), supervised_batch_size=4, lambda_sup=0.5,
    )  # fmt: skip


def test_a_trainer_refuses_too_and_goes_on_when_told(tmp_path):
    small_policy(tmp_path / "policy")
    trainer_of(tmp_path, "out", max_steps=2).train()
    (tmp_path / "out/checkpoint-1/optimizer.pt").unlink()
    again = trainer_of(tmp_path, "out", max_steps=2)
    with pytest.raises(CheckpointDamaged, match="lacks the optimiser"):
        again.train(resume_from_checkpoint=str(tmp_path / "out/checkpoint-1"))
    again.exact_resume = False
    again.train(resume_from_checkpoint=str(tmp_path / "out/checkpoint-1"))
    assert again.state.global_step == 2


class Malicious:
    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self):
        return Path.touch, (self.sentinel,)


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"])
def test_pickles_with_code_in_them_are_not_run(tmp_path, name):
    """FAULTS row 19; the marker is made anew, as by somebody who can write checksums."""
    small_policy(tmp_path / "policy")
    trainer_of(tmp_path, "out", max_steps=2).train()
    place, sentinel = tmp_path / "out/checkpoint-1", tmp_path / "sentinel"
    torch.save(Malicious(sentinel), place / name)
    mark_whole(place, 1)
    again = trainer_of(tmp_path, "out", max_steps=2)
    refused = nullcontext() if name == "training_args.bin" else pytest.raises(pickle.UnpicklingError)
    with refused:  # the arguments are not read at all
        again.train(resume_from_checkpoint=str(place))
    assert not sentinel.exists()


def test_a_policy_that_is_a_pickle_is_refused(tmp_path):
    directory = small_policy(tmp_path / "policy")
    (directory / "model.safetensors").unlink()
    torch.save(Malicious(tmp_path / "sentinel"), directory / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        load_causal(directory)
    assert not (tmp_path / "sentinel").exists()


def test_a_policy_that_brings_code_is_refused(tmp_path):
    """FAULTS row 20: nobody is asked, and nothing of it is imported."""
    directory = small_policy(tmp_path / "policy")
    config = json.loads((directory / "config.json").read_text())
    code = {"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"}
    (directory / "config.json").write_text(json.dumps({**config, "model_type": "mine", "auto_map": code}))
    (directory / "mine.py").write_text(f"open({str(tmp_path / 'sentinel')!r}, 'w')")
    with pytest.raises(ValueError, match="trust_remote_code"):
        load_causal(directory)
    assert not (tmp_path / "sentinel").exists()


def test_a_checkpoint_of_another_model_names_what_is_missing(tmp_path):
    """FAULTS row 27: no part of a policy is ever random without a word."""
    directory = small_policy(tmp_path / "policy")
    weights = load_file(directory / "model.safetensors")
    del weights["model.layers.0.mlp.up_proj.weight"]
    save_file(weights, directory / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks the weights \['model.layers.0.mlp.up_proj.weight'\]"):
        load_causal(directory)


def test_a_run_with_a_garbled_and_one_with_a_robbed_checkpoint(tmp_path, monkeypatch, capsys):
    (tmp_path / "stopping.py").write_text(STOPPING)
    settings = {
        **SMALL, "training.steps": 4, "training.trl.save_steps": 1, "objective.lambda_sup": 0.3,
        "reward.kind": "function", "reward.function": f"{tmp_path / 'stopping.py'}:reward",
    }  # fmt: skip

    def typed(name: str, *more: str) -> int:
        given = [f"--{key}={value}" for key, value in {**settings, "output_dir": tmp_path / name}.items()]
        return main(["run", "customer-service", *given, *more])

    monkeypatch.setenv("STOP_AT", str(tmp_path / "calls"))
    assert typed("garbled") == 130
    newest = max((tmp_path / "garbled").rglob("checkpoint-*"))
    shutil.copytree(tmp_path / "garbled", tmp_path / "robbed")
    garble(newest / "optimizer.pt")
    assert typed("garbled") == 0
    said = capsys.readouterr().out
    assert f"{newest.name} is damaged: optimizer.pt is not as it was written" in said
    assert "going on from checkpoint-2" in said

    next((tmp_path / "robbed").rglob("checkpoint-3/rng_state.pth")).unlink()
    assert typed("robbed") == 2
    assert "checkpoint-3 lacks the random state (rng_state*)" in capsys.readouterr().err
    assert typed("robbed", "--on_change=continue") == 0
    assert "going on from checkpoint-3" in capsys.readouterr().out


# A full disk (FAULTS row 14) ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [16_000, 50_000])
def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path, limit, monkeypatch):
    """A limit on the size of files gives real errors in the weights (safetensors) and in the optimiser (torch)."""
    small_policy(tmp_path / "policy")
    weights = (tmp_path / "policy/model.safetensors").stat().st_size
    assert 16_000 < weights < 50_000 < 2 * weights, "so that each limit is met in another file"
    trainer = trainer_of(tmp_path, "out", max_steps=4)
    save, before = trainer._save_checkpoint, resource.getrlimit(resource.RLIMIT_FSIZE)

    def save_with_less_space(model, trial):
        if trainer.state.global_step == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        save(model, trial)

    monkeypatch.setattr(trainer, "_save_checkpoint", save_with_less_space)
    full = pytest.raises(OSError, match="no space left to write to; checkpoint-2 is kept: free some")
    try:
        with full, telling_of_a_full_disk(tmp_path / "out"):
            trainer.train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    kept = sorted(path.name for path in (tmp_path / "out").glob("checkpoint-*"))
    assert kept == ["checkpoint-1", "checkpoint-2"] and damage(tmp_path / "out/checkpoint-2") is None


def test_other_errors_are_no_full_disk(tmp_path):
    for error in (
        RuntimeError("shapes do not match"),
        PermissionError(errno.EACCES, "no"),
        ValueError("No space left"),
    ):
        with pytest.raises(type(error)) as raised, telling_of_a_full_disk(tmp_path / "not" / "yet"):
            raise error
        assert raised.value is error
    with pytest.raises(OSError, match="no checkpoint was written before"), telling_of_a_full_disk(tmp_path):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_space_is_looked_at_before_anything_is_trained(tmp_path, capsys, monkeypatch):
    tight = shutil.disk_usage(tmp_path)._replace(free=100_000)
    monkeypatch.setattr("rlobj.runs.shutil.disk_usage", lambda path: tight)
    settings = [f"--{key}={value}" for key, value in {**SMALL, "output_dir": tmp_path}.items()]
    assert main(["run", "customer-service", *settings]) == 2
    assert "MB needed: free some space or set --output_dir" in capsys.readouterr().err
    assert not (tmp_path / "customer-service").exists()


# Going on (FAULTS rows 13 and 17) -------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [{}, {"num_iterations": 2}, {"steps_per_generation": 2, "num_iterations": 2}])
def test_resumes_within_an_epoch_at_its_edge_and_again_end_alike(tmp_path, fields):
    """Two prompts a step and four in all: epochs end at every second generation, in another order each."""
    small_policy(tmp_path / "policy")
    fields = {"max_steps": 8, "shuffle_dataset": True, **fields}
    trainer_of(tmp_path, "straight", **fields).train()
    straight = load_file(tmp_path / "straight/checkpoint-8/model.safetensors")
    for place in sorted((tmp_path / "straight").glob("checkpoint-[1-7]"))[::2]:
        first = trainer_of(tmp_path, "again", **fields)
        first.train(resume_from_checkpoint=str(place))
        later = min((p for p in (tmp_path / "again").glob("checkpoint-*") if p.name > place.name), key=lambda p: p.name)
        second = trainer_of(tmp_path, "twice", **fields)
        second.train(resume_from_checkpoint=str(later))
        for trainer in (first, second):
            ours = trainer.model.state_dict()
            assert all(torch.equal(straight[name], ours[name]) for name in straight), place.name
        shutil.rmtree(tmp_path / "again")


def killed(tmp_path: Path, kills: int) -> str:
    done = subprocess.run(
        [sys.executable, str(HERE / "killed_runs.py"), str(kills), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path]), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()[-1]


def test_three_kills(tmp_path):
    assert killed(tmp_path, 3).startswith("3 kills")


@pytest.mark.slow
def test_sixty_kills(tmp_path):
    assert killed(tmp_path, 60).startswith("60 kills")
