"""A classifier as a policy of one token."""

from __future__ import annotations

import copy

import gymnasium
import pytest
import torch
from small import small_args

import envs  # noqa: F401
from envs.vector import TextVectorEnv
from rlobj.encoder_policy import action_logits, as_one_token_policy, train_head_only
from rlobj.evaluation import evaluate
from rlobj.policies import load_encoder, make_encoder, make_tokenizer, save_policy
from rlobj.rollout import Sampling, encode_text, factory_of, play
from rlobj.supervised import label_rows, supervised_loss_sum, supervised_losses, warm_start
from rlobj.trainer import ObjectiveTrainer

WORDS = ["red", "green", "blue"]
TEXTS = [f"{a} {b} the box is {c}" for a in ("so", "well", "now") for b in ("then", "here") for c in WORDS]
LABELS = [text.split()[-1] for text in TEXTS]


@pytest.fixture
def policy():
    tokenizer = make_tokenizer(TEXTS, 400, 64)
    size = {"hidden_size": 32, "layers": 1, "heads": 2, "max_length": 64, "seed": 0}
    model = as_one_token_policy(make_encoder(tokenizer, WORDS, **size))
    return model.eval(), tokenizer


@pytest.fixture
def env():
    kwargs = {"texts": TEXTS, "labels": LABELS, "label_names": WORDS}
    return gymnasium.make("rlobj/Classification-v0", disable_env_checker=True, **kwargs)


def test_padding_on_either_side_changes_no_logit(policy):
    model, tokenizer = policy
    rows = [encode_text(tokenizer, [{"role": "user", "content": t}], 64) for t in ("red", TEXTS[0])]
    width = max(map(len, rows))
    left = torch.tensor([[0] * (width - len(r)) + r for r in rows])
    mask = torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in rows])
    logits = action_logits(model, left, mask)
    for row, expected in zip(rows, logits, strict=True):
        alone = model(input_ids=torch.tensor([row])).logits[0]
        torch.testing.assert_close(alone, expected, rtol=1e-4, atol=1e-5)


def test_rollout_samples_from_the_label_distribution(policy, env):
    model, tokenizer = policy
    torch.manual_seed(0)
    n = 600
    result = play(model, tokenizer, TextVectorEnv(factory_of(env), n), [4] * n, Sampling())
    ids = torch.tensor([result.trajectories[0].prompt_ids])
    p = action_logits(model, ids, torch.ones_like(ids)).softmax(-1)[0].detach()
    counts = torch.bincount(torch.tensor([t.completion_ids[0] for t in result.trajectories]), minlength=3) / n
    assert torch.all((counts - p).abs() < 4 * (p * (1 - p) / n).sqrt())
    assert result.trajectories[0].logps[0] == pytest.approx(float(p.log()[result.trajectories[0].completion_ids[0]]))


def test_learns_from_the_reward_of_the_chosen_label_alone(policy, env, tmp_path):
    model, tokenizer = policy
    before = evaluate(model, tokenizer, factory_of(env), None, Sampling(), range(len(TEXTS)), [], None)
    fields = {"max_steps": 120, "per_device_train_batch_size": 48, "num_generations": 8, "learning_rate": 2e-3}
    trainer = ObjectiveTrainer(
        model,
        args=small_args(tmp_path, **fields, disable_dropout=True),
        processing_class=tokenizer,
        env=env,
        train_seeds=[i % len(TEXTS) for i in range(120 * 6)],
    )
    trainer.train()
    after = evaluate(model, tokenizer, factory_of(env), None, Sampling(), range(len(TEXTS)), [], None)
    assert before.metrics["accuracy"][0] < 0.7
    assert after.metrics["accuracy"][0] > 0.9
    assert after.metrics["success"][1] > before.metrics["success"][2], "95% intervals apart"


def test_surrogate_gradient_is_the_policy_gradient(policy, env, tmp_path):
    """First step on policy: ∇ of TRL's surrogate equals Σ A ∇log π(a|x) / N, computed from the logits by hand."""
    model, tokenizer = policy
    by_hand = copy.deepcopy(model)
    seen = {}
    fields = {"max_steps": 1, "per_device_train_batch_size": 12, "num_generations": 6, "max_grad_norm": 0.0}
    trainer = ObjectiveTrainer(
        model,
        args=small_args(tmp_path, **fields, loss_type="grpo", scale_rewards="none", disable_dropout=True),
        processing_class=tokenizer,
        env=env,
        train_seeds=[0, 1],
        probe_every=0,
    )
    rollout = trainer.rollout_func

    def watched(prompts, trainer):
        seen.update(rollout(prompts, trainer))
        return seen

    trainer.rollout_func = watched
    grads = {}
    original = trainer.accelerator.backward

    def backward(loss, **kwargs):
        original(loss, **kwargs)
        grads.update({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})

    trainer.accelerator.backward = backward
    trainer.train()
    returns = torch.tensor(seen["episode_return"])
    assert returns.std() > 0
    advantages = (returns.view(2, 6) - returns.view(2, 6).mean(1, keepdim=True)).flatten()
    loss = torch.zeros(())
    for ids, action, advantage in zip(seen["prompt_ids"], seen["completion_ids"], advantages, strict=True):
        logps = by_hand(input_ids=torch.tensor([ids])).logits.log_softmax(-1)[0]
        loss = loss - advantage * logps[action[0]] / len(advantages)
    loss.backward()
    for name, parameter in by_hand.named_parameters():
        torch.testing.assert_close(grads[name], parameter.grad, rtol=1e-3, atol=1e-6)


