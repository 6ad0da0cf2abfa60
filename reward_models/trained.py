"""A trained reward model as a reward.

Legend: B conversations in a batch, T tokens.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from reward_models.hub import require_model
from reward_models.protocol import Conversation

logger = logging.getLogger(__name__)

NORMALISATION = "reward_normalisation"
"""Field of a reward model's config.json: {"mean": …, "std": …} of its scores of what it was normalised on."""


class TrainedReward:
    """The score of a sequence classifier with one output, such as `trl.RewardTrainer` trains; or, of a classifier with
    several, how sure it is of one label.

    A model that was normalised (`normalise`) gives (score − mean) / std.

    Each conversation is scored once, however often it occurs; a batch holds conversations of similar length, as many as
    fit `max_tokens`. One that is too long for the model loses its beginning: the end shows how things went.

    Args:
        path: directory or Hub id of the model with its tokenizer. Only safetensors are read, no code is run.
        max_tokens: in one forward pass, padding included (a longer conversation passes alone); None takes what suits
            the device: few on a CPU, whose caches are small. Halved, and said, where memory runs out.
        dtype: "float32"; "bfloat16", whose scores agree with those to 0.05 or, of large ones, 5%; or "auto": bfloat16
            on a device that has instructions for it.
        device: where to score; None takes a GPU if there is one.
        label: of a classifier: the name of the label whose presence is rewarded.
        output: of a classifier: the label's "log_odds", or its "probability".
        raw: leave the normalisation out.

    Raises:
        ValueError: there is no such model, it has several outputs and no `label` is given, or lacks weights, or its
            tokenizer has no chat template or another model's vocabulary.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        max_tokens: int | None = None,
        device: str | None = None,
        label: str | None = None,
        output: str = "log_odds",
        raw: bool = False,
        dtype: str = "float32",
    ) -> None:
        if max_tokens is not None and max_tokens < 1:
            raise ValueError(f"max_tokens is {max_tokens}: expected at least 1")
        if dtype not in DTYPES:
            raise ValueError(f"dtype is {dtype!r}: expected one of {', '.join(DTYPES)}")
        if output not in OUTPUTS:
            raise ValueError(f"output is {output!r}: expected one of {', '.join(OUTPUTS)}")
        self.path = str(path)
        self.__name__ = os.path.basename(os.path.normpath(self.path))  # the name in TRL's logs
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.max_tokens = max_tokens or MAX_TOKENS.get(self.device.type, MAX_TOKENS["cuda"])
        if dtype == "auto":
            dtype = "bfloat16" if _computes_in_bfloat16(self.device) else "float32"
        require_model("reward model", path)
        self.tokenizer = load_reward_tokenizer(self.path)
        with quiet():  # what transformers would report of missing weights is an error below
            model, info = AutoModelForSequenceClassification.from_pretrained(
                path,
                use_safetensors=True,
                trust_remote_code=False,
                dtype=getattr(torch, dtype),
                output_loading_info=True,
            )
        self.label, self.output = _label_index(model.config, label, self.path), output
        if info["missing_keys"]:
            raise ValueError(
                f"reward model {self.path!r} lacks the weights {sorted(info['missing_keys'])[:3]}: a random head is no "
                "reward; train one, or give the directory of a trained one"
            )
        require_vocabulary(model, self.tokenizer, f"reward model {self.path!r}")
        # a causal backbone finds the last token by it
        model.config.get_text_config().pad_token_id = self.tokenizer.pad_token_id
        self.model = model.to(self.device).eval()
        self.max_length = context_length(model.config, self.tokenizer)
        fitted: dict[str, float] = {} if raw else getattr(model.config, NORMALISATION, {})
        self.mean, self.std = fitted.get("mean", 0.0), fitted.get("std", 1.0)

    def __call__(
        self, prompts: Sequence[str | Conversation], completions: Sequence[str | Conversation], **columns: Any
    ) -> list[float]:
        """Score prompt and completion together; texts are joined as they are, messages by the chat template."""
        return self.score_ids(encode_conversations(self.tokenizer, prompts, completions, self.max_length))

    @torch.inference_mode()
    def score_ids(self, conversations: Sequence[Sequence[int]]) -> list[float]:
        """Scores of conversations that are tokens already."""
        keys = [tuple(ids) for ids in conversations]
        waiting = sorted(set(keys), key=len)
        scores: dict[tuple[int, ...], float] = {}
        while waiting:
            rows = max(self.max_tokens // len(waiting[-1]), 1)  # the longest first: memory runs out at once or never
            chunk = waiting[-rows:]
            ids, mask = self._padded(chunk)
            try:
                logits = self.model(input_ids=ids, attention_mask=mask).logits.float()
            except torch.OutOfMemoryError:
                if len(chunk) == 1:
                    raise
                self.max_tokens = ids.numel() // 2
                torch.accelerator.empty_cache()
                logger.warning("%s: out of memory; from now on at most %d tokens at once", self.path, self.max_tokens)
                continue
            scores |= dict(zip(chunk, self._scores(logits).tolist(), strict=True))
            del waiting[-rows:]
        return [scores[key] for key in keys]

    def _scores(self, logits: torch.Tensor) -> torch.Tensor:
        """(B, labels) logits -> (B,) rewards."""
        if self.label is None:
            scores = logits[:, 0]
        else:
            log_p = torch.log_softmax(logits, dim=-1)
            others = torch.cat([log_p[:, : self.label], log_p[:, self.label + 1 :]], dim=-1).logsumexp(-1)
            scores = log_p[:, self.label] - others
            if self.output == "probability":
                scores = scores.sigmoid()
        return (scores - self.mean) / self.std

    def _padded(self, rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Right-padded ids and their mask, both (B, T)."""
        width = max(len(row) for row in rows)
        ids = [list(row) + [self.tokenizer.pad_token_id] * (width - len(row)) for row in rows]
        mask = [[1] * len(row) + [0] * (width - len(row)) for row in rows]
        return torch.tensor(ids, device=self.device), torch.tensor(mask, device=self.device)


