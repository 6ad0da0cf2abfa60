"""What a run trains on: its environments, its labelled data, its preference pairs.

Three kinds of source, one shape: an environment whose own expert demonstrates, labelled texts, and a corpus of
dialogues. Everything is a pure function of the configuration and its files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import gymnasium
import numpy as np
from transformers import PreTrainedTokenizerBase

import envs  # noqa: F401  (registers the environments)
from envs.adapters import spec_of
from envs.choice import ChoiceEnv, Example
from envs.classification import ClassificationEnv
from envs.clicks import ClickModel
from envs.core import FIRST_HELD_OUT_SEED
from envs.experts import ceiling, demonstrations, has_expert, preference_pairs
from envs.recommendation import RecommendationEnv
from rlobj import data
from rlobj.chat_format import Message
from rlobj.config import RunConfig
from rlobj.environment_checks import CLASSIFICATION, DIALOGUE, environment_class
from rlobj.model_user import ModelUser
from rlobj.reading import load_rows
from rlobj.rollout import factory_of
from rlobj.splitting import few_per_label, repeats, split_pairs, split_rows
from rlobj.supervised import SupervisedRow, dialogue_rows, label_rows
from rlobj.validation import TRAIN

Dialogue = list[Message]
Pair = dict[str, Any]
MODEL_USER = "model:"
HELD_OUT = 0.1
"""Share of the labelled data kept from training where no evaluation file is given."""
MAX_HELD_OUT_ROWS = 500
"""Held-out rows that ℓ and the reward model's accuracy are measured on, at the most."""


RowMaker = Callable[[PreTrainedTokenizerBase], tuple[list[SupervisedRow], list[SupervisedRow]]]
"""Labelled rows for a tokenizer: to train on, and held out."""


@dataclass(frozen=True, slots=True)
class Task:
    """The data of one run."""

    train_env: gymnasium.Env[Any, Any]
    make_eval_env: Callable[[], gymnasium.Env[Any, Any]]
    train_seeds: Sequence[int]
    eval_seeds: Sequence[int]
    choice_seeds: Sequence[int]
    """Held-out episodes that a policy may be chosen by (training.keep_best): none of those that judge it."""
    texts: Callable[[], list[str]]
    """Training text for a tokenizer made from scratch."""
    rows: RowMaker
    pairs: Callable[[], tuple[list[Pair], list[Pair]]]
    """Preference pairs to train on, and held out."""
    rows_beside_reward: Callable[[PreTrainedTokenizerBase], list[SupervisedRow]] | None = None
    """Rows of ℓ where it stands beside R, if those are not all that the warm start has."""
    rows_of_source: dict[str, Callable[[PreTrainedTokenizerBase], list[SupervisedRow]]] = field(default_factory=dict)
    """Rows of each file in objective.sources."""
    label_names: list[str] | None = None
    facts: dict[str, str] | None = None
    """What the report says of the data."""


def make_task(config: RunConfig) -> Task:
    """The task that `config.env` and `config.data` describe.

    Raises:
        ValueError: the environment needs data that was not given, or the data is not what it needs.
    """
    if config.policy.kind == "encoder":
        task = _choices(config)
    elif config.env.id == DIALOGUE and config.data.train is not None:
        task = _corpus(config)
    else:
        task = _environment(config)
    sources = {name: _rows_of(name, config, task.label_names) for name in config.objective.sources if name != TRAIN}
    return replace(task, rows_of_source=sources)


def _rows_of(
    source: str, config: RunConfig, label_names: list[str] | None
) -> Callable[[PreTrainedTokenizerBase], list[SupervisedRow]]:
    """What makes rows of ℓ of a file of labelled data. It is read at once: what is wrong with it is told now."""
    given, length = config.data, config.policy.max_length
    if label_names is None:
        dialogues = data.dialogues(source, given.limit, given.role).messages
        return lambda tokenizer: dialogue_rows(tokenizer, dialogues, length)
    texts, labels = data.labelled(source, given.text_column, given.label_column, given.limit)
    unknown = sorted(set(labels) - set(label_names))
    if unknown:
        raise ValueError(f"objective.sources has {source!r} with the labels {unknown[:5]}, which are no choices here")
    actions = [label_names.index(label) for label in labels]
    return lambda tokenizer: label_rows(tokenizer, texts, actions, length)


def _make_env(config: RunConfig, **kwargs: Any) -> gymnasium.Env[Any, Any]:
    # the observation checks of gymnasium.make would run at every turn of every episode; our tests run them instead
    return gymnasium.make(spec_of(config.env.id), disable_env_checker=True, **{**config.env.kwargs, **kwargs})


