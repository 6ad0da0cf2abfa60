"""What a step with a loss or gradient that is not finite was made of, written to disk for inspection."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from rlobj.encoder_policy import is_one_token_policy
from rlobj.modes import evaluating
from rlobj.runs import atomic_write_json
from rlobj.supervised import SupervisedRow, supervised_losses

FOLDER = "bad_steps"
MOST = 5
"""Steps that are written; later ones are counted alone."""


def write_bad_step(trainer: Any, parameters: list[str]) -> Path | None:
    """Write texts, tokens, rewards, advantages and the losses of each row, of R and of ℓ, as JSON.

    Args:
        trainer: an ObjectiveTrainer, within the step.
        parameters: names of those whose gradient is not finite.

    Returns: the path; None after MOST such files.
    """
    folder = Path(trainer.args.output_dir) / FOLDER
    if len(list(folder.glob("step-*.json"))) >= MOST:
        return None
    rank = f"-process-{trainer.accelerator.process_index}" if trainer.accelerator.num_processes > 1 else ""
    path = folder / f"step-{trainer.state.global_step + 1}{rank}.json"
    with torch.no_grad(), torch.random.fork_rng(), evaluating(trainer.model):
        rows = [row for batch in trainer.micro_batches for row in _rows(trainer, batch)]
        supervised = _supervised(trainer)
    found = {
        "step": trainer.state.global_step + 1,
        "parameters with a gradient that is not finite": parameters,
        "rows": rows,
        "supervised rows": supervised,
    }
    atomic_write_json(path, _readable(found))
    return path


def _rows(trainer: Any, batch: dict[str, Any]) -> list[dict[str, Any]]:
    tokenizer, policy_mask = trainer.processing_class, batch["completion_mask"] * batch.get("tool_mask", 1)
    advantages = batch["advantages"]
    if advantages.ndim == 1:
        advantages = advantages[:, None].expand_as(policy_mask)
    logps = _logps(trainer, batch)
    rows = []
    for i in range(len(policy_mask)):
        prompt = batch["prompt_ids"][i][batch["prompt_mask"][i] > 0].tolist()
        completion = batch["completion_ids"][i][batch["completion_mask"][i] > 0].tolist()
        counts = policy_mask[i] > 0
        rewards = {name.partition("/")[2]: batch[name][i].item() for name in batch if name.startswith("rewards/")}
        rows.append(
            {
                "prompt": tokenizer.decode(prompt),
                "completion": tokenizer.decode(completion),
                "rewards": rewards,
                "loss": -(advantages[i] * logps[i])[counts].mean().item(),
                "advantages": advantages[i][counts].tolist(),
                "logps": logps[i][counts].tolist(),
                "prompt_ids": prompt,
                "completion_ids": completion,
            }
        )
    return rows


def _logps(trainer: Any, batch: dict[str, Any]) -> torch.Tensor:
    """log π of each completion token under the policy as it is, (B, T)."""
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    model = trainer.accelerator.unwrap_model(trainer.model)
    width = batch["completion_ids"].size(1)
    logps: torch.Tensor = trainer._get_per_token_logps_and_entropies(model, ids, mask, width)[0]
    return logps


def _supervised(trainer: Any) -> list[dict[str, Any]]:
    """The rows of ℓ that this process had in this step, each with its loss."""
    if trainer.stream is None:
        return []
    step, parts = trainer.state.global_step, len(trainer.micro_batches)
    first, all_parts = trainer.accelerator.process_index * parts, trainer.accelerator.num_processes * parts
    rows: list[SupervisedRow] = []
    for part in range(first, first + parts):
        rows += trainer.stream.batch(step, part, all_parts).rows
    policy = trainer.accelerator.unwrap_model(trainer.model)
    losses = supervised_losses(policy, rows) if rows else []
    return [
        {
            "text": trainer.processing_class.decode(row.input_ids),
            "loss": loss,
            "input_ids": row.input_ids,
            "label" if is_one_token_policy(policy) else "labels": row.labels,
        }
        for row, loss in zip(rows, losses, strict=True)
    ]


def _readable(value: Any) -> Any:
    """JSON has no NaN: here, where they are what is looked for, such numbers stand as text."""
    if isinstance(value, dict):
        return {key: _readable(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_readable(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
