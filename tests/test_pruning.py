"""Models made smaller: by masks, by taking heads and neurons out, in 8 bits; and `rlobj prune`, which measures it."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small import TEXTS, small_policy
from test_fitting import COLOURS, SMALL, rows
from transformers import (
    AutoModelForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
)

from rlobj.cli import main
from rlobj.exporting import export
from rlobj.fit_config import FitConfig
from rlobj.fitting import fit
from rlobj.latency import compare_seconds
from rlobj.loading import HEADS, INT8, load_model, save_int8, save_without_heads
from rlobj.policies import load_causal, load_tokenizer, make_encoder, make_encoder_tokenizer, save_policy
from rlobj.prediction import Predictor
from rlobj.pruning import (
    keep_zeros,
    linear_layers,
    mask_smallest,
    mask_smallest_of_each_layer,
    mask_two_of_four,
)
from rlobj.quantising import quantised
from rlobj.recipes import read_recipe
from rlobj.shrinking import (
    ATTENTION,
    FEED_FORWARD,
    blocks,
    changes_of_loss,
    head_width,
    least,
    norms,
    remove_heads,
    remove_neurons,
)
from rlobj.slimming import Pruning, prune

pytest.importorskip("torch_pruning")
IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 11], [12, 13, 14, 15, 16, 0, 0]])


def bert() -> Any:
    tokenizer = make_encoder_tokenizer(TEXTS, vocab_size=300, max_length=48)
    size = {"hidden_size": 32, "layers": 2, "heads": 4, "max_length": 48, "seed": 0}
    model = make_encoder(tokenizer, ["no", "perhaps", "yes"], **size).eval()
    torch.nn.init.normal_(model.classifier.weight)  # so that texts differ
    return model


def llama(**fields: Any) -> Any:
    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=100, pad_token_id=0, **size, **fields)).eval()


def distilbert() -> Any:
    torch.manual_seed(0)
    return DistilBertForSequenceClassification(
        DistilBertConfig(vocab_size=100, dim=32, hidden_dim=64, n_layers=2, n_heads=4, num_labels=3)
    ).eval()


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model.eval()(input_ids=IDS, attention_mask=(IDS != 0).long()).logits


# Masks ----------------------------------------------------------------------------------------------------------------


def test_the_smallest_weights_of_the_whole_model_go() -> None:
    model = bert()
    before = torch.cat([layer.weight.detach().abs().flatten() for layer in linear_layers(model).values()])
    mask_smallest(model, 0.3)
    keep_zeros(model)
    after = torch.cat([layer.weight.detach().abs().flatten() for layer in linear_layers(model).values()])
    assert int((after == 0).sum()) == round(0.3 * len(before))
    assert before[after == 0].max() <= after[after != 0].min()
    assert torch.equal(before[after != 0], after[after != 0]), "the others are left alone"
    assert not any("mask" in name or "orig" in name for name in model.state_dict())


def test_each_layer_loses_as_much_and_the_rest_nothing() -> None:
    model, whole = bert(), bert()
    mask_smallest_of_each_layer(model, 0.25)
    keep_zeros(model)
    for layer in linear_layers(model).values():
        assert float((layer.weight == 0).float().mean()) == pytest.approx(0.25, abs=0.01)
    for part in ("classifier.weight", "bert.embeddings.word_embeddings.weight"):
        assert torch.equal(model.get_parameter(part), whole.get_parameter(part))


def test_two_of_four_that_follow_one_another_stay_and_they_are_the_larger() -> None:
    model = bert()
    whole = {name: layer.weight.detach().clone() for name, layer in linear_layers(model).items()}
    mask_two_of_four(model)
    keep_zeros(model)
    for name, layer in linear_layers(model).items():
        for row, before in zip(layer.weight[:4].tolist(), whole[name][:4].tolist(), strict=True):
            for start in range(0, len(row), 4):
                kept = sorted(abs(value) for value in row[start : start + 4] if value)
                assert kept == sorted(map(abs, before[start : start + 4]))[2:]


def test_a_mask_holds_in_training() -> None:
    model = bert()
    mask_smallest_of_each_layer(model, 0.5)
    gone = {name: layer.weight == 0 for name, layer in linear_layers(model).items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(2):
        model(input_ids=IDS, labels=torch.tensor([0, 1])).loss.backward()
        optimizer.step()
    before = bert()
    keep_zeros(model)
    for name, layer in linear_layers(model).items():
        assert torch.all(layer.weight[gone[name]] == 0), name
        assert not torch.equal(layer.weight, linear_layers(before)[name].weight)


# Heads and neurons ----------------------------------------------------------------------------------------------------


def silenced(model: Any, names: Any, gone: dict[str, list[int]], width: int) -> Any:
    """The same with what reads these units set to 0: what a model without them says, computed in full."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for block in blocks(model, names):
            share = block.reads.in_features // (block.writes[1].out_features // width) if width else 1
            for unit in gone[block.name]:
                block.reads.weight[:, unit * share : (unit + 1) * share] = 0
    return model


