"""Talk to a trained policy in the terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import PreTrainedModel

from rlobj.chat_format import ChatFormat, Message
from rlobj.policies import load_causal, load_tokenizer
from rlobj.rollout import Sampling


def policy_directory(run_dir: Path, policy: str | None = None) -> Path:
    """The directory of one of a run's policies; the last λ by default, the warm start as "warm_start".

    Raises:
        ValueError: no run there, or no such policy in it.
    """
    found = {
        path.name: path for path in sorted((run_dir / "policies").glob("lambda=*")) if (path / "config.json").exists()
    }
    if (run_dir / "warm_start" / "config.json").exists():
        found = {"warm_start": run_dir / "warm_start", **found}
    if not found:
        raise ValueError(
            f"{run_dir} holds no trained policy: give the directory of a run, such as runs/customer-service"
        )
    if policy is not None and policy not in found:
        raise ValueError(f"{run_dir} has no policy {policy!r}: it has {', '.join(found)}")
    return found[policy] if policy is not None else list(found.values())[-1]


@torch.no_grad()
def reply(model: PreTrainedModel, chat: ChatFormat, messages: list[Message], max_new_tokens: int = 60) -> str:
    """One reply, sampled through `generate` with the policy's own end token."""
    ids = torch.tensor([chat.prompt_ids(messages)], device=model.device)
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=max_new_tokens,
        do_sample=True,
        eos_token_id=chat.end_id,
        pad_token_id=chat.tokenizer.pad_token_id,
    )
    return chat.decode(out[0, ids.size(1) :].tolist())


def talk(
    run_dir: str | Path,
    policy: str | None = None,
    *,
    read: Callable[[str], str] = input,
    write: Callable[[str], None] = print,
) -> None:
    """Talk as the customer until an empty line or the end of input.

    In the customer-service environment a simulated desk screen would stand behind every line of the customer's; lines
    beginning with `#` are shown to the policy as such a screen.

    Raises:
        ValueError: the run has no such policy, or it chooses labels and cannot talk.
    """
    directory = policy_directory(Path(run_dir), policy)
    if '"LlamaForCausalLM"' not in (text := (directory / "config.json").read_text()) and "ForSequenceClass" in text:
        raise ValueError(f"{directory} chooses labels, it cannot talk: chat needs a policy of kind causal")
    model, tokenizer = load_causal(directory), load_tokenizer(directory)
    chat = ChatFormat(tokenizer)
    write(f"policy {directory}; an empty line ends the talk")
    messages: list[Message] = []
    while True:
        try:
            line = read("you > " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return
        if not line:
            return
        messages.append({"role": "user", "content": line})
        answer = reply(model, chat, messages, Sampling().max_reply_tokens)
        messages.append({"role": "assistant", "content": answer})
        write(f"policy > {answer}")
