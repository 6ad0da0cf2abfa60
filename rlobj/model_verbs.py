"""Verbs of the life of a model beside reinforcement learning, from fit and pretrain to prune and export.

Each calls one function, imported when it is called, so that --help is fast.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from typing import Any

from rlobj import cli
from rlobj.cli import Parser, be_calm
from rlobj.continue_config import ContinueConfig, continued, validate_continue
from rlobj.fit_config import FitConfig, PretrainConfig, validate_fit, validate_pretrain


def _add_model(parser: Parser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a run, such as runs/NAME, or the directory of a model")


def _add_policy(parser: Parser, reward: bool = False) -> None:
    """Which of the models of a run."""
    parser.add_argument("--policy", help="of a run of rlobj run or continue: which (default: that of the largest λ)")
    if reward:
        parser.add_argument("--reward", action="store_true", help="of a run of rlobj run: its reward model instead")


def fit(arguments: list[str]) -> None:
    """rlobj fit RECIPE [--dotted.name VALUE ...]"""
    config = recipe_of(FitConfig, arguments, validate_fit)
    if config is not None:
        from rlobj.fitting import fit

        fit(config)


def pretrain(arguments: list[str]) -> None:
    """rlobj pretrain RECIPE [--dotted.name VALUE ...]"""
    config = recipe_of(PretrainConfig, arguments, validate_pretrain)
    if config is not None:
        from rlobj.pretraining import pretrain

        pretrain(config)


def go_on(arguments: list[str]) -> None:
    """rlobj continue RUN --data NEW [--dotted.name VALUE ...]"""
    parser = Parser(
        prog="rlobj continue",
        description="Train the model of a run on new data, with rehearsal of the old: L(θ) = ℓ_new + λ·ℓ_old. The "
        "report says what was learned of the new and forgotten of the old, for each λ.",
        epilog="any field may follow, such as --fit.epochs 3 --objective.rows 500 --data.test FILE --old.train FILE; "
        "--print_config shows all",
        allow_abbrev=False,
    )
    parser.add_argument("run", metavar="RUN", help="folder of a run of rlobj fit or continue, or of rlobj run on files")
    parser.add_argument("--data", metavar="NEW", help="the new data: a file, shipped data set, or data set id")
    parser.add_argument("--lambda_sup", nargs="+", metavar="λ", help="0 1, or forms such as lagrange:factor=1.1 "
                        "(default: 0 1)")  # fmt: skip
    _add_policy(parser)
    parser.add_argument("--print_config", action="store_true", help="print the configuration, and train nothing")
    given, overrides = parser.parse_known_args(arguments)
    be_calm()
    config = _continued(given, overrides)
    if given.print_config:
        from rlobj.config import dump

        print(dump(config), end="")
        return
    validate_continue(config)
    cli.share_the_cpu()
    from rlobj.continuing import go_on

    go_on(config)


def _continued(given: Any, overrides: list[str]) -> ContinueConfig:
    """What the run was told, with what the command line says over it."""
    import tempfile
    from pathlib import Path

    import yaml

    from rlobj.prediction import model_directory
    from rlobj.recipes import read_recipe

    begin = continued(given.run, model_directory(given.run, given.policy))
    if given.data is not None:
        begin["data"]["train"] = given.data
    if given.lambda_sup is not None:
        begin["objective"] = {"lambda_sup": given.lambda_sup}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "continue.yaml"
        file.write_text(yaml.safe_dump(begin, allow_unicode=True), encoding="utf-8")
        return read_recipe(ContinueConfig, str(file), overrides)


def recipe_of(kind: Any, arguments: list[str], validate: Callable[[Any], Any]) -> Any:
    """The checked configuration that the arguments name; None where help or the configuration itself was asked for."""
    from rlobj.recipes import VERBS, help_text, read_recipe, recipe_path, recipes

    recipe = arguments[0] if arguments and not arguments[0].startswith("-") else None
    if "--help" in arguments or "-h" in arguments:
        print(help_text(kind, recipe_path(recipe, kind) if recipe else None), end="")
        return None
    if recipe is None:
        raise ValueError(f"rlobj {VERBS[kind]} RECIPE: the recipe comes first (shipped: {', '.join(recipes(kind))})")
    overrides = [argument for argument in arguments[1:] if argument != "--print_config"]
    config = read_recipe(kind, recipe, overrides)
    if len(overrides) < len(arguments) - 1:
        from rlobj.config import dump

        print(dump(config), end="")
        return None
    be_calm()
    validate(config)
    trl = getattr(getattr(config, "training", None), "trl", {})
    cli.share_the_cpu(trl.get("ddp_timeout", 1800.0))
    return config


def predict(arguments: list[str]) -> None:
    """rlobj predict MODEL [FILE]"""
    parser = Parser(
        prog="rlobj predict",
        description="What a trained model says of texts, a JSON object a line: label and probability, tags and "
        "entities, a score, or a completion.",
    )
    _add_model(parser)
    parser.add_argument("file", metavar="FILE", nargs="?", default="-", help="rows to predict: JSON lines, CSV, … or "
                        ".txt, a text a line; - or nothing: standard input, texts or JSON objects")  # fmt: skip
    _add_policy(parser)
    parser.add_argument("--text_column", default="text", help="column of the texts (default: text)")
    parser.add_argument("--max_new_tokens", type=int, default=40, help="of a language model (default: 40)")
    parser.add_argument("--output", metavar="FILE", help="write here instead of to standard output")
    given = parser.parse_args(arguments)
    be_calm()
    import json

    from rlobj.prediction import Predictor, model_directory, read_rows
    from rlobj.runs import atomic_write_text

    say = Predictor(model_directory(given.model, given.policy), given.text_column, given.max_new_tokens)
    lines = (json.dumps(row, ensure_ascii=False) for row in say(read_rows(given.file, sys.stdin, given.text_column)))
    if given.output:
        written = list(lines)
        atomic_write_text(given.output, "".join(f"{line}\n" for line in written))
        print(f"{len(written)} rows  {given.output}")
    else:
        for line in lines:
            print(line)


def export(arguments: list[str]) -> None:
    """rlobj export MODEL FOLDER"""
    parser = Parser(
        prog="rlobj export",
        description="Copy a model into a folder of its own, with a card that states data, objective, λ, seed and "
        "results. Plain transformers runs it.",
    )
    _add_model(parser)
    parser.add_argument("folder", metavar="FOLDER", help="where it goes")
    _add_policy(parser)
    parser.add_argument("--onnx", action="store_true", help="write model.onnx, too, of classifiers and reward models")
    given = parser.parse_args(arguments)
    be_calm()
    from pathlib import Path

    from rlobj.exporting import export
    from rlobj.prediction import model_directory

    for line in export(model_directory(given.model, given.policy), Path(given.folder), given.onnx):
        print(line)


def explain(arguments: list[str]) -> None:
    """rlobj explain MODEL TEXT ..."""
    parser = Parser(
        prog="rlobj explain",
        description="Which words made a model say what it says: a classifier its label, one of tokens the tag of each "
        "entity, a reward model its score, a policy its reply. Integrated gradients and Shapley values, and a test of "
        "both by deleting words.",
        epilog="A file has a text in each line, or (.jsonl) an object with text and maybe prompt, or messages.",
    )
    _add_model(parser)
    parser.add_argument("texts", metavar="TEXT", nargs="*", help="what is said")
    parser.add_argument("--prompt", help="what it answers; to a policy the text is then its reply, else a user's")
    parser.add_argument("--file", help="explain the rows of this file, too")
    _add_policy(parser, reward=True)
    parser.add_argument("--label", help="of a classifier: what speaks for this label or tag (default: the most "
                        "probable one)")  # fmt: skip
    parser.add_argument("--word", help="of a classifier of tokens: the tag of this word instead of each entity's first")
    parser.add_argument("--by_word", action="store_true", help="of a policy: each word of the reply, too")
    parser.add_argument("--steps", type=int, help="of the integral (default: 32, doubled until it is exact to 1%%)")
    parser.add_argument(
        "--orders", type=int, help="of the words, for Shapley values (default: 25, of long texts fewer)"
    )
    parser.add_argument("--output", metavar="FOLDER", help="where explanation.html and explanation.json go "
                        "(default: runs/explained/MODEL)")  # fmt: skip
    given = parser.parse_intermixed_args(arguments)
    be_calm()
    from rlobj.explaining import explain, require_captum, write_explanations
    from rlobj.explanation_page import show
    from rlobj.subjects import Subject, find_model
    from rlobj.try_reward import as_text, read_texts

    texts = [as_text(text, given.prompt) for text in given.texts]
    texts += read_texts(given.file, given.prompt) if given.file else []
    if not texts:
        raise ValueError('nothing to explain: rlobj explain MODEL "text", or --file FILE')
    for name in ("steps", "orders"):
        if getattr(given, name) is not None and getattr(given, name) < 2:
            raise ValueError(f"--{name} is {getattr(given, name)}: expected at least 2")
    require_captum()
    directory = find_model(given.model, given.policy, given.reward)
    found = explain(Subject(directory), texts, given.label, given.steps, given.orders, given.by_word, given.word)
    show(found)
    print(f"\nreport  {write_explanations(found, output_of(given, 'explained', directory), str(directory))}")


def output_of(given: Any, kind: str, directory: Any) -> Any:
    """--output, or a folder named after the model."""
    from pathlib import Path

    name = re.sub("[^0-9A-Za-z_.=-]+", "-", str(directory).removeprefix("runs/")).strip("-.")
    return Path(given.output or f"runs/{kind}/{name}")


def probe(arguments: list[str]) -> None:
    """rlobj probe MODEL [FILE]"""
    parser = Parser(
        prog="rlobj probe",
        description="How good a model is on input that is written otherwise (typing errors, case, words dropped or "
        "swapped, paraphrases), on parts of its data, and with names and pronouns exchanged.",
        epilog="FILE: text and label for a classifier, chosen and rejected for a reward model, messages for a policy.",
    )
    _add_model(parser)
    parser.add_argument("file", metavar="FILE", nargs="?", help="rows to judge by; without it, what its own run "
                        "kept: test data, episodes, pairs")  # fmt: skip
    _add_policy(parser, reward=True)
    parser.add_argument("--label", help="of a classifier: look for differences in the probability of this label "
                        "(default: the right one)")  # fmt: skip
    parser.add_argument(
        "--by", metavar="COLUMN", nargs="+", default=[], help="parts by the values of these columns, too"
    )
    parser.add_argument("--paraphrases", metavar="FILE", help="a line holds phrases, or texts, that may stand for one "
                        "another, divided by tabs (or commas)")  # fmt: skip
    parser.add_argument("--exchange", metavar="FILE", help="words of two sides to be exchanged, as JSON, instead of "
                        "the shipped names and pronouns (English)")  # fmt: skip
    parser.add_argument("--limit", type=int, help="rows at most, drawn at random (default: 500, of a policy 100)")
    parser.add_argument("--text_column", default="text", help="column of the texts (default: text)")
    parser.add_argument("--label_column", default="label", help="column of labels or numbers (default: label)")
    parser.add_argument("--output", metavar="FOLDER", help="where probe.html and probe.json go "
                        "(default: runs/probed/MODEL)")  # fmt: skip
    given = parser.parse_intermixed_args(arguments)
    if given.limit is not None and given.limit < 1:
        raise ValueError(f"--limit is {given.limit}: expected at least 1")
    be_calm()
    from pathlib import Path

    from rlobj.perturbations import perturbations, read_exchanges, read_paraphrases
    from rlobj.probe_report import terminal
    from rlobj.probed import probed
    from rlobj.probing import probe, write_probe
    from rlobj.subjects import Subject, find_model

    changes = perturbations(read_paraphrases(given.paraphrases) if given.paraphrases else [])
    exchanges = read_exchanges(given.exchange) if given.exchange else read_exchanges()
    directory = find_model(given.model, given.policy, given.reward)
    columns = given.text_column, given.label_column
    model = probed(Subject(directory), given.file, Path(given.model), given.limit, given.label, *columns)
    found = probe(model, changes, exchanges, given.by)
    print(f"\n{terminal(found)}")
    data = given.file or "its own test"
    print(f"\nreport  {write_probe(found, output_of(given, 'probed', directory), str(directory), data)}")


def prune(arguments: list[str]) -> None:
    """rlobj prune RUN"""
    parser = Parser(
        prog="rlobj prune",
        description="Make a trained model smaller, and measure what that did: quality on the test data, size, and the "
        "time of a text, before and after. Each result is a model's directory in RUN/pruned.",
    )
    parser.add_argument("run", metavar="RUN", help="a run of rlobj fit or rlobj run, such as runs/NAME")
    _add_policy(parser, reward=True)
    parser.add_argument("--method", nargs="+", default=["neurons"], metavar="METHOD", help="magnitude (smallest "
                        "weights of the whole model), layer (of each layer), 2:4 (two of each four), heads, neurons, "
                        "int8; or several with + between: neurons+int8 (default: neurons)")  # fmt: skip
    parser.add_argument("--amount", nargs="+", type=float, default=[0.5], metavar="SHARE",
                        help="share of weights, heads or neurons that go (default: 0.5)")  # fmt: skip
    parser.add_argument("--epochs", type=float, default=0.0, help="of rlobj fit: train on afterwards, so many passes "
                        "over the labelled data (default: 0)")  # fmt: skip
    parser.add_argument("--steps", type=int, default=0, help="of a policy: train on afterwards, so many steps of "
                        "−R + λℓ (default: 0)")  # fmt: skip
    parser.add_argument("--learning_rate", type=float, help="peak learning rate of that (default: the run's)")
    parser.add_argument("--importance", default="gradient", help="what heads and neurons are kept by: gradient, "
                        "how much the loss would change without them; or weights, their size (default: gradient)"
                        )  # fmt: skip
    given = parser.parse_args(arguments)
    if (processes := int(os.environ.get("WORLD_SIZE", "1"))) > 1:
        raise ValueError(f"rlobj prune in {processes} processes: it is the work of one; start it without a launcher")
    be_calm()
    from pathlib import Path

    from rlobj.slimming import prune, ways

    rest = {name: getattr(given, name) for name in ("epochs", "steps", "learning_rate", "importance")}
    wanted = ways(given.method, given.amount, **rest)
    print("\n" + "\n".join(prune(Path(given.run), wanted, given.policy, given.reward)))
