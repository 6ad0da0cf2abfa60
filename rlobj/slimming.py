"""`rlobj prune`: a trained model made smaller, and what that did to its quality, its size and its speed, measured.

Each method is a stage of the run, done once for the same inputs; what is measured is the model as it was saved.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from rlobj import __version__
from rlobj.latency import compare_seconds
from rlobj.loading import load_model, save_int8, save_without_heads
from rlobj.policies import save_policy
from rlobj.progress import say
from rlobj.prunable import PrunableModel, model_of
from rlobj.pruning import (
    keep_zeros,
    mask_smallest,
    mask_smallest_of_each_layer,
    mask_two_of_four,
    weights_not_zero,
)
from rlobj.quantising import int8_tensors
from rlobj.runs import atomic_write_json, graceful_signals, read_outputs
from rlobj.shrinking import changes_of_loss, least, norms, remove_heads, remove_neurons
from rlobj.spelling import did_you_mean
from rlobj.stage_inputs import weights_of
from rlobj.stages import Stage, StageRunner

PRUNED = "pruned"
"""Folder of a run for its model made smaller."""
TURNS = 9
"""Of each side, when a model is timed beside the whole one."""
METHODS = ("magnitude", "layer", "2:4", "heads", "neurons", "int8")


@dataclass(frozen=True, slots=True)
class Pruning:
    """How a model is made smaller."""

    method: str
    """one of METHODS, or several of them with + between, such as neurons+int8"""
    amount: float = 0.5
    """share of weights, heads or neurons that go"""
    epochs: float = 0.0
    """passes over the training data afterwards"""
    steps: int = 0
    """of a policy: optimiser steps of −R + λℓ afterwards"""
    learning_rate: float | None = None
    """peak learning rate of either; null: the run's"""
    importance: str = "gradient"
    """what heads and neurons are kept by: gradient, or weights (also where no labels are at hand)"""

    @property
    def parts(self) -> list[str]:
        return self.method.split("+")

    @property
    def name(self) -> str:
        """Of its folder."""
        method = self.method.replace(":", "of")
        amount = "" if self.method in ("2:4", "int8") else f"-{self.amount:g}"
        after = {"epochs": self.epochs, "steps": self.steps}
        return method + amount + "".join(f"-{what}-{count:g}" for what, count in after.items() if count)


def ways(methods: Sequence[str], amounts: Sequence[float], **rest: Any) -> list[Pruning]:
    """Each method with each amount; 2:4 and int8 have none, and are done once.

    Args:
        rest: the other fields of `Pruning`; int8 alone is not trained on.
    """
    made = []
    for method in methods:
        fixed = set(method.split("+")) <= {"2:4", "int8"}
        settings = {**rest, "epochs": 0.0, "steps": 0} if method == "int8" else rest
        made += [Pruning(method, amount, **settings) for amount in ([0.5] if fixed else amounts)]
    return made


def validate_pruning(wanted: Pruning) -> None:
    """Refuse what cannot be done, before anything is loaded.

    Raises:
        ValueError: the first thing that is impossible, with the remedy.
    """
    for step in wanted.parts:
        if step not in METHODS:
            raise ValueError(f"--method {step!r}{did_you_mean(step, METHODS)}: expected one of {', '.join(METHODS)}")
    if "int8" in wanted.parts[:-1]:
        raise ValueError(f"--method {wanted.method}: int8 comes last, what is in 8 bits is not changed any more")
    taken_out = [place for place, step in enumerate(wanted.parts) if step in ("heads", "neurons")]
    if taken_out and any(step in ("magnitude", "layer", "2:4") for step in wanted.parts[: taken_out[-1]]):
        raise ValueError(
            f"--method {wanted.method}: heads and neurons come first, since to take them out moves the zeros of the "
            "others and loses track of them"
        )
    if not 0 < wanted.amount < 1:
        raise ValueError(f"--amount {wanted.amount}: expected a share above 0 and below 1")
    if "2:4" in wanted.parts and wanted.amount != 0.5:
        raise ValueError(f"--amount {wanted.amount} with 2:4, which takes two of four weights: expected 0.5")
    for option, count in (("--epochs", wanted.epochs), ("--steps", wanted.steps)):
        if count < 0 or (count and wanted.parts == ["int8"]):
            raise ValueError(f"{option} {count} of {wanted.method}: expected 0, or training of floats")
    if wanted.importance not in ("gradient", "weights"):
        raise ValueError(f"--importance {wanted.importance!r}: expected gradient or weights")


def prune(
    run: Path, wanted: Sequence[Pruning], policy: str | None = None, reward_model: bool = False, turns: int = TURNS
) -> list[str]:
    """Make a model of a run smaller, in each of the ways, unless that was done before.

    Args:
        run: of `rlobj fit`; or of `rlobj run`.
        policy: of `rlobj run`: which (default: that of the largest λ).
        reward_model: of `rlobj run`: its reward model in the place of a policy.
        turns: of each side, when a model is timed beside the whole one.

    Returns: the lines of a table.

    Raises:
        ValueError: no such run, or a way that its model does not allow.
        Interrupted: asked to stop by a signal.
    """
    for each in wanted:
        validate_pruning(each)
    model = model_of(run, policy, reward_model)
    for each in wanted:
        model.check(each.epochs, each.steps)
    this = _Prune(model, wanted, turns)
    with graceful_signals() as this.stop:
        found = this.all_stages()
    atomic_write_json(this.folder / "summary.json", {"table": found})
    return table_of(found)


