"""Run by test_processes under `torch.distributed.run`: FSDP splits the policy's parameters over two processes.

accelerate has FSDP on accelerators alone. Without one, two processes are told to be as if they had some: what is split
and gathered, and when, is the same.
"""

import sys
from pathlib import Path

import gymnasium
from accelerate import PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from small import fixed_reward, fixed_rollout, small_args, small_prompts, small_rows
from test_pipeline import small_run

import envs  # noqa: F401
from rlobj.cli import share_the_cpu
from rlobj.policies import load_causal, load_tokenizer
from rlobj.trainer import ObjectiveTrainer

plain = AcceleratorState.__init__


def as_with_accelerators(self: AcceleratorState, *args: object, **kwargs: object) -> None:
    if PartialState().distributed_type == DistributedType.MULTI_CPU:
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    plain(self, *args, **kwargs)


AcceleratorState.__init__ = as_with_accelerators
policy, output = map(Path, sys.argv[1:])
share_the_cpu(timeout=30)
tokenizer = load_tokenizer(policy)


def split_trainer(name: str, batch: int, **kwargs: object) -> ObjectiveTrainer:
    fields = {"save_strategy": "steps", "save_steps": 1, "generation_batch_size": 2 * batch, "optim": "sgd"}
    fields["optim_args"] = "momentum=0.9"  # so that there is a state to go on from
    args = small_args(output / name, per_device_train_batch_size=batch, max_steps=2, **fields)
    settings = {"supervised": small_rows(tokenizer), "supervised_batch_size": 7, "lambda_sup": 0.7, **kwargs}
    trainer = ObjectiveTrainer(load_causal(policy), args=args, processing_class=tokenizer, **settings)
    assert trainer.is_split and trainer.accelerator.num_processes == 2
    return trainer


def on_fixed_episodes() -> ObjectiveTrainer:
    return split_trainer(
        "fixed", 8, reward_funcs=fixed_reward, train_dataset=small_prompts(), rollout_func=fixed_rollout
    )


trainer = on_fixed_episodes()
trainer.train()
trainer.save_model(str(output / "fixed-end"))
again = on_fixed_episodes()
again.train(resume_from_checkpoint=str(output / "fixed/checkpoint-1"))
again.save_model(str(output / "fixed-again"))

# each process plays episodes of its own length
rank = trainer.accelerator.process_index
env = gymnasium.make("rlobj/CustomerService-v0", disable_env_checker=True, max_turns=2 + 3 * rank)
turns_of_each_generation: list[int] = []


def reward(prompts: list, completions: list, turns: list[int], **columns: object) -> list[float]:
    turns_of_each_generation.append(max(turns))
    return [float(len(completion[0]["content"])) for completion in completions]


settings = {"env": env, "reward": reward, "max_length": 256, "kl_every": 1}
trainer = split_trainer("played", 4, **settings)
trainer.train()
print(f"process {rank}: {turns_of_each_generation} turns in {trainer.state.global_step} steps", flush=True)
for refused in ({"estimator": "ppo"}, {"surgery": "pcgrad"}, {"supervised_batch_size": 1}):
    try:
        split_trainer("refused", 4, **settings, **refused)
    except ValueError as error:
        print(f"process {rank}: {error}", flush=True)

small_run("customer-service", output, reward__kind="environment", objective__lambda_sup=0.3)
