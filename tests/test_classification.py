"""Classification as action: what a choice is worth, handing over, and that nothing tells the label beforehand."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import gymnasium
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from safetensors.torch import load_file
from test_pipeline import small_run

from envs.classification import HANDOVER, ClassificationEnv, cost_matrix
from envs.datasets import shipped
from envs.vector import TextVectorEnv
from rlobj import data
from rlobj.encoder_policy import as_one_token_policy
from rlobj.evaluation import evaluate
from rlobj.policies import make_encoder, make_tokenizer
from rlobj.reading import load_rows
from rlobj.recipes import load_recipe
from rlobj.results import load_summary
from rlobj.rollout import Sampling, encode_text, play
from rlobj.stage_inputs import contents

TEXTS = ["shares crash", "shares soar", "shares trade"]
LABELS = ["bad", "good", "flat"]
COSTS = {"bad": {"good": -5, "flat": -2.5}, "good": {"good": 2}}


def worth(env: gymnasium.Env, seed: int, action: str) -> float:
    env.reset(seed=seed)
    return env.step(env.action_names.index(action))[1]


def test_a_cost_matrix_says_what_each_pair_is_worth():
    env = ClassificationEnv(TEXTS, LABELS, costs=COSTS)
    table = [[worth(env, seed, chosen) for chosen in LABELS] for seed in range(3)]
    assert table == [[1, -5, -2.5], [0, 2, 0], [0, 0, 1]]


def test_costs_come_from_a_file_of_either_kind(tmp_path: Path):
    (tmp_path / "costs.json").write_text(json.dumps(COSTS))
    (tmp_path / "costs.csv").write_text("right,bad,good,flat\nbad,, -5,-2.5\ngood,,2,\n")
    for name in ("costs.json", "costs.csv"):
        assert cost_matrix(str(tmp_path / name), LABELS) == cost_matrix(COSTS, LABELS)


@pytest.mark.parametrize(
    ("costs", "message"),
    [
        ({"bda": {"good": -1}}, r"costs names 'bda', which is not a label; did you mean 'bad'\? \(labels: bad, flat"),
        ({"bad": {"goood": -1}}, r"costs\['bad'\] names 'goood', which is not a label; did you mean 'good'\?"),
        ({"bad": {"good": float("nan")}}, r"costs\['bad'\]\['good'\] is nan: expected a finite number"),
        ({"bad": {"good": "-1"}}, r"costs\['bad'\]\['good'\] is '-1': expected a finite number"),
        ({"bad": -1}, r"costs\['bad'\] is -1: expected \{chosen label: reward\}"),
        ([1, 2], r"costs is \[1, 2\]: expected \{right label"),
        ("nowhere.json", "costs file 'nowhere.json' cannot be read: No such file"),
    ],
)
def test_costs_that_cannot_be(costs: object, message: str):
    with pytest.raises(ValueError, match=message):
        ClassificationEnv(TEXTS, LABELS, costs=costs)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("costs.json", "{", "is not JSON: .*a matrix belongs in a .csv file"),
        ("costs.csv", ",bad,good\nbad,1\n", "row 'bad' has 1 rewards for 2 labels"),
        ("costs.csv", ",bad,good\nbad,1,x\n", "row 'bad', column 'good' is 'x': expected a number"),
    ],
)
def test_costs_files_that_cannot_be_read(name: str, text: str, message: str, tmp_path: Path):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        cost_matrix(tmp_path / name, LABELS)


def test_handing_over_is_an_action_with_a_price():
    env = ClassificationEnv(TEXTS, LABELS, costs=COSTS, handover=-0.3, critical="bad")
    assert env.action_space.n == 4
    assert env.action_names == ["bad", "flat", "good", HANDOVER]
    assert [worth(env, seed, HANDOVER) for seed in range(3)] == [-0.3] * 3
    env.reset(seed=0)
    info = env.step(3)[4]
    assert info == {"label": "bad", "success": False, "handed_over": True, "missed": False}
    assert max(action for _, action in env.examples(range(3))) == 2, "no label asks a human"
    assert ClassificationEnv(TEXTS, LABELS).action_space.n == 3


def test_missing_the_critical_label_is_a_column():
    env = ClassificationEnv(TEXTS, LABELS, critical="bad")
    missed: list[bool | None] = []
    for seed, action in ((0, "bad"), (0, "good"), (1, "bad"), (1, "good")):
        env.reset(seed=seed)
        missed.append(env.step(env.action_names.index(action))[4]["missed"])
    assert missed == [False, True, None, None]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"handover": float("inf")}, "handover is inf: expected a finite number"),
        ({"handover": 0, "labels": ["bad", "good", HANDOVER]}, "a label is called 'ask a human'"),
        ({"critical": "bade"}, r"critical names 'bade', which is not a label; did you mean 'bad'\?"),
    ],
)
def test_what_else_cannot_be(kwargs: dict, message: str):
    with pytest.raises(ValueError, match=message):
        ClassificationEnv(**{"texts": TEXTS, "labels": LABELS, **kwargs})


def test_the_label_is_nowhere_before_the_choice():
    """Two environments that differ in the labels alone look the same until the episode has ended."""
    seen = []
    for labels in (LABELS, LABELS[::-1]):
        env = ClassificationEnv(TEXTS, labels, label_names=LABELS, costs=COSTS, handover=-0.3, critical="bad")
        seen.append([env.reset(seed=seed) for seed in range(3)])
        for seed, (observation, info) in enumerate(seen[-1]):
            assert observation == [{"role": "user", "content": TEXTS[seed]}]
            assert info == {"seed": seed}
    assert seen[0] == seen[1]
    env.reset(seed=0)
    observation, _, terminated, _, info = env.step(0)
    assert terminated
    assert observation == [{"role": "user", "content": TEXTS[0]}, {"role": "assistant", "content": "bad"}]
    assert info["label"] == "flat", "after the choice it is told"


def encoder(action: int, actions: int):
    """An encoder that always takes one action."""
    tokenizer = make_tokenizer(TEXTS, 300, 32)
    names = [str(i) for i in range(actions)]
    model = make_encoder(tokenizer, names, hidden_size=8, layers=1, heads=2, max_length=32, seed=0)
    with torch.no_grad():
        model.classifier.bias[action] = 1e4
    return as_one_token_policy(model), tokenizer


def test_the_policy_reads_the_text_alone():
    policy, tokenizer = encoder(0, 4)
    vector = TextVectorEnv(lambda: ClassificationEnv(TEXTS, LABELS, costs=COSTS, handover=-0.3), 3)
    trajectories = play(policy, tokenizer, vector, [0, 1, 2], Sampling()).trajectories
    assert [t.prompt_ids for t in trajectories] == [
        encode_text(tokenizer, [{"role": "user", "content": text}], 32) for text in TEXTS
    ]


@pytest.mark.parametrize(
    ("action", "expected"),
    [
        (0, {"accuracy": 1 / 3, "handed_over": 0, "missed": 0, "greedy_return": (1 + 0 + 0) / 3, "success": 1 / 3}),
        (2, {"accuracy": 1 / 3, "handed_over": 0, "missed": 1, "greedy_return": (-5 + 2 + 0) / 3, "success": 1 / 3}),
        (3, {"handed_over": 1, "missed": 0, "greedy_return": -0.3, "success": 0}),
    ],
)
def test_evaluation_with_handing_over(action: int, expected: dict[str, float]):
    def make_env() -> ClassificationEnv:
        return ClassificationEnv(TEXTS, LABELS, costs=COSTS, handover=-0.3, critical="bad")

    metrics = evaluate(*encoder(action, 4), make_env, None, Sampling(), range(3), [], None).metrics
    assert {name: metrics[name][0] for name in expected} == pytest.approx(expected)
    assert ("accuracy" in metrics) == (action != 3), "no accuracy where nothing was decided"


def test_gymnasiums_checker_passes_without_warnings():
    env = gymnasium.make(
        "rlobj/Classification-v0", handover=0.5, costs={"praise": {"complaint": -1}}, critical="praise"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env.unwrapped)


# Data and recipes -----------------------------------------------------------------------------------------------------


def test_the_shipped_data_sets_are_varied():
    for name, labels in (("financial-headlines", 3), ("customer-intents", 12)):
        rows = load_rows(name)
        assert len({row["text"] for row in rows}) == len(rows) > 500
        counts = [sum(row["label"] == label for row in rows) for label in {row["label"] for row in rows}]
        assert len(counts) == labels
        assert min(counts) == max(counts)
        assert name in shipped()


def test_a_label_for_each_part_of_a_text(tmp_path: Path):
    rows = [
        {"text": "Acme falls, Zeta holds", "by": {"Acme": "bad", "Zeta": "flat"}},
        {"text": "Zeta and Zeta", "by": {"Zeta": "flat", "Acme": None, "Market": "good"}},
    ]
    (tmp_path / "headlines.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert data.labelled_rows(str(tmp_path / "headlines.jsonl"), "text", "by") == [
        [("[Acme] falls, Zeta holds", "bad"), ("Acme falls, [Zeta] holds", "flat")],
        [("[Zeta] and Zeta", "flat"), ("[Market] Zeta and Zeta", "good")],
    ]


def test_financial_sentiment_small(tmp_path: Path):
    report = small_run("financial-sentiment", tmp_path, env__kwargs__handover=0.1, env__eval_episodes=200)
    row = load_summary(report.parent)[1]
    assert {"accuracy", "missed", "handed_over", "greedy_return"} <= row.keys()
    config = json.loads((report.parent / "policies" / "lambda=0" / "config.json").read_text())
    assert list(config["id2label"].values()) == ["negative", "neutral", "positive", HANDOVER]
    assert "60 of them with their label" in report.read_text(encoding="utf-8")


def test_other_costs_are_another_input(tmp_path: Path):
    costs = tmp_path / "costs.json"
    keys = []
    for text in ("{}", '{"praise": {"damaged_item": -1}}', "{}"):
        costs.write_text(text)
        keys.append(contents(load_recipe("customer-intents", [f"--env.kwargs.costs={costs}"])))
    assert keys[0] == keys[2] != keys[1]
    assert len(keys[0]) == 2, "the shipped data set and the costs"


def test_costs_of_labels_that_the_data_lacks_stop_the_run_at_once(tmp_path: Path):
    with pytest.raises(ValueError, match="critical names 'negative', which is not a label"):
        small_run("financial-sentiment", tmp_path, data__train="customer-intents")
    assert not list(tmp_path.iterdir())


OWN = """
import gymnasium
from envs.choice import ChoiceEnv
from envs.core import StepResult

