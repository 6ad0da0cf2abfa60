"""A trained model on new data, with rehearsal of the old: what it forgets is measured, and λ keeps it from that."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification, TrainerCallback, TrainingArguments

from rlobj.cli import main
from rlobj.continue_config import ContinueConfig, continued, validate_continue
from rlobj.continuing import RehearsalTrainer, _Continuing
from rlobj.fit_config import FitConfig, LabelledConfig
from rlobj.fit_tasks import TASKS, TrainingRows
from rlobj.forgetting import Figure, compared
from rlobj.lambdas import as_lambda
from rlobj.objective import objective
from rlobj.policies import load_encoder
from rlobj.prediction import Predictor, model_directory
from rlobj.progress import StopWhenAsked
from rlobj.recipes import read_recipe
from rlobj.rehearsal import RehearsedNetwork, grow_head, load_trained, names_of
from rlobj.results import lambda_directory
from rlobj.runs import read_outputs
from rlobj.stream import SupervisedStream

OLD, NEW = ["red", "green", "blue"], ["box", "door", "boat"]
SIZE = {
    "policy.hidden_size": 32, "policy.layers": 1, "policy.heads": 2, "policy.max_length": 32, "policy.vocab_size": 350,
    "fit.epochs": 6, "fit.batch_size": 16, "fit.learning_rate": 5e-3,
}  # fmt: skip
MORE = ["--fit.epochs", "10", "--fit.batch_size", "16", "--fit.learning_rate", "8e-3"]


def rows(labels: list[str], n: int = 240) -> list[dict[str, Any]]:
    """Old: the colour of a thing is what counts. New: things without a colour, which count themselves."""
    rng, made = random.Random(0), []
    for _ in range(n):
        label, thing = rng.choice(labels), rng.choice(NEW)
        named = [label, thing] if labels is OLD else [label]
        text = ["see", "the", *named, "over", "there"][rng.randrange(2) :]
        tags = [("B-colour" if labels is OLD else "B-thing") if word == label else "O" for word in text]
        score = (100.0 if labels is OLD else 120.0) + 10 * labels.index(label)
        made.append({"text": " ".join(text), "label": label, "score": score, "words": text, "tags": tags})
    return made


def write(file: Path, made: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in made))
    return file


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Old and new data, and a classifier of the old."""
    home = tmp_path_factory.mktemp("home")
    write(home / "old.jsonl", rows(OLD))
    write(home / "new.jsonl", rows(NEW))
    fitted(home, "old")
    return home


def fitted(home: Path, name: str, **more: Any) -> Path:
    settings = {"data.train": home / "old.jsonl", "output_dir": home, "name": name, **SIZE, **more}
    assert main(["fit", "bert-classifier", *[f"--{key}={value}" for key, value in settings.items()]]) == 0
    return home / name


def table_of(run: Path) -> dict[tuple[str, str, str], dict[str, list[float]]]:
    table = json.loads((run / "summary.json").read_text())["table"]
    return {(row["name"], row["data"], row["measure"]): row for row in table}


@pytest.fixture(scope="module")
def run(home: Path) -> Path:
    assert (
        main(["continue", str(home / "old"), "--data", str(home / "new.jsonl"), "--lambda_sup", "0", "1", *MORE]) == 0
    )
    return home / "old-continued"


def test_rehearsal_keeps_what_would_be_forgotten(run: Path, home: Path) -> None:
    table = table_of(run)
    plain, rehearsed = (table[f"λ = {value}", "old", "accuracy"] for value in (0, 1))
    assert plain["before"] == rehearsed["before"] and plain["before"][0] > 0.9
    assert plain["change"][2] < -0.3, "without rehearsal the old labels are forgotten"
    assert rehearsed["change"][0] > plain["change"][0] + 0.3 and rehearsed["after"][0] > 0.9
    new = table["λ = 1", "new", "accuracy"]
    assert new["before"][0] == 0 and new["after"][0] > 0.9, "labels that it did not have"
    assert new["change"][0] == pytest.approx(new["after"][0])
    ell = [table[f"λ = {value}", "new", "ell"] for value in (0, 1)]
    assert all("before" not in row for row in ell), "it would be infinite"
    assert ell[0]["after"][0] < 1.5, "new labels alone are given now"
    assert table["λ = 0", "old", "ell"]["change"][1] > 0


