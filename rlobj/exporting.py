"""`rlobj export`: a model's directory with a card that says where it comes from, and ONNX beside it.

What is exported is an ordinary Hugging Face directory: plain transformers runs it.
"""

from __future__ import annotations

import json
import logging
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoModelForTokenClassification

from rlobj import __version__
from rlobj.loading import ADAPTER, INT8
from rlobj.policies import load_tokenizer
from rlobj.runs import atomic_dir, atomic_write_text, read_outputs
from rlobj.slimming import PRUNED

LEFT_OUT = ("stage.json", "training_args.bin", "README.md")
PIPELINES = {
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForCausalLM": "text-generation",
    "ForMaskedLM": "fill-mask",
}
ONNX_TOLERANCE = 1e-3
"""Largest difference of a logit between torch and ONNX Runtime that is taken for rounding."""


def export(directory: Path, output: Path, onnx: bool = False) -> list[str]:
    """Copy a model with its tokenizer into `output`, write its card, and if asked `model.onnx`.

    Returns: lines that say what was written.

    Raises:
        ValueError: `output` holds other things, or the model cannot be exported so.
    """
    if output.exists() and any(output.iterdir()) and not (output / "config.json").exists():
        raise ValueError(f"{output} holds other things than a model: give a new folder")
    kind = (AutoConfig.from_pretrained(directory, trust_remote_code=False).architectures or [""])[0]
    said = []
    with atomic_dir(output) as writing:
        for file in sorted(directory.iterdir()):
            if file.is_file() and file.name not in LEFT_OUT:
                shutil.copy2(file, writing / file.name)
        if not list(writing.glob("*.safetensors")):
            raise ValueError(f"{directory} has no weights in safetensors: expected what rlobj or save_pretrained wrote")
        beside = next((name for name in (INT8, ADAPTER) if (directory / name).is_file()), None)
        if onnx and beside is not None:
            raise ValueError(f"--onnx exports whole models in float32: {directory} holds {beside}")
        if onnx:
            difference = export_onnx(writing, kind)
            said.append(f"ONNX    {output / 'model.onnx'} (differs by at most {difference:.1g} from torch)")
        atomic_write_text(writing / "README.md", model_card(directory, kind, output.name))
    return [f"model   {output}", f"card    {output / 'README.md'}", *said]


# The card -------------------------------------------------------------------------------------------------------------


