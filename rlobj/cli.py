"""The command line: verbs only. Each calls one function, imported when it is called, so that --help is fast."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import NoReturn

from rlobj import __version__
from rlobj._origin import advice_on

CALM = {
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "TRANSFORMERS_VERBOSITY": "error",
}
"""Environment of a run, unless the user set it: libraries read it when they are imported."""

VERBS = {
    "comparison_verbs": ("compare", "tune", "report"),
    "model_verbs": ("fit", "pretrain", "predict", "prune", "export", "explain", "probe"),
    "reward_verbs": ("reward", "try-reward", "judge", "serve-reward"),
}
"""Module -> its verbs, each a function of the same name."""
LIBRARIES = ("accelerate", "datasets", "huggingface_hub", "torch", "transformers", "trl")

USAGE = """\
Train text policies on L(θ) = −R(θ) + λ·ℓ(M_θ(x), y).

  rlobj run RECIPE [--dotted.name VALUE ...]   train, evaluate and report what a recipe says
  rlobj fit RECIPE                             supervised training alone: labels, entities, numbers, text
  rlobj pretrain RECIPE                        self-supervised training: L(θ) = −P(T) + λ·ℓ
  rlobj continue RUN --data NEW                a trained model on new data: what does it forget of the old?
  rlobj predict MODEL [FILE]                   what a trained model says of texts
  rlobj prune RUN                              a trained model made smaller: what that did to quality, size and speed
  rlobj export MODEL FOLDER                    a model with its card, for plain transformers or ONNX
  rlobj explain MODEL TEXT ...                 which words made it say so
  rlobj probe MODEL [FILE]                     robustness, slices, and names exchanged
  rlobj compare RECIPE --lambdas 0 0.1 1       several λ and seeds from one warm start: which λ?
  rlobj tune RECIPE --space KEY=VALUES         search λ with other parameters, through Optuna
  rlobj report DIR [DIR]                       a report again, or two comparisons side by side
  rlobj chat RUN [--policy NAME]               talk to a trained policy
  rlobj reward RECIPE                          a recipe's reward model alone
  rlobj judge REWARD PAIRS                     how far a reward can be trusted
  rlobj try-reward REWARD TEXT ...             score texts at once, without training
  rlobj serve-reward REWARD [--port PORT]      any reward as an HTTP server
  rlobj list [KIND]                            environments, domains, rewards and recipes, a line each
  rlobj new-domain NAME                        write NAME.json: a customer-service domain to begin with
  rlobj VERB --help                            more about a verb
  rlobj --version

Begin with: rlobj run customer-service
An error of yours is told in a line or two; with RLOBJ_DEBUG=1, with its traceback.
"""


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{self.prog}: {message}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb.

    Returns:
        exit status: 0 done; 1 another process of the launch failed; 2 an error of the user's, told in a line or two;
        130 interrupted; 141 nobody reads on.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())  # where "module:name" rewards and environments of the user's live
    try:
        status = _dispatch(arguments)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt as stop:
        if os.environ.get("RANK", "0") == "0":  # of several processes one speaks
            what = str(stop) or "stopped; finished stages and checkpoints are kept"
            print(f"{what}\nto go on: {_as_typed(arguments)}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still to be flushed goes nowhere
        return 141
    except Exception as error:
        if _is_of_another_process(error):
            print("error: another process of this launch failed, or was late: what it said tells why", file=sys.stderr)
            return 1
        advice = advice_on(error)
        if os.environ.get("RLOBJ_DEBUG") == "1" or not (advice or _is_the_users(error)):
            raise
        notes = "".join(f"\n{note}" for note in getattr(error, "__notes__", ()))  # where it was
        print(f"error: {error}{notes}{advice}", file=sys.stderr)
        return 2


def _dispatch(arguments: list[str]) -> int:
    verbs: dict[str, Callable[[list[str]], None]] = {
        "run": _run, "chat": _chat, "list": _list, "new-domain": _new_domain,
        **{verb: _of(module, verb.replace("-", "_")) for module, names in VERBS.items() for verb in names},
        "continue": _of("model_verbs", "go_on"),
    }  # fmt: skip
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
    elif arguments[0] in ("-V", "--version"):
        print(f"rlobj {__version__}")
    elif arguments[0] in verbs:
        verbs[arguments[0]](arguments[1:])
    else:
        from rlobj.spelling import did_you_mean

        hint = did_you_mean(arguments[0], verbs)
        raise ValueError(f"no verb {arguments[0]!r}{hint} (verbs: {', '.join(verbs)})")
    return 0


def _as_typed(arguments: list[str]) -> str:
    command = shlex.join(["rlobj", *arguments])
    return f"the same launch of {command}" if "WORLD_SIZE" in os.environ else command


def _is_the_users(error: Exception) -> bool:
    """Errors of input and surroundings, and those that our packages define, need no traceback."""
    ours = type(error).__module__.partition(".")[0] in ("rlobj", "envs", "reward_models", "gymnasium")
    return ours or isinstance(error, ValueError | OSError)


def _is_of_another_process(error: Exception) -> bool:
    """What gloo and NCCL raise in the processes that are left when one fails, dies, or does not come."""
    lost = "Connection closed by peer", "Connection reset by peer", "Broken pipe", "Timed out waiting", "NCCL"
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1 and os.environ.get("RLOBJ_DEBUG") != "1"
    return several and isinstance(error, RuntimeError) and any(words in str(error) for words in lost)


def be_calm() -> None:
    """Silence what libraries say of their own insides: a reader can do nothing about it."""
    for name, value in CALM.items():
        os.environ.setdefault(name, value)
    if not sys.warnoptions:  # python -W and PYTHONWARNINGS are the user's own word
        warnings.filterwarnings("ignore", module=rf"({'|'.join(LIBRARIES)})(\.|$)")


def share_the_cpu(timeout: float = 1800.0) -> None:
    """Let several processes without an accelerator train together: unasked, Accelerate lets each train alone.

    Args:
        timeout: seconds that a process waits for the others before it fails, transformers' `ddp_timeout`.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        import torch

        if not torch.accelerator.is_available():
            from accelerate import PartialState

            os.environ.setdefault("ACCELERATE_USE_CPU", "true")  # trainers look here,
            PartialState(cpu=True, timeout=timedelta(seconds=timeout))  # and all else here
    elif os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true" and "MASTER_PORT" in os.environ:
        # what `accelerate launch --cpu` leaves when it was asked for several processes and has no MPI to start them
        print(
            "warning: accelerate launch --cpu starts one process unless MPI does it; for more on this machine: "
            "torchrun --standalone --nproc_per_node 2 -m rlobj …",
            file=sys.stderr,
        )


