"""What the README shows works as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from rlobj.recipes import recipes

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true but no accelerator is found:UserWarning")
def test_the_first_example_runs(tmp_path, monkeypatch):
    example = re.search(r"```python\n(.*?)```", README, re.DOTALL).group(1)
    assert len(example.splitlines()) < 25
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(example, "README.md", "exec"), names)
    history = names["trainer"].state.log_history
    assert any("objective/ell" in log for log in history)
    assert any(log.get("environment/success", 0) > 0 for log in history), "somebody was served"
    AutoModelForCausalLM.from_pretrained(tmp_path / "policy")


def test_many_episodes_at_once():
    example = re.search(r"```python\n(import gymnasium\nimport envs.*?)```", README, re.DOTALL).group(1)
    names: dict = {}
    exec(compile(example, "README.md", "exec"), names)
    assert names["rewards"].shape == (256,) and len(names["observations"][0]) > 3


def test_every_file_that_is_named_is_there():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    local = [link for link in links if "://" not in link]
    assert len(local) > 10
    assert [link for link in local if not (ROOT / link).exists()] == []


def test_every_recipe_is_explained():
    assert [name for name in recipes() if f"`{name}`" not in README] == []


def test_every_run_that_is_shown_names_a_recipe_or_a_file():
    shown = set(re.findall(r"rlobj run ([\w./-]+)", README)) - {"RECIPE"}
    assert {name for name in shown if "." not in name} <= set(recipes())
