"""Log-probabilities of completions with shared prompts: the same numbers as the plain way gives."""

from __future__ import annotations

import pytest
import torch
from small import small_policy
from torch.nn import functional as F
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel

import rlobj.completions as completions
from rlobj.completions import Completions, TokenLogps, can_score, score
from rlobj.critic import watching
from rlobj.encoder_policy import action_logits, as_one_token_policy, different_prompts
from rlobj.policies import load_causal

PROMPTS = [[9, 8, 7, 6, 5], [9, 8], [7], [9, 8, 7, 6, 5], [7], [9, 8]]
REPLIES = [[11, 12, 13], [14], [15, 16, 17, 18], [19, 20], [21, 22, 23], [24, 25, 26, 27]]
SCORED = [[1, 0, 1], [1], [1, 1, 0, 1], [1, 1], [0, 1, 1], [1, 1, 1, 1]]


def padded(rows, left, fill=0, width=None):
    width = width or max(map(len, rows))
    pads = [[fill] * (width - len(row)) for row in rows]
    return torch.tensor([pad + row if left else row + pad for row, pad in zip(rows, pads, strict=True)])


def ones(rows):
    return [[1] * len(row) for row in rows]


def a_batch(prompts=PROMPTS):
    """With a column of padding on either side, as a micro-batch of a larger batch has."""
    return Completions(
        padded(prompts, True, width=6), padded(ones(prompts), True, width=6), padded(REPLIES, False, width=5),
        padded(ones(REPLIES), False, width=5), padded(SCORED, False, width=5),
    )  # fmt: skip


def naive(policy, prompts, temperature):
    """One row and one token at a time; (B, C) log-probabilities and entropies, 0 where nothing is scored."""
    logps, entropies = (torch.zeros(len(REPLIES), 5, dtype=torch.float64) for _ in range(2))
    for i, (prompt, reply, scored) in enumerate(zip(prompts, REPLIES, SCORED, strict=True)):
        every = (policy(torch.tensor([prompt + reply])).logits[0] / temperature).log_softmax(-1)
        for t, token in enumerate(reply):
            if scored[t]:
                row = every[len(prompt) + t - 1]
                logps[i, t], entropies[i, t] = row[token], -(row.exp() * row).sum()
    return logps, entropies


def gpt2():
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=300, n_embd=16, n_layer=1, n_head=2, bos_token_id=1, eos_token_id=1)
    return GPT2LMHeadModel(config).eval()


@pytest.fixture(scope="module")
def policies(tmp_path_factory):
    llama = load_causal(small_policy(tmp_path_factory.mktemp("policy"))).eval()
    return {"llama": llama.double(), "gpt2": gpt2().double()}


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("kept", [0, 2**26])
def test_scores_and_their_gradients_are_those_of_one_row_at_a_time(policies, kind, shared, kept, monkeypatch):
    monkeypatch.setattr(completions, "LOGITS_AT_ONCE", 1000)  # three tokens of 300 at a time
    monkeypatch.setattr(completions, "KEPT_PROBABILITIES", kept)
    policy, temperature = policies[kind], 0.7
    prompts = PROMPTS if shared else [[*prompt, 30 + i] for i, prompt in enumerate(PROMPTS)]
    assert can_score(policy)
    weights = torch.linspace(-1, 1, 60, dtype=torch.float64).view(2, 6, 5)
    gradients = []
    found = score(policy, a_batch(prompts), temperature)
    for logps, entropies in (found[:2], naive(policy, prompts, temperature)):
        policy.zero_grad()
        ((weights[0] * logps).sum() + (weights[1] * entropies).sum()).backward()
        gradients.append({name: p.grad.clone() for name, p in policy.named_parameters()})
    expected = naive(policy, prompts, temperature)
    # Llama's norms and rotations are in float32 whatever the weights are in
    close = {"rtol": 1e-4, "atol": 1e-6} if kind == "llama" else {"rtol": 1e-8, "atol": 1e-9}
    torch.testing.assert_close(found.logps, expected[0], **close)
    torch.testing.assert_close(found.entropies, expected[1], **close)
    for name, gradient in gradients[1].items():
        torch.testing.assert_close(gradients[0][name], gradient, **close, msg=name)


def test_states_are_those_before_each_token(policies):
    policy = policies["llama"]
    states = score(policy, a_batch()).states
    for i, (prompt, reply) in enumerate(zip(PROMPTS, REPLIES, strict=True)):
        every = policy.base_model(torch.tensor([prompt + reply])).last_hidden_state[0]
        torch.testing.assert_close(states[i, : len(reply)], every[len(prompt) - 1 : -1].detach(), rtol=1e-4, atol=1e-6)


def test_each_prompt_is_encoded_once_and_scored_tokens_alone_meet_the_vocabulary(policies, monkeypatch):
    policy, encoded, projected = policies["llama"], [], []
    hook = policy.base_model.register_forward_hook(
        lambda m, a, k, o: encoded.append(k["input_ids"].shape), with_kwargs=True
    )
    linear = F.linear
    monkeypatch.setattr(F, "linear", lambda x, *rest: (projected.append(x.shape), linear(x, *rest))[1])
    score(policy, a_batch())
    hook.remove()
    assert encoded == [(3, 5), (6, 3)], "three different prompts; completions but for their last token"
    assert projected[-1][0] == sum(map(sum, SCORED))


def test_a_prompt_that_begins_with_the_pad_token_is_not_the_shorter_one():
    ids, mask = torch.tensor([[0, 5], [0, 5]]), torch.tensor([[1, 1], [0, 1]])
    prompts, present, rows = different_prompts(ids, mask)
    assert rows.tolist() != [0, 0] and len(prompts) == 2
    assert present[rows].tolist() == mask.tolist()


def test_gradients_of_token_logps_in_float64():
    torch.manual_seed(0)
    leaves = [torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((5, 4), (7, 4), (7,))]
    targets = torch.tensor([0, 6, 3, 3, 1])
    assert torch.autograd.gradcheck(lambda *x: TokenLogps.apply(*x, targets, 0.5, torch.float64), leaves)


def test_logits_that_are_scaled_are_left_to_trl():
    policy = gpt2()
    policy.config.final_logit_softcapping = 30.0
    assert not can_score(policy)


def test_an_encoder_reads_equal_texts_once():
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, num_labels=4
    )
    policy = as_one_token_policy(BertForSequenceClassification(config).eval().double())
    ids, mask = padded(PROMPTS, True), padded(ones(PROMPTS), True)
    expected = torch.cat([policy(input_ids=torch.tensor([prompt])).logits for prompt in PROMPTS])
    encoded = []
    hook = policy.bert.encoder.register_forward_pre_hook(lambda _, args: encoded.append(len(args[0])))
    with watching(policy) as seen:
        torch.testing.assert_close(action_logits(policy, ids, mask), expected)
    hook.remove()
    assert encoded == [3] and len(seen.states) == len(PROMPTS)
    actions = torch.tensor([[0], [1], [2], [3], [0], [1]])
    scores = score(policy, Completions(ids, mask, actions, torch.ones_like(actions), torch.ones_like(actions)), 0.5)
    logps = (expected.float() / 0.5).log_softmax(-1)
    torch.testing.assert_close(scores.logps, logps.gather(1, actions))
    torch.testing.assert_close(scores.entropies[:, 0], torch.distributions.Categorical(logits=logps).entropy())