@pytest.mark.parametrize("make", [bert, llama, lambda: llama(num_key_value_heads=2), distilbert])
@pytest.mark.parametrize("what", ["heads", "neurons"])
def test_a_model_without_units_says_what_it_says_when_they_are_silent(make, what, tmp_path) -> None:
    model = make()
    expected_change = logits(model)
    gone = least(norms(model, what), 0.5, what)
    if what == "heads":
        expected = logits(silenced(model, ATTENTION, gone, head_width(model)))
        said = remove_heads(model, gone)
    else:
        expected = logits(silenced(model, FEED_FORWARD, gone, 0))
        remove_neurons(model, gone)
        said = True
    torch.testing.assert_close(logits(model), expected, atol=1e-6, rtol=1e-5)
    assert not torch.allclose(expected, expected_change, atol=1e-6)
    assert said == (what == "neurons" or "Llama" in type(model).__name__)
    if said:  # plain transformers loads it, as small as it is
        model.save_pretrained(tmp_path)
        again = type(model).from_pretrained(tmp_path)
        assert again.num_parameters() == model.num_parameters() < make().num_parameters()
        torch.testing.assert_close(logits(again), expected, atol=1e-6, rtol=1e-5)


def test_heads_that_a_configuration_cannot_leave_out_are_zeros_that_load_everywhere(tmp_path) -> None:
    model, tokenizer = bert(), make_encoder_tokenizer(TEXTS, vocab_size=300, max_length=48)
    gone = least(norms(model, "heads"), 0.25, "heads")
    remove_heads(model, gone)
    expected, small = logits(model), model.num_parameters()
    save_without_heads(model, tokenizer, tmp_path, gone)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    torch.testing.assert_close(logits(plain), expected, atol=1e-6, rtol=1e-5)
    assert json.loads((tmp_path / HEADS).read_text()) == gone
    slim = load_model(tmp_path)
    assert slim.num_parameters() == small < plain.num_parameters()
    torch.testing.assert_close(logits(slim), expected, atol=1e-6, rtol=1e-5)


def test_llama_keeps_heads_that_transformers_can_count() -> None:
    model = llama()
    with pytest.raises(ValueError, match=r"3 of 4 heads would be left.*expected an amount that leaves one of \[1, 2\]"):
        remove_heads(model, least(norms(model, "heads"), 0.25, "heads"))


def test_norms_are_of_all_weights_of_a_unit() -> None:
    model = bert()
    block = blocks(model, FEED_FORWARD)[1]
    (writes,), reads = block.writes, block.reads
    write, read = writes.weight.detach() ** 2, reads.weight.detach() ** 2
    expected = [float(write[i].sum() + read[:, i].sum()) for i in range(reads.in_features)]
    np.testing.assert_allclose(norms(model, "neurons")[block.name], expected, rtol=1e-5)


