"""What a run is: one typed tree. `rlobj.recipes` reads it from YAML and the command line.

The docstring under a field is its help on the command line. Nothing here imports torch.
"""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from rlobj.validation import validate

__all__ = [
    "DataConfig",
    "EnvConfig",
    "ModelConfig",
    "ObjectiveConfig",
    "PolicyConfig",
    "RewardConfig",
    "RolloutConfig",
    "RunConfig",
    "TrainingConfig",
    "WarmStartConfig",
    "dump",
    "validate",
]


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A model to begin with, or the size of a new one."""

    model: str | None = None
    """directory, run of rlobj fit or pretrain, or hub id to start from; null makes a new model of the size below"""
    hidden_size: int = 128
    """width of a new model"""
    layers: int = 2
    """layers of a new model"""
    heads: int = 4
    """attention heads of a new model; they divide hidden_size"""
    vocab_size: int = 2000
    """most entries in a new tokenizer"""
    max_length: int = 512
    """longest conversation (text) of a new model, in tokens"""

    def __post_init__(self) -> None:
        if self.model is not None and (Path(self.model) / "model" / "config.json").is_file():
            object.__setattr__(self, "model", str(Path(self.model) / "model"))  # of a run of rlobj fit or pretrain


@dataclass(frozen=True, slots=True)
class PolicyConfig(ModelConfig):
    """The policy M_θ."""

    kind: Literal["causal", "encoder"] = "causal"
    """causal: a language model that writes replies; encoder: a classifier that chooses labels"""
    head_only: bool = False
    """encoder: train the label head alone, the encoder stays as it is; a very large λ is then a linear probe of it"""
    peft: dict[str, Any] | None = None
    """reinforcement learning trains an adapter alone: {method: lora, r: 8}, adalora or ia3; merged when saved"""


@dataclass(frozen=True, slots=True)
class EnvConfig:
    """The Gymnasium text environment that the return comes from."""

    id: str
    """registered id; "module:id" imports the module first"""
    kwargs: dict[str, Any] = field(default_factory=dict)
    """arguments of the environment"""
    train_episodes: int = 2000
    """different episodes (seeds) to train on"""
    eval_episodes: int = 200
    """episodes of the evaluation, never trained on"""
    step_timeout: float | None = None
    """seconds for one step or reset of the environment; null waits for ever"""
    restarts: int = 0
    """begin an episode again so often where a step or reset raises or is late; what was said before is said again"""


@dataclass(frozen=True, slots=True)
class RewardConfig:
    """What R is the expectation of."""

    kind: Literal["trained", "function", "environment"] = "environment"
    """trained: a reward model; function: a Python function; environment: the environment's own measure"""
    function: str | None = None
    """name of a shipped or installed one, "module:name", or "path/to/file.py:name" (see `rlobj list rewards`)"""
    kwargs: dict[str, Any] = field(default_factory=dict)
    """parameters of the function"""
    compose: dict[str, Any] = field(default_factory=dict)
    """several functions in one reward: {sum: {success: 1, politeness: 0.2}}, min, product, gate, clip"""
    concurrency: int | None = None
    """calls of the function at the same time; null: 16 where it is async and scores one episode, else 1"""
    timeout: float | None = None
    """seconds for one call of the function; null waits for ever"""
    isolated: bool = False
    """call the function in a process of its own, which is killed after the timeout: a CPU loop ends in no other way"""
    model: str | None = None
    """reward model directory or hub id; null trains one"""
    pairs: int = 1500
    """preference pairs to train one on"""
    ensemble: int = 1
    """models to train, each with a seed of its own; the reward is their mean less kappa standard deviations"""
    kappa: float = 1.0
    """what disagreement of an ensemble costs"""
    normalise: bool = False
    """scale a trained one so that 0 is the mean of what the warm start earns, and 1 a standard deviation"""
    on_error: Literal["stop", "skip", "penalise"] = "stop"
    """a reward that raises, is late, or is no finite number: stop; leave the episode out; or give it the penalty"""
    penalty: float | None = None
    """reward of an episode whose reward failed, with on_error penalise"""
    lora: dict[str, Any] | None = None
    """fields of peft.LoraConfig, such as {r: 8}: train an adapter alone, which is merged when saved"""
    trl: dict[str, Any] = field(default_factory=dict)
    """any field of trl.RewardConfig"""

    @property
    def on_failure(self) -> Literal["stop", "skip"] | float:
        """on_error and penalty in one: "stop", "skip", or the penalty."""
        if self.on_error != "penalise":
            return self.on_error
        assert self.penalty is not None  # validation has seen to it
        return self.penalty


