"""The time of the matrix products that a step needs, at the machine's measured rate, as a share of the step's.

python benchmarks/floor.py [--turns 7] [--size small]

Counted are the products of weights with tokens that no implementation can leave out: prompts once in sampling and
once in training, every reply token once in sampling and once in training, the vocabulary at reply tokens
alone, backward passes at twice their forward. Attention, softmax, optimiser and everything else count as nothing.
The rate is that of the policy's own shapes: a layer's widest product over the tokens of the training pass.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile

import torch
from measuring import Measured, in_turns, report, seconds, silence, step_seconds
from rl_step import SIZES, Size, both

from rlobj import ObjectiveTrainer


def needed(size: Size, trainer: ObjectiveTrainer, prompt_tokens: int) -> float:
    """Floating-point operations of a step."""
    policy = trainer.model
    vocabulary = policy.get_output_embeddings().weight.numel()
    layers = sum(p.numel() for n, p in policy.named_parameters() if p.dim() == 2 and "layers" in n)
    replies = size.rows * size.reply_tokens
    once = 2 * layers * (prompt_tokens + replies) + 2 * vocabulary * replies
    return once + 3 * once  # sampling; forward and backward pass


def rate(tokens: int, width: int, turns: int, dtype: torch.dtype) -> float:
    """Operations a second of a product of (tokens, width) with (width, 3 width)."""
    a, b = torch.randn(tokens, width, dtype=dtype), torch.randn(width, 3 * width, dtype=dtype)
    work = [seconds(lambda: a @ b) for _ in range(10 * turns)]
    return 2 * tokens * width * 3 * width / statistics.median(work[turns:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--size", default="small", choices=list(SIZES))
    given = parser.parse_args()
    silence()
    torch.set_num_threads(2)
    size = SIZES[given.size]
    with tempfile.TemporaryDirectory() as folder:
        ours = both(folder, size, False)[1]
        turn = step_seconds(ours)
        seen: list[int] = []

        def step() -> float:
            taken = turn()
            seen.append(different_prompt_tokens(ours))
            return taken

        def product() -> float:
            return 1 / rate(size.rows * size.reply_tokens, size.hidden_size, 3, torch.float32)

        taken = in_turns({"step": step, "product": product}, given.turns)
    work = needed(size, ours, seen[-1])
    shares = sorted(work * p / s for p, s in zip(taken["product"], taken["step"], strict=True))
    floor = work * statistics.median(taken["product"])
    line = Measured(
        f"floor: matrix products of an RL step, width {size.hidden_size}, as a share of its time",
        f"{floor:.3g} s", f"{statistics.median(taken['step']):.3g} s",
        statistics.median(shares), shares[0], shares[-1], "aim 0.6", given.turns,
    )  # fmt: skip
    report("floor", [line])


def different_prompt_tokens(trainer: ObjectiveTrainer) -> int:
    """Tokens of the different prompts in the latest step."""
    from rlobj.completions import different_prompts

    batches = trainer.micro_batches
    return sum(int(different_prompts(b["prompt_ids"], b["prompt_mask"])[1].sum()) for b in batches)


if __name__ == "__main__":
    main()
