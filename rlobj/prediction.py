"""`rlobj predict`: what a trained model says of the rows of a file or of standard input."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from scipy.special import softmax

from rlobj.chat import policy_directory, reply
from rlobj.chat_format import ChatFormat
from rlobj.data import column_of
from rlobj.inference import encode, encode_words, limit_of, logits_of, tags_of
from rlobj.loading import INT8, kind_of, load_model
from rlobj.policies import load_tokenizer
from rlobj.reading import Row, load_rows
from rlobj.runs import rounded

AT_ONCE = 1000
"""Rows that are read before they are predicted."""


def model_directory(given: str | Path, policy: str | None = None) -> Path:
    """The model's directory: itself, `model` of a supervised run, or a policy of a run by reinforcement learning.

    Raises:
        ValueError: there is no model.
    """
    path = Path(given)
    for directory in (path, path / "model"):
        if policy is None and (directory / "config.json").is_file():
            return directory
    if (path / "policies").is_dir():
        return policy_directory(path, policy)
    if policy is not None and path.is_dir():
        raise ValueError(f"{str(given)!r} has no policies, of which {policy!r} would be one: leave --policy out")
    if (path / "trials").is_dir():
        raise ValueError(f"{str(given)!r} is a comparison: take its best_policy, or a run in {path / 'trials'}")
    raise ValueError(
        f"{str(given)!r} holds no model: expected a directory with config.json, or that of a run, such as runs/NAME"
    )


class Predictor:
    """A trained model and what it says of rows.

    Args:
        directory: an ordinary Hugging Face one: a classifier of texts or tokens, a regression, a reward model, or a
            causal language model.
        text_column: of the rows; of a classifier of tokens it holds lists of words, or text that spaces divide.
        max_new_tokens: of a causal model.

    Raises:
        ValueError: a model of another kind.
    """

    def __init__(self, directory: str | Path, text_column: str = "text", max_new_tokens: int = 40) -> None:
        self.column, self.max_new_tokens = text_column, max_new_tokens
        says = {"ForTokenClassification": self._tags, "ForCausalLM": self._completions}
        self._say = says.get(kind_of(directory), self._label_or_score)
        self.tokenizer = load_tokenizer(directory)
        self.model = load_model(directory)
        self.model.to("cpu" if (Path(directory) / INT8).is_file() else PartialState().device).eval()
        self.names = [self.model.config.id2label[i] for i in range(self.model.config.num_labels)]

    def __call__(self, rows: Iterable[Row]) -> Iterator[Row]:
        """Each row with what the model says of it: `predicted` and `probability`; of a classifier of tokens `words`,
        `predicted` and `entities`; `score`; or `completion`."""
        rows = iter(rows)
        while batch := list(islice(rows, AT_ONCE)):
            for row, said in zip(batch, self._say(batch), strict=True):
                yield {**row, **said}

    def _texts(self, rows: Sequence[Row]) -> list[Any]:
        return [column_of(row, self.column, "--text_column", f"row {number}") for number, row in enumerate(rows)]

    def _label_or_score(self, rows: Sequence[Row]) -> list[Row]:
        limit = limit_of(self.model, self.tokenizer)
        found = logits_of(
            self.model, self.tokenizer, [encode(self.tokenizer, str(text), limit) for text in self._texts(rows)]
        )
        if len(self.names) == 1:
            return [{"score": rounded(float(each[0]))} for each in found]
        p = softmax(np.stack(found), axis=1)
        return [{"predicted": self.names[int(each.argmax())], "probability": rounded(float(each.max()))} for each in p]

    def _tags(self, rows: Sequence[Row]) -> list[Row]:
        words = [text.split() if isinstance(text, str) else [str(word) for word in text] for text in self._texts(rows)]
        limit = limit_of(self.model, self.tokenizer)
        encoded = [encode_words(self.tokenizer, each, limit) for each in words]
        found = logits_of(self.model, self.tokenizer, [ids for ids, _ in encoded])
        said = []
        for each, (_, begins), logits in zip(words, encoded, found, strict=True):
            tags = tags_of(logits, begins, len(each), self.names)
            said.append({"words": each, "predicted": tags, "entities": entities_in(each, tags)})
        return said

    def _completions(self, rows: Sequence[Row]) -> list[Row]:
        """A row with `messages` is answered; a text goes on."""
        return [{"completion": self._completion(row)} for row in rows]

    def _completion(self, row: Row) -> str:
        if row.get("messages"):
            return reply(self.model, ChatFormat(self.tokenizer), row["messages"], self.max_new_tokens, sample=False)
        text, limit = str(self._texts([row])[0]), limit_of(self.model, self.tokenizer)
        ids = torch.tensor([encode(self.tokenizer, text, limit)], device=self.model.device)
        with torch.inference_mode():
            out = self.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=self.max_new_tokens,
                do_sample=False,
                pad_token_id=self.tokenizer.pad_token_id,
            )
        return str(self.tokenizer.decode(out[0, ids.size(1) :], skip_special_tokens=True))


def entities_in(words: Sequence[str], tags: Sequence[str]) -> list[dict[str, Any]]:
    """The entities that tags name: kind, words, and the places of the first word and behind the last. An I- of another
    kind than what stands before it begins an entity, as conlleval has it; a tag that is neither B-, I- nor O is the
    kind of an entity of one word."""
    found: list[dict[str, Any]] = []
    before = None  # the kind of which an I- would go on
    for place, tag in enumerate(tags):
        is_bio = tag.startswith(("B-", "I-"))
        kind = tag[2:] if is_bio else tag
        if tag.startswith("I-") and kind == before:
            found[-1]["end"] = place + 1
        elif tag != "O":
            found.append({"kind": kind, "start": place, "end": place + 1})
        before = kind if is_bio else None
    return [{**entity, "words": list(words[entity["start"] : entity["end"]])} for entity in found]


def read_rows(source: str, lines: Iterable[str], text_column: str) -> Iterable[Row]:
    """Rows of a file, or with "-" of lines: JSON objects, or texts."""
    if source != "-" and Path(source).suffix == ".txt":
        lines = Path(source).read_text(encoding="utf-8").splitlines()
    elif source != "-":
        return load_rows(source)
    return (_row(line.rstrip("\n"), text_column) for line in lines if line.strip())


def _row(line: str, text_column: str) -> Row:
    if line.startswith("{"):
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            row = None
        if isinstance(row, dict):
            return row
    return {text_column: line}
