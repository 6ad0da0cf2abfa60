"""What rlobj stands on in TRL. When one of these fails, TRL has changed under us: the message says where to look."""

from __future__ import annotations

import inspect

from trl import GRPOConfig, GRPOTrainer

from rlobj.trainer import ObjectiveTrainer
from rlobj.trainer_checks import SUPPORTED_LOSS_TYPES


def parameters(function):
    return list(inspect.signature(function).parameters)


def test_overridden_methods_exist_with_the_signatures_that_we_call():
    assert parameters(GRPOTrainer._compute_loss) == ["self", "model", "inputs"], "ObjectiveTrainer._compute_loss"
    assert parameters(GRPOTrainer.log) == ["self", "logs", "start_time"], "ObjectiveTrainer.log"
    assert "rollout_func" in parameters(GRPOTrainer.__init__), "rlobj.rollout.EnvironmentRollout"


def test_overrides_are_few():
    own = {name for name, value in vars(ObjectiveTrainer).items() if inspect.isfunction(value)}
    assert own & set(dir(GRPOTrainer)) == {
        "__init__", "_compute_loss", "_generate_and_score_completions", "create_optimizer", "_get_train_sampler",
        "_get_per_token_logps_and_entropies", "_load_from_checkpoint", "log",
    }  # fmt: skip


def test_compute_loss_divides_by_accumulation_itself():
    source = inspect.getsource(GRPOTrainer._compute_loss)
    assert "self.current_gradient_accumulation_steps" in source, "supervised_loss is scaled to match"
    for loss_type in SUPPORTED_LOSS_TYPES:
        assert f'"{loss_type}"' in source, f"loss_type {loss_type} is gone"


def test_rollout_contract():
    source = inspect.getsource(GRPOTrainer._generate)
    for key in ("prompt_ids", "completion_ids", "logprobs", "env_mask"):
        assert f'"{key}"' in source, f"rollout_func's key {key}"
    assert "self.rollout_func(prompts, self)" in source


def test_what_kl_and_entropy_stand_on():
    source = inspect.getsource(GRPOTrainer._compute_loss)
    assert "if self._entropy_bonus_enabled:" in source, "ObjectiveTrainer adds the bonus itself"
    assert 'self._metrics[mode]["kl"].append(global_masked_mean(per_token_kl))' in source, "β is steered by it"
    assert 'inputs.get("old_per_token_logps")' in source, "target_kl compares with it"
    assert "self.ref_model" in inspect.getsource(GRPOTrainer._generate_and_score_completions), "an encoder's reference"
    assert "sampling_per_token_logps" in inspect.getsource(GRPOTrainer._generate_and_score_completions), (
        "SRFT's entropy"
    )


def test_metrics_and_step_counters_that_we_read():
    assert "self._metrics" in inspect.getsource(GRPOTrainer.__init__)
    assert "log_metric" in inspect.getsource(GRPOTrainer._calculate_rewards), "episode_return logs through it"
    assert "fused_lm_head=True" in inspect.getsource(GRPOTrainer._get_per_token_logps_and_entropies), (
        "encoder_policy answers base_model(...) and get_output_embeddings()"
    )


def test_what_reward_functions_are_told_and_how_a_checkpoint_is_saved():
    source = inspect.getsource(GRPOTrainer._calculate_rewards)
    for key in ("trainer_state", "log_extra", "log_metric", "completion_ids"):
        assert key in source, f"rlobj.reward_watch hands {key} over as TRL does"
    assert parameters(GRPOTrainer._log_metric) == ["self", "name", "value"], "rlobj.reward_watch counts failures"
    assert parameters(GRPOTrainer._log_completion_extra) == ["self", "column", "values"]
    assert parameters(GRPOTrainer._save_checkpoint) == ["self", "model", "trial"], "rlobj.reward_watch"


def test_what_a_bad_step_is_described_by():
    names = parameters(GRPOTrainer._get_per_token_logps_and_entropies)
    assert names[:5] == ["self", "model", "input_ids", "attention_mask", "logits_to_keep"], "rlobj.bad_steps"
    assert {"batch_size", "compute_entropy"} <= set(names), "ObjectiveTrainer._get_per_token_logps_and_entropies"
    assert '_logs["rewards"]' in inspect.getsource(GRPOTrainer._generate_and_score_completions), "rewards of each row"


def test_config_refuses_one_generation():
    try:
        GRPOConfig("x", num_generations=1, per_device_train_batch_size=1, use_cpu=True, bf16=False)
    except ValueError as error:
        assert "at least 2 generations" in str(error)
    else:
        raise AssertionError("GRPOConfig takes num_generations=1 now: rlobj.config may allow it too")
