"""One RL step beside `trl.GRPOTrainer`: rollouts, rewards, loss, backward pass and optimiser, seconds.

python benchmarks/rl_step.py [--turns 7] [--profile]

Both get the same model, prompts, group size, completion lengths, reward and dtype, and two threads; they take turns.
The peer has its best settings on a CPU: no gradient checkpointing, no continuous batching. The policy has random
weights, which cost as much as trained ones and almost never end a reply before its last token.
"""

from __future__ import annotations

import argparse
import copy
import random
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import gymnasium
import torch
from datasets import Dataset
from measuring import Measured, compared, in_turns, report, silence, step_seconds
from transformers import PreTrainedTokenizerBase
from trl import GRPOConfig, GRPOTrainer

from envs import StepResult, TextEnv
from envs.spaces import Text
from rlobj import ObjectiveTrainer, make_causal, make_tokenizer

GOAL = "≥ 2, aim 3"
WORDS = [f"{a}{b}{c}" for a in "bdfgklmnprstvz" for b in "aeiou" for c in "bdfgklmnprst"]


@dataclass(frozen=True, slots=True)
class Size:
    """A policy and what it is asked."""

    hidden_size: int
    layers: int
    heads: int
    vocabulary: int
    prompt_words: int
    reply_tokens: int
    rows: int
    group: int


SIZES = {
    "small": Size(256, 6, 8, 16_000, 96, 64, 32, 8),
    "demo": Size(128, 2, 4, 2_000, 64, 32, 64, 8),
}


@cache
def prompt_of(seed: int, words: int) -> str:
    rng = random.Random(seed)
    return " ".join(rng.choice(WORDS) for _ in range(words - rng.randrange(words // 4)))


def worth(text: str) -> float:
    """A reward that costs nothing and differs from row to row."""
    return len(set(text)) / 100


class OneTurn(TextEnv):
    """A prompt, a reply, a reward."""

    def __init__(self, words: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.action_space, self.words, self.said = Text(), words, ""

    def _begin(self, seed: int, rng: random.Random) -> list[Any]:
        return [{"role": "user", "content": prompt_of(seed, self.words)}]

    def _reply(self, action: Any) -> tuple[Any, StepResult]:
        self.said = action
        return {"role": "assistant", "content": action}, StepResult([], True, False, {})

    def _columns(self) -> dict[str, Any]:
        return {}

    def own_reward(self) -> float:
        return worth(self.said)


gymnasium.register("benchmarks/OneTurn-v0", OneTurn)


def policy_of(size: Size) -> tuple[PreTrainedTokenizerBase, Any]:
    """A tokenizer of few words, and a policy with a vocabulary of the wanted size."""
    tokenizer = make_tokenizer(WORDS[:500], vocab_size=1_000, max_length=1024)
    policy = make_causal(
        tokenizer, hidden_size=size.hidden_size, layers=size.layers, heads=size.heads, max_length=1024, seed=0
    )
    policy.resize_token_embeddings(size.vocabulary, mean_resizing=False)
    return tokenizer, policy


def arguments(folder: str, size: Size, bf16: bool, **fields: Any) -> GRPOConfig:
    return GRPOConfig(
        folder,
        **{
            "max_steps": 1, "per_device_train_batch_size": size.rows, "num_generations": size.group,
            "max_completion_length": size.reply_tokens, "learning_rate": 1e-6, "bf16": bf16, "use_cpu": True,
            "gradient_checkpointing": False, "report_to": "none", "disable_tqdm": True, "save_strategy": "no",
            "dataloader_pin_memory": False, "logging_steps": 1000, "lr_scheduler_type": "constant", **fields,
        },
    )  # fmt: skip


def plain_reward(completions: list[Any], **columns: Any) -> list[float]:
    return [worth(completion[0]["content"]) for completion in completions]


def both(folder: str, size: Size, bf16: bool, **fields: Any) -> tuple[GRPOTrainer, ObjectiveTrainer]:
    """TRL's trainer and ours on copies of one policy."""
    tokenizer, policy = policy_of(size)
    prompts = [[{"role": "user", "content": prompt_of(seed, size.prompt_words)}] for seed in range(256)]
    peer = GRPOTrainer(
        copy.deepcopy(policy), plain_reward, arguments(folder, size, bf16, **fields),
        Dataset.from_list([{"prompt": prompt} for prompt in prompts]), processing_class=tokenizer,
    )  # fmt: skip
    ours = ObjectiveTrainer(
        policy, args=arguments(folder, size, bf16, **fields), processing_class=tokenizer, max_length=1024,
        env=gymnasium.make("benchmarks/OneTurn-v0", words=size.prompt_words, disable_env_checker=True),
        train_seeds=range(256), probe_every=0,
    )  # fmt: skip
    return peer, ours


def lines(turns: int, sizes: list[str], dtypes: list[str]) -> list[Measured]:
    found = []
    for name in sizes:
        size, taken = SIZES[name], {}
        sides = {}
        with tempfile.TemporaryDirectory() as folder:
            for dtype in dtypes:
                peer, ours = both(folder, size, dtype == "bfloat16")
                sides |= {f"peer {dtype}": step_seconds(peer), f"ours {dtype}": step_seconds(ours)}
            taken = in_turns(sides, turns)
        what = f"RL step, width {size.hidden_size}, {size.layers} layers, {size.vocabulary:,} tokens"
        for dtype in dtypes:
            found.append(compared(f"{what}, {dtype}", taken[f"peer {dtype}"], taken[f"ours {dtype}"], GOAL))
    return found


def profile(folder: Path, size: Size, bf16: bool, steps: int = 3) -> None:
    """Where the time goes, by function, of both."""
    import cProfile
    import pstats

    for name, trainer in zip(("peer", "ours"), both(str(folder), size, bf16, max_steps=steps), strict=True):
        turn = step_seconds(trainer)
        turn()
        watched = cProfile.Profile()
        watched.runcall(turn)
        print(name)
        pstats.Stats(watched).sort_stats("cumulative").print_stats(60)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16"])
    parser.add_argument("--profile", action="store_true", help="print where the time goes instead")
    given = parser.parse_args()
    silence()
    torch.set_num_threads(2)
    if given.profile:
        with tempfile.TemporaryDirectory() as folder:
            profile(Path(folder), SIZES[given.sizes[0]], given.dtypes[0] == "bfloat16")
        return
    report("rl_step", lines(given.turns, given.sizes, given.dtypes))


if __name__ == "__main__":
    main()
