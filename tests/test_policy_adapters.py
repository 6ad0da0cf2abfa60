"""LoRA, IA3 and AdaLoRA on a policy that is trained on −R + λℓ."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import load_file
from small import fixed_reward, fixed_rollout, small_args, small_policy, small_prompts, small_rows
from test_pipeline import small_run

from rlobj.adapters import parameter_counts
from rlobj.policies import load_causal, load_tokenizer
from rlobj.results import policy_history
from rlobj.trainer import ObjectiveTrainer

peft = pytest.importorskip("peft")
TARGETS = {"target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}


def trainer_with(tmp_path, config, **fields):
    if not (tmp_path / "policy").exists():
        small_policy(tmp_path / "policy")
    tokenizer = load_tokenizer(tmp_path / "policy")
    return ObjectiveTrainer(
        load_causal(tmp_path / "policy"),
        fixed_reward,
        small_args(tmp_path / "out", **fields),
        small_prompts(),
        rollout_func=fixed_rollout,
        processing_class=tokenizer,
        supervised=small_rows(tokenizer),
        lambda_sup=0.5,
        peft_config=config,
    )


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("kind", ["lora", "ia3"])
def test_the_adapter_alone_is_trained_and_the_reference_is_the_base(tmp_path, kind):
    if kind == "lora":
        config = peft.LoraConfig(r=2, **TARGETS)
    else:
        config = peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"])
    trainer = trainer_with(tmp_path, config, beta=0.1)
    assert trainer.ref_model is None
    trained, every = parameter_counts(trainer.model)
    assert 0 < trained < every / 10
    before = weights(trainer.model)
    trainer.train()
    after = weights(trainer.model)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and all("lora_" in name or "ia3_" in name for name in moved)
    kl = [log["kl"] for log in trainer.state.log_history if "kl" in log]
    assert kl[0] == pytest.approx(0, abs=1e-6) and kl[-1] > 1e-6


def test_ranks_of_adalora_change(tmp_path):
    config = peft.AdaLoraConfig(init_r=4, target_r=1, tinit=1, tfinal=1, total_step=6, **TARGETS)
    trainer = trainer_with(tmp_path, config, max_steps=6)
    trainer.train()
    pattern = trainer.model.peft_config["default"].rank_pattern
    kept = sum(sum(ranks) for ranks in pattern.values())
    assert kept == 2  # target_r for each of two matrices, of 4 each
    ranks = [p for name, p in trainer.model.named_parameters() if "lora_E" in name]
    assert sum(int((p != 0).sum()) for p in ranks) <= kept


IA3 = {"target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]}


@pytest.mark.parametrize("config", [peft.LoraConfig(r=2, **TARGETS), peft.IA3Config(**IA3)], ids=["lora", "ia3"])
def test_a_stopped_training_of_an_adapter_goes_on_exactly(tmp_path, config):
    fields = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    straight = trainer_with(tmp_path, copy.deepcopy(config), **fields)
    straight.train()
    again = trainer_with(tmp_path, config, **fields)
    again.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    for name, weight in weights(straight.model).items():
        assert torch.equal(weight, again.model.get_parameter(name)), name


def test_a_saved_adapter_loads_on_its_base(tmp_path):
    trainer = trainer_with(tmp_path, peft.LoraConfig(r=2, **TARGETS))
    trainer.train()
    trainer.save_model(str(tmp_path / "adapter"))
    loaded = peft.PeftModel.from_pretrained(load_causal(tmp_path / "policy"), tmp_path / "adapter")
    ids = torch.arange(8, 20)[None]
    with torch.no_grad():
        torch.testing.assert_close(loaded(input_ids=ids).logits, trainer.model.eval()(input_ids=ids).logits)


@pytest.mark.parametrize("method", ["lora", "adalora", "ia3"])
def test_recipes_train_an_adapter_and_save_whole_policies(tmp_path, capsys, method):
    run = small_run("customer-service", tmp_path, policy__peft=f"{{method: {method}}}", objective__lambda_sup="[0.1]",
                    reward__kind="environment", training__kl_every=1, training__steps=6,
                    training__learning_rate=1e-2).parent  # fmt: skip
    assert "parameters are trained" in capsys.readouterr().out
    warm, policy = (load_file(run / name / "model.safetensors") for name in ("warm_start", "policies/lambda=0.1"))
    assert warm.keys() == policy.keys(), "merged"
    moved = {name for name in warm if not torch.equal(warm[name], policy[name])}
    assert moved and not any("embed_tokens" in name for name in moved)
    kl = [log["kl/episode"] for log in policy_history(run, 0.1) if "kl/episode" in log]
    assert kl[0] == pytest.approx(0, abs=1e-5) and kl[-1] > 0, "against the base"


@pytest.mark.parametrize(
    ("settings", "words"),
    [("{method: lorra}", "policy.peft.method is 'lorra'"), ("{method: lora, rank: 3}", "policy.peft has 'rank'")],
)
def test_bad_adapters_are_told_before_anything_is_trained(tmp_path, settings, words):
    with pytest.raises(ValueError, match=words):
        small_run("customer-service", tmp_path, policy__peft=settings)
    assert not list(tmp_path.glob("*/warm_start"))
    with pytest.raises(ValueError, match="expected a causal policy"):
        small_run("customer-intents", tmp_path, policy__peft="{method: lora}")


def test_adalora_refuses_to_go_on_from_a_checkpoint(tmp_path):
    config = peft.AdaLoraConfig(init_r=4, target_r=1, total_step=2, **TARGETS)
    trainer = trainer_with(tmp_path, config, save_strategy="steps", save_steps=1, max_steps=2)
    trainer.train()
    with pytest.raises(ValueError, match="begin again, or use LoRA"):
        trainer._load_from_checkpoint(str(tmp_path / "out" / "checkpoint-1"))
