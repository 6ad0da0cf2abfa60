"""What a run trains on: its environments, its labelled data, its preference pairs.

Three kinds of source, one shape: an environment whose own expert demonstrates, labelled texts, and a corpus of
dialogues. Everything is a pure function of the configuration and its files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from transformers import PreTrainedTokenizerBase

import envs  # noqa: F401  (registers the environments)
from envs.core import FIRST_HELD_OUT_SEED
from envs.experts import demonstrations, has_expert, preference_pairs
from rlobj import data
from rlobj.chat_format import Message
from rlobj.config import RunConfig
from rlobj.rollout import factory_of
from rlobj.supervised import SupervisedRow, dialogue_rows, label_rows

Dialogue = list[Message]
Pair = dict[str, Any]
HELD_OUT = 0.1
"""Share of the labelled data kept from training where no evaluation file is given."""
MAX_HELD_OUT_ROWS = 500
"""Held-out rows that ℓ and the reward model's accuracy are measured on, at the most."""


@dataclass(frozen=True, slots=True)
class Task:
    """The data of one run."""

    train_env: gymnasium.Env[Any, Any]
    make_eval_env: Callable[[], gymnasium.Env[Any, Any]]
    train_seeds: Sequence[int]
    eval_seeds: Sequence[int]
    texts: Callable[[], list[str]]
    """Training text for a tokenizer made from scratch."""
    rows: Callable[[PreTrainedTokenizerBase], tuple[list[SupervisedRow], list[SupervisedRow]]]
    """Labelled rows to train on, and held out."""
    pairs: Callable[[], tuple[list[Pair], list[Pair]]]
    """Preference pairs to train on, and held out."""
    label_names: list[str] | None = None
    facts: dict[str, str] | None = None
    """What the report says of the data."""


def make_task(config: RunConfig) -> Task:
    """The task that `config.env` and `config.data` describe.

    Raises:
        ValueError: the environment needs data that was not given, or the data is not what it needs.
    """
    if config.env.id == "rlobj/Classification-v0":
        return _labelled_texts(config)
    if config.data.train is not None:
        return _corpus(config)
    if has_expert(type(_make_env(config).unwrapped)):
        return _expert(config)
    raise ValueError(
        f"env.id is {config.env.id!r}, which has no expert of its own: give labelled dialogues with "
        "--data.train PATH (JSON lines in chat format)"
    )


def _make_env(config: RunConfig, **kwargs: Any) -> gymnasium.Env[Any, Any]:
    # the observation checks of gymnasium.make would run at every turn of every episode; our tests run them instead
    return gymnasium.make(config.env.id, disable_env_checker=True, **{**config.env.kwargs, **kwargs})


def _training_seeds(config: RunConfig, population: int) -> list[int]:
    """One seed per prompt of the whole training: one pass of the sampler, so that a resume goes on where it was."""
    prompts = config.training.steps * config.training.prompts_per_step
    return [i % population for i in range(prompts)]


def _expert(config: RunConfig) -> Task:
    env = _make_env(config)
    make_env = factory_of(env)
    demos = demonstrations(make_env, config.data.demonstrations, seed=config.seed)
    train, held_out = data.split_rows(demos, HELD_OUT, config.seed)

    def pairs() -> tuple[list[Pair], list[Pair]]:
        made = preference_pairs(make_env, config.reward.pairs, seed=config.seed + 1)
        return data.split_rows(made, HELD_OUT, config.seed)

    success = sum(d["success"] for d in demos) / len(demos)
    return Task(
        train_env=env,
        make_eval_env=make_env,
        train_seeds=_training_seeds(config, config.env.train_episodes),
        eval_seeds=range(FIRST_HELD_OUT_SEED, FIRST_HELD_OUT_SEED + config.env.eval_episodes),
        texts=lambda: [m["content"] for d in train for m in d["messages"]],
        rows=_dialogue_row_maker([d["messages"] for d in train], [d["messages"] for d in held_out], config),
        pairs=pairs,
        facts={"demonstrations": f"{len(train)} to train on, {len(held_out)} held out; {success:.0%} of them succeed"},
    )


def _dialogue_row_maker(
    train: list[Dialogue], held_out: list[Dialogue], config: RunConfig
) -> Callable[[PreTrainedTokenizerBase], tuple[list[SupervisedRow], list[SupervisedRow]]]:
    def make(tokenizer: PreTrainedTokenizerBase) -> tuple[list[SupervisedRow], list[SupervisedRow]]:
        length = config.policy.max_length
        return dialogue_rows(tokenizer, train, length), dialogue_rows(tokenizer, held_out[:MAX_HELD_OUT_ROWS], length)

    return make


