"""What λ > 0 costs: a step of −R + λℓ beside an RL step alone and a supervised step alone, added up.

python benchmarks/lambda_cost.py [--turns 7]

The supervised step is forward and backward pass of ℓ on the same rows, without an optimiser step of its own: there is
one in the sum already. `probe_every` is 0, as the measure of ∇R and ∇ℓ apart is a cost of its own, paid at an interval.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from typing import Any

import gymnasium
import torch
from measuring import compared, in_turns, report, seconds, silence, step_seconds
from rl_step import SIZES, arguments, policy_of, prompt_of

from rlobj import ObjectiveTrainer, dialogue_rows
from rlobj.stream import SupervisedStream
from rlobj.supervised import supervised_loss_sum


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--rows", type=int, default=32, help="supervised rows of a step")
    given = parser.parse_args()
    silence()
    torch.set_num_threads(2)
    size = SIZES["demo"]
    tokenizer, policy = policy_of(size)
    said = [(prompt_of(seed, size.prompt_words), prompt_of(seed + 1, size.reply_tokens)) for seed in range(256)]
    rows = dialogue_rows(
        tokenizer,
        [[{"role": "user", "content": a}, {"role": "assistant", "content": b}] for a, b in said],
        max_length=512,
    )
    alone = copy.deepcopy(policy)
    stream = SupervisedStream(rows, given.rows, seed=0)

    def trainer(folder: str, lambda_sup: float) -> ObjectiveTrainer:
        return ObjectiveTrainer(
            copy.deepcopy(policy), args=arguments(folder, size, False), processing_class=tokenizer, max_length=512,
            env=gymnasium.make("benchmarks/OneTurn-v0", words=size.prompt_words, disable_env_checker=True),
            train_seeds=range(256), probe_every=0, supervised=rows, supervised_batch_size=given.rows,
            lambda_sup=lambda_sup,
        )  # fmt: skip

    def supervised_step() -> float:
        def work() -> Any:
            batch = stream.batch(0)
            (supervised_loss_sum(alone, batch.rows, alone) / batch.targets).backward()

        taken = seconds(work)
        alone.zero_grad()
        return taken

    with tempfile.TemporaryDirectory() as folder:
        sides = {"RL": step_seconds(trainer(folder, 0.0)), "supervised": supervised_step}
        sides["both"] = step_seconds(trainer(folder, 0.5))
        taken = in_turns(sides, given.turns)
    apart = [a + b for a, b in zip(taken["RL"], taken["supervised"], strict=True)]
    # the other way round: how many times dearer the sum is, so 1.05 at most is the goal
    line = compared("cost of λ > 0: −R + λℓ in one step, against both apart", taken["both"], apart, "≤ 1.05")
    report("lambda_cost", [line.turned()])


if __name__ == "__main__":
    main()
