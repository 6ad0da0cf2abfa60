"""The evaluation of a run: every policy on the same episodes, which none was trained on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from envs.patience import Patience
from rlobj.compared import true_measure
from rlobj.config import RunConfig
from rlobj.evaluation import Evaluation, evaluate
from rlobj.grpo_config import sampling_of
from rlobj.one_run import Run
from rlobj.policies import load_tokenizer
from rlobj.progress import bar
from rlobj.results import WARM_START, lambda_directory, lambda_title
from rlobj.runs import atomic_write_json, read_outputs
from rlobj.sampling import Sampling
from rlobj.stages import Stage
from rlobj.supervised import SupervisedRow


def evaluation_of(run: Run, reward: Any, keys: Sequence[str]) -> dict[str, Any]:
    """Judge the warm start and the policies of the stages with these keys."""
    stage = Stage(
        run.directory / "evaluation",
        f"evaluation: {len(run.task.eval_seeds)} episodes never trained on, for each policy",
        inputs_of(run.config, keys),
        kept=False,
    )
    policies = {
        WARM_START: run.warm_start,
        **{lambda_title(lam): lambda_directory(run.directory, lam) for lam in run.config.objective.lambdas},
    }

    def work() -> dict[str, Any]:
        tokenizer = load_tokenizer(run.warm_start)
        reference, held_out = run.load(run.warm_start), run.rows(tokenizer)[1]
        table: list[dict[str, Any]] = []
        results: dict[str, Any] = {}
        for name, path in policies.items() if run.main else ():
            metrics, results[name] = judge(
                run, name, run.load(path), None if name == WARM_START else reference, reward, tokenizer, held_out
            )
            table.append({"name": name, **metrics})
            run.stop_if_asked()
        return {"table": table, "results": results}

    run.do(stage, work)
    outputs = read_outputs(stage.directory)
    if run.main:
        atomic_write_json(run.directory / "summary.json", {"table": outputs["table"]})
    return outputs


def inputs_of(config: RunConfig, keys: Sequence[str]) -> dict[str, Any]:
    """What the evaluation of the policies of the stages with these keys depends on."""
    return {
        "policies": list(keys),
        "env.eval_episodes": config.env.eval_episodes,
        "sampling": asdict(sampling_of(config)),
    }


def promise(
    run: Run, policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, reward: Any, sampling: Sampling
) -> float:
    """What a policy is chosen by: its task success, accuracy, or else return on episodes that do not judge it."""
    metrics = _evaluated(run, policy, tokenizer, reward, sampling, list(run.task.choice_seeds)).metrics
    return metrics[true_measure(metrics)][0]


def _evaluated(
    run: Run,
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    reward: Any,
    sampling: Sampling,
    seeds: Sequence[int],
    held_out: Sequence[SupervisedRow] = (),
    reference: PreTrainedModel | None = None,
    on_progress: Callable[[int], None] = lambda done: None,
) -> Evaluation:
    return evaluate(
        policy,
        tokenizer,
        run.task.make_eval_env,
        reward,
        sampling,
        seeds,
        held_out,
        reference,
        sampling_seed=run.config.seed,
        on_error=run.config.reward.on_failure,
        patience=Patience(run.config.env.step_timeout, run.config.env.restarts),
        on_progress=on_progress,
    )


def judge(
    run: Run,
    name: str,
    policy: PreTrainedModel,
    reference: PreTrainedModel | None,
    reward: Any,
    tokenizer: PreTrainedTokenizerBase,
    held_out: Sequence[SupervisedRow],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """A policy on the held-out episodes: metrics with intervals, and the values and episodes behind them.

    Args:
        reference: the warm start; None where the policy is the warm start itself.
    """
    seeds, sampling = list(run.task.eval_seeds), sampling_of(run.config)
    with bar(name, len(seeds)) as progress:
        result = _evaluated(run, policy, tokenizer, reward, sampling, seeds, held_out, reference, progress.advance)
    kl = {"kl": (0.0, 0.0, 0.0)} if reference is None else {}  # the warm start's to itself
    episodes = [
        {
            "seed": e.seed,
            "success": e.columns.get("success"),
            "messages": [*e.prompt, *e.completion],
            "rewards": {part.removeprefix("reward/"): v[n] for part, v in result.extra.items()},
        }
        for n, e in enumerate(result.episodes[:200])
    ]
    return {**result.metrics, **kl}, {"per_episode": result.per_episode, "episodes": episodes}
