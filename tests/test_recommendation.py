"""Recommendation: the click model, the environment on it, and runs on made-up users and on a log."""

from __future__ import annotations

import json
import math
import random
import statistics
import warnings
from pathlib import Path

import gymnasium
import pytest
from gymnasium.utils.env_checker import check_env
from test_pipeline import small_run

import envs  # noqa: F401
from envs.clicks import ClickModel, words
from envs.recommendation import RecommendationEnv
from rlobj.results import load_summary

USERS = ["i like tea", "i like wine", "i like tea and wine", "i like milk"]
SLATE = ["green tea", "red wine", "oat milk"]


def log(model: ClickModel, n: int) -> list[dict]:
    """Impressions of slots drawn at random, clicked as `model` says."""
    rng = random.Random(0)
    rows = []
    for _ in range(n):
        user, slate, chosen = rng.choice(USERS), rng.sample(SLATE, 3), rng.randrange(3)
        click = rng.random() < model.probabilities(user, slate)[chosen]
        rows.append({"user": user, "slate": slate, "chosen": chosen, "click": int(click)})
    return rows


TRUE = ClickModel(-1.5, 2.0, -0.4, {"tea": math.log(2), "wine": math.log(2), "milk": math.log(4)})


def test_probabilities_by_hand():
    p = TRUE.probabilities("I like TEA", ["red wine", "green tea"])
    assert p == pytest.approx([1 / (1 + math.exp(1.5)), 1 / (1 + math.exp(1.5 - 2 * math.log(2) + 0.4))])
    assert words("Tea-time, 绿茶!") == {"tea", "time", "绿", "茶"}


def test_the_fit_finds_the_weights_that_made_the_log():
    fitted = ClickModel.fit(log(TRUE, 20_000))
    assert (fitted.bias, fitted.affinity, fitted.position) == pytest.approx((-1.5, 2.0, -0.4), abs=0.15)
    assert fitted.idf["tea"] == pytest.approx(math.log(2), abs=0.05)
    assert fitted.idf["like"] == 0, "what every user says tells nothing"


def test_the_fit_is_the_optimum_of_the_penalised_likelihood():
    rows, l2 = log(TRUE, 300), 0.5
    fitted = ClickModel.fit(rows, l2)
    slopes = [0.0, l2 * fitted.affinity, l2 * fitted.position]
    for row in rows:
        shared = sum(fitted.idf.get(word, 0) for word in words(row["user"]) & words(row["slate"][row["chosen"]]))
        error = fitted.probabilities(row["user"], row["slate"])[row["chosen"]] - row["click"]
        slopes = [s + error * x for s, x in zip(slopes, (1, shared, row["chosen"]), strict=True)]
    assert slopes == pytest.approx([0, 0, 0], abs=1e-6)


def test_a_model_is_a_json_file(tmp_path: Path):
    TRUE.save(tmp_path / "users.json")
    assert ClickModel.load(tmp_path / "users.json") == TRUE
    env = RecommendationEnv(log(TRUE, 5), click_model=str(tmp_path / "users.json"))
    assert env.click_model == TRUE
    (tmp_path / "users.json").write_text('{"bias": 1}')
    with pytest.raises(ValueError, match=r"users.json' cannot be read: .*ClickModel.save writes one"):
        ClickModel.load(tmp_path / "users.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"user": " "}, "impression 1: user is ' ': expected a text"),
        ({"slate": ["tea"]}, r"impression 1: slate is \['tea'\]: expected a list of at least two"),
        ({"chosen": 3}, "impression 1: chosen is 3: expected a slot of the slate, 0 to 2"),
        ({"click": "yes"}, "impression 1: click is 'yes': expected 0 or 1"),
    ],
)
def test_rows_that_are_no_impressions(change: dict, message: str):
    rows = log(TRUE, 2)
    rows[1] |= change
    for user_of_rows in (ClickModel.fit, RecommendationEnv):
        with pytest.raises(ValueError, match=message):
            user_of_rows(rows)
    del rows[1]["click"]
    with pytest.raises(ValueError, match="impression 1 has no 'click'"):
        ClickModel.fit(rows)


def test_logs_that_tell_nothing():
    rows = [{**row, "click": 1} for row in log(TRUE, 4)]
    with pytest.raises(ValueError, match="4 of 4 impressions were clicked: expected some and not all"):
        ClickModel.fit(rows)
    rows[0]["slate"], rows[0]["chosen"] = SLATE[:2], 0
    with pytest.raises(ValueError, match=r"have \[2, 3\] items: expected one size for all"):
        RecommendationEnv(rows)


def test_the_same_seed_gives_the_same_click_for_the_same_item():
    first, second = RecommendationEnv(), RecommendationEnv()
    for seed in range(30):
        action = seed % 5
        assert first.reset(seed=seed) == second.reset(seed=seed)
        assert first.step(action) == second.step(action)
    assert len({first.reset(seed=seed)[0][0]["content"] for seed in range(30)}) == 30


def test_clicks_fall_as_often_as_the_model_says():
    drawn, mean = RecommendationEnv(), RecommendationEnv(expected=True)
    rewards = {True: [], False: []}
    for seed in range(3000):
        for env in (drawn, mean):
            env.reset(seed=seed)
            _, reward, _, _, info = env.step(2)
            rewards[env.expected].append(reward)
        assert reward == info["probability"]
    assert set(rewards[False]) == {0.0, 1.0}
    assert statistics.mean(rewards[False]) == pytest.approx(statistics.mean(rewards[True]), abs=0.03)


def test_what_is_seen_before_the_choice_is_the_user_and_the_slate():
    env = RecommendationEnv(log(TRUE, 5), click_model=TRUE)
    row = env.impressions[2]
    observation, info = env.reset(seed=2)
    listed = "\n".join(f"{i}. {item}" for i, item in enumerate(row["slate"], start=1))
    assert (observation, info) == ([{"role": "user", "content": f"{row['user']}\n{listed}"}], {"seed": 2})
    observation, _, terminated, _, info = env.step(1)
    assert terminated
    assert observation[-1] == {"role": "assistant", "content": row["slate"][1]}
    probabilities = TRUE.probabilities(row["user"], row["slate"])
    assert info["best"] == (probabilities[1] == max(probabilities))


def test_what_was_clicked_is_what_l_learns():
    rows = log(TRUE, 40)
    examples = RecommendationEnv(rows).examples(range(40))
    assert [slot for _, slot in examples] == [row["chosen"] for row in rows if row["click"]]
    made_up = RecommendationEnv()
    for messages, slot in made_up.examples(range(40)):
        seed = next(s for s in range(40) if made_up.reset(seed=s)[0] == messages)
        made_up.reset(seed=seed)
        assert made_up.step(slot)[1] == 1.0, "a slot that was clicked"


def test_gymnasiums_checker_passes_without_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gymnasium.make("rlobj/Recommendation-v0").unwrapped)


def test_a_run_on_made_up_users(tmp_path: Path):
    report = small_run("recommendation", tmp_path, env__kwargs__expected=True)
    row = load_summary(report.parent)[1]
    assert {"success", "accuracy", "greedy_return", "return", "ell"} <= row.keys()


def test_a_run_on_a_log(tmp_path: Path):
    path = tmp_path / "clicks.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in log(TRUE, 120)))
    report = small_run("recommendation", tmp_path, data__train=path, objective__lambda_sup=0.5)
    config = json.loads((report.parent / "warm_start" / "config.json").read_text())
    assert list(config["id2label"].values()) == ["item 1", "item 2", "item 3"]
    assert "108 to be rewarded on" in report.read_text(encoding="utf-8")
