"""Talk to a trained policy in the terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import gymnasium
import torch
from transformers import PreTrainedModel

import envs  # noqa: F401  (registers the environments)
from envs.adapters import spec_of
from envs.core import TextEnv
from rlobj.chat_format import ChatFormat, Message
from rlobj.policies import load_causal, load_tokenizer
from rlobj.recipes import load_recipe
from rlobj.sampling import Sampling
from rlobj.spelling import did_you_mean


def policy_directory(run_dir: Path, policy: str | None = None) -> Path:
    """The directory of one of a run's policies: "warm_start", "lambda=0.3", …; by default one whose λ has a form, or is
    the largest.

    Raises:
        ValueError: no run there, or no such policy in it.
    """
    candidates = sorted((run_dir / "policies").glob("lambda=*"), key=_by_lambda)
    found = {path.name: path for path in [run_dir / "warm_start", *candidates] if (path / "config.json").exists()}
    if not found:
        raise ValueError(
            f"{run_dir} holds no trained policy: expected a run's directory, such as runs/customer-service"
        )
    if policy is not None and policy not in found:
        raise ValueError(f"{run_dir} has no policy {policy!r}{did_you_mean(policy, found)} (it has {', '.join(found)})")
    return found[policy] if policy is not None else list(found.values())[-1]


def _by_lambda(directory: Path) -> tuple[bool, float, str]:
    text = directory.name.partition("=")[2]
    try:
        return False, float(text), text
    except ValueError:  # a schedule or a controller
        return True, 0.0, text


def environment_of(run_dir: Path) -> TextEnv | None:
    """The environment that the run's policies were trained in; None where the run does not say."""
    if not (run_dir / "config.yaml").exists():
        return None
    config = load_recipe(str(run_dir / "config.yaml"))
    kwargs = {name: value for name, value in config.env.kwargs.items() if name != "user"}  # a person plays the user
    env = gymnasium.make(spec_of(config.env.id), **kwargs).unwrapped
    return env if isinstance(env, TextEnv) else None


@torch.no_grad()
def reply(
    model: PreTrainedModel, chat: ChatFormat, messages: Sequence[Message], max_new_tokens: int, sample: bool = True
) -> str:
    """One reply through `generate` with the policy's own end token: sampled, or the most probable token each time."""
    ids = torch.tensor([chat.prompt_ids(messages)], device=model.device)
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=max_new_tokens,
        do_sample=sample,
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
    """Talk as the user until an empty line or the end of input.

    What the environment would show the policy after each of the user's lines, such as the desk screen of the
    customer-service environment, is shown to it here, too.

    Raises:
        ValueError: the run has no such policy, or it chooses labels and cannot talk.
    """
    directory = policy_directory(Path(run_dir), policy)
    architecture = json.loads((directory / "config.json").read_text(encoding="utf-8")).get("architectures", [""])[0]
    if "ForCausalLM" not in architecture:
        raise ValueError(f"{directory} is a {architecture}, which cannot talk: chat needs a policy of kind causal")
    model, chat, env = load_causal(directory), ChatFormat(load_tokenizer(directory)), environment_of(Path(run_dir))
    write(f"policy {directory}; an empty line ends the talk")
    messages: list[Message] = []
    while True:
        try:
            line = read("you    > " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return
        if not line:
            return
        messages.append({"role": "user", "content": line})
        for shown in env.context(messages) if env is not None else ():
            messages.append(shown)
            write(f"{shown['role']:<6} > {shown['content']}")
        messages.append({"role": "assistant", "content": reply(model, chat, messages, Sampling().max_reply_tokens)})
        write(f"policy > {messages[-1]['content']}")
