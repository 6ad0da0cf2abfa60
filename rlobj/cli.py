"""The command line: verbs only. Each calls one function, imported when it is called, so that --help is fast."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

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


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 0 or more")
    return int(text)


def _dispatch(arguments: list[str]) -> int:
    verbs: dict[str, Callable[[list[str]], None]] = {
        "run": _run, "compare": _compare, "tune": _tune, "report": _report, "chat": _chat, "reward": _reward,
        "try-reward": _try_reward, "judge": _judge,
        "serve-reward": _serve_reward, "list": _list, "new-domain": _new_domain,
        **{verb: _of_models(verb) for verb in ("fit", "pretrain", "predict", "prune", "export", "explain", "probe")},
        "continue": _of_models("go_on"),
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


def _of_models(verb: str) -> Callable[[list[str]], None]:
    """A verb of `rlobj.model_verbs`."""

    def call(arguments: list[str]) -> None:
        from rlobj import model_verbs

        getattr(model_verbs, verb)(arguments)

    return call


def _compare(arguments: list[str]) -> None:
    parser = Parser(
        prog="rlobj compare",
        description="Train every λ with every seed from one warm start and one reward model, and compare them. The "
        "same command goes on where it stopped; with another λ or more seeds it trains only those.",
        epilog="any field of the recipe may follow, as in rlobj run: --training.steps 100",
        allow_abbrev=False,
    )
    parser.add_argument("recipe", metavar="RECIPE", help="a name from `rlobj list`, or a YAML file")
    parser.add_argument(
        "--lambdas",
        nargs="+",
        required=True,
        metavar="λ",
        help="0 0.1 1, or 0,0.1,1, or forms such as lagrange:factor=1.1",
    )
    parser.add_argument("--seeds", type=int, default=5, help="seeds for each λ (default: 5)")
    _add_engine(parser)
    parser.add_argument(
        "--early_stop",
        type=float,
        metavar="FACTOR",
        help="give up a λ that is not among the best 1/FACTOR on the way (ASHA), such as 3",
    )
    parser.add_argument(
        "--ell_bound",
        type=float,
        default=1.25,
        help="recommend a λ whose ℓ is at most so many times the warm start's (default: 1.25)",
    )
    parser.add_argument(
        "--soup",
        type=_count,
        default=0,
        metavar="N",
        help="judge N policies between the smallest and the largest λ too, their parameters interpolated",
    )
    given, overrides = parser.parse_known_args(arguments)
    from rlobj.config import validate
    from rlobj.recipes import load_recipe

    config = load_recipe(given.recipe, overrides)
    # the arguments of a form hold commas of their own
    values = [part for text in given.lambdas for part in ([text] if ":" in text else text.split(",")) if part]
    be_calm()
    validate(config)
    from rlobj.comparison import compare

    compare(
        config,
        values,
        given.seeds,
        ell_bound=given.ell_bound,
        soup=given.soup,
        early_stop=given.early_stop,
        engine=lambda jobs: _engine(given, jobs),
    )


def _tune(arguments: list[str]) -> None:
    parser = Parser(
        prog="rlobj tune",
        description="Search λ together with other parameters through Optuna: the highest true measure among the trials "
        "whose ℓ is within the bound. The same command goes on where it stopped.",
        epilog="any field of the recipe may follow, as in rlobj run: --training.steps 100",
        allow_abbrev=False,
    )
    parser.add_argument("recipe", metavar="RECIPE", help="a name from `rlobj list`, or a YAML file")
    parser.add_argument(
        "--space",
        nargs="+",
        action="extend",
        required=True,
        metavar="KEY=VALUES",
        help="objective.lambda_sup=log:0.01..1 training.num_generations=4..16 training.beta='0|0.01'",
    )
    parser.add_argument("--trials", type=int, default=20, help="trials in all (default: 20)")
    parser.add_argument("--workers", type=int, help="trials at once (default: one for each core; with a GPU, one)")
    parser.add_argument(
        "--ell_bound",
        type=float,
        default=1.25,
        help="ℓ of at most so many times the warm start's (default: 1.25)",
    )
    given, overrides = parser.parse_known_args(arguments)
    from rlobj.config import validate
    from rlobj.recipes import load_recipe
    from rlobj.search_space import read_space

    config, space = load_recipe(given.recipe, overrides), read_space(given.space)
    be_calm()
    validate(config)
    from rlobj.tuning import tune

    tune(config, space, given.trials, given.workers, given.ell_bound)


def _add_engine(parser: argparse.ArgumentParser) -> None:
    """What runs the trials, and how many at once."""
    parser.add_argument("--workers", type=int, help="trials at once (default: one for each core; with a GPU, one)")
    parser.add_argument(
        "--engine",
        choices=["processes", "ray"],
        default="processes",
        help="processes on this machine, or tasks of Ray (default: processes)",
    )
    parser.add_argument("--address", help="ray: the cluster's (default: a Ray on this machine)")
    parser.add_argument("--cpus", type=float, default=1, help="ray: CPUs for each trial (default: 1)")
    parser.add_argument("--gpus", type=float, default=0, help="ray: GPUs for each trial (default: 0)")
    parser.add_argument(
        "--retries", type=int, default=3, help="ray: times that a lost worker's trial is given to another (default: 3)"
    )


def _engine(given: argparse.Namespace, jobs: int) -> Any:
    from rlobj.jobs import Processes
    from rlobj.ray_jobs import RayJobs

    if given.engine == "ray":
        return RayJobs(given.address, given.cpus, given.gpus, given.retries)
    return Processes(given.workers, jobs)


def _report(arguments: list[str]) -> None:
    parser = Parser(
        prog="rlobj report",
        description="Write the report of a run or a comparison again from its results, of a comparison that still runs "
        "too; of two comparisons, one report that lays them side by side.",
    )
    parser.add_argument("directory", metavar="DIR", type=Path, help="what rlobj run or rlobj compare wrote")
    parser.add_argument("other", metavar="DIR", type=Path, nargs="?", help="a second comparison")
    given = parser.parse_args(arguments)
    be_calm()
    from rlobj.compared import PLAN, find, load_comparison
    from rlobj.comparison_report import conclude, write_side_by_side
    from rlobj.pipeline import report_again

    if given.other is not None:
        path = write_side_by_side(*[find(load_comparison(each)) for each in (given.directory, given.other)])
        print(f"report   {path}")
    elif (given.directory / PLAN).exists():
        conclude(find(load_comparison(given.directory)))
    else:
        print(f"report   {report_again(given.directory)}")


def _reward(arguments: list[str]) -> None:
    parser = Parser(
        prog="rlobj reward",
        description="Train a recipe's warm start and reward model, and nothing more. rlobj run goes on from there.",
        epilog="any field of the recipe may follow, as in rlobj run: --reward.pairs 5000",
        allow_abbrev=False,
    )
    parser.add_argument("recipe", metavar="RECIPE", help="a name from `rlobj list`, or a YAML file")
    given, overrides = parser.parse_known_args(arguments)
    from rlobj.config import validate
    from rlobj.recipes import load_recipe

    config = load_recipe(given.recipe, ["--reward.kind=trained", *overrides])
    be_calm()
    validate(config)
    if config.reward.model is not None or config.reward.kind != "trained":
        raise ValueError(
            f"reward.kind is {config.reward.kind!r} and reward.model {config.reward.model!r}: expected 'trained' and "
            "null, for there to be a reward model to train"
        )
    share_the_cpu()
    from rlobj.pipeline import prepare

    model = prepare(config)["reward.model"]
    print(f"\nreward model  {model}\ntry it: rlobj try-reward {model} TEXT; judge it: rlobj judge {model} PAIRS")


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


def _try_reward(arguments: list[str]) -> None:
    parser = Parser(
        prog="rlobj try-reward",
        description="Score texts with a reward at once, without training.",
        epilog="A file has a text in each line, or (.jsonl) an object with completion and prompt, or messages; what "
        "else it holds are columns.",
    )
    parser.add_argument("reward", metavar="REWARD", help="a name from `rlobj list rewards`, package.module:name, "
                        "path/to/file.py:name, or the directory of a reward model")  # fmt: skip
    parser.add_argument("texts", metavar="TEXT", nargs="*", help="what a policy says")
    parser.add_argument("--prompt", help="what it answers to")
    parser.add_argument("--file", help="score the rows of this file")
    parser.add_argument("--kwargs", metavar="{…}", help="parameters of the reward; one: --kwargs.NAME VALUE")
    parser.add_argument("--columns", metavar="{…}", help="what else is known of the texts; one: --columns.NAME VALUE")
    parser.add_argument("--concurrency", type=int, help="calls at the same time")
    parser.add_argument("--timeout", type=float, help="seconds for one call")
    from rlobj.try_reward import as_text, read_texts, split_dotted, table, try_reward

    left, values = split_dotted(arguments, ("kwargs", "columns"))
    given = parser.parse_args(left)
    columns = values["columns"]
    texts = [as_text(text, given.prompt, columns) for text in given.texts]
    texts += read_texts(given.file, given.prompt, columns) if given.file else []
    if not texts:
        raise ValueError('nothing to score: rlobj try-reward REWARD "text", or --file FILE')
    be_calm()
    scores = try_reward(given.reward, texts, values["kwargs"], concurrency=given.concurrency, timeout=given.timeout)
    print(table(texts, scores))


def _judge(arguments: list[str]) -> None:
    parser = Parser(
        prog="rlobj judge",
        description="What a reward says of preference pairs: accuracy, calibration, dependence on length, speed.",
    )
    parser.add_argument("reward", metavar="REWARD", help="a name from `rlobj list rewards`, package.module:name, "
                        "path/to/file.py:name, or the directory of a reward model")  # fmt: skip
    parser.add_argument("pairs", metavar="PAIRS", help="file or data set: columns chosen and rejected, maybe prompt")
    parser.add_argument("--against", metavar="REWARD", help="another reward, to compare with")
    parser.add_argument("--limit", type=int, help="use so many pairs, drawn at random")
    parser.add_argument("--output", metavar="FOLDER", help="where judgement.html and judgement.json go "
                        "(default: runs/judged/REWARD)")  # fmt: skip
    parser.add_argument("--kwargs", metavar="{…}", help="parameters of the reward; one: --kwargs.NAME VALUE")
    from rlobj.try_reward import split_dotted

    left, values = split_dotted(arguments, ("kwargs",))
    given = parser.parse_args(left)
    be_calm()
    from reward_models import load_reward
    from rlobj.data import preference_rows
    from rlobj.judging import judge, lines, write_judgement

    reward = load_reward(given.reward, values["kwargs"])
    against = load_reward(given.against) if given.against else None
    found = judge(reward, preference_rows(given.pairs, given.limit), against)
    for name, value in lines(found):
        print(f"{name:<32}{value}")
    folder = given.output or f"runs/judged/{re.sub('[^0-9A-Za-z_.=-]+', '-', given.reward).strip('-.')}"
    print(f"\nreport  {write_judgement(found, Path(folder), given.reward, given.pairs)}")


def _serve_reward(arguments: list[str]) -> None:
    parser = Parser(
        prog="rlobj serve-reward",
        description="Serve a reward over HTTP, as OpenRLHF's remote_rm_url has it: POST to /get_reward, GET /health.",
    )
    parser.add_argument("reward", metavar="REWARD", help="a name from `rlobj list rewards`, package.module:name, "
                        "path/to/file.py:name, or the directory of a reward model")  # fmt: skip
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: this machine alone)")
    parser.add_argument("--port", type=int, default=5000)
    parser.add_argument("--max_request_bytes", type=int, default=16 * 2**20, help="longer requests are refused")
    parser.add_argument("--kwargs", metavar="{…}", help="parameters of the reward; one: --kwargs.NAME VALUE")
    from rlobj.try_reward import split_dotted

    left, values = split_dotted(arguments, ("kwargs",))
    given = parser.parse_args(left)
    be_calm()
    from reward_models import load_reward

    try:
        from reward_models.serving import PATH, serve
    except ModuleNotFoundError as error:
        raise ValueError(f"rlobj serve-reward needs {error.name}: pip install 'rlobj[serve]'") from error
    reward = load_reward(given.reward, values["kwargs"])
    print(f"serving {given.reward} at http://{given.host}:{given.port}{PATH}; Ctrl-C ends it", flush=True)
    serve(reward, given.host, given.port, given.max_request_bytes)


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
