"""Which words a model's number is owed to, and whether the words that are named matter."""

from __future__ import annotations

import json
import random
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small import COLOUR_LABELS, COLOUR_NAMES, TEXTS, colour_classifier, colour_sentence, small_policy, small_reward
from transformers import BertForTokenClassification, DataCollatorForTokenClassification

from reward_models.trained import TrainedReward, encode_conversation
from rlobj.chat_format import ChatFormat
from rlobj.cli import main
from rlobj.encoder_policy import label_head
from rlobj.inference import encode, encode_words
from rlobj.policies import load_causal, load_tokenizer, make_encoder, make_encoder_tokenizer, save_policy
from rlobj.prediction import Predictor
from rlobj.readings import Reading, Word, read_messages, read_text, read_words, word_spans
from rlobj.try_reward import as_text

pytest.importorskip("captum", reason="needs the extra 'explain'")

from rlobj.attribution import Explained, agreement, deletions, integrated_gradients, shapley_values
from rlobj.explaining import explain, headline, is_unmoved, over_texts
from rlobj.explanation_page import AGAINST, FOR, coloured, deletion_in_words, named, pieces
from rlobj.subjects import Subject


@pytest.fixture(scope="module")
def classifier(tmp_path_factory) -> Path:
    return colour_classifier(tmp_path_factory.mktemp("classifier") / "model")


@pytest.fixture(scope="module")
def reward(tmp_path_factory) -> Path:
    return small_reward(tmp_path_factory.mktemp("run") / "reward_model")


# Words and tokens -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("don't stop , ann's 3rd 你好!", ["don't", "stop", ",", "ann's", "3rd", "你", "好", "!"]),
        ("'quoted' e\u0301t\u0301e", ["'", "quoted", "'", "e\u0301t\u0301e"]),
        ("नमस्ते  мир\n🙂", ["नमस्ते", "мир", "🙂"]),
        (" \n", []),
    ],
)
def test_words_of_any_script(text, words) -> None:
    assert [text[start:end] for start, end in word_spans(text)] == words


def test_each_token_of_a_text_is_its_words(classifier) -> None:
    tokenizer = load_tokenizer(classifier)
    text = "see the Zanzibarian 小明 <|end|> 🙂 now"
    reading = read_text(tokenizer, text, None)
    assert reading.ids == encode(tokenizer, text, None)
    assert "".join(reading.said(i) for i in range(len(reading.words))) == reading.text.replace(" ", "")
    for i, word in enumerate(reading.words):
        assert tokenizer.decode([reading.ids[t] for t in word.tokens]).replace(" ", "") == reading.said(i)
    assert sorted(t for word in reading.words for t in word.tokens) == list(range(1, len(reading.ids))), "but the first"
    without = reading.without([1, 2])
    assert tokenizer.decode(without, skip_special_tokens=True).split() == ["see", "小明", "<", "|end|>", "🙂", "now"]
    cut = read_text(tokenizer, text, 5)
    assert len(cut.ids) == 5 and len(cut.words) < len(reading.words)


def test_words_that_share_a_token_are_one(classifier) -> None:
    tokenizer = load_tokenizer(classifier)
    tokenizer.add_tokens(["w york"])  # the end of one word and the next
    reading = read_text(tokenizer, "see new york now", None)
    assert [reading.said(i) for i in range(len(reading.words))] == ["see", "new york", "now"]


def test_conversations_are_read_as_rewards_and_policies_read_them(reward) -> None:
    tokenizer = load_tokenizer(reward)
    messages = [
        {"role": "user", "content": " where is the boat "},
        {"role": "assistant", "content": "the boat ran <|end|>"},
    ]
    whole = read_messages(tokenizer, messages, None, to_be_answered=False)
    assert whole.ids == encode_conversation(tokenizer, messages[:1], messages[1:], None)
    assert [whole.said(i) for i in range(len(whole.words))] == (
        ["where", "is", "the", "boat", "the", "boat", "ran", "<", "|", "end", "|", ">"]
    )
    assert [part.role for part in whole.parts] == ["user", "assistant"]
    opening = read_messages(tokenizer, messages[:1], None, to_be_answered=True)
    assert opening.ids == ChatFormat(tokenizer).prompt_ids(messages[:1])
    end = read_messages(tokenizer, messages, 6, to_be_answered=False)
    assert end.ids == whole.ids[-6:] and end.said(len(end.words) - 1) == ">", "its end is kept"


