"""Trained models of every form that rlobj saves: as transformers has them, without the heads that were pruned, in int8.

Legend: a model's directory is an ordinary Hugging Face one; beside config.json stands at most one of the files below.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from reward_models.hub import require_model
from rlobj.policies import load_causal, save_policy
from rlobj.quantising import fill_int8, int8_tensors, quantised
from rlobj.runs import atomic_write_json
from rlobj.shrinking import put_zeros_back, take_heads_out

HEADS = "pruned_heads.json"
"""Block -> heads that are zeros in the weights: plain transformers computes them, `load_model` takes them out."""
INT8 = "int8.safetensors"
"""Weights in 8 bits, in the place of model.safetensors: transformers does not read them, `load_model` does."""
ADAPTER = "adapter_config.json"
"""peft's: the learned prefix or prompt and the label head alone, for the model that it names."""
KINDS: dict[str, Any] = {
    "ForSequenceClassification": AutoModelForSequenceClassification,
    "ForTokenClassification": AutoModelForTokenClassification,
    "ForCausalLM": AutoModelForCausalLM,
}


def require_whole_model(key: str, model: str) -> None:
    """See that a model can be loaded and trained further.

    Raises:
        ValueError: it is not there, or an adapter beside a model.
    """
    require_model(key, model)
    if (Path(model) / ADAPTER).is_file():
        raise ValueError(
            f"{key} is {model!r}: an adapter beside a model, on which nothing is trained further; expected a whole "
            "model, such as one that lora, adalora or ia3 was merged into"
        )


def kind_of(directory: str | os.PathLike[str]) -> str:
    """Which of KINDS a directory holds.

    Raises:
        ValueError: none of them.
    """
    named = (AutoConfig.from_pretrained(directory, trust_remote_code=False).architectures or [""])[0]
    for kind in KINDS:
        if kind in named:
            return kind
    raise ValueError(f"{directory} is a {named or 'model of no named kind'}: expected a classifier or causal model")


def load_model(directory: str | os.PathLike[str]) -> PreTrainedModel:
    """A classifier of texts or tokens, a regression, a reward model or a causal model, in float32 or int8.

    Raises:
        ValueError: a model of another kind, or weights that are not its own.
    """
    path, kind = Path(directory), kind_of(directory)
    if (path / ADAPTER).is_file():
        return _with_its_adapter(path, kind)
    if (path / INT8).is_file():
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
        empty = KINDS[kind].from_config(config, dtype=torch.float32)
        return fill_int8(empty, load_file(path / INT8)).eval()
    if kind == "ForCausalLM":
        model = load_causal(path)
    else:
        model = KINDS[kind].from_pretrained(path, use_safetensors=True, dtype=torch.float32)
    if (path / HEADS).is_file() and find_spec("torch_pruning"):  # without it, the zeros are computed
        take_heads_out(model, json.loads((path / HEADS).read_text(encoding="utf-8")))
    return model


def _with_its_adapter(path: Path, kind: str) -> PreTrainedModel:
    from peft import PeftConfig, PeftModel

    base = PeftConfig.from_pretrained(path).base_model_name_or_path
    if os.path.isabs(base) and not Path(base, "config.json").is_file():
        raise ValueError(f"{path} is an adapter of {base}, where no model is any more: put it back, or train again")
    config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    given = {"use_safetensors": True, "trust_remote_code": False, "dtype": torch.float32}
    model: PreTrainedModel = KINDS[kind].from_pretrained(base, config=config, **given)
    return PeftModel.from_pretrained(model, path, use_safetensors=True)


def save_adapter(model: Any, tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """Save what was learned beside a model, its configuration and its tokenizer."""
    model.save_pretrained(directory)
    (directory / "README.md").unlink(missing_ok=True)  # peft's, an empty form
    config = model.get_base_model().config
    config.architectures = [type(model.get_base_model()).__name__]
    config.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def save_without_heads(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, directory: Path, gone: Mapping[str, list[int]]
) -> None:
    """Save a model whose heads were taken out so that plain `from_pretrained` loads it, with zeros in their place.

    The model is left at full size.
    """
    put_zeros_back(model, gone)
    save_policy(model, tokenizer, directory)
    atomic_write_json(directory / HEADS, dict(gone))


def save_int8(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, directory: Path) -> PreTrainedModel:
    """Save a model in 8 bits, and return it so."""
    ready = quantised(model)
    directory.mkdir(parents=True, exist_ok=True)
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    save_file(int8_tensors(ready), directory / INT8, metadata={"format": "pt"})
    return ready
