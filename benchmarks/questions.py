"""Three questions about λ on which the literature is divided, asked of small policies and answered with intervals.

    python benchmarks/questions.py [kl] [decay] [normalisation] [--seeds 10] [--workers 2]

All stand on random walks (`rlobj run random-walk`), where the best return is 1:

- kl: does λ keep a supervised task alive that reward forgets, where a stronger KL to the warm start does not
  (Ouyang et al. 2022)? The policy learns the walks of two graphs; R pays for walks in the first alone, ℓ is of walks in
  the second.
- decay: is CHORD's decayed μ at least as good as a small fixed one, and that as a large one (Zhang et al. 2025)?
- normalisation: does λ = 1 help or harm under each way of scaling the policy gradient (SRFT and LUFFY disagree)?

The last two are asked twice: ℓ on shortest walks from half of the nodes (an expert that knows a part), and on the
random walks of the warm start (worse than what R teaches).
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from arms import LEARNING, WARM_START, Arm, Plan, Values, differences, over_seeds, table, whiskers

from envs.random_walk import RandomWalkEnv, Walker
from rlobj.intervals import Interval, mean_interval_over_seeds
from rlobj.pictures import COLOURS
from rlobj.runs import atomic_write_text

RECIPE = "random-walk"
SECOND = {"graph_seed": 1}
WALKS, HELD_OUT = 1000, 300
EXPERT, RANDOM = "shortest walks from half of the nodes", "random walks"
MEASURES = {
    "return": "optimality",
    LEARNING: "mean while learning",
    "success": "goal reached",
    "ell": "ℓ, held out",
    "kl": "KL",
}


# Data -----------------------------------------------------------------------------------------------------------------


def dialogue(said: str, walk: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": said}, {"role": "assistant", "content": walk}]}


def walks(env: RandomWalkEnv, count: int, seed: int, before: str = "") -> list[dict[str, Any]]:
    """Random walks of a graph; `before` stands before the node that is named."""
    rng, starts = random.Random(seed), sorted(set(env.follow) - {env.goal})
    drawn = [rng.choice(starts) for _ in range(count)]
    return [dialogue(before + start, Walker(rng).act(env, start)) for start in drawn]


def write(path: Path, rows: Sequence[Any]) -> str:
    atomic_write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def two_graphs(folder: Path, seed: int) -> dict[str, str]:
    """Files of a seed: random walks of both graphs, of the second alone, and some of those held out."""
    first = walks(RandomWalkEnv(), WALKS, 2 * seed)
    second = walks(RandomWalkEnv(**SECOND), WALKS + HELD_OUT, 2 * seed + 1, before="other graph : ")
    learned, held_out = second[:WALKS], second[WALKS:]
    return {
        "both": write(folder / "both.jsonl", [*first, *learned]),
        "second": write(folder / "second.jsonl", learned),
        "held out": write(folder / "held-out.jsonl", held_out),
    }


def half_of_the_shortest(folder: Path, seed: int) -> str:
    """A file of the shortest walk from each of half of the nodes."""
    env = RandomWalkEnv()
    starts = sorted(set(env.follow) - {env.goal})
    known = random.Random(seed).sample(starts, len(starts) // 2)
    return write(folder / "shortest.jsonl", [dialogue(start, " ".join(env.shortest(start))) for start in known])


# Questions ------------------------------------------------------------------------------------------------------------


def kl(folder: Path, seed: int) -> Plan:
    """A KL to the warm start, or ℓ on a task that R does not know."""
    files = two_graphs(folder, seed)
    shared = {
        "data.train": files["both"],
        "data.eval": files["held out"],
        "objective.sources": json.dumps({files["second"]: 1.0}),
    }
    arms = [Arm("λ = 0, β = 0", {})]
    arms += [Arm(f"β = {beta:g}", {"training.beta": beta}) for beta in (0.01, 0.03, 0.1, 0.3, 1.0, 2.0)]
    arms += [Arm(f"λ = {value}", {}, value) for value in ("0.03", "0.1", "0.3", "1")]
    return Plan(RECIPE, arms, shared)


def decay(folder: Path, seed: int) -> Plan:
    """CHORD's μ, fixed and falling."""
    forms = {
        "μ = 0.02": "chord:start=0.02,end=0.02,steps=1",
        "μ = 0.1": "chord:start=0.1,end=0.1,steps=1",
        "μ = 0.5": "chord:start=0.5,end=0.5,steps=1",
        "μ from 0.9 to 0.05": "chord:start=0.9,end=0.05,steps=30",
    }
    sources = of_experts(folder, seed)
    arms = [Arm("μ = 0", {})]
    arms += [Arm(f"{name}, {data}", more, form) for data, more in sources.items() for name, form in forms.items()]
    return Plan(RECIPE, arms)


SCALES = [("grpo", "group"), ("grpo", "none"), ("dapo", "group"), ("dapo", "none"), ("dr_grpo", "group"),
          ("dr_grpo", "none")]  # fmt: skip