def test_a_text_without_words_is_an_error(classifier) -> None:
    with pytest.raises(ValueError, match="has no word that the model reads"):
        read_text(load_tokenizer(classifier), " \n ", None)


# The methods, where the answer is known -------------------------------------------------------------------------------


class Linear(torch.nn.Module):
    """f = Σ over tokens of w · e(token), or its square."""

    device = torch.device("cpu")

    def __init__(self, squared: bool = False) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.embedding, self.squared = torch.nn.Embedding(9, 4), squared
        self.w = torch.randn(4)
        self.requires_grad_(False)

    def get_input_embeddings(self) -> torch.nn.Embedding:
        return self.embedding

    def score(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        value = ((self.embedding(ids) @ self.w) * mask).sum(-1)
        return value**2 if self.squared else value


READING = Reading("a bc d e", [], [0, 1, 2, 3, 4, 8], [Word(0, 1, (1,)), Word(2, 4, (2, 3)), Word(5, 6, (4,))])
"""Three words, the second of two tokens; the first and the last token are of no word."""


@pytest.mark.parametrize("squared", [False, True])
def test_both_methods_give_what_is_derived(squared) -> None:
    model = Linear(squared)
    explained = Explained(model, model.score, READING, pad_id=0)
    worth = (model.embedding.weight @ model.w).double().numpy()
    gain = np.array([sum(worth[READING.ids[t]] - worth.mean() for t in word.tokens) for word in READING.words])
    base = sum(worth[READING.ids[t]] for t in (0, 5)) + 4 * worth.mean()
    # of (base + Σ gain)²: 2 ∫ (base + α Σ gain) dα · gain, which by symmetry are the Shapley values as well
    expected = gain * (2 * base + gain.sum()) if squared else gain
    gradients = integrated_gradients(explained)
    np.testing.assert_allclose(gradients.words, expected, rtol=1e-4)
    np.testing.assert_allclose(shapley_values(explained), expected, rtol=1e-3)
    assert gradients.difference == pytest.approx(expected.sum(), rel=1e-4)
    assert abs(gradients.delta) < 1e-4 * abs(gradients.difference)
    (one,) = explained.of_ids([READING.ids])
    assert gradients.difference == pytest.approx(one - float(explained.of_embeddings(explained.base)), rel=1e-5)


def test_shorter_texts_of_a_batch_score_as_they_do_alone() -> None:
    model = Linear()
    explained = Explained(model, model.score, READING, pad_id=0, suffix=[7, 5])
    rows = [READING.ids, READING.without([1]), READING.without([0, 2])]
    alone = [float(model.score(torch.tensor([[*row, 7, 5]]), torch.ones(1, len(row) + 2))) for row in rows]
    np.testing.assert_allclose(explained.of_ids(rows), alone, rtol=1e-6)


def test_deletion_counts_what_is_lost() -> None:
    model = Linear()
    explained = Explained(model, model.score, READING, pad_id=0)
    worth = (model.embedding.weight @ model.w).double().numpy()
    lost = np.array([sum(worth[READING.ids[t]] for t in word.tokens) for word in READING.words])
    one, two = deletions(explained, lost, shares=(0.1, 0.9))
    order = np.argsort(-lost).tolist()
    assert (one.words, two.words) == ((order[0],), (order[0], order[1])), "one word stays"
    assert one.important == pytest.approx(lost.max(), rel=1e-5)
    assert two.important == pytest.approx(np.sort(lost)[1:].sum(), rel=1e-5)
    assert one.random == pytest.approx(lost.mean(), abs=3 * lost.std() / np.sqrt(200))
    assert (one.low, one.high) == (pytest.approx(lost.min(), rel=1e-5), pytest.approx(lost.max(), rel=1e-5))
    assert 0.5 < one.above < 0.8, "two random words of three are less"
    worst, _ = deletions(explained, -lost, shares=(0.1, 0.9))
    assert worst.important == pytest.approx(lost.min(), rel=1e-5) and worst.above == 0


def test_a_single_word_is_all_there_is() -> None:
    model = Linear()
    reading = Reading("a", [], [0, 1], [Word(0, 1, (1,))])
    explained = Explained(model, model.score, reading, pad_id=0)
    np.testing.assert_allclose(shapley_values(explained), integrated_gradients(explained).words, rtol=1e-4)
    assert deletions(explained, np.ones(1)) == [], "no text is left without it"
    assert agreement(np.ones(1), np.ones(1)) is None


def test_more_steps_are_taken_where_the_integral_needs_them() -> None:
    model = Linear()

    def kinked(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(400 * (model.score(ids, mask) - middle))

    ends = [Explained(model, model.score, READING, pad_id=0).of_words(torch.full((1, 3), n)) for n in (0.0, 1.0)]
    middle = sum(ends) / 2
    explained = Explained(model, kinked, READING, pad_id=0)
    few, enough = integrated_gradients(explained, steps=4), integrated_gradients(explained)
    assert few.steps == 4 and enough.steps > 32
    assert abs(enough.delta) < abs(few.delta)


# Models ---------------------------------------------------------------------------------------------------------------


def test_the_word_that_decides_is_named(classifier) -> None:
    rng = random.Random(5)
    rows = [row for row in (colour_sentence(rng) for _ in range(18)) if COLOUR_LABELS[row[1]] != "none"]
    found = explain(Subject(classifier), [as_text(text) for text, _ in rows])
    pairs = list(zip(found, rows, strict=True))
    for one, (_, colour) in pairs:
        assert one.what == f"log-odds of {COLOUR_LABELS[colour]}"
        assert abs(one.gradients.delta) <= 0.01 * np.abs(one.gradients.words).sum()
        assert one.shapley.sum() == pytest.approx(one.gradients.difference, rel=1e-3)
    named = {
        method: sum(one.reading.said(int(weights(one).argmax())) == colour for one, (_, colour) in pairs)
        for method, weights in {"ig": lambda one: one.gradients.words, "shap": lambda one: one.shapley}.items()
    }
    assert len(found) > 8 and min(named.values()) >= 0.7 * len(found), f"{named} of {len(found)}"
    for method in ("integrated gradients", "Shapley values"):
        taken = [headline(one.deletions[method], len(one.reading.words)) for one in found]
        assert np.mean([each.important - each.random for each in taken]) > 1, "it matters more than words at random"


def test_a_label_may_be_asked_after(classifier) -> None:
    subject = Subject(classifier)
    values = [explain(subject, [as_text("see the red box")], label)[0].value for label in COLOUR_NAMES]
    assert sum(1 / (1 + np.exp(-value)) for value in values) == pytest.approx(1, abs=1e-5), "log-odds of probabilities"
    (likely,) = explain(subject, [as_text("see the red box")])
    assert likely.what == "log-odds of warm" and likely.value == max(values)
    with pytest.raises(ValueError, match=r"no label 'wram'; did you mean 'warm'\? \(it has cold, none, warm\)"):
        explain(subject, [as_text("see")], "wram")


def test_a_reward_model_scores_as_it_does_in_training(reward) -> None:
    text = as_text(TEXTS[1], TEXTS[2])
    (one,) = explain(Subject(reward), [text])
    (expected,) = TrainedReward(reward)([text.prompt], [text.completion])
    assert one.value == pytest.approx(expected, rel=1e-4) and one.what == "score of the reward model"
    assert {one.reading.said(i) for i in range(len(one.reading.words))} == {*TEXTS[1].split(), *TEXTS[2].split()}
    assert abs(one.gradients.delta) <= 0.01 * abs(one.gradients.difference)
    assert one.shapley.sum() == pytest.approx(one.gradients.difference, rel=1e-3)


def test_a_reply_is_explained_by_its_prompt(tmp_path) -> None:
    path = small_policy(tmp_path / "policy")
    model, chat = load_causal(path).eval(), ChatFormat(load_tokenizer(path))
    (one,) = explain(Subject(path), [as_text("the blue boat", TEXTS[0])], by_word=True)
    prompt, reply = chat.prompt_ids([{"role": "user", "content": TEXTS[0]}]), chat.reply_ids("the blue boat")
    with torch.no_grad():
        logps = torch.log_softmax(model(input_ids=torch.tensor([prompt + reply])).logits[0].double(), -1)
    expected = sum(float(logps[len(prompt) + i - 1, token]) for i, token in enumerate(reply))
    assert one.value == pytest.approx(expected, abs=1e-4) and one.reply == "the blue boat"
    assert [each.said for each in one.reply_words] == ["the", "blue", "boat", "(end)"]
    assert sum(each.value for each in one.reply_words) == pytest.approx(expected, abs=1e-4)
    together = np.sum([each.gradients.words for each in one.reply_words], axis=0)
    np.testing.assert_allclose(together, one.gradients.words, atol=0.02 * np.abs(one.gradients.words).max())
    (greedy,) = explain(Subject(path), [as_text(TEXTS[0])])
    assert greedy.reply and greedy.reading.ids == prompt, "a text without a prompt is a user's"


@pytest.fixture(scope="module")
def tagger(tmp_path_factory) -> Path:
    """An encoder that has learned to tag a thing by the colour before it: B-warm, B-cold, or O where it has none."""
    rng = random.Random(0)
    rows = [colour_sentence(rng)[0].split() for _ in range(240)]
    tokenizer = make_encoder_tokenizer([" ".join(row) for row in rows], vocab_size=330, max_length=48)
    size = {"hidden_size": 32, "layers": 1, "heads": 2, "max_length": 48, "seed": 0}
    model = make_encoder(tokenizer, TAGS, **size, head=BertForTokenClassification).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    collate = DataCollatorForTokenClassification(tokenizer)
    for start in range(0, 16 * 240, 24):
        batch = [rows[i % 240] for i in range(start, start + 24)]
        loss = model(**collate([_with_tags(tokenizer, words) for words in batch])).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.05, "it has learned the task"
    path = tmp_path_factory.mktemp("tagger") / "model"
    save_policy(model, tokenizer, path)
    return path


TAGS = ["O", "B-cold", "B-warm"]


def _with_tags(tokenizer: Any, words: list[str]) -> dict[str, Any]:
    ids, begins = encode_words(tokenizer, words, None)
    kinds = ["O", *[f"B-{COLOUR_LABELS.get(word, 'none')}" for word in words]]  # of the word before
    tags = [TAGS.index(kinds[i]) if kinds[i] in TAGS else 0 for i in range(len(words))]
    return {"input_ids": ids, "labels": [-100 if i is None else tags[i] for i in begins]}


def test_each_token_is_of_the_word_that_a_tagger_reads(tagger) -> None:
    tokenizer = load_tokenizer(tagger)
    text = "see the  Zanzibarian, 小明 <|end|> now"
    reading = read_words(tokenizer, text, None)
    assert reading.ids == encode_words(tokenizer, text.split(), None)[0]
    said = [reading.said(i) for i in range(len(reading.words))]
    assert said == ["see", "the", "Zanzibarian,", "小明", "< |end|>", "now"], "no control token"
    for i, word in enumerate(reading.words):
        assert tokenizer.decode([reading.ids[t] for t in word.tokens]).replace(" ", "") == said[i].replace(" ", "")
    assert [t for word in reading.words for t in word.tokens] == list(range(1, len(reading.ids))), "but the first"
    assert reading.without([1], 7) == [7 if t in reading.words[1].tokens else i for t, i in enumerate(reading.ids)]
    assert len(read_words(tokenizer, text, 6).words) < len(reading.words)
    with pytest.raises(ValueError, match="has no word that the model reads"):
        read_words(tokenizer, " ", None)


def test_the_word_that_decides_a_tag_is_named(tagger) -> None:
    rng = random.Random(5)
    rows = [row for row in (colour_sentence(rng) for _ in range(18)) if COLOUR_LABELS[row[1]] != "none"]
    subject = Subject(tagger)
    found = explain(subject, [as_text(text) for text, _ in rows])
    assert len(found) == len(rows) > 8, "one entity each"
    predictions = Predictor(tagger)([{"text": text} for text, _ in rows])
    for one, (text, colour), said in zip(found, rows, predictions, strict=True):
        (entity,) = said["entities"]
        place = text.split().index(colour) + 1
        assert (entity["start"], entity["kind"]) == (place, COLOUR_LABELS[colour]) and one.word == place
        assert one.what == f"log-odds of B-{entity['kind']} for word {place + 1}, {entity['words'][0]}"
        logits = subject.model(input_ids=torch.tensor([one.reading.ids])).logits[0, one.reading.words[place].tokens[0]]
        p = float(torch.softmax(logits.double(), -1)[TAGS.index(f"B-{entity['kind']}")])
        assert one.value == pytest.approx(np.log(p / (1 - p)), rel=1e-3)
        assert one.shapley.sum() == pytest.approx(one.gradients.difference, rel=1e-3)
    for weights in (lambda one: one.gradients.words, lambda one: one.shapley):
        named = [one.reading.said(int(weights(one).argmax())) for one in found]
        assert np.mean([a == b for a, (_, b) in zip(named, rows, strict=True)]) >= 0.7
    for _, _, difference in over_texts(found).values():
        assert difference[1] > 1, "they matter more than words at random"


def test_a_word_of_a_tagger_may_be_asked_after(tagger) -> None:
    subject = Subject(tagger)
    text = as_text("see the red box over the box")
    both = explain(subject, [text], word="box")
    assert [one.word for one in both] == [3, 6] and both[0].what == "log-odds of B-warm for word 4, box"
    (warm,), (cold,) = (explain(subject, [as_text("see the red box")], label) for label in (None, "B-cold"))
    assert warm.word == cold.word == 3 and cold.what == "log-odds of B-cold for word 4, box" and cold.value < warm.value
    (none,) = explain(subject, [as_text("see the door")])
    assert none.what.startswith("log-odds of O for word"), "there is no entity"
    with pytest.raises(ValueError, match=r"--word is 'bos': expected a word of 'see the red box .*did you mean 'box'"):
        explain(subject, [text], word="bos")


def test_tags_that_are_no_bio_are_explained_word_by_word(tmp_path) -> None:
    tokenizer = make_encoder_tokenizer(TEXTS, vocab_size=300, max_length=32)
    size = {"hidden_size": 16, "layers": 1, "heads": 2, "max_length": 32, "seed": 0}
    save_policy(make_encoder(tokenizer, ["DT", "NN"], **size, head=BertForTokenClassification), tokenizer, tmp_path)
    (said,) = Predictor(tmp_path)([{"text": "the cat sat"}])
    found = explain(Subject(tmp_path), [as_text("the cat sat")])
    expected = zip(said["predicted"], said["words"], range(1, 4), strict=True)
    assert [one.what for one in found] == [f"log-odds of {tag} for word {i}, {word}" for tag, word, i in expected]


# What a person sees ---------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.words: list[tuple[str, str]] = []
        self.links: list[str] = []
        self.open: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        given = dict(attributes)
        self.links += [value for name, value in given.items() if name in ("src", "href")]
        self.open = given["class"] if "w" in (given.get("class") or "").split() else None

    def handle_data(self, data: str) -> None:
        if self.open is not None:
            self.words.append((data, self.open))
        self.open = None


def test_the_command_line(classifier, tmp_path, capsys) -> None:
    text = "see the red box , <b>please</b>"
    assert main(["explain", str(classifier), text, "--label", "warm", "--output", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "log-odds of warm" in said and "(p = 0." in said and "convergence delta" in said
    assert re.search("[✓?] integrated gradients: without .*“red”.* the number falls by [0-9]", said), "what is deleted"
    assert "\x1b" not in said, "no colours where there is no terminal"
    page = Page((tmp_path / "out" / "explanation.html").read_text())
    assert page.links == [], "it needs nothing else"
    assert ("red", "w for") in page.words and "b" in [word for word, _ in page.words], "what was said is text"
    found = json.loads((tmp_path / "out" / "explanation.json").read_text())["texts"][0]
    top = max(found["words"], key=lambda word: word["integrated_gradients"])
    assert top["word"] == found["text"][top["start"] : top["end"]] == "red"
    assert found["completeness"].keys() == {"difference", "delta", "steps"}
    assert found["deletions"]["Shapley values"][0]["words"] == ["red"]
    numbers = re.findall(r"\d+\.\d+", (tmp_path / "out" / "explanation.json").read_text())
    assert numbers and max(len(each.replace(".", "").lstrip("0")) for each in numbers) == 6, "significant digits"


def test_the_command_line_of_a_tagger(tagger, tmp_path, capsys) -> None:
    assert main(["explain", str(tagger), "see the red box", "--output", str(tmp_path / "out")]) == 0
    assert "log-odds of B-warm for word 4, box: " in capsys.readouterr().out
    page = Page((tmp_path / "out" / "explanation.html").read_text())
    assert ("red", "w for") in page.words and "box" in [word for word, kinds in page.words if "asked" in kinds]


def test_a_model_that_looks_at_no_word_is_told(tmp_path, capsys) -> None:
    tokenizer = make_encoder_tokenizer(TEXTS, vocab_size=300, max_length=32)
    model = make_encoder(tokenizer, ["a", "b"], hidden_size=16, layers=1, heads=2, max_length=32, seed=0)
    label_head(model).weight.data.zero_()
    save_policy(model, tokenizer, tmp_path / "model")
    assert main(["explain", str(tmp_path / "model"), TEXTS[0], "--output", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "Has it been trained?" in said and "the number falls by" not in said


def test_a_score_near_0_is_unmoved_only_where_no_word_moves_it(tmp_path) -> None:
    tokenizer = make_encoder_tokenizer(TEXTS, vocab_size=300, max_length=32)
    model = make_encoder(tokenizer, ["score"], hidden_size=16, layers=1, heads=2, max_length=32, seed=0)
    save_policy(model, tokenizer, tmp_path / "moved")
    (one,) = explain(Subject(tmp_path / "moved"), [as_text(TEXTS[0])])
    assert not is_unmoved(one) and not is_unmoved(replace(one, value=0.0))
    label_head(model).weight.data.zero_()
    label_head(model).bias.data.zero_()
    save_policy(model, tokenizer, tmp_path / "unmoved")
    (one,) = explain(Subject(tmp_path / "unmoved"), [as_text(TEXTS[0])])
    assert one.value == 0 and is_unmoved(one)


def test_a_verdict_asks_more_than_the_mean_of_random_deletions(classifier) -> None:
    (one,) = explain(Subject(classifier), [as_text("see the red box over there now please my friend")])
    taken = headline(one.deletions["Shapley values"], len(one.reading.words))
    assert taken.low < taken.random < taken.high
    falls = [taken.low - 1, taken.low, taken.random + 0.1, taken.high * (1 + 1e-6), taken.high + 1]
    said = [deletion_in_words(one, "Shapley values", replace(taken, important=fall)) for fall in falls]
    assert [line[0] for line in said] == ["✗", "?", "?", "?", "✓"]


def test_texts_of_a_file_and_what_they_come_to(reward, tmp_path, capsys) -> None:
    rows = [{"prompt": TEXTS[0], "completion": text} for text in TEXTS]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = str(reward.parent)
    arguments = ["--reward", "--file", str(tmp_path / "rows.jsonl"), "--output", str(tmp_path / "out")]
    assert main(["explain", run, *arguments]) == 0
    said = capsys.readouterr().out
    assert "Shapley values, over 3: " in said and "assistant " in said
    assert "Shapley values, over 3: " in (tmp_path / "out" / "explanation.html").read_text()


def test_strength_and_sign_are_told_by_colour_and_line(classifier) -> None:
    reading = read_text(load_tokenizer(classifier), "see the red box", None)
    shown = coloured(reading, np.array([0.0, -0.5, 1.0, 0.01]))
    assert shown.plain == "see the red box"
    spans = {shown.plain[span.start : span.end]: span.style for span in shown.spans if span.style}
    assert spans.keys() == {"the", "red"}
    assert spans["the"].underline and not spans["red"].underline
    assert spans["red"].bgcolor.triplet == FOR and spans["the"].bgcolor.triplet > AGAINST, "the weaker the paler"


def test_what_was_not_read_is_told(reward) -> None:
    messages = [{"role": "user", "content": "where is the boat"}, {"role": "assistant", "content": "the boat ran"}]
    reading = read_messages(load_tokenizer(reward), messages, 9, to_be_answered=False)
    user, assistant = (pieces(reading, part) for part in reading.parts)
    assert "".join(text for text, _ in user) == "where is the boat" and user[0][1] is None, "its beginning was cut off"
    assert [text for text, i in assistant if i is not None] == ["the", "boat", "ran"]
    assert named(reading, len(reading.words) - 1) == "ran (assistant)"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["text", "--steps", "1"], "--steps is 1: expected at least 2"),
        ([], "nothing to explain"),
        (["text", "--reward"], "has no reward model"),
        (["text", "--label", "hot"], "has no label 'hot'"),
        (["text", "--prompt", "hello"], "reads single texts, and is given what 'text' answers: leave --prompt out"),
        (["text", "--word", "text"], "gives words no tags: leave it out"),
    ],
)
def test_errors_say_what_to_do(classifier, capsys, arguments, said) -> None:
    assert main(["explain", str(classifier), *arguments]) == 2
    assert said in capsys.readouterr().err


def test_an_ensemble_is_explained_member_by_member(tmp_path, capsys) -> None:
    (tmp_path / "reward_model" / "member-0").mkdir(parents=True)
    assert main(["explain", str(tmp_path), "text", "--reward"]) == 2
    assert "member-0" in capsys.readouterr().err


def test_what_to_install(classifier, capsys, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    assert main(["explain", str(classifier), "text"]) == 2
    assert "pip install 'rlobj[explain]'" in capsys.readouterr().err
