"""Models that are not there, and tokenizers that do not go with them (FAULTS rows 23 and 28)."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small import TEXTS, small_args, small_policy, small_prompts, zero_reward
from transformers import LlamaForSequenceClassification

from reward_models.hub import require_model
from reward_models.trained import TrainedReward
from rlobj.cli import main
from rlobj.policies import load_causal, load_tokenizer, make_causal, make_tokenizer, save_policy
from rlobj.trainer import ObjectiveTrainer


def policy_with(directory: Path, change: Callable[[Any], None]) -> Path:
    """A small policy whose tokenizer is not what it was."""
    small_policy(directory)
    tokenizer = load_tokenizer(directory)
    change(tokenizer)
    tokenizer.save_pretrained(directory)
    return directory


def without_ends(tokenizer: Any) -> None:
    tokenizer.pad_token = tokenizer.eos_token = None


def without_template(tokenizer: Any) -> None:
    tokenizer.chat_template = None
    Path(tokenizer.name_or_path, "chat_template.jinja").unlink(missing_ok=True)


def with_more_tokens(tokenizer: Any) -> None:
    tokenizer.add_tokens(["<|one|>", "<|more|>"])


def run_with(policy: Path, tmp_path: Path, *more: str) -> int:
    return main(["run", "environment", "--env.id", "rlobj/CustomerService-v0", "--policy.model", str(policy),
                 "--policy.max_length", "128", "--training.max_reply_tokens", "4", "--training.steps", "1",
                 "--data.demonstrations", "12", "--output_dir", str(tmp_path / "runs"), *more])  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_ends, "error: tokenizer of '{path}' has neither pad_token nor eos_token: set one and save it"),
        (without_template, "error: tokenizer of '{path}' has no chat template: set tokenizer.chat_template"),
        (
            with_more_tokens,
            "error: policy.model '{path}' has embeddings of {rows} tokens, but its tokenizer '{path}' has",
        ),
    ],
    ids=["no ends", "no template", "other vocabulary"],
)
def test_a_policy_whose_tokenizer_does_not_do_is_refused_before_it_is_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Callable[[Any], None], message: str
) -> None:
    path = policy_with(tmp_path / "policy", change)
    rows = load_causal(path).get_input_embeddings().num_embeddings
    assert run_with(path, tmp_path) == 2
    assert message.format(path=path, rows=rows) in capsys.readouterr().err
    assert not list(tmp_path.glob("runs/*/warm_start/model.safetensors"))


def test_a_tokenizer_without_padding_pads_with_its_end(tmp_path: Path) -> None:
    def without_padding(tokenizer: Any) -> None:
        tokenizer.pad_token = None

    tokenizer = load_tokenizer(policy_with(tmp_path, without_padding))
    assert tokenizer.pad_token == tokenizer.eos_token is not None


def test_a_reward_model_with_another_ones_tokenizer_is_named(tmp_path: Path) -> None:
    known = make_tokenizer(TEXTS, vocab_size=300, max_length=64)
    size = {"hidden_size": 16, "layers": 1, "heads": 2, "max_length": 64, "seed": 0}
    config = make_causal(known, **size).config
    config.num_labels = 1
    save_policy(LlamaForSequenceClassification(config), known, tmp_path)
    assert len(TrainedReward(tmp_path)(["the cat"], [" sat"])) == 1
    other = make_tokenizer([*TEXTS, "words that were never heard of before"] * 3, vocab_size=400, max_length=64)
    assert len(other) > len(known)
    other.save_pretrained(tmp_path)
    words = (
        rf"reward model '{tmp_path}' has embeddings of {len(known)} tokens, but its tokenizer '.*' has {len(other)}: "
    )
    with pytest.raises(ValueError, match=f"{words}expected the tokenizer that it was trained with"):
        TrainedReward(tmp_path)


def test_a_trainer_with_another_models_tokenizer(tmp_path: Path) -> None:
    path = small_policy(tmp_path / "policy")
    tokenizer = load_tokenizer(path)
    with_more_tokens(tokenizer)
    with pytest.raises(ValueError, match=f"policy '{path}' has embeddings of .* tokens"):
        ObjectiveTrainer(load_causal(path), zero_reward, small_args(tmp_path), small_prompts(),
                         processing_class=tokenizer)  # fmt: skip


# Not there ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "why"),
    [("somebody/no-such-model", "OfflineModeIsEnabled"), ("runs/not/there", "HFValidationError")],
)
def test_a_model_that_is_not_there_is_named(name: str, why: str) -> None:
    words = rf"policy.model is '{name}': neither a directory here nor a model that the Hub gives \({why}: .*\); check"
    with pytest.raises(ValueError, match=words):
        require_model("policy.model", name)


def test_a_directory_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"reward.model is '.*': the directory has no config\.json"):
        require_model("reward.model", tmp_path)
    (tmp_path / "member-0").mkdir()
    (tmp_path / "member-0" / "config.json").touch()
    require_model("reward.model", tmp_path)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--policy.model", "somebody/no-such-model"],
        ["--policy.model", "{policy}", "--reward.kind", "trained", "--reward.model", "somebody/no-such-model"],
    ],
    ids=["policy", "reward"],
)
def test_a_run_says_so_before_anything_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    policy = small_policy(tmp_path / "policy")
    key = arguments[-2].removeprefix("--")
    assert run_with(policy, tmp_path, *[each.format(policy=policy) for each in arguments]) == 2
    assert f"error: {key} is 'somebody/no-such-model': neither a directory here nor" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_hub_that_does_not_answer_is_not_waited_for(tmp_path: Path) -> None:
    """Not switched off, but out of reach: the library's own retries take half a minute."""
    script = (
        "import time; from rlobj.cli import main; import rlobj.policies; began = time.monotonic();"
        "status = main(['fit', 'bert-classifier', '--policy.model', 'somebody/no-such-model']);"
        "print(status, time.monotonic() - began)"
    )
    there = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, timeout=120,
        env={**os.environ, **there, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    status, seconds = done.stdout.split()
    assert status == "2" and float(seconds) < 15, done.stderr
    assert "error: policy.model is 'somebody/no-such-model': neither a directory here nor a model" in done.stderr
    assert "Connection refused" in done.stderr and "Retrying" not in done.stderr