@dataclass(frozen=True, slots=True)
class DataConfig:
    """Labelled data: what ℓ is measured on, and what the warm start learns."""

    train: str | None = None
    """JSON lines or CSV file, or data set id; null takes the environment's own expert or examples"""
    eval: str | None = None
    """held-out data; null splits it off train"""
    preferences: str | None = None
    """pairs for the reward model: columns chosen and rejected, optionally prompt"""
    rated: str | None = None
    """conversations to train the reward model on in place of pairs: messages (or prompt and completion), and score or
    label"""
    text_column: str = "text"
    """column of the texts to classify"""
    label_column: str = "label"
    """column of their labels"""
    demonstrations: int = 1500
    """expert dialogues to draw where the environment has an expert"""
    limit: int | None = None
    """use this many rows at most, drawn at random from a file; null uses all"""
    role: Literal["assistant", "user"] = "assistant"
    """dialogues: whose side the policy plays; user trains a model that can play the user (env.kwargs.user)"""
    rows_per_label: int | None = None
    """classification: ℓ and the warm start see this many rows of each label, R sees all; null shows both all"""


@dataclass(frozen=True, slots=True)
class WarmStartConfig:
    """Supervised training before reinforcement learning."""

    epochs: float = 3.0
    """passes over the labelled data; 0 skips the warm start"""
    learning_rate: float = 1e-3
    """peak learning rate"""
    batch_size: int = 32
    """examples in one optimiser step"""
    trl: dict[str, Any] = field(default_factory=dict)
    """any field of trl.SFTConfig"""


def _number_or_text(value: float | str) -> float | str:
    try:
        return float(value)
    except ValueError:
        return value


@dataclass(frozen=True, slots=True)
class ObjectiveConfig:
    """L(θ) = −R(θ) + λ·ℓ(M_θ(x), y)."""

    lambda_sup: float | str | list[float | str] = field(default_factory=lambda: list[float | str]([0.0, 0.1]))
    """λ ≥ 0, which multiplies ℓ: a number, a form (linear:start=0.5,end=0,steps=40), or several"""
    supervised_batch_size: int = 32
    """rows of ℓ in one optimiser step"""
    sources: dict[str, float] = field(default_factory=dict)
    """draw ℓ's rows from several: {file or data set: weight}; the name train is the labelled data of the warm start"""
    only_successful: bool = False
    """measure ℓ beside R on those expert dialogues alone that reached the goal; the warm start has them all"""
    token_weights: Literal["none", "chord"] = "none"
    """of a target token in ℓ: none, or p(1 − p) as CHORD has it"""
    surgery: Literal["none", "pcgrad"] = "none"
    """what is done where ∇R and λ∇ℓ oppose each other: nothing, or PCGrad at the cost of two more backward passes"""
    probe_every: int = 10
    """measure ‖∇R‖, ‖∇ℓ‖ and their cosine every so many steps; 0 for the first step alone"""

    @property
    def lambdas(self) -> list[float | str]:
        """λ as a list, in the order given: numbers, and texts that name a form."""
        given = self.lambda_sup
        if isinstance(given, list):
            return [_number_or_text(value) for value in given]
        return [_number_or_text(given)]


EstimatorName = Literal["grpo", "rloo", "reinforce", "ppo", "exact"]
ESTIMATORS: tuple[str, ...] = get_args(EstimatorName)


@dataclass(frozen=True, slots=True)
class PPOConfig:
    """The critic of training.estimator ppo, and what is made of its values."""

    gamma: float = 1.0
    """discount"""
    gae_lambda: float = 0.95
    """0: one step, and the critic's opinion of the rest; 1: the whole return"""
    credit: Literal["token", "turn"] = "token"
    """whether gamma and gae_lambda count tokens, or turns of the policy"""
    whiten: bool = True
    """scale advantages to mean 0 and standard deviation 1 over the policy's tokens of a generation"""
    clip_value: float = 0.2
    """how far a value may move within one generation; 0: as far as it likes"""
    learning_rate: float = 1e-3
    """of the critic"""
    hidden_size: int = 64
    """of the critic's hidden layer"""


