"""A run from nothing to a report: warm start, reward model, one policy per λ, evaluation, report.

Each stage writes one directory under the run's and is not run again while its inputs stay the same; a stage that was
interrupted goes on from its newest checkpoint. Every process of a distributed launch walks through the same stages.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from trl import GRPOConfig

import rlobj.report as report
from envs.datasets import shipped
from reward_models.functions import load_reward
from reward_models.trained import TrainedReward
from reward_models.training import train_reward_model
from rlobj import __version__
from rlobj.callbacks import WholeCheckpoints, newest_whole_checkpoint
from rlobj.config import RunConfig, dump, validate
from rlobj.encoder_policy import as_one_token_policy
from rlobj.evaluation import evaluate
from rlobj.lambdas import lambda_name
from rlobj.policies import load_causal, load_encoder, load_tokenizer, make_causal, make_encoder, make_tokenizer
from rlobj.progress import StopWhenAsked, TrainingBar, bar, say
from rlobj.rollout import Sampling
from rlobj.runs import (
    atomic_write_json,
    atomic_write_text,
    content_digest,
    graceful_signals,
    is_done,
    mark_done,
    read_outputs,
    stage_key,
)
from rlobj.supervised import SupervisedRow, quiet, warm_start
from rlobj.tasks import MODEL_USER, Task, make_task
from rlobj.trainer import ObjectiveArguments, ObjectiveTrainer
from rlobj.validation import composed

WARM_START = "warm start"
CURVES = {
    "environment/success": "task success in training",
    "objective/return": "mean return R̂",
    "objective/ell": "supervised loss ℓ",
    "gradient/ratio": "λ‖∇ℓ‖ / ‖∇R‖",
    "gradient/cosine": "cosine of the two gradients",
    "entropy": "entropy of the policy, nats per token",
}


class Interrupted(KeyboardInterrupt):
    """A run was asked to stop, and has saved what it had."""


def run(config: RunConfig) -> Path:
    """Run every stage of `config` that has not run yet; return the path of the report.

    Raises:
        ValueError: the configuration or its data are not usable, before anything is trained.
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
        ValueError, Interrupted: as `run`.
    """
    validate(config)
    this = _Run(config, make_task(config))
    this.stage_count = 1 + this.trains_reward
    with graceful_signals() as this.stop:
        this.begin()
        warm_key = this.warm_start()
        this.reward(warm_key)
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


def policy_curves(run_dir: Path, lambda_sup: float | str) -> dict[str, list[tuple[int, float]]]:
    """Learning curves of the policy of one λ: title, one of CURVES, -> (optimiser step, value)."""
    history = read_outputs(lambda_directory(run_dir, lambda_sup))["history"]
    curves = {
        title: [(int(log["step"]), float(log[key])) for log in history if log.get(key) is not None]
        for key, title in CURVES.items()
    }
    return {title: points for title, points in curves.items() if points}


class _Run:
    """The stages of one run, and what they hand on."""

    def __init__(self, config: RunConfig, task: Task) -> None:
        self.config, self.task = config, task
        self.directory = Path(config.output_dir) / config.name
        self.main = PartialState().is_main_process
        self.stop: Any = None
        self.trains_reward = config.reward.kind == "trained" and config.reward.model is None
        self.stage_count = 4 + len(config.objective.lambdas) - (config.reward.kind != "trained")
        self.stage_number = 0
        self._encoded: tuple[list[SupervisedRow], list[SupervisedRow]] | None = None

    def begin(self) -> None:
        if self.main:
            self.directory.mkdir(parents=True, exist_ok=True)
            atomic_write_text(self.directory / "config.yaml", dump(self.config))
        self._grpo_config(self.directory)  # what TRL would refuse is refused now, before hours of other stages

    def all_stages(self) -> Path:
        self.begin()
        warm_key = self.warm_start()
        reward, reward_key = self.reward(warm_key)
        keys = {lam: self.policy(lam, reward, f"{warm_key}{reward_key}") for lam in self.config.objective.lambdas}
        evaluation = self.evaluation(reward, [warm_key, reward_key, *keys.values()])
        path = self.report(evaluation)
        if self.main:
            say("")
            say(report.text_table(evaluation["table"]))
            say(f"\nreport    {path}\npolicies  {self.directory / 'policies'}")
            if self.task.label_names is None:
                say(f"talk to one with: rlobj chat {self.directory}")
        return path

    def _stage(self, directory: Path, what: str, inputs: Any, work: Callable[[], dict[str, Any]]) -> str:
        """Run `work` unless `directory` holds what the same inputs made; return the stage's key."""
        self.stage_number += 1
        key = stage_key({"version": __version__, "inputs": inputs})
        heading = f"[{self.stage_number}/{self.stage_count}] {what}"
        if is_done(directory, key):
            say(f"{heading}: done before, inputs unchanged")
            return key
        say(heading)
        if self.main:
            self._forget_other_checkpoints(directory, key)
        PartialState().wait_for_everyone()
        outputs = work()
        if self.main:
            mark_done(directory, key, outputs)
            shutil.rmtree(self._checkpoints(directory), ignore_errors=True)
        PartialState().wait_for_everyone()
        if "says" in outputs:
            say(f"  {outputs['says']}")
        return key

    def _checkpoints(self, directory: Path) -> Path:
        return directory.parent / "checkpoints" / directory.name

    def _forget_other_checkpoints(self, directory: Path, key: str) -> None:
        """Checkpoints of a stage whose inputs have changed since must not be gone on with."""
        folder = self._checkpoints(directory)
        marker = folder / "stage-key"
        if folder.exists() and not (marker.exists() and marker.read_text() == key):
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write_text(marker, key)

    def _resume(self, directory: Path) -> str | None:
        folder = self._checkpoints(directory)
        newest, damaged = newest_whole_checkpoint(folder)
        for path in damaged:
            say(f"  {path.name} was not written to its end, and is removed")
            if self.main:
                shutil.rmtree(path)
        if newest is None:
            return None
        say(f"  going on from {newest.name}")
        return str(newest)

    def _callbacks(self, name: str, metrics: dict[str, str]) -> list[TrainerCallback]:
        return [TrainingBar(name, metrics), StopWhenAsked(self.stop), WholeCheckpoints()]

    def _stop_if_asked(self) -> None:
        if self.stop.requested:
            raise Interrupted(f"stopped; what was done is kept in {self.directory}")

    # Stages -----------------------------------------------------------------------------------------------------

    def warm_start(self) -> str:
        config, directory = self.config, self.directory / "warm_start"

        def work() -> dict[str, Any]:
            policy, tokenizer = self._new_policy()
            rows, _ = self._rows(tokenizer)
            history = warm_start(
                policy,
                tokenizer,
                rows,
                directory,
                epochs=config.warm_start.epochs,
                learning_rate=config.warm_start.learning_rate,
                batch_size=config.warm_start.batch_size,
                seed=config.seed,
                trl=config.warm_start.trl,
                callbacks=self._callbacks("supervised", {"loss": "ℓ"}),
                resume=self._resume(directory),
            )
            self._stop_if_asked()
            parameters = sum(p.numel() for p in policy.parameters())
            return {"history": history, "says": f"{parameters:,} parameters, {len(rows)} labelled rows"}

        inputs = [
            asdict(config.policy),
            asdict(config.env),
            asdict(config.data),
            asdict(config.warm_start),
            config.seed,
            _fingerprints(config),
        ]
        return self._stage(directory, "warm start: supervised training on labelled data", inputs, work)

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

    def _load(self, directory: Path) -> PreTrainedModel:
        labels = self.task.label_names
        return load_causal(directory) if labels is None else as_one_token_policy(load_encoder(directory, labels))

    def reward(self, warm_key: str) -> tuple[Any, str]:
        wanted = self.config.reward
        if wanted.kind == "environment":
            return None, ""
        if wanted.compose:
            return composed(wanted), str(wanted.compose)
        if wanted.kind == "function":
            assert wanted.function is not None
            reward = load_reward(
                wanted.function,
                wanted.kwargs,
                concurrency=wanted.concurrency,
                timeout=wanted.timeout,
                isolated=wanted.isolated,
            )
            return reward, wanted.function + (str(wanted.kwargs) if wanted.kwargs else "") + _code_of(wanted.function)
        if wanted.model is not None:
            return TrainedReward(wanted.model), wanted.model
        directory = self.directory / "reward_model"

        def work() -> dict[str, Any]:
            pairs, held_out = self.task.pairs()
            metrics = train_reward_model(
                str(self.directory / "warm_start"),
                load_tokenizer(self.directory / "warm_start"),
                pairs,
                held_out,
                directory,
                {"seed": self.config.seed, **wanted.trl},
                callbacks=self._callbacks("preferences", {"loss": "loss", "accuracy": "accuracy"}),
                resume=self._resume(directory),
            )
            self._stop_if_asked()
            low, high = metrics["accuracy_interval"]
            return {
                **metrics,
                "says": f"prefers the better of two on {metrics['accuracy']:.1%} of {len(held_out)} "
                f"held-out pairs, 95% interval {low:.1%} to {high:.1%}",
            }

        inputs = [warm_key, wanted.pairs, wanted.trl]
        key = self._stage(directory, "reward model: trained on preference pairs", inputs, work)
        return TrainedReward(directory), key

    def policy(self, lambda_sup: float | str, reward: Any, upstream: str) -> str:
        config, directory = self.config, lambda_directory(self.directory, lambda_sup)

        def work() -> dict[str, Any]:
            warm = self.directory / "warm_start"
            tokenizer, beside = load_tokenizer(warm), self.task.rows_beside_reward
            trainer = ObjectiveTrainer(
                self._load(warm),
                args=self._grpo_config(directory),
                processing_class=tokenizer,
                env=self.task.train_env,
                reward=reward,
                on_error=config.reward.on_failure,
                train_seeds=self.task.train_seeds,
                supervised=beside(tokenizer) if beside is not None else self._rows(tokenizer)[0],
                lambda_sup=lambda_sup,
                supervised_batch_size=config.objective.supervised_batch_size,
                probe_every=config.objective.probe_every,
                max_bad_steps=config.training.max_bad_steps,
                estimator=config.training.estimator,
                ppo=config.ppo,
                max_length=config.policy.max_length,
                callbacks=self._callbacks(
                    lambda_title(lambda_sup),
                    {"objective/return": "R", "environment/success": "success", "objective/ell": "ℓ"},
                ),
            )
            quiet(trainer)
            trainer.train(resume_from_checkpoint=self._resume(directory))
            self._stop_if_asked()
            if self.main:
                trainer.save_model(str(directory))
                (directory / "training_args.bin").unlink(missing_ok=True)  # a pickle: config.yaml says it all
            return {"history": trainer.state.log_history}

        what = f"policy: −R + λℓ with {lambda_title(lambda_sup)}"
        inputs = [
            upstream,
            asdict(config.training),
            *([asdict(config.ppo)] if config.training.estimator == "ppo" else []),
            config.objective.supervised_batch_size,
            config.objective.probe_every,
            *([config.reward.on_failure] if config.reward.on_failure != "stop" else []),
            *(["only_successful"] if config.objective.only_successful else []),
            lambda_sup,
            config.seed,
        ]
        return self._stage(directory, what, inputs, work)

    def _grpo_config(self, directory: Path) -> GRPOConfig:
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
            "output_dir": str(self._checkpoints(directory)),
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
            "save_total_limit": 2,
            "report_to": "none",
            "disable_tqdm": True,
            "bf16": False,
            "gradient_checkpointing": False,
            "disable_dropout": True,
            "dataloader_pin_memory": False,
        }
        return ObjectiveArguments(**{**fields, **training.trl})

    def _sampling(self) -> Sampling:
        training = self.config.training
        return Sampling(training.max_reply_tokens, self.config.policy.max_length, training.temperature)

    def evaluation(self, reward: Any, upstream: Sequence[str]) -> dict[str, Any]:
        directory = self.directory / "evaluation"
        policies = {
            WARM_START: self.directory / "warm_start",
            **{lambda_title(lam): lambda_directory(self.directory, lam) for lam in self.config.objective.lambdas},
        }

        def work() -> dict[str, Any]:
            tokenizer = load_tokenizer(self.directory / "warm_start")
            reference, held_out = self._load(self.directory / "warm_start"), self._rows(tokenizer)[1]
            table: list[dict[str, Any]] = []
            results: dict[str, Any] = {}
            seeds = list(self.task.eval_seeds)
            for name, path in policies.items() if self.main else ():
                with bar(name, len(seeds)) as progress:
                    result = evaluate(
                        self._load(path),
                        tokenizer,
                        self.task.make_eval_env,
                        reward,
                        self._sampling(),
                        seeds,
                        held_out,
                        None if name == WARM_START else reference,
                        sampling_seed=self.config.seed,
                        on_error=self.config.reward.on_failure,
                        on_progress=progress.advance,
                    )
                kl = {"kl": (0.0, 0.0, 0.0)} if name == WARM_START else {}  # the warm start's to itself
                table.append({"name": name, **result.metrics, **kl})
                results[name] = {
                    "per_episode": result.per_episode,
                    "episodes": [
                        {"seed": e.seed, "success": e.columns.get("success"), "messages": [*e.prompt, *e.completion]}
                        for e in result.episodes[:200]
                    ],
                }
                self._stop_if_asked()
            return {"table": table, "results": results}

        self._stage(
            directory,
            f"evaluation: {len(self.task.eval_seeds)} episodes never trained on, for each policy",
            [*upstream, self.config.env.eval_episodes, self.config.training.temperature],
            work,
        )
        outputs = read_outputs(directory)
        if self.main:
            atomic_write_json(self.directory / "summary.json", {"table": outputs["table"]})
        return outputs

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
        curves: dict[str, dict[str, list[tuple[int, float]]]] = {}
        for lam in self.config.objective.lambdas:
            for title, points in policy_curves(self.directory, lam).items():
                curves.setdefault(title, {})[lambda_title(lam)] = points
        report.write_report(
            path,
            title=f"{self.config.name}: −R + λℓ",
            facts=facts,
            table=evaluation["table"],
            curves=curves,
            samples=_samples(evaluation["results"]),
        )
        return path