# Verbs --------------------------------------------------------------------------------------------------------


def _run(arguments: list[str]) -> None:
    from rlobj.config import RunConfig, validate
    from rlobj.model_verbs import recipe_of

    config = recipe_of(RunConfig, arguments, validate)
    if config is not None:
        from rlobj.pipeline import run

        run(config)


def _of(module: str, verb: str) -> Callable[[list[str]], None]:
    """A verb of another module of ours, which is imported when it is called."""

    def call(arguments: list[str]) -> None:
        getattr(import_module(f"rlobj.{module}"), verb)(arguments)

    return call


def _chat(arguments: list[str]) -> None:
    parser = Parser(prog="rlobj chat", description="Talk to a trained policy in the terminal.")
    parser.add_argument("run", metavar="RUN", help="folder of a run, such as runs/customer-service")
    parser.add_argument("--policy", help="which policy of the run (default: the one with the largest λ)")
    given = parser.parse_args(arguments)
    folder = Path(given.run)
    if not folder.is_dir():
        from rlobj.spelling import did_you_mean

        beside = [str(each) for each in folder.parent.iterdir()] if folder.parent.is_dir() else []
        raise ValueError(f"{given.run!r} is not the folder of a run{did_you_mean(given.run, beside)}")
    be_calm()
    from rlobj.chat import talk

    talk(given.run, given.policy)


def _list(arguments: list[str]) -> None:
    tables: dict[str, Callable[[], Iterable[tuple[str, ...]]]] = {
        "environments": _environments, "domains": _domains, "rewards": _rewards, "recipes": _recipes,
    }  # fmt: skip
    parser = Parser(prog="rlobj list", description="Environments, domains, rewards and recipes, a line each.")
    parser.add_argument("kind", nargs="?", metavar="KIND", help=f"one of {', '.join(tables)} (default: all)")
    kind = parser.parse_args(arguments).kind
    if kind is not None and kind not in tables:
        from rlobj.spelling import did_you_mean

        raise ValueError(f"rlobj list {kind}: expected one of {', '.join(tables)}{did_you_mean(kind, tables)}")
    for name in tables if kind is None else (kind,):
        _print_table(name.capitalize(), tables[name]())


def _rewards() -> list[tuple[str, ...]]:
    from reward_models.functions import list_rewards

    return [(name, *rest) for name, rest in list_rewards().items()]


def _recipes() -> list[tuple[str, ...]]:
    from rlobj.recipes import VERBS, descriptions

    return [
        (name, line if verb == "run" else f"rlobj {verb}: {line}")
        for kind, verb in VERBS.items()
        for name, line in descriptions(kind).items()
    ]


def _new_domain(arguments: list[str]) -> None:
    parser = Parser(prog="rlobj new-domain", description="Write a commented customer-service domain to begin with.")
    parser.add_argument("name", metavar="NAME", help="the domain's name; NAME.json is written in this folder")
    given = parser.parse_args(arguments)
    from envs.domain import write_starter

    path = write_starter(given.name)
    print(f"{path} is written. Train on it: rlobj run customer-service --env.kwargs.domain ./{path}")


def _environments() -> list[tuple[str, ...]]:
    """Id and first line of each environment of ours."""
    import pkgutil

    import gymnasium

    import envs  # noqa: F401  (registers them)

    rows: list[tuple[str, ...]] = []
    for spec in gymnasium.registry.values():
        if spec.namespace == "rlobj":
            target = pkgutil.resolve_name(spec.entry_point) if isinstance(spec.entry_point, str) else spec.entry_point
            rows.append((spec.id, (target.__doc__ or "").strip().partition("\n")[0]))
    return sorted(rows)


def _domains() -> list[tuple[str, ...]]:
    """Each shipped domain with what it serves and its ceiling."""
    from envs.customer_service import CustomerServiceEnv
    from envs.domain import load_domain, shipped_domains
    from envs.experts import ceiling

    rows: list[tuple[str, ...]] = []
    for name in shipped_domains():
        domain = load_domain(name)
        possible = ceiling(lambda name=name: CustomerServiceEnv(name))  # type: ignore[misc]
        rows.append((name, f"{domain.thing}: {len(domain.entities)} on offer; {possible:.0%} of goals can succeed"))
    return rows


def _print_table(title: str, rows: Iterable[tuple[str, ...]]) -> None:
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    print(f"{title}:")
    for row in rows:
        print("  " + "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
