"""Reward models are trained, judged on pairs held out, and saved whole or not at all."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from scipy.stats import binomtest
from transformers import AutoModelForSequenceClassification, AutoTokenizer, LlamaConfig, LlamaForSequenceClassification
from transformers.utils import logging

from reward_models import TrainedReward, train_reward_model
from reward_models import training as module
from reward_models.training import DEFAULTS, encode_pairs
from rlobj.policies import load_tokenizer, make_tokenizer
from tests.small import TEXTS, small_policy

Pair = dict[str, Any]
WORDS = sorted({word for text in TEXTS for word in text.split()} - {"red", "blue"})


def tokenizer_of_tests() -> Any:
    return make_tokenizer(TEXTS, vocab_size=300, max_length=64)


def new_model(tokenizer: Any, num_labels: int = 1) -> LlamaForSequenceClassification:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=64, num_labels=num_labels, initializer_range=0.25, bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return LlamaForSequenceClassification(config)


def red_over_blue(n: int, seed: int) -> list[Pair]:
    """Answers of random words; the chosen one says red where the rejected one says blue."""
    rng = random.Random(seed)
    pairs = []
    for _ in range(n):
        question = {"role": "user", "content": " ".join(rng.choices(WORDS, k=rng.randint(1, 4)))}
        before, after = (" ".join(rng.choices(WORDS, k=rng.randint(0, 3))) for _ in range(2))
        chosen, rejected = (
            [question, {"role": "assistant", "content": f"{before} {color} {after}"}] for color in ("red", "blue")
        )
        pairs.append({"chosen": chosen, "rejected": rejected})
    return pairs


def with_prompt(pair: Pair) -> Pair:
    return {"prompt": pair["chosen"][:1], "chosen": pair["chosen"][1:], "rejected": pair["rejected"][1:]}


def train(output: Path, pairs: list[Pair], held_out: list[Pair], **config: Any) -> dict[str, Any]:
    tokenizer = tokenizer_of_tests()
    return train_reward_model(new_model(tokenizer), tokenizer, pairs, held_out, output, {"use_cpu": True, **config})


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    output = tmp_path_factory.mktemp("run") / "reward_model"
    pairs = red_over_blue(480, seed=1)
    return output, train(output, pairs, red_over_blue(100, seed=2), learning_rate=1e-2, num_train_epochs=2)


def test_learns_an_obvious_preference(trained: tuple[Path, dict[str, Any]]) -> None:
    metrics = trained[1]
    low, high = metrics["accuracy_interval"]
    assert metrics["accuracy"] >= 0.9, "chance is 0.5"
    assert 0.8 < low <= metrics["accuracy"] <= high <= 1.0
    losses = [entry["loss"] for entry in metrics["history"] if "loss" in entry]
    assert len(losses) == 480 * 2 // 32 // DEFAULTS["logging_steps"]
    assert losses[-1] < 0.5 * losses[0]


def test_an_adapter_learns_it_too_and_is_merged(tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="needs the extra 'peft'")
    tokenizer = tokenizer_of_tests()
    beginning = new_model(tokenizer)
    embeddings = beginning.get_input_embeddings().weight.detach().clone()
    metrics = train_reward_model(
        beginning, tokenizer, red_over_blue(480, seed=1), red_over_blue(100, seed=2), tmp_path / "reward",
        {"use_cpu": True, "learning_rate": 2e-2, "num_train_epochs": 2}, lora={"r": 4},
    )  # fmt: skip
    assert metrics["accuracy"] >= 0.8
    saved = load_file(tmp_path / "reward" / "model.safetensors")
    assert not [name for name in saved if "lora" in name]
    assert torch.equal(saved["model.embed_tokens.weight"], embeddings), "the base stays"
    with pytest.raises(ValueError, match=r"peft\.LoraConfig has no field 'rank'"):
        train_reward_model(
            new_model(tokenizer), tokenizer, [], [], tmp_path / "none", {"use_cpu": True}, lora={"rank": 4}
        )


def test_accuracy_is_that_of_the_saved_model(trained: tuple[Path, dict[str, Any]]) -> None:
    output, metrics = trained
    reward, held_out = TrainedReward(output), red_over_blue(100, seed=2)
    chosen, rejected = (reward([[]] * 100, [pair[side] for pair in held_out]) for side in ("chosen", "rejected"))
    right = sum(a > b for a, b in zip(chosen, rejected, strict=True))
    assert metrics["accuracy"] == right / 100
    interval = binomtest(right, 100).proportion_ci(0.95, method="wilson")
    assert metrics["accuracy_interval"] == pytest.approx((interval.low, interval.high))


def test_directory_is_an_ordinary_one(trained: tuple[Path, dict[str, Any]]) -> None:
    output = trained[0]
    assert {path.name for path in output.parent.iterdir()} <= {"reward_model", "checkpoints"}, "nothing half-written"
    assert (output / "model.safetensors").is_file()
    tokenizer, model = AutoTokenizer.from_pretrained(output), AutoModelForSequenceClassification.from_pretrained(output)
    conversation = red_over_blue(1, seed=3)[0]["chosen"]
    ids = tokenizer(tokenizer.apply_chat_template(conversation, tokenize=False), return_tensors="pt")["input_ids"]
    with torch.no_grad():
        expected = float(model.eval()(ids).logits[0, 0])
    assert TrainedReward(output)([conversation[:1]], [conversation[1:]]) == [pytest.approx(expected, abs=1e-5)]


def test_explicit_and_implicit_prompts_are_the_same_pairs() -> None:
    pairs, tokenizer = red_over_blue(5, seed=4), tokenizer_of_tests()
    implicit = encode_pairs(tokenizer, pairs, None, "pairs")
    assert encode_pairs(tokenizer, [with_prompt(pair) for pair in pairs], None, "pairs") == implicit
    assert tokenizer.decode(implicit[0]["chosen_ids"]).count("red") == 1


def test_starts_from_a_policys_directory_in_silence(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    policy = small_policy(tmp_path / "policy")
    level = logging.get_verbosity()
    capfd.readouterr()
    metrics = train_reward_model(
        str(policy), load_tokenizer(policy), red_over_blue(32, 5), red_over_blue(8, 6), tmp_path / "out"
    )
    written = capfd.readouterr()
    assert written.out == ""
    assert "MISSING" not in written.err and "%|" not in written.err
    assert logging.get_verbosity() == level and logging.is_progress_bar_enabled()
    assert 0 <= metrics["accuracy"] <= 1


def test_evaluation_during_training_is_logged(tmp_path: Path) -> None:
    pairs = red_over_blue(64, seed=7)
    metrics = train(tmp_path / "out", pairs, pairs[:8], eval_strategy="epoch")
    assert any("eval_accuracy" in entry for entry in metrics["history"])


def test_max_length_goes_with_the_model_and_the_callers_tokenizer_stays(tmp_path: Path) -> None:
    tokenizer, pairs = tokenizer_of_tests(), red_over_blue(32, seed=8)
    tokenizer.pad_token = None
    model = new_model(tokenizer)
    train_reward_model(model, tokenizer, pairs, pairs, tmp_path / "out", {"max_length": 24, "use_cpu": True})
    reward = TrainedReward(tmp_path / "out")
    assert reward.max_length == 24
    assert reward.tokenizer.pad_token == tokenizer.eos_token
    assert (tokenizer.pad_token, tokenizer.model_max_length) == (None, 64)


def test_same_seed_same_model(tmp_path: Path) -> None:
    pairs = red_over_blue(64, seed=9)
    policy = small_policy(tmp_path / "policy")
    scores = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train_reward_model(str(policy), load_tokenizer(policy), pairs, pairs[:4], tmp_path / name, {"seed": seed})
        scores.append(TrainedReward(tmp_path / name)([[]] * 4, [pair["chosen"] for pair in pairs[:4]]))
    assert scores[0] == scores[1] != scores[2]


def test_a_tie_counts_half() -> None:
    class Fixed:
        def score_ids(self, conversations: list[list[int]]) -> list[float]:
            return [float(ids[0]) for ids in conversations]

    sides = [(2, 1), (1, 1), (1, 2), (3, 3)]
    pairs = [{"chosen_ids": [a], "rejected_ids": [b]} for a, b in sides]
    judged = module._judge(Fixed(), pairs)  # type: ignore[arg-type]
    assert judged["accuracy"] == (1 + 0.5 + 0 + 0.5) / 4


@pytest.mark.parametrize(("steps", "message"), [(3, r"loss is nan at step \d.*"), (1, "weight is not finite: ")])
def test_training_that_breaks_saves_nothing(tmp_path: Path, steps: int, message: str) -> None:
    """After one step, the loss was finite and only the weights are not."""
    output = tmp_path / "out"
    output.mkdir()
    (output / "earlier.txt").write_text("stays")
    pairs = red_over_blue(64, seed=10)
    settings = {"learning_rate": 1e39, "warmup_steps": 0, "logging_steps": 1, "max_steps": steps, "max_grad_norm": 0.0}
    with pytest.raises(ValueError, match=f"reward model's .*{message}.*lower learning_rate"):
        train(output, pairs, pairs, **settings)
    assert [path.name for path in output.iterdir()] == ["earlier.txt"]


def test_an_earlier_model_is_replaced_whole(tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "stale.txt").write_text("goes")
    pairs = red_over_blue(32, seed=11)
    train(output, pairs, pairs)
    assert not (output / "stale.txt").exists()
    assert (output / "model.safetensors").exists()


GOOD = red_over_blue(2, seed=12)


@pytest.mark.parametrize(
    ("pairs", "held_out", "message"),
    [
        ([], GOOD, "train_pairs has no pair"),
        (GOOD, [], "eval_pairs has no pair"),
        ([{**GOOD[0], "rejected": GOOD[0]["chosen"]}], GOOD, "train_pairs has no pair whose two sides differ"),
        ([GOOD[0], {"chosen": GOOD[0]["chosen"]}], GOOD, r"train_pairs\[1\] has nothing in 'rejected'"),
        (GOOD, [{"rejected": GOOD[0]["chosen"], "chosen": None}], r"eval_pairs\[0\] has nothing in 'chosen'"),
    ],
)
def test_pairs_are_checked_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pairs: list[Pair], held_out: list[Pair], message: str
) -> None:
    monkeypatch.setattr(module, "RewardTrainer", None)
    with pytest.raises(ValueError, match=message):
        train(tmp_path / "out", pairs, held_out)


def test_configuration_model_and_tokenizer_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no field 'learning_rat'; did you mean 'learning_rate'"):
        train(tmp_path, GOOD, GOOD, learning_rat=1)
    tokenizer = tokenizer_of_tests()
    with pytest.raises(ValueError, match="the model has 2 outputs"):
        train_reward_model(new_model(tokenizer, num_labels=2), tokenizer, GOOD, GOOD, tmp_path / "out")
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="has no chat template"):
        train_reward_model(new_model(tokenizer), tokenizer, GOOD, GOOD, tmp_path / "out")
