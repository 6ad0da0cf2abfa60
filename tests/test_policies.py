"""Policies and tokenizers made from scratch."""

from __future__ import annotations

import pytest

from envs.customer_service import CustomerServiceEnv
from envs.experts import demonstrations
from rlobj.policies import make_tokenizer

TEXTS = ["您住在哪一带？地点无所谓。", "hello there , it is é and ñ"]


@pytest.mark.parametrize("text", ["您住在哪一带？hello 地点", "日本語カタカナ né", "ã ä é", "🎉您", "Ω≈ç√"])
def test_any_text_comes_back_from_its_tokens(text):
    tokenizer = make_tokenizer(TEXTS, vocab_size=500, max_length=64)
    assert tokenizer.decode(tokenizer(text)["input_ids"]).strip() == text


def test_a_chinese_value_is_the_same_tokens_wherever_it_stands():
    """Else a policy that has learned to read it on the screen cannot say it."""
    rows = demonstrations(lambda: CustomerServiceEnv("clinics_zh"), 100)
    tokenizer = make_tokenizer((m["content"] for row in rows for m in row["messages"]), vocab_size=2000, max_length=512)
    name = tokenizer.tokenize("安宁")[1:]  # the first stands for the beginning of the text
    for text in ("首个 安宁", "推荐安宁诊所", "安宁"):
        tokens = tokenizer.tokenize(text)
        assert any(tokens[i : i + len(name)] == name for i in range(len(tokens)))
    assert len(name) == 2
