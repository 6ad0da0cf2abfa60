"""Messages to tokens and back, where tokens are only ever appended.

What the policy wrote is kept as the ids it sampled; only what others say is encoded, once, when it arrives.
Demonstrations are encoded by the same pieces, so ℓ and R see one format. A pure function of the tokenizer's chat
template: no model here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from reward_models.trained import as_plain_text

Message = dict[str, str]

IGNORED_LABEL = -100
"""Label of a token that is not in the loss (the convention of torch.nn.functional.cross_entropy)."""

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
"""Template of tokenizers made from scratch: each message between its role's token and <|end|>."""

ROLE_TOKENS = ("<|system|>", "<|user|>", "<|assistant|>", "<|tool|>")
PAD_TOKEN, END_TOKEN = "<|pad|>", "<|end|>"


class EncodedDialogue(NamedTuple):
    """One dialogue as tokens; `labels[t]` is the token id where the assistant wrote it, else IGNORED_LABEL."""

    input_ids: list[int]
    labels: list[int]


class ChatFormat:
    """The token format of a tokenizer's chat template, turn by turn.

    Args:
        tokenizer: needs a chat template and an end-of-sequence token that ends an assistant message.

    Raises:
        ValueError: the tokenizer lacks one of these, or its template rewrites earlier turns, so that appending
            tokens would train on text that the template never produces.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if tokenizer.chat_template is None:
            raise ValueError(
                f"tokenizer of {tokenizer.name_or_path!r} has no chat template: set tokenizer.chat_template "
                "(an instruction-tuned model brings one) and save the tokenizer beside the model"
            )
        if tokenizer.eos_token_id is None:
            raise ValueError(f"tokenizer of {tokenizer.name_or_path!r} has no eos token: set tokenizer.eos_token")
        self.tokenizer = tokenizer
        self.end_id: int = tokenizer.eos_token_id
        self._probe: list[Message] = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        self._probe_ids = self._render(self._probe, generation_prompt=False)
        if self.end_id not in self._probe_ids:
            raise ValueError(
                f"the chat template of {tokenizer.name_or_path!r} does not end an assistant message with the eos "
                f"token {tokenizer.eos_token!r}: set tokenizer.eos_token to the token that ends a turn"
            )
        # the template may put a line break behind the end token: it belongs to what follows the reply
        self._reply_end = len(self._probe_ids) - self._probe_ids[::-1].index(self.end_id)
        self._continuations: dict[str, list[int]] = {}

    def _render(self, messages: Sequence[Message], generation_prompt: bool) -> list[int]:
        plain = [{"role": m["role"], "content": as_plain_text(self.tokenizer, m["content"])} for m in messages]
        text = self.tokenizer.apply_chat_template(plain, tokenize=False, add_generation_prompt=generation_prompt)
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Ids of the opening messages, up to where the assistant begins to write."""
        return self._render(messages, generation_prompt=True)

    def reply_ids(self, text: str) -> list[int]:
        """Ids of an assistant reply that somebody else wrote, with its end token."""
        text = as_plain_text(self.tokenizer, text)
        return [*self.tokenizer(text, add_special_tokens=False)["input_ids"], self.end_id]

    def continuation_ids(self, messages: Sequence[Message]) -> list[int]:
        """Ids that follow a reply's end token when `messages` answer it, up to where the assistant writes again."""
        key = json.dumps([(m["role"], m["content"]) for m in messages])
        if key not in self._continuations:
            whole = self._render([*self._probe, *messages], generation_prompt=True)
            if whole[: len(self._probe_ids)] != self._probe_ids:
                raise ValueError(
                    f"the chat template of {self.tokenizer.name_or_path!r} changes earlier turns when a turn is added: "
                    "dialogues of several turns need a template that only appends"
                )
            self._continuations[key] = whole[self._reply_end :]
        return self._continuations[key]

    def decode(self, ids: Sequence[int]) -> str:
        """The text that the policy wrote, without special tokens and the space around it."""
        return self.verbatim(ids).strip()

    def verbatim(self, ids: Sequence[int]) -> str:
        """The text that the policy wrote, as it stands, without special tokens."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def encode(self, messages: Sequence[Message], max_length: int | None = None) -> EncodedDialogue:
        """A whole dialogue with labels on the assistant's tokens.

        What follows the last assistant message has no target and is left out. A dialogue longer than `max_length`
        keeps its end: whole labels, less context.

        Raises:
            ValueError: no assistant message that answers an earlier one.
        """
        ids: list[int] = []
        labels: list[int] = []
        pending: list[Message] = []
        for message in messages:
            if message["role"] != "assistant" or not (ids or pending):  # the first to speak answers nobody
                pending.append(message)
                continue
            context = self.continuation_ids(pending) if ids else self.prompt_ids(pending)
            reply = self.reply_ids(message["content"])
            ids += [*context, *reply]
            labels += [*[IGNORED_LABEL] * len(context), *reply]
            pending = []
        if not ids:
            raise ValueError(
                f"a dialogue of roles {[m['role'] for m in messages]}: expected an assistant message "
                "that answers an earlier one"
            )
        if max_length is not None:
            ids, labels = ids[-max_length:], labels[-max_length:]
        return EncodedDialogue(ids, labels)
