"""A run from nothing to a report: warm start, reward model, one policy per λ, evaluation, report.

Each stage writes one directory under the run's and is not run again while its inputs stay the same; a stage that was
interrupted goes on from its newest checkpoint. Every process of a distributed launch walks through the same stages.
Whether what is begun may be gone on with is settled before the first stage (`rlobj.stages`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from transformers import PreTrainedModel

import rlobj.policy_stage as policy_stage
import rlobj.report as report
import rlobj.reward_stage as reward_stage
import rlobj.run_report as run_report
import rlobj.runs as runs
import rlobj.warm_stage as warm_stage
from reward_models.hub import require_model
from rlobj.config import RunConfig, validate
from rlobj.evaluation_stage import evaluation_of, inputs_of, judge
from rlobj.grpo_config import adapter_config, grpo_config
from rlobj.loading import require_whole_model
from rlobj.one_run import Run
from rlobj.policies import load_tokenizer
from rlobj.progress import say
from rlobj.results import config_of, lambda_directory
from rlobj.runs import graceful_signals, read_outputs, stage_key
from rlobj.stage_inputs import policy_inputs
from rlobj.stages import Stage
from rlobj.tasks import make_task


def run(config: RunConfig) -> Path:
    """Run every stage of `config` that has not run yet; return the path of the report.

    Raises:
        ValueError: the configuration or its data are not usable, before anything is trained.
        InputsChanged: a stage is half done with other inputs, and config.on_change is "refuse".
        rlobj.stages.Interrupted: asked to stop by a signal; the same command goes on.
    """
    _check(config)
    this = Run(config, make_task(config))
    with graceful_signals() as this.stop:
        return _all_stages(this)


def prepare(config: RunConfig) -> dict[str, str]:
    """Run the stages that all λ share, the warm start and the reward model, unless they have run.

    Returns: settings with which other runs begin where these stages end.

    Raises:
        ValueError, InputsChanged, Interrupted: as `run`.
    """
    _check(config)
    this = Run(config, make_task(config))
    this.stage_count = 1 + this.trains_reward
    with graceful_signals() as this.stop:
        _begin(this, [warm_stage.stage_of(this), *reward_stage.stages_of(this)])
        warm_stage.train(this)
        reward_stage.reward_of(this)
    shared = {"policy.model": str(this.warm_start), "warm_start.epochs": "0"}
    if this.trains_reward:
        shared["reward.model"] = str(this.directory / "reward_model")
    return shared


def is_done(config: RunConfig) -> bool:
    """Whether `run` would train nothing, judge nothing and report nothing."""
    directory = Path(config.output_dir) / config.name
    if not (directory / "report.html").exists():
        return False
    keys = {value: stage_key(policy_inputs(config, value)) for value in config.objective.lambdas}
    evaluation = stage_key(inputs_of(config, list(keys.values())))
    return runs.is_done(directory / "evaluation", evaluation) and all(
        runs.is_done(lambda_directory(directory, value), key) for value, key in keys.items()
    )


def _check(config: RunConfig) -> None:
    """Refuse what cannot be run, models that are not there among it, before the data are made."""
    validate(config)
    if config.policy.model is not None:
        require_whole_model("policy.model", config.policy.model)
    if config.reward.model is not None:
        require_model("reward.model", config.reward.model)


def _all_stages(this: Run) -> Path:
    policies = [policy_stage.stage_of(this, lam) for lam in this.config.objective.lambdas]
    _begin(this, [warm_stage.stage_of(this), *reward_stage.stages_of(this), *policies])
    warm_stage.train(this)
    reward = reward_stage.reward_of(this)
    for lam in this.config.objective.lambdas:
        policy_stage.train(this, lam, reward)
    evaluation = evaluation_of(this, reward, [stage.key for stage in policies])
    path = run_report.write(this, evaluation)
    if this.main:
        say("")
        say(report.text_table(evaluation["table"]))
        say(f"\nreport    {path}\npolicies  {this.directory / 'policies'}")
        if this.task.label_names is None:
            say(f"talk to one with: rlobj chat {this.directory}")
    return path


def _begin(this: Run, stages: Sequence[Stage]) -> None:
    """See to it, before hours of work, that all of it can be done."""
    if this.trains_reward and (this.config.data.preferences or this.config.data.rated):
        reward_stage.rows_of(this)  # what is wrong with a file is told before anything is trained
    with_fsdp = os.environ.get("ACCELERATE_USE_FSDP") == "true"
    if with_fsdp and not all(stage.done for stage in reward_stage.stages_of(this)):
        raise ValueError(
            "rlobj trains no reward model with FSDP: begin with `rlobj reward RECIPE` and the same settings, "
            "without FSDP; this launch goes on from there"
        )
    if with_fsdp and this.config.training.keep_best:
        raise ValueError(
            f"training.keep_best is {this.config.training.keep_best}: with FSDP no process has the whole policy to "
            "judge between two steps; set it to 0"
        )
    this.begin(stages, models=len(stages))
    adapter_config(this.config)
    grpo_config(this.config, this.directory)  # what TRL would refuse is refused now, before hours of other stages


def report_again(run_dir: Path) -> Path:
    """Write the report of a finished run again, from what its stages wrote; return its path.

    Raises:
        ValueError: the directory holds no finished run.
    """
    if not (run_dir / "config.yaml").exists() or not (run_dir / "evaluation" / "stage.json").exists():
        raise ValueError(f"{run_dir} holds no finished run: expected what rlobj run or rlobj compare wrote")
    config = config_of(run_dir)
    return run_report.write(Run(config, make_task(config)), read_outputs(run_dir / "evaluation"))


def judge_made(
    run_dir: Path,
    ends: Sequence[Path],
    made: Mapping[str, Callable[[PreTrainedModel, PreTrainedModel], PreTrainedModel]],
) -> Iterator[tuple[str, dict[str, list[float]]]]:
    """Judge what is made of two policies on the held-out episodes of a finished run, as the run judged its own.

    Args:
        run_dir: the run whose configuration, warm start and reward are taken.
        ends: folders of the two policies.
        made: name -> what makes a policy of the two.

    Yields: name, and for each metric its values by episode (ℓ: by held-out row).
    """
    config = config_of(run_dir)
    this = Run(config, make_task(config))
    warm = this.warm_start
    tokenizer, reference, reward = load_tokenizer(warm), this.load(warm), reward_stage.reward_of(this)
    first, second = (this.load(path) for path in ends)
    held_out = this.rows(tokenizer)[1]
    for name, make in made.items():
        yield name, judge(this, name, make(first, second), reference, reward, tokenizer, held_out)[1]["per_episode"]
