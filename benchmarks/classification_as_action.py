"""Classification as action beside the same in `trl.GRPOTrainer`: samples a second of whole training steps.

python benchmarks/classification_as_action.py [--turns 7]

Ours is an encoder that chooses among 77 labels; the peer is a causal model of the same width and depth whose
completions have one token. Texts, group size, rewards and dtype are the same.
"""

from __future__ import annotations

import argparse
import tempfile
from typing import Any

import gymnasium
import torch
from datasets import Dataset
from measuring import Measured, compared, in_turns, report, silence, step_seconds
from rl_step import Size, arguments, policy_of, prompt_of
from trl import GRPOTrainer

from rlobj import ObjectiveTrainer
from rlobj.encoder_policy import as_one_token_policy
from rlobj.policies import make_encoder

LABELS = [f"label {i:02d}" for i in range(77)]
SIZE = Size(256, 4, 8, 16_000, 32, 1, 64, 8)


def lines(turns: int, bf16: bool) -> list[Measured]:
    tokenizer, causal = policy_of(SIZE)
    encoder = make_encoder(
        tokenizer, LABELS, hidden_size=SIZE.hidden_size, layers=SIZE.layers, heads=SIZE.heads, max_length=512, seed=0
    )
    texts = [prompt_of(seed, SIZE.prompt_words) for seed in range(512)]
    env = gymnasium.make(
        "rlobj/Classification-v0", texts=texts, labels=[LABELS[i % 77] for i in range(512)], label_names=LABELS,
        disable_env_checker=True,
    )  # fmt: skip

    def reward(completion_ids: list[list[int]], **columns: Any) -> list[float]:
        return [float(ids[0] % 2) for ids in completion_ids]

    with tempfile.TemporaryDirectory() as folder:
        prompts = Dataset.from_list([{"prompt": text} for text in texts])
        peer = GRPOTrainer(causal, reward, arguments(folder, SIZE, bf16), prompts, processing_class=tokenizer)
        ours = ObjectiveTrainer(
            as_one_token_policy(encoder), args=arguments(folder, SIZE, bf16), processing_class=tokenizer, env=env,
            train_seeds=range(512), probe_every=0,
        )  # fmt: skip
        taken = in_turns({"peer": step_seconds(peer), "ours": step_seconds(ours)}, turns)
    dtype = "bfloat16" if bf16 else "float32"
    what = f"classification as action, width {SIZE.hidden_size}, {SIZE.layers} layers, {dtype}"
    return [compared(what, taken["peer"], taken["ours"], "≥ 10", "samples/s", SIZE.rows)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=7)
    given = parser.parse_args()
    silence()
    torch.set_num_threads(2)
    report("classification_as_action", [line for bf16 in (False, True) for line in lines(given.turns, bf16)])


if __name__ == "__main__":
    main()
