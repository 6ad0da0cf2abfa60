"""Run by test_processes under `torch.distributed.run`: a KL penalty in the reward that is steered, or optimiser steps
that are left out, in an environment; each process says what it came to."""

import hashlib
import json
import sys

import gymnasium
import torch
from small import small_args

from rlobj.cli import share_the_cpu
from rlobj.policies import load_causal, load_tokenizer
from rlobj.trainer import ObjectiveTrainer

share_the_cpu(timeout=120)
path, output, what = sys.argv[1:]
STEPS = 8
settings = {
    "kl_in": {"kl_in": "reward", "beta_target": 1e-4},
    "target_kl": {"target_kl": 0.01},
}
fields = {
    "kl_in": {"beta": 0.1},
    "target_kl": {"num_iterations": 4, "learning_rate": 3e-2},
}
args = small_args(
    output, per_device_train_batch_size=4, num_generations=2, max_completion_length=6, max_steps=STEPS, **fields[what]
)


def per_letter(prompts, completions, **columns):
    return [sum(len(message["content"]) for message in completion) / 10 for completion in completions]


policy = load_causal(path)
before = torch.cat([p.detach().flatten() for p in policy.parameters()]).clone()
trainer = ObjectiveTrainer(
    policy, args=args, processing_class=load_tokenizer(path), train_seeds=range(100), max_length=300,
    env=gymnasium.make("rlobj/CustomerService-v0", domain="repairs", max_turns=2, reward=per_letter),
    **settings[what],
)  # fmt: skip
played, left_out = [], []
look_at = trainer.look_at


def watched(rollouts):
    played.append(hashlib.sha256(repr([t.completion_ids for t in rollouts.trajectories]).encode()).hexdigest())
    look_at(rollouts)


class Watch(type(trainer.alarms)):
    def on_step_end(self, args, state, control, **kwargs):
        left_out.append(int(trainer.epochs.over))


trainer.look_at = watched
trainer.add_callback(Watch("grpo"))
trainer.train()
after = torch.cat([p.detach().flatten() for p in trainer.accelerator.unwrap_model(trainer.model).parameters()])
history = trainer.state.log_history
found = {
    "weights": hashlib.sha256(after.numpy().tobytes()).hexdigest(),
    "moved": (after - before).abs().max().item(),
    "played": played,
    "beta": [log["kl/beta"] for log in history if "kl/beta" in log],
    "penalty": [log["kl/penalty"] for log in history if "kl/penalty" in log],
    "left_out": left_out,
}
print(f"process {args.process_index}: {json.dumps(found)}", flush=True)
