"""Adapters of peft: their configuration, and the rank update of AdaLoRA (Zhang et al. 2023), which no trainer calls."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel, TrainerCallback

from rlobj.spelling import did_you_mean


def has_adalora(model: Any) -> bool:
    """Whether the policy wears an AdaLoRA adapter."""
    return hasattr(model, "peft_config") and hasattr(model.base_model, "rankallocator")


def require_resumable(model: Any, checkpoint: str) -> None:
    """Raise ValueError where peft's checkpoints do not hold all that the adapter goes on from."""
    if has_adalora(model):
        raise ValueError(
            f"{checkpoint} is of an AdaLoRA adapter: peft saves neither the importance of ranks nor "
            "those that were cut, so training cannot go on from it; begin again, or use LoRA or IA3"
        )


def virtual_tokens(model: Any) -> int:
    """How many tokens prefix or prompt tuning puts before a text."""
    return sum(getattr(each, "num_virtual_tokens", None) or 0 for each in getattr(model, "peft_config", {}).values())


def parameter_counts(model: nn.Module) -> tuple[int, int]:
    """Parameters that are trained, and all of them."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(n for n, trained in sizes if trained), sum(n for n, _ in sizes)


METHODS = {
    "lora": "LoraConfig",
    "adalora": "AdaLoraConfig",
    "ia3": "IA3Config",
    "prefix": "PrefixTuningConfig",
    "prompt": "PromptTuningConfig",
}
"""What policy.peft.method may be, and the class of peft whose fields stand beside it."""
MERGED = ("lora", "adalora", "ia3")
"""Methods whose weights are added to the model's own; of the others, what is learned stays beside the model."""
VIRTUAL_TOKENS = 20
"""That prefix and prompt tuning put before a text, unless num_virtual_tokens says otherwise."""
BOTTLENECK = ("bottleneck", "houlsby", "adapter")


def peft_config_of(
    settings: Mapping[str, Any],
    steps: int,
    task_type: str = "CAUSAL_LM",
    methods: Sequence[str] = MERGED,
    whole: Sequence[str] = (),
) -> Any:
    """The configuration of peft that policy.peft describes: `method`, and fields of its class.

    Args:
        steps: of the training, which AdaLoRA shares its ranks out over.
        methods: those that can be used.
        whole: names of layers that are trained themselves.

    Raises:
        ValueError: peft is not installed, no such method, or a field that its class has not.
    """
    fields = dict(settings)
    method = fields.pop("method", None)
    if method in BOTTLENECK:
        raise ValueError(
            f"policy.peft.method is {method!r}: peft has no bottleneck adapters (Houlsby et al. 2019), and the library "
            f"adapters wants transformers 4; expected one of {', '.join(methods)}"
        )
    if method not in methods:
        hint = did_you_mean(str(method), methods)
        raise ValueError(f"policy.peft.method is {method!r}{hint}: expected one of {', '.join(methods)}")
    try:
        import peft
    except ImportError:
        raise ValueError("policy.peft needs peft: pip install 'rlobj[peft]'") from None
    config_class = getattr(peft, METHODS[method])
    known = [field.name for field in dataclasses.fields(config_class)]
    for name in fields:
        if name not in known:
            raise ValueError(
                f"policy.peft has {name!r}, which peft.{METHODS[method]} has not{did_you_mean(name, known)}"
            )
    defaults: dict[str, Any] = {"task_type": task_type}
    if whole:
        defaults["modules_to_save"] = list(whole)
    if method in ("lora", "adalora"):
        defaults["target_modules"] = "all-linear"
        defaults["exclude_modules"] = list(whole) or None
    if method == "adalora":
        defaults |= {"total_step": steps, "tinit": steps // 5, "tfinal": steps // 5}
    if method not in MERGED:
        defaults["num_virtual_tokens"] = VIRTUAL_TOKENS
    return config_class(**{**defaults, **fields})


def with_adapter(model: PreTrainedModel, config: Any, base: str) -> Any:
    """The model with an adapter, which alone is trained, beside the layers that its configuration names.

    Args:
        base: what the model was loaded from, which an adapter that cannot be merged is loaded on again.

    Raises:
        ValueError: peft does not know where in this model it belongs.
    """
    from peft import get_peft_model

    model.config._name_or_path = model.name_or_path = str(Path(base).absolute()) if Path(base).is_dir() else base
    try:
        return get_peft_model(model, config)
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f"peft cannot put {config.peft_type.value} on a {type(model).__name__}: {error}; name target_modules in "
            "policy.peft, or take another method"
        ) from error


def trained_whole(model: PreTrainedModel, base: str) -> list[str]:
    """The layers that are trained beside an adapter: the label head, and a pooler that the checkpoint has not."""
    if model.can_generate():
        return []
    body = f"{model.base_model_prefix}."
    outside = [(name, each) for name, each in model.named_modules() if name and not f"{name}.".startswith(body)]
    pooler = getattr(model.base_model, "pooler", None)
    if pooler is not None and not _has_weights(base, "pooler."):
        outside += [(f"pooler.{name}", each) for name, each in pooler.named_modules() if name]
    return [name for name, each in outside if next(each.parameters(recurse=False), None) is not None]


def _has_weights(base: str, part: str) -> bool:
    """Whether a directory's safetensors have weights of a part; of what is no directory, nothing is known."""
    for file in Path(base).glob("*.safetensors"):
        with safe_open(file, "pt") as weights:
            if any(name.startswith(part) or f".{part}" in name for name in weights.keys()):  # noqa: SIM118
                return True
    return False


class WithoutAdapter:
    """The base of a policy with an adapter, called like a model: no second copy."""

    def __init__(self, policy: Any) -> None:
        self.policy = policy

    def __call__(self, **inputs: Any) -> Any:
        with self.policy.disable_adapter():
            return self.policy(**inputs)


class RankUpdate(TrainerCallback):
    """Share out AdaLoRA's budget of ranks after each optimiser step, while its gradients are still there."""

    def __init__(self, policy: Any) -> None:
        self.policy = policy

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trained = [p for p in self.policy.parameters() if p.requires_grad]
        if all(p.grad is not None for p in trained):  # none where a step that was not finite was skipped
            # the steps that are taken count from 1, so that total_step is reached
            self.policy.base_model.update_and_allocate(state.global_step + 1)
