"""What is explained or probed: a trained model, and the number that it gives a text.

Of a classifier the log-odds of a label, of a regression or reward model its score, of a policy log π(reply | prompt).
Legend: B rows, T tokens, K labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reward_models.trained import NORMALISATION, member_paths
from rlobj.attribution import Explained, Score
from rlobj.chat import environment_of, reply
from rlobj.chat_format import ChatFormat, Message
from rlobj.inference import limit_of
from rlobj.prediction import Predictor, model_directory
from rlobj.readings import Reading, read_messages, read_text
from rlobj.spelling import did_you_mean
from rlobj.try_reward import Text

MAX_REPLY_TOKENS = 40


def find_model(given: str, policy: str | None = None, reward: bool = False) -> Path:
    """The directory of the model that is meant: as `rlobj predict` finds it, or with `reward` a run's reward model.

    Raises:
        ValueError: there is none, or it is an ensemble.
    """
    if not reward:
        return model_directory(given, policy)
    directory = Path(given) / "reward_model"
    if members := member_paths(directory):
        raise ValueError(f"{directory} is an ensemble: give one of its members, such as {members[0]}")
    if not (directory / "config.json").is_file():
        raise ValueError(f"{given!r} has no reward model: expected {directory} of a run with --reward.kind trained")
    return directory


@dataclass(frozen=True, slots=True)
class Asked:
    """A text and the number of it that is asked for."""

    explained: Explained
    what: str
    """the number in words"""
    value: float
    reply: str = ""
    """a policy's"""


class Subject:
    """A trained model that gives numbers to texts.

    Args:
        directory: of the model. A policy in the folder of its run sees what its environment would show it, too.

    Raises:
        ValueError: a model of a kind that gives a text no number.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        loaded = Predictor(directory)
        self.model, self.tokenizer, self.names = loaded.model, loaded.tokenizer, loaded.names
        self.model.requires_grad_(False)
        config = self.model.config
        self.kind = "policy" if "ForCausalLM" in type(self.model).__name__ else "label"
        if "ForTokenClassification" in type(self.model).__name__:
            raise ValueError(
                f"{directory} gives each word a tag: expected a classifier of texts, a reward model or a policy"
            )
        if self.kind == "label" and config.num_labels == 1:
            self.kind = "score"
        # a causal backbone finds the last token by it
        config.get_text_config().pad_token_id = self.tokenizer.pad_token_id
        judged = directory.name == "reward_model" or directory.name.startswith("member-")
        scores = self.kind == "score" and config.problem_type != "regression"
        self.reads_conversations = self.tokenizer.chat_template is not None and (judged or scores)
        run = next((each for each in list(directory.parents)[:2] if (each / "policies").is_dir()), None)
        self.environment = environment_of(run) if run is not None and self.kind == "policy" else None
        self.limit = limit_of(self.model, self.tokenizer)

    def ask(self, text: Text, label: str | None = None) -> Asked:
        """The number that is explained of one text, and the words that it depends on.

        Args:
            text: what is said, and maybe what it answers.
            label: of a classifier; None: the most probable one.

        Raises:
            ValueError: no such label, or the text has no word.
        """
        if self.kind == "policy":
            return self._ask_policy(text)
        reading = self.read(text)
        if self.kind == "score":
            fitted = getattr(self.model.config, NORMALISATION, {})
            score: Score = partial(score_of, self.model, fitted)
            what = "score of the reward model" if self.reads_conversations else "score"
        else:
            number = self._label(reading, label)
            score = partial(log_odds, self.model, number)
            what = f"log-odds of {self.names[number]}"
        explained = Explained(self.model, score, reading, self.tokenizer.pad_token_id)
        return Asked(explained, what, float(explained.of_ids([reading.ids])[0]))

    def read(self, text: Text) -> Reading:
        """What a classifier or reward model reads."""
        if self.reads_conversations or text.prompt or len(text.completion) > 1:
            return read_messages(self.tokenizer, [*text.prompt, *text.completion], self.limit, to_be_answered=False)
        return read_text(self.tokenizer, text.completion[0]["content"], self.limit)

    def _label(self, reading: Reading, label: str | None) -> int:
        if label is not None:
            return self.index_of(label)
        with torch.inference_mode():
            ids = torch.tensor([reading.ids], device=self.model.device)
            return int(self.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0].argmax())

    def index_of(self, label: str) -> int:
        """A label's number.

        Raises:
            ValueError: there is no such label.
        """
        if label not in self.names:
            raise ValueError(
                f"{self.directory} has no label {label!r}{did_you_mean(label, self.names)} "
                f"(it has {', '.join(self.names)})"
            )
        return self.names.index(label)

    def _ask_policy(self, text: Text) -> Asked:
        messages, said = self.opening(text)
        chat = ChatFormat(self.tokenizer)
        if said is None:
            said = reply(self.model, chat, messages, MAX_REPLY_TOKENS, sample=False)
        suffix = chat.reply_ids(said)
        room = None if self.limit is None else self.limit - len(suffix)
        if room is not None and room < 1:
            raise ValueError(f"the reply has {len(suffix)} tokens, and the policy reads {self.limit}: expected fewer")
        reading = read_messages(self.tokenizer, messages, room, to_be_answered=True)
        score = partial(reply_logps_sum, self.model, len(suffix))
        explained = Explained(self.model, score, reading, self.tokenizer.pad_token_id, suffix)
        return Asked(explained, "log π(reply | prompt)", float(explained.of_ids([reading.ids])[0]), said)

    def opening(self, text: Text) -> tuple[list[Message], str | None]:
        """The messages that a policy answers, and its answer if it is given; a text without a prompt is a user's."""
        messages = [*text.prompt, *text.completion]
        if not text.prompt and len(messages) == 1:
            said: list[Message] = [{"role": "user", "content": messages[0]["content"]}]
            shown = self.environment.context(said) if self.environment is not None else []
            return [*said, *shown], None
        if messages[-1]["role"] == "assistant":
            return messages[:-1], messages[-1]["content"]
        return messages, None


