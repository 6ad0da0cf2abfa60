"""The policies of a run, one for each λ."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import GRPOConfig

import rlobj.best_policy as best_policy
from envs.patience import Patience
from reward_models.training import merged
from rlobj.adapters import parameter_counts
from rlobj.best_policy import KeepBest
from rlobj.evaluation_stage import promise
from rlobj.grpo_config import adapter_config, grpo_config, sampling_of
from rlobj.long_prompts import fitting_seeds
from rlobj.one_run import Run
from rlobj.policies import load_tokenizer
from rlobj.progress import say
from rlobj.results import lambda_directory, lambda_title
from rlobj.sampling import Sampling
from rlobj.stage_inputs import policy_inputs
from rlobj.stages import Stage
from rlobj.stream import Source
from rlobj.supervised import SupervisedRow, quiet
from rlobj.trackers import begin_run, end_run
from rlobj.trainer import ObjectiveTrainer
from rlobj.validation import TRAIN


def stage_of(run: Run, lambda_sup: float | str) -> Stage:
    """Where it is kept, and what it depends on."""
    what = f"policy: −R + λℓ with {lambda_title(lambda_sup)}"
    return Stage(lambda_directory(run.directory, lambda_sup), what, policy_inputs(run.config, lambda_sup))


def train(run: Run, lambda_sup: float | str, reward: Any) -> None:
    """Train the policy of one λ, unless that is done."""
    config, stage = run.config, stage_of(run, lambda_sup)
    directory = stage.directory

    def work() -> dict[str, Any]:
        sampling = sampling_of(config)  # before args: transformers' arguments begin accelerate's state afresh
        args = grpo_config(config, stage.checkpoints)
        begin_run(
            config.training.trackers,
            args,
            project=config.training.project or config.name,
            group=lambda_title(lambda_sup),
            run=f"seed {config.policy_seed}",
            directory=run.directory / "trackers",
        )
        trainer = make_trainer(run, lambda_sup, reward, args, sampling, run.load(run.warm_start))
        quiet(trainer)
        if config.policy.peft is not None:
            trained, every = parameter_counts(trainer.model)
            say(f"  {trained:,} of {every:,} parameters are trained")
        trainer.exact_resume = config.on_change != "continue"
        best = _keeping_the_best(run, trainer, reward, stage, sampling)
        trainer.train(resume_from_checkpoint=run.resume(stage))
        end_run(config.training.trackers)
        run.stop_if_asked()
        outputs: dict[str, Any] = {"history": trainer.state.log_history, "warnings": trainer.alarms.told}
        if best is not None:
            policy = trainer.accelerator.unwrap_model(trainer.model)
            best.look_at_last(trainer.state.global_step, policy)
            found = best.put_back(policy)
            outputs |= {"best": found, "says": best_policy.told(found)}
        if config.policy.peft is not None:
            trainer.model = merged(trainer.accelerator.unwrap_model(trainer.model))
        trainer.save_model(str(directory))  # by all: FSDP gathers what the main process writes
        if run.main:
            (directory / "training_args.bin").unlink(missing_ok=True)  # a pickle: config.yaml says it all
        return outputs

    run.do(stage, work)


def _keeping_the_best(
    run: Run, trainer: ObjectiveTrainer, reward: Any, stage: Stage, sampling: Sampling
) -> KeepBest | None:
    """What keeps the best policy of a training, if that is asked for."""
    every = run.config.training.keep_best
    if not every:
        return None
    best = KeepBest(
        every,
        lambda policy: promise(run, policy, trainer.processing_class, reward, sampling),
        stage.checkpoints / best_policy.BEST,
        trainer.accelerator.unwrap_model,
    )
    trainer.add_callback(best)
    return best


def make_trainer(
    run: Run, lambda_sup: float | str, reward: Any, args: GRPOConfig, sampling: Sampling, policy: PreTrainedModel
) -> ObjectiveTrainer:
    """What trains a policy as a run says."""
    config, tokenizer = run.config, load_tokenizer(run.warm_start)
    # what the evaluation cannot play is told before the first step
    fitting_seeds(run.task.make_eval_env, run.task.eval_seeds, policy, tokenizer, sampling)
    return ObjectiveTrainer(
        policy,
        args=args,
        processing_class=tokenizer,
        env=run.task.train_env,
        reward=reward,
        on_error=config.reward.on_failure,
        train_seeds=run.task.train_seeds,
        supervised=supervised_rows(run, tokenizer),
        lambda_sup=lambda_sup,
        supervised_batch_size=config.objective.supervised_batch_size,
        token_weights=config.objective.token_weights,
        surgery=config.objective.surgery,
        probe_every=config.objective.probe_every,
        kl_every=config.training.kl_every,
        kl_limit=config.training.kl_limit,
        kl_in=config.training.kl_in,
        beta_target=config.training.beta_target,
        target_kl=config.training.target_kl,
        max_bad_steps=config.training.max_bad_steps,
        estimator=config.training.estimator,
        ppo=config.ppo,
        rollout=config.rollout,
        patience=Patience(config.env.step_timeout, config.env.restarts),
        peft_config=adapter_config(config),
        max_length=config.policy.max_length,
        dropout=not args.disable_dropout,
        callbacks=run.callbacks(
            lambda_title(lambda_sup),
            {"objective/return": "R", "environment/success": "success", "objective/ell": "ℓ"},
        ),
    )


def supervised_rows(run: Run, tokenizer: PreTrainedTokenizerBase) -> list[SupervisedRow] | list[Source]:
    """What ℓ beside R is drawn from."""
    beside, sources = run.task.rows_beside_reward, run.config.objective.sources
    train = beside(tokenizer) if beside is not None else run.rows(tokenizer)[0]
    made = {TRAIN: train, **{name: make(tokenizer) for name, make in run.task.rows_of_source.items()}}
    return [Source(made[name], weight) for name, weight in sources.items()] if sources else train
