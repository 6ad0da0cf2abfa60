"""L(θ) = −P(T) + λ·ℓ: its gradient, its normalisation, and what training on it gives."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from test_fitting import rows
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, TrainingArguments

from rlobj.fit_config import FitConfig, PretrainConfig
from rlobj.fitting import fit
from rlobj.lambdas import as_lambda
from rlobj.policies import load_encoder
from rlobj.pretraining import SelfSupervisedTrainer, _Pretraining, pretrain
from rlobj.progress import StopWhenAsked
from rlobj.recipes import read_recipe
from rlobj.runs import read_outputs
from rlobj.self_supervised import HiddenRows, MaskedNetwork, log_probability_sums, performance_of, split_in_halves
from rlobj.stages import Interrupted

SMALL = {
    "policy.hidden_size": 32, "policy.layers": 1, "policy.heads": 2, "policy.max_length": 32, "policy.vocab_size": 350,
    "pretrain.epochs": 2, "pretrain.batch_size": 16, "pretrain.learning_rate": 5e-3,
}  # fmt: skip


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows()))
    return path


@pytest.fixture
def config(tmp_path: Path, file: Path):
    def make(recipe: str = "masked", **settings: Any) -> PretrainConfig:
        named = {"text.train": file, "output_dir": tmp_path / "runs", "name": "small", **SMALL}
        named |= {key.replace("__", "."): value for key, value in settings.items()}
        return read_recipe(PretrainConfig, recipe, [f"--{key}={value}" for key, value in named.items()])

    return make


def test_log_probabilities_of_hidden_tokens_by_hand() -> None:
    logits = torch.tensor([[0.0, 1.0], [2.0, 0.0], [3.0, 0.0]], dtype=torch.float64)
    first = math.log(math.e / (1 + math.e)) + math.log(math.exp(2) / (1 + math.exp(2)))
    second = math.log(1 / (1 + math.exp(3)))
    found = log_probability_sums(logits, torch.tensor([1, 0, 1]), torch.tensor([0, 0, 2]), 3)
    assert found.tolist() == pytest.approx([first, 0, second], rel=1e-6)


def test_the_head_reads_hidden_tokens_alone_and_says_the_same(config) -> None:
    run = _Pretraining(config())
    network = MaskedNetwork(config(), run.train, None)
    network.model.eval()
    batch = network.collate(run.train[:32], seed=1)
    with torch.no_grad():
        found, _ = network.log_probabilities(batch)
        whole = network.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    logps = whole.log_softmax(-1).gather(2, batch["labels"].clamp(min=0)[..., None])[..., 0]
    expected = (logps * (batch["labels"] != -100)).sum(1)
    torch.testing.assert_close(found, expected)
    assert (batch["labels"] != -100).sum() > 8


class Stopped(Exception):
    """The first optimiser step was about to be taken."""


def gradient(config: PretrainConfig, output: Path, accumulation: int, lambda_sup: float) -> dict[str, torch.Tensor]:
    """∇L of the first optimiser step, on 16 texts and 8 labelled rows."""
    run = _Pretraining(config)
    torch.manual_seed(0)
    network = MaskedNetwork(config, run.train, run.labelled)
    network.model.eval()  # no dropout
    texts = HiddenRows(network, run.train[:16], seed=0)
    made = texts.collate([texts[i] for i in range(16)])  # what is hidden is the same however the batch is split

    class Parts(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return 16

        def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
            return {name: each[i] for name, each in made.items()}

    arguments = TrainingArguments(
        output, per_device_train_batch_size=16 // accumulation, gradient_accumulation_steps=accumulation, max_steps=1,
        report_to="none", use_cpu=True, max_grad_norm=0, disable_tqdm=True, remove_unused_columns=False, seed=0,
        dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = SelfSupervisedTrainer(
        network,
        arguments,
        train_dataset=Parts(),
        measure=dict,
        lambda_sup=as_lambda(lambda_sup),
        stream=run._stream(network) if run.labelled is not None else None,
        supervised=network.supervised,
    )
    found: dict[str, torch.Tensor] = {}

    def keep(*args: Any, **kwargs: Any) -> None:
        found.update({name: p.grad.clone() for name, p in network.model.named_parameters() if p.grad is not None})
        raise Stopped

    network.model.train = lambda mode=True: network.model  # type: ignore[method-assign]
    trainer.callback_handler.on_pre_optimizer_step = keep  # type: ignore[method-assign]
    with pytest.raises(Stopped):
        trainer.train()
    return found


@pytest.mark.parametrize("next_sentence", [False, True])
def test_the_gradient_is_the_formula_for_any_split(config, file, tmp_path, next_sentence) -> None:
    both = config(
        data__train=file, objective__lambda_sup=1, objective__supervised_batch_size=8,
        objective__next_sentence=next_sentence,
    )  # fmt: skip
    alone = gradient(config(objective__next_sentence=next_sentence), tmp_path, 1, 0.0)
    of_P = gradient(both, tmp_path, 1, 0.0)
    assert alone, "λ = 0 asks no labels"
    whole, split = gradient(both, tmp_path, 1, 2.5), gradient(both, tmp_path, 4, 2.5)
    of_ell_and_P = gradient(both, tmp_path, 1, 1.0)
    assert whole.keys() == split.keys() > of_P.keys()
    for name, value in whole.items():
        torch.testing.assert_close(split[name], value, rtol=1e-4, atol=1e-6)
        minus_P = of_P.get(name, torch.zeros_like(value))
        ell = of_ell_and_P[name] - minus_P
        torch.testing.assert_close(value, minus_P + 2.5 * ell, rtol=1e-3, atol=1e-5)
        assert name not in of_P or "supervised_classifier" not in name
    assert whole["supervised_classifier.weight"].abs().max() > 0


def test_p_rises_and_the_model_is_an_ordinary_one(config) -> None:
    report = pretrain(config(pretrain__epochs=6))
    outputs = read_outputs(report.parent / "model")
    values = [log["eval_P"] for log in outputs["history"] if "eval_P" in log]
    assert values[-1] > values[0] + 1
    assert outputs["best"]["value"] == max(values)
    assert outputs["measured"]["held-out text"]["metrics"]["P"][0] == pytest.approx(max(values), abs=1e-5)
    model, info = AutoModelForMaskedLM.from_pretrained(report.parent / "model", output_loading_info=True)
    assert not info["missing_keys"]
    tied = model.get_output_embeddings().weight
    assert tied.data_ptr() == model.get_input_embeddings().weight.data_ptr(), "what reads a word also writes it"


def test_an_encoder_goes_on_where_it_was_pretrained(config, file, tmp_path) -> None:
    run = pretrain(config()).parent
    model = run / "model"
    trained = AutoModelForMaskedLM.from_pretrained(model).bert.state_dict()
    classifier = load_encoder(model, ["a", "b"])
    for name, weights in classifier.bert.state_dict().items():
        if name in trained:
            assert torch.equal(weights, trained[name])
    named = {"data.train": file, "policy.model": run, "fit.epochs": 1, "output_dir": tmp_path / "runs"}
    labels = read_recipe(FitConfig, "bert-classifier", [f"--{key}={value}" for key, value in named.items()])
    assert labels.policy.model == str(model), "the run stands for its model"
    fit(labels)


@pytest.mark.slow
def test_next_sentence_is_learned_beside_masked_tokens(config, tmp_path) -> None:
    # the second half says again what the first half said
    texts = [f"{word} {word} {word} . {word} {word} {word}" for word in ("red", "green", "blue", "grey")] * 40
    path = tmp_path / "halves.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    settings = {"objective__next_sentence": True, "text__train": path, "pretrain__epochs": 60}
    report = pretrain(config(**settings, objective__mask_share=0.05))
    found = read_outputs(report.parent / "model")["measured"]["held-out text"]["metrics"]
    assert found["next_sentence"][1] > 0.5, "the whole interval above chance"


def test_lambda_trains_a_classifier_beside(config, file) -> None:
    settings = {"data__train": file, "objective__lambda_sup": 30, "pretrain__epochs": 8}
    report = pretrain(config(**settings))
    table = {row["name"]: row for row in json.loads((report.parent / "summary.json").read_text())["table"]}
    assert table["labelled test"]["accuracy"][1] > 0.5
    classifier = load_encoder(report.parent / "classifier", ["blue", "green", "red"])
    assert classifier.config.id2label[0] == "blue"
    history = read_outputs(report.parent / "model")["history"]
    assert {log["objective/lambda_sup"] for log in history if "objective/lambda_sup" in log} == {30.0}


def test_a_causal_model_learns_text_beside_replies(config, tmp_path) -> None:
    path = tmp_path / "dialogues.jsonl"
    said = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "good day"}]
    path.write_text(
        "".join(json.dumps({"messages": [{**said[0], "content": f"hi {i}"}, said[1]]}) + "\n" for i in range(40))
    )
    settings = {"data__train": path, "objective__lambda_sup": "lagrange:bound=0.1", "pretrain__epochs": 4}
    report = pretrain(config("next-word", **settings))
    table = {row["name"]: row for row in json.loads((report.parent / "summary.json").read_text())["table"]}
    assert table["labelled test"]["ell"][0] < 1.5, "from log 350 = 5.9"
    history = read_outputs(report.parent / "model")["history"]
    lambdas = [log["objective/lambda_sup"] for log in history if "objective/lambda_sup" in log]
    assert max(lambdas) > 0, "the multiplier rises above the bound"
    AutoModelForCausalLM.from_pretrained(report.parent / "model")


@pytest.mark.parametrize("next_sentence", [False, True])
def test_an_interrupted_training_goes_on_to_the_same_weights(config, monkeypatch, next_sentence) -> None:
    settings = {"pretrain__epochs": 1, "objective__next_sentence": next_sentence}
    straight = pretrain(config(name="straight", **settings))
    on_step_end = StopWhenAsked.on_step_end

    def ask_to_stop(callback, args, state, control, **kwargs):
        callback.stop.requested = state.global_step == 5
        on_step_end(callback, args, state, control, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(StopWhenAsked, "on_step_end", ask_to_stop)
        with pytest.raises(Interrupted):
            pretrain(config(name="halting", **settings))
    halting = pretrain(config(name="halting", **settings))
    ours, theirs = (AutoModelForMaskedLM.from_pretrained(each.parent / "model") for each in (straight, halting))
    assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in ours.state_dict().items())


def test_what_is_hidden_depends_on_seed_epoch_and_row_alone(config) -> None:
    run = _Pretraining(config())
    network = MaskedNetwork(config(), run.train, None)
    texts = HiddenRows(network, run.train, seed=0)
    first = texts.collate([texts[i] for i in range(8)])
    torch.manual_seed(99)
    again = texts.collate([texts[i] for i in range(8)])
    assert torch.equal(first["input_ids"], again["input_ids"])
    texts.set_epoch(1)
    assert not torch.equal(first["labels"], texts.collate([texts[i] for i in range(8)])["labels"])
    special = torch.isin(
        first["input_ids"], torch.tensor([network.tokenizer.cls_token_id, network.tokenizer.pad_token_id])
    )
    assert (first["labels"][special & (first["attention_mask"] == 0)] == -100).all()
    untrained = performance_of(network, network.rows(run.held_out)).metrics["P"][0]
    assert untrained == pytest.approx(-math.log(len(network.tokenizer)), abs=0.3), "a new model holds all for equal"
    assert performance_of(copy.copy(network), run.held_out).metrics["P"][0] == untrained


@pytest.mark.parametrize(
    ("text", "halves"),
    [
        ("One. Two is longer.", ("One.", "Two is longer.")),
        ("one two three four", ("one two", "three four")),
        ("小明看書", ("小明", "看書")),
        ("他来了。我走了", ("他来了。", "我走了")),
        ("a", ("a", "")),
    ],
)
def test_halves_of_a_text(text: str, halves: tuple[str, str]) -> None:
    assert split_in_halves(text) == halves


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"objective__lambda_sup": 1}, "objective.lambda_sup is 1.0, but there is no labelled data for ℓ"),
        ({"objective__lambda_sup": "gate:value=1,success=0.5"}, "steered by what episodes are like"),
        ({"text__train": "null"}, "text.train is null"),
        ({"objective__mask_share": 1}, "objective.mask_share is 1.0"),
        ({"objective__performance": "causal", "objective__next_sentence": True}, "expected 'masked'"),
        ({"pretrain__metric": "ell"}, "the best epoch is that of P"),
        ({"data__augment": "{drop: 0.1}"}, "rlobj pretrain does not"),
    ],
)
def test_mistakes_are_told(config, arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        pretrain(config(**arguments))