# The numbers ----------------------------------------------------------------------------------------------------------


def log_odds(model: Any, label: int, ids: Tensor, mask: Tensor) -> Tensor:
    """log p − log (1 − p) of a label, (B,): what the words add up to, where a probability ends at 1."""
    logp = torch.log_softmax(model(input_ids=ids, attention_mask=mask).logits.float(), dim=-1)
    others = torch.cat([logp[:, :label], logp[:, label + 1 :]], dim=-1).logsumexp(-1)
    return logp[:, label] - others


def score_of(model: Any, fitted: Mapping[str, float], ids: Tensor, mask: Tensor) -> Tensor:
    """The one output, (B,), as a reward model that was normalised gives it."""
    score: Tensor = model(input_ids=ids, attention_mask=mask).logits.float()[:, 0]
    return (score - fitted.get("mean", 0.0)) / fitted.get("std", 1.0)


def reply_logps(model: Any, count: int, ids: Tensor, mask: Tensor) -> Tensor:
    """log π of each of the last `count` tokens of right-padded rows, (B, count)."""
    states = model(input_ids=ids, attention_mask=mask).logits.float()
    places = mask.sum(1, keepdim=True) - count + torch.arange(count, device=ids.device)  # (B, count)
    logits = states.gather(1, (places - 1)[..., None].expand(-1, -1, states.size(-1)))
    return torch.log_softmax(logits, dim=-1).gather(-1, ids.gather(1, places)[..., None])[..., 0]


def reply_logps_sum(model: Any, count: int, ids: Tensor, mask: Tensor) -> Tensor:
    """log π of the last `count` tokens together, (B,)."""
    return reply_logps(model, count, ids, mask).sum(-1)