def test_supervised_loss_is_cross_entropy_of_the_label(policy):
    model, tokenizer = policy
    rows = label_rows(tokenizer, TEXTS[:4], [WORDS.index(x) for x in LABELS[:4]], 64)
    for row, loss, label in zip(rows, supervised_losses(model, rows), LABELS, strict=False):
        logits = model(input_ids=torch.tensor([row.input_ids])).logits[0]
        assert loss == pytest.approx(-logits.log_softmax(-1)[WORDS.index(label)].item(), abs=1e-5)


def test_saved_policy_is_an_ordinary_classifier(policy, tmp_path):
    from transformers import AutoModelForSequenceClassification

    model, tokenizer = policy
    save_policy(model, tokenizer, tmp_path / "p")
    ordinary = AutoModelForSequenceClassification.from_pretrained(tmp_path / "p")
    assert type(ordinary).__name__ == "BertForSequenceClassification"
    assert ordinary.config.id2label == dict(enumerate(WORDS))
    with pytest.raises(ValueError, match="decides between 3 labels, the data between 2"):
        load_encoder(tmp_path / "p", ["a", "b"])


def test_of_a_head_alone_no_text_is_encoded_twice_and_nothing_else_changes(policy):
    model, tokenizer = policy
    rows = label_rows(tokenizer, TEXTS, [WORDS.index(label) for label in LABELS], 64)
    width = max(len(row.input_ids) for row in rows)
    left = torch.tensor([[0] * (width - len(row.input_ids)) + row.input_ids for row in rows])
    mask = torch.tensor([[0] * (width - len(row.input_ids)) + [1] * len(row.input_ids) for row in rows])
    losses, logits = supervised_losses(model, rows), action_logits(model, left, mask)
    with_action = torch.cat([left, left[:, :1]], 1), torch.cat([mask, mask[:, :1]], 1)
    state = model.base_model(*with_action).last_hidden_state

    train_head_only(model)
    encoded = []
    hook = model.bert.register_forward_hook(lambda *args: encoded.append(len(args[2].pooler_output)))
    for _ in range(2):
        assert supervised_losses(model, rows) == pytest.approx(losses, abs=1e-5)
        torch.testing.assert_close(action_logits(model, left, mask), logits, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model.base_model(*with_action).last_hidden_state, state, rtol=1e-4, atol=1e-5)
    again = train_head_only(copy.deepcopy(model))
    with torch.no_grad():
        again.classifier.bias += 1  # another head, the same encoder
    torch.testing.assert_close(action_logits(again, left, mask), logits + 1, rtol=1e-4, atol=1e-5)
    assert sum(encoded) == len(rows), "each text once"
    hook.remove()
    supervised_loss_sum(model.train(), rows, model).backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None} == {
        "classifier.weight",
        "classifier.bias",
    }
    assert model.training


def test_another_encoder_keeps_states_of_its_own(policy):
    model, tokenizer = policy
    rows = label_rows(tokenizer, TEXTS, [0] * len(TEXTS), 64)
    other = as_one_token_policy(
        make_encoder(tokenizer, WORDS, hidden_size=32, layers=1, heads=2, max_length=64, seed=1)
    ).eval()
    expected = supervised_losses(other, rows)
    supervised_losses(train_head_only(model), rows)
    assert supervised_losses(train_head_only(other), rows) == pytest.approx(expected, abs=1e-5)


def test_a_kept_state_does_not_depend_on_what_else_was_asked(policy):
    """To the last bit: a run that goes on in another process encodes its texts in another company."""
    model, tokenizer = policy
    alone, together = (train_head_only(copy.deepcopy(model)) for _ in range(2))
    together._kept_states = type(together._kept_states)()
    rows = label_rows(tokenizer, TEXTS, [0] * len(TEXTS), 64)
    batch = supervised_losses(together, rows)
    assert [supervised_losses(alone, [row])[0] for row in reversed(rows)] == batch[::-1]


def test_states_are_of_an_encoder_and_how_it_computes(policy):
    model, tokenizer = policy
    other = as_one_token_policy(
        make_encoder(tokenizer, WORDS, hidden_size=32, layers=1, heads=4, max_length=64, seed=0)
    ).eval()
    other.load_state_dict(model.state_dict())
    half = copy.deepcopy(model).bfloat16()
    first, *others = (train_head_only(each)._kept_states for each in (model, other, half))
    assert first not in others


@pytest.mark.parametrize("head_only", [False, True])
def test_a_step_of_the_warm_start_is_the_same_in_parts(policy, tmp_path, head_only):
    """transformers adds up what each part of a step says as if it were divided by the labels of all."""
    model, tokenizer = policy
    rows = label_rows(tokenizer, TEXTS, [WORDS.index(label) for label in LABELS], 64)
    found = []
    for name, parts in (("whole", 1), ("parts", 3)):
        each = copy.deepcopy(model)
        if head_only:
            train_head_only(each)
        for module in each.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0  # drawn part by part
        trl = {"gradient_accumulation_steps": parts, "optim": "sgd", "warmup_steps": 0, "logging_steps": 1}
        directory, size = tmp_path / name, 9 // parts
        log = warm_start(
            each, tokenizer, rows, directory, epochs=1, learning_rate=0.1, batch_size=size, seed=0, trl=trl
        )
        found.append((log[0]["loss"], log[0]["grad_norm"], each.get_output_embeddings().weight.detach()))
    (loss, norm, weight), (loss_in_parts, norm_in_parts, weight_in_parts) = found
    assert loss_in_parts == pytest.approx(loss, rel=1e-5)
    assert norm_in_parts == pytest.approx(norm, rel=1e-3)
    torch.testing.assert_close(weight_in_parts, weight)