class Parity(ChoiceEnv):
    "Say whether a number is even."

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self._choose_among(["even", "odd"])

    def examples(self, seeds):
        return [(self._begin(seed, None), seed % 2) for seed in seeds]

    def _begin(self, seed, rng):
        self.number = seed
        return [{"role": "user", "content": f"number {seed}"}]

    def _reply(self, action):
        self.right = int(action) == self.number % 2
        return {"role": "assistant", "content": self.action_names[int(action)]}, StepResult([], True, False, {})

    def _columns(self):
        return {"success": self.right}

    def own_reward(self):
        return float(self.right)

gymnasium.register("mine/Parity-v0", entry_point=Parity)
"""


def test_a_choice_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "parity_of_mine.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "name: mine\nenv: {id: 'parity_of_mine:mine/Parity-v0'}\npolicy: {kind: encoder, max_length: 32}\n"
    )
    report = small_run(str(recipe), tmp_path / "runs", objective__lambda_sup=0.1)
    assert {"success", "accuracy", "ell"} <= load_summary(report.parent)[1].keys()
    with pytest.raises(ValueError, match=r"has examples of its own: leave data\.train out"):
        small_run(str(recipe), tmp_path / "runs", data__train="customer-intents")


def test_the_head_alone_is_trained_when_asked(tmp_path):
    report = small_run("customer-intents", tmp_path, policy__head_only=True, objective__lambda_sup="[0.5]")
    weights = [load_file(report.parent / name / "model.safetensors") for name in ("warm_start", "policies/lambda=0.5")]
    changed = {name for name in weights[0] if not torch.equal(weights[0][name], weights[1][name])}
    assert changed == {"classifier.weight", "classifier.bias"}
    with pytest.raises(ValueError, match=r"head_only is true, but policy.kind is 'causal'"):
        small_run("customer-service", tmp_path, policy__head_only=True)
