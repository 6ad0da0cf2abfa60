"""Prompts that leave no room for a reply, and too few prompts: settled before the first step."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlobj.chat_format import ChatFormat, Message
from rlobj.encoder_policy import is_one_token_policy
from rlobj.episodes import opening_of
from rlobj.rollout import encode_text, episode_seed
from rlobj.sampling import LongPrompts, Sampling

logger = logging.getLogger(__name__)


def room_for_prompts(policy: PreTrainedModel, sampling: Sampling) -> int:
    """Tokens that an episode may open with."""
    if is_one_token_policy(policy):
        return min(sampling.max_length, int(policy.config.max_position_embeddings))
    return max(sampling.max_length - sampling.max_reply_tokens, 1)


def tokens_of_opening(policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Callable[[list[Message]], int]:
    """What counts the tokens of opening messages, as rollouts encode them."""
    if is_one_token_policy(policy):
        return lambda messages: len(encode_text(tokenizer, messages, None))
    chat = ChatFormat(tokenizer)
    return lambda messages: len(chat.prompt_ids(messages))


def fitting(
    tokens: Sequence[int], room: int, what: LongPrompts, name: Callable[[int], str], remedy: str
) -> tuple[list[int], str | None]:
    """Indices of the prompts to keep, and what is to be told of the others.

    Args:
        tokens: of each prompt.
        room: tokens that a prompt may have.
        what: "drop" leaves the longer ones out.
        name: what a prompt is called.
        remedy: what else can be done.

    Raises:
        ValueError: with "error" one is longer, with "drop" all are.
    """
    long = [index for index, count in enumerate(tokens) if count > room]
    kept = [index for index, count in enumerate(tokens) if count <= room]
    if what == "cut" or not long:
        return list(range(len(tokens))), None
    told = (
        f"prompts are too long, {len(long)} of {len(tokens)}, such as that of {name(long[0])} with {tokens[long[0]]} "
        f"tokens where {room} leave room for a reply"
    )
    if what == "error" or not kept:
        raise ValueError(f"{told}: {remedy if what == 'error' else NONE_LEFT}")
    return kept, f"{told}: they are left out (rollout.long_prompts is drop)"


def fitting_seeds(
    make_env: Callable[[], gymnasium.Env[Any, Any]],
    seeds: Sequence[int],
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sampling: Sampling,
) -> Sequence[int]:
    """The episodes whose opening leaves room for a reply; all of them where openings are cut.

    Raises:
        ValueError: as `fitting`.
    """
    if sampling.long_prompts == "cut":
        return seeds
    env, count = make_env(), tokens_of_opening(policy, tokenizer)
    tokens = [count(opening_of(env, int(seed))) for seed in seeds]
    room = room_for_prompts(policy, sampling)
    kept, told = fitting(tokens, room, sampling.long_prompts, lambda i: f"episode {seeds[i]}", REMEDY)
    if told is not None:
        logger.warning("evaluation: %s", told)
    return [seeds[index] for index in kept]


NONE_LEFT = "to drop them leaves none; raise policy.max_length, or lower training.max_reply_tokens"
REMEDY = "raise policy.max_length, lower training.max_reply_tokens, or let rollout.long_prompts be drop or cut"


def fitting_prompts(
    dataset: Any, policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sampling: Sampling | None, args: Any,
    what: LongPrompts,
) -> tuple[Any, str | None]:  # fmt: skip
    """A trainer's data set without the prompts that are too long, and what is to be told of them.

    Args:
        sampling: of episodes; None where TRL generates, which cuts no prompt: there "cut" is an error.
        args: TRL's configuration.

    Raises:
        ValueError: as `fitting`; a prompt without a token, or fewer prompts than a generation takes.
    """
    if not isinstance(dataset, Dataset):
        return dataset, None  # a stream, whose prompts nobody knows yet
    told = None
    if sampling is not None and what != "cut":
        count = tokens_of_opening(policy, tokenizer)
        tokens = [count(prompt) for prompt in dataset["prompt"]]
        kept, told = fitting(tokens, room_for_prompts(policy, sampling), what,
                             lambda i: f"episode {episode_seed(dataset[i]['prompt'])}", REMEDY)  # fmt: skip
        dataset = dataset if told is None else dataset.select(kept)
    elif sampling is None and all(_is_text(prompt) for prompt in dataset["prompt"]):
        tokens = [_tokens(tokenizer, prompt) for prompt in dataset["prompt"]]
        if 0 in tokens:
            raise ValueError(f"the prompt of row {tokens.index(0)} of train_dataset is empty: expected some text")
        limit = getattr(policy.config.get_text_config(), "max_position_embeddings", None)
        if limit is not None:
            room = int(limit) - args.max_completion_length
            kept, told = fitting(tokens, room, "error" if what == "cut" else what, lambda i: f"row {i}",
                                 "shorten them, lower max_completion_length, or let "
                                 "rollout=RolloutConfig(long_prompts='drop') leave them out")  # fmt: skip
            dataset = dataset if told is None else dataset.select(kept)
    wanted = args.generation_batch_size // args.num_generations
    if len(dataset) < wanted:
        raise ValueError(
            f"there are {len(dataset)} prompts (train_seeds, or rows of train_dataset) and a generation takes {wanted} "
            "different ones: nothing would be trained; give more, or lower per_device_train_batch_size"
        )
    return dataset, told


def _is_text(prompt: Any) -> bool:
    return isinstance(prompt, str) or (
        isinstance(prompt, list) and all(isinstance(message.get("content"), str) for message in prompt)
    )


def _tokens(tokenizer: PreTrainedTokenizerBase, prompt: Any) -> int:
    """As TRL encodes it."""
    text = prompt
    if not isinstance(prompt, str):
        text = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
    return len(tokenizer(text, add_special_tokens=isinstance(prompt, str))["input_ids"])
