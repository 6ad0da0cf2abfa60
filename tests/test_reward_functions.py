"""Shipped reward functions, rewards found by name, and what importing them loads."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import reward_models
from reward_models.functions import SHIPPED, list_rewards, load_reward
from reward_models.shipped import length_window

HOME = Path(__file__).parents[1]
PROMPT = [{"role": "user", "content": "What is it?"}]


def said(*texts: str) -> list[list[dict[str, str]]]:
    return [[{"role": "assistant", "content": text}] for text in texts]


def score(name: str, *texts: str, **columns: Any) -> list[float | None]:
    """Called by position, as the protocol allows."""
    return list(load_reward(name)([PROMPT] * len(texts), said(*texts), **columns))


def test_label_match() -> None:
    assert score("label_match", "refund", "Refund", "", label=["refund", "refund", "refund"]) == [1.0, 0.0, 0.0]


def test_last_assistant_message_counts() -> None:
    dialogue = [
        *said("first")[0],
        {"role": "user", "content": "no"},
        *said("second")[0],
        {"role": "user", "content": "x"},
    ]
    reward = load_reward("label_match")
    assert reward(prompts=[PROMPT] * 2, completions=[dialogue] * 2, label=["first", "second"]) == [0.0, 1.0]


def test_exact_match_gives_no_reward_without_reference() -> None:
    assert score("exact_match", " yes ", "no", "no", reference=["yes", "yes", None]) == [1.0, 0.0, None]


def test_success_reads_its_column() -> None:
    assert score("success", "a", "b", success=[True, False], label=["x", "y"]) == [1.0, 0.0]


@pytest.mark.parametrize(("words", "expected"), [(0, 0.0), (1, 1.0), (40, 1.0), (50, 0.8), (80, 0.5)])
def test_length_window(words: int, expected: float) -> None:
    assert score("length_window", "word " * words) == [pytest.approx(expected)]


def test_length_window_with_other_bounds() -> None:
    reward = partial(length_window, low=4, high=5)
    assert reward([PROMPT] * 3, said("a", "a b c d", "a b c d e f g h i j")) == [0.25, 1.0, 0.5]
    with pytest.raises(ValueError, match="low is 6 and high is 5"):
        length_window([PROMPT], said("a"), low=6, high=5)


def test_completion_without_the_policy_is_empty() -> None:
    assert load_reward("length_window")([PROMPT], [[{"role": "user", "content": "hello there"}]]) == [0.0]


@pytest.mark.parametrize(("name", "column"), [("label_match", "label"), ("exact_match", "reference"), ("success",) * 2])
def test_missing_column_is_named(name: str, column: str) -> None:
    with pytest.raises(ValueError, match=rf"{name}.*{column}.*did you mean '{column}s'"):
        score(name, "a", **{f"{column}s": ["a"]})


def test_column_of_another_length_is_an_error() -> None:
    with pytest.raises(ValueError, match="shorter"):
        score("label_match", "a", "b", label=["a"])


def test_list_names_all_with_a_line() -> None:
    listed = list_rewards()
    assert set(listed) >= set(SHIPPED) and len(SHIPPED) >= 12
    assert all(map(all, listed.values())), "each says what it is"
    assert listed["label_match"] == ("shipped", "1 if the policy's last message is the column `label`, else 0.")


def test_reward_of_a_module_by_attributes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_rewards_pkg").mkdir()
    (tmp_path / "my_rewards_pkg/inner.py").write_text(
        "class A:\n  half = staticmethod(lambda **k: [0.5])\nnumber = 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert load_reward("my_rewards_pkg.inner:A.half")(prompts=[[]], completions=[[]]) == [0.5]
    with pytest.raises(ValueError, match=r"my_rewards_pkg.inner has no 'nunber'; did you mean 'number'"):
        load_reward("my_rewards_pkg.inner:nunber")
    with pytest.raises(TypeError, match=r"my_rewards_pkg.inner:number' is 3: expected a function"):
        load_reward("my_rewards_pkg.inner:number")


def test_reward_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "polite.py"
    path.write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        "@dataclass\nclass Weight:\n    value: float = 0.25\n"
        "def polite(prompts, completions, **columns):\n    return [Weight().value] * len(completions)\n"
    )
    assert load_reward(f"{path}:polite")([PROMPT] * 2, said("a", "b")) == [0.25, 0.25]
    with pytest.raises(ValueError, match="has no 'polit'; did you mean 'polite'"):
        load_reward(f"{path}:polit")
    with pytest.raises(ValueError, match=r"no file .*polit\.py'; did you mean 'polite\.py'"):
        load_reward(f"{tmp_path / 'polit.py'}:polite")


def test_file_that_fails_leaves_no_module(tmp_path: Path) -> None:
    path = tmp_path / "broken_reward.py"
    path.write_text("raise RuntimeError('inside')")
    with pytest.raises(RuntimeError, match="inside"):
        load_reward(f"{path}:anything")
    assert "reward_from_broken_reward" not in sys.modules


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("label_mach", "'label_mach' is not shipped; did you mean 'label_match'"),
        ("", "'' is not shipped"),
        ("no_such_module_here:reward", r"cannot import 'no_such_module_here'.*path/to/no_such_module_here.py:name"),
    ],
)
def test_names_that_are_not_there(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_reward(spec)


def loaded_by(code: str) -> set[str]:
    """Top-level packages in a fresh interpreter after `code`."""
    show = f"{code}; import sys; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", show], cwd=HOME, capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_functions_load_no_torch() -> None:
    assert not loaded_by(
        "import reward_models.functions, reward_models.compose, reward_models.shipped, reward_models.text_metrics"
    ) & {"torch", "transformers", "trl"}


def test_all_modules_load_neither_envs_nor_rlobj() -> None:
    names = sorted(path.stem for path in (HOME / "reward_models").glob("*.py") if path.stem != "__init__")
    loaded = loaded_by("import " + ", ".join(f"reward_models.{name}" for name in names))
    assert "torch" in loaded, "the heavy modules were imported"
    assert not loaded & {"envs", "rlobj"}


def test_public_names_are_there() -> None:
    for name in reward_models.__all__:
        assert getattr(reward_models, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'TraindReward'"):
        reward_models.TraindReward  # noqa: B018