OUTPUTS = ("log_odds", "probability")
DTYPES = ("float32", "bfloat16", "auto")
MAX_TOKENS = {"cpu": 1024, "cuda": 16384}
"""In one forward pass, by kind of device."""


def _computes_in_bfloat16(device: torch.device) -> bool:
    """Whether the device has instructions for it; where it has none, bfloat16 is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    found = torch.cpu.get_capabilities()
    return device.type == "cpu" and bool(found.get("avx512_bf16") or found.get("amx_bf16"))


def _label_index(config: Any, label: str | None, path: str) -> int | None:
    if config.num_labels == 1:
        if label is not None:
            raise ValueError(f"label is {label!r}, but reward model {path!r} has one score and no labels: leave it out")
        return None
    known = {str(name): int(index) for name, index in config.label2id.items()}
    if label not in known:
        raise ValueError(
            f"label is {label!r}, and reward model {path!r} has {config.num_labels} outputs: expected one of "
            f"{', '.join(known)}, whose probability is the reward"
        )
    return known[label]


def normalise(
    path: str | os.PathLike[str], conversations: Sequence[tuple[Conversation, Conversation]]
) -> TrainedReward:
    """Fit a saved reward model so that 0 is the mean of its scores of `conversations` and 1 their standard deviation;
    of what a warm start says, reward 0 then means "as good as the warm start" (Ouyang et al. 2022). Kept in its
    config.json.

    Args:
        conversations: prompt and completion of each.

    Raises:
        ValueError: all conversations have one score.
    """
    scores = TrainedReward(path, raw=True)(*(list(side) for side in zip(*conversations, strict=True)))
    spread = statistics.pstdev(scores)
    if not spread > 0:
        raise ValueError(
            f"reward model {path} gives {len(scores)} conversations one score, {scores[0]}: nothing to fit"
        )
    file = Path(path) / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config[NORMALISATION] = {"mean": statistics.fmean(scores), "std": spread}
    writing = file.with_suffix(".writing")
    writing.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    os.replace(writing, file)
    return TrainedReward(path)


class EnsembleReward:
    """mean − κ · standard deviation over several reward models (Coste et al. 2023): where they disagree, less.

    Args:
        paths: of the members; scores are compared with one another, so normalise each (`normalise`).
        kappa: κ ≥ 0; 0 for the mean.
        others: of every member, see TrainedReward.

    Raises:
        ValueError: fewer than two members, κ below 0, or what TrainedReward says.
    """

    __name__ = "ensemble"

    def __init__(
        self,
        paths: Sequence[str | os.PathLike[str]],
        kappa: float = 1.0,
        max_tokens: int | None = None,
        device: str | None = None,
        label: str | None = None,
        output: str = "log_odds",
        raw: bool = False,
        dtype: str = "float32",
    ) -> None:
        if len(paths) < 2:
            raise ValueError(f"an ensemble has {len(paths)} members: expected at least 2")
        if not (math.isfinite(kappa) and kappa >= 0):
            raise ValueError(f"kappa is {kappa}: expected a finite number of at least 0")
        self.members = [TrainedReward(path, max_tokens, device, label, output, raw, dtype) for path in paths]
        self.kappa = kappa

    def __call__(
        self,
        prompts: Sequence[str | Conversation],
        completions: Sequence[str | Conversation],
        log_metric: Callable[[str, float], None] | None = None,
        **columns: Any,
    ) -> list[float]:
        opinions = torch.tensor([member(prompts, completions) for member in self.members])  # (members, B)
        spread = opinions.std(0, correction=0)
        if log_metric is not None:
            log_metric("reward/ensemble/mean", opinions.mean().item())
            log_metric("reward/ensemble/std", spread.mean().item())
        pessimistic: list[float] = (opinions.mean(0) - self.kappa * spread).tolist()
        return pessimistic


def member_paths(path: str | os.PathLike[str]) -> list[Path]:
    """The members of a saved ensemble, a directory with `member-0`, `member-1`, …; none of a single model's."""
    return sorted(Path(path).glob("member-*"), key=lambda each: int(each.name.partition("-")[2]))


