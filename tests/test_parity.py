"""What must be true of the mathematics, against TRL itself."""

from __future__ import annotations

import copy
import math
import os
import subprocess
import sys
from pathlib import Path

import gymnasium
import pytest
import torch
from datasets import Dataset
from small import fixed_reward, fixed_rollout, small_args, small_policy, small_prompts, small_rows, zero_reward
from transformers import AutoModelForCausalLM, TrainerCallback
from trl import GRPOTrainer, SFTConfig, SFTTrainer
from trl.import_utils import is_vllm_available

import envs  # noqa: F401
import rlobj.gradient_probe
from rlobj.callbacks import TrainingDiverged
from rlobj.gradient_probe import LambdaIsDead
from rlobj.policies import load_tokenizer
from rlobj.stream import SupervisedStream
from rlobj.trainer import ObjectiveTrainer
from rlobj.trainer_checks import SUPPORTED_LOSS_TYPES


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return small_policy(tmp_path_factory.mktemp("policy"))


def trained(trainer):
    trainer.train()
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


def ours(policy, tmp_path, reward=fixed_reward, lambda_sup=0.0, args=None, rows=True, **kwargs):
    tokenizer = load_tokenizer(policy)
    return ObjectiveTrainer(
        str(policy),
        reward,
        small_args(tmp_path, **(args or {})),
        small_prompts(),
        rollout_func=fixed_rollout,
        processing_class=tokenizer,
        lambda_sup=lambda_sup,
        supervised=small_rows(tokenizer) if rows else None,
        supervised_batch_size=6,
        **kwargs,
    )


@pytest.mark.parametrize("fields", [{}, {"beta": 0.1}, {"num_iterations": 2}, {"gradient_accumulation_steps": 2}])
def test_lambda_zero_equals_grpo_trainer_to_the_last_bit(policy, tmp_path, fields):
    tokenizer = load_tokenizer(policy)
    theirs = trained(
        GRPOTrainer(
            str(policy),
            fixed_reward,
            small_args(tmp_path / "a", **fields),
            small_prompts(),
            rollout_func=fixed_rollout,
            processing_class=tokenizer,
        )
    )
    for rows in (False, True):  # ℓ that is only watched must change nothing
        plain = {"probe_every": 1, "encode_prompts_once": False}
        mine = trained(ours(policy, tmp_path / f"b{rows}", args=fields, rows=rows, **plain))
        assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    start = AutoModelForCausalLM.from_pretrained(policy)
    assert any(not torch.equal(p, theirs[n]) for n, p in start.named_parameters()), "the runs learned nothing"


def test_the_entropy_bonus_of_a_whole_batch_is_that_of_grpo_trainer(policy, tmp_path):
    fields = {"entropy_coef": 0.5, "max_steps": 1, "max_grad_norm": 0.0}
    tokenizer = load_tokenizer(policy)
    args, kwargs = small_args(tmp_path / "a", **fields), {"rollout_func": fixed_rollout, "processing_class": tokenizer}
    theirs = first_gradient(GRPOTrainer(str(policy), fixed_reward, args, small_prompts(), **kwargs))
    mine = first_gradient(ours(policy, tmp_path / "b", args=fields))
    without = first_gradient(ours(policy, tmp_path / "c", args={**fields, "entropy_coef": 0.0}))
    for name in theirs:
        torch.testing.assert_close(mine[name], theirs[name], rtol=1e-4, atol=1e-6)
    assert any(not torch.allclose(mine[name], without[name], rtol=1e-2) for name in mine)


@pytest.mark.parametrize("fields", [{}, {"beta": 0.1}, {"gradient_accumulation_steps": 2}, {"temperature": 0.5}])
def test_encoding_prompts_once_changes_nothing_but_rounding(policy, tmp_path, fields):
    fields = {**fields, "entropy_coef": 0.1}
    theirs, mine = (
        first_gradient(ours(policy, tmp_path / str(once), args=fields, encode_prompts_once=once))
        for once in (False, True)
    )
    assert any(not torch.equal(mine[name], theirs[name]) for name in theirs), "another way through the policy"
    for name, gradient in theirs.items():
        torch.testing.assert_close(mine[name], gradient, rtol=1e-4, atol=1e-6)


