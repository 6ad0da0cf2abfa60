"""A run from nothing to a report: warm start, reward model, one policy per λ, evaluation, report.

Each stage writes one directory under the run's and is not run again while its inputs stay the same; a stage that was
interrupted goes on from its newest checkpoint. Every process of a distributed launch walks through the same stages.
Whether what is begun may be gone on with is settled before the first stage (`rlobj.stages`).
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from trl import GRPOConfig

import rlobj.bad_steps as bad_steps
import rlobj.data as data
import rlobj.report as report
from envs.datasets import shipped
from envs.patience import Patience
from envs.vector import TextVectorEnv
from reward_models.functions import load_reward
from reward_models.rated import YES_OR_NO, train_on_ratings
from reward_models.trained import load_trained, member_paths, normalise
from reward_models.training import merged, train_reward_model
from rlobj import __version__
from rlobj.adapters import parameter_counts, peft_config_of
from rlobj.arguments import ObjectiveArguments
from rlobj.callbacks import FiniteGuard
from rlobj.checkpoints import WholeCheckpoints, newest_whole_checkpoint, telling_of_a_full_disk
from rlobj.config import PolicyConfig, RunConfig, dump, validate
from rlobj.drift import against_kl, drift_pictures
from rlobj.encoder_policy import as_one_token_policy
from rlobj.evaluation import evaluate
from rlobj.lambdas import lambda_name
from rlobj.pictures import Point
from rlobj.policies import load_causal, load_encoder, load_tokenizer, make_causal, make_encoder, make_tokenizer
from rlobj.progress import StopWhenAsked, TrainingBar, bar, say
from rlobj.recipes import load_recipe
from rlobj.rollout import play
from rlobj.runs import (
    atomic_write_json,
    atomic_write_text,
    content_digest,
    done_with,
    graceful_signals,
    mark_done,
    read_outputs,
    require_free_space,
)
from rlobj.sampling import Sampling
from rlobj.stages import Stage, check_half_done, make_ready
from rlobj.stream import Source
from rlobj.supervised import SupervisedRow, quiet, warm_start
from rlobj.tasks import HELD_OUT, MODEL_USER, Task, make_task
from rlobj.trackers import begin_run, end_run
from rlobj.tracking import METRICS, read_metrics
from rlobj.trainer import ObjectiveTrainer
from rlobj.validation import TRAIN, composed

WARM_START = "warm start"
NORMALISED_ON = 256
"""Episodes of the warm start whose scores make 0 and 1 of a reward model that is normalised."""
CHECKPOINTS_AT_ONCE = 3
"""The latest, the one to fall back on, and one that is being written."""
LAMBDA_CURVE = "λ"
TOLD_TO_OTHERS = ("report_to", "project")
"""Fields of training that its result does not depend on."""
CURVES = {
    "environment/success": "task success in training",
    "objective/return": "mean return R̂",
    "objective/ell": "supervised loss ℓ",
    "gradient/ratio": "λ‖∇ℓ‖ / ‖∇R‖",
    "gradient/cosine": "cosine of the two gradients",
    "kl/episode": "KL to the warm start, nats per episode",
    "entropy": "entropy of the policy, nats per token",
    "objective/lambda_sup": LAMBDA_CURVE,
}


class Interrupted(KeyboardInterrupt):
    """A run was asked to stop, and has saved what it had."""


def run(config: RunConfig) -> Path:
    """Run every stage of `config` that has not run yet; return the path of the report.

    Raises:
        ValueError: the configuration or its data are not usable, before anything is trained.
        InputsChanged: a stage is half done with other inputs, and config.on_change is "refuse".
        Interrupted: asked to stop by a signal; the same command goes on.
    """
    validate(config)
    task = make_task(config)
    this = _Run(config, task)
    with graceful_signals() as this.stop:
        return this.all_stages()


def prepare(config: RunConfig) -> dict[str, str]:
    """Run the stages that all λ share, the warm start and the reward model, unless they have run.

    Returns: settings with which other runs begin where these stages end.

    Raises:
        ValueError, InputsChanged, Interrupted: as `run`.
    """
    validate(config)
    this = _Run(config, make_task(config))
    this.stage_count = 1 + this.trains_reward
    with graceful_signals() as this.stop:
        this.begin([this.warm_stage(), *this.reward_stages()])
        this.warm_start()
        this.reward()
    shared = {"policy.model": str(this.directory / "warm_start"), "warm_start.epochs": "0"}
    if this.trains_reward:
        shared["reward.model"] = str(this.directory / "reward_model")
    return shared


def lambda_title(lambda_sup: float | str) -> str:
    """How one λ is called in tables."""
    return f"λ = {lambda_name(lambda_sup)}"


def lambda_directory(run_dir: Path, lambda_sup: float | str) -> Path:
    """Where the policy of one λ is kept; what no directory can be called is written as a comma."""
    return run_dir / "policies" / f"lambda={re.sub(r'[/:*?<>|]', ',', lambda_name(lambda_sup))}"


def policy_history(run_dir: Path, lambda_sup: float | str) -> list[dict[str, Any]]:
    """The training log of the policy of one λ."""
    history: list[dict[str, Any]] = read_outputs(lambda_directory(run_dir, lambda_sup))["history"]
    return history


def policy_log(run_dir: Path, lambda_sup: float | str) -> list[dict[str, Any]]:
    """The training log of the policy of one λ as far as it has come, of a training that runs, too."""
    directory = lambda_directory(run_dir, lambda_sup)
    if done_with(directory) is not None:
        return policy_history(run_dir, lambda_sup)
    return read_metrics(directory.parent / "checkpoints" / directory.name)


def policy_curves(run_dir: Path, lambda_sup: float | str) -> dict[str, list[Point]]:
    """Learning curves of the policy of one λ: title, one of CURVES, -> values by optimiser step."""
    history = policy_history(run_dir, lambda_sup)
    curves = {
        title: [Point(int(log["step"]), float(log[key])) for log in history if log.get(key) is not None]
        for key, title in CURVES.items()
    }
    if len({point.y for point in curves[LAMBDA_CURVE]}) == 1:
        del curves[LAMBDA_CURVE]  # a constant needs no picture
    return {title: points for title, points in curves.items() if points}


class _Run:
    """The stages of one run, and what they hand on."""

    def __init__(self, config: RunConfig, task: Task) -> None:
        self.config, self.task = config, task
        self.directory = Path(config.output_dir) / config.name
        self.main, self.processes = PartialState().is_main_process, PartialState().num_processes
        self.stop: Any = None
        self.trains_reward = config.reward.kind == "trained" and config.reward.model is None
        self.stage_count = 4 + len(config.objective.lambdas) - (config.reward.kind != "trained")
        self.stage_number = 0
        self._encoded: tuple[list[SupervisedRow], list[SupervisedRow]] | None = None

    def begin(self, stages: Sequence[Stage]) -> None:
        if self.trains_reward and (self.config.data.preferences or self.config.data.rated):
            self._reward_rows()  # what is wrong with a file is told before anything is trained
        if os.environ.get("ACCELERATE_USE_FSDP") == "true" and not all(stage.done for stage in self.reward_stages()):
            raise ValueError(
                "rlobj trains no reward model with FSDP: begin with `rlobj reward RECIPE` and the same settings, "
                "without FSDP; this launch goes on from there"
            )
        check_half_done(stages, self.config.on_change, self.processes)
        if not all(stage.done for stage in stages):
            require_free_space(self.directory, _bytes_needed(self.config.policy, len(stages)))
        PartialState().wait_for_everyone()
        if self.main:
            self.directory.mkdir(parents=True, exist_ok=True)
            # what to do about a change is said for this once
            atomic_write_text(self.directory / "config.yaml", dump(replace(self.config, on_change="refuse")))
        self._peft_config()
        self._grpo_config(self.directory)  # what TRL would refuse is refused now, before hours of other stages

    def all_stages(self) -> Path:
        policies = [self.policy_stage(lam) for lam in self.config.objective.lambdas]
        self.begin([self.warm_stage(), *self.reward_stages(), *policies])
        self.warm_start()
        reward = self.reward()
        for lam in self.config.objective.lambdas:
            self.policy(lam, reward)
        evaluation = self.evaluation(reward, [stage.key for stage in policies])
        path = self.report(evaluation)
        if self.main:
            say("")
            say(report.text_table(evaluation["table"]))
            say(f"\nreport    {path}\npolicies  {self.directory / 'policies'}")
            if self.task.label_names is None:
                say(f"talk to one with: rlobj chat {self.directory}")
        return path

    def _do(self, stage: Stage, work: Callable[[], dict[str, Any]]) -> None:
        """Run `work` unless the stage's directory holds what the same inputs made."""
        self.stage_number += 1
        heading = f"[{self.stage_number}/{self.stage_count}] {stage.what}"
        if stage.done:
            say(f"{heading}: done before, inputs unchanged")
            return
        say(heading)
        if self.main:
            make_ready(stage, self.directory, self.config.on_change, self.processes)
        PartialState().wait_for_everyone()
        with telling_of_a_full_disk(stage.checkpoints):
            outputs = work()
        if self.main:
            for kept in (bad_steps.FOLDER, METRICS):
                if (stage.checkpoints / kept).exists():
                    shutil.rmtree(stage.directory / kept, ignore_errors=True)
                    shutil.move(stage.checkpoints / kept, stage.directory / kept)
            mark_done(stage.directory, stage.key, outputs, stage.inputs)
            shutil.rmtree(stage.checkpoints, ignore_errors=True)
        PartialState().wait_for_everyone()
        if "says" in outputs:
            say(f"  {outputs['says']}")

    def _resume(self, stage: Stage) -> str | None:
        newest, damaged = newest_whole_checkpoint(stage.checkpoints)
        for path, wrong in damaged.items():
            say(f"  {path.name} {wrong}; it is removed")
            if self.main:
                shutil.rmtree(path)
        if newest is None:
            return None
        say(f"  going on from {newest.name}")
        return str(newest)

    def _callbacks(self, name: str, metrics: dict[str, str]) -> list[TrainerCallback]:
        return [TrainingBar(name, metrics), StopWhenAsked(self.stop)]

    def _supervised_callbacks(self, name: str, metrics: dict[str, str]) -> list[TrainerCallback]:
        """Of the stages that are not ObjectiveTrainer's, which has guards of its own."""
        return [*self._callbacks(name, metrics), FiniteGuard(self.config.training.max_bad_steps), WholeCheckpoints()]

    def _stop_if_asked(self) -> None:
        if self.stop.requested:
            raise Interrupted(f"stopped; what was done is kept in {self.directory}")

    # Stages -----------------------------------------------------------------------------------------------------

    def warm_stage(self) -> Stage:
        config = self.config
        inputs = {
            "rlobj": __version__,
            **_named("policy", asdict(config.policy)),
            **_named("env", asdict(config.env)),
            **_named("data", asdict(config.data)),
            **_named("warm_start", asdict(config.warm_start)),
            "seed": config.seed,
            **_contents(config),
        }
        return Stage(self.directory / "warm_start", "warm start: supervised training on labelled data", inputs)

    def warm_start(self) -> None:
        config, stage = self.config, self.warm_stage()

        def work() -> dict[str, Any]:
            policy, tokenizer = self._new_policy()
            rows, _ = self._rows(tokenizer)
            history = warm_start(
                policy,
                tokenizer,
                rows,
                stage.directory,
                epochs=config.warm_start.epochs,
                learning_rate=config.warm_start.learning_rate,
                batch_size=config.warm_start.batch_size,
                seed=config.seed,
                trl=config.warm_start.trl,
                callbacks=self._supervised_callbacks("supervised", {"loss": "ℓ"}),
                resume=self._resume(stage),
            )
            self._stop_if_asked()
            parameters = sum(p.numel() for p in policy.parameters())
            return {"history": history, "says": f"{parameters:,} parameters, {len(rows)} labelled rows"}

        self._do(stage, work)

    def _new_policy(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        made, labels = self.config.policy, self.task.label_names
        size = {
            "hidden_size": made.hidden_size,
            "layers": made.layers,
            "heads": made.heads,
            "max_length": made.max_length,
            "seed": self.config.seed,
        }
        if made.model is not None:
            tokenizer = load_tokenizer(made.model)
            model = load_causal(made.model) if labels is None else load_encoder(made.model, labels)
        else:
            tokenizer = make_tokenizer(self.task.texts(), made.vocab_size, made.max_length)
            model = make_causal(tokenizer, **size) if labels is None else make_encoder(tokenizer, labels, **size)
        return (model if labels is None else as_one_token_policy(model)), tokenizer

    def _rows(self, tokenizer: PreTrainedTokenizerBase) -> tuple[list[SupervisedRow], list[SupervisedRow]]:
        """Labelled rows to train on and held out, encoded once for all stages: they share one tokenizer."""
        if self._encoded is None:
            self._encoded = self.task.rows(tokenizer)
        return self._encoded

    def _supervised(self, tokenizer: PreTrainedTokenizerBase) -> list[SupervisedRow] | list[Source]:
        """What ℓ beside R is drawn from."""
        beside, sources = self.task.rows_beside_reward, self.config.objective.sources
        train = beside(tokenizer) if beside is not None else self._rows(tokenizer)[0]
        made = {TRAIN: train, **{name: make(tokenizer) for name, make in self.task.rows_of_source.items()}}
        return [Source(made[name], weight) for name, weight in sources.items()] if sources else train

    def _load(self, directory: Path) -> PreTrainedModel:
        labels = self.task.label_names
        return load_causal(directory) if labels is None else as_one_token_policy(load_encoder(directory, labels))

    def reward_inputs(self) -> dict[str, Any]:
        wanted = self.config.reward
        inputs: dict[str, Any] = {"reward.kind": wanted.kind}
        if self.trains_reward:
            inputs |= {"reward.pairs": wanted.pairs, **_named("reward.trl", wanted.trl)}
            inputs |= {"reward.lora": wanted.lora}
            inputs |= {"reward.ensemble": wanted.ensemble, "reward.normalise": wanted.normalise}
        elif wanted.kind == "trained":
            assert wanted.model is not None
            inputs |= {"reward.model": wanted.model, **_weights_of(wanted.model)}
        elif wanted.compose:
            inputs |= {"reward.compose": wanted.compose, **_code_of(wanted.compose)}
        elif wanted.kind == "function":
            inputs |= {"reward.function": wanted.function, **_code_of(wanted.function)}
            inputs |= _named("reward.kwargs", wanted.kwargs)
        return inputs

    def reward_stages(self) -> list[Stage]:
        """The stage that trains the reward model, if there is one."""
        inputs = {**self.warm_stage().inputs, **self.reward_inputs()}
        stage = Stage(self.directory / "reward_model", "reward model: trained on preference pairs", inputs)
        return [stage] if self.trains_reward else []

    def reward(self) -> Any:
        wanted = self.config.reward
        if wanted.kind == "environment":
            return None
        if wanted.compose:
            return composed(wanted)
        if wanted.kind == "function":
            assert wanted.function is not None
            return load_reward(
                wanted.function,
                wanted.kwargs,
                concurrency=wanted.concurrency,
                timeout=wanted.timeout,
                isolated=wanted.isolated,
            )
        if wanted.model is not None:
            return self._load_reward(wanted.model)
        (stage,) = self.reward_stages()
        rated = self.config.data.rated

        def work() -> dict[str, Any]:
            pairs, held_out = self._reward_rows()
            several = wanted.ensemble > 1
            # members that are done outlive an interruption beside the checkpoints, until all are
            made = [stage.checkpoints / f"member-{n}" for n in range(wanted.ensemble)] if several else [stage.directory]
            says = []
            for n, place in enumerate(made):
                if several and (place / "accuracy.json").exists():
                    metrics = json.loads((place / "accuracy.json").read_text(encoding="utf-8"))
                else:
                    metrics = (train_reward_model if rated is None else train_on_ratings)(
                        str(self.directory / "warm_start"),
                        load_tokenizer(self.directory / "warm_start"),
                        pairs,
                        held_out,
                        place,
                        {"seed": self.config.seed + n, **wanted.trl},
                        callbacks=self._supervised_callbacks(
                            "preferences" if rated is None else "ratings", {"loss": "loss", "accuracy": "accuracy"}
                        ),
                        lora=wanted.lora,
                        resume=None if several else self._resume(stage),
                    )
                    self._stop_if_asked()
                    if several and self.main:
                        atomic_write_json(place / "accuracy.json", metrics)
                says.append(_how_good(metrics))
            if wanted.normalise and self.main:
                conversations = self._warm_conversations()
                for place in made:
                    normalise(place, conversations)
            if several and self.main:
                stage.directory.mkdir(parents=True, exist_ok=True)
                for place in made:
                    shutil.rmtree(stage.directory / place.name, ignore_errors=True)
                    os.replace(place, stage.directory / place.name)
            PartialState().wait_for_everyone()
            rows = "pairs" if rated is None else "rated conversations"
            return {**metrics, "says": f"{', '.join(says)}, on {len(held_out)} held-out {rows} (95% interval)"}

        self._do(stage, work)
        return self._load_reward(str(stage.directory))

    def _how_the_reward_is_used(self) -> dict[str, Any]:
        wanted = self.config.reward
        return {"reward.kappa": wanted.kappa, **_named("reward.kwargs", wanted.kwargs)}

    def _reward_rows(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """What the reward model learns from, and what of it is held out."""
        if self.config.data.rated is None:
            return self.task.pairs()
        rows = data.rated_rows(self.config.data.rated)
        names = {row["label"] for row in rows if row.get("label") is not None}
        label = self.config.reward.kwargs.get("label")
        if not any(names <= outcome for outcome in YES_OR_NO) and label not in names:
            raise ValueError(
                f"data.rated has the labels {', '.join(sorted(map(str, names)))} and reward.kwargs.label is {label!r}: "
                "expected the one that is rewarded, such as --reward.kwargs.label good"
            )
        return data.split_rated(rows, HELD_OUT, self.config.seed)

    def _load_reward(self, path: str) -> Any:
        wanted = self.config.reward
        options = {"kappa": wanted.kappa} if member_paths(path) else {}
        return load_trained(path, **options, **wanted.kwargs)

    def _warm_conversations(self) -> list[tuple[Any, Any]]:
        """What the warm start says in some episodes of the training."""
        warm, seeds = self.directory / "warm_start", list(self.task.train_seeds)[:NORMALISED_ON]
        environments = TextVectorEnv(self.task.make_eval_env, len(seeds))
        with torch.random.fork_rng():
            torch.manual_seed(self.config.seed)
            rollouts = play(self._load(warm), load_tokenizer(warm), environments, seeds, self._sampling())
        return [(episode.prompt, episode.completion) for episode in rollouts.episodes]

    def policy_stage(self, lambda_sup: float | str) -> Stage:
        config = self.config
        inputs = {
            **self.warm_stage().inputs,
            **self.reward_inputs(),
            **_named("training", {k: v for k, v in asdict(config.training).items() if k not in TOLD_TO_OTHERS}),
            **_named("rollout", asdict(config.rollout)),
            **(_named("ppo", asdict(config.ppo)) if config.training.estimator == "ppo" else {}),
            **_named("objective", asdict(config.objective)),
            "objective.lambda_sup": lambda_sup,
            **_contents_of(config.objective.sources),
            "reward.on_failure": config.reward.on_failure,
            **(self._how_the_reward_is_used() if config.reward.kind == "trained" else {}),
        }
        what = f"policy: −R + λℓ with {lambda_title(lambda_sup)}"
        return Stage(lambda_directory(self.directory, lambda_sup), what, inputs)

    def policy(self, lambda_sup: float | str, reward: Any) -> None:
        config, stage = self.config, self.policy_stage(lambda_sup)
        directory = stage.directory

        def work() -> dict[str, Any]:
            warm = self.directory / "warm_start"
            tokenizer = load_tokenizer(warm)
            args = self._grpo_config(stage.checkpoints)
            begin_run(
                config.training.trackers,
                args,
                project=config.training.project or config.name,
                group=lambda_title(lambda_sup),
                run=f"seed {config.policy_seed}",
                directory=self.directory / "trackers",
            )
            trainer = ObjectiveTrainer(
                self._load(warm),
                args=args,
                processing_class=tokenizer,
                env=self.task.train_env,
                reward=reward,
                on_error=config.reward.on_failure,
                train_seeds=self.task.train_seeds,
                supervised=self._supervised(tokenizer),
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
                peft_config=self._peft_config(),
                max_length=config.policy.max_length,
                dropout=not args.disable_dropout,
                callbacks=self._callbacks(
                    lambda_title(lambda_sup),
                    {"objective/return": "R", "environment/success": "success", "objective/ell": "ℓ"},
                ),
            )
            quiet(trainer)
            if config.policy.peft is not None:
                trained, every = parameter_counts(trainer.model)
                say(f"  {trained:,} of {every:,} parameters are trained")
            trainer.exact_resume = config.on_change != "continue"
            trainer.train(resume_from_checkpoint=self._resume(stage))
            end_run(config.training.trackers)
            self._stop_if_asked()
            if config.policy.peft is not None:
                trainer.model = merged(trainer.accelerator.unwrap_model(trainer.model))
            trainer.save_model(str(directory))  # by all: FSDP gathers what the main process writes
            if self.main:
                (directory / "training_args.bin").unlink(missing_ok=True)  # a pickle: config.yaml says it all
            return {"history": trainer.state.log_history, "warnings": trainer.alarms.told}

        self._do(stage, work)

    def _grpo_config(self, output_dir: Path) -> GRPOConfig:
        """TRL's configuration of the policy stage; whatever the recipe sets in training.trl wins."""
        training = self.config.training
        accumulation = int(training.trl.get("gradient_accumulation_steps", 1))
        parts = PartialState().num_processes * accumulation
        batch, rest = divmod(training.prompts_per_step * training.num_generations, parts)
        if rest:
            raise ValueError(
                f"training.prompts_per_step × num_generations is {batch * parts + rest}, which {parts} parts "
                "(processes × gradient_accumulation_steps) do not share out evenly: change one of them"
            )
        fields: dict[str, Any] = {
            "output_dir": str(output_dir),
            "max_steps": training.steps,
            "learning_rate": training.learning_rate,
            "num_generations": training.num_generations,
            "per_device_train_batch_size": batch,
            "max_completion_length": training.max_reply_tokens,
            "temperature": training.temperature,
            "beta": training.beta,
            "seed": self.config.policy_seed,
            "lr_scheduler_type": "constant_with_warmup",
            "warmup_steps": 3,
            **({"scale_rewards": "none"} if training.estimator == "rloo" else {}),
            "shuffle_dataset": False,  # the order of episodes is the task's, one pass over it
            "logging_steps": 1,
            "save_steps": max(training.steps // 4, 1),
            "save_total_limit": CHECKPOINTS_AT_ONCE - 1,
            "report_to": "none",
            "disable_tqdm": True,
            "bf16": False,
            "gradient_checkpointing": False,
            "disable_dropout": True,
            "dataloader_pin_memory": False,
        }
        return ObjectiveArguments(**{**fields, **training.trl})

    def _peft_config(self) -> Any:
        policy = self.config.policy
        return None if policy.peft is None else peft_config_of(policy.peft, self.config.training.steps)

    def _sampling(self) -> Sampling:
        """As in training."""
        args = self._grpo_config(self.directory)
        return Sampling.of(args, self.config.policy.max_length, **asdict(self.config.rollout))

    def evaluation(self, reward: Any, keys: Sequence[str]) -> dict[str, Any]:
        """Judge the warm start and the policies of the stages with these keys."""
        stage = Stage(
            self.directory / "evaluation",
            f"evaluation: {len(self.task.eval_seeds)} episodes never trained on, for each policy",
            {
                "policies": list(keys),
                "env.eval_episodes": self.config.env.eval_episodes,
                "sampling": asdict(self._sampling()),
            },
            kept=False,
        )
        policies = {
            WARM_START: self.directory / "warm_start",
            **{lambda_title(lam): lambda_directory(self.directory, lam) for lam in self.config.objective.lambdas},
        }

        def work() -> dict[str, Any]:
            tokenizer = load_tokenizer(self.directory / "warm_start")
            reference, held_out = self._load(self.directory / "warm_start"), self._rows(tokenizer)[1]
            table: list[dict[str, Any]] = []
            results: dict[str, Any] = {}
            for name, path in policies.items() if self.main else ():
                metrics, results[name] = self.judge(
                    name, self._load(path), None if name == WARM_START else reference, reward, tokenizer, held_out
                )
                table.append({"name": name, **metrics})
                self._stop_if_asked()
            return {"table": table, "results": results}

        self._do(stage, work)
        outputs = read_outputs(stage.directory)
        if self.main:
            atomic_write_json(self.directory / "summary.json", {"table": outputs["table"]})
        return outputs

    def judge(
        self,
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
        seeds = list(self.task.eval_seeds)
        with bar(name, len(seeds)) as progress:
            result = evaluate(
                policy,
                tokenizer,
                self.task.make_eval_env,
                reward,
                self._sampling(),
                seeds,
                held_out,
                reference,
                sampling_seed=self.config.seed,
                on_error=self.config.reward.on_failure,
                patience=Patience(self.config.env.step_timeout, self.config.env.restarts),
                on_progress=progress.advance,
            )
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

    def report(self, evaluation: dict[str, Any]) -> Path:
        path = self.directory / "report.html"
        if not self.main:
            return path
        facts = {
            "run": self.config.name,
            "environment": self.config.env.id,
            "seed": str(self.config.seed),
            "rlobj": __version__,
            **(self.task.facts or {}),
        }
        reward_model = self.directory / "reward_model"
        if self.trains_reward:
            facts["reward model"] = read_outputs(reward_model)["says"]
        curves: dict[str, dict[str, list[Point]]] = {}
        for lam in self.config.objective.lambdas:
            for title, points in policy_curves(self.directory, lam).items():
                curves.setdefault(title, {})[lambda_title(lam)] = points
        report.write_report(
            path,
            title=f"{self.config.name}: −R + λℓ",
            facts=facts,
            table=evaluation["table"],
            curves=curves,
            samples=samples(evaluation["results"]),
            pictures=drift_pictures(
                {
                    lambda_title(lam): against_kl(policy_history(self.directory, lam))
                    for lam in self.config.objective.lambdas
                }
            ),
            notes=[
                f"Warning: {lambda_title(lam)}, up to step {each['step']}: {each['text']}."
                for lam in self.config.objective.lambdas
                for each in warnings_of(self.directory, lam)
            ],
        )
        return path


def _how_good(metrics: Mapping[str, Any]) -> str:
    """What a reward model reached on its held-out rows, in words."""
    if "correlation" in metrics:
        low, high = metrics["correlation_interval"]
        return f"correlation with the scores {metrics['correlation']:.2f} [{low:.2f}, {high:.2f}]"
    low, high = metrics["accuracy_interval"]
    beside = f" (the most frequent label: {metrics['most_frequent']:.1%})" if "most_frequent" in metrics else ""
    what = "label right" if beside else "prefers the better of two"
    return f"{what} {metrics['accuracy']:.1%} [{low:.1%}, {high:.1%}]{beside}"


def _bytes_needed(policy: PolicyConfig, stages: int) -> int:
    """About what a run writes: the weights of each stage, and checkpoints of one, which hold them and two moments."""
    if policy.model is None:
        weights = 4 * (policy.vocab_size * policy.hidden_size + 16 * policy.layers * policy.hidden_size**2)
    else:
        weights = sum(file.stat().st_size for file in Path(policy.model).glob("*.safetensors"))
    return weights * (stages + 3 * CHECKPOINTS_AT_ONCE)


def warnings_of(run_dir: Path, lambda_sup: float | str) -> list[dict[str, Any]]:
    """What the training of the policy of one λ was warned of: `kind`, `step` and `text`."""
    told: list[dict[str, Any]] = read_outputs(lambda_directory(run_dir, lambda_sup)).get("warnings", [])
    return told


def _named(section: str, fields: dict[str, Any]) -> dict[str, Any]:
    """Fields by their dotted names, as on the command line."""
    return {f"{section}.{name}": value for name, value in fields.items()}


def _contents(config: RunConfig) -> dict[str, str]:
    """Digests of the files that the data and the environment's arguments name, and of the weights of the model that is
    begun with and of one that plays the user: what has changed in place is another input."""
    given = [
        config.data.train,
        config.data.eval,
        config.data.preferences,
        config.data.rated,
        *config.env.kwargs.values(),
    ]
    names = [name.removeprefix(MODEL_USER) for name in given if isinstance(name, str) and name]
    contents = _contents_of(names)
    for name in [*names, config.policy.model or ""]:
        contents |= _weights_of(name)
    return contents


def _contents_of(names: Iterable[str]) -> dict[str, str]:
    """Digests of those that are files."""
    files = {name: Path(name) if Path(name).is_file() else shipped().get(name) for name in names}
    return {f"content of {name}": content_digest(file) for name, file in files.items() if file is not None}


def _weights_of(model: str) -> dict[str, str]:
    files = [Path(model), *member_paths(model)] if model else []
    weights = [folder / "model.safetensors" for folder in files]
    return {f"weights of {file.parent}": content_digest(file) for file in weights if file.is_file()}


def _code_of(rewards: Any) -> dict[str, str]:
    """Digests of the user's files that rewards stand in: edited, they are others."""
    if isinstance(rewards, dict):
        return {name: code for pair in rewards.items() for part in pair for name, code in _code_of(part).items()}
    if isinstance(rewards, list):
        return {name: code for part in rewards for name, code in _code_of(part).items()}
    file = Path(str(rewards).rpartition(":")[0])
    return {f"code of {file}": content_digest(file)} if file.suffix == ".py" and file.is_file() else {}


def samples(results: Mapping[str, Any], most: int = 4) -> list[dict[str, Any]]:
    """The same held-out episodes of every policy: first those where the outcome differs, then the others.

    Args:
        results: of `evaluation`, by policy.
    """
    sides = [(name, result["episodes"], result["per_episode"]["return"]) for name, result in results.items()]
    numbers = range(min(len(episodes) for _, episodes, _ in sides))
    differing = [n for n in numbers if len({episodes[n]["success"] for _, episodes, _ in sides}) > 1]
    chosen = [*differing[: most - 1], *[n for n in numbers if n not in differing]][:most]
    return [
        {
            "title": f"episode {sides[0][1][n]['seed']}",
            "sides": [
                {
                    "name": name,
                    "messages": episodes[n]["messages"],
                    "success": episodes[n]["success"],
                    "rewards": {"return": returns[n], **episodes[n].get("rewards", {})},
                }
                for name, episodes, returns in sides
            ],
        }
        for n in chosen
    ]


def report_again(run_dir: Path) -> Path:
    """Write the report of a finished run again, from what its stages wrote; return its path.

    Raises:
        ValueError: the directory holds no finished run.
    """
    if not (run_dir / "config.yaml").exists() or not (run_dir / "evaluation" / "stage.json").exists():
        raise ValueError(f"{run_dir} holds no finished run: expected what rlobj run or rlobj compare wrote")
    config = _config_of(run_dir)
    return _Run(config, make_task(config)).report(read_outputs(run_dir / "evaluation"))


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
    config = _config_of(run_dir)
    this = _Run(config, make_task(config))
    warm = this.directory / "warm_start"
    tokenizer, reference, reward = load_tokenizer(warm), this._load(warm), this.reward()
    first, second = (this._load(path) for path in ends)
    held_out = this._rows(tokenizer)[1]
    for name, make in made.items():
        yield name, this.judge(name, make(first, second), reference, reward, tokenizer, held_out)[1]["per_episode"]


def _config_of(run_dir: Path) -> RunConfig:
    """The configuration of a run, wherever its folder lies now."""
    return load_recipe(str(run_dir / "config.yaml"), [f"--name={run_dir.name}", f"--output_dir={run_dir.parent}"])


def load_summary(run_dir: Path) -> list[dict[str, Any]]:
    """The evaluation table of a finished run."""
    return list(json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))["table"])
