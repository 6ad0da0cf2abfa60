"""Texts a second of `TrainedReward` beside `transformers.pipeline("text-classification")` at its best batch size.

python benchmarks/scoring.py [--texts FILE.jsonl] [--copies 1]

The model has random weights, which cost as much as trained ones. Both get the same texts in the same order, with the
same truncation and dtype; they take turns, and the table holds the medians of their rates and of neighbours' ratios.
"""

from __future__ import annotations

import argparse
import gzip
import json
import logging
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import torch
from transformers import BertConfig, BertForSequenceClassification, pipeline
from transformers import logging as transformers_logging

from envs.experts import demonstrations
from reward_models import TrainedReward
from rlobj import make_tokenizer

DTYPES = ("float32", "bfloat16")
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)


def texts_of(file: Path) -> list[str]:
    """Texts of a JSON lines file: its column text, or the prompt with chosen and with rejected."""
    read = gzip.open if file.suffix == ".gz" else open
    with read(file, "rt", encoding="utf-8") as lines:  # type: ignore[operator]
        rows = [json.loads(line) for line in lines]
    if "text" in rows[0]:
        return [row["text"] for row in rows]

    def text(said: str | Sequence[dict[str, str]]) -> str:
        return said if isinstance(said, str) else "\n".join(message["content"] for message in said)

    sides = [(row.get("prompt", ""), row[side]) for row in rows for side in ("chosen", "rejected")]
    return ["\n".join(map(text, both)) for both in sides]


def embedded_texts(count: int) -> list[str]:
    made = demonstrations(lambda: gymnasium.make("rlobj/CustomerService-v0"), count)
    return ["\n".join(message["content"] for message in dialogue["messages"]) for dialogue in made]


def make_model(directory: Path, texts: Sequence[str], hidden_size: int, layers: int) -> None:
    tokenizer = make_tokenizer(texts, vocab_size=8000, max_length=512)
    tokenizer.save_pretrained(directory)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=hidden_size, num_hidden_layers=layers,
        num_attention_heads=hidden_size // 32, intermediate_size=4 * hidden_size, num_labels=1,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(directory)


def peer(folder: str, dtype: str) -> Any:
    made = pipeline(
        "text-classification", model=folder, tokenizer=folder, function_to_apply="none", dtype=getattr(torch, dtype)
    )
    made.tokenizer.padding_side, made.tokenizer.truncation_side = "right", "left"
    return made


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=Path, help="JSON lines with text, or chosen and rejected")
    parser.add_argument("--count", type=int, default=512, help="texts, drawn at random")
    parser.add_argument("--copies", type=int, default=1, help="how often each text occurs")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each")
    parser.add_argument("--hidden_size", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    given = parser.parse_args()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.disable(logging.WARNING)
    rng = random.Random(0)
    texts = texts_of(given.texts) if given.texts else embedded_texts(given.count)
    texts = rng.sample(texts, min(given.count, len(texts))) * given.copies
    rng.shuffle(texts)
    with tempfile.TemporaryDirectory() as folder:
        make_model(Path(folder), texts, given.hidden_size, given.layers)
        ours = {dtype: TrainedReward(folder, dtype=dtype) for dtype in DTYPES}
        lengths = sorted(len(ids) for ids in ours["float32"].tokenizer(texts, truncation=True)["input_ids"])
        print(
            f"{len(texts)} texts, {len(set(texts))} different; tokens: median {statistics.median(lengths):.0f}, "
            f"5% to 95% {lengths[len(lengths) // 20]} to {lengths[-len(lengths) // 20]}; "
            f"{torch.get_num_threads()} threads"
        )
        theirs = {dtype: peer(folder, dtype) for dtype in DTYPES}

        def their_scores(dtype: str, batch_size: int) -> list[float]:
            options = {"truncation": True, "max_length": 512, "add_special_tokens": False}
            return [found["score"] for found in theirs[dtype](texts, batch_size=batch_size, **options)]

        def our_scores(dtype: str) -> list[float]:
            return ours[dtype]([""] * len(texts), texts)

        exact = our_scores("float32")
        spread = statistics.pstdev(exact)
        for name, scores in (("pipeline", their_scores("float32", 8)), ("bfloat16", our_scores("bfloat16"))):
            worst = max(abs(a - b) for a, b in zip(exact, scores, strict=True))
            print(f"largest difference of the scores, {name}: {worst / spread:.1e} standard deviations")
        print("\n| dtype | pipeline, texts/s | batches of | TrainedReward, texts/s | ratio | least to most |")
        print("|---|---|---|---|---|---|")
        for dtype in DTYPES:
            mine = partial(our_scores, dtype)
            rivals = {size: partial(their_scores, dtype, size) for size in BATCH_SIZES}
            best = min(BATCH_SIZES, key=lambda size, rivals=rivals: seconds(rivals[size]))  # type: ignore[misc]
            turns = [(seconds(rivals[best]), seconds(mine)) for _ in range(given.repeats)]
            ratios = sorted(a / b for a, b in turns)
            rates = [len(texts) / statistics.median(side) for side in zip(*turns, strict=True)]
            print(
                f"| {dtype} | {rates[0]:.0f} | {best} | {rates[1]:.0f} | {statistics.median(ratios):.2f} | "
                f"{ratios[0]:.2f} to {ratios[-1]:.2f} |"
            )


if __name__ == "__main__":
    main()