def test_old_rows_are_split_as_they_were_whatever_the_seed(run: Path, home: Path) -> None:
    learned = TASKS["text-classification"](read_recipe(FitConfig, str(home / "old" / "config.yaml")))
    again = _Continuing(read_recipe(ContinueConfig, str(run / "config.yaml"), ["--seed=7"]))
    assert again.old["old"].parts == learned.parts, "what was learned is in no test"
    assert again.new.parts != _Continuing(read_recipe(ContinueConfig, str(run / "config.yaml"))).new.parts
    with pytest.raises(ValueError, match="split_seeds has 2 seeds: expected 1"):
        validate_continue(read_recipe(ContinueConfig, str(run / "config.yaml"), ["--split_seeds=[0, 1]"]))


def test_lambda_zero_computes_no_ell_and_logs_none(run: Path) -> None:
    for value, logged in ((0.0, False), (1.0, True)):
        history = read_outputs(lambda_directory(run, value))["history"]
        assert any("objective/ell" in log for log in history) == logged


def test_the_head_has_the_old_labels_in_front(run: Path, home: Path) -> None:
    before = AutoModelForSequenceClassification.from_pretrained(home / "old" / "model").config
    after = AutoModelForSequenceClassification.from_pretrained(lambda_directory(run, 1.0)).config
    names = [after.id2label[index] for index in range(after.num_labels)]
    assert names[:3] == [before.id2label[index] for index in range(3)] and sorted(names[3:]) == sorted(NEW)
    texts = [{"text": "see the door over there"}, {"text": "the blue door over there"}]
    said = list(Predictor(model_directory(run, "lambda=1"))(texts))
    assert [row["predicted"] for row in said] == ["door", "blue"]
    assert main(["export", str(run), str(home / "exported"), "--policy", "lambda=1"]) == 0
    card = (home / "exported" / "README.md").read_text()
    assert "ℓ_new(θ) + λ·ℓ_old(θ)" in card and "| λ = 1, old, accuracy | " in card and "λ = 0, old" not in card


