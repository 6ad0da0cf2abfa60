"""Policies and tokenizers made from scratch."""

from __future__ import annotations

import pytest
import torch
from transformers import BertForSequenceClassification, GPT2LMHeadModel, LlamaForCausalLM

from envs.customer_service import CustomerServiceEnv
from envs.experts import demonstrations
from rlobj.policies import make_tokenizer, take_out_dropout

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


@pytest.mark.parametrize("kind", [LlamaForCausalLM, GPT2LMHeadModel, BertForSequenceClassification])
def test_without_dropout_a_training_pass_is_that_of_sampling(kind):
    everywhere = {"attention_dropout": 0.5, "attn_pdrop": 0.5, "hidden_dropout_prob": 0.5}
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = kind(kind.config_class(vocab_size=20, **size, **everywhere))
    ids = torch.arange(2, 12)[None]
    plain = model.eval()(ids).logits
    assert not torch.equal(model.train()(ids).logits, plain)
    take_out_dropout(model)
    assert torch.equal(model.train()(ids).logits, plain)
