"""Judging rewards on preference pairs."""

from __future__ import annotations

import json

import numpy as np
import pytest

from rlobj.cli import main
from rlobj.judging import judge


def pairs(n=40):
    """The chosen answer is right; it is the longer one in half of the pairs."""
    rows = []
    for i in range(n):
        good = f"yes {i}" + " of course , gladly" * (i % 2)
        bad = f"no {i}" + " , that will not do" * ((i + 1) % 2)
        asked = [{"role": "user", "content": f"can you {i} ?"}]
        rows.append({side: [*asked, {"role": "assistant", "content": text}] for side, text in
                     (("chosen", good), ("rejected", bad))})  # fmt: skip
    return rows


def says(completion):
    return completion[-1]["content"]


def knows(prompts, completions, **columns):
    assert all(prompt[0]["role"] == "user" and len(prompt) == 1 for prompt in prompts)
    return [1.0 if says(c).startswith("yes") else 0.0 for c in completions]


def likes_length(prompts, completions, **columns):
    return [float(len(says(c))) for c in completions]


def test_a_reward_that_knows():
    found = judge(knows, pairs())
    assert found.accuracy[0] == 1 and found.accuracy[1] > 0.9 and found.ties == 0
    assert found.accuracy_when_chosen_is_longer[0] == found.accuracy_when_chosen_is_shorter[0] == 1
    # always right, but only sigmoid(1) sure
    assert found.calibration_error == pytest.approx(1 - 1 / (1 + np.exp(-1)), abs=1e-9)
    assert found.texts_per_second > 0


def test_a_reward_that_only_likes_length():
    found = judge(likes_length, pairs())
    assert found.accuracy[0] == pytest.approx(0.5)
    assert found.length_correlation == pytest.approx(1)
    assert found.accuracy_when_chosen_is_longer[0] == 1
    assert found.accuracy_when_chosen_is_shorter[0] == 0


def test_a_reward_without_an_opinion_is_half_right():
    found = judge(lambda prompts, completions: [0.5] * len(completions), pairs())
    assert found.accuracy[0] == 0.5 and found.ties == 1
    assert found.length_correlation is None
    assert found.calibration_error == 0, "it is sure of nothing, and right half the time"


def test_pairs_without_a_score_are_left_out():
    def hesitant(prompts, completions):
        return [None if "3" in says(c) else 1.0 if says(c).startswith("yes") else 0.0 for c in completions]

    found = judge(hesitant, pairs())
    assert found.unscored == sum("3" in str(i) for i in range(40))
    assert found.accuracy[0] == 1 and len(found.chosen) == found.pairs == 40 - found.unscored
    with pytest.raises(ValueError, match="none of the 40 pairs"):
        judge(lambda prompts, completions: [None] * len(completions), pairs())


def test_two_rewards_agree_as_far_as_they_order_pairs_alike():
    assert judge(knows, pairs(), against=knows).agreement[0] == 1
    assert judge(knows, pairs(), against=knows).rank_correlation == pytest.approx(1)
    assert judge(knows, pairs(), against=likes_length).agreement[0] == 0.5


def test_calibration_on_simulated_preferences():
    """Preferences drawn as Bradley and Terry say are calibrated by their own scores, and not by ten times them."""
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(4000, 2))
    better = rng.random(4000) < 1 / (1 + np.exp(scores[:, 1] - scores[:, 0]))
    rows = [
        {"chosen": [{"role": "assistant", "content": str(s[0 if b else 1])}],
         "rejected": [{"role": "assistant", "content": str(s[1 if b else 0])}]}
        for s, b in zip(scores, better, strict=True)
    ]  # fmt: skip
    errors = [
        judge(lambda prompts, completions, by=by: [by * float(says(c)) for c in completions], rows).calibration_error
        for by in (1, 10)
    ]
    assert errors[0] < 0.03 < 0.15 < errors[1]


def test_from_the_command_line(tmp_path, capsys):
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in pairs()))
    (tmp_path / "mine.py").write_text(
        "def mine(prompts, completions, word='no', **columns):\n"
        "    return [float(word in c[-1]['content']) for c in completions]\n"
    )
    mine = f"{tmp_path / 'mine.py'}:mine"
    arguments = ["judge", mine, str(file), "--kwargs.word", "yes", "--output", str(tmp_path / "out")]
    assert main([*arguments, "--against", mine]) == 0
    assert "agreement with the other        0.000" in capsys.readouterr().out
    assert main(arguments) == 0
    assert "1.000 [0.912, 1.000]" in capsys.readouterr().out
    assert json.loads((tmp_path / "out/judgement.json").read_text())["accuracy"][0] == 1
    page = (tmp_path / "out/judgement.html").read_text()
    assert page.count("<svg") == 2 and "src=" not in page
    assert main(["judge", "knows", str(file)]) == 2
    assert main(["judge", "success", str(tmp_path / "none.jsonl")]) == 2
