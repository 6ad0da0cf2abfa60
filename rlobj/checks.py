"""What all configurations are checked for, whatever the verb; errors as in `rlobj.validation`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from rlobj.spelling import did_you_mean

if TYPE_CHECKING:
    from rlobj.config import ModelConfig

DATA_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".txt", ".parquet")


def at_least(key: str, value: float, low: float, above: bool = False) -> None:
    if not math.isfinite(value) or value < low or (above and value == low):
        raise ValueError(f"{key} is {value}: expected a finite number {'above' if above else 'of at least'} {low}")


def check_name(name: str) -> None:
    if not name.strip() or name in (".", "..") or any(sign in name for sign in "/\\\0"):
        raise ValueError(f"name is {name!r}: expected the name of a folder, without slashes")


def check_data_file(key: str, value: str | None) -> None:
    """Refuse a file that is empty or is not there; None, and names of data sets, pass."""
    if value is None:
        return
    path = Path(value)
    if not value.strip():
        raise ValueError(f"{key} is empty: expected a file or a data set id")
    if path.is_file() and path.stat().st_size == 0:
        raise ValueError(f"{key} is {value!r}: the file is empty")
    if path.suffix.lower() in DATA_SUFFIXES and not path.exists():
        beside = [str(each) for each in path.parent.iterdir()] if path.parent.is_dir() else []
        raise ValueError(f"{key} is {value!r}: there is no such file{did_you_mean(value, beside)}")


def check_model_size(policy: ModelConfig, causal: bool) -> None:
    """Refuse a length or size that is not positive, and the size of a new model that cannot be made."""
    for name in ("hidden_size", "layers", "heads", "vocab_size", "max_length"):
        at_least(f"policy.{name}", getattr(policy, name), 0, above=True)
    if policy.model is not None:
        return
    # a causal model turns pairs of a head's numbers (rotary positions), so their number is even
    parts = policy.heads * (2 if causal else 1)
    if policy.hidden_size % parts:
        why = "policy.heads × 2" if causal else "policy.heads"
        raise ValueError(f"policy.hidden_size is {policy.hidden_size}: expected a multiple of {parts} ({why})")