def test_the_expected_change_of_the_loss_is_that_of_a_small_cut() -> None:
    model = bert()
    labels = torch.tensor([0, 1])
    batches = [{"input_ids": IDS, "attention_mask": (IDS != 0).long(), "labels": labels}]
    found = changes_of_loss(model, "heads", batches)
    block = blocks(model, ATTENTION)[0]
    width, cut = head_width(model), 1e-2
    with torch.no_grad():
        whole = model(**batches[0]).loss
        for head in range(4):
            part = copy.deepcopy(model)
            reads = blocks(part, ATTENTION)[0].reads
            reads.weight[:, head * width : (head + 1) * width] *= 1 - cut
            change = abs(float(part(**batches[0]).loss - whole)) / cut
            assert float(found[block.name][head]) == pytest.approx(change, rel=0.1, abs=1e-4)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_least_takes_some_and_not_all() -> None:
    assert least({"a": torch.tensor([3.0, 1.0, 2.0, 4.0])}, 0.5, "heads") == {"a": [1, 2]}
    for amount, remove in ((0.1, 0), (0.95, 4)):
        with pytest.raises(ValueError, match=f"of 4 heads in a layer is {remove}: expected at least one, and not all"):
            least({"a": torch.zeros(4)}, amount, "heads")


# 8 bits ---------------------------------------------------------------------------------------------------------------


def test_a_model_in_8_bits_is_small_and_says_the_same_when_loaded(tmp_path) -> None:
    model, tokenizer = bert(), make_encoder_tokenizer(TEXTS, vocab_size=300, max_length=48)
    save_policy(model, tokenizer, tmp_path / "whole")
    ready = save_int8(model, tokenizer, tmp_path / "int8")
    again = load_model(tmp_path / "int8")
    assert torch.equal(logits(again), logits(ready)), "to the bit"
    torch.testing.assert_close(logits(again), logits(model), atol=0.1, rtol=0.05)
    assert not torch.equal(logits(again), logits(model))
    stored = load_file(tmp_path / "int8" / INT8)
    assert stored["bert.encoder.layer.0.intermediate.dense.int8"].dtype == torch.int8
    sizes = [path.stat().st_size for path in (tmp_path / "int8" / INT8, tmp_path / "whole" / "model.safetensors")]
    assert sizes[0] < 0.65 * sizes[1]
    with pytest.raises(OSError, match=r"model\.safetensors"):  # not taken for a model with other weights
        AutoModelForSequenceClassification.from_pretrained(tmp_path / "int8", use_safetensors=True)


def test_weights_of_another_model_are_refused(tmp_path) -> None:
    tokenizer = make_encoder_tokenizer(TEXTS, vocab_size=300, max_length=48)
    save_int8(bert(), tokenizer, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(ValueError, match="the int8 weights lack"):
        load_model(tmp_path)


def test_a_language_model_keeps_its_vocabulary_in_floats(tmp_path) -> None:
    model = load_causal(small_policy(tmp_path))
    ready = quantised(model)
    assert isinstance(ready.lm_head, torch.nn.Linear) and "quantized" not in type(ready.lm_head).__module__
    save_int8(model, load_tokenizer(tmp_path), tmp_path / "int8")
    assert "lm_head.weight" not in load_file(tmp_path / "int8" / INT8), "tied to the embeddings, it stands there once"
    assert torch.equal(logits(load_model(tmp_path / "int8")), logits(ready))
    row = next(Predictor(tmp_path / "int8", max_new_tokens=4)([{"text": "the cat"}]))
    assert row["completion"]


# The verb -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of rlobj fit."""
    folder = tmp_path_factory.mktemp("prune")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(120)))
    named = {"data.train": folder / "rows.jsonl", "output_dir": folder / "runs", "name": "small", **SMALL}
    return fit(read_recipe(FitConfig, "bert-classifier", [f"--{key}={value}" for key, value in named.items()])).parent


def test_every_way_is_measured_and_its_result_can_be_used(run, capsys) -> None:
    ways = ["magnitude", "layer", "2:4", "heads", "neurons", "int8", "neurons+int8", "heads+int8"]
    assert main(["prune", str(run), "--method", *ways, "--amount", "0.5"]) == 0
    said = capsys.readouterr().out
    table = json.loads((run / "pruned" / "summary.json").read_text())["table"]
    assert [each["method"] for each in table] == ways
    whole = table[0]
    for each in table:
        assert each["quality"]["before"] == whole["quality"]["before"]
        assert each["weights"]["after"] < each["weights"]["before"] == whole["weights"]["before"]
        one = each["seconds"]["one text"]
        assert one["least"] <= one["ratio"] <= one["most"] and one["after"] > 0
        assert next(Predictor(each["directory"])([{"text": "see the red box"}]))["predicted"] in COLOURS
        assert Path(each["directory"]).name in said
    by_name = {each["method"]: each for each in table}
    assert by_name["neurons"]["bytes"]["after"] < whole["bytes"]["before"]
    assert by_name["neurons+int8"]["bytes"]["after"] < by_name["int8"]["bytes"]["after"] < whole["bytes"]["before"]
    # what was done is not done again
    assert main(["prune", str(run), "--method", *ways]) == 0
    assert capsys.readouterr().out.count("done before, inputs unchanged") == len(ways)


