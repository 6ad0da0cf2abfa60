"""Movie booking over several seeds, in the form of TC-Bot's published figures: the table in the README.

    python benchmarks/movie_booking.py --goals GOALS --knowledge_base KB --seeds 5

The files are TC-Bot's goals and knowledge base as JSON lines; without them the made-up town is served. Every seed has
its own demonstrations, warm start, policies and sampling. "Supervised only" is a policy of its own, trained on the same
rule dialogues until they are learned. Each figure is the mean over seeds with its 95% Student-t interval.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from envs.core import FIRST_HELD_OUT_SEED
from envs.movie_booking import MovieBookingEnv, ceiling
from rlobj.evaluation import evaluate
from rlobj.intervals import mean_interval_over_seeds
from rlobj.policies import load_causal, load_tokenizer
from rlobj.recipes import load_recipe
from rlobj.results import lambda_directory, lambda_title
from rlobj.rollout import Sampling
from rlobj.runs import atomic_write_text, read_outputs

SUPERVISED_EPOCHS = 15
WINDOW = 5
"""Optimiser steps whose dialogues are averaged to say when a success rate is reached."""
TARGET = 0.8
BIN = 15
"""Optimiser steps of one column of the learning curve."""


def run(name: str, output: Path, overrides: list[str]) -> Path:
    command = [sys.executable, "-m", "rlobj", "run", "movie-booking", "--name", name, "--output_dir", str(output)]
    subprocess.run([*command, *overrides], check=True)
    return output / name


def successes(policy: Path) -> list[float]:
    """Success in training, by optimiser step."""
    history = read_outputs(policy)["history"]
    return [log["environment/success"] for log in history if "environment/success" in log]


def dialogues_to_target(curve: Sequence[float], per_step: int) -> float:
    """Dialogues until the mean over WINDOW steps reaches TARGET; infinite if it never does."""
    for end in range(WINDOW, len(curve) + 1):
        if sum(curve[end - WINDOW : end]) / WINDOW >= TARGET:
            return float(end * per_step)
    return float("inf")


def measured(directory: Path, env_kwargs: dict[str, object], sampling: Sampling, episodes: int, seed: int) -> dict:
    """Success, both sides' turns and return of a policy on `episodes` customers, its words drawn as in training."""
    result = evaluate(
        load_causal(directory),
        load_tokenizer(directory),
        lambda: MovieBookingEnv(**env_kwargs),
        None,
        sampling,
        range(FIRST_HELD_OUT_SEED, FIRST_HELD_OUT_SEED + episodes),
        [],
        None,
        sampling_seed=seed,
    )
    mean = {name: interval[0] for name, interval in result.metrics.items()}
    return {"success": mean["success"], "turns": 2 * mean["turns"], "return": mean["return"]}


def shown(values: Sequence[float], digits: int) -> str:
    mean, low, high = mean_interval_over_seeds(values)
    return f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def markdown(arms: dict[str, list[dict]], per_step: int) -> str:
    """The table of final figures, and the learning curves in training."""
    lines = ["| policy | success | turns of both | return | by seed |", "|---|---|---|---|---|"]
    for name, seeds in arms.items():
        by_seed = ", ".join(f"{s['success']:.3f}" for s in seeds)
        cells = [
            shown([s[key] for s in seeds], digits) for key, digits in (("success", 3), ("turns", 1), ("return", 1))
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {by_seed} |")
    curves = {name: seeds for name, seeds in arms.items() if "curve" in seeds[0]}
    bins = max((len(s["curve"]) for seeds in curves.values() for s in seeds), default=0)
    heads = [f"{i * BIN * per_step} to {(i + 1) * BIN * per_step}" for i in range(bins)]
    lines += ["", "| success in training, by dialogues | " + " | ".join(heads) + f" | dialogues to {TARGET:.2f} |"]
    lines.append("|---" * (bins + 2) + "|")
    for name, seeds in curves.items():
        cells = [f"{sum(s['curve'][i] for s in seeds) / len(seeds):.2f}" for i in range(bins)]
        needed = [s["to_target"] for s in seeds]
        cells.append(f"{shown(needed, 0)} ({', '.join(f'{n:.0f}' for n in needed)})")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def binned(curve: Sequence[float]) -> list[float]:
    return [sum(part) / len(part) for i in range(0, len(curve), BIN) if (part := curve[i : i + BIN])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--goals")
    parser.add_argument("--knowledge_base")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--episodes", type=int, default=500)
    parser.add_argument("--output", type=Path, default=Path("runs/movie-booking-seeds"))
    arguments, extra = parser.parse_known_args()
    files = {"goals": arguments.goals, "knowledge_base": arguments.knowledge_base}
    overrides = [word for name, path in files.items() if path for word in (f"--env.kwargs.{name}", path)] + extra
    config = load_recipe("movie-booking", overrides)
    training = config.training
    sampling = Sampling(training.max_reply_tokens, config.policy.max_length)
    per_step = training.prompts_per_step * training.num_generations

    arms: dict[str, list[dict]] = {"supervised only": [], "warm start": []}

    def keep(name: str, directory: Path, seed: int) -> None:
        figures = measured(directory, config.env.kwargs, sampling, arguments.episodes, seed)
        if directory.parent.name == "policies":
            curve = successes(directory)
            figures |= {"curve": binned(curve), "to_target": dialogues_to_target(curve, per_step)}
        arms.setdefault(name, []).append(figures)
        atomic_write_text(arguments.output / "figures.json", json.dumps(arms, indent=1))

    for seed in range(arguments.seeds):
        directory = run(f"seed-{seed}", arguments.output, [*overrides, f"--seed={seed}"])
        keep("warm start", directory / "warm_start", seed)
        for lam in config.objective.lambdas:
            keep(lambda_title(lam), lambda_directory(directory, lam), seed)
    for seed in range(arguments.seeds):
        only = [f"--warm_start.epochs={SUPERVISED_EPOCHS}", "--training.steps=1", "--objective.lambda_sup=0"]
        directory = run(f"supervised-{seed}", arguments.output, [*overrides, f"--seed={seed}", *only])
        keep("supervised only", directory / "warm_start", seed)
    env = MovieBookingEnv(**config.env.kwargs)
    goals, dialogues = len(env.goals), training.steps * per_step
    text = (
        f"{markdown(arms, per_step)}\n\n{arguments.seeds} seeds, {dialogues} dialogues each; {goals} goals, of which a "
        f"showing fits {ceiling(env.goals, env.kb)}, and also answers {ceiling(env.goals, env.kb, answers=True)}\n"
    )
    atomic_write_text(arguments.output / "table.md", text)
    print(text)


if __name__ == "__main__":
    main()