class _Prune(StageRunner[Any]):
    """A stage for each way to make the model smaller."""

    def __init__(self, model: PrunableModel, wanted: Sequence[Pruning], turns: int) -> None:
        super().__init__(model.config, max_bad_steps=3)
        self.turns = turns
        self.model, self.wanted, self.stage_count = model, wanted, len(wanted)
        self.folder = self.directory / PRUNED / model.name
        self.before: dict[str, Any] | None = None

    def stage(self, wanted: Pruning) -> Stage:
        inputs = {
            "rlobj": __version__,
            **{f"--{name}": value for name, value in asdict(wanted).items()},
            **weights_of(str(self.model.whole)),
            **self.model.inputs,
            "threads": torch.get_num_threads(),
        }
        return Stage(self.folder / wanted.name, f"prune: {wanted.name}", inputs)

    def all_stages(self) -> list[dict[str, Any]]:
        found = []
        for wanted in self.wanted:
            stage = self.stage(wanted)
            self.do(stage, partial(self.work, wanted, stage))
            found.append(read_outputs(stage.directory))
            self.stop_if_asked()
        return found

    def work(self, wanted: Pruning, stage: Stage) -> dict[str, Any]:
        model, tokenizer = self.model.begin()
        zeros: dict[str, list[int]] = {}
        for step in wanted.parts:
            zeros |= self.make_smaller(step, wanted, model)
        if length := wanted.epochs or wanted.steps:
            self.model.train_on(model, length, wanted.learning_rate, self, stage)
            self.stop_if_asked()
        model.cpu()  # where 8 bits are
        keep_zeros(model)
        self.model.finish(model)
        if "int8" in wanted.parts:
            save_int8(model, tokenizer, stage.directory)
        elif zeros:
            save_without_heads(model, tokenizer, stage.directory, zeros)
        else:
            save_policy(model, tokenizer, stage.directory)
        return {
            **asdict(wanted),
            "directory": str(stage.directory),
            **self.judge(stage.directory),
        }

    def make_smaller(self, step: str, wanted: Pruning, model: Any) -> dict[str, list[int]]:
        """One step of a method, in place.

        Returns: the heads that the configuration cannot say are gone.
        """
        if step == "magnitude":
            mask_smallest(model, wanted.amount)
        elif step == "layer":
            mask_smallest_of_each_layer(model, wanted.amount)
        elif step == "2:4":
            mask_two_of_four(model)
        elif step in ("heads", "neurons"):
            keep_zeros(model)
            batches = self.model.batches(model) if wanted.importance == "gradient" else None
            importance = norms(model, step) if batches is None else changes_of_loss(model, step, batches)
            gone = least(importance, wanted.amount, step)
            if step == "neurons":
                remove_neurons(model, gone)
            elif not remove_heads(model, gone):
                return gone
        return {}

    def judge(self, directory: Path) -> dict[str, Any]:
        """What was saved, beside the whole model."""
        before, after = load_model(self.model.whole).eval(), load_model(directory).eval()
        seconds = {}
        say("  timing")
        for way, times in self.model.timed().items():
            sides = partial(times.do, before), partial(times.do, after)
            seconds[way] = asdict(compare_seconds(*sides, times.texts, self.turns))
        if self.before is None:
            self.before = self.model.quality(before)
        quality = {"before": self.before, "after": self.model.quality(after)}
        return {
            "quality": quality,
            "metric": self.model.metric,
            "bytes": {"before": _bytes_of(self.model.whole), "after": _bytes_of(directory)},
            "weights": {"before": weights_not_zero(before), "after": _weights_not_zero(after)},
            "seconds": seconds,
            "threads": torch.get_num_threads(),
        }


def _bytes_of(directory: Path) -> int:
    return sum(file.stat().st_size for file in directory.glob("*.safetensors"))


def _weights_not_zero(model: PreTrainedModel) -> int:
    """Those in 8 bits, too."""
    in_8_bits = {name: value for name, value in int8_tensors(model).items() if name.endswith((".int8", ".bias"))}
    return weights_not_zero(model) + sum(int(torch.count_nonzero(value)) for value in in_8_bits.values())


def table_of(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """A row for each way: quality on the test data, size, and what became of the time of a text."""
    metric, first = found[0]["metric"], found[0]
    threads = f"on {first['threads']} thread{'s' if first['threads'] > 1 else ''}"
    ways = list(first["seconds"])
    part = list(first["quality"]["before"])[-1]
    rows = [["", f"{part} {metric}", "MB", "weights not 0", f"{ways[0]}, {threads}", "faster*", ways[1], "faster*"]]
    rows.append(["whole", *_quality_and_size(first, "before"), "", "", "", ""])
    for each in found:
        one, batch = each["seconds"].values()
        rows.append(
            [
                Path(each["directory"]).name,
                *_quality_and_size(each, "after"),
                f"{1e3 * one['before']:.1f} → {1e3 * one['after']:.1f} ms",
                _times(one),
                f"{1 / batch['before']:,.0f} → {1 / batch['after']:,.0f} a second",
                _times(batch),
            ]
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return [*lines, "* median of the ratios of turns side by side, and the least to the most of them"]


def _quality_and_size(each: Mapping[str, Any], when: str) -> list[str]:
    value, low, high = list(each["quality"][when].values())[-1]
    return [f"{value:.3f} [{low:.3f}, {high:.3f}]", f"{each['bytes'][when] / 1e6:.2f}", f"{each['weights'][when]:,}"]


def _times(each: Mapping[str, float]) -> str:
    return f"{each['ratio']:.2f} ({each['least']:.2f} to {each['most']:.2f})"
