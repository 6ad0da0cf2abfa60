"""What is explained or probed: a trained model, and the number that it gives a text.

Of a classifier the log-odds of a label, of one of tokens those of a word's tag, of a regression or reward model its
score, of a policy log π(reply | prompt). Legend: B rows, T tokens, K labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import softmax
from torch import Tensor

from reward_models.trained import NORMALISATION, member_paths
from rlobj.attribution import Explained, Score
from rlobj.chat import environment_of, reply
from rlobj.chat_format import ChatFormat, Message
from rlobj.inference import limit_of, logits_of
from rlobj.prediction import Predictor, entities_in, model_directory
from rlobj.readings import Reading, read_messages, read_text, read_words
from rlobj.spelling import did_you_mean
from rlobj.try_reward import Text

MAX_REPLY_TOKENS = 40
LOG_ODDS, LOG_PI, SCORE = "log-odds", "log π", "score"


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
    unit: str
    """LOG_ODDS, LOG_PI or SCORE"""
    reply: str = ""
    """a policy's"""


class Subject:
    """A trained model that gives numbers to texts.

    Args:
        directory: of the model. A policy in the folder of its run sees what its environment would show it, too.

    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        loaded = Predictor(directory)
        self.model, self.tokenizer, self.names = loaded.model, loaded.tokenizer, loaded.names
        self.model.requires_grad_(False)
        config = self.model.config
        kinds = {"ForCausalLM": "policy", "ForTokenClassification": "tag"}
        self.kind = next((kind for name, kind in kinds.items() if name in type(self.model).__name__), "label")
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

    def ask(self, text: Text, label: str | None = None, word: str | None = None) -> list[Asked]:
        """The number that is explained of one text, and the words that it depends on; of a classifier of tokens those
        of each entity's first word.

        Args:
            text: what is said, and maybe what it answers.
            label: of a classifier; None: the most probable one.
            word: of a classifier of tokens: each place of this word instead of each entity.

        Raises:
            ValueError: no such label or word, one where the model has none, or the text has no word.
        """
        if label is not None and self.kind not in ("label", "tag"):
            raise ValueError(f"--label is {label!r}, but {self.directory} chooses no label: leave it out")
        if word is not None and self.kind != "tag":
            raise ValueError(f"--word is {word!r}, but {self.directory} gives words no tags: leave it out")
        if self.kind == "policy":
            return [self._ask_policy(text)]
        reading = self.read(text)
        if self.kind == "tag":
            return self._ask_tags(reading, label, word)
        if self.kind == "score":
            fitted = getattr(self.model.config, NORMALISATION, {})
            score: Score = partial(score_of, self.model, fitted)
            what = "score of the reward model" if self.reads_conversations else "score"
        else:
            number = int(self._logits(reading).argmax()) if label is None else self.index_of(label)
            score = partial(log_odds, self.model, number)
            what = f"log-odds of {self.names[number]}"
        explained = Explained(self.model, score, reading, self.tokenizer.pad_token_id)
        return [Asked(explained, what, explained.value(), SCORE if self.kind == "score" else LOG_ODDS)]

    def read(self, text: Text) -> Reading:
        """What a classifier or reward model reads.

        Raises:
            ValueError: the text has no word, or is a conversation where the model reads none.
        """
        if self.reads_conversations:
            return read_messages(self.tokenizer, [*text.prompt, *text.completion], self.limit, to_be_answered=False)
        if text.prompt or len(text.completion) > 1:
            raise ValueError(
                f"{self.directory} reads single texts, and is given what {text.completion[-1]['content'][:40]!r} "
                "answers: leave --prompt out, and prompt and messages out of --file"
            )
        read = read_words if self.kind == "tag" else read_text
        return read(self.tokenizer, text.completion[0]["content"], self.limit)

    def _logits(self, reading: Reading) -> np.ndarray:
        """(K,), or of a classifier of tokens (T, K)."""
        return logits_of(self.model, self.tokenizer, [reading.ids])[0]

    def _ask_tags(self, reading: Reading, tag: str | None, word: str | None) -> list[Asked]:
        p = softmax(self._logits(reading)[[each.tokens[0] for each in reading.words]], axis=1)  # (words, K)
        tags = [self.names[i] for i in p.argmax(1)]
        pad = self.tokenizer.pad_token_id
        found = []
        for i in self._asked_words(reading, tags, p, tag, word):
            number = self.index_of(tag if tag is not None else tags[i])
            score = partial(log_odds, self.model, number)
            filler = pad if self.tokenizer.mask_token_id is None else self.tokenizer.mask_token_id
            explained = Explained(self.model, score, reading, pad, word=i, filler=filler)
            what = f"log-odds of {self.names[number]} for word {i + 1}, {reading.said(i)}"
            found.append(Asked(explained, what, explained.value(), LOG_ODDS))
        return found

    def _asked_words(
        self, reading: Reading, tags: list[str], p: np.ndarray, tag: str | None, word: str | None
    ) -> list[int]:
        """Where a word stands; or the first word of each entity; or where there is none, the word that is most probably
        the tag that is asked after, or one."""
        said = [reading.said(i) for i in range(len(tags))]
        if word is not None and word not in said:
            raise ValueError(f"--word is {word!r}: expected a word of {reading.text[:60]!r}{did_you_mean(word, said)}")
        if word is not None:
            return [i for i, each in enumerate(said) if each == word]
        if entities := entities_in(said, tags):
            return [entity["start"] for entity in entities]
        likely = p[:, self.index_of(tag)] if tag is not None else 1 - p[:, self.index_of("O")]
        return [int(likely.argmax())]

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
        return Asked(explained, "log π(reply | prompt)", explained.value(), LOG_PI, said)

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
    """log p − log (1 − p) of a label, (B,), or of a tag for each token, (B, T): what the words add up to, where a
    probability ends at 1."""
    logits: Tensor = model(input_ids=ids, attention_mask=mask).logits.float()
    others = torch.cat([logits[..., :label], logits[..., label + 1 :]], dim=-1).logsumexp(-1)
    return logits[..., label] - others


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
