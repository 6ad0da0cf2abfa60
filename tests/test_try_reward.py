"""`rlobj try-reward` and `rlobj list`: scores and names at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlobj.cli import main


def said(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 0) -> str:
    assert main(arguments) == status
    captured = capsys.readouterr()
    return captured.err if status else captured.out


def test_texts_with_parameters_and_columns(capsys: Any) -> None:
    arguments = ("try-reward", "length_window", "a b c d", "one", "--kwargs.low", "2", '--kwargs={"high": 4}')
    assert said(capsys, *arguments).splitlines() == [
        f"{'1':>10}  a b c d",
        f"{'0.5':>10}  one",
        "mean 0.75, from 0.5 to 1; 2 texts, 0 without a reward",
    ]
    assert said(capsys, "try-reward", "label_match", "yes", "--columns.label", "yes").split() == ["1", "yes"]


def test_one_episode_function_of_a_file_sees_prompt_and_text(capsys: Any, tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "def echo(messages, bonus=0.0):\n    return bonus + (messages[0]['content'] in messages[1]['content'])\n"
    )
    spec = f"{path}:echo"
    assert said(capsys, "try-reward", spec, "say hi", "--prompt", "hi", "--kwargs.bonus", "0.5").split()[0] == "1.5"
    told = said(capsys, "try-reward", spec, "hi", "--kwargs.bonsu", "1", status=2)
    assert "no parameter 'bonsu'; did you mean 'bonus'" in told


def test_a_file_of_rows(capsys: Any, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows: list[Any] = [
        {"completion": "rot", "label": "rot"},
        {"prompt": "farbe?", "text": "blau", "label": "rot"},
        {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "红"}], "label": "红"},
    ]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n\n", encoding="utf-8")
    scores = [line.split() for line in said(capsys, "try-reward", "label_match", "--file", str(path)).splitlines()]
    assert scores[:3] == [["1", "rot"], ["0", "blau"], ["1", "红"]]
    plain = tmp_path / "lines.txt"
    plain.write_text("a b\n\nc\n", encoding="utf-8")
    assert "2 texts" in said(capsys, "try-reward", "length_window", "--file", str(plain))


@pytest.mark.parametrize(
    ("content", "message"),
    [('{"completion": "a"}\n{"answer": "b"}', "line 2 is"), ("{", "line 1 is not JSON"), ("\n\n", "is empty")],
)
def test_rows_that_are_none(capsys: Any, tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(content)
    assert message in said(capsys, "try-reward", "length_window", "--file", str(path), status=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["length_window"], "nothing to score"),
        (["length_widow", "a"], "did you mean 'length_window'"),
        (["length_window", "a", "--kwargs.low"], "--kwargs.low has no value"),
        (["length_window", "a", "--kwargs", "3"], "--kwargs is '3': expected"),
        (["label_match", "a"], "reads the column 'label'"),
    ],
)
def test_mistakes_are_told(capsys: Any, arguments: list[str], message: str) -> None:
    assert message in said(capsys, "try-reward", *arguments, status=2)


def test_a_reward_model_directory(capsys: Any, tmp_path: Path) -> None:
    from small import TEXTS
    from transformers import LlamaConfig, LlamaForSequenceClassification

    from reward_models import TrainedReward
    from rlobj.policies import make_tokenizer

    tokenizer = make_tokenizer(TEXTS, vocab_size=300, max_length=64)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        num_labels=1, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    LlamaForSequenceClassification(config).save_pretrained(tmp_path / "judge")
    tokenizer.save_pretrained(tmp_path / "judge")
    score = said(capsys, "try-reward", str(tmp_path / "judge"), "the cat", "--prompt", "a dog").split()[0]
    messages = [[{"role": "user", "content": "a dog"}]], [[{"role": "assistant", "content": "the cat"}]]
    assert float(score) == pytest.approx(TrainedReward(tmp_path / "judge")(*messages)[0], rel=1e-3)


def test_list_of_one_kind(capsys: Any) -> None:
    listed = said(capsys, "list", "rewards")
    assert listed.startswith("Rewards:\n") and "label_match      shipped  1 if" in listed and "Recipes" not in listed
    assert "did you mean 'rewards'" in said(capsys, "list", "reward", status=2)
    assert "customer-service" in said(capsys, "list", "recipes")
