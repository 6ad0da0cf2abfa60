"""What a supervised or self-supervised training is: typed trees beside `rlobj.config.RunConfig`, and their checks.

The docstring under a field is its help on the command line. Nothing here imports torch.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rlobj.checks import at_least, check_data_file, check_model_size, check_name
from rlobj.config import ModelConfig
from rlobj.controllers import Controller
from rlobj.lambdas import as_lambda, needs_labels
from rlobj.spelling import did_you_mean
from rlobj.trl_fields import check_trainer_fields

TaskName = Literal["text-classification", "token-classification", "regression", "language-modeling"]
METRICS: dict[str, tuple[str, ...]] = {
    "text-classification": ("accuracy", "macro_f1", "weighted_f1", "ell"),
    "token-classification": ("f1", "precision", "recall", "ell"),
    "regression": ("spearman", "pearson", "rmse", "mae"),
    "language-modeling": ("ell", "perplexity"),
}
"""Task -> what the best epoch may be chosen by; the first one unless fit.metric says another."""
LESS_IS_BETTER = ("ell", "perplexity", "rmse", "mae")
ADAPTER_RATES = {"lora": 5e-4, "adalora": 1e-3, "ia3": 3e-3, "prefix": 1e-2, "prompt": 3e-2}
"""Method of policy.peft -> its usual peak learning rate: far above that of all weights, since what is learned begins at
nothing and is small. LoRA: Hu et al. 2021, RoBERTa base, 4e-4 to 5e-4; AdaLoRA: Zhang et al. 2023, 5e-4 to 2.2e-3; IA3:
Liu et al. 2022; prefix: Liu et al. 2021 (P-tuning v2), BERT, 5e-3 to 1e-2; prompt: peft's guide (the 0.3 of Lester et
al. 2021 is Adafactor's)."""
AUGMENTATIONS = ("drop", "swap", "synonyms")


@dataclass(frozen=True, slots=True)
class LabelledConfig:
    """Labelled data in three parts: to learn from, to choose the best epoch by, and to judge it on."""

    train: str | None = None
    """file, shipped data set, or data set id"""
    validation: str | None = None
    """to choose the best epoch by; null splits a tenth off train"""
    test: str | None = None
    """to judge the chosen one on; null splits a tenth off train"""
    text_column: str = "text"
    """column of the texts; for token-classification of lists of words"""
    label_column: str = "label"
    """column of labels; for token-classification of lists of BIO tags, for regression of numbers"""
    only: dict[str, Any] = field(default_factory=dict)
    """keep only rows with these values in the columns that they have: {in_train: false}"""
    limit: int | None = None
    """use so many rows of train at most, drawn at random"""
    rows_per_label: int | None = None
    """text-classification: learn from so many rows of each label"""
    augment: dict[str, Any] = field(default_factory=dict)
    """of training texts, anew each time: {drop: 0.1, swap: 0.1, synonyms: FILE}, shares of words"""


@dataclass(frozen=True, slots=True)
class FitSettings:
    """Training by transformers.Trainer."""

    epochs: float = 5.0
    """passes over the training data"""
    learning_rate: float | None = None
    """peak learning rate; null: 2e-5 for a model that is given, 2e-3 for a new one, and with policy.peft what is usual
    for its method: lora 5e-4, adalora 1e-3, ia3 3e-3, prefix 1e-2, prompt 3e-2"""
    batch_size: int = 32
    """rows in one optimiser step, of each process"""
    metric: str | None = None
    """what the best epoch is chosen by on the validation data; null takes the task's first"""
    patience: int | None = None
    """stop after so many epochs without a better one; null trains them all"""
    max_bad_steps: int = 3
    """give up after so many non-finite steps in a row (each is skipped)"""
    trainer: dict[str, Any] = field(default_factory=dict)
    """any other field of transformers.TrainingArguments: optim, lr_scheduler_type, label_smoothing_factor, …"""


@dataclass(frozen=True, slots=True)
class FittedConfig(ModelConfig):
    """The model that is trained."""

    peft: dict[str, Any] | None = None
    """train an adapter of a given model alone: {method: lora, r: 8}, adalora or ia3, which are merged when saved; or
    prefix or prompt, {method: prefix, num_virtual_tokens: 20}"""