def test_the_report_and_the_terminal(run: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = (run / "report.html").read_text()
    assert "new labels" in report and "accuracy, old data" in report and "change" in report
    capsys.readouterr()
    assert (
        main(["continue", str(home / "old"), "--data", str(home / "new.jsonl"), "--lambda_sup", "0", "1", *MORE]) == 0
    )
    said = capsys.readouterr().out
    assert said.count("done before, inputs unchanged") == 3, "what was done is not done again"
    assert "λ = 1  old" in said and "before" in said


def test_a_continued_run_is_gone_on_with(run: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A third set of labels; both that were learned before are rehearsed, and judged each by itself."""
    last = write(home / "last.jsonl", rows(["hat", "cup", "sun"]))
    more = ["--fit.epochs", "15", "--fit.batch_size", "16", "--fit.learning_rate", "3e-3"]
    command = ["continue", str(run), "--data", str(last), "--lambda_sup", "0", "1", *more]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "– : before, the model had not all of these labels" in said
    again = home / "old-continued-2"
    table = table_of(again)
    for side in ("old 1", "old 2"):
        plain, rehearsed = (table[f"λ = {value}", side, "accuracy"] for value in (0, 1))
        assert plain["before"] == rehearsed["before"] and plain["before"][0] > 0.9, "that of λ = 1"
        assert plain["after"][0] + 0.3 < rehearsed["after"][0] > 0.8
    assert table["λ = 1", "new", "accuracy"]["after"][0] > 0.8
    names = names_of("text-classification", str(lambda_directory(again, 1.0)))
    assert len(names) == 9 and names[:6] == names_of("text-classification", str(lambda_directory(run, 1.0)))
    report = (again / "report.html").read_text()
    files = [f"<dt>old {n}: data</dt><dd>{home / name}</dd>" for n, name in ((1, "old.jsonl"), (2, "new.jsonl"))]
    for line in (*files, "– : before, the model had not all", "accuracy, old 2 data", "<dd>0.003</dd>",
                 f"rlobj continue {run} --config {again / 'config.yaml'}"):  # fmt: skip
        assert line in report
    assert main(["continue", str(run), "--config", str(again / "config.yaml")]) == 0
    assert capsys.readouterr().out.count("done before, inputs unchanged") == 3
    told = continued(again, Path("x"))
    assert told["name"] == "old-continued-3"
    assert [each["train"] for each in (*told["older"], told["old"])] == [
        str(home / name) for name in ("old.jsonl", "new.jsonl", "last.jsonl")
    ]
    assert main([*command, "--older", "[{trains: x}]"]) == 2
    assert "older has 'trains'; did you mean 'train'?: expected the fields of old" in capsys.readouterr().err


def test_where_a_run_lies_is_said_as_it_was_given(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    assert continued("old", Path("old/model"))["output_dir"] == "."
    monkeypatch.chdir(home / "old")
    told = continued(".", Path("model"))
    assert told["output_dir"] == str(home) and told["name"] == "old-continued"


FORM = "lagrange:factor=0.1,start=0.5,ki=0.5"


def test_an_interrupted_training_goes_on_to_the_same_weights(
    home: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = ["--fit.epochs", "2", "--fit.batch_size", "16"]
    command = ["continue", str(home / "old"), "--data", str(home / "new.jsonl"), *more, "--name", "again"]
    form = ["--lambda_sup", FORM]
    assert main([*command[:-1], "straight", *form]) == 0
    stop = StopWhenAsked.on_step_end
    calls = []

    def stop_early(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        calls.append(state.global_step)
        if state.global_step == 15:
            self.stop.requested = True
        return stop(self, args, state, control, **kwargs)

    monkeypatch.setattr(StopWhenAsked, "on_step_end", stop_early)
    assert main([*command, *form]) == 130
    monkeypatch.setattr(StopWhenAsked, "on_step_end", stop)
    assert main([*command, *form]) == 0
    place = lambda_directory(Path(), FORM) / "model.safetensors"
    whole, again = (load_file(home / name / place) for name in ("straight", "again"))
    assert calls and all(torch.equal(whole[name], again[name]) for name in whole)
    history = read_outputs((home / "straight" / place).parent)["history"]
    assert len({log["objective/lambda_sup"] for log in history if "objective/lambda_sup" in log}) > 1, "λ is steered"


class KeepGradients(TrainerCallback):
    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.gradients = {n: p.grad.clone() for n, p in kwargs["model"].named_parameters() if p.grad is not None}


def test_the_gradient_is_that_of_both_terms_however_the_batch_is_split(home: Path, tmp_path: Path) -> None:
    """∇L = ∇ℓ_new + λ∇ℓ_old, each the mean over its own rows."""
    found = []
    for size, parts in ((12, 1), (4, 3)):
        model, tokenizer = load_trained("text-classification", str(home / "old" / "model"))
        model.eval()  # no dropout
        config = FitConfig("x", "text-classification", data=LabelledConfig(train=str(home / "old.jsonl")))
        task = TASKS["text-classification"](config)
        task.names = names_of("text-classification", str(home / "old" / "model"))
        new, old = task.parts["train"][:12], task.parts["train"][20:27]
        network = RehearsedNetwork(task, model, tokenizer)
        encoded = network.old_rows([task.encode(tokenizer, example, 32) for example in old])
        task.parts = {**task.parts, "train": new}
        trainer = trainer_for(network, task, tokenizer, tmp_path, size, parts, encoded)
        keep = KeepGradients()
        trainer.add_callback(keep)
        trainer.train()
        found.append(keep.gradients)
        if parts == 1:
            plain, _ = load_trained("text-classification", str(home / "old" / "model"))
            plain.eval()
            losses = [
                torch.stack([
                    F.cross_entropy(plain(input_ids=torch.tensor([row["input_ids"]])).logits,
                                    torch.tensor([row["labels"]]))
                    for row in (task.encode(tokenizer, example, 32) for example in examples)
                ]).mean()
                for examples in (new, old)
            ]  # fmt: skip
            objective(-losses[0], losses[1], 0.7).backward()
            expected = {n: p.grad for n, p in plain.named_parameters() if p.grad is not None}
    for gradients in found:
        assert gradients.keys() == expected.keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)


def trainer_for(
    network: Any, task: Any, tokenizer: Any, directory: Path, size: int, parts: int, old: Any
) -> RehearsalTrainer:
    args = TrainingArguments(
        str(directory), max_steps=1, per_device_train_batch_size=size, gradient_accumulation_steps=parts,
        max_grad_norm=0.0, report_to="none", use_cpu=True, save_strategy="no", disable_tqdm=True,
        remove_unused_columns=False, dataloader_pin_memory=False,
    )  # fmt: skip
    for module in network.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return RehearsalTrainer(
        network, args, data_collator=network.pad, train_dataset=TrainingRows(task, tokenizer, 32, {}, 0),
        measure=dict, lambda_sup=as_lambda(0.7), stream=SupervisedStream(old, len(old), 0),
    )  # fmt: skip


def test_a_grown_head_says_of_old_labels_what_it_said(home: Path) -> None:
    model, tokenizer = load_trained("text-classification", str(home / "old" / "model"))
    names = [model.config.id2label[index] for index in range(3)]
    ids = torch.tensor([tokenizer("see the red box")["input_ids"]])
    model.eval()
    before = model(input_ids=ids).logits
    grow_head(model, [*names, "x", "y"], seed=0)
    after = model(input_ids=ids).logits
    assert after.shape == (1, 5) and torch.allclose(after[:, :3], before, atol=1e-6)
    assert model.config.label2id["y"] == 4
    grow_head(model, [*names, "x", "y"], seed=1)
    assert torch.equal(model(input_ids=ids).logits, after), "the same labels: nothing grows"
    with pytest.raises(ValueError, match="decides between 3 labels, the data between 5"):
        load_encoder(home / "old" / "model", [*names, "x", "y"])


def test_changes_are_of_differences_within_rows() -> None:
    rng = np.random.default_rng(0)
    hard = rng.random(400)  # some rows are hard for both
    before = {"ell": Figure(hard.tolist(), [1.0] * 400)}
    after = {"ell": Figure((hard + 0.1 + 0.01 * rng.standard_normal(400)).tolist(), [1.0] * 400)}
    found = compared(before, after, resamples=500)["ell"]
    value, low, high = found["change"]
    assert value == pytest.approx(0.1, abs=0.002) and low <= value <= high and high - low < 0.005
    assert found["after"][2] - found["after"][1] > 0.03, "the rows themselves differ much more"
    weighed = compared({"f1": Figure([1.0, 0.0], [1.0, 3.0])}, {"f1": Figure([1.0, 3.0], [1.0, 3.0])}, resamples=0)
    assert weighed["f1"]["before"][0] == 0.25 and weighed["f1"]["change"][0] == 0.75
    with pytest.raises(ValueError, match="ell is of 400 rows before and of 3 after"):
        compared(before, {"ell": Figure([1.0] * 3, [1.0] * 3)})


@pytest.mark.parametrize(
    ("task", "columns", "measure"),
    [
        ("token-classification", {"data.text_column": "words", "data.label_column": "tags"}, "f1"),
        ("regression", {"data.label_column": "score"}, "mae"),
        ("language-modeling", {}, "ell"),
    ],
)
def test_the_other_tasks(home: Path, task: str, columns: dict[str, str], measure: str) -> None:
    name = f"old-{task}"
    rate = {"fit.epochs": 8} if task == "regression" else {}
    fitted(home, name, task=task, **columns, **{"fit.epochs": 3, **rate})
    more = ["--fit.epochs", "2", "--fit.batch_size", "16", "--fit.learning_rate", "5e-3", "--objective.rows", "100"]
    assert main(["continue", str(home / name), "--data", str(home / "new.jsonl"), *more]) == 0
    table = table_of(home / f"{name}-continued")
    less = measure != "f1"
    for value in (0, 1):
        new = table[f"λ = {value}", "new", measure]
        assert (new["change"][0] < 0) == less, "the new is learned"
    worse = [table[f"λ = {value}", "old", measure]["change"][0] * (1 if less else -1) for value in (0, 1)]
    assert worse[0] > worse[1], "and λ keeps more of the old"
    facts = (home / f"{name}-continued" / "report.html").read_text()
    assert ("B-thing" in facts) == (task == "token-classification"), "a new tag makes the head grow"


def test_a_policys_supervised_part(home: Path, tmp_path: Path) -> None:
    """A run of reinforcement learning on labelled texts is gone on with as a classifier."""
    small = ["--policy.hidden_size", "16", "--policy.layers", "1", "--policy.heads", "2", "--policy.max_length", "32",
             "--warm_start.epochs", "2", "--training.steps", "1", "--training.prompts_per_step", "2",
             "--training.num_generations", "2", "--env.eval_episodes", "4", "--output_dir", str(tmp_path)]  # fmt: skip
    assert main(["run", "customer-intents", "--data.train", str(home / "old.jsonl"), "--name", "rl", *small,
                 "--data.rows_per_label", "null", "--objective.lambda_sup", "0.1"]) == 0  # fmt: skip
    assert main(["continue", str(tmp_path / "rl"), "--data", str(home / "new.jsonl"), "--lambda_sup", "1",
                 "--fit.epochs", "1", "--fit.learning_rate", "1e-3"]) == 0  # fmt: skip
    table = table_of(tmp_path / "rl-continued")
    assert table["λ = 1", "old", "accuracy"]["before"][0] >= 0
    assert table["λ = 1", "new", "ell"]["after"][0] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "data.train is null: give a file with --data FILE"),
        (["--data", "{new}", "--lambda_sup", "-1"], "lambda_sup is -1.0: expected a finite number >= 0"),
        (
            ["--data", "{new}", "--lambda_sup", "1", "1"],
            "objective.lambda_sup is [1.0, 1.0]: expected one λ or several",
        ),
        (["--data", "{new}", "--lambda_sup", "gate:value=1,success=0.2"], "steered by what episodes are like"),
        (["--data", "{new}", "--objective.rows", "0"], "objective.rows is 0: expected a finite number of at least 1"),
        (["--data", "{new}", "--fit.patience", "2"], "fit.patience is 2: rlobj continue keeps the last epoch"),
        (["--data", "{new}", "--fit.epoch", "2"], "unknown key 'fit.epoch' in the command line; did you mean"),
        (["--data", "{new}", "--old.train", "{new}"], "old.train '{new}' has the labels boat, box, door, which"),
        (["--data", "{missing}"], "data.train is '{missing}': there is no such file"),
        (
            ["--data", "{new}", "--old.augment", "{{drop: 0.1}}"],
            "old.augment is {{'drop': 0.1}}: old rows are rehearsed",
        ),
    ],
)
def test_mistakes_are_told_before_anything_is_trained(
    home: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    named = {"new": home / "new.jsonl", "missing": home / "missing.jsonl"}
    command = ["continue", str(home / "old"), *[each.format(**named) for each in arguments], "--name", "mistake"]
    assert main(command) == 2
    assert message.format(**named) in capsys.readouterr().err
    assert not (home / "mistake" / "policies").exists()


def test_what_is_no_run_to_go_on_with(home: Path, run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no config\.yaml: expected the folder of a run"):
        continued(tmp_path, tmp_path)
    (tmp_path / "config.yaml").write_text("text: {train: x}\n")
    with pytest.raises(ValueError, match="is no run of rlobj fit, run or continue"):
        continued(tmp_path, tmp_path)
    (tmp_path / "config.yaml").write_text("env: {id: rlobj/CustomerService-v0}\ndata: {train: null}\n")
    with pytest.raises(ValueError, match="learned from what its environment made, not from a file"):
        continued(tmp_path, tmp_path)
    (tmp_path / "config.yaml").write_text("env: {id: rlobj/Recommendation-v0}\ndata: {train: log.jsonl}\n")
    with pytest.raises(ValueError, match="learned from clicks: rlobj continue goes on with labelled texts"):
        continued(tmp_path, tmp_path)


def test_the_configuration_is_that_of_the_run(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["continue", str(home / "old"), "--data", "x", "--print_config"]) == 0
    shown = capsys.readouterr().out
    assert f"train: {home / 'old.jsonl'}" in shown and "task: text-classification" in shown
    assert ContinueConfig("x", "regression").objective.lambdas == [0.0, 1.0]
