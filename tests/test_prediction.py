"""What a trained model says of rows, and what is exported of it."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from small import small_policy
from transformers import BertForTokenClassification, pipeline

from rlobj.cli import main
from rlobj.exporting import export
from rlobj.policies import make_encoder, make_encoder_tokenizer, save_policy
from rlobj.prediction import Predictor, entities_in, model_directory

TEXTS = ["they met in the red house", "a cat , a dog", "小明 met them", "where is the blue boat"]
LABELS = ["no", "perhaps", "yes"]


def encoder(directory: Path, labels: list[str] = LABELS, **kwargs: Any) -> Path:
    tokenizer = make_encoder_tokenizer(TEXTS, vocab_size=300, max_length=48)
    model = make_encoder(tokenizer, labels, hidden_size=16, layers=1, heads=2, max_length=48, seed=0, **kwargs)
    torch.nn.init.normal_(model.classifier.weight)  # so that texts differ
    save_policy(model, tokenizer, directory)
    return directory


def test_labels_are_those_of_plain_transformers(tmp_path) -> None:
    model = encoder(tmp_path / "model")
    said = list(Predictor(model)({"text": text, "id": i} for i, text in enumerate(TEXTS)))
    assert [row["id"] for row in said] == [0, 1, 2, 3]
    plain = pipeline("text-classification", str(model), device="cpu")
    for row, expected in zip(said, plain(TEXTS), strict=True):
        assert row["predicted"] == expected["label"]
        assert row["probability"] == pytest.approx(expected["score"], abs=1e-5)


def test_tags_stand_for_words(tmp_path) -> None:
    model = encoder(tmp_path / "model", ["O", "B-x", "I-x"], head=BertForTokenClassification)
    by_text, by_words = (
        next(Predictor(model)([{"text": text}])) for text in ("they met . they", ["they", "met", ".", "they"])
    )
    assert by_text["predicted"] == by_words["predicted"] and len(by_text["predicted"]) == 4
    assert by_text["words"] == ["they", "met", ".", "they"]
    assert all(entity["kind"] == "x" for entity in by_text["entities"])


def test_a_tag_that_is_no_bio_is_an_entity_of_one_word(tmp_path) -> None:
    (row,) = Predictor(encoder(tmp_path / "model", ["DT", "NN"], head=BertForTokenClassification))([{"text": "a cat"}])
    assert [entity["kind"] for entity in row["entities"]] == row["predicted"]
    found = entities_in(["a", "b", "c", "d", "e", "f"], ["X", "NOUN", "NOUN", "O", "B-NOUN", "I-NOUN"])
    assert [(each["kind"], each["start"], each["end"]) for each in found] == (
        [("X", 0, 1), ("NOUN", 1, 2), ("NOUN", 2, 3), ("NOUN", 4, 6)]
    )


def test_one_output_is_a_score(tmp_path) -> None:
    (row,) = Predictor(encoder(tmp_path / "model", ["score"]))([{"text": TEXTS[0]}])
    assert isinstance(row["score"], float) and "predicted" not in row


def test_a_language_model_goes_on_and_answers(tmp_path) -> None:
    say = Predictor(small_policy(tmp_path / "policy"), max_new_tokens=5)
    first, second = say([{"text": "the cat"}, {"messages": [{"role": "user", "content": "the cat"}]}])
    assert first["completion"] and second["completion"] != first["completion"]
    assert list(say([{"text": "the cat"}])) == [first], "the most probable tokens, each time"


def test_standard_input_and_files(tmp_path, capsys, monkeypatch) -> None:
    model = encoder(tmp_path / "run" / "model")
    monkeypatch.setattr(sys, "stdin", io.StringIO('a cat\n{"text": "a dog", "id": 7}\n\n{not json\n'))
    assert main(["predict", str(tmp_path / "run")]) == 0
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["text"] for row in said] == ["a cat", "a dog", "{not json"] and said[1]["id"] == 7
    assert all(len(str(row["probability"])) <= len("0.123456") for row in said)
    (tmp_path / "rows.csv").write_text("said,n\na cat,1\na dog,2\n")
    out = tmp_path / "said.jsonl"
    arguments = [str(model), str(tmp_path / "rows.csv"), "--text_column", "said", "--output", str(out)]
    assert main(["predict", *arguments]) == 0
    assert capsys.readouterr().out == f"2 rows  {out}\n"
    assert [json.loads(line)["n"] for line in out.read_text().splitlines()] == ["1", "2"]
    (tmp_path / "rows.txt").write_text("a cat\n")
    assert main(["predict", str(model), str(tmp_path / "rows.txt")]) == 0
    assert json.loads(capsys.readouterr().out)["predicted"] in LABELS
    assert main(["predict", str(model), str(tmp_path / "rows.csv")]) == 2
    assert "--text_column is 'text'" in capsys.readouterr().err


def test_where_a_model_is(tmp_path) -> None:
    encoder(tmp_path / "fit" / "model")
    assert model_directory(tmp_path / "fit") == tmp_path / "fit" / "model"
    for lam in ("lambda=0", "lambda=0.3"):
        encoder(tmp_path / "run" / "policies" / lam)
    assert model_directory(tmp_path / "run").name == "lambda=0.3"
    assert model_directory(tmp_path / "run", "lambda=0").name == "lambda=0"
    with pytest.raises(ValueError, match="holds no model"):
        model_directory(tmp_path)


def run_of_a_policy(folder: Path) -> Path:
    """What `rlobj run` leaves of one policy, as far as a card tells of it."""
    policy = encoder(folder / "policies" / "lambda=0.3")
    (folder / "config.yaml").write_text(
        "name: news\nseed: 5\ndata: {train: headlines.jsonl, eval: null}\nobjective: {}\n"
    )
    table = [{"name": "warm start", "accuracy": [0.5, 0.4, 0.6]}, {"name": "λ = 0.3", "accuracy": [0.75, 0.7, 0.8]}]
    (folder / "summary.json").write_text(json.dumps({"table": table}))
    (policy / "stage.json").write_text("{}")
    return policy


def test_the_card_says_what_a_policy_was_trained_on(tmp_path) -> None:
    lines = export(run_of_a_policy(tmp_path / "run"), tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "L(θ) = −R(θ) + λ·ℓ(M_θ(x), y) with λ = 0.3. Seed 5." in card
    assert "`data.train`: headlines.jsonl" in card
    assert "| λ = 0.3 | 0.750 [0.700, 0.800] |" in card and "warm start" not in card
    assert "pipeline_tag: text-classification" in card
    assert {path.suffix for path in (tmp_path / "out").iterdir()} >= {".safetensors", ".json", ".md"}
    assert not (tmp_path / "out" / "stage.json").exists()
    assert str(tmp_path / "out") in lines[0]
    export(run_of_a_policy(tmp_path / "run"), tmp_path / "out")  # a model's folder may be written over


def test_a_folder_of_other_things_is_left_alone(tmp_path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds other things than a model"):
        export(encoder(tmp_path / "model"), tmp_path / "out")
    assert (tmp_path / "out" / "thesis.txt").read_text() == "mine"


def test_onnx_says_what_torch_says(tmp_path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra 'onnx'")
    pytest.importorskip("onnxscript", reason="needs the extra 'onnx'")
    model = encoder(tmp_path / "model")
    lines = export(model, tmp_path / "out", onnx=True)
    assert "model.onnx" in lines[-1]
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx")
    say = Predictor(tmp_path / "out")
    for text in TEXTS:
        encoded = say.tokenizer(text, return_tensors="np")
        inputs = {name: encoded[name].astype("int64") for name in ("input_ids", "attention_mask")}
        (logits,) = session.run(None, inputs)
        (row,) = say([{"text": text}])
        assert LABELS[int(logits[0].argmax())] == row["predicted"]


def test_a_language_model_has_no_onnx(tmp_path) -> None:
    with pytest.raises(
        ValueError, match="exports classifiers, regressions and reward models: this is a LlamaForCausalLM"
    ):
        export(small_policy(tmp_path / "policy"), tmp_path / "out", onnx=True)
    assert not (tmp_path / "out").exists(), "nothing half done is left"
