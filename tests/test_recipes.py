"""Every shipped recipe reads, dumps and reads again to the same tree; overrides change what they name alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml

from rlobj.config import dump
from rlobj.fit_config import FitConfig, PretrainConfig, validate_fit, validate_pretrain
from rlobj.recipes import VERBS, descriptions, load_recipe, read_recipe, recipes

RECIPES = sorted(recipes())
ALL = [(kind, name) for kind in VERBS for name in sorted(recipes(kind))]


def test_the_recipes_that_the_readme_names_are_shipped() -> None:
    assert RECIPES == [
        "banking-intents", "corpus-dialogue", "customer-intents", "customer-service", "environment",
        "financial-sentiment", "movie-booking", "random-walk", "recommendation",
    ]  # fmt: skip


def test_recipes_of_the_other_verbs_can_be_run_as_they_are_shipped() -> None:
    fits = {name: read_recipe(FitConfig, name) for name in recipes(FitConfig)}
    assert sorted(fits) == ["bert-classifier"]
    for config in fits.values():
        validate_fit(config)
    texts = {name: read_recipe(PretrainConfig, name) for name in recipes(PretrainConfig)}
    assert sorted(texts) == ["masked", "next-word"]
    for text in texts.values():
        validate_pretrain(text)


def test_a_recipe_of_another_verb_says_which() -> None:
    with pytest.raises(ValueError, match="is a recipe of another verb: rlobj fit bert-classifier"):
        load_recipe("bert-classifier")


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_dump_and_reload_give_an_equal_tree(kind: type, name: str, tmp_path: Path) -> None:
    config = read_recipe(kind, name)
    path = tmp_path / "saved.yaml"
    path.write_text(dump(config), encoding="utf-8")
    assert read_recipe(kind, str(path)) == config
    assert config.name == name


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_the_dump_is_full(kind: type, name: str) -> None:
    config = read_recipe(kind, name)
    tree = yaml.safe_load(dump(config))
    assert list(tree) == [each.name for each in dataclasses.fields(config)]
    for each in dataclasses.fields(config):
        if dataclasses.is_dataclass(section := getattr(config, each.name)):
            assert list(tree[each.name]) == [field.name for field in dataclasses.fields(section)]


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_each_has_a_line_for_rlobj_list(kind: type, name: str) -> None:
    assert 20 < len(descriptions(kind)[name]) < 120


def test_overrides_change_what_they_name_alone() -> None:
    base = load_recipe("customer-service")
    changed = load_recipe("customer-service", ["--objective.lambda_sup", "[0, 1e-6]", "--training.steps=7"])
    assert changed.objective.lambdas == [0.0, 1e-6]
    assert changed == dataclasses.replace(
        base,
        objective=dataclasses.replace(base.objective, lambda_sup=[0.0, 1e-6]),
        training=dataclasses.replace(base.training, steps=7),
    )


@pytest.mark.parametrize(
    ("arguments", "where", "value"),
    [
        (["--objective.lambda_sup", "0.1"], "objective.lambda_sup", 0.1),
        (["--objective.lambda_sup", "1e-6"], "objective.lambda_sup", 1e-6),
        (["--training.learning_rate", "1e-6"], "training.learning_rate", 1e-6),
        (["--training.trl.epsilon", "1e-6"], "training.trl", {"epsilon": 1e-6}),
        (["--env.kwargs.domain", "repairs"], "env.kwargs", {"domain": "repairs"}),
        (["--env.kwargs", "{}"], "env.kwargs", {}),
        (["--policy.model", "some/model"], "policy.model", "some/model"),
        (["--policy.model", "null"], "policy.model", None),
        (["--name", "1e-6"], "name", "1e-6"),
        (["--name", "3"], "name", "3"),
        (["--seed", "3"], "seed", 3),
        (["--data.train", "a file, with λ.csv"], "data.train", "a file, with λ.csv"),
    ],
)
def test_values_from_the_command_line(arguments: list[str], where: str, value: object) -> None:
    found = load_recipe("customer-service", arguments)
    for name in where.split("."):
        found = getattr(found, name)
    assert found == value
    assert type(found) is type(value)


def test_a_file_over_the_recipe_and_the_command_line_over_both(tmp_path: Path) -> None:
    more = tmp_path / "more.yaml"
    more.write_text("training: {steps: 3, learning_rate: 1e-6}\n")
    config = load_recipe("customer-service", ["--config", str(more), "--training.steps", "4"])
    assert (config.training.steps, config.training.learning_rate) == (4, 1e-6)
    assert config.objective == load_recipe("customer-service").objective
