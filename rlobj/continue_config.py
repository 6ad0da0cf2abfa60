"""What `rlobj continue` is told: a typed tree beside that of `rlobj fit`, made from the run that is gone on with.

The docstring under a field is its help on the command line. Nothing here imports torch.
"""

import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import yaml

from rlobj.checks import at_least, check_name
from rlobj.config import ModelConfig, ObjectiveConfig, WarmStartConfig
from rlobj.controllers import Controller
from rlobj.fit_config import FitSettings, LabelledConfig, TaskName, check_labelled, check_settings, learning_rate_of
from rlobj.lambdas import as_lambda
from rlobj.spelling import did_you_mean

RECOMMENDATION = "rlobj/Recommendation-v0"


@dataclass(frozen=True, slots=True)
class RehearsalConfig:
    """L(θ) = ℓ_new(θ) + λ·ℓ_old(θ)."""

    lambda_sup: float | str | list[float | str] = field(default_factory=lambda: list[float | str]([0.0, 1.0]))
    """λ ≥ 0, which multiplies ℓ of the old data: a number, a form (lagrange:factor=1.1), or several"""
    supervised_batch_size: int = 32
    """rows of the old data in one optimiser step"""
    rows: int | None = None
    """rehearse so many rows of the old training data, drawn at random; null: all"""

    @property
    def lambdas(self) -> list[float | str]:
        """λ as a list, in the order given."""
        return ObjectiveConfig(self.lambda_sup).lambdas


@dataclass(frozen=True, slots=True)
class ContinueConfig:
    """A model that was trained on old data is trained on new."""

    name: str
    """name of the run, and of its folder in output_dir"""
    task: TaskName
    """what was learned, and is"""
    policy: ModelConfig = field(default_factory=ModelConfig)
    data: LabelledConfig = field(default_factory=LabelledConfig)
    old: LabelledConfig = field(default_factory=LabelledConfig)
    older: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    """what was learned before old, the first first, each with the fields of old: [{train: FILE, test: FILE}]"""
    objective: RehearsalConfig = field(default_factory=RehearsalConfig)
    fit: FitSettings = field(default_factory=FitSettings)
    split_seeds: list[int] = field(default_factory=list[int])
    """seeds by which older and old were split into parts, the first first: those of their runs; []: seed"""
    seed: int = 0
    """seed of everything else that is random"""
    output_dir: str = "runs"
    """folder of all runs"""
    on_change: Literal["refuse", "continue", "restart"] = "refuse"
    """training is half done with other inputs: say what differs and refuse, go on from there, or begin it again"""

    @property
    def former(self) -> dict[str, LabelledConfig]:
        """What was learned before, by what reports call it: `old`; or `old 1`, `old 2`, … in the order of learning."""
        sources = [*[LabelledConfig(**each) for each in self.older], self.old]
        return {f"old {n}" if self.older else "old": source for n, source in enumerate(sources, 1)}

    @property
    def split_seed_of(self) -> dict[str, int]:
        """The seed by which each of the former data is split: rows that were learned from are in no test."""
        return dict(zip(self.former, self.split_seeds or [self.seed] * len(self.former), strict=True))


_OF = "fit, run or continue"


def continued(run: str | Path, policy: Path) -> dict[str, Any]:
    """The configuration to begin with, as nested mappings: what a run of `rlobj fit`, `rlobj run` or `rlobj continue`
    was told, and its model.

    Args:
        run: its folder.
        policy: the folder of its model.

    Raises:
        ValueError: it is no such run, or its data are in no file.
    """
    file = Path(run) / "config.yaml"
    if not file.is_file():
        raise ValueError(f"{str(run)!r} holds no config.yaml: expected the folder of a run of rlobj {_OF}")
    told = yaml.safe_load(file.read_text(encoding="utf-8"))
    source, size, older = told.get("data", {}), told.get("policy", {}), list[dict[str, Any]]()
    if "task" in told:
        task, old = told["task"], _without_changes(source)
        if "old" in told:  # of a run of rlobj continue
            older = [*told.get("older", []), _without_changes(told["old"])]
    elif told.get("env", {}).get("id") == RECOMMENDATION:
        raise ValueError(
            f"{str(run)!r} learned from clicks: rlobj continue goes on with labelled texts and dialogues; put the new "
            "log behind the old in one file, and give it to rlobj run as --data.train"
        )
    elif "env" in told:
        encoder = size.get("kind") == "encoder"
        task = "text-classification" if encoder else "language-modeling"
        old = {name: source.get(name) for name in ("train", "limit")} | {"test": source.get("eval")}
        if encoder:
            old |= {name: source[name] for name in ("text_column", "label_column", "rows_per_label") if name in source}
    else:
        raise ValueError(f"{str(run)!r} is no run of rlobj {_OF}: expected one, whose data are rehearsed")
    if old.get("train") is None:
        raise ValueError(
            f"{str(run)!r} learned from what its environment made, not from a file: there are no old rows to rehearse"
        )
    columns = {name: old[name] for name in ("text_column", "label_column") if name in old}
    place = Path(run) if Path(run).name not in ("", "..") else Path(run).resolve()
    return {
        "name": _next_name(place.name),
        "task": task,
        "policy": {"model": str(policy), "max_length": size.get("max_length", 512)},
        "data": columns,
        "old": old,
        "older": older,
        "split_seeds": [*told.get("split_seeds", []), told.get("seed", 0)],
        "fit": {"learning_rate": _rate_of(told)},
        "seed": told.get("seed", 0),
        "output_dir": str(place.parent),
    }


