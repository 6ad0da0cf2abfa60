"""Dialogues of several turns: rollouts whose cache lives on, against the whole history through `generate` each turn.

python benchmarks/rollouts.py [--episodes 64] [--turns 5] [--dtype float32]

Both sides have the same policy (hidden 256, 4 layers, a vocabulary of 8,192), the same episodes of 6 to 8 turns and
the same sampling. The policy's weights are random, but for a bias that ends replies after 12 tokens on average, as the
shipped domains' do; the users' lines are random words. The peer keeps the ids of the history, pads the running
episodes on the left and has `generate` answer them all at once. It is spared the log-probabilities, which ours keeps.
"""

from __future__ import annotations

import argparse
import math
import random
from itertools import product
from time import perf_counter
from typing import Any

import torch
from measuring import compared, in_turns, report, silence
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from envs.core import Message, StepResult, TextEnv
from envs.spaces import Text
from envs.vector import TextVectorEnv
from rlobj.chat_format import ChatFormat
from rlobj.policies import make_tokenizer
from rlobj.rollout import Sampling, play

WORDS = ["".join(parts) for parts in product("bdfgklmnprst", "aeiou", ("n", "r", "s", "ck", "nd", "st"))]
VOCABULARY, CONTEXT, MEAN_REPLY = 8192, 1024, 12
SAMPLING = Sampling(max_reply_tokens=40, max_length=CONTEXT)


class SmallTalk(TextEnv):
    """6 to 8 lines of 10 to 25 random words."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.action_space = Text()

    def _begin(self, seed: int, rng: random.Random) -> list[Message]:
        self.rng, self.turns, self.last = rng, 0, rng.randint(6, 8)
        return [self._line()]

    def _line(self) -> Message:
        return {"role": "user", "content": " ".join(self.rng.choices(WORDS, k=self.rng.randint(10, 25)))}

    def _reply(self, action: str) -> tuple[Message, StepResult]:
        self.turns += 1
        over = self.turns == self.last
        return {"role": "assistant", "content": action}, StepResult([] if over else [self._line()], over, False, {})

    def _columns(self) -> dict[str, Any]:
        return {"turns": self.turns}

    def own_reward(self) -> float:
        return 0.0


def policy_of(dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    tokenizer = make_tokenizer([" ".join(WORDS)], VOCABULARY, CONTEXT)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config).eval()
    model.lm_head.bias = torch.nn.Parameter(torch.zeros(VOCABULARY))
    model.lm_head.bias.data[tokenizer.eos_token_id] = math.log(VOCABULARY / MEAN_REPLY)
    return model.to(dtype), tokenizer


@torch.no_grad()
def through_generate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, environments: TextVectorEnv, seeds: list[int]
) -> int:
    """Play the episodes with `generate`; return the number of turns."""
    chat = ChatFormat(tokenizer)
    observations, _ = environments.reset(seed=seeds)
    histories = {i: chat.prompt_ids(messages) for i, messages in enumerate(observations)}
    turns = 0
    while histories:
        width = max(map(len, histories.values()))
        ids = torch.tensor([[tokenizer.pad_token_id] * (width - len(h)) + h for h in histories.values()])
        mask = torch.tensor([[0] * (width - len(h)) + [1] * len(h) for h in histories.values()])
        output = model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=SAMPLING.max_reply_tokens, do_sample=True, top_k=0,
            eos_token_id=chat.end_id, pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
        replies = {}
        for i, reply in zip(histories, output[:, width:].tolist(), strict=True):
            replies[i] = reply[: reply.index(chat.end_id)] if chat.end_id in reply else reply
        for i, result in environments.act({i: chat.decode(reply) for i, reply in replies.items()}).items():
            turns += 1
            histories[i] += [*replies[i], chat.end_id, *chat.continuation_ids(result.new_messages)]
            if result.terminated:
                del histories[i]
    return turns


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--episodes", type=int, default=64)
    parser.add_argument("--turns", type=int, default=5, help="how often each side is measured")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    options = parser.parse_args()
    silence()
    model, tokenizer = policy_of(getattr(torch, options.dtype))
    environments, seeds = TextVectorEnv(SmallTalk, options.episodes), list(range(options.episodes))
    turns = through_generate(model, tokenizer, environments, seeds)

    def peer() -> float:
        started = perf_counter()
        through_generate(model, tokenizer, environments, seeds)
        return perf_counter() - started

    def ours() -> float:
        started = perf_counter()
        play(model, tokenizer, environments, seeds, SAMPLING)
        return perf_counter() - started

    found = in_turns({"peer": peer, "ours": ours}, options.turns)
    what = f"rollouts of several turns, {options.episodes} episodes, {options.dtype}"
    report("rollouts", [compared(what, found["peer"], found["ours"], "≥ 3", "turns/s", turns)])


if __name__ == "__main__":
    main()