@dataclass(frozen=True, slots=True)
class FitConfig:
    """A supervised training: ℓ(M_θ(x), y) alone."""

    name: str
    """name of the run, and of its folder in output_dir"""
    task: TaskName
    """what is learned"""
    policy: FittedConfig = field(default_factory=FittedConfig)
    data: LabelledConfig = field(default_factory=LabelledConfig)
    fit: FitSettings = field(default_factory=FitSettings)
    seed: int = 0
    """seed of everything random"""
    output_dir: str = "runs"
    """folder of all runs"""
    on_change: Literal["refuse", "continue", "restart"] = "refuse"
    """training is half done with other inputs: say what differs and refuse, go on from there, or begin it again"""


@dataclass(frozen=True, slots=True)
class TextConfig:
    """Text without labels: what the performance term P is measured on."""

    train: str | None = None
    """file, shipped data set, or data set id"""
    validation: str | None = None
    """held-out text; null splits a tenth off train"""
    text_column: str = "text"
    """column of the texts"""
    only: dict[str, Any] = field(default_factory=dict)
    """keep only rows with these values in the columns that they have"""
    limit: int | None = None
    """use so many rows at most, drawn at random"""


@dataclass(frozen=True, slots=True)
class SelfSupervisedConfig:
    """L(θ) = −P(T) + λ·ℓ(M_θ(x), y)."""

    performance: Literal["masked", "causal"] = "masked"
    """P is the mean log-probability of masked tokens (an encoder), or of each next token (a causal model)"""
    mask_share: float = 0.15
    """share of tokens that are masked"""
    next_sentence: bool = False
    """masked: add the log-probability that the second half of a text is told from another's (BERT's next sentence)"""
    lambda_sup: float | str = 0.0
    """λ ≥ 0, which multiplies ℓ: a number, or a form (linear:start=0.5,end=0,steps=40)"""
    supervised_batch_size: int = 32
    """labelled rows of ℓ in one optimiser step"""


@dataclass(frozen=True, slots=True)
class PretrainConfig:
    """A self-supervised training, with or without a supervised term beside it."""

    name: str
    """name of the run, and of its folder in output_dir"""
    policy: ModelConfig = field(default_factory=ModelConfig)
    text: TextConfig = field(default_factory=TextConfig)
    data: LabelledConfig = field(default_factory=LabelledConfig)
    objective: SelfSupervisedConfig = field(default_factory=SelfSupervisedConfig)
    pretrain: FitSettings = field(default_factory=FitSettings)
    seed: int = 0
    """seed of everything random"""
    output_dir: str = "runs"
    """folder of all runs"""
    on_change: Literal["refuse", "continue", "restart"] = "refuse"
    """training is half done with other inputs: say what differs and refuse, go on from there, or begin it again"""


def metric_of(config: FitConfig) -> str:
    """What the best epoch is chosen by."""
    return METRICS[config.task][0] if config.fit.metric is None else config.fit.metric


def learning_rate_of(settings: FitSettings, policy: ModelConfig) -> float:
    """The peak learning rate: BERT's for what is pretrained (Devlin et al. 2019), more for what begins with nothing: a
    new model, or an adapter."""
    if settings.learning_rate is not None:
        return settings.learning_rate
    if isinstance(policy, FittedConfig) and policy.peft is not None:
        return ADAPTER_RATES.get(str(policy.peft.get("method")), 2e-5)
    return 2e-3 if policy.model is None else 2e-5


# Checks ---------------------------------------------------------------------------------------------------------------


def validate_fit(config: FitConfig) -> None:
    """Refuse what cannot be run, before anything is trained.

    Raises:
        ValueError: the first thing that is impossible, with its key and the remedy.
    """
    check_name(config.name)
    check_model_size(config.policy, config.task == "language-modeling")
    check_labelled(config.data, config.task)
    if config.data.train is None:
        raise ValueError(f"data.train is null: {config.task} needs labelled rows; give them with --data.train FILE")
    metric = metric_of(config)
    if metric not in METRICS[config.task]:
        raise ValueError(
            f"fit.metric is {metric!r}: expected one of {', '.join(METRICS[config.task])} for {config.task}"
            f"{did_you_mean(metric, METRICS[config.task])}"
        )
    check_settings("fit", config.fit)
    if config.policy.peft is not None and config.policy.model is None:
        raise ValueError(
            f"policy.peft is {config.policy.peft} and policy.model null: an adapter changes what is known already; "
            "give a model with --policy.model"
        )
    if config.task == "regression" and config.fit.trainer.get("label_smoothing_factor"):
        raise ValueError("fit.trainer.label_smoothing_factor is set, but a regression has no labels to smooth")


