"""What the README shows works as it stands there."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import gymnasium
import pytest
from gymnasium.utils.env_checker import check_env
from small import small_args, small_policy
from transformers import AutoModelForCausalLM

from rlobj.policies import load_causal, load_tokenizer
from rlobj.recipes import VERBS, recipes
from rlobj.trainer import ObjectiveTrainer

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


SMALLER = {
    "2000)": "200)", "hidden_size=128, layers=2": "hidden_size=32, layers=1", "max_steps=20": "max_steps=2",
    "batch_size=64": "batch_size=8",
}  # fmt: skip
"""Of the first example in the default run, which is to be short: as it stands it takes minutes."""


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true but no accelerator is found:UserWarning")
@pytest.mark.parametrize("sizes", [SMALLER, pytest.param({}, marks=pytest.mark.slow)], ids=["smaller", "as it stands"])
def test_the_first_example_runs(tmp_path, monkeypatch, sizes):
    example = re.search(r"```python\n(.*?)```", README, re.DOTALL).group(1)
    assert len(example.splitlines()) < 25
    for size, smaller in sizes.items():
        assert example.count(size) == 1, f"the example has another {size}"
        example = example.replace(size, smaller)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(example, "README.md", "exec"), names)
    history = names["trainer"].state.log_history
    assert any("objective/ell" in log for log in history)
    assert sizes or any(log.get("environment/success", 0) > 0 for log in history), "somebody was served"
    AutoModelForCausalLM.from_pretrained(tmp_path / "policy")


def test_many_episodes_at_once():
    example = re.search(r"```python\n(import gymnasium\nimport envs.*?)```", README, re.DOTALL).group(1)
    names: dict = {}
    exec(compile(example, "README.md", "exec"), names)
    assert names["rewards"].shape == (256,) and len(names["observations"][0]) > 3


def example(begins: str) -> str:
    """The README's Python example that begins so."""
    return next(code for code in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if code.startswith(begins))


@pytest.fixture
def guess():
    code = example("import gymnasium\nfrom envs import StepResult")
    assert len(code.splitlines()) < 40
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)
    yield gymnasium.make("my/Guess-v0", disable_env_checker=True)
    del gymnasium.registry["my/Guess-v0"]


def test_an_environment_of_ones_own_is_gymnasiums_and_can_be_trained_in(guess, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(guess.unwrapped)
    guess.reset(seed=1)
    _, reward, terminated, _, info = guess.step(f"is it {guess.unwrapped.number} ?")
    assert (reward, terminated, info["success"]) == (pytest.approx(0.9), True, True)
    path = small_policy(tmp_path / "policy")
    args = small_args(tmp_path, max_steps=2)
    trainer = ObjectiveTrainer(load_causal(path), args=args, processing_class=load_tokenizer(path), env=guess)
    trainer.train()
    assert any("environment/turns" in log for log in trainer.state.log_history)


@pytest.mark.filterwarnings("ignore:You are importing from 'rollout_func'")
def test_an_environment_in_trls_own_trainer(guess, tmp_path, monkeypatch):
    path = small_policy(tmp_path / "policy")
    before = load_causal(path).state_dict()
    policy, tokenizer = load_causal(path), load_tokenizer(path)
    args = small_args(tmp_path, max_steps=2)
    code = example("from trl import GRPOTrainer\nfrom rlobj")
    exec(compile(code, "README.md", "exec"), {"policy": policy, "tokenizer": tokenizer, "args": args, "env": guess})
    assert any((before[name] != weights).any() for name, weights in policy.state_dict().items()), "it has learned"


def test_every_file_that_is_named_is_there():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    local = [link for link in links if "://" not in link]
    assert len(local) > 10
    assert [link for link in local if not (ROOT / link).exists()] == []


def test_every_recipe_is_explained():
    assert [name for name in recipes() if f"`{name}`" not in README] == []
    others = [(verb, name) for kind, verb in VERBS.items() for name in recipes(kind) if verb != "run"]
    # a line may break between verb and name
    assert [pair for pair in others if not re.search(r"rlobj {}\s+{}".format(*pair), README)] == []


def test_every_run_that_is_shown_names_a_recipe_or_a_file():
    shown = set(re.findall(r"rlobj run ([\w./-]+)", README)) - {"RECIPE"}
    assert {name for name in shown if "." not in name} <= set(recipes())
