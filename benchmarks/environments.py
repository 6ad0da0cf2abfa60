"""What the environments cost: steps a second, single and vectorised, and their share of a policy's training step.

python benchmarks/environments.py
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from typing import Any

import gymnasium
import torch
from trl import GRPOConfig

from envs.experts import demonstrations
from envs.vector import TextVectorEnv
from rlobj import ObjectiveTrainer, dialogue_rows, make_causal, make_tokenizer, warm_start
from rlobj.rollout import factory_of

EPISODES = 256
SECONDS = 3.0


def steps_per_second(env: gymnasium.Env[Any, Any]) -> float:
    """Random actions in one environment through Gymnasium's own `step`."""
    env.action_space.seed(0)
    actions = [env.action_space.sample() for _ in range(1000)]
    steps, over, started = 0, True, time.perf_counter()
    while time.perf_counter() - started < SECONDS:
        if over:
            env.reset(seed=steps)
        _, _, terminated, truncated, _ = env.step(actions[steps % 1000])
        over, steps = terminated or truncated, steps + 1
    return steps / (time.perf_counter() - started)


def vector_steps_per_second(vector: gymnasium.vector.VectorEnv[Any, Any, Any]) -> float:
    """Random actions in many environments through Gymnasium's vector API, resets included."""
    vector.action_space.seed(0)
    actions = [vector.action_space.sample() for _ in range(10)]
    vector.reset(seed=0)
    rounds, started = 0, time.perf_counter()
    while time.perf_counter() - started < SECONDS:
        vector.step(actions[rounds % 10])
        rounds += 1
    return rounds * vector.num_envs / (time.perf_counter() - started)


class Timed(TextVectorEnv):
    """Adds up the time spent in the environments."""

    seconds = 0.0

    def _timed(self, work: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        try:
            return work()
        finally:
            Timed.seconds += time.perf_counter() - started

    def reset(self, **kwargs: Any) -> Any:
        return self._timed(lambda: super(Timed, self).reset(**kwargs))

    def act(self, actions: Any) -> Any:
        return self._timed(lambda: super(Timed, self).act(actions))

    def final_scores(self, columns: Any = None) -> Any:
        return self._timed(lambda: super(Timed, self).final_scores(columns))


def share_of_a_training_step(steps: int = 5) -> tuple[float, float]:
    """Seconds in the environments, and in all, of one training step of the demo's model on EPISODES episodes."""
    import rlobj.rollout

    rlobj.rollout.TextVectorEnv = Timed  # type: ignore[misc]
    env = gymnasium.make("rlobj/CustomerService-v0", disable_env_checker=True)
    dialogues = [d["messages"] for d in demonstrations(factory_of(env), 800)]  # type: ignore[arg-type]
    tokenizer = make_tokenizer((m["content"] for d in dialogues for m in d), vocab_size=2000, max_length=512)
    policy = make_causal(tokenizer, hidden_size=128, layers=2, heads=4, max_length=512, seed=0)
    rows = dialogue_rows(tokenizer, dialogues, max_length=512)
    with tempfile.TemporaryDirectory() as folder:
        warm_start(policy, tokenizer, rows, folder, epochs=1, learning_rate=3e-3, batch_size=16, seed=0)
        args = GRPOConfig(
            folder, max_steps=steps, per_device_train_batch_size=EPISODES, learning_rate=1e-4, bf16=False,
            report_to="none", disable_tqdm=True, save_strategy="no", max_completion_length=40,
        )  # fmt: skip
        trainer = ObjectiveTrainer(
            policy, args=args, processing_class=tokenizer, env=env, supervised=rows, lambda_sup=0.3,
            train_seeds=range(1000), probe_every=0,
        )  # fmt: skip
        Timed.seconds, started = 0.0, time.perf_counter()
        trainer.train()
    return Timed.seconds / steps, (time.perf_counter() - started) / steps


def main() -> None:
    print(f"{torch.get_num_threads()} threads")
    print("\n| environment | steps a second | vectorised, 256 |\n|---|---|---|")
    for name in ("CustomerService", "Classification", "Dialogue"):
        single = steps_per_second(gymnasium.make(f"rlobj/{name}-v0", disable_env_checker=True))
        vector = vector_steps_per_second(gymnasium.make_vec(f"rlobj/{name}-v0", num_envs=EPISODES))
        print(f"| `rlobj/{name}-v0` | {single:,.0f} | {vector:,.0f} |", flush=True)
    inside, total = share_of_a_training_step()
    print(
        f"\nOne training step of the demo's model on {EPISODES} customer-service episodes: {total:.1f} s, of which "
        f"{inside:.2f} s ({inside / total:.1%}) in the environments."
    )


if __name__ == "__main__":
    main()
