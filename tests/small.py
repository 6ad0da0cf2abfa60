"""Small real models and fixed rollouts that several tests share."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import LlamaForSequenceClassification

from rlobj.arguments import ObjectiveArguments
from rlobj.policies import (
    load_tokenizer,
    make_causal,
    make_encoder,
    make_encoder_tokenizer,
    make_tokenizer,
    save_policy,
)
from rlobj.supervised import SupervisedRow, dialogue_rows

TEXTS = ["the cat sat on the mat", "a dog ran to the red door", "where is the blue boat now"]


def small_policy(directory: Path, seed: int = 0) -> Path:
    """A one-layer Llama with its tokenizer, saved."""
    tokenizer = make_tokenizer(TEXTS, vocab_size=300, max_length=128)
    model = make_causal(tokenizer, hidden_size=16, layers=1, heads=2, max_length=128, seed=seed)
    save_policy(model, tokenizer, directory)
    return directory


def small_reward(directory: Path) -> Path:
    """A causal reward model with random weights that was normalised, saved."""
    policy = small_policy(directory.parent / "policy")
    torch.manual_seed(0)
    model = LlamaForSequenceClassification.from_pretrained(policy, num_labels=1)
    model.config.reward_normalisation = {"mean": 0.5, "std": 0.01}
    tokenizer = load_tokenizer(policy)
    model.config.pad_token_id = tokenizer.pad_token_id
    save_policy(model, tokenizer, directory)
    return directory


COLOUR_LABELS = {"red": "warm", "orange": "warm", "green": "cold", "blue": "cold", "big": "none", "old": "none"}
COLOUR_NAMES = ["cold", "none", "warm"]


def colour_sentence(rng: random.Random) -> tuple[str, str]:
    """A text and the word in it that decides its label."""
    colour, thing = rng.choice(list(COLOUR_LABELS)), rng.choice(["box", "door", "boat", "hat"])
    words = ["see", "the", colour, thing, "over", "there", "now", "please", "my", "friend"]
    return " ".join(words[rng.randrange(2) : rng.randrange(6, 11)]), colour


def colour_classifier(directory: Path) -> Path:
    """An encoder that has learned to tell warm colours from cold ones, and from what is no colour; saved."""
    rng = random.Random(0)
    rows = [colour_sentence(rng) for _ in range(240)]
    tokenizer = make_encoder_tokenizer([text for text, _ in rows], vocab_size=330, max_length=48)
    model = make_encoder(tokenizer, COLOUR_NAMES, hidden_size=32, layers=1, heads=2, max_length=48, seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model.train()
    for start in range(0, 16 * 240, 24):
        batch = [rows[i % 240] for i in range(start, start + 24)]
        inputs = tokenizer([text for text, _ in batch], padding=True, return_tensors="pt")
        labels = torch.tensor([COLOUR_NAMES.index(COLOUR_LABELS[colour]) for _, colour in batch])
        loss = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.05, "it has learned the task"
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
