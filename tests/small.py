"""Small real models and fixed rollouts that several tests share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from rlobj.arguments import ObjectiveArguments
from rlobj.policies import make_causal, make_tokenizer, save_policy
from rlobj.supervised import SupervisedRow, dialogue_rows

TEXTS = ["the cat sat on the mat", "a dog ran to the red door", "where is the blue boat now"]


def small_policy(directory: Path, seed: int = 0) -> Path:
    """A one-layer Llama with its tokenizer, saved."""
    tokenizer = make_tokenizer(TEXTS, vocab_size=300, max_length=128)
    model = make_causal(tokenizer, hidden_size=16, layers=1, heads=2, max_length=128, seed=seed)
    save_policy(model, tokenizer, directory)
    return directory


def small_rows(tokenizer: Any, n: int = 12) -> list[SupervisedRow]:
    """Labelled dialogues of unequal length."""
    dialogues = []
    for i in range(n):
        words = " ".join(TEXTS[i % 3].split()[: 1 + i % 5])
        dialogues.append([{"role": "user", "content": TEXTS[(i + 1) % 3]}, {"role": "assistant", "content": words}])
    return dialogue_rows(tokenizer, dialogues, 128)


def fixed_rollout(prompts: list[Any], trainer: Any) -> dict[str, Any]:
    """Completions that depend on the prompt and its place in the group alone, with environment tokens inside."""
    tokenizer = trainer.processing_class
    group = trainer.num_generations
    rank = trainer.accelerator.process_index
    prompt_ids, completion_ids, mask, returns = [], [], [], []
    for i, prompt in enumerate(prompts):
        generator = torch.Generator().manual_seed(1000 * len(prompt[0]["content"]) + (i + rank * len(prompts)) % group)
        length = int(torch.randint(3, 9, (1,), generator=generator))
        ids = torch.randint(7, len(tokenizer), (length,), generator=generator).tolist()
        prompt_ids.append(tokenizer(prompt[0]["content"])["input_ids"])
        completion_ids.append(ids)
        mask.append([1, 1] + [int(x) for x in torch.randint(0, 2, (length - 2,), generator=generator)])
        returns.append(float(torch.rand(1, generator=generator)))
    return {
        "prompt_ids": prompt_ids,
        "completion_ids": completion_ids,
        "logprobs": None,
        "env_mask": mask,
        "fixed_return": returns,
    }


def fixed_reward(completions: list[Any], fixed_return: list[float], **columns: Any) -> list[float]:
    return fixed_return


def zero_reward(completions: list[Any], **columns: Any) -> list[float]:
    return [0.0] * len(completions)


def small_prompts(n: int = 16) -> Dataset:
    return Dataset.from_list([{"prompt": [{"role": "user", "content": "x" * (i + 1)}]} for i in range(n)])


def small_args(directory: Path, **fields: Any) -> ObjectiveArguments:
    defaults: dict[str, Any] = {
        "output_dir": str(directory),
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_steps": 3,
        "learning_rate": 1e-2,
        "max_completion_length": 8,
        "report_to": "none",
        "bf16": False,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "shuffle_dataset": False,
        "dataloader_pin_memory": False,
        "lr_scheduler_type": "constant",
        "seed": 3,
    }
    return ObjectiveArguments(**{**defaults, **fields})