class _Gradients(TrainerCallback):
    """Catches the gradient of the first optimiser step, before it is clipped, if it is."""

    def __init__(self, trainer):
        self.grads = {}
        clip = trainer._clip_grad_norm

        def catch(model):
            self._keep(model)
            return clip(model)

        trainer._clip_grad_norm = catch
        trainer.add_callback(self)

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self._keep(model)

    def _keep(self, model):
        if not self.grads:
            self.grads = {n.removeprefix("module."): p.grad.detach().clone() for n, p in model.named_parameters()}


def first_gradient(trainer):
    caught = _Gradients(trainer)
    trainer.train()
    assert any((gradient != 0).any() for gradient in caught.grads.values()), "nothing was caught"
    return caught.grads


def test_zero_reward_and_lambda_one_give_the_gradient_of_sft_trainer(policy, tmp_path):
    tokenizer = load_tokenizer(policy)
    mine = first_gradient(ours(policy, tmp_path / "a", zero_reward, 1.0, {"max_steps": 1}))
    rows = SupervisedStream(small_rows(tokenizer), 6, seed=3).batch(0).rows
    sft = SFTTrainer(
        str(policy),
        SFTConfig(
            str(tmp_path / "b"),
            per_device_train_batch_size=6,
            max_steps=1,
            report_to="none",
            bf16=False,
            use_cpu=True,
            gradient_checkpointing=False,
            max_length=None,
            disable_tqdm=True,
            save_strategy="no",
            dataset_kwargs={"skip_prepare_dataset": True},
            remove_unused_columns=False,
        ),
        train_dataset=Dataset.from_list([row._asdict() for row in rows]),
        processing_class=tokenizer,
    )
    theirs = first_gradient(sft)
    for name in theirs:
        torch.testing.assert_close(mine[name], theirs[name], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("loss_type", SUPPORTED_LOSS_TYPES)
def test_splitting_the_batch_changes_nothing(policy, tmp_path, loss_type):
    fields = {"loss_type": loss_type, "max_steps": 1, "max_grad_norm": 0.0, "beta": 0.05, "entropy_coef": 0.1}
    if loss_type == "luspo":
        fields["importance_sampling_level"] = "sequence"
    # whole groups in one generation batch of 16, cut into 1, 2 and 4 micro-batches; 7 supervised rows divide by none
    gradients = []
    for accumulation in (1, 2, 4):
        split = {
            **fields,
            "per_device_train_batch_size": 16 // accumulation,
            "gradient_accumulation_steps": accumulation,
        }
        trainer = ours(policy, tmp_path / str(accumulation), lambda_sup=0.7, args=split)
        trainer.stream = SupervisedStream(trainer.stream.rows, 7, seed=1)
        gradients.append(first_gradient(trainer))
    for other in gradients[1:]:
        for name in other:
            torch.testing.assert_close(gradients[0][name], other[name], rtol=1e-4, atol=1e-6)


def test_gradient_of_the_sum_is_the_sum_of_gradients(policy, tmp_path):
    args = {"max_steps": 1, "max_grad_norm": 0.0}
    reward_only = first_gradient(ours(policy, tmp_path / "r", lambda_sup=0.0, args=args))
    supervised_only = first_gradient(ours(policy, tmp_path / "s", zero_reward, 1.0, args))
    both = first_gradient(ours(policy, tmp_path / "b", lambda_sup=0.3, args=args))
    for name in both:
        torch.testing.assert_close(both[name], reward_only[name] + 0.3 * supervised_only[name], rtol=1e-4, atol=1e-6)


def test_prompts_environment_tokens_and_padding_are_in_no_loss(policy, tmp_path):
    trainer = ours(policy, tmp_path, lambda_sup=0.0, args={"max_steps": 1, "beta": 0.1}, rows=False)
    seen = []
    original = trainer._get_per_token_logps_and_entropies

    def watched(*args, **kwargs):
        logps, *rest = original(*args, **kwargs)
        if logps.requires_grad:
            logps.retain_grad()
            seen.append(logps)
        return (logps, *rest)

    trainer._get_per_token_logps_and_entropies = watched
    inputs = {}
    compute = trainer._compute_loss
    trainer._compute_loss = lambda model, batch: (inputs.update(batch), compute(model, batch))[1]
    trainer.train()
    counted = (inputs["completion_mask"] * inputs["tool_mask"]).bool()
    assert seen[0].shape == counted.shape, "log-probabilities of completions alone: prompts have none"
    assert (~counted).any() and (seen[0].grad[~counted] == 0).all()
    assert (seen[0].grad[counted] != 0).any()


def test_supervised_loss_is_cross_entropy_on_assistant_tokens(policy):
    from rlobj.supervised import supervised_loss_sum, supervised_losses

    tokenizer = load_tokenizer(policy)
    model = AutoModelForCausalLM.from_pretrained(policy)
    rows = small_rows(tokenizer, 3)
    expected = 0.0
    for row in rows:  # naive: one row, one token at a time
        logps = model(torch.tensor([row.input_ids])).logits[0].log_softmax(-1)
        expected -= sum(logps[t - 1, y].item() for t, y in enumerate(row.labels) if y != -100)
    assert supervised_loss_sum(model, rows, model).item() == pytest.approx(expected, rel=1e-5)
    per_row = supervised_losses(model, rows)
    assert sum(x * r.targets for x, r in zip(per_row, rows, strict=True)) == pytest.approx(expected, rel=1e-5)


def test_chords_token_weights_are_a_constant_p_times_1_minus_p(policy):
    from rlobj.supervised import supervised_loss_sum

    model = AutoModelForCausalLM.from_pretrained(policy)
    rows = small_rows(load_tokenizer(policy), 3)
    supervised_loss_sum(model, rows, model, "chord").backward()
    gradient = model.lm_head.weight.grad.clone()
    model.zero_grad()
    for row in rows:  # naive: one row, one token at a time
        logps = model(torch.tensor([row.input_ids])).logits[0].log_softmax(-1)
        targets = [(t, y) for t, y in enumerate(row.labels) if y != -100]
        p = [logps[t - 1, y].item() for t, y in targets]
        sum(-math.exp(x) * (1 - math.exp(x)) * logps[t - 1, y] for x, (t, y) in zip(p, targets, strict=True)).backward()
    torch.testing.assert_close(model.lm_head.weight.grad, gradient, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_surgery_adds_its_correction_to_the_one_gradient_that_is_clipped(policy, tmp_path, monkeypatch, accumulation):
    batch = {"per_device_train_batch_size": 8 // accumulation, "gradient_accumulation_steps": accumulation}
    args = {"max_steps": 1, "optim": "sgd", "learning_rate": 1.0, "max_grad_norm": 0.0, **batch}
    seen = []

    def correction(grad_R, grad_ell, lambda_sup):
        seen.append((grad_R, grad_ell, lambda_sup))
        return torch.full_like(grad_R, 0.01)

    monkeypatch.setattr(rlobj.gradient_probe, "surgery_correction", correction)
    plain = ours(policy, tmp_path / "plain", lambda_sup=0.5, args=args)
    plain.train()
    cut = ours(policy, tmp_path / "cut", lambda_sup=0.5, surgery="pcgrad", args=args)
    before = torch.cat([p.detach().flatten() for p in cut.model.parameters()]).clone()
    cut.train()
    after = [torch.cat([p.detach().flatten() for p in each.model.parameters()]) for each in (plain, cut)]
    torch.testing.assert_close(after[0] - after[1], torch.full_like(before, 0.01), atol=1e-5, rtol=1e-4)
    ((grad_R, grad_ell, lambda_sup),) = seen
    torch.testing.assert_close(before - after[0], -grad_R + lambda_sup * grad_ell, atol=1e-5, rtol=1e-3)
    logged = [each.state.log_history[0]["loss"] for each in (plain, cut)]
    assert logged[0] == pytest.approx(logged[1], abs=1e-5)


def test_a_bound_on_l_and_weights_of_its_tokens_do_not_go_together(policy, tmp_path):
    with pytest.raises(ValueError, match="one of the unweighted ℓ"):
        ours(policy, tmp_path, lambda_sup="lagrange:factor=1.1", token_weights="chord")


def test_dead_lambda_is_an_error_at_the_first_step(policy, tmp_path):
    with pytest.raises(LambdaIsDead, match="changes no gradient"):
        ours(policy, tmp_path, lambda_sup=1e-30).train()
    with pytest.raises(ValueError, match="no supervised rows"):
        ours(policy, tmp_path, lambda_sup=0.1, rows=False)
    with pytest.raises(ValueError, match="bnpo"):
        ours(policy, tmp_path, args={"loss_type": "bnpo"})


def test_lambda_and_gradient_balance_are_logged(policy, tmp_path):
    trainer = ours(policy, tmp_path, lambda_sup=0.5, probe_every=1)
    trainer.train()
    first = trainer.state.log_history[0]
    assert first["objective/lambda_sup"] == 0.5
    assert first["gradient/ratio"] == pytest.approx(0.5 * first["gradient/norm_ell"] / first["gradient/norm_R"])
    assert -1 <= first["gradient/cosine"] <= 1
    assert first["objective/L"] == pytest.approx(-first["objective/return"] + 0.5 * first["objective/ell"])


def test_a_gradient_that_is_not_finite_never_reaches_the_weights(policy, tmp_path):
    trainer = ours(policy, tmp_path, lambda_sup=0.5, max_bad_steps=2, args={"max_steps": 4})
    before = copy.deepcopy(trainer.model.state_dict())
    trainer.supervised_loss = lambda model: torch.tensor(math.nan) * next(model.parameters()).sum()
    with pytest.raises(TrainingDiverged, match="2 steps in a row"):
        trainer.train()
    assert all(torch.equal(before[name], value) for name, value in trainer.model.state_dict().items())


def played(policy, tmp_path, **fields):
    """A trainer of episodes that are played, from the same seeds."""
    tokenizer = load_tokenizer(policy)
    env = gymnasium.make("rlobj/CustomerService-v0", disable_env_checker=True)
    return ObjectiveTrainer(
        AutoModelForCausalLM.from_pretrained(policy), args=small_args(tmp_path, **fields), processing_class=tokenizer,
        env=env, reward=lambda prompts, completions, **_: [float(len(c[0]["content"])) for c in completions],
        supervised=small_rows(tokenizer), lambda_sup=0.5, max_length=128,
    )  # fmt: skip


def test_gradient_checkpointing_changes_no_gradient(policy, tmp_path):
    """Episodes are played with a cache, and learned from without one."""
    ends = []
    for checkpointing in (False, True):
        fields = {"gradient_checkpointing": checkpointing, "optim": "sgd", "max_steps": 2}
        trainer = played(policy, tmp_path / str(checkpointing), **fields)
        trainer.train()
        assert trainer.model.is_gradient_checkpointing == checkpointing
        ends.append(trainer.model.state_dict())
    for name, weights in ends[0].items():
        torch.testing.assert_close(weights, ends[1][name], rtol=1e-5, atol=1e-7)


def test_bfloat16_moves_float32_weights(policy, tmp_path):
    before = AutoModelForCausalLM.from_pretrained(policy).state_dict()
    plain, half = played(policy, tmp_path / "plain"), played(policy, tmp_path / "half", bf16=True)
    for trainer in (plain, half):
        trainer.train()
    losses = [[log["objective/ell"] for log in t.state.log_history if "objective/ell" in log] for t in (plain, half)]
    assert losses[0][0] != losses[1][0] and losses[0][0] == pytest.approx(losses[1][0], rel=1e-2)
    for name, weights in half.model.state_dict().items():
        assert weights.dtype == torch.float32 and weights.isfinite().all() and not torch.equal(weights, before[name])


def test_vllm_is_trls_affair_and_generates_no_episodes(policy, tmp_path):
    with pytest.raises(ValueError, match="rlobj plays the episodes of env itself; vLLM generates where reward_funcs"):
        played(policy, tmp_path, use_vllm=True)
    if not is_vllm_available():
        with pytest.raises(ImportError, match="vLLM is not available"):
            ours(policy, tmp_path, args={"use_vllm": True})


def test_two_processes_give_the_gradient_of_one(policy, tmp_path):
    script = Path(__file__).parent / "two_processes.py"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [script.parent, *sys.path])), "OMP_NUM_THREADS": "1"}
    for processes in (1, 2):
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        done = subprocess.run(
            [*launch, str(script), str(policy), str(tmp_path / f"{processes}.safetensors")],
            env=env,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert f"processes: {processes}\n" in done.stdout
    from safetensors.torch import load_file

    one, two = load_file(tmp_path / "1.safetensors"), load_file(tmp_path / "2.safetensors")
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-4, atol=1e-6)
    cut = [name for name in one if name.startswith("pcgrad")]
    assert any(not torch.allclose(one[name], one[name.replace("pcgrad", "none")]) for name in cut), "nothing was cut"