def normalisation(folder: Path, seed: int) -> Plan:
    """λ = 1 under each scale of the policy gradient."""
    sources = of_experts(folder, seed)
    arms = []
    for loss, scale in SCALES:
        trl = {"training.trl.loss_type": loss, "training.trl.scale_rewards": scale}
        arms.append(Arm(f"{loss}, {scale}, λ = 0", trl))
        arms += [Arm(f"{loss}, {scale}, λ = 1, {data}", {**trl, **more}, "1") for data, more in sources.items()]
    return Plan(RECIPE, arms)


def of_experts(folder: Path, seed: int) -> dict[str, dict[str, Any]]:
    """Both kinds of labelled walks, as settings."""
    return {EXPERT: {"objective.sources": json.dumps({half_of_the_shortest(folder, seed): 1.0})}, RANDOM: {}}


QUESTIONS: dict[str, Callable[[Path, int], Plan]] = {"kl": kl, "decay": decay, "normalisation": normalisation}


# What is said of it ---------------------------------------------------------------------------------------------------


def compared(question: str, found: Mapping[str, Values]) -> list[str]:
    """The differences that answer a question."""
    if question == "kl":
        pairs = [(name, WARM_START) for name in found if name != WARM_START]
    else:
        pairs = [pair for data in (EXPERT, RANDOM) for pair in _pairs(question, data).values()]
    measures = ("ell", "return") if question == "kl" else ("return", LEARNING)
    return differences(found, pairs, {key: MEASURES[key] for key in measures})


def _pairs(question: str, data: str) -> dict[str, tuple[str, str]]:
    """Which arm is to be held against which, by a short name."""
    if question == "decay":
        small, middle, large, falling = "μ = 0.02", "μ = 0.1", "μ = 0.5", "μ from 0.9 to 0.05"
        pairs = [(falling, small), (small, middle), (small, large)]
        found = {f"{ours} − {theirs}": (f"{ours}, {data}", f"{theirs}, {data}") for ours, theirs in pairs}
        return {**found, f"{falling} − μ = 0": (f"{falling}, {data}", "μ = 0")}
    scales = [f"{loss}, {scale}" for loss, scale in SCALES]
    return {each: (f"{each}, λ = 1, {data}", f"{each}, λ = 0") for each in scales}


def draw(question: str, found: Mapping[str, Values], path: Path) -> None:
    """The answer as a picture: what an arm has beyond another, with its interval."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.4), layout="constrained")
    if question == "kl":
        axes = figure.add_subplot()
        for sign, style, colour in (("β", "s", COLOURS[1]), ("λ", "o", COLOURS[0])):
            for place, name in enumerate(each for each in found if each.startswith(sign)):
                lost, earned = _mean(found, name, "ell", WARM_START), _mean(found, name, "return")
                x, y = lost[0], earned[0]
                axes.errorbar(x, y, whiskers(earned), whiskers(lost), fmt=style, capsize=2, color=colour, alpha=0.7)
                # those with all the reward lie close together: one below the other
                below = -12 - 10 * (place + (sign == "β")) if y > 0.9 else 4
                axes.annotate(name, (x, y), (4, below), textcoords="offset points", fontsize=8, color=colour)
        axes.set(xlabel="ℓ of the other task, above the warm start's (nats per token)", ylabel="optimality")
    else:
        for column, data in enumerate((EXPERT, RANDOM)):
            axes, pairs = figure.add_subplot(1, 2, column + 1), _pairs(question, data)
            for place, (ours, theirs) in enumerate(reversed(pairs.values())):
                gained = _mean(found, ours, "return", theirs)
                axes.errorbar(gained[0], place, xerr=whiskers(gained), fmt="o", capsize=2, color=COLOURS[0])
            axes.set_yticks(range(len(pairs)), list(reversed(pairs)) if column == 0 else [], fontsize=8)
            axes.axvline(0, color="black", linewidth=0.8)
            axes.set_title(f"ℓ on {data}", fontsize=9)
            what = ", λ = 1 − λ = 0" if question == "normalisation" else ""
            axes.set_xlabel(f"difference in optimality{what}", fontsize=8)
    figure.savefig(path, dpi=130)


def _mean(found: Mapping[str, Values], name: str, measure: str, beyond: str | None = None) -> Interval:
    less = found[beyond][measure] if beyond else [0.0] * len(found[name][measure])
    return mean_interval_over_seeds([a - b for a, b in zip(found[name][measure], less, strict=True)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("questions", nargs="*", help="left out: all three")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--workers", type=int, default=2, help="seeds at once")
    parser.add_argument("--output", type=Path, default=Path("runs/questions"))
    given, extra = parser.parse_known_args()
    for question in given.questions or QUESTIONS:
        if question not in QUESTIONS:
            parser.error(f"question is {question!r}: expected one of {', '.join(QUESTIONS)}")
        found = over_seeds(QUESTIONS[question], given.seeds, given.output / question, given.workers, extra)
        text = "\n".join([*table(found, MEASURES), "", *compared(question, found)])
        atomic_write_text(given.output / f"{question}.md", text + "\n")
        draw(question, found, given.output / f"{question}.png")
        print(f"{question}, {given.seeds} seeds\n\n{text}\n", flush=True)


if __name__ == "__main__":
    main()