@dataclass(frozen=True, slots=True)
class RolloutConfig:
    """What ends the replies and episodes of a policy that writes, beside training.max_reply_tokens."""

    stop: list[str] = field(default_factory=list)
    """a reply ends with the token that completes one of these strings, too; they stay part of it"""
    max_episode_tokens: int | None = None
    """tokens that the policy may write in one episode; null: as many as fit"""
    max_turns: int = 1000
    """replies in one episode"""
    overflow: Literal["truncate", "drop_oldest", "error"] = "truncate"
    """the conversation outgrows policy.max_length: cut the episode short; drop the oldest turns and encode the rest
    again (replies before that are not trained on); or stop"""
    long_prompts: Literal["cut", "drop", "error"] = "cut"
    """an opening leaves no room for a reply in policy.max_length: cut it; leave such episodes out; or stop, both before
    the first step"""
    concurrent: int | None = None
    """episodes in memory at a time, a new one taking the place of one that has ended; null: all of a step"""


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """Reinforcement learning with trl.GRPOTrainer."""

    steps: int = 50
    """optimiser steps for each λ"""
    learning_rate: float = 1e-4
    """peak learning rate"""
    seed: int | None = None
    """of the episodes' order and the sampling; null takes the run's seed"""
    estimator: EstimatorName = "grpo"
    """of ∇R: grpo, rloo (leave one out), reinforce (moving baseline), ppo (critic), exact (every label tried)"""
    num_generations: int = 8
    """episodes from the same start; grpo and rloo compare at least 2 with one another, the others take 1"""
    prompts_per_step: int = 8
    """different starts in one optimiser step"""
    max_reply_tokens: int = 40
    """longest reply in one turn, in tokens"""
    temperature: float = 1.0
    """sampling temperature"""
    kl_every: int = 5
    """log the KL to the warm start every so many steps; 0: never"""
    kl_limit: float | None = None
    """end the training where the KL to the warm start is above so many nats per token"""
    beta: float = 0.0
    """weight of the KL penalty to the warm start"""
    kl_in: Literal["loss", "reward"] = "loss"
    """where the penalty stands: in TRL's loss, or in the reward of each token"""
    beta_target: float | None = None
    """steer beta so that this KL stays at so many nats per token; null leaves beta as it is"""
    target_kl: float | None = None
    """leave out a generation's remaining optimiser steps once the KL to the policy that sampled is above (nats per
    token)"""
    max_bad_steps: int = 3
    """give up after so many non-finite steps in a row (each is skipped)"""
    keep_best: int = 0
    """judge the policy every so many steps, on as many held-out episodes as the evaluation has and none of its, and
    keep the best by task success (accuracy, or else return); 0: the last"""
    report_to: str | list[str] = "none"
    """trackers that are told what is logged, too: tensorboard, trackio, wandb, or several"""
    project: str | None = None
    """what trackers call the whole; null takes the run's name"""
    trl: dict[str, Any] = field(default_factory=dict)
    """any other field of trl.GRPOConfig"""

    @property
    def trackers(self) -> list[str]:
        """report_to as a list."""
        given = [self.report_to] if isinstance(self.report_to, str) else self.report_to
        return [name for name in given if name != "none"]


@dataclass(frozen=True, slots=True)
class RunConfig:
    """A run."""

    name: str
    """name of the run, and of its folder in output_dir"""
    env: EnvConfig
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    data: DataConfig = field(default_factory=DataConfig)
    warm_start: WarmStartConfig = field(default_factory=WarmStartConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    ppo: PPOConfig = field(default_factory=PPOConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    seed: int = 0
    """seed of everything random"""
    output_dir: str = "runs"
    """folder of all runs"""
    on_change: Literal["refuse", "continue", "restart"] = "refuse"
    """a stage is half done with other inputs: say what differs and refuse, go on from there, or begin it again"""

    @property
    def policy_seed(self) -> int:
        """The seed of reinforcement learning."""
        return self.seed if self.training.seed is None else self.training.seed


def dump(config: Any) -> str:
    """The whole tree as YAML; `load_recipe` reads it back to an equal tree."""
    text: str = yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, allow_unicode=True)
    return text
