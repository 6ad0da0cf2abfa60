"""The environments: Gymnasium's own checks, seeds, the customer, and the boundary around reward functions."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import warnings
from pathlib import Path

import gymnasium
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers import RecordEpisodeStatistics, TimeLimit
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.core import FIRST_HELD_OUT_SEED
from envs.customer_service import CustomerServiceEnv
from envs.dialogue import word_f1
from envs.domain import FOLDER, load_domain
from envs.experts import Expert, demonstrations, preference_pairs
from envs.simulator import draw_goal
from envs.vector import TextVectorEnv

IDS = sorted(name for name in gymnasium.registry if name.startswith("rlobj/"))
DOMAINS = ["broadband", "repairs"]


@pytest.mark.parametrize("name", IDS)
def test_gymnasiums_checker_passes_without_warnings(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gymnasium.make(name).unwrapped)


@pytest.mark.parametrize("name", IDS)
def test_wrappers_rendering_and_specs(name, capsys):
    env = RecordEpisodeStatistics(TimeLimit(gymnasium.make(name, render_mode="ansi"), 3))
    observation, _ = env.reset(seed=3)
    done = False
    while not done:
        action = 0 if isinstance(env.action_space, gymnasium.spaces.Discrete) else "客服 🙂"
        observation, _, terminated, truncated, info = env.step(action)
        assert env.observation_space.contains(observation)
        done = terminated or truncated
    assert info["episode"]["l"] <= 3
    assert observation[0]["content"] in env.render()
    assert json.loads(gymnasium.spec(name).to_json())["id"] == name
    human = gymnasium.make(name, render_mode="human")
    human.reset(seed=3)
    assert observation[0]["content"] in capsys.readouterr().out


EPISODE = """
import random, sys
from envs.customer_service import CustomerServiceEnv
from envs.experts import demonstrations
print(demonstrations(lambda: CustomerServiceEnv(misunderstanding=0.3), 5, seed=int(sys.argv[1])))
"""


def test_the_same_seed_gives_the_same_episode_in_every_process():
    said = []
    for hash_seed in ("1", "2"):
        env = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-c", EPISODE, "7"]
        said.append(subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout)
    assert said[0] == said[1] != ""
    openings = {CustomerServiceEnv().reset(seed=seed)[0][0]["content"] for seed in range(20)}
    assert len(openings) > 10, "other seeds, other customers"


def test_steps_out_of_turn_and_wrong_actions_are_errors():
    env = gymnasium.make("rlobj/Dialogue-v0", disable_env_checker=True).unwrapped
    with pytest.raises(ResetNeeded):
        env.step("hello")
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"action is 3 \(int\)"):
        env.step(3)
    env.step("hello")
    with pytest.raises(ResetNeeded):
        env.step("hello")


# The customer ---------------------------------------------------------------------------------------------------------


def served(env, seed, wrong=None):
    """Serve the customer of `seed` by reading the goal, doing one thing wrong."""
    env.reset(seed=seed)
    goal, domain = env.customer.goal, env.domain
    entity = domain.matching(goal.constraints)[0]
    if wrong == "offer":
        entity = next(e for e in domain.entities if any(e[s] != v for s, v in goal.constraints.items()))
    result = env.step(f"I recommend {entity['name'].upper()}!")
    for slot in goal.requests:
        value = entity[slot]
        if wrong == "answer":
            value = next(v for v in domain.requests[slot]["values"] if v != value)
        if not result[2]:
            result = env.step(f"The {domain.requests[slot]['words'][0]} is {value}.")
    if not result[2]:
        result = env.step("goodbye" if wrong == "bye" else f"You are signed up for {entity['name']}.")
    while not (result[2] or result[3]):
        result = env.step("hm")
    return result


@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize("seed", [*range(8), *range(FIRST_HELD_OUT_SEED, FIRST_HELD_OUT_SEED + 4)])
def test_success_is_what_the_customer_wanted_and_nothing_less(domain, seed):
    env = CustomerServiceEnv(domain, misunderstanding=0.0)
    _, reward, terminated, truncated, info = served(env, seed)
    assert (reward, terminated, truncated, info["success"], info["matched"]) == (1.0, True, False, True, 1.0)
    assert info["turns"] == 2 + len(env.customer.goal.requests)
    for wrong in ("offer", "answer", "bye"):
        _, reward, _, _, info = served(env, seed, wrong)
        assert (reward, info["success"]) == (0.0, False), wrong


def test_booking_before_the_customer_agrees_is_refused():
    env = CustomerServiceEnv(misunderstanding=0.0, patience=2)
    env.reset(seed=1)
    name = env.domain.matching(env.customer.goal.constraints)[0]["name"]
    env.step(f"you are signed up for {name}")
    assert env.customer.booked is None
    assert env.customer.patience == 1
    assert env.step(f"you are signed up for {name}")[2], "out of patience"


def test_turns_are_limited_by_truncation_and_deafness_costs_no_patience():
    env = CustomerServiceEnv(misunderstanding=0.999, max_turns=4)
    env.reset(seed=1)
    results = [env.step("which speed ?") for _ in range(4)]
    assert [r[3] for r in results] == [False, False, False, True]
    assert not any(r[2] for r in results)
    assert env.customer.patience == 3


def test_goals_of_the_evaluation_are_never_trained_on():
    domain = load_domain("broadband")
    train, held_out = (
        {str(draw_goal(domain, random.Random(i), held_out)) for i in range(3000)} for held_out in (False, True)
    )
    assert not train & held_out
    assert len(held_out) > 40
    env = CustomerServiceEnv()
    for seed in range(200):
        env.reset(seed=seed)
        assert not env.customer.goal.is_held_out("broadband")
        env.reset(seed=FIRST_HELD_OUT_SEED + seed)
        assert env.customer.goal.is_held_out("broadband")


@pytest.mark.parametrize("domain", DOMAINS)
def test_the_desk_screen_follows_from_the_words_spoken(domain):
    env = CustomerServiceEnv(domain)
    for row in demonstrations(lambda: CustomerServiceEnv(domain), 60, seed=3):
        for i, message in enumerate(row["messages"]):
            if message["role"] == "tool":
                assert env.context(row["messages"][:i]) == [message]


@given(st.lists(st.text(), min_size=1, max_size=8), st.integers(0, 50))
@settings(max_examples=60, deadline=None)
def test_any_text_is_an_action(texts, seed):
    env = CustomerServiceEnv()
    env.reset(seed=seed)
    for text in texts:
        observation, _, terminated, truncated, _ = env.step(text)
        assert env.observation_space.contains(observation)
        if terminated or truncated:
            break


# Experts --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("domain", DOMAINS)
def test_success_rises_with_the_experts_skill(domain):
    rates = []
    for skill in (0.2, 0.6, 1.0):
        rows = demonstrations(lambda: CustomerServiceEnv(domain), 200, skill)
        rates.append(sum(row["success"] for row in rows) / 200)
    assert rates[0] < rates[1] < rates[2]
    assert rates[2] >= 0.97
    with pytest.raises(ValueError, match=r"skill is 1\.2"):
        Expert(1.2, random.Random(0))


def test_the_better_dialogue_is_chosen():
    happy = [text.split(" .")[0] for text in load_domain("broadband").speech["customer"]["thanks"]]
    pairs = preference_pairs(CustomerServiceEnv, 150, seed=1)
    assert pairs == preference_pairs(CustomerServiceEnv, 150, seed=1)
    ends = [
        [any(each[side][-1]["content"].startswith(h) for h in happy) for side in ("chosen", "rejected")]
        for each in pairs
    ]
    assert not any(rejected and not chosen for chosen, rejected in ends)
    assert sum(chosen and not rejected for chosen, rejected in ends) > 30
    assert all(each["chosen"][0] == each["rejected"][0] for each in pairs), "the same customer"


# Rewards --------------------------------------------------------------------------------------------------------------


def test_columns_are_handed_over_and_one_call_scores_all():
    calls = []

    def reward(prompts, completions, success, turns, **columns):
        calls.append((len(prompts), turns))
        return [1.5 * t for t in turns]

    vector = TextVectorEnv(lambda: CustomerServiceEnv(reward=reward, misunderstanding=0.0), 3)
    vector.reset(seed=[1, 2, 3])
    assert vector.act({0: "goodbye", 1: "goodbye"})[0].terminated
    vector.act({2: "hm"})
    vector.truncate(2)
    assert vector.final_scores().values == [1.5, 1.5, 1.5]
    assert calls == [(3, [1, 1, 1])]
    with pytest.raises(ResetNeeded) as error:
        vector.act({1: "again"})
    assert "environment 1 of 3" in error.value.__notes__[0]


def test_a_reward_by_name():
    env = gymnasium.make("rlobj/Classification-v0", reward="reward_models.shipped:label_match")
    env.reset(seed=0)
    right = env.unwrapped.label_names.index(env.unwrapped.labels[0])
    assert env.step(right)[1] == 1.0
    with pytest.raises(ValueError, match="expected a function's 'module:name'"):
        gymnasium.make("rlobj/Classification-v0", reward="reward_models.shipped:nothing")


# Labels and replies ---------------------------------------------------------------------------------------------------


def test_classification_rewards_the_right_label():
    env = gymnasium.make("rlobj/Classification-v0", texts=["a", "b"], labels=["no", "yes"]).unwrapped
    for seed, text, right in ((0, "a", 0), (1, "b", 1), (2, "a", 0)):
        for action in (0, 1):
            observation, _ = env.reset(seed=seed)
            assert observation == [{"role": "user", "content": text}]
            assert env.step(action)[1:4] == (float(action == right), True, False)
    with pytest.raises(ValueError, match="2 texts and 1 labels"):
        gymnasium.make("rlobj/Classification-v0", texts=["a", "b"], labels=["no"])
    with pytest.raises(ValueError, match=r"labels \['no'\] are not in label_names"):
        gymnasium.make("rlobj/Classification-v0", texts=["a"], labels=["no"], label_names=["yes"])


def test_word_f1_by_hand():
    assert word_f1("a b c", "b c d e") == pytest.approx(2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4))
    assert word_f1("A a", "a") == pytest.approx(2 / 3)
    assert word_f1("", "a") == 0.0


# Domain files ---------------------------------------------------------------------------------------------------------


def broken(change):
    data = json.loads((FOLDER / "repairs.json").read_text(encoding="utf-8"))
    change(data)
    return data


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("entities"), "entities is missing: expected a list"),
        (lambda d: d["entities"][2].update(area="moon"), r"entities\[2\].area is 'moon': expected one of north"),
        (lambda d: d["entities"][1].update(name=d["entities"][0]["name"]), r"entities\[1\].name .* a second time"),
        (lambda d: d["constraints"]["area"].pop("agent_asks"), "constraints.area.agent_asks is missing"),
        (lambda d: d["requests"]["parts"]["values"].append("north"), "'north', which belongs to 'area'"),
        (lambda d: d.update(speech="klingon"), "there is no klingon.json"),
    ],
)
def test_a_broken_domain_file_is_named_with_its_field(tmp_path, change, message):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(broken(change)), encoding="utf-8")
    with pytest.raises(ValueError, match=message) as error:
        load_domain(str(path))
    assert "mine.json" in str(error.value) or "speech" in str(error.value)


def test_a_domain_of_the_users_own(tmp_path):
    path = Path(tmp_path) / "mine.json"
    path.write_text(json.dumps(broken(lambda d: d.update(name="mine"))), encoding="utf-8")
    rows = demonstrations(lambda: CustomerServiceEnv(str(path)), 20, 1.0)
    assert sum(row["success"] for row in rows) >= 18
    with pytest.raises(ValueError, match=r"domain is 'bradband'; did you mean 'broadband'\? \(shipped: broadband, "):
        load_domain("bradband")