def _fingerprints(config: RunConfig) -> list[str]:
    """Digests of the files that the data and the environment's arguments name, and of the weights of a model that plays
    the user: one whose content has changed is another input."""
    given = [config.data.train, config.data.eval, config.data.preferences, *config.env.kwargs.values()]
    names = [name.removeprefix(MODEL_USER) for name in given if isinstance(name, str) and name]
    paths = [Path(name) / "model.safetensors" if Path(name).is_dir() else Path(name) for name in names]
    files = [path if path.is_file() else shipped().get(name) for path, name in zip(paths, names, strict=True)]
    return [content_digest(file) for file in files if file is not None]


def _code_of(reward: str) -> str:
    """Digest of the user's file that a reward stands in: edited, it is another reward."""
    file = Path(reward.rpartition(":")[0])
    return content_digest(file) if file.suffix == ".py" and file.is_file() else ""


def _samples(results: dict[str, Any], most: int = 4) -> list[dict[str, Any]]:
    """The same held-out goals before and after: first those where the outcome changed, either way, then the others."""
    names = list(results)
    before, after = results[names[0]]["episodes"], results[names[-1]]["episodes"]
    pairs = list(zip(before, after, strict=True))
    changed = [p for p in pairs if p[0]["success"] != p[1]["success"]]
    chosen = [*changed[: most - 1], *[p for p in pairs if p not in changed]][:most]
    return [
        {
            "title": f"episode {a['seed']}: {names[0]}, then {names[-1]}",
            "before": b["messages"],
            "after": a["messages"],
            "before_success": b["success"],
            "after_success": a["success"],
        }
        for b, a in chosen
    ]


def load_summary(run_dir: Path) -> list[dict[str, Any]]:
    """The evaluation table of a finished run."""
    return list(json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))["table"])