def load_trained(path: str | os.PathLike[str], **options: Any) -> TrainedReward | EnsembleReward:
    """A saved reward model, or a directory that holds an ensemble of them.

    Args:
        options: see TrainedReward; `kappa` see EnsembleReward.
    """
    members = member_paths(path)
    return EnsembleReward(members, **options) if members else TrainedReward(path, **options)


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


def require_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, what: str) -> None:
    """See that a model has an embedding for every token of its tokenizer; rows to spare do no harm.

    Args:
        what: what the model is called in the error.

    Raises:
        ValueError: it has fewer.
    """
    rows: int | None = getattr(model.config.get_text_config(), "vocab_size", None)
    needed = max(tokenizer.get_vocab().values()) + 1
    if rows is not None and needed > rows:
        raise ValueError(
            f"{what} has embeddings of {rows} tokens, but its tokenizer {tokenizer.name_or_path!r} has {needed}: "
            "expected the tokenizer that it was trained with, or model.resize_token_embeddings before it learns more"
        )


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
    level, has_bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if has_bars:
            transformers_logging.enable_progress_bar()


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
    """`encode_conversations` of one."""
    return encode_conversations(tokenizer, [prompt], [completion], max_length)[0]


def encode_conversations(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str | Conversation],
    completions: Sequence[str | Conversation],
    max_length: int | None,
) -> list[list[int]]:
    """Tokens of conversations as reward models see them, in training and in use; a longer one keeps its end.

    Raises:
        TypeError: a prompt is text and its completion messages, or the other way round.
        ValueError: there is nothing to score.
    """
    texts = [_as_text(tokenizer, *both) for both in zip(prompts, completions, strict=True)]
    encoded: list[list[int]] = []
    if texts:
        encoded = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
    if not all(encoded):
        raise ValueError("a conversation is empty: expected a prompt or a completion with some text")
    return [ids[-max_length:] for ids in encoded] if max_length is not None else encoded


def _as_text(tokenizer: PreTrainedTokenizerBase, prompt: str | Conversation, completion: str | Conversation) -> str:
    if isinstance(prompt, str) != isinstance(completion, str):
        raise TypeError(f"prompt is {type(prompt).__name__}, completion {type(completion).__name__}: expected one kind")
    if isinstance(prompt, str):
        return prompt + str(completion)
    messages = [
        {"role": m["role"], "content": as_plain_text(tokenizer, m["content"])}  # type: ignore[index]
        for m in (*prompt, *completion)
    ]
    text: str = tokenizer.apply_chat_template(messages, tokenize=False)
    return text
