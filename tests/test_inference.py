"""Words to tokens and back, and predictions in batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import BertForTokenClassification

from rlobj.inference import BATCH_TOKENS, encode, encode_words, logits_of, tags_of
from rlobj.policies import make_encoder, make_encoder_tokenizer
from rlobj.prediction import entities_in

WORDS = ["Zanzibarian", "quxes", "met", "Ö", "<|end|>", "小明", "."]
TEXTS = ["they met in the red house", "a cat . a dog", "小明 met them"]


@pytest.fixture(scope="module")
def tokenizer():
    return make_encoder_tokenizer(TEXTS, vocab_size=300, max_length=64)


@pytest.fixture(scope="module")
def model(tokenizer):
    size = {"hidden_size": 16, "layers": 1, "heads": 2, "max_length": 64, "seed": 0}
    return make_encoder(tokenizer, ["O", "B-x", "I-x"], **size, head=BertForTokenClassification).eval()


def test_each_word_begins_at_the_token_that_opens_it(tokenizer) -> None:
    ids, begins = encode_words(tokenizer, WORDS, None)
    assert len(ids) == len(begins) > len(WORDS) + 5, "long words are several tokens"
    assert [word for word in begins if word is not None] == list(range(len(WORDS)))
    assert begins[0] is None, "the token of the whole text is of no word"
    for word, text in enumerate(WORDS):
        start = begins.index(word)
        end = next((i for i in range(start + 1, len(ids)) if begins[i] is not None), len(ids))
        said = tokenizer.decode(ids[start:end]).strip()
        assert said == text or (text == "<|end|>" and said.replace(" ", "") == text)
    assert tokenizer.sep_token_id not in ids, "no word is read as a control token"


def test_words_that_were_cut_off_are_outside(tokenizer) -> None:
    ids, begins = encode_words(tokenizer, WORDS, 8)
    assert len(ids) == 8
    logits = np.zeros((8, 3))
    logits[:, 1] = 1
    tags = tags_of(logits, begins, len(WORDS), ["O", "B-x", "I-x"])
    kept = sum(word is not None for word in begins)
    assert tags == ["B-x"] * kept + ["O"] * (len(WORDS) - kept)
    assert 0 < kept < len(WORDS)


def test_the_tag_of_a_word_is_that_of_its_first_token(tokenizer) -> None:
    _, begins = encode_words(tokenizer, WORDS, None)
    logits = np.zeros((len(begins), 3))
    logits[:, 0] = 1
    logits[begins.index(1), 1] = 2
    logits[begins.index(1) + 1, 2] = 9  # a later token of the same word says something else
    assert tags_of(logits, begins, len(WORDS), ["O", "B-x", "I-x"]) == ["O", "B-x", *["O"] * 5]


def test_batches_change_no_prediction_and_keep_the_order(tokenizer, model, monkeypatch) -> None:
    rows = [encode(tokenizer, " ".join(TEXTS * n)[:k], 64) for n in (1, 2) for k in (3, 40, 9, 60, 21)]
    monkeypatch.setattr("rlobj.inference.BATCH_TOKENS", 100)
    assert BATCH_TOKENS > 100
    found = logits_of(model, tokenizer, rows)
    for ids, each in zip(rows, found, strict=True):
        with torch.no_grad():
            alone = model(input_ids=torch.tensor([ids])).logits[0].numpy()
        np.testing.assert_allclose(each, alone, atol=1e-5)


def test_a_pair_of_texts_stands_between_its_tokens(tokenizer) -> None:
    ids = tokenizer("a cat", "a dog")["input_ids"]
    assert ids[0] == tokenizer.cls_token_id and ids.count(tokenizer.sep_token_id) == 1
    assert tokenizer(["a"], padding="max_length", max_length=9)["attention_mask"][0][0] == 1, "padded on the right"


def test_entities_of_tags() -> None:
    words = ["New", "York", "saw", "Ann", "Bo"]
    assert entities_in(words, ["B-loc", "I-loc", "O", "B-per", "B-per"]) == [
        {"kind": "loc", "start": 0, "end": 2, "words": ["New", "York"]},
        {"kind": "per", "start": 3, "end": 4, "words": ["Ann"]},
        {"kind": "per", "start": 4, "end": 5, "words": ["Bo"]},
    ]
    # an I- that continues nothing begins an entity
    assert [e["kind"] for e in entities_in(words, ["I-loc", "I-per", "O", "O", "I-x"])] == ["loc", "per", "x"]
