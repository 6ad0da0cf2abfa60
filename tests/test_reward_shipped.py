"""The shipped rewards, each by cases worked out by hand, and all of them on any text."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reward_models import load_reward
from reward_models.functions import SHIPPED
from reward_models.words import contains, words

NEEDED: dict[str, dict[str, Any]] = {
    "regex_match": {"pattern": r"\d"},
    "forbidden_words": {"phrases": ["damn", "垃圾"]},
    "slot_coverage": {"values": ["north", "北"]},
}
COLUMNS = {"label": "red", "reference": "the red door", "success": True}


def score(name: str, *texts: str, kwargs: dict[str, Any] | None = None, **columns: Any) -> list[Any]:
    said = [[{"role": "assistant", "content": text}] for text in texts]
    return list(load_reward(name, kwargs)(prompts=[[]] * len(texts), completions=said, **columns))


def test_words() -> None:
    assert words("Don't, 你好! Ärger-frei 3x") == ["don't", "你", "好", "ärger", "frei", "3x"]
    assert words("हिन्दी और مَرحبا") == ["हिन्दी", "और", "مَرحبا"], "marks belong to their letters"
    assert words("ＦＵＬＬ 'quoted'") == ["full", "quoted"] and words(" … ") == []
    assert contains(words("the class of 垃圾"), words("垃圾")) and not contains(words("class"), words("ass"))


def test_matches() -> None:
    assert score("exact_match", "Yes ", "no", reference=["Yes", ["nein", "no"]]) == [1.0, 1.0]
    assert score("exact_match", "ＹＥＳ", kwargs={"ignore_case": True}, reference=["yes"]) == [1.0]
    assert score("label_match", "RED", kwargs={"column": "colour", "ignore_case": True}, colour=["red"]) == [1.0]
    assert score("label_match", "3", label=[3]) == [1.0], "labels need not be text"


def test_fuzzy_match() -> None:
    # 2 · 3 letters in order of 3 + 4
    assert score("fuzzy_match", "abc", "北京市", "", reference=["ABCd", "北京", "x"]) == pytest.approx(
        [6 / 7, 4 / 5, 0]
    )
    assert score("fuzzy_match", "abc", kwargs={"at_least": 0.9}, reference=["abcd"]) == [0.0]
    assert score("fuzzy_match", "abc", reference=[None]) == [None]


def test_regex_match() -> None:
    assert score("regex_match", "room 12", "none", kwargs={"pattern": r"\d+"}) == [1.0, 0.0]
    assert score("regex_match", "12", "room 12", kwargs={"pattern": r"\d+", "whole": True}) == [1.0, 0.0]
    assert score("regex_match", "ÄRGER", kwargs={"pattern": "ärger", "ignore_case": True}) == [1.0]
    with pytest.raises(ValueError, match=r"pattern is '\('.*expected a regular expression"):
        load_reward("regex_match", {"pattern": "("})
    with pytest.raises(ValueError, match="'pattern' is not given"):
        load_reward("regex_match")


def test_lengths() -> None:
    assert score("length_window", "你好世界", kwargs={"high": 2}) == [0.5]
    assert score("length_window", "ab c", kwargs={"high": 2, "unit": "characters"}) == [0.5]
    with pytest.raises(ValueError, match="unit is 'letters': expected 'words' or 'characters'"):
        score("length_window", "a", kwargs={"unit": "letters"})


def test_no_repetition() -> None:
    # a b a b a: triples aba bab aba
    assert score("no_repetition", "a b a b a", "a b c d", "a", "好好好好") == pytest.approx([2 / 3, 1.0, 1.0, 0.5])
    assert score("no_repetition", "haha", kwargs={"n": 2, "unit": "characters"}) == pytest.approx([2 / 3])
    with pytest.raises(ValueError, match="n is 0"):
        score("no_repetition", "a", kwargs={"n": 0})


def test_forbidden_words() -> None:
    texts = ("Damn it", "adamant", "这是垃圾！", "这是圾垃")
    assert score("forbidden_words", *texts, kwargs=NEEDED["forbidden_words"]) == [0.0, 1.0, 0.0, 1.0]
    for wrong in ([], ["…"], "damn"):
        with pytest.raises(ValueError, match="phrases is"):
            load_reward("forbidden_words", {"phrases": wrong})


def test_json_format() -> None:
    texts = ('{"a": 1}', "```json\n[1]\n```", "{a: 1}", "NaN", "[" * 100_000, '{"名": "值"}')
    assert score("json_format", *texts) == [1.0, 1.0, 0.0, 0.0, 0.0, 1.0]
    assert score("json_format", *texts, kwargs={"keys": ["名"]}) == [0.0, 0.0, 0.0, 0.0, 0.0, 1.0]


def test_tag_format() -> None:
    right = "<think>why\nso</think>\n<answer>好</answer>"
    wrong = (right + "more", "<answer>a</answer><think>b</think>", "<think>a<think>b</think></think><answer>c</answer>")
    assert score("tag_format", right, *wrong) == [1.0, 0.0, 0.0, 0.0]
    assert score("tag_format", "<a>1</a>", kwargs={"tags": ["a"]}) == [1.0]


def test_politeness() -> None:
    assert score("politeness", "Yes, please!", "go", "shut up please", "请您稍等") == [1.0, 0.5, 0.0, 1.0]
    assert score("politeness", "ahoy", kwargs={"polite": ["ahoy"]}) == [1.0]


def test_slot_coverage() -> None:
    slots = [{"area": "North", "stars": 3}, ["北京", "上海"], [], None]
    texts = ("north and 3 stars", "我去北京", "x", "x")
    assert score("slot_coverage", *texts, slots=slots) == [1.0, 0.5, None, None]
    dialogue = [{"role": "assistant", "content": "north"}, {"role": "user", "content": "south"}] * 2
    reward = load_reward("slot_coverage", {"values": ["north", "south"]})
    assert reward(prompts=[[]], completions=[dialogue]) == [0.5], "what the user says does not count"


def test_text_metrics() -> None:
    pytest.importorskip("sacrebleu")
    pytest.importorskip("rouge_score")
    same = {"reference": ["the cat sat on the mat", "今天天气非常好"]}
    for name in ("bleu", "chrf", "rouge"):
        assert score(name, *same["reference"], **same) == pytest.approx([1.0, 1.0])
        assert score(name, "xyz", **{"reference": ["the cat"]}) == pytest.approx([0.0], abs=1e-6)
        assert score(name, "xyz", reference=[None]) == [None]
    # the longest common subsequence is 2 of 3 and 2 of 4 words
    assert score("rouge", "你 好 吗", reference=["你好世界"]) == pytest.approx(
        [2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4)]
    )
    assert score("bleu", "今天天气很好", reference=["今天天气非常好"])[0] > 0.3, "Chinese is compared by characters"
    with pytest.raises(ValueError, match="kind is 'rogue'"):
        score("rouge", "a", kwargs={"kind": "rogue"}, reference=["a"])


@pytest.mark.parametrize("name", sorted(SHIPPED))
@settings(max_examples=25, deadline=None)
@given(text=st.text(st.characters(), max_size=80))
def test_any_text_has_a_score_between_0_and_1(name: str, text: str) -> None:
    if name in ("bleu", "chrf", "rouge"):
        pytest.importorskip("sacrebleu")
        pytest.importorskip("rouge_score")
    reward = pickle.loads(pickle.dumps(load_reward(name, NEEDED.get(name))))
    columns: Any = {column: [value] * 2 for column, value in COLUMNS.items()}
    for said in ([[{"role": "assistant", "content": text}]] * 2, [text] * 2):
        values = reward(prompts=["", ""], completions=said, **columns)
        assert len(values) == 2 and all(0.0 <= value <= 1.0 for value in values)