@pytest.mark.parametrize("method", ["layer", "heads"])
def test_what_was_pruned_is_trained_on(run, method) -> None:
    settings = {"learning_rate": 5e-3}
    prune(run, [Pruning(method, 0.5, 0.0)], turns=1)
    prune(run, [Pruning(method, 0.5, 2.0, **settings)], turns=1)
    found = [run / "pruned" / f"{method}-0.5{end}" / "model.safetensors" for end in ("", "-epochs-2")]
    before, after = map(load_file, found)
    assert before.keys() == after.keys() and not torch.equal(before["classifier.weight"], after["classifier.weight"])
    zeros = [name for name, weight in before.items() if "layer" in name and float((weight == 0).float().mean()) > 0.3]
    assert zeros
    for name in zeros:
        assert torch.all(after[name][before[name] == 0] == 0), "what is gone stays gone"


def test_the_card_of_a_pruned_model_tells_its_own_results(run, tmp_path) -> None:
    prune(run, [Pruning("neurons"), Pruning("int8")], turns=1)
    export(run / "pruned" / "neurons-0.5", tmp_path / "neurons")
    card = (tmp_path / "neurons" / "README.md").read_text()
    assert "rlobj prune --method neurons" in card and "| after |" in card
    export(run / "pruned" / "int8", tmp_path / "int8")
    assert "rlobj predict int8" in (tmp_path / "int8" / "README.md").read_text()
    with pytest.raises(ValueError, match="exports whole models in float32"):
        export(run / "pruned" / "int8", tmp_path / "onnx", onnx=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "head"], "--method 'head'; did you mean 'heads'?: expected one of magnitude"),
        (["--method", "int8+heads"], "int8 comes last"),
        (["--method", "2:4+neurons"], "--method 2:4+neurons: heads and neurons come first"),
        (["--amount", "1.5"], "--amount 1.5: expected a share above 0 and below 1"),
        (["--method", "2:4+layer", "--amount", "0.3"], "two of four weights: expected 0.5"),
        (["--method", "heads", "--importance", "size"], "--importance 'size': expected gradient or weights"),
        (["--method", "heads", "--epochs", "-1"], "--epochs -1.0 of heads"),
    ],
)
def test_mistakes_are_told_at_once(run, arguments, message, capsys) -> None:
    assert main(["prune", str(run), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_one_process_prunes(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["prune", str(tmp_path)]) == 2
    assert "rlobj prune in 2 processes: it is the work of one" in capsys.readouterr().err


def test_a_folder_without_a_run_is_told(tmp_path, capsys) -> None:
    assert main(["prune", str(tmp_path)]) == 2
    assert "holds no finished run of rlobj fit or rlobj run" in capsys.readouterr().err


def test_times_are_compared_turn_by_turn(monkeypatch) -> None:
    now = iter([0.0, 4.0, 4.0, 5.0, 5.0, 7.0, 7.0, 19.0, 19.0, 25.0, 25.0, 28.0])  # begin and end of each timed turn
    monkeypatch.setattr("rlobj.latency.time.perf_counter", lambda: next(now))
    order: list[str] = []
    found = compare_seconds(lambda: order.append("before"), lambda: order.append("after"), texts=2, turns=3)
    # turns: before 4, after 1; after 2, before 12; before 6, after 3
    assert order == ["before", "after", "before", "after", "after", "before", "before", "after"]
    assert (found.before, found.after) == (3.0, 1.0), "medians, of one of two texts"
    assert (found.least, found.ratio, found.most) == (2.0, 4.0, 6.0)
