"""A trained reward model as a reward: what it reads, and that batches change no score."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, LlamaConfig, LlamaForSequenceClassification
from trl import GRPOTrainer

from reward_models import TrainedReward
from rlobj.policies import load_causal, load_tokenizer, make_encoder, make_tokenizer
from tests.small import TEXTS, small_args, small_policy, small_prompts

CONTEXT = 48


def tokenizer_of_tests() -> Any:
    return make_tokenizer(TEXTS, vocab_size=300, max_length=CONTEXT)


def causal_model(tokenizer: Any, num_labels: int = 1) -> LlamaForSequenceClassification:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=CONTEXT, num_labels=num_labels, initializer_range=0.3, bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return LlamaForSequenceClassification(config)


def encoder_model(tokenizer: Any) -> Any:
    model = make_encoder(tokenizer, ["score"], hidden_size=16, layers=2, heads=2, max_length=CONTEXT, seed=0)
    with torch.no_grad():
        for weights in model.parameters():
            if weights.ndim == 2:
                weights *= 15  # BERT's small initial weights give all texts nearly one score
    return model


@pytest.fixture(scope="module", params=[causal_model, encoder_model], ids=["causal", "encoder"])
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("reward")
    tokenizer = tokenizer_of_tests()
    request.param(tokenizer).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def save_causal(directory: Path, change: Callable[[Any], None] = lambda tokenizer: None, num_labels: int = 1) -> Path:
    tokenizer = tokenizer_of_tests()
    causal_model(tokenizer, num_labels).save_pretrained(directory)
    change(tokenizer)
    tokenizer.save_pretrained(directory)
    return directory


def episodes(*answers: str) -> tuple[list[Any], list[Any]]:
    prompt = [{"role": "user", "content": "where is the cat"}]
    return [prompt] * len(answers), [[{"role": "assistant", "content": answer}] for answer in answers]


def score_of_ids(directory: Path, ids: list[int]) -> float:
    """The plain way: one row without padding or mask."""
    model = AutoModelForSequenceClassification.from_pretrained(directory).eval()
    with torch.no_grad():
        return float(model(torch.tensor([ids])).logits[0, 0])


def rendered(directory: Path, prompt: Any, completion: Any) -> list[int]:
    ids = load_tokenizer(directory).apply_chat_template([*prompt, *completion], tokenize=True)
    return list(ids["input_ids"] if hasattr(ids, "keys") else ids)


ANSWERS = ("a", "the red door", "a dog ran to the red door", "", "the cat sat", "a", "boat now the blue")


def test_scores_are_those_of_each_conversation_alone(saved: Path) -> None:
    prompts, completions = episodes(*ANSWERS)
    expected = [score_of_ids(saved, rendered(saved, *each)) for each in zip(prompts, completions, strict=True)]
    assert max(expected) - min(expected) > 0.01, "scores differ, so that a mixed-up order is seen"
    for size in (1, 40, 4096):
        scores = TrainedReward(saved, max_tokens=size)(prompts=prompts, completions=completions, success=[True] * 7)
        assert scores == pytest.approx(expected, abs=1e-5)


def watch(reward: TrainedReward) -> list[tuple[int, ...]]:
    """Lengths of the conversations of each forward pass, as they come."""
    widths: list[tuple[int, ...]] = []
    reward.model.register_forward_pre_hook(
        lambda module, args, kwargs: widths.append(tuple(kwargs["attention_mask"].sum(1).tolist())), with_kwargs=True
    )
    return widths


SOME = ("the red door", "a", "the cat sat on the mat", "a", "the red door", "a dog ran to the red door")


def test_each_conversation_is_scored_once_in_batches_of_like_length(saved: Path) -> None:
    reward = TrainedReward(saved)
    widths = watch(reward)
    reward(*episodes(*SOME))
    (lengths,) = widths
    assert len(lengths) == 4, "four that differ, of six"
    assert list(lengths) == sorted(lengths)
    widths.clear()
    reward.max_tokens = 2 * max(lengths)
    reward(*episodes(*SOME))
    assert all(len(batch) * max(batch) <= reward.max_tokens for batch in widths)
    assert sorted(n for batch in widths for n in batch) == sorted(lengths)
    assert 1 < len(widths) < 4


def test_where_memory_runs_out_the_batches_become_smaller(
    saved: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    reward = TrainedReward(saved)
    expected = reward(*episodes(*SOME))
    forward = reward.model.forward

    def small_memory(input_ids: torch.Tensor, **inputs: Any) -> Any:
        if len(input_ids) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(input_ids=input_ids, **inputs)

    monkeypatch.setattr(reward.model, "forward", small_memory)
    monkeypatch.setattr(torch.accelerator, "empty_cache", lambda: None)
    assert reward(*episodes(*SOME)) == pytest.approx(expected, abs=1e-5)
    assert "out of memory" in caplog.text


def test_bfloat16_agrees_to_two_digits(saved: Path) -> None:
    prompts, completions = episodes(*ANSWERS)
    exact = torch.tensor(TrainedReward(saved)(prompts, completions))
    coarse = TrainedReward(saved, dtype="bfloat16")
    assert next(coarse.model.parameters()).dtype == torch.bfloat16
    assert torch.allclose(torch.tensor(coarse(prompts, completions)), exact, atol=0.05, rtol=0.05)
    assert TrainedReward(saved, dtype="auto").model.dtype in (torch.bfloat16, torch.float32)
    with pytest.raises(ValueError, match="dtype is 'int8'"):
        TrainedReward(saved, dtype="int8")


def test_too_long_conversation_keeps_its_end(saved: Path) -> None:
    reward = TrainedReward(saved)
    long = [{"role": "user", "content": "the cat sat " * CONTEXT}]
    other = [{"role": "user", "content": "a dog ran " * CONTEXT + "the cat sat " * CONTEXT}]
    (_, completions) = episodes("the red door", "the blue boat", "the red door")
    first, second, third = reward([long, long, other], completions)
    ids = rendered(saved, long, completions[0])
    assert len(ids) > CONTEXT
    assert first == pytest.approx(score_of_ids(saved, ids[-CONTEXT:]), abs=1e-5)
    assert third == first, "what differs is out of sight"
    assert abs(first - second) > 1e-4, "the end is in sight"


def test_the_tokenizers_limit_counts_if_it_is_lower(tmp_path: Path) -> None:
    save_causal(tmp_path, lambda tokenizer: setattr(tokenizer, "model_max_length", 20))
    assert TrainedReward(tmp_path).max_length == 20
    save_causal(tmp_path, lambda tokenizer: setattr(tokenizer, "model_max_length", 10**30))
    assert TrainedReward(tmp_path).max_length == CONTEXT


def test_texts_are_joined_as_they_are(saved: Path) -> None:
    ids = load_tokenizer(saved)("the cat sat on the mat", add_special_tokens=False)["input_ids"]
    assert TrainedReward(saved)(["the cat sat"], [" on the mat"]) == [pytest.approx(score_of_ids(saved, ids), abs=1e-5)]


def test_text_with_messages_and_nothing_are_errors(saved: Path) -> None:
    reward = TrainedReward(saved)
    with pytest.raises(TypeError, match="prompt is str, completion list"):
        reward(["the cat"], episodes("a")[1])
    with pytest.raises(ValueError, match="conversation is empty"):
        reward([""], [""])
    assert reward([], []) == []


def test_padding_with_the_end_token_changes_no_score(tmp_path: Path) -> None:
    """Many tokenizers have no pad token; then the last token that is not the end token decides, padded or not."""
    save_causal(tmp_path, lambda tokenizer: setattr(tokenizer, "pad_token", None))
    reward = TrainedReward(tmp_path)
    assert reward.tokenizer.pad_token == reward.tokenizer.eos_token
    prompts, completions = episodes(*ANSWERS)
    alone = [reward([p], [c])[0] for p, c in zip(prompts, completions, strict=True)]
    assert reward(prompts, completions) == pytest.approx(alone, abs=1e-5)


def test_several_outputs_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has 3 outputs: expected one of LABEL_0, LABEL_1, LABEL_2"):
        TrainedReward(save_causal(tmp_path, num_labels=3))


def test_random_head_is_an_error_and_no_print(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    small_policy(tmp_path)
    model = load_causal(tmp_path)
    model.config.num_labels = 1
    model.save_pretrained(tmp_path)
    capfd.readouterr()
    with pytest.raises(ValueError, match=r"lacks the weights \['score.weight'\]: a random head is no reward"):
        TrainedReward(tmp_path)
    assert capfd.readouterr() == ("", "")


def test_tokenizer_without_template_or_padding_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no chat template: set tokenizer"):
        TrainedReward(save_causal(tmp_path / "a", lambda tokenizer: setattr(tokenizer, "chat_template", None)))

    def bare(tokenizer: Any) -> None:
        tokenizer.pad_token = tokenizer.eos_token = None

    with pytest.raises(ValueError, match="neither pad_token nor eos_token"):
        TrainedReward(save_causal(tmp_path / "b", bare))


def test_pickled_weights_are_not_read(tmp_path: Path) -> None:
    save_causal(tmp_path)
    weights = causal_model(tokenizer_of_tests()).state_dict()
    (tmp_path / "model.safetensors").unlink()
    torch.save(weights, tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        TrainedReward(tmp_path)


def test_batch_size_is_checked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="max_tokens is 0"):
        TrainedReward(tmp_path, max_tokens=0)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")  # the older name, in TRL itself
def test_is_a_reward_of_trls_trainer(tmp_path: Path) -> None:
    policy, directory = small_policy(tmp_path / "policy"), save_causal(tmp_path / "my-reward")
    seen: list[float] = []

    class Seen(TrainedReward):
        def __call__(self, *args: Any, **columns: Any) -> list[float]:
            scores = super().__call__(*args, **columns)
            seen.extend(scores)
            return scores

    reward = Seen(directory)
    trainer = GRPOTrainer(
        load_causal(policy), reward_funcs=reward, args=small_args(tmp_path / "out", max_steps=1),
        train_dataset=small_prompts(), processing_class=load_tokenizer(policy),
    )  # fmt: skip
    trainer.train()
    log = next(entry for entry in trainer.state.log_history if "rewards/my-reward/mean" in entry)
    assert log["rewards/my-reward/mean"] == pytest.approx(sum(seen) / len(seen), abs=1e-5)
    assert len(seen) >= 8
