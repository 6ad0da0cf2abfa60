"""Prompts over the context, and data that nothing can be trained on (FAULTS rows 21 and 22)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium
import pytest
from datasets import Dataset
from small import small_args, small_policy, small_prompts, zero_reward

import envs  # noqa: F401
from rlobj.chat_format import ChatFormat
from rlobj.cli import main
from rlobj.config import RolloutConfig
from rlobj.encoder_policy import as_one_token_policy
from rlobj.evaluation import evaluate
from rlobj.policies import load_causal, load_tokenizer, make_encoder, make_tokenizer
from rlobj.results import load_summary
from rlobj.sampling import Sampling
from rlobj.trainer import ObjectiveTrainer

SHORT, LONG = "the cat", "where is the blue boat now " * 8
CORPUS = [SHORT, LONG, "a dog ran", LONG, "the red door", "the mat", LONG, "the boat"]
KEPT = [0, 2, 4, 5, 7]
ROOM = 30


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_policy(tmp_path_factory.mktemp("policy"))


def corpus_env() -> gymnasium.Env[Any, Any]:
    prompts = [[{"role": "user", "content": text}] for text in CORPUS]
    return gymnasium.make("rlobj/Dialogue-v0", prompts=prompts, references=CORPUS)


def trainer_of(policy: Path, tmp_path: Path, **more: Any) -> ObjectiveTrainer:
    given = {"env": corpus_env(), "train_seeds": range(len(CORPUS)), "max_length": ROOM + 8, **more}
    args = small_args(tmp_path, max_steps=2, max_completion_length=8)
    return ObjectiveTrainer(load_causal(policy), args=args, processing_class=load_tokenizer(policy), **given)


def test_long_openings_stop_before_the_first_step(policy: Path, tmp_path: Path) -> None:
    tokens = len(ChatFormat(load_tokenizer(policy)).prompt_ids([{"role": "user", "content": LONG}]))
    words = f"prompts are too long, 3 of 8, such as that of episode 1 with {tokens} tokens where {ROOM} leave room for"
    with pytest.raises(ValueError, match=f"{words} a reply: raise policy.max_length, lower training.max_reply_tokens"):
        trainer_of(policy, tmp_path, rollout=RolloutConfig(long_prompts="error"))


def test_long_openings_are_dropped_and_counted(
    policy: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_of(policy, tmp_path, rollout=RolloutConfig(long_prompts="drop"))
    assert [prompt[-1]["seed"] for prompt in trainer.train_dataset["prompt"]] == KEPT
    assert "up to step 0 prompts are too long, 3 of 8" in caplog.text and "left out" in caplog.text
    trainer.train()
    assert trainer.state.global_step == 2
    assert trainer.alarms.told[0]["name"] == "long prompts", "the report has it"
    assert all(log["prompts/cut"] == 0 for log in trainer.state.log_history if "prompts/cut" in log)


def test_by_default_they_keep_their_end(policy: Path, tmp_path: Path) -> None:
    trainer = trainer_of(policy, tmp_path)
    trainer.train()
    assert any(log.get("prompts/cut", 0) > 0 for log in trainer.state.log_history)


def test_nothing_is_left_where_all_are_too_long(policy: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="prompts are too long, 2 of 2, such as that of episode 3"):
        trainer_of(policy, tmp_path, rollout=RolloutConfig(long_prompts="drop"), train_seeds=[3, 6])


def test_too_few_are_left_for_a_generation(policy: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there are 1 prompts .* and a generation takes 2 different ones: nothing"):
        trainer_of(policy, tmp_path, rollout=RolloutConfig(long_prompts="drop"), train_seeds=[0, 1, 3])


@pytest.mark.parametrize(("what", "played"), [("cut", list(range(8))), ("drop", KEPT)])
def test_the_evaluation_goes_by_the_same_rule(policy: Path, what: Any, played: list[int]) -> None:
    sampling = Sampling(8, ROOM + 8, long_prompts=what)
    result = evaluate(load_causal(policy), load_tokenizer(policy), corpus_env, None, sampling, range(8), [], None)
    assert [episode.seed for episode in result.episodes] == played


def test_an_encoder_counts_the_tokens_of_its_text(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(CORPUS, 300, 32)
    size = {"hidden_size": 16, "layers": 1, "heads": 2, "max_length": 32, "seed": 0}
    model = as_one_token_policy(make_encoder(tokenizer, ["a", "b"], **size))
    labels = ["a", "b"] * 4
    env = gymnasium.make("rlobj/Classification-v0", texts=CORPUS, labels=labels, label_names=["a", "b"])
    given = {"env": env, "train_seeds": range(8), "processing_class": tokenizer, "max_length": 100}
    args = small_args(tmp_path, max_steps=1, max_completion_length=1)
    with pytest.raises(ValueError, match=r"3 of 8, such as that of episode 1 with \d+ tokens where 32 leave room"):
        ObjectiveTrainer(model, args=args, rollout=RolloutConfig(long_prompts="error"), **given)
    trainer = ObjectiveTrainer(model, args=args, rollout=RolloutConfig(long_prompts="drop"), **given)
    assert [prompt[-1]["seed"] for prompt in trainer.train_dataset["prompt"]] == KEPT


def test_prompts_of_a_data_set_of_trls(policy: Path, tmp_path: Path) -> None:
    """TRL itself trains on beyond the positions of rotary models, and breaks off in those that learn them."""
    far = [{"prompt": [{"role": "user", "content": text}]} for text in (SHORT, LONG * 3, "a dog")]
    given = {"env": None, "train_seeds": None, "reward_funcs": zero_reward, "train_dataset": Dataset.from_list(far)}
    with pytest.raises(ValueError, match=r"1 of 3, such as that of row 1 with \d+ tokens where 120 leave room"):
        trainer_of(policy, tmp_path, **given)
    trainer = trainer_of(policy, tmp_path, **given, rollout=RolloutConfig(long_prompts="drop"))
    assert [row[0]["content"] for row in trainer.train_dataset["prompt"]] == [SHORT, "a dog"]
    assert trainer_of(policy, tmp_path, **{**given, "train_dataset": small_prompts()}).train_dataset.num_rows == 16


def test_a_run_drops_and_refuses(policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "corpus.jsonl"
    rows = [{"prompt": text, "completion": f"it sat {n}"} for n, text in enumerate([*CORPUS, *CORPUS])]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run(what: str, name: str) -> int:
        return main(["run", "corpus-dialogue", "--data.train", str(file), "--policy.model", str(policy),
                     "--policy.max_length", str(ROOM + 8), "--training.max_reply_tokens", "8", "--name", name,
                     "--rollout.long_prompts", what, "--training.steps", "5", "--training.prompts_per_step", "2",
                     "--training.num_generations", "2", "--objective.lambda_sup", "0", "--reward.kind", "function",
                     "--reward.function", "length_window", "--env.eval_episodes", "2", "--seed", "3",
                     "--output_dir", str(tmp_path)])  # fmt: skip

    assert run("error", "refused") == 2
    assert "prompts are too long, " in capsys.readouterr().err
    assert not list(tmp_path.glob("refused/policies/*/model.safetensors")), "before the first step"
    assert run("drop", "dropped") == 0
    assert load_summary(tmp_path / "dropped")[1]["return"][0] >= 0


# Data that nothing can be trained on ----------------------------------------------------------------------------------


def test_no_seeds(policy: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="train_seeds is empty: expected at least one episode to train on"):
        trainer_of(policy, tmp_path, train_seeds=[])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (Dataset.from_dict({"prompt": []}), "train_dataset is empty: expected at least one prompt"),
        (Dataset.from_dict({"promt": ["x"]}), "train_dataset has the columns promt: expected prompt; did you mean"),
        (Dataset.from_dict({"prompt": ["x", ""]}), "the prompt of row 1 of train_dataset is empty: expected some text"),
        (Dataset.from_dict({"prompt": ["x"]}), "there are 1 prompts .* and a generation takes 2 different ones"),
    ],
    ids=["empty", "no column", "empty prompt", "too few"],
)
def test_a_data_set_of_trls_that_cannot_be_trained_on(
    policy: Path, tmp_path: Path, rows: Dataset, message: str
) -> None:
    """TRL ends normally at step 0, or with a bare IndexError."""
    given = {"env": None, "train_seeds": None, "reward_funcs": zero_reward, "train_dataset": rows}
    with pytest.raises(ValueError, match=message):
        trainer_of(policy, tmp_path, **given)


EMPTY = {
    "nothing.jsonl": "", "blank.jsonl": "\n \n", "list.json": "[]", "header.csv": "text,label\n", "x.tsv": "a\tb\n",
}  # fmt: skip


@pytest.mark.parametrize("name", EMPTY)
@pytest.mark.parametrize(
    ("recipe", "key"),
    [
        ("banking-intents", "data.train"), ("banking-intents", "data.eval"), ("corpus-dialogue", "data.train"),
        ("customer-service", "data.preferences"), ("customer-service", "data.rated"),
        ("customer-service", "objective.sources"), ("customer-service", "data.train"),
    ],
)  # fmt: skip
def test_an_empty_file_is_an_error_wherever_it_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], recipe: str, key: str, name: str
) -> None:
    file, fine = tmp_path / name, tmp_path / "fine.jsonl"
    file.write_text(EMPTY[name])
    fine.write_text("".join(json.dumps({"text": f"row {n}", "label": "ab"[n % 2]}) + "\n" for n in range(20)))
    value = json.dumps({str(file): 1}) if key == "objective.sources" else str(file)
    more = ["--data.train", str(fine)] if key == "data.eval" else []
    assert main(["run", recipe, *more, f"--{key}", value, "--data.demonstrations", "8",
                 "--output_dir", str(tmp_path / "runs")]) == 2  # fmt: skip
    told = capsys.readouterr().err
    assert str(file) in told and ("has no rows" in told or "the file is empty" in told)
    assert not list(tmp_path.glob("runs/*/warm_start"))


@pytest.mark.parametrize("verb", [("fit", "bert-classifier", "data.train"), ("pretrain", "masked", "text.train")])
def test_fit_and_pretrain_refuse_an_empty_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: tuple[str, str, str]
) -> None:
    file = tmp_path / "header.csv"
    file.write_text("text,label\n")
    assert main([verb[0], verb[1], f"--{verb[2]}", str(file), "--output_dir", str(tmp_path / "runs")]) == 2
    assert "has no rows" in capsys.readouterr().err and not (tmp_path / "runs").exists()


def test_rows_that_stand_there_twice_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They are no error, since data as people write them have some; but those that are judged on what was learned are
    told."""
    file = tmp_path / "rows.jsonl"
    texts = [("the red door", "a"), ("the blue boat", "b"), *[(f"row {n}", "ab"[n % 2]) for n in range(16)]]
    rows = [{"text": text, "label": label} for text, label in [*texts, *texts]]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    size = ["--policy.hidden_size", "16", "--policy.layers", "1", "--policy.heads", "2", "--policy.max_length", "32"]
    assert main(["run", "customer-intents", "--data.train", str(file), *size, "--data.rows_per_label", "null",
                 "--warm_start.epochs", "1", "--training.steps", "1", "--training.prompts_per_step", "2",
                 "--training.num_generations", "2", "--objective.lambda_sup", "0", "--name", "twice",
                 "--output_dir", str(tmp_path)]) == 0  # fmt: skip
    report = (tmp_path / "twice" / "report.html").read_text()
    assert "18 of 36 rows stand there before" in report
    assert "4 of 4 held-out rows were learned from, too" in report


@pytest.mark.parametrize("recipe", ["banking-intents", "corpus-dialogue"])
def test_a_file_with_one_row_again_and_again(tmp_path: Path, capsys: pytest.CaptureFixture[str], recipe: str) -> None:
    file = tmp_path / "same.jsonl"
    row = {"text": "the cat", "label": "a"} if recipe == "banking-intents" else {"prompt": "x", "completion": "y"}
    file.write_text((json.dumps(row) + "\n") * 20)
    assert main(["run", recipe, "--data.train", str(file), "--output_dir", str(tmp_path / "runs")]) == 2
    told = capsys.readouterr().err
    assert "all 20 rows" in told or "the same" in told
    assert not (tmp_path / "runs").exists()
