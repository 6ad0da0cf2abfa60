"""Customer service, domain by domain: the ceiling, and what scripted agents reach. The table in the README.

    python benchmarks/domains.py
    python benchmarks/domains.py --train runs/domains

500 dialogues each with customers of held-out goals; intervals are 95% (Wilson for shares, bootstrap for means). The
expert does the right thing at every turn; the mixed agents are those of the demonstrations, of skill 0.4 to 1. Inform:
an entity was offered that fits every constraint and is to be had. Return: 20 for success, -1 a turn. With --train
FOLDER the customer-service recipe is run in every domain, and the table is of its policies.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

from envs.core import FIRST_HELD_OUT_SEED
from envs.customer_service import CustomerServiceEnv
from envs.domain import shipped_domains
from envs.experts import MIXED_SKILL, Expert, ceiling
from rlobj.intervals import bootstrap_mean, wilson
from rlobj.results import load_summary

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


def train(output: Path, overrides: list[str]) -> None:
    """Run the recipe in every domain, and print what its policies do on held-out customers."""
    heads = " | ".join((*METRICS, "ell", "kl")).replace("classic_return", "return").replace("ell | kl", "ℓ | KL")
    print(f"| domain | policy | {heads} |\n{'|---' * (4 + len(METRICS))}|")
    for domain in shipped_domains():
        command = [sys.executable, "-m", "rlobj", "run", "customer-service", "--name", domain]
        command += ["--output_dir", str(output), "--env.kwargs.domain", domain, *overrides]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        for row in load_summary(output / domain):
            shown = [f"{mean:.2f} [{low:.2f}, {high:.2f}]" for mean, low, high in map(row.get, (*METRICS, "ell", "kl"))]
            print(f"| {domain} | {row['name']} | {' | '.join(shown)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dialogues", type=int, default=500)
    parser.add_argument("--train", type=Path, metavar="FOLDER", help="train policies; other arguments are the recipe's")
    arguments, overrides = parser.parse_known_args()
    if arguments.train:
        return train(arguments.train, overrides)
    if overrides:
        parser.error(f"unknown: {' '.join(overrides)}")
    seeds = range(FIRST_HELD_OUT_SEED, FIRST_HELD_OUT_SEED + arguments.dialogues)
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