def model_card(directory: Path, kind: str, name: str) -> str:
    """A Hub model card: what the model is, its objective, λ, seed, data and results, and how it is used."""
    run = next((each for each in (directory.parent, *directory.parents) if (each / "config.yaml").exists()), None)
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8")) if run is not None else {}
    pipeline = next((task for suffix, task in PIPELINES.items() if suffix in kind), "feature-extraction")
    head = yaml.safe_dump({"library_name": "transformers", "pipeline_tag": pipeline, "tags": ["rlobj"]})
    results = _results(directory, run)
    sections = [
        f"---\n{head}---\n\n# {name}",
        f"A {kind} trained by rlobj {__version__}, recipe `{config.get('name', 'unknown')}`.",
        f"## Objective\n\n{_objective(directory, config)}",
        f"## Data\n\n{_listed(_data(config))}",
        f"## Results\n\n{results}" if results else "",
        f"## Use\n\n{_use(pipeline, name, directory)}",
        f"## The configuration\n\n```yaml\n{yaml.safe_dump(config, sort_keys=False, allow_unicode=True)}```"
        if config
        else "",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _objective(directory: Path, config: Mapping[str, Any]) -> str:
    objective, seed = config.get("objective", {}), config.get("seed", "unknown")
    if directory.name == "reward_model":
        return f"A reward model, trained on preference pairs (Bradley and Terry 1952). Seed {seed}."
    if directory.name.startswith("lambda="):
        lam = directory.name.partition("=")[2]
        if "old" in config:
            return f"L(θ) = ℓ_new(θ) + λ·ℓ_old(θ), old data rehearsed beside new, with λ = {lam}. Seed {seed}."
        return f"L(θ) = −R(θ) + λ·ℓ(M_θ(x), y) with λ = {lam}. Seed {seed}."
    if "performance" in objective:
        return (
            f"L(θ) = −P(T) + λ·ℓ(M_θ(x), y), P {objective['performance']}, λ = {objective['lambda_sup']}. Seed {seed}."
        )
    return f"ℓ(M_θ(x), y) alone, supervised. Seed {seed}."


def _data(config: Mapping[str, Any]) -> dict[str, Any]:
    older = {f"older[{n}]": each for n, each in enumerate(config.get("older") or [])}
    sections = {**older, **{name: config.get(name) or {} for name in ("text", "old", "data", "env")}}
    return {
        f"{section}.{key}": value
        for section, fields in sections.items()
        for key, value in fields.items()
        if value not in (None, {}, [])
    }


def _listed(values: Mapping[str, Any]) -> str:
    return "\n".join(f"- `{key}`: {value}" for key, value in values.items()) or "Not known."


def _results(directory: Path, run: Path | None) -> str:
    """The run's table; of a run by reinforcement learning the row of this policy alone."""
    if PRUNED in (directory.parent.name, directory.parent.parent.name):
        return _before_and_after(read_outputs(directory))
    path = run / "summary.json" if run is not None else None
    if path is None or not path.exists() or directory.name == "reward_model":
        return ""
    table = json.loads(path.read_text(encoding="utf-8"))["table"]
    wanted = directory.name.replace("lambda=", "λ = ")
    rows = [row for row in table if row["name"] in (wanted, directory.name.replace("_", " "))] or table
    known = dict.fromkeys(key for row in rows for key, value in row.items() if not isinstance(value, str))
    metrics = [key for key in known if any(row.get(key) for row in rows)]
    lines = ["| | " + " | ".join(metrics) + " |", "|---" * (len(metrics) + 1) + "|"]
    lines += [f"| {_name(row)} | {' | '.join(_with_interval(row.get(m)) for m in metrics)} |" for row in rows]
    return "\n".join(lines) + "\n\nIn brackets: 95% intervals."


def _name(row: Mapping[str, Any]) -> str:
    return ", ".join(value for value in row.values() if isinstance(value, str))


def _before_and_after(outputs: Mapping[str, Any]) -> str:
    """Of a model that was made smaller."""
    lines = [f"`rlobj prune --method {outputs['method']} --amount {outputs['amount']}`", ""]
    parts = list(outputs["quality"]["before"])
    lines.append(f"| {outputs['metric']} | {' | '.join(parts)} | MB | weights other than 0 |")
    lines.append("|---" * (len(parts) + 3) + "|")
    for when, found in outputs["quality"].items():
        size = f"{outputs['bytes'][when] / 1e6:.2f} | {outputs['weights'][when]:,}"
        lines.append(f"| {when} | {' | '.join(_with_interval(found[part]) for part in parts)} | {size} |")
    return "\n".join(lines) + "\n\nIn brackets: 95% intervals."


def _with_interval(value: Any) -> str:
    if not value or value[0] is None:
        return "–"
    ends = "" if None in value else f" [{value[1]:.3f}, {value[2]:.3f}]"
    return f"{value[0]:.3f}{ends}"


def _use(pipeline: str, name: str, directory: Path) -> str:
    if (directory / INT8).is_file():
        return f"The weights are in 8 bits, which rlobj reads (CPUs alone):\n\n    rlobj predict {name} FILE"
    if (directory / ADAPTER).is_file():
        base = json.loads((directory / ADAPTER).read_text(encoding="utf-8"))["base_model_name_or_path"]
        return f"It is an adapter of peft for {base}, which must be there, too:\n\n    rlobj predict {name} FILE"
    return f'```python\nfrom transformers import pipeline\n\npipeline("{pipeline}", "{name}")("a text")\n```'


# ONNX -----------------------------------------------------------------------------------------------------------------


def export_onnx(folder: Path, kind: str) -> float:
    """Write model.onnx beside the weights of a classifier, a regression or a reward model, and run it.

    Returns: the largest difference of a logit from torch's, over texts of several lengths in padded batches.

    Raises:
        ValueError: it is no classifier, onnx is not installed, or the two differ.
    """
    auto: Any = {
        "ForSequenceClassification": AutoModelForSequenceClassification,
        "ForTokenClassification": AutoModelForTokenClassification,
    }.get("For" + kind.partition("For")[2])
    if auto is None:
        raise ValueError(f"--onnx exports classifiers, regressions and reward models: this is a {kind}")
    try:
        import onnxruntime
    except ImportError:
        raise ValueError("--onnx needs onnx and onnxruntime: pip install 'rlobj[onnx]'") from None
    tokenizer = load_tokenizer(folder)
    model = auto.from_pretrained(folder, use_safetensors=True, dtype=torch.float32, attn_implementation="eager").eval()
    path = folder / "model.onnx"
    batch = _ids(tokenizer.pad_token_id, model.config.get_text_config().vocab_size, rows=2, longest=9)
    _write_onnx(model, batch, path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    difference = 0.0
    for rows, longest in ((1, 5), (3, 17), (2, 40)):
        ids, mask = _ids(tokenizer.pad_token_id, model.config.get_text_config().vocab_size, rows, longest)
        with torch.inference_mode():
            expected = model(input_ids=ids, attention_mask=mask).logits.numpy()
        (found,) = session.run(["logits"], {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
        difference = max(difference, float(np.abs(found - expected).max()))
    if not difference < ONNX_TOLERANCE:
        raise ValueError(f"model.onnx differs from torch by {difference:.2g}: expected less than {ONNX_TOLERANCE}")
    return difference


def _ids(pad_id: int, vocab_size: int, rows: int, longest: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random ids and their mask, (rows, longest); each row is a little shorter than the one before it."""
    ids = torch.randint(vocab_size, (rows, longest), generator=torch.Generator().manual_seed(0))
    lengths = torch.arange(longest, longest - rows, -1).clamp(min=1)
    mask = (torch.arange(longest) < lengths[:, None]).long()
    return ids.where(mask.bool(), torch.tensor(pad_id)), mask


class _Logits(torch.nn.Module):
    """A model that returns its logits alone: an ONNX graph has no dictionaries."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        return self.model(input_ids=input_ids, attention_mask=attention_mask).logits


def _write_onnx(model: Any, batch: tuple[torch.Tensor, torch.Tensor], path: Path) -> None:
    dynamic = {0: torch.export.Dim("rows"), 1: torch.export.Dim("tokens")}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # of libraries that are not there, and not needed
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch on itself, and on axes of one size having one name
        torch.onnx.export(
            _Logits(model).eval(),
            batch,
            path,
            input_names=["input_ids", "attention_mask"],
            output_names=["logits"],
            dynamic_shapes={"input_ids": dynamic, "attention_mask": dynamic},
            dynamo=True,
            external_data=False,
            verbose=False,
        )
