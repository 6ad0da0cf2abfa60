"""Run by test_processes under `torch.distributed.run`: a training in which one process fails, as its arguments say."""

import sys
import time

from small import fixed_rollout, small_args, small_prompts, small_rows

from rlobj.cli import share_the_cpu
from rlobj.policies import load_tokenizer
from rlobj.trainer import ObjectiveTrainer

share_the_cpu(timeout=10)
policy, output, how = sys.argv[1:]
args = small_args(output, per_device_train_batch_size=4, max_steps=6, save_strategy="steps", save_steps=1)
tokenizer = load_tokenizer(policy)


def reward(completions, fixed_return, trainer_state, **columns):
    if trainer_state.global_step == 2 and args.process_index == 1:
        print(f"failing at {time.monotonic()}", flush=True)
        if how == "raises":
            raise ZeroDivisionError("this process alone")
        time.sleep(3600)  # hangs
    return fixed_return


trainer = ObjectiveTrainer(
    policy, reward, args, small_prompts(), rollout_func=fixed_rollout, processing_class=tokenizer,
    supervised=small_rows(tokenizer), supervised_batch_size=4, lambda_sup=0.5,
)  # fmt: skip
try:
    trainer.train()
except BaseException as error:
    print(f"process {args.process_index} raised {type(error).__name__}: {error}", flush=True)
    raise
