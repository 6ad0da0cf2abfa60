"""Train text policies on L(θ) = −R(θ) + λ·ℓ(M_θ(x), y).

The public names are imported from their modules when they are first used, so that `import rlobj` loads no torch. The
formula itself is `rlobj.objective.objective`; it has no short name, since that name is its module's.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from rlobj._origin import check_origin

if TYPE_CHECKING:
    from rlobj.arguments import ObjectiveArguments as ObjectiveArguments
    from rlobj.callbacks import TrainingDiverged as TrainingDiverged
    from rlobj.config import PPOConfig as PPOConfig
    from rlobj.config import RolloutConfig as RolloutConfig
    from rlobj.encoder_policy import as_one_token_policy as as_one_token_policy
    from rlobj.episodes import episode_dataset as episode_dataset
    from rlobj.evaluation import Evaluation as Evaluation
    from rlobj.evaluation import evaluate as evaluate
    from rlobj.gradient_probe import LambdaIsDead as LambdaIsDead
    from rlobj.lambdas import as_lambda as as_lambda
    from rlobj.pipeline import run as run
    from rlobj.policies import load_causal as load_causal
    from rlobj.policies import load_encoder as load_encoder
    from rlobj.policies import load_tokenizer as load_tokenizer
    from rlobj.policies import make_causal as make_causal
    from rlobj.policies import make_encoder as make_encoder
    from rlobj.policies import make_tokenizer as make_tokenizer
    from rlobj.recipes import load_recipe as load_recipe
    from rlobj.rollout import EnvironmentRollout as EnvironmentRollout
    from rlobj.rollout import episode_return as episode_return
    from rlobj.sampling import Sampling as Sampling
    from rlobj.schedules import Constant as Constant
    from rlobj.schedules import Linear as Linear
    from rlobj.supervised import SupervisedRow as SupervisedRow
    from rlobj.supervised import dialogue_rows as dialogue_rows
    from rlobj.supervised import label_rows as label_rows
    from rlobj.supervised import warm_start as warm_start
    from rlobj.trainer import ObjectiveTrainer as ObjectiveTrainer

__version__ = "0.1.0"

_NAMES_OF = {
    "arguments": ("ObjectiveArguments",),
    "callbacks": ("TrainingDiverged",),
    "config": ("PPOConfig", "RolloutConfig"),
    "encoder_policy": ("as_one_token_policy",),
    "episodes": ("episode_dataset",),
    "evaluation": ("Evaluation", "evaluate"),
    "gradient_probe": ("LambdaIsDead",),
    "lambdas": ("as_lambda",),
    "pipeline": ("run",),
    "policies": ("load_causal", "load_encoder", "load_tokenizer", "make_causal", "make_encoder", "make_tokenizer"),
    "recipes": ("load_recipe",),
    "rollout": ("EnvironmentRollout", "episode_return"),
    "sampling": ("Sampling",),
    "schedules": ("Constant", "Linear"),
    "supervised": ("SupervisedRow", "dialogue_rows", "label_rows", "warm_start"),
    "trainer": ("ObjectiveTrainer",),
}
"""Module -> its public names: the same as above, for Python."""
_MODULE_OF = {name: module for module, names in _NAMES_OF.items() for name in names}

__all__ = ["__version__", *_MODULE_OF]

check_origin()


if not TYPE_CHECKING:  # a type checker would take any name for a public one

    def __getattr__(name: str) -> Any:
        if name not in _MODULE_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f"rlobj.{_MODULE_OF[name]}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
