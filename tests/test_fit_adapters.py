"""Adapters of peft in `rlobj fit`: what is trained, what is saved, and that it says the same when loaded again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_fitting import COLOURS, SMALL, rows
from transformers import AutoModelForSequenceClassification, BertForMaskedLM

from rlobj.adapters import MERGED, METHODS, RankUpdate
from rlobj.cli import main
from rlobj.continue_config import continued
from rlobj.fit_config import ADAPTER_RATES, FitConfig, FitSettings, FittedConfig, learning_rate_of
from rlobj.fit_tasks import TextClassification
from rlobj.fitting import fit
from rlobj.loading import load_model
from rlobj.policies import (
    load_tokenizer,
    make_causal,
    make_encoder,
    make_encoder_tokenizer,
    make_tokenizer,
    save_policy,
)
from rlobj.prediction import Predictor
from rlobj.recipes import read_recipe
from rlobj.runs import read_outputs

pytest.importorskip("peft")
TEXTS = [row["text"] for row in rows(40)]
SIZE: dict[str, Any] = {"hidden_size": 32, "layers": 2, "heads": 2, "max_length": 64, "seed": 0}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A body without a label head, as encoders come."""
    directory = tmp_path_factory.mktemp("encoder")
    tokenizer = make_encoder_tokenizer(TEXTS, vocab_size=350, max_length=64)
    save_policy(make_encoder(tokenizer, ["a"], **SIZE, head=BertForMaskedLM), tokenizer, directory)
    return directory


@pytest.fixture
def config(tmp_path: Path):
    """Makes the configuration of a small task on a file, of an adapter."""
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows(100)))

    def make(model: Path, peft: str, task: str = "text-classification", **settings: Any) -> FitConfig:
        named = {"task": task, "data.train": path, "output_dir": tmp_path / "runs", "name": "small", **SMALL}
        named |= {"policy.model": model, "policy.peft": peft, "fit.epochs": 2, "fit.learning_rate": 0.02}
        named |= {key.replace("__", "."): value for key, value in settings.items()}
        return read_recipe(FitConfig, "bert-classifier", [f"--{key}={value}" for key, value in named.items()])

    return make


pytestmark = pytest.mark.filterwarnings("ignore:Adapter 'default'. . LoRA tensor")  # that AdaLoRA cut to rank 0


@pytest.mark.parametrize("method", METHODS)
def test_an_adapter_is_learned_saved_and_says_the_same_again(config, encoder, method, capsys) -> None:
    wanted = config(encoder, f"{{method: {method}}}")
    directory = fit(wanted).parent / "model"
    outputs = read_outputs(directory)
    every = sum(weight.numel() for weight in load_file(encoder / "model.safetensors").values())
    assert 0 < outputs["trained"] < every / 2
    assert f"{outputs['trained']:,} of" in capsys.readouterr().out
    model, tokenizer = load_model(directory).eval(), load_tokenizer(directory)
    task = TextClassification(wanted)
    assert list(task.names) == [model.config.id2label[i] for i in range(3)]
    again = task.measure(model, tokenizer, "test").metrics["ell"]
    assert again[0] == pytest.approx(outputs["measured"]["test"]["metrics"]["ell"][0], rel=1e-5)
    assert next(Predictor(directory)([{"text": "see the red box"}]))["predicted"] in COLOURS
    whole = (directory / "model.safetensors").exists()
    assert whole == (method in MERGED) == (not (directory / "adapter_model.safetensors").exists())
    if whole:
        plain = AutoModelForSequenceClassification.from_pretrained(directory).eval()
        ids = torch.tensor([tokenizer(TEXTS[0])["input_ids"]])
        with torch.inference_mode():
            np.testing.assert_allclose(plain(ids).logits, model(ids).logits, atol=1e-6)


def test_a_learning_rate_that_is_not_given_is_the_methods_own(config, encoder, tmp_path) -> None:
    assert set(ADAPTER_RATES) == set(METHODS)
    for method, rate in ADAPTER_RATES.items():
        assert learning_rate_of(FitSettings(), FittedConfig(str(encoder), peft={"method": method, "x": 1})) == rate
    assert learning_rate_of(FitSettings(), FittedConfig(str(encoder))) == 2e-5 < min(ADAPTER_RATES.values())
    assert learning_rate_of(FitSettings(learning_rate=0.1), FittedConfig(str(encoder), peft={"method": "ia3"})) == 0.1
    report = fit(config(encoder, "{method: ia3}", fit__learning_rate="null", fit__epochs=1))
    assert "<dt>learning rate</dt><dd>0.003</dd>" in (page := report.read_text()), "and the report says so"
    assert "<dt>adapter</dt><dd>method ia3</dd>" in page and ", peft " in page
    told = continued(report.parent, report.parent / "model")
    assert told["fit"]["learning_rate"] == 2e-5, "rlobj continue trains all weights of what was merged"


