"""Verbs of many runs: compare, tune and report.

Each calls one function, imported when it is called, so that --help is fast.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rlobj.cli import Parser, be_calm


def compare(arguments: list[str]) -> None:
    """rlobj compare RECIPE --lambdas 0 0.1 1"""
    parser = Parser(
        prog="rlobj compare",
        description="Train every λ with every seed from one warm start and one reward model, and compare them. The "
        "same command goes on where it stopped; with another λ or more seeds it trains only those.",
        epilog="any field of the recipe may follow, as in rlobj run: --training.steps 100",
        allow_abbrev=False,
    )
    _add_trials(parser)
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


def tune(arguments: list[str]) -> None:
    """rlobj tune RECIPE --space KEY=VALUES"""
    parser = Parser(
        prog="rlobj tune",
        description="Search λ together with other parameters through Optuna: the highest true measure among the trials "
        "whose ℓ is within the bound. The same command goes on where it stopped.",
        epilog="any field of the recipe may follow, as in rlobj run: --training.steps 100",
        allow_abbrev=False,
    )
    _add_trials(parser)
    parser.add_argument(
        "--space",
        nargs="+",
        action="extend",
        required=True,
        metavar="KEY=VALUES",
        help="objective.lambda_sup=log:0.01..1 training.num_generations=4..16 training.beta='0|0.01'",
    )
    parser.add_argument("--trials", type=int, default=20, help="trials in all (default: 20)")
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


def report(arguments: list[str]) -> None:
    """rlobj report DIR [DIR]"""
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


def _add_trials(parser: argparse.ArgumentParser) -> None:
    """The recipe of all trials, and how many of them at once."""
    parser.add_argument("recipe", metavar="RECIPE", help="a name from `rlobj list`, or a YAML file")
    parser.add_argument("--workers", type=int, help="trials at once (default: one for each core; with a GPU, one)")


def _add_engine(parser: argparse.ArgumentParser) -> None:
    """What runs the trials."""
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


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 0 or more")
    return int(text)