def _training_seeds(config: RunConfig) -> list[int]:
    """One seed per prompt of the whole training: one pass of the sampler, so that a resume goes on where it was."""
    # another seed of training begins elsewhere in the same episodes
    first = (config.training.seed or 0) * _prompts(config)
    return [(first + i) % config.env.train_episodes for i in range(_prompts(config))]


def _prompts(config: RunConfig) -> int:
    return config.training.steps * config.training.prompts_per_step


def _rows_in_turn(count: int, population: int, seed: int) -> list[int]:
    """`count` of the numbers below `population`: every pass has each once, in an order of its own. Files are often
    sorted, so the first rows alone would teach, or judge, the first labels alone."""
    rng = np.random.default_rng(seed)
    passes = [rng.permutation(population) for _ in range(-(-count // population))]
    return [int(row) for row in np.concatenate(passes)[:count]]


def _environment(config: RunConfig) -> Task:
    """An environment that makes up its own episodes. Labelled dialogues come from the user's file, or from the
    environment's own expert; without either there is no ℓ."""
    env = _make_env(config)
    make_env = factory_of(env)
    eval_seeds, choice_seeds = _held_out_episodes(config)
    train, held_out, beside_reward, facts = _labelled_dialogues(config, make_env)

    def pairs() -> tuple[list[Pair], list[Pair]]:
        if config.data.preferences is not None:
            return split_pairs(data.preference_rows(config.data.preferences, None), HELD_OUT, config.seed)
        made = preference_pairs(make_env, config.reward.pairs, seed=config.seed + 1)
        return split_rows(made, HELD_OUT, config.seed)

    possible = ceiling(make_env, eval_seeds)
    if possible is not None:
        facts["ceiling"] = f"{possible:.1%} of the {len(eval_seeds)} customers of the evaluation can be served at all"
    return Task(
        train_env=env,
        make_eval_env=make_env,
        train_seeds=_training_seeds(config),
        eval_seeds=eval_seeds,
        choice_seeds=choice_seeds,
        texts=lambda: [m["content"] for dialogue in train for m in dialogue],
        rows=_dialogue_row_maker(train, held_out, config),
        rows_beside_reward=None
        if beside_reward is None
        else lambda tokenizer: dialogue_rows(tokenizer, beside_reward, config.policy.max_length),
        pairs=pairs,
        facts=facts,
    )


def _labelled_dialogues(
    config: RunConfig, make_env: Callable[[], gymnasium.Env[Any, Any]]
) -> tuple[list[Dialogue], list[Dialogue], list[Dialogue] | None, dict[str, str]]:
    """Dialogues to train on, held out, and of the former those for ℓ beside R if not all; and what the report says of
    them. None where nobody has any."""
    source = config.data
    if source.train is not None:
        loaded = data.dialogues(source.train, source.limit, source.role)
        if source.eval is not None:
            train, held_out = loaded.messages, data.dialogues(source.eval, source.limit, source.role).messages
        else:
            train, held_out = split_rows(loaded.messages, HELD_OUT, config.seed)
        facts = {"labelled dialogues": f"{len(train)} to train on, {len(held_out)} held out"}
        facts |= repeats(train, held_out)
        return train, held_out, None, facts
    if not has_expert(type(make_env().unwrapped)):
        return [], [], None, {}
    demos = demonstrations(make_env, source.demonstrations, seed=config.seed)
    success = sum(d["success"] for d in demos) / len(demos)
    learned, kept = split_rows(demos, HELD_OUT, config.seed)
    train, held_out = ([d["messages"] for d in part] for part in (learned, kept))
    facts = {"demonstrations": f"{len(train)} to train on, {len(held_out)} held out; {success:.0%} of them succeed"}
    if not config.objective.only_successful:
        return train, held_out, None, facts
    successful = [d["messages"] for d in learned if d["success"]]
    if not successful:
        raise ValueError(f"objective.only_successful is true, but none of {len(train)} demonstrations succeeds")
    return train, held_out, successful, {**facts, "ℓ beside R": f"on the {len(successful)} that succeed"}


def _dialogue_row_maker(train: list[Dialogue], held_out: list[Dialogue], config: RunConfig) -> RowMaker:
    def make(tokenizer: PreTrainedTokenizerBase) -> tuple[list[SupervisedRow], list[SupervisedRow]]:
        if not train:
            return [], []
        length = config.policy.max_length
        return dialogue_rows(tokenizer, train, length), dialogue_rows(tokenizer, held_out[:MAX_HELD_OUT_ROWS], length)

    return make


def _choices(config: RunConfig) -> Task:
    """An encoder policy's task: an environment with a choice among named actions, and labelled choices for ℓ."""
    source = config.data
    if source.train is not None:
        train_kwargs, eval_kwargs = _choice_data(config)
    elif config.env.id != CLASSIFICATION:
        train_kwargs, eval_kwargs = {}, {}
    else:
        raise ValueError(
            "data.train is not set: classification needs labelled texts, for example "
            "--data.train intents.jsonl with the columns text and label"
        )
    try:
        train_env, eval_env = (_make_env(config, **kwargs) for kwargs in (train_kwargs, eval_kwargs))
    except ValueError as error:
        error.add_note(f"env.kwargs is {config.env.kwargs}: what does not fit your data, --env.kwargs.NAME VALUE sets")
        raise
    train, held_out = _choice_env(train_env), _choice_env(eval_env)
    if train.action_names != held_out.action_names:
        raise ValueError(
            f"the evaluation data {source.eval!r} have {len(held_out.action_names)} choices, the training data "
            f"{len(train.action_names)}: expected the same"
        )
    examples = train.examples(range(train.population or source.demonstrations))
    eval_seeds: Sequence[int]
    choice_seeds: Sequence[int]
    if held_out.population is not None:
        eval_seeds, choice_seeds = _some(held_out.population, config)
        eval_examples = held_out.examples(range(held_out.population))
    else:
        eval_seeds, choice_seeds = _held_out_episodes(config)
        eval_examples = held_out.examples(range(FIRST_HELD_OUT_SEED, FIRST_HELD_OUT_SEED + MAX_HELD_OUT_ROWS))
    few = examples
    if source.rows_per_label is not None:
        names = [train.action_names[action] for _, action in examples]
        few = [examples[i] for i in few_per_label(names, source.rows_per_label, config.seed)]

    def rows(tokenizer: PreTrainedTokenizerBase) -> tuple[list[SupervisedRow], list[SupervisedRow]]:
        length = config.policy.max_length
        return _label_rows(tokenizer, few, length), _label_rows(tokenizer, eval_examples, length)

    def no_pairs() -> tuple[list[Pair], list[Pair]]:
        raise ValueError("reward.kind is 'trained': labelled texts give no preference pairs; use reward.kind function")

    episodes = train.population or config.env.train_episodes
    return Task(
        train_env=train_env,
        make_eval_env=factory_of(eval_env),
        train_seeds=_rows_in_turn(_prompts(config), episodes, config.policy_seed),
        eval_seeds=eval_seeds,
        choice_seeds=choice_seeds,
        texts=lambda: [message["content"] for messages, _ in examples for message in messages],
        rows=rows,
        pairs=no_pairs,
        label_names=train.action_names,
        facts={
            "labelled texts": f"{episodes} to be rewarded on, {len(few)} of them with their label for ℓ, "
            f"{held_out.population or len(eval_seeds)} held out, {len(train.action_names)} actions",
            **(repeats(examples, eval_examples) if source.train is not None else {}),
        },
    )


def _label_rows(tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], length: int) -> list[SupervisedRow]:
    texts = ["\n".join(message["content"] for message in messages) for messages, _ in examples]
    return label_rows(tokenizer, texts, [action for _, action in examples], length)


def _choice_env(env: gymnasium.Env[Any, Any]) -> ChoiceEnv:
    if not isinstance(env.unwrapped, ChoiceEnv):
        raise ValueError(
            f"policy.kind is 'encoder', but {env.unwrapped!r} does not give a choice among named actions: "
            "expected an environment derived from envs.choice.ChoiceEnv; or set --policy.kind causal"
        )
    return env.unwrapped


def _choice_data(config: RunConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments of the environment for training and for evaluation, from the rows of `config.data`."""
    source = config.data
    assert source.train is not None
    kind = environment_class(config.env.id)
    if issubclass(kind, RecommendationEnv):
        return _recommendation_data(config)
    if not issubclass(kind, ClassificationEnv):
        raise ValueError(
            f"data.train is {source.train!r}, but {config.env.id} has examples of its own: leave data.train out, or "
            "derive the environment from envs.classification.ClassificationEnv"
        )
    columns = source.text_column, source.label_column
    rows = data.labelled_rows(source.train, *columns, source.limit)
    if source.eval is not None:
        held_out = data.labelled_rows(source.eval, *columns, None)
    else:
        rows, held_out = split_rows(rows, HELD_OUT, config.seed)
        seen = {label for row in rows for _, label in row}
        rows += [row for row in held_out if not {label for _, label in row} <= seen]  # a label's only rows are learned
        held_out = [row for row in held_out if {label for _, label in row} <= seen]
        if not held_out:
            raise ValueError(f"{source.train!r} has no label with rows enough to hold some out: set data.eval")
    (texts, labels), (eval_texts, eval_labels) = data.flat(rows), data.flat(held_out)
    names = sorted(set(labels))
    unknown = sorted(set(eval_labels) - set(names))
    if unknown:
        raise ValueError(f"labels {unknown[:5]} of the evaluation data are not in the training data {source.train!r}")
    return (
        {"texts": texts, "labels": labels, "label_names": names},
        {"texts": eval_texts, "labels": eval_labels, "label_names": names},
    )


def _recommendation_data(config: RunConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    source = config.data
    assert source.train is not None
    rows = load_rows(source.train, source.limit)
    held_out = load_rows(source.eval) if source.eval is not None else None
    if held_out is None:
        rows, held_out = split_rows(rows, HELD_OUT, config.seed)
    # the same users click in training and in evaluation: those that the training log tells of
    users = config.env.kwargs.get("click_model") or ClickModel.fit(rows)
    return {"impressions": rows, "click_model": users}, {"impressions": held_out, "click_model": users}


def _held_out_episodes(config: RunConfig) -> tuple[range, range]:
    """Seeds to judge a policy by, and others to choose it by, of an environment that makes up its episodes."""
    between = FIRST_HELD_OUT_SEED + config.env.eval_episodes
    return range(FIRST_HELD_OUT_SEED, between), range(between, between + config.env.eval_episodes)


def _some(population: int, config: RunConfig) -> tuple[list[int], list[int]]:
    """At most `env.eval_episodes` of the numbers below `population` to judge by, and as many others to choose by, in
    rising order; the same for every run of one file."""
    count, order = config.env.eval_episodes, _rows_in_turn(population, population, seed=0)
    if config.training.keep_best and population < 2 * count:
        raise ValueError(
            f"env.eval_episodes is {count}, and there are {population} held-out rows: expected at least twice as many, "
            "so that as many others are left for training.keep_best to choose by"
        )
    return sorted(order[:count]), sorted(order[count : 2 * count])


def _user(config: RunConfig) -> Any:
    """Who answers the policy in a corpus's dialogues: env.kwargs.user, where "model:PATH" is a language model."""
    user = config.env.kwargs.get("user")
    if isinstance(user, str) and user.startswith(MODEL_USER):
        return ModelUser(user.removeprefix(MODEL_USER))
    return user


def _corpus(config: RunConfig) -> Task:
    assert config.data.train is not None
    source = config.data
    loaded = data.dialogues(config.data.train, source.limit, source.role)
    if source.eval is not None:
        train, held_out = loaded.messages, data.dialogues(source.eval, source.limit, source.role).messages
    else:
        train, held_out = split_rows(loaded.messages, HELD_OUT, config.seed)
    replies, held_out_replies = data.replies(train), data.replies(held_out)

    user = _user(config)

    def env_kwargs(dialogues: list[Dialogue], rows: list[dict[str, Any]]) -> dict[str, Any]:
        if user is not None:
            return {"dialogues": dialogues, "user": user}
        return {
            "prompts": [row["prompt"] for row in rows],
            "references": [row["completion"][-1]["content"] for row in rows],
        }

    def pairs() -> tuple[list[Pair], list[Pair]]:
        if config.data.preferences is not None:
            made = data.preference_rows(config.data.preferences, None)
            return split_pairs(made, HELD_OUT, config.seed)
        return (
            data.mismatched_pairs(replies, config.reward.pairs, config.seed),
            data.mismatched_pairs(held_out_replies, MAX_HELD_OUT_ROWS, config.seed),
        )

    eval_seeds, choice_seeds = _some(len(held_out if user else held_out_replies), config)
    facts = {
        "corpus": f"{len(train)} dialogues with {len(replies)} replies to train on, {len(held_out)} dialogues "
        f"with {len(held_out_replies)} replies held out",
        **repeats(train, held_out),
    }
    if loaded.dropped:
        facts["left out"] = f"{loaded.dropped} dialogues: {loaded.why}"
    return Task(
        train_env=_make_env(config, **env_kwargs(train, replies)),
        make_eval_env=factory_of(_make_env(config, **env_kwargs(held_out, held_out_replies))),
        train_seeds=_rows_in_turn(_prompts(config), len(train if user else replies), config.policy_seed),
        eval_seeds=eval_seeds,
        choice_seeds=choice_seeds,
        texts=lambda: [m["content"] for dialogue in train for m in dialogue],
        rows=_dialogue_row_maker(train, held_out, config),  # every reply of a dialogue is a target, once
        pairs=pairs,
        facts=facts,
    )
