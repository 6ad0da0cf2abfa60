"""Talking to a policy, with scripted input."""

from __future__ import annotations

import shutil

import pytest
from small import small_policy

from rlobj.chat import policy_directory, talk


@pytest.fixture
def run_dir(tmp_path):
    run = tmp_path / "run"
    for name in ("warm_start", "policies/lambda=0", "policies/lambda=0.3", "policies/lambda=10"):
        small_policy(run / name)
    return run


def scripted(lines):
    left = list(lines)

    def read(prompt):
        if not left:
            raise EOFError
        return left.pop(0)

    return read


def test_largest_lambda_is_the_default(run_dir):
    assert policy_directory(run_dir).name == "lambda=10"
    assert policy_directory(run_dir, "warm_start").name == "warm_start"
    with pytest.raises(ValueError, match=r"no policy 'lambda=0.4'; did you mean 'lambda=0.3'"):
        policy_directory(run_dir, "lambda=0.4")


@pytest.mark.parametrize("lines", [["hello", "", "never read"], ["hello"]])
def test_talk_ends_with_an_empty_line_or_the_end_of_input(run_dir, lines):
    said = []
    talk(run_dir, read=scripted(lines), write=said.append)
    assert sum(line.startswith("policy >") for line in said) == 1


def test_the_desk_screen_stands_behind_the_customers_words(run_dir):
    (run_dir / "config.yaml").write_text(
        "name: x\nenv:\n  id: rlobj/CustomerService-v0\n  kwargs: {domain: broadband}\n"
    )
    said = []
    talk(run_dir, read=scripted(["i need something cheap"]), write=said.append)
    assert any(line.startswith("tool   > ask speed , contract ;") for line in said)


def test_no_run_no_talk(tmp_path):
    with pytest.raises(ValueError, match="holds no trained policy"):
        talk(tmp_path)


def test_a_classifier_cannot_talk(run_dir):
    from rlobj.policies import load_tokenizer, make_encoder, save_policy

    shutil.rmtree(run_dir / "policies")
    tokenizer = load_tokenizer(run_dir / "warm_start")
    size = {"hidden_size": 16, "layers": 1, "heads": 2, "max_length": 32, "seed": 0}
    save_policy(make_encoder(tokenizer, ["a", "b"], **size), tokenizer, run_dir / "warm_start")
    with pytest.raises(ValueError, match="BertForSequenceClassification, which cannot talk"):
        talk(run_dir)