def _labelled_texts(config: RunConfig) -> Task:
    source = config.data
    if source.train is None:
        raise ValueError(
            "data.train is not set: classification needs labelled texts, for example "
            "--data.train intents.jsonl with the columns text and label"
        )
    texts, labels = data.labelled(source.train, source.text_column, source.label_column, source.limit)
    if source.eval is not None:
        eval_texts, eval_labels = data.labelled(source.eval, source.text_column, source.label_column, None)
    else:
        train, held_out = data.split_rows(list(zip(texts, labels, strict=True)), HELD_OUT, config.seed)
        seen = {label for _, label in train}
        train += [row for row in held_out if row[1] not in seen]  # a label's only rows are for learning
        held_out = [row for row in held_out if row[1] in seen]
        if not held_out:
            raise ValueError(f"{source.train!r} has no label with rows enough to hold some out: set data.eval")
        (texts, labels), (eval_texts, eval_labels) = (
            tuple(map(list, zip(*part, strict=True))) for part in (train, held_out)
        )
    names = sorted(set(labels))
    unknown = sorted(set(eval_labels) - set(names))
    if unknown:
        raise ValueError(f"labels {unknown[:5]} of the evaluation data are not in the training data {source.train!r}")
    index = {name: i for i, name in enumerate(names)}
    few = list(range(len(texts)))
    if source.rows_per_label is not None:
        few = data.few_per_label(labels, source.rows_per_label, config.seed)

    def env_kwargs(texts: list[str], labels: list[str]) -> dict[str, Any]:
        return {"texts": texts, "labels": labels, "label_names": names}

    def rows(tokenizer: PreTrainedTokenizerBase) -> tuple[list[SupervisedRow], list[SupervisedRow]]:
        length = config.policy.max_length
        return (
            label_rows(tokenizer, [texts[i] for i in few], [index[labels[i]] for i in few], length),
            label_rows(tokenizer, eval_texts, [index[x] for x in eval_labels], length),
        )

    def no_pairs() -> tuple[list[Pair], list[Pair]]:
        raise ValueError("reward.kind is 'trained': labelled texts give no preference pairs; use reward.kind function")

    return Task(
        train_env=_make_env(config, **env_kwargs(texts, labels)),
        make_eval_env=factory_of(_make_env(config, **env_kwargs(eval_texts, eval_labels))),
        train_seeds=_shuffled(_training_seeds(config, len(texts)), config.seed),
        eval_seeds=range(min(len(eval_texts), config.env.eval_episodes)),
        texts=lambda: texts,
        rows=rows,
        pairs=no_pairs,
        label_names=names,
        facts={
            "labelled texts": f"{len(texts)} to be rewarded on, {len(few)} of them with their label for ℓ, "
            f"{len(eval_texts)} held out, {len(names)} labels"
        },
    )


def _shuffled(seeds: list[int], seed: int) -> list[int]:
    return [seeds[i] for i in np.random.default_rng(seed).permutation(len(seeds))]


def _corpus(config: RunConfig) -> Task:
    assert config.data.train is not None
    loaded = data.dialogues(config.data.train, config.data.limit)
    if config.data.eval is not None:
        train, held_out = loaded.messages, data.dialogues(config.data.eval, config.data.limit).messages
    else:
        train, held_out = data.split_rows(loaded.messages, HELD_OUT, config.seed)
    replies, held_out_replies = data.replies(train), data.replies(held_out)

    def env_kwargs(rows: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "prompts": [row["prompt"] for row in rows],
            "references": [row["completion"][-1]["content"] for row in rows],
        }

    def pairs() -> tuple[list[Pair], list[Pair]]:
        if config.data.preferences is not None:
            made = data.preference_rows(config.data.preferences, None)
            return data.split_pairs(made, HELD_OUT, config.seed)
        return (
            data.mismatched_pairs(replies, config.reward.pairs, config.seed),
            data.mismatched_pairs(held_out_replies, MAX_HELD_OUT_ROWS, config.seed),
        )

    facts = {
        "corpus": f"{len(train)} dialogues with {len(replies)} replies to train on, {len(held_out)} dialogues "
        f"with {len(held_out_replies)} replies held out"
    }
    if loaded.dropped:
        facts["left out"] = f"{loaded.dropped} dialogues: {loaded.why}"
    return Task(
        train_env=_make_env(config, **env_kwargs(replies)),
        make_eval_env=factory_of(_make_env(config, **env_kwargs(held_out_replies))),
        train_seeds=_shuffled(_training_seeds(config, len(replies)), config.seed),
        eval_seeds=range(min(len(held_out_replies), config.env.eval_episodes)),
        texts=lambda: [m["content"] for dialogue in train for m in dialogue],
        rows=_dialogue_row_maker(train, held_out, config),  # every reply of a dialogue is a target, once
        pairs=pairs,
        facts=facts,
    )