@pytest.mark.parametrize("method", MERGED)
def test_of_a_merged_model_the_adapted_weights_alone_have_changed(config, encoder, method) -> None:
    directory = fit(config(encoder, f"{{method: {method}}}")).parent / "model"
    before, after = load_file(encoder / "model.safetensors"), load_file(directory / "model.safetensors")
    moved = {name for name in before.keys() & after.keys() if not torch.allclose(before[name], after[name], atol=1e-7)}
    assert moved and all(".layer." in name and name.endswith("weight") for name in moved), moved


def test_adalora_shares_out_its_ranks(config, encoder, monkeypatch) -> None:
    kept: list[int] = []
    update = RankUpdate.on_optimizer_step

    def count(callback, args, state, control, **kwargs) -> None:
        update(callback, args, state, control, **kwargs)
        ranks = [p for name, p in callback.policy.named_parameters() if "lora_E" in name]
        kept.append(sum(int((p != 0).sum()) for p in ranks))

    monkeypatch.setattr(RankUpdate, "on_optimizer_step", count)
    fit(config(encoder, "{method: adalora, init_r: 4, target_r: 2, target_modules: [query, value]}", fit__epochs=4))
    assert kept[-1] == 2 * 4 < max(kept), "target_r for each of two matrices in two layers"


def test_the_ranks_of_adalora_are_held_apart(config, encoder) -> None:
    """peft adds that term to the loss that the model gives, and to no other."""
    weights = []
    for number in (0.0, 100.0):
        method = f"{{method: adalora, init_r: 4, target_r: 2, target_modules: [query], orth_reg_weight: {number}}}"
        made = fit(config(encoder, method, fit__epochs=1, name=f"apart-{number:g}")).parent / "model"
        weights.append(load_file(made / "model.safetensors")["bert.encoder.layer.0.attention.self.query.weight"])
    assert not torch.equal(*weights)


def test_numbers_and_tags_and_text_are_learned_by_adapters(config, encoder, tmp_path) -> None:
    prefix = "{method: prefix, num_virtual_tokens: 4}"
    wanted = config(encoder, prefix, "regression", data__label_column="score", fit__epochs=6)
    directory = fit(wanted).parent / "model"
    said = [row["score"] for row in Predictor(directory)([{"text": "see the red box"}])]
    assert 60 < said[0] < 160, "in units of the data"
    columns = {"data__text_column": "words", "data__label_column": "tags"}
    for peft in (prefix, "{method: lora}"):
        directory = fit(config(encoder, peft, "token-classification", **columns, on_change="restart")).parent / "model"
        row = next(Predictor(directory, "words")([{"words": ["see", "the", "red", "box"]}]))
        assert len(row["predicted"]) == 4
    tokenizer = make_tokenizer(TEXTS, vocab_size=350, max_length=64)
    save_policy(make_causal(tokenizer, **SIZE), tokenizer, tmp_path / "causal")
    directory = fit(config(tmp_path / "causal", prefix, "language-modeling", on_change="restart")).parent / "model"
    found = read_outputs(directory)["measured"]["test"]["metrics"]["ell"]
    assert found[0] < 5.8, "less than log 350"
    row = next(Predictor(directory, max_new_tokens=4)([{"text": "see the"}]))
    assert isinstance(row["completion"], str)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ["--policy.peft={method: lorra}"],
            "policy.peft.method is 'lorra'; did you mean 'lora'?: expected one of",
        ),
        (["--policy.peft={method: lora, rank: 3}"], "policy.peft has 'rank', which peft.LoraConfig has not"),
        (["--policy.peft={method: bottleneck}"], "peft has no bottleneck adapters (Houlsby et al. 2019)"),
        (
            ["--policy.peft={method: prompt}", "--task=token-classification"],
            "one of lora, adalora, ia3, prefix",
        ),
        (["--policy.peft={method: lora}", "--policy.model=null"], "an adapter changes what is known already"),
    ],
)
def test_mistakes_are_told_before_anything_is_trained(settings, message, encoder, tmp_path, capsys) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(40)))
    arguments = [f"--output_dir={tmp_path}", f"--data.train={tmp_path / 'rows.jsonl'}", f"--policy.model={encoder}"]
    if "token" in settings[-1]:
        settings = [*settings, "--data.text_column=words", "--data.label_column=tags"]
    assert main(["fit", "bert-classifier", *arguments, *settings]) == 2
    said = capsys.readouterr()
    assert message in said.err and "[1/1]" not in said.out


def test_an_adapter_whose_base_is_gone_says_so(config, encoder, tmp_path) -> None:
    base = tmp_path / "base"
    shutil.copytree(encoder, base)
    directory = fit(config(base, "{method: prompt}")).parent / "model"
    shutil.rmtree(base)
    with pytest.raises(ValueError, match=f"is an adapter of {base}, where no model is any more"):
        load_model(directory)


def test_what_is_no_whole_model_is_not_trained_further(config, encoder, tmp_path, capsys) -> None:
    run = fit(config(encoder, "{method: prompt}", fit__epochs=1)).parent
    capsys.readouterr()
    assert main(["continue", str(run), "--data", str(tmp_path / "rows.jsonl")]) == 2
    assert main(["fit", "bert-classifier", f"--policy.model={run}"]) == 2
    said = capsys.readouterr().err
    assert said.count("an adapter beside a model, on which nothing is trained further") == 2
