"""Models on input that is written otherwise, on parts of their data, and with words exchanged."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from small import COLOUR_LABELS, TEXTS, colour_classifier, colour_sentence, small_policy, small_reward
from transformers import BertForTokenClassification

from reward_models.trained import TrainedReward
from rlobj.chat_format import ChatFormat
from rlobj.cli import main
from rlobj.intervals import Interval, bootstrap_mean, paired_difference, wilson
from rlobj.perturbations import (
    Exchange,
    languages_of,
    paraphrased,
    perturbations,
    read_exchanges,
    read_paraphrases,
    script_of,
    seeded,
    with_typing_errors,
    without_punctuation,
)
from rlobj.policies import load_causal, load_tokenizer, make_encoder, make_encoder_tokenizer, save_policy
from rlobj.probe_report import findings
from rlobj.probed import Labels, Pairs, Replies, Row, Writing, probed
from rlobj.probed_episodes import Episodes, Rewritten
from rlobj.probing import NONE, Counterfactual, Perturbed, Probe, probe
from rlobj.subjects import Subject

COLOURS = Exchange("colours", ("cold", "warm"), [("blue", "red"), ("green", "orange")], "a {} thing . ")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory) -> Path:
    return colour_classifier(tmp_path_factory.mktemp("run") / "model")


@pytest.fixture(scope="module")
def rows(classifier) -> Path:
    rng = random.Random(9)
    path = classifier.parent / "rows.jsonl"
    made = [(*colour_sentence(rng), "ab"[i % 2]) for i in range(60)]
    lines = [json.dumps({"text": text, "label": COLOUR_LABELS[word], "who": who}) for text, word, who in made]
    path.write_text("\n".join(lines))
    return path


# Texts ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["see the red box", "把红色的盒子给我", "", "12 , 34 !", "Ä", "\ud83d x"])
def test_each_change_is_the_same_each_time(text) -> None:
    for name, change in perturbations([["red", "scarlet"]]).items():
        changed = change(text)
        assert changed == change(text), name
        assert changed or not text.strip() or name == "typing errors", name


def test_one_letter_in_twenty_is_typed_wrongly() -> None:
    text = "abcdefghij " * 400
    wrong = with_typing_errors(text, random.Random(0))
    words = zip(text.split(" "), wrong.split(" "), strict=True)
    share = sum(one != other for one, other in words) / 400
    assert 0.3 < share < 0.5, "of words with ten letters 1 − 0.95^10 = 0.40"
    for short in ("hi", "小明", "42 a"):
        assert with_typing_errors(short, random.Random(1)) != short or len(set(short)) < 2
    assert with_typing_errors("42 !", random.Random(0)) == "42 !", "there is no letter"


def test_punctuation_goes_unless_there_is_nothing_else() -> None:
    assert without_punctuation("well , don't : 你好。") == "well dont 你好"
    assert without_punctuation("?!") == "?!"


def test_phrases_take_the_place_of_others(tmp_path) -> None:
    (tmp_path / "phrases.txt").write_text("call it off\tcancel it\nbox, crate\n\nlonely\nWho? Me, too.\tYou as well?\n")
    groups = read_paraphrases(str(tmp_path / "phrases.txt"))
    assert groups == [["call it off", "cancel it"], ["box", "crate"], ["Who? Me, too.", "You as well?"]]

    def said(text: str) -> str:
        return paraphrased(text, random.Random(0), groups)

    assert said("Call it off , the box , boxes") == "Cancel it , the crate , boxes"
    assert said("CRATE") == "BOX" and said("Who? Me, too.") == "You as well?"
    (tmp_path / "none.txt").write_text("lonely\n")
    with pytest.raises(ValueError, match="has no line with two phrases"):
        read_paraphrases(str(tmp_path / "none.txt"))


@pytest.mark.parametrize(
    ("text", "script"),
    [("red box 1", "latin"), ("我要红色 tv", "cjk"), ("привет", "cyrillic"), ("مرحبا", "arabic"), ("12 !", "none")],
)
def test_scripts(text, script) -> None:
    assert script_of(text) == script


@pytest.mark.parametrize(
    ("text", "he", "she"),
    [
        ("He lost his card , help him", "He lost his card , help him", "She lost her card , help her"),
        ("it is HERS , she said with her .", "it is HIS , he said with him .", "it is HERS , she said with her ."),
        ("her account and he's there", "his account and he's there", "her account and she's there"),
        ("the theme of others", None, None),
    ],
)
def test_pronouns_are_exchanged(text, he, she) -> None:
    pronouns = next(each for each in read_exchanges() if each.name == "pronouns")
    assert pronouns.versions(text) == (None if he is None else (he, she))


def test_names_of_any_script_are_exchanged_and_introduced() -> None:
    names = Exchange("names", ("a", "b"), [("小明", "小红"), ("jo", "al")], "{} 说：")
    assert names.versions("我叫小明 and Jo") == ("我叫小明 and Jo", "我叫小红 and Al")
    said = names.introduced("text")
    assert said in (("jo 说：", "al 说：", "小明 说："), ("小明 说：", "小红 说：", "jo 说："))
    assert said == names.introduced("text")


def test_the_shipped_words_are_of_one_side_each() -> None:
    for exchange in read_exchanges():
        one, other = exchange.versions(" . ".join(word for pair in exchange.pairs for word in pair))
        for version, side in ((one, 0), (other, 1)):
            assert set(version.split(" . ")) <= {pair[side] for pair in exchange.pairs}


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("[", "is not JSON"),
        ("[]", "expected an object of exchanges"),
        ('{"x": 1}', "expected an object with sides and pairs"),
        ('{"x": {"sids": 1}}', "did you mean 'sides'"),
        ('{"x": {"sides": ["a"], "pairs": [["b", "c"]]}}', "expected two names"),
        ('{"x": {"sides": ["a", "b"], "pairs": [["b"]]}}', "a list of two words each"),
        ('{"x": {"sides": ["a", "b"], "pairs": [["c", "d"], ["d", "e"]]}}', "d is a word of both sides"),
        ('{"x": {"sides": ["a", "b"], "pairs": [["c", "d"]], "introduction": "hi {}"}}', "and two pairs"),
    ],
)
def test_mistakes_in_a_list_of_exchanges(tmp_path, value, said) -> None:
    (tmp_path / "words.json").write_text(value)
    with pytest.raises(ValueError, match=said):
        read_exchanges(tmp_path / "words.json")


# Models ---------------------------------------------------------------------------------------------------------------


def test_a_classifier_is_probed(classifier, rows) -> None:
    model = probed(Subject(classifier), str(rows), classifier, limit=100)
    assert isinstance(model, Labels)
    found = probe(model, perturbations(), [COLOURS], by=["who"])
    right = round(found.as_it_stands[0] * 60)
    assert right > 57 and found.as_it_stands == (right / 60, *wilson(right, 60))
    by_name = {each.name: each for each in found.perturbed}
    lower, upper = by_name["lower case"], by_name["upper case"]
    assert lower.rows == 0 and np.isnan(lower.difference).all() and lower.quality == found.as_it_stands
    assert upper.rows == 60 and upper.difference[2] < 0, "it has never seen an upper case letter"
    assert upper.difference[0] == pytest.approx(upper.quality[0] - found.as_it_stands[0])
    assert any("upper case: accuracy is worse" in line for line in findings(found))
    kinds = {each.kind: [s.name for s in found.slices if s.kind == each.kind] for each in found.slices}
    assert kinds.keys() - {"language"} == {"label", "length", "who"}, "all rows are of one script"
    assert kinds["label"] == ["cold", "none", "warm"] and kinds["who"] == ["a", "b"]
    assert [name[0] for name in kinds["length"]] == ["≤", "≤", ">"]
    for kind in kinds:
        assert sum(each.rows for each in found.slices if each.kind == kind) == 60


def test_an_exchange_that_decides_is_found(classifier, rows) -> None:
    subject = Subject(classifier)
    model = probed(subject, str(rows), classifier, limit=100, label="warm")
    found = probe(model, {}, [COLOURS])
    exchanged, introduced = found.counterfactuals
    coloured = sum(COLOURS.versions(row.text(("user",))) is not None for row in model.rows)
    assert (exchanged.rows, introduced.rows) == (coloured, 60 - coloured)
    assert exchanged.difference[1] > 0.8, "warm words make it warm"
    assert exchanged.changed[0] > 0.9 and exchanged.changed == (
        exchanged.changed[0], *wilson(round(exchanged.changed[0] * coloured), coloured)
    )  # fmt: skip
    assert introduced.control_size[0] < introduced.size[0], "two cold words are more alike than a cold and a warm one"
    assert "p(warm) is higher" in " ".join(findings(found))
    (alike,) = probe(model, {}, [Exchange("same", ("one", "two"), [("red", "orange")])]).counterfactuals
    assert alike.size[0] < 0.2, "both are warm"


def test_only_what_matters_is_named() -> None:
    def found(difference: Interval, changed: Interval, control: Interval = NONE) -> list[str]:
        one = Counterfactual("names", ("a", "b"), 50, difference, difference, changed, control, control)
        written = Perturbed("case", 50, (0.9, 0.8, 0.95), (-0.004, -0.007, -0.001), (0.0, 0.0, 0.07), "")
        return findings(Probe("accuracy", True, "p", "label", 0.01, 0.01, 50, (0.9, 0.8, 0.95), [written], [], [one]))

    nothing = ["written otherwise: no loss that matters", "words exchanged: no difference that matters"]
    assert found((2.93e-6, 1e-6, 5e-6), (0.0, 0.0, 0.07))[:-1] == nothing
    assert found((0.2, -0.1, 0.5), (0.3, 0.2, 0.4), (0.28, 0.18, 0.38))[:-1] == nothing, "as another word of its side"
    rule = found((0.2, -0.1, 0.5), (0.0, 0.0, 0.07))[-1]
    assert "does not touch 0) and at least 0.01 in accuracy, 0.01 in p; of 2 comparisons" in rule
    named = found((-0.02, -0.03, -0.01), (0.3, 0.2, 0.4), (0.05, 0.01, 0.1))[1:-1]
    assert named == [
        "names: p is lower by 0.020 [0.010, 0.030] for b than for a words",
        "names: the label is another in 0.300 [0.200, 0.400] of the rows, with a word of the same side in 0.050 "
        "[0.010, 0.100]",
    ]
    assert len(found((0.0, 0.0, 0.0), (0.3, 0.2, 0.4))) == 3, "without such a word, where it changes at all"


def test_where_no_row_differs_it_is_not_claimed_that_none_would(classifier, rows) -> None:
    model = probed(Subject(classifier), str(rows), classifier, limit=100)
    found = probe(model, {"a space": lambda text: f"{text} "}, [])
    (space,) = found.perturbed
    assert space.rows == 60 and space.changed[0] == 0
    assert space.difference == paired_difference(0, 0, 60) and space.difference[2] > 0.02


def test_a_column_of_many_numbers_is_cut_in_thirds(classifier, rows, tmp_path) -> None:
    lines = [json.loads(line) for line in rows.read_text().splitlines()]
    made = [{**row, "age": 0.1 * i + 0.2, "floor": 1 / 3 * (i % 2)} for i, row in enumerate(lines)]
    (tmp_path / "aged.jsonl").write_text("\n".join(map(json.dumps, made)))
    model = probed(Subject(classifier), str(tmp_path / "aged.jsonl"), classifier, limit=100)
    found = probe(model, {}, [], by=["age", "floor"])
    ages = [(each.name, each.rows) for each in found.slices if each.kind == "age"]
    assert ages == [("≤ 2.1", 20), ("≤ 4.1", 20), ("> 4.1", 20)]
    assert [each.name for each in found.slices if each.kind == "floor"] == ["0", "0.333333"]


def test_languages_are_guessed(classifier, tmp_path) -> None:
    pytest.importorskip("py3langid")
    english = "see the red box over there , my friend"
    german = "ich möchte mein Geld zurück , bitte , und zwar heute noch"
    assert languages_of([english, german, "ok", ""]) == ["en", "de", "unsure", "unsure"]
    texts = [{"text": text, "label": "warm"} for text in [english] * 6 + [german] * 5]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, texts)))
    found = probe(probed(Subject(classifier), str(tmp_path / "rows.jsonl"), classifier), {}, [])
    assert [(each.name, each.rows) for each in found.slices if each.kind == "language"] == [("de", 5), ("en", 6)]


def test_a_tagger_is_not_probed(tmp_path) -> None:
    tokenizer = make_encoder_tokenizer(TEXTS, vocab_size=300, max_length=32)
    size = {"hidden_size": 16, "layers": 1, "heads": 2, "max_length": 32, "seed": 0}
    save_policy(make_encoder(tokenizer, ["O", "B-x"], **size, head=BertForTokenClassification), tokenizer, tmp_path)
    with pytest.raises(ValueError, match=r"gives each word a tag, .* \(or rlobj explain\)"):
        probed(Subject(tmp_path), "rows.jsonl", tmp_path)


def test_without_a_file_the_test_data_of_its_own_run(classifier, rows, capsys) -> None:
    run = classifier.parent
    (run / "config.yaml").write_text(f"name: colours\ntask: text-classification\ndata: {{train: {rows}}}\n")
    try:
        assert main(["probe", str(run), "--output", str(run / "out")]) == 0
    finally:
        (run / "config.yaml").unlink()
    said = capsys.readouterr().out
    assert "typing errors" in said and "first names, introduced" in said
    found = json.loads((run / "out" / "probe.json").read_text())
    assert found["rows"] == 6, "a tenth"
    numbers = re.findall(r"\d+\.\d+", (run / "out" / "probe.json").read_text())
    assert max(len(each.replace(".", "").lstrip("0")) for each in numbers) == 6, "significant digits"
    page = (run / "out" / "probe.html").read_text()
    assert "<script src" not in page and "this is" in page and "→" in page


def test_a_reward_model_is_probed(tmp_path) -> None:
    path = small_reward(tmp_path / "reward_model")
    pairs = [
        {"prompt": TEXTS[i % 3], "chosen": TEXTS[(i + 1) % 3], "rejected": " ".join(TEXTS[i % 3].split()[: 1 + i % 5])}
        for i in range(12)
    ]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    model = probed(Subject(path), str(tmp_path / "pairs.jsonl"), tmp_path, limit=100)
    assert isinstance(model, Pairs)
    judged = model.judge(model.rows)
    scores = TrainedReward(path)([[]] * 24, [side for row in model.rows for side in row.sides])
    np.testing.assert_allclose(judged.number, scores[::2], rtol=1e-4, atol=1e-3)
    expected = [float(chosen > rejected) for chosen, rejected in zip(scores[::2], scores[1::2], strict=True)]
    assert judged.quality.tolist() == expected
    found = probe(model, {"upper case": str.upper}, [])
    assert found.perturbed[0].rows == 12 and found.perturbed[0].example.isupper()
    assert found.as_it_stands[:1] == (np.mean(expected),)


def test_a_policy_is_probed(tmp_path) -> None:
    path = small_policy(tmp_path / "policy")
    dialogues = [
        [{"role": "user", "content": TEXTS[i % 3]}, {"role": "assistant", "content": TEXTS[(i + 1) % 3]}]
        for i in range(6)
    ]
    (tmp_path / "dialogues.jsonl").write_text("\n".join(json.dumps({"messages": each}) for each in dialogues))
    model = probed(Subject(path), str(tmp_path / "dialogues.jsonl"), tmp_path, limit=100)
    assert isinstance(model, Replies)
    policy, chat = load_causal(path).eval(), ChatFormat(load_tokenizer(path))
    judged = model.judge(model.rows)
    for row, ell in zip(model.rows, judged.quality, strict=True):
        prompt, said = chat.prompt_ids(row.sides[0][:-1]), chat.reply_ids(row.sides[0][-1]["content"])
        with torch.no_grad():
            logps = torch.log_softmax(policy(input_ids=torch.tensor([prompt + said])).logits[0], -1)
        expected = -np.mean([float(logps[len(prompt) + i - 1, token]) for i, token in enumerate(said)])
        assert ell == pytest.approx(expected, abs=1e-4)
    found = probe(model, {"upper case": str.upper}, [Exchange("animals", ("cat", "dog"), [("cat", "dog")])])
    (upper,), (animals,) = found.perturbed, found.counterfactuals
    assert upper.example == model.rows[0].text(("user",)).upper(), "the reply stays as it is"
    assert found.as_it_stands == bootstrap_mean(judged.quality.tolist())
    having = [row for row in model.rows if {"cat", "dog"} & set(row.text(("user",)).split())]
    assert animals.rows == len(having) > 0


def test_users_of_an_environment_write_otherwise() -> None:
    env = Rewritten(gymnasium.make("rlobj/CustomerService-v0"), {7: Writing(str.upper, ("user",))})
    plain = gymnasium.make("rlobj/CustomerService-v0")
    (opening, _), (as_said, _) = env.reset(seed=7), plain.reset(seed=7)
    after, as_said_after = env.step("hello")[0], plain.step("hello")[0]
    assert after[: len(opening)] == opening, "what the policy has read stays as it was"
    for found, expected in ((opening, as_said), (after, as_said_after)):
        assert found == [{**m, "content": m["content"].upper()} if m["role"] == "user" else m for m in expected]
        assert found != expected
    assert env.reset(seed=8)[0] == plain.reset(seed=8)[0], "of another seed nothing is changed"


@pytest.fixture
def run(tmp_path) -> Path:
    """The folder of a run of customer service, with a policy that has learned nothing."""
    (tmp_path / "run" / "policies").mkdir(parents=True)
    (tmp_path / "run" / "config.yaml").write_text(
        "name: run\nenv: {id: rlobj/CustomerService-v0, eval_episodes: 6}\npolicy: {kind: causal, max_length: 120}\n"
        "data: {demonstrations: 20}\nreward: {kind: trained, pairs: 40}\ntraining: {max_reply_tokens: 8}\n"
    )
    small_policy(tmp_path / "run" / "policies" / "lambda=0")
    return tmp_path / "run"


def test_a_policy_is_judged_by_its_own_episodes(run, capsys) -> None:
    model = probed(Subject(run / "policies" / "lambda=0"), None, run)
    assert isinstance(model, Episodes) and len(model.rows) == 6
    assert model.judge(model.rows).quality.tolist() == [0.0] * 6
    unchanged = [row.written(Writing(str, ("user",))) for row in model.rows[2:4]]
    said = model._play({row.columns["seed"]: row.writing for row in unchanged})[0]
    assert said == [row.sides[0] for row in model.rows], "the same random numbers are drawn"
    assert len(model.judge(unchanged).quality) == 2
    assert model.opening(model.rows[0]) == model.rows[0].sides[0][0]["content"]
    seen = []

    def spy(text: str) -> str:
        seen.append(text)
        return f"{text} !"

    found = probe(model, {"spied": spy}, [])
    assert found.perturbed[0].rows == 6 and found.quality == "task success"
    assert len(seen) > 2 * sum(len(row.sides[0]) // 3 for row in model.rows), (
        "the policy's episodes are written otherwise"
    )


def test_a_reward_model_is_judged_by_its_held_out_pairs(run) -> None:
    model = probed(Subject(small_reward(run / "reward_model")), None, run)
    assert isinstance(model, Pairs) and len(model.rows) == 4, "a tenth of 40"


def test_an_encoder_policy_is_judged_by_its_held_out_texts(classifier, rows, tmp_path) -> None:
    (tmp_path / "policies").mkdir()
    (tmp_path / "config.yaml").write_text(
        f"name: run\nenv: {{id: rlobj/Classification-v0}}\npolicy: {{kind: encoder}}\ndata: {{train: {rows}}}\n"
        "reward: {kind: environment}\n"
    )
    model = probed(Subject(classifier), None, tmp_path)
    assert isinstance(model, Labels) and len(model.rows) == 6, "a tenth of 60"
    assert model.judge(model.rows).quality.mean() > 0.6


def test_one_reply_of_each_dialogue_is_judged(tmp_path) -> None:
    path = small_policy(tmp_path / "policy")
    turns = [
        {"role": role, "content": f"{word} {n}"} for n in range(5) for role, word in (("user", "q"), ("assistant", "a"))
    ]
    said = [[{**turns[0], "content": f"q {i}"}, *turns[1:]] for i in range(20)]
    (tmp_path / "dialogues.jsonl").write_text("\n".join(json.dumps({"messages": each}) for each in said))
    model = probed(Subject(path), str(tmp_path / "dialogues.jsonl"), tmp_path, limit=100)
    assert {row.sides[0][-1]["role"] for row in model.rows} == {"assistant"}
    assert len({len(row.sides[0]) for row in model.rows}) > 2 and len(model.rows) == 20


def test_what_is_introduced_stands_before_what_was_said_first() -> None:
    said = [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
    row = Row([said, said]).written(Writing(lambda text: f"x {text}", ("user",), first=True))
    assert [[m["content"] for m in side] for side in row.sides] == [["s", "x a", "b"]] * 2
    assert seeded("a").random() == seeded("a").random() != seeded("b").random()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "has no test data of its own for this: give FILE"),
        (["rows.jsonl", "--label", "hot"], "has no label 'hot'"),
        (["rows.jsonl", "--by", "whom"], "--by whom: not all rows have that column"),
        (["rows.jsonl", "--text_column", "txt"], "did you mean 'text'"),
        (["rows.jsonl", "--label_column", "who"], "the data has the label"),
        (["rows.jsonl", "--limit", "0"], "--limit is 0"),
        (["rows.jsonl", "--paraphrases", "missing.txt"], "missing.txt"),
    ],
)
def test_errors_say_what_to_do(classifier, rows, capsys, arguments, said, monkeypatch) -> None:
    monkeypatch.chdir(rows.parent)
    assert main(["probe", str(classifier), *arguments]) == 2
    assert said in capsys.readouterr().err
