"""Customer service, domain by domain: the ceiling, and what scripted agents reach. The table in the README.

    python benchmarks/domains.py

500 dialogues each with customers of held-out goals; intervals are 95% (Wilson for shares, bootstrap for means). The
expert does the right thing at every turn; the mixed agents are those of the demonstrations, of skill 0.4 to 1. Inform:
an entity was offered that fits every constraint and is to be had. Return: 20 for success, -1 a turn.
"""

from __future__ import annotations

import argparse
import random
from typing import Any

from envs.core import FIRST_HELD_OUT_SEED
from envs.customer_service import CustomerServiceEnv
from envs.domain import shipped_domains
from envs.experts import MIXED_SKILL, Expert, ceiling
from rlobj.intervals import bootstrap_mean, wilson

LIVELY = {
    "misunderstanding": 0.1,
    "corrections": 0.3,
    "out_of_scope": 0.1,
    "sold_out": 0.3,
    "changes_of_mind": 0.8,
    "impatience": True,
    "styles": True,
}
"""Every behaviour at once."""
SEVERAL = (["hotels", "restaurants"], ["mobile_zh", "clinics_zh"])
METRICS = ("success", "inform", "turns", "classic_return")


def play(env: CustomerServiceEnv, skill: float | None, seed: int) -> dict[str, Any]:
    """One dialogue of an expert of this skill, or of one drawn from MIXED_SKILL; the columns of the episode."""
    rng = random.Random(f"benchmark {seed}")
    expert = Expert(rng.uniform(*MIXED_SKILL) if skill is None else skill, rng)
    messages, _ = env.reset(seed=seed)
    over = False
    while not over:
        customer_says = next(m["content"] for m in reversed(messages) if m["role"] == "user")
        messages, _, terminated, truncated, _ = env.step(expert.act(env, customer_says))
        over = terminated or truncated
    return env.episode.columns


def cells(episodes: list[dict[str, Any]]) -> list[str]:
    """Each metric with its interval."""
    shown = []
    for metric in METRICS:
        values = [episode[metric] for episode in episodes]
        if metric in ("success", "inform"):
            mean, low, high = sum(values) / len(values), *wilson(sum(values), len(values))
        else:
            mean, low, high = bootstrap_mean(values)
        shown.append(f"{mean:.2f} [{low:.2f}, {high:.2f}]")
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dialogues", type=int, default=500)
    seeds = range(FIRST_HELD_OUT_SEED, FIRST_HELD_OUT_SEED + parser.parse_args().dialogues)
    agents = {"expert": 1.0, "mixed": None}
    heads = [f"{agent}: {metric}" for agent in agents for metric in METRICS]
    print(f"| customers | ceiling | {' | '.join(heads)} |".replace("classic_return", "return"))
    print("|---" * (2 + len(heads)) + "|")
    for domain in (*shipped_domains(), *SEVERAL):
        name = domain if isinstance(domain, str) else ", then ".join(domain)
        for customers, behaviour in ((name, {}), ("… lively", LIVELY)):
            env = CustomerServiceEnv(domain, **behaviour)
            possible = ceiling(lambda env=env: env, seeds)
            row = [cell for skill in agents.values() for cell in cells([play(env, skill, seed) for seed in seeds])]
            print(f"| {customers} | {possible:.3f} | {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