def validate_pretrain(config: PretrainConfig) -> None:
    """As `validate_fit`, of a self-supervised training."""
    check_name(config.name)
    check_model_size(config.policy, config.objective.performance == "causal")
    objective = config.objective
    if config.text.train is None:
        raise ValueError("text.train is null: P is measured on text; give some with --text.train FILE")
    for name in ("train", "validation"):
        check_data_file(f"text.{name}", getattr(config.text, name))
    if not 0 < objective.mask_share < 1:
        raise ValueError(f"objective.mask_share is {objective.mask_share}: expected a share above 0 and below 1")
    if objective.next_sentence and objective.performance != "masked":
        raise ValueError(
            f"objective.next_sentence is true and objective.performance {objective.performance!r}: expected 'masked'"
        )
    at_least("objective.supervised_batch_size", objective.supervised_batch_size, 1)
    form = as_lambda(objective.lambda_sup)
    if isinstance(form, Controller) and not form.needs_ell:
        raise ValueError(
            f"objective.lambda_sup is {objective.lambda_sup!r}, which is steered by what episodes are like, and P has "
            "none: give a number, a schedule by steps, or lagrange"
        )
    if needs_labels(form) and config.data.train is None:
        raise ValueError(
            f"objective.lambda_sup is {objective.lambda_sup}, but there is no labelled data for ℓ: give it with "
            "--data.train FILE, or set --objective.lambda_sup 0"
        )
    check_labelled(config.data, "text-classification" if objective.performance == "masked" else "language-modeling")
    if config.pretrain.metric not in (None, "P"):
        raise ValueError(f"pretrain.metric is {config.pretrain.metric!r}: expected null, the best epoch is that of P")
    if config.data.augment:
        raise ValueError(f"data.augment is {config.data.augment}: rlobj fit changes words, rlobj pretrain does not")
    check_settings("pretrain", config.pretrain)


def check_settings(section: str, settings: FitSettings) -> None:
    """Refuse settings of transformers' Trainer that cannot be."""
    for name in ("epochs", "learning_rate", "batch_size", "max_bad_steps"):
        if (value := getattr(settings, name)) is not None:
            at_least(f"{section}.{name}", value, 0, above=True)
    if settings.patience is not None:
        at_least(f"{section}.patience", settings.patience, 1)
    check_trainer_fields(section, settings.trainer)


def check_labelled(data: LabelledConfig, task: TaskName, section: str = "data") -> None:
    """Refuse labelled data that a task cannot have."""
    for name in ("train", "validation", "test"):
        check_data_file(f"{section}.{name}", getattr(data, name))
    for name in ("limit", "rows_per_label"):
        if (rows := getattr(data, name)) is not None:
            at_least(f"{section}.{name}", rows, 1)
    if data.rows_per_label is not None and task != "text-classification":
        raise ValueError(f"{section}.rows_per_label is {data.rows_per_label}: {task} has no labels to count")
    _check_augmentation(data.augment, task)


def _check_augmentation(augment: dict[str, Any], task: TaskName) -> None:
    if augment and task not in ("text-classification", "regression"):
        raise ValueError(f"data.augment is {augment}: it changes the words of whole texts, not those of {task}")
    for name, value in augment.items():
        if name not in AUGMENTATIONS:
            raise ValueError(
                f"data.augment has {name!r}{did_you_mean(name, AUGMENTATIONS)}: expected {', '.join(AUGMENTATIONS)}"
            )
        if name == "synonyms":
            if not Path(str(value)).is_file():
                raise ValueError(f"data.augment.synonyms is {value!r}: expected a file with a line of synonyms each")
        elif isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
            raise ValueError(f"data.augment.{name} is {value!r}: expected a share of the words, from 0 to below 1")
