"""Domain files: what is shipped, what the validator says, and the starter."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path

import gymnasium
import pytest
from gymnasium.utils.env_checker import check_env

from envs.customer_service import CustomerServiceEnv
from envs.domain import FOLDER, load_domain, shipped_domains, write_starter
from envs.experts import demonstrations
from rlobj.cli import main

REPAIRS = (FOLDER / "repairs.json").read_text(encoding="utf-8")
ENGLISH = (FOLDER / "english.json").read_text(encoding="utf-8")


def success(domain: str, n: int, skill: float = 1.0) -> float:
    return sum(row["success"] for row in demonstrations(lambda: CustomerServiceEnv(domain), n, skill)) / n


def test_four_domains_in_english_and_two_in_chinese():
    speech = [json.loads((FOLDER / f"{name}.json").read_text("utf-8"))["speech"] for name in shipped_domains()]
    assert speech.count("english") >= 4
    assert speech.count("chinese") >= 2


@pytest.mark.parametrize("domain", shipped_domains())
def test_gymnasiums_checker_passes_and_the_expert_serves_nearly_everybody(domain):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gymnasium.make("rlobj/CustomerService-v0", domain=domain).unwrapped)
    assert success(domain, 150) >= 0.97


@pytest.mark.parametrize("domain", shipped_domains())
def test_an_experts_words_and_a_customers_are_in_the_domains_language(domain):
    text = "".join(
        message["content"]
        for row in demonstrations(lambda: CustomerServiceEnv(domain), 40)
        for message in row["messages"]
        if message["role"] != "tool"
    )
    chinese = re.findall("[\u3400-\u9fff]", text)
    letters = re.findall("[a-z]", text.replace("G", ""))
    assert not (letters if domain.endswith("_zh") else chinese)


def test_words_end_where_words_end_but_chinese_has_no_spaces():
    english = load_domain("broadband")
    assert english.understand("FAST, please").constraints == {"speed": "fast"}
    assert english.understand("faster breakfast fast1").constraints == {}
    assert english.understand("我要fast的网").constraints == {"speed": "fast"}
    chinese = load_domain("mobile_zh")
    assert chinese.understand("我想按月，便宜的就好").constraints == {"合约": "按月", "月费": "便宜"}
    assert chinese.understand("推荐您青松或者红枫").names == ["青松", "红枫"]
    assert chinese.understand("五个Gb").constraints == {}, "a Latin end of a phrase is the end of a word"


# What the validator says ----------------------------------------------------------------------------------------------


def line_of(text: str, part: str) -> int:
    return text[: text.index(part)].count("\n") + 1


@pytest.mark.parametrize(
    ("old", "new", "at", "message"),
    [
        ('"area": "south", "time": "morning", "visit": "fifty"', '"area": "moon", "time": "morning"', '"moon"',
         "entities[2].area is 'moon': expected one of north, south, center"),
        (', "visit": "fifty", "warranty": "half a year", "parts": "used", "delay": "two days"', "", '"copperhill"',
         "entities[1].visit is missing: expected one of thirty, forty, fifty, sixty"),
        ('"name": "oakley"', '"name": "Tucker"', '"Tucker"', "entities[2].name is 'Tucker' a second time"),
        ('"agent_asks": [ "what time', '"agent_ask": [ "what time', '"time": {', "time.agent_asks is missing"),
        ('"thing": "repair service"', '"thing": ""', '"thing"', "thing is '': expected text, not empty"),
        ('"my {value} is broken"', '"my thing is broken"', '"my thing is broken"',
         "constraints.device.customer_says[0] is 'my thing is broken': expected the gap {value} in it"),
        ('"my {value} is broken"', '"my {valu} is broken"', '"my {valu} is broken"',
         "there is nothing to put into {valu} (gaps here: {value})"),
        ('"my {value} is broken"', '"my {value is broken"', '"my {value is broken"', "expected '}' before end"),
        ('"my {value} is broken"', '"my {value} or oven is broken"', '"my {value} or oven is broken"',
         "makes 'my washer or oven is broken', which is understood as {'device': 'oven'}: expected {'device': 'wash"),
        ('"which device is it ?"', '"which one is it ?"', '"which one is it ?"', "expected one of the slot's words"),
        ('[ "new", "used", "ordered" ]', '[ "new", "used", "ordered", "north" ]', '[ "new", "used", "ordered", "north"',
         "requests.parts.values[3] has 'north', which belongs to 'area'"),
        ('[ "new", "used", "ordered" ]', '[ "new", 3 ]', '[ "new", 3 ]', "requests.parts.values[1] is 3: expected te"),
        ('"speech": "english"', '"speech": "klingon"', '"speech"', "there is no klingon.json"),
        ('"article": "a"', '"article": "a", "artikel": 1', '"artikel"', "artikel is not known here; did you mean 'art"),
        ('"article": "a"', '"article": "a",\n "article": "b"', '"article": "b"', "stands a second time, after line"),
        ('"article": "a",', '"article": "a"', '"constraints"', "not JSON: Expecting ',' delimiter (column 2)"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_file_line_and_field(tmp_path, old, new, at, message):
    assert old in REPAIRS
    path = tmp_path / "mine.json"
    text = REPAIRS.replace(old, new, 1)
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        load_domain(str(path))
    assert str(error.value).startswith(f"{path}:{line_of(text, at)}: ")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"{value}"', '"so"', "styles.terse.inform[0] is 'so': expected the gap {value} in it"),
        ('"any ."', '"what you like ."', "styles.terse.any[0] is 'what you like .': expected one of words.any in it"),
        ('"i said {inform}"', '"i said {name}"', "customer.repeat[0] is 'i said {name}': there is nothing to put into"),
        ('"stop": " ."', '"stop": 1', "glue.stop is 1: expected text"),
        ('"0 found"', '"{none} found"', "screen.none is '{none} found': there is nothing to put into {none}"),
    ],
)
def test_a_mistake_in_a_speech_file_too(tmp_path, old, new, message):
    assert old in ENGLISH
    text = ENGLISH.replace(old, new, 1)
    (tmp_path / "mine.json").write_text(REPAIRS.replace('"english"', '"tongue"'), encoding="utf-8")
    (tmp_path / "tongue.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        load_domain(str(tmp_path / "mine.json"))
    assert str(error.value).startswith(f"{tmp_path / 'tongue.json'}:{line_of(text, new)}: ")


# The starter ----------------------------------------------------------------------------------------------------------


def test_new_domain_writes_a_starter_that_runs_at_once(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["new-domain", "tours-2"]) == 0
    assert "--env.kwargs.domain ./tours-2.json" in capsys.readouterr().out
    assert load_domain("./tours-2.json").name == "tours-2"
    assert success("./tours-2.json", 100) >= 0.97
    written = Path("tours-2.json").read_text(encoding="utf-8")
    for name, message in (
        ("tours-2", "tours-2.json exists already"),
        ("hotels", "the name of a shipped file"),
        ("a/b", "expected letters, digits, _ and - only"),
    ):
        assert main(["new-domain", name]) == 2
        assert message in capsys.readouterr().err
    assert Path("tours-2.json").read_text(encoding="utf-8") == written
    assert [path.name for path in tmp_path.iterdir()] == ["tours-2.json"]
    with pytest.raises(ValueError, match="expected letters"):
        write_starter("")