def _without_changes(source: dict[str, Any]) -> dict[str, Any]:
    """Old rows are rehearsed as they are."""
    return {name: value for name, value in source.items() if name != "augment"}


def _next_name(name: str) -> str:
    """NAME-continued, and of that NAME-continued-2, NAME-continued-3, …"""
    known = re.fullmatch(r"(.+-continued)(?:-(\d+))?", name)
    return f"{known[1]}-{int(known[2] or 1) + 1}" if known else f"{name}-continued"


def _rate_of(told: dict[str, Any]) -> float:
    """The learning rate that the old data were learned with; after an adapter, whose rate is none for all weights, that
    of a model that is given."""
    if "env" in told:
        return float(told.get("warm_start", {}).get("learning_rate", WarmStartConfig().learning_rate))
    policy = told.get("policy", {})
    rate = None if policy.get("peft") else told.get("fit", {}).get("learning_rate")
    return learning_rate_of(FitSettings(learning_rate=rate), ModelConfig(model=policy.get("model")))


def validate_continue(config: ContinueConfig) -> None:
    """Refuse what cannot be run, before anything is trained.

    Raises:
        ValueError: the first thing that is impossible, with its key and the remedy.
    """
    check_name(config.name)
    for each in config.older:
        for name in each:
            if name not in (known := [each.name for each in fields(LabelledConfig)]):
                raise ValueError(f"older has {name!r}{did_you_mean(name, known)}: expected the fields of old")
    sources = {"data": (config.data, "--data FILE"), "old": (config.old, "--old.train FILE")}
    sources |= {f"older[{n}]": (LabelledConfig(**each), "--older") for n, each in enumerate(config.older)}
    for key, (source, flag) in sources.items():
        if source.train is None:
            raise ValueError(f"{key}.train is null: give a file with {flag}")
        check_labelled(source, config.task, key)
        if source.augment and key != "data":
            raise ValueError(f"{key}.augment is {source.augment}: old rows are rehearsed as they are; leave it out")
    given, wanted = len(config.split_seeds), len(config.former)
    if given not in (0, wanted):
        raise ValueError(f"split_seeds has {given} seeds: expected {wanted}, those of older and of old, or none")
    objective = config.objective
    at_least("objective.supervised_batch_size", objective.supervised_batch_size, 1)
    if objective.rows is not None:
        at_least("objective.rows", objective.rows, 1)
    if len(set(objective.lambdas)) < len(objective.lambdas) or not objective.lambdas:
        raise ValueError(f"objective.lambda_sup is {objective.lambdas}: expected one λ or several, each once")
    for value in objective.lambdas:
        form = as_lambda(value)
        if isinstance(form, Controller) and not form.needs_ell:
            raise ValueError(
                f"objective.lambda_sup is {value!r}, which is steered by what episodes are like, and there are none: "
                "give a number, a schedule by steps, or lagrange"
            )
    settings = config.fit
    check_settings("fit", settings)
    for name in ("metric", "patience"):
        if getattr(settings, name) is not None:
            raise ValueError(
                f"fit.{name} is {getattr(settings, name)!r}: rlobj continue keeps the last epoch, since the best one "
                "on new data alone forgets most; leave it out"
            )
    if settings.trainer.get("label_smoothing_factor"):
        raise ValueError("fit.trainer.label_smoothing_factor is set: rlobj continue has none; leave it out")
