"""TRL's rewards here, and ours in TRL's trainer."""

from __future__ import annotations

from typing import Any

import pytest
from datasets import Dataset
from small import small_args, small_policy
from trl import GRPOTrainer

from reward_models import WeightedSum, as_reward, load_reward
from rlobj.policies import load_causal, load_tokenizer


def said(*texts: str) -> Any:
    return [[{"role": "assistant", "content": text}] for text in texts]


def test_rewards_of_trl_by_name() -> None:
    reward = load_reward("trl.rewards:think_format_reward")
    texts = said("<think>\nso\n</think>\nyes", "yes")
    assert reward(prompts=[[]] * 2, completions=texts) == [1.0, 0.0]
    late = load_reward("trl.rewards:get_soft_overlong_punishment", {"max_completion_len": 100, "soft_punish_cache": 20})
    # TRL's own example: 90 tokens, half way into the last 20
    assert late(prompts=[[]], completions=said("x"), completion_ids=[[1] * 90]) == [-0.5]
    again = load_reward("trl.rewards:get_repetition_penalty_reward", {"ngram_size": 1, "max_penalty": -1.0})
    assert again(prompts=[[]], completions=said("x"), completion_ids=[[7, 7]]) == [-0.5], "one of two is new"
    with pytest.raises(ValueError, match="did you mean 'ngram_size'"):
        load_reward("trl.rewards:get_repetition_penalty_reward", {"ngram_siz": 1})


async def async_length(messages: Any) -> float:
    return float(len(messages[-1]["content"]))


def test_ours_in_trls_trainer(tmp_path: Any) -> None:
    ours = [
        load_reward("label_match"),
        load_reward("length_window", {"high": 3}),
        load_reward("regex_match", {"pattern": "a"}),
        as_reward(async_length),
        WeightedSum({"short": (load_reward("length_window"), 0.5), "kind": (load_reward("politeness"), 1.0)}),
    ]
    directory = small_policy(tmp_path / "policy")
    rows = [{"prompt": [{"role": "user", "content": "the cat"}], "label": "a"} for _ in range(8)]
    trainer = GRPOTrainer(
        load_causal(directory),
        ours,
        small_args(tmp_path / "out", max_steps=1),
        Dataset.from_list(rows),
        processing_class=load_tokenizer(directory),
    )
    trainer.train()
    logged = trainer.state.log_history[0]
    for name in ("label_match", "length_window", "regex_match", "async_length", "weighted_sum"):
        assert f"rewards/{name}/mean" in logged
    assert logged["rewards/async_length/mean"] > 0
