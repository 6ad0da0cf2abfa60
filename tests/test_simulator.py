"""What a customer may do beyond the plain one, what is measured of it, and the ceiling."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import pytest

from envs.core import FIRST_HELD_OUT_SEED
from envs.customer_service import CustomerServiceEnv
from envs.domain import shipped_domains
from envs.experts import ceiling, demonstrations, preference_pairs

ALL = {
    "misunderstanding": 0.1,
    "corrections": 0.3,
    "out_of_scope": 0.1,
    "sold_out": 0.3,
    "changes_of_mind": 0.8,
    "impatience": True,
    "styles": True,
}
TWO = {"english": ["hotels", "restaurants"], "chinese": ["mobile_zh", "clinics_zh"]}
DIALOGUES = """
import sys
from envs.customer_service import CustomerServiceEnv
from envs.domain import shipped_domains
from envs.experts import demonstrations
for domain in [*shipped_domains(), ["hotels", "restaurants"]]:
    print(demonstrations(lambda: CustomerServiceEnv(domain, **eval(sys.argv[1])), 5, seed=7))
"""


def customer_env(seed=1, **behaviour):
    env = CustomerServiceEnv(**{"misunderstanding": 0.0, **behaviour})
    env.reset(seed=seed)
    return env


def say(env, text):
    """What the customer answers."""
    return env.step(text)[0][-1 if env.customer.over else -2]["content"]


def offer(env):
    """An entity that fits the goal and is to be had."""
    fitting = env.domain.matching(env.customer.goal.constraints)
    return next(e for e in fitting if e["name"] not in env.customer.sold_out)


def answers(env):
    entity = env.domain.by_name[env.customer.accepted]
    said = [env.domain.requests[s]["agent_says"][0].format(value=entity[s]) for s in env.customer.goal.requests]
    return env.domain.speech["glue"]["and"].join(said)


def test_without_behaviours_dialogues_are_what_they_were():
    """The figures in the README are of these customers."""
    rows = demonstrations(CustomerServiceEnv, 200, seed=5)
    pairs = preference_pairs(CustomerServiceEnv, 60, seed=5)
    assert hashlib.sha256(repr((rows, pairs)).encode()).hexdigest()[:16] == "c37e8a0a550e6754"


def test_every_domain_and_behaviour_is_the_same_in_every_process():
    said = []
    for hash_seed in ("1", "2"):
        env = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-c", DIALOGUES, repr(ALL)]
        said.append(subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout)
    assert said[0] == said[1] != ""


@pytest.mark.parametrize("domain", [*shipped_domains(), *TWO.values()], ids=str)
def test_the_expert_comes_near_the_ceiling_whatever_customers_do(domain):
    def make_env():
        return CustomerServiceEnv(domain, **ALL, max_turns=20)

    possible = ceiling(make_env, range(300))
    rows = demonstrations(make_env, 150, 1.0)
    assert 0.85 < possible < 1.0
    assert sum(row["success"] for row in rows) / 150 >= possible - 0.07
    assert sum(row["success"] for row in demonstrations(make_env, 150, 0.5)) / 150 < possible - 0.2


def test_a_behaviour_leaves_goals_as_they_are():
    for seed in (*range(10), FIRST_HELD_OUT_SEED):
        plain, lively = customer_env(seed), customer_env(seed, **ALL)
        assert plain.customer.goal == lively.customer.goal


@pytest.mark.parametrize("language", TWO)
def test_several_services_one_after_the_other(language):
    env = customer_env(domain=TWO[language])
    domains = []
    for service in (0, 1):
        domains.append(env.domain.name)
        assert env.desk.domain is env.domain
        name = offer(env)["name"]
        say(env, name)
        say(env, answers(env))
        assert not env.own_reward()
        before = env.context(env._messages)
        assert before == [env._messages[-1]], "the screen follows from the words"
        *_, reward, terminated, _, info = env.step(f"{env.domain.speech['agent']['book'][0].format(name=name)}")
        assert (reward, terminated) == ((0.0, False) if service == 0 else (1.0, True))
    assert domains == TWO[language]
    assert (info["success"], info["inform"], info["matched"], info["turns"]) == (True, True, 1.0, 6)
    assert info["classic_return"] == 20 - 6
    assert info["domain"] == "+".join(TWO[language])


def test_one_service_of_two_is_no_success():
    env = customer_env(domain=TWO["english"])
    name = offer(env)["name"]
    for text in (name, answers(customer_after(env, name)), f"you are signed up for {name}"):
        say(env, text)
    *_, reward, terminated, _, info = env.step("goodbye")
    assert (reward, terminated, info["success"], info["inform"]) == (0.0, True, False, False)
    assert info["classic_return"] == -info["turns"]


def customer_after(env, name):
    say(env, name)
    return env


def test_what_is_sold_out_cannot_be_had_and_the_customer_changes_a_wish():
    changed = left = 0
    for seed in range(120):
        env = customer_env(seed, sold_out=0.6, changes_of_mind=0.5, domain="hotels")
        customer = env.customer
        wanted = dict(customer.goal.constraints)
        fitting = [e["name"] for e in env.domain.matching(wanted)]
        if any(name not in customer.sold_out for name in fitting):
            assert say(env, "we have nothing like that") in customer.phrases["confused"]
            assert customer.patience == 2, "something fits, so this does not help"
            continue
        name = fitting[0]
        assert name in say(env, f"how about {name} ?") and customer.accepted is None and not customer.informed
        assert env.desk.offer is None
        possible = env.can_succeed()
        say(env, "we have nothing like that")
        assert customer.over is not possible
        if customer.over:
            left += 1
            continue
        changed += 1
        now = customer.goal.constraints
        assert sum(now[slot] != wanted[slot] for slot in wanted) == 1
        assert offer(env)["name"] in env.desk.found
        say(env, offer(env)["name"])
        assert customer.informed
    assert changed > 5 and left > 5


def test_the_ceiling_by_hand():
    """All sold out: nobody can be served. Nobody changes a wish: those can be served whom something fits."""
    assert ceiling(CustomerServiceEnv, range(50)) == 1.0
    assert ceiling(lambda: CustomerServiceEnv(sold_out=1.0), range(50)) == 0.0
    assert ceiling(lambda: CustomerServiceEnv(max_turns=2), range(50)) == 0.0, "offer, answer, booking"
    firm = [customer_env(seed, sold_out=0.5, changes_of_mind=0.0) for seed in range(50)]
    served = sum(
        any(e["name"] not in env.customer.sold_out for e in env.domain.matching(env.customer.goal.constraints))
        for env in firm
    )
    assert 0 < served < 50
    assert ceiling(lambda: CustomerServiceEnv(sold_out=0.5, changes_of_mind=0.0), range(50)) == served / 50
    assert ceiling(lambda: CustomerServiceEnv(sold_out=0.5), range(50)) > served / 50


@pytest.mark.parametrize("domain", [*shipped_domains(), *TWO.values()], ids=str)
def test_with_turns_enough_the_expert_serves_all_who_can_be_served_and_nobody_else(domain):
    env = CustomerServiceEnv(domain, **{**ALL, "sold_out": 0.6, "changes_of_mind": 0.3}, max_turns=40)
    served = 0
    for row in demonstrations(lambda: env, 80, 1.0):
        env.reset(seed=row["seed"])
        assert row["success"] == env.can_succeed(), row["seed"]
        served += row["success"]
    assert 5 < served < 75


def test_a_slip_is_put_right_in_the_next_turn_and_costs_no_patience():
    for seed in range(20):
        env = customer_env(seed, corrections=1.0)
        goal = env.customer.goal.constraints
        wrong = {slot for slot, value in env.desk.known.items() if goal[slot] != value}
        assert len(wrong) == 1
        fitting = env.domain.matching(env.desk.known)
        answer = say(env, f"how about {fitting[0]['name']} ?" if fitting else "we have nothing like that")
        starts = [text.partition("{")[0] for text in env.customer.phrases["correct"]]
        assert answer.startswith(tuple(starts))
        assert all(goal[slot] == value for slot, value in env.desk.known.items())
        assert env.customer.patience == 3


def test_a_remark_answers_nothing_and_changes_nothing():
    env = customer_env(out_of_scope=0.999, max_turns=3)
    for _ in range(3):
        assert say(env, offer(env)["name"]) in env.customer.phrases["aside"]
    assert (env.customer.patience, env.customer.accepted, env._running) == (3, None, False)


def test_impatience_is_heard():
    env = customer_env(impatience=True)
    plain = customer_env()
    heard = say(env, "hm")
    assert heard.startswith(tuple(env.customer.phrases["impatient"]))
    assert say(plain, "hm") in plain.customer.phrases["confused"]


def test_every_customer_has_one_way_of_speaking():
    first = {"terse": set(), "chatty": set(), "polite": set(), "plain": set()}
    for style, openings in first.items():
        for seed in range(30):
            env = customer_env(seed, styles=[style], domain="restaurants")
            openings.add(env._messages[0]["content"])
            assert env.desk.known.items() <= env.customer.goal.constraints.items()
    length = {style: sum(map(len, openings)) / len(openings) for style, openings in first.items()}
    assert length["terse"] < length["plain"] < length["chatty"]
    mixed = {customer_env(seed, styles=True).customer.phrases["accept"][0] for seed in range(40)}
    assert len(mixed) == 3, "polite customers accept as plain ones do"


@pytest.mark.parametrize(
    ("behaviour", "message"),
    [
        ({"corrections": 1.5}, r"corrections is 1\.5: expected a probability in \[0, 1\]"),
        ({"out_of_scope": 1.0}, r"out_of_scope is 1\.0: expected a probability in \[0, 1\)"),
        ({"patience": 0}, "patience is 0: expected at least 1"),
        ({"styles": ["ters"]}, "styles has 'ters'; did you mean 'terse'"),
        ({"domain": []}, "domain is an empty list"),
        ({"domain": ["hotels", "clinics_zh"]}, "expected domains of one speech"),
    ],
)
def test_what_a_customer_cannot_be(behaviour, message):
    with pytest.raises(ValueError, match=message):
        CustomerServiceEnv(**behaviour)
