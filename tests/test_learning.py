"""Every estimator of ∇R reaches a known optimum, over seeds; a broken one does not."""

from __future__ import annotations

import itertools
import json
import math

import known_optimum
import learning
import pytest

import rlobj.advantages
from rlobj.estimators import generalised_advantages
from rlobj.intervals import mean_interval_over_seeds
from rlobj.rollout import EnvironmentRollout

SEEDS = 5
PROBLEMS = {"bandit": learning.bandit, "chain": learning.chain}
THRESHOLDS = {"bandit": 0.8, "chain": 0.65}
"""Share of the best return that a policy reaches: it begins with 0.48 and 0.01; greed reaches 0.21 of the chain's."""


def shares(name, estimator, folder, seeds=SEEDS):
    """What the policies of these seeds earn on held-out episodes, as shares of the best return."""
    problem = PROBLEMS[name]()
    finals = [learning.learn(problem, estimator, seed, folder)["final"] for seed in range(seeds)]
    return [final["return"] / problem.best for final in finals]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "estimator"),
    [(name, estimator) for name, make in PROBLEMS.items() for estimator in make().learners if "." not in estimator],
)
def test_every_estimator_reaches_the_optimum(tmp_path, name, estimator):
    found = shares(name, estimator, tmp_path)
    mean, low, _ = mean_interval_over_seeds(found)
    assert mean > THRESHOLDS[name] and low > THRESHOLDS[name] - 0.1, found


def pushed_away(centred, group_size):
    return -centred


def without_baseline(returns, mean, baseline):
    return returns + 10, None


def of_the_others(self, seeds, trainer, play=EnvironmentRollout._play):
    played = play(self, seeds, trainer)
    return {**played, "env_mask": [[1 - written for written in mask] for mask in played["env_mask"]]}


def of_the_neighbours(rewards, *rest):
    return generalised_advantages(rewards.roll(1, dims=0), *rest)


BREAKAGES = {
    "the sign of the advantage": ("rloo", rlobj.advantages, "leave_one_out", pushed_away),
    "no baseline": ("reinforce", rlobj.advantages, "above_baseline", without_baseline),
    "the environment's tokens": ("reinforce", EnvironmentRollout, "_play", of_the_others),
    "another episode's rewards": ("ppo", rlobj.advantages, "generalised_advantages", of_the_neighbours),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", BREAKAGES)
def test_the_threshold_catches_a_broken_estimator(tmp_path, monkeypatch, what):
    estimator, *where = BREAKAGES[what]
    monkeypatch.setattr(*where)
    found = shares("chain", estimator, tmp_path, seeds=1)
    assert found[0] < THRESHOLDS["chain"] - 0.1, found


# What is known of the optima ------------------------------------------------------------------------------------------


def test_the_best_return_of_the_chain_is_that_of_the_best_of_all_plans():
    """For one turn there is no chance but the start: every plan of three letters can be tried."""
    chain = known_optimum.Chain(letters=3, turns=1)
    best = []
    for start in chain.WIND:
        returns = []
        for plan in itertools.product("ft", repeat=3):
            place, total = start, 0.0
            for letter in plan:
                place, earned = chain.moved(place, letter)
                total += earned
            returns.append(total)
        best.append(max(returns))
    assert chain.best_return() == pytest.approx(sum(best) / 3)


def test_a_plan_earns_no_more_than_the_best_return_and_greed_far_less():
    """To climb, then to take: a good plan, which does not look where the wind has blown it."""
    chain = known_optimum.Chain()
    returns = []
    for seed in range(600):
        chain.reset(seed=seed)
        returns.append(sum(chain.step(reply)[1] for reply in ("f f f f", "f t t t", "t t t t")))
    assert 0.8 * chain.best_return() < sum(returns) / 600 < chain.best_return()
    assert chain.best_return(letters="t") < 0.5 * chain.best_return()


def test_the_best_arms_earn_the_best_return():
    env = known_optimum.Bandit()
    labels = [action for _, action in env.examples(range(1000))]
    returns, regrets = [], []
    for seed, arm in enumerate(labels):
        env.reset(seed=seed)
        _, reward, _, _, info = env.step(arm)
        returns.append(reward)
        regrets.append(info["regret"])
    assert max(regrets) == 0
    assert sum(returns) / 1000 == pytest.approx(env.best_return(), abs=4 * math.sqrt(0.09 / 1000))


# What the benchmark says ----------------------------------------------------------------------------------------------


def test_a_level_is_reached_when_the_mean_of_a_window_reaches_it():
    curve = [0, 0, 0, 5, 0, 0, 5, 5, 5, 5, 5]
    assert learning.episodes_to(3.0, curve, per_step=64) == 8 * 64
    assert learning.episodes_to(6.0, curve, per_step=64) == math.inf


def test_a_kept_run_is_not_run_again_unless_its_settings_changed(tmp_path, monkeypatch):
    done = []

    def learn(problem, learner, seed, folder):
        done.append(learner)
        return {"curve": [1.0] * 8, "final": {"return": 1.0}, "seconds": 0.0}

    monkeypatch.setattr(learning, "learn", learn)
    monkeypatch.setattr(learning, "final", lambda problem, policy: {"return": 0.0})
    problem = learning.chain(steps=8)
    found = learning.results("chain", problem, range(2), tmp_path)
    assert done == problem.learners * 2 and "trl.RLOOTrainer" not in done
    assert learning.results("chain", problem, range(2), tmp_path) == found and len(done) == 2 * len(problem.learners)
    learning.results("chain", learning.chain(steps=9), range(1), tmp_path)
    assert len(done) == 3 * len(problem.learners)
    assert json.loads((tmp_path / "chain/grpo/seed-0.json").read_text())["settings"]["steps"] == 9

    made = {"chain": problem}
    text = learning.table({"chain": found}, made)
    assert "| chain | grpo | 1.000 [1.000, 1.000] |" in text
    learning.draw({"chain": found}, made, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_trl_is_paid_what_the_environment_pays():
    env = learning.chain(letters=8, turns=1).env
    messages, _ = env.reset(seed=3)
    start = int(messages[0]["content"].split()[-1])
    prompt = [{**messages[0], "seed": 3}]
    replies = [[{"role": "assistant", "content": text}] for text in ("f f t", "at")]
    assert learning.reward_of_one_turn(env)([prompt, prompt], replies) == [(start + 2) / 5, 0]
