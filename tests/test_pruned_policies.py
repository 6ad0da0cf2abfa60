"""`rlobj prune` of policies, judged by episodes and trained on by −R + λℓ, and of reward models."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_pipeline import small_run
from transformers import AutoModelForCausalLM

from reward_models import TrainedReward
from rlobj.cli import main
from rlobj.loading import load_model
from rlobj.policies import load_causal
from rlobj.slimming import Pruning, prune

pytest.importorskip("torch_pruning")


@pytest.mark.slow
def test_policies_and_reward_models_of_a_run(tmp_path, capsys) -> None:
    folder = small_run("customer-service", tmp_path, objective__lambda_sup="[0.3]", env__eval_episodes=8).parent
    assert main(["prune", str(folder), "--method", "heads", "neurons", "int8"]) == 0
    assert main(["prune", str(folder), "--reward", "--method", "neurons", "int8"]) == 0
    said = capsys.readouterr().out
    assert "8 held-out episodes" in said and "16 tokens, on" in said and "held-out pairs accuracy" in said
    for name, ways in (("lambda=0.3", 3), ("reward_model", 2)):
        table = json.loads((folder / "pruned" / name / "summary.json").read_text())["table"]
        assert len(table) == ways
        assert all(each["bytes"]["after"] < each["bytes"]["before"] for each in table)
    heads = folder / "pruned" / "lambda=0.3" / "heads-0.5"
    config = AutoModelForCausalLM.from_pretrained(heads).config
    assert config.num_attention_heads < load_causal(folder / "warm_start").config.num_attention_heads
    scores = TrainedReward(folder / "pruned" / "reward_model" / "neurons-0.5")(["hello"], ["good bye"])
    assert np.isfinite(scores).all()
    with pytest.raises(ValueError, match=r"--epochs 1\.0 of a policy: expected --steps instead"):
        prune(folder, [Pruning("neurons", epochs=1.0)])
    with pytest.raises(ValueError, match="--steps 2 of a reward model: expected 0, it is not trained on"):
        prune(folder, [Pruning("neurons", steps=2)], reward_model=True)
    with pytest.raises(ValueError, match="--steps 2 of warm_start, which has no λ"):
        prune(folder, [Pruning("neurons", steps=2)], policy="warm_start")


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["random-walk", "customer-intents"])
def test_a_policy_that_was_pruned_is_trained_on(recipe, tmp_path) -> None:
    settings = {"objective__lambda_sup": "[0.1]", "training__beta": 0.01, "policy__heads": 4}
    folder = small_run(recipe, tmp_path, **settings).parent
    for method in ("layer", "neurons", "heads"):
        prune(folder, [Pruning(method)], turns=1)
        prune(folder, [Pruning(method, steps=3)], turns=1)
        found = [folder / "pruned" / "lambda=0.1" / f"{method}-0.5{end}" for end in ("", "-steps-3")]
        before, after = (load_file(each / "model.safetensors") for each in found)
        assert {name: weight.shape for name, weight in before.items()} == {n: w.shape for n, w in after.items()}
        assert all(not torch.equal(before[name], after[name]) for name in before if name.endswith("down_proj.weight"))
        zeros = [n for n, w in before.items() if "layer" in n and float((w == 0).float().mean()) > 0.3 and w.dim() == 2]
        assert bool(zeros) == (method == "layer" or (method == "heads" and recipe == "customer-intents"))
        for name in zeros:
            assert torch.all(after[name][before[name] == 0] == 0), f"{name}: what is gone stays gone"
        assert load_model(found[1]).num_parameters() == load_model(found[0]).num_parameters()


@pytest.mark.slow
def test_an_encoder_policy_is_judged_by_its_accuracy(tmp_path, capsys) -> None:
    folder = small_run("customer-intents", tmp_path, objective__lambda_sup="[0.1]", env__eval_episodes=8).parent
    assert main(["prune", str(folder), "--method", "neurons", "int8"]) == 0
    assert "8 held-out episodes accuracy" in capsys.readouterr().out
