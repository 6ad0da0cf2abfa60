"""Run by test_parity under `torch.distributed.run`: write the first step's gradient of the same global batch, as it is
and after gradient surgery."""

import sys
import tempfile

from safetensors.torch import save_file
from small import fixed_reward, fixed_rollout, small_args, small_prompts, small_rows
from test_parity import first_gradient

from rlobj.cli import share_the_cpu
from rlobj.policies import load_tokenizer
from rlobj.trainer import ObjectiveTrainer


def judged_rollout(prompts, trainer):
    """With a success of each episode, so that λ depends on which episodes are a group."""
    made = fixed_rollout(prompts, trainer)
    return {**made, "episode_columns": [{"success": value > 0.5} for value in made["fixed_return"]]}


share_the_cpu()
policy, target = sys.argv[1:]
written = {}
for surgery in ("none", "pcgrad"):
    with tempfile.TemporaryDirectory() as directory:
        args = small_args(directory, max_steps=1, max_grad_norm=0.0, beta=0.05)
        args.per_device_train_batch_size = 16 // args.world_size
        args.generation_batch_size = 16
        tokenizer = load_tokenizer(policy)
        trainer = ObjectiveTrainer(
            policy,
            fixed_reward,
            args,
            small_prompts(),
            rollout_func=judged_rollout,
            processing_class=tokenizer,
            supervised=small_rows(tokenizer),
            supervised_batch_size=7,
            lambda_sup="gate:value=0.9,success=0.5,otherwise=0.4,per=group",
            surgery=surgery,
        )
        for name, gradient in first_gradient(trainer).items():
            written[f"{surgery} {name}"] = gradient
        main, processes = trainer.accelerator.is_main_process, trainer.accelerator.num_processes
if main:
    print(f"processes: {processes}")
    save_file(written, target)
