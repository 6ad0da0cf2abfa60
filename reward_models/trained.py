"""A trained reward model as a reward.

Legend: B conversations in a batch, T tokens.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import logging

from reward_models.protocol import Conversation


class TrainedReward:
    """The score of a sequence classifier with one output, such as `trl.RewardTrainer` trains.

    Each conversation is scored once, however often it occurs; the batches hold conversations of similar length. One
    that is too long for the model loses its beginning: the end shows how things went.

    Args:
        path: directory or Hub id of the model with its tokenizer. Only safetensors are read, no code is run.
        batch_size: conversations in one forward pass.
        device: where to score; None takes a GPU if there is one.

    Raises:
        ValueError: the model has several outputs or lacks weights, or its tokenizer has no chat template.
    """

    def __init__(self, path: str | os.PathLike[str], batch_size: int = 64, device: str | None = None) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}: expected at least 1")
        self.path, self.batch_size = str(path), batch_size
        self.__name__ = os.path.basename(os.path.normpath(self.path))  # the name in TRL's logs
        self.tokenizer = load_reward_tokenizer(self.path)
        with quiet():  # what transformers would report of missing weights is an error below
            model, info = AutoModelForSequenceClassification.from_pretrained(
                path, use_safetensors=True, trust_remote_code=False, dtype=torch.float32, output_loading_info=True
            )
        if model.config.num_labels != 1:
            raise ValueError(f"reward model {self.path!r} has {model.config.num_labels} outputs: expected one score")
        if info["missing_keys"]:
            raise ValueError(
                f"reward model {self.path!r} lacks the weights {sorted(info['missing_keys'])[:3]}: a random head is no "
                "reward; train one, or give the directory of a trained one"
            )
        # a causal backbone finds the last token by it
        model.config.get_text_config().pad_token_id = self.tokenizer.pad_token_id
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model = model.to(self.device).eval()
        self.max_length = context_length(model.config, self.tokenizer)

    def __call__(
        self, prompts: Sequence[str | Conversation], completions: Sequence[str | Conversation], **columns: Any
    ) -> list[float]:
        """Score prompt and completion together; texts are joined as they are, messages by the chat template."""
        conversations = [
            encode_conversation(self.tokenizer, prompt, completion, self.max_length)
            for prompt, completion in zip(prompts, completions, strict=True)
        ]
        return self.score_ids(conversations)

    @torch.no_grad()
    def score_ids(self, conversations: Sequence[Sequence[int]]) -> list[float]:
        """Scores of conversations that are tokens already."""
        keys = [tuple(ids) for ids in conversations]
        distinct = sorted(set(keys), key=len)
        scores: dict[tuple[int, ...], float] = {}
        for start in range(0, len(distinct), self.batch_size):
            chunk = distinct[start : start + self.batch_size]
            ids, mask = self._padded(chunk)
            logits = self.model(input_ids=ids, attention_mask=mask).logits[:, 0]
            scores |= dict(zip(chunk, logits.float().tolist(), strict=True))
        return [scores[key] for key in keys]

    def _padded(self, rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Right-padded ids and their mask, both (B, T)."""
        width = max(len(row) for row in rows)
        ids = [list(row) + [self.tokenizer.pad_token_id] * (width - len(row)) for row in rows]
        mask = [[1] * len(row) + [0] * (width - len(row)) for row in rows]
        return torch.tensor(ids, device=self.device), torch.tensor(mask, device=self.device)


def load_reward_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """The tokenizer beside a reward model, with a pad token.

    Raises:
        ValueError: no chat template, or neither pad nor eos token.
    """
    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    require_chat_and_padding(tokenizer)
    return tokenizer


def require_chat_and_padding(tokenizer: PreTrainedTokenizerBase) -> None:
    """See that a tokenizer can encode batches of conversations; without a pad token, eos becomes it.

    Raises:
        ValueError: no chat template, or neither pad nor eos token.
    """
    name = tokenizer.name_or_path
    if tokenizer.chat_template is None:
        raise ValueError(f"tokenizer of {name!r} has no chat template: set tokenizer.chat_template and save it there")
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ValueError(f"tokenizer of {name!r} has neither pad_token nor eos_token: set one and save it there")
        tokenizer.pad_token = tokenizer.eos_token


_UNLIMITED = 10**9
"""A tokenizer that does not know its limit says 10**30."""


def context_length(config: Any, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Longest input in tokens; None if neither model nor tokenizer says.

    The tokenizer may say less than the model: some count positions that hold no token, and a reward model that was
    trained on shorter inputs is used on those.
    """
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    limits = [n for n in (positions, tokenizer.model_max_length) if n is not None and 0 < n < _UNLIMITED]
    return min(limits, default=None)


@contextmanager
def quiet() -> Iterator[None]:
    """Neither progress bars nor warnings of transformers on the screen; its settings are put back afterwards."""
    level, has_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if has_bars:
            logging.enable_progress_bar()


_CONTROL_TOKENS: WeakKeyDictionary[PreTrainedTokenizerBase, re.Pattern[str]] = WeakKeyDictionary()


def as_plain_text(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """`text` as the tokenizer reads it without finding a control token in it.

    What people (and policies) write may look like "<|end|>" or "[SEP]"; a space behind its first character keeps it
    from ending a message or speaking for somebody else. Half a character (a lone surrogate), which no tokenizer takes,
    becomes U+FFFD.
    """
    pattern = _CONTROL_TOKENS.get(tokenizer)
    if pattern is None:
        special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        words = sorted(special | set(tokenizer.all_special_tokens), key=len, reverse=True)
        pattern = _CONTROL_TOKENS[tokenizer] = re.compile("|".join(map(re.escape, words)) or "(?!)")
    if not text.isascii():
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return pattern.sub(lambda found: f"{found.group()[0]} {found.group()[1:]}", text)


def encode_conversation(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str | Conversation,
    completion: str | Conversation,
    max_length: int | None,
) -> list[int]:
    """Tokens of a conversation as reward models see it, in training and in use; a longer one keeps its end.

    Raises:
        TypeError: the prompt is text and the completion messages, or the other way round.
        ValueError: there is nothing to score.
    """
    if isinstance(prompt, str) != isinstance(completion, str):
        raise TypeError(f"prompt is {type(prompt).__name__}, completion {type(completion).__name__}: expected one kind")
    if isinstance(prompt, str):
        text = prompt + str(completion)
    else:
        messages = [
            {"role": m["role"], "content": as_plain_text(tokenizer, m["content"])}  # type: ignore[index]
            for m in (*prompt, *completion)
        ]
        text = tokenizer.apply_chat_template(messages, tokenize=False)
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    if not ids:
        raise ValueError("a conversation is empty: expected a prompt or a completion with some text")
    return ids[-max_length:] if max_length is not None else ids
