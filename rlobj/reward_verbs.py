"""Verbs of rewards: reward, try-reward, judge and serve-reward.

Each calls one function, imported when it is called, so that --help is fast.
"""

from __future__ import annotations

import re
from pathlib import Path

from rlobj.cli import Parser, be_calm, share_the_cpu


def reward(arguments: list[str]) -> None:
    """rlobj reward RECIPE"""
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


def try_reward(arguments: list[str]) -> None:
    """rlobj try-reward REWARD TEXT ..."""
    parser = Parser(
        prog="rlobj try-reward",
        description="Score texts with a reward at once, without training.",
        epilog="A file has a text in each line, or (.jsonl) an object with completion and prompt, or messages; what "
        "else it holds are columns.",
    )
    _add_reward(parser)
    parser.add_argument("texts", metavar="TEXT", nargs="*", help="what a policy says")
    parser.add_argument("--prompt", help="what it answers to")
    parser.add_argument("--file", help="score the rows of this file")
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


def judge(arguments: list[str]) -> None:
    """rlobj judge REWARD PAIRS"""
    parser = Parser(
        prog="rlobj judge",
        description="What a reward says of preference pairs: accuracy, calibration, dependence on length, speed.",
    )
    _add_reward(parser)
    parser.add_argument("pairs", metavar="PAIRS", help="file or data set: columns chosen and rejected, maybe prompt")
    parser.add_argument("--against", metavar="REWARD", help="another reward, to compare with")
    parser.add_argument("--limit", type=int, help="use so many pairs, drawn at random")
    parser.add_argument("--output", metavar="FOLDER", help="where judgement.html and judgement.json go "
                        "(default: runs/judged/REWARD)")  # fmt: skip
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


def serve_reward(arguments: list[str]) -> None:
    """rlobj serve-reward REWARD [--port PORT]"""
    parser = Parser(
        prog="rlobj serve-reward",
        description="Serve a reward over HTTP, as OpenRLHF's remote_rm_url has it: POST to /get_reward, GET /health.",
    )
    _add_reward(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: this machine alone)")
    parser.add_argument("--port", type=int, default=5000)
    parser.add_argument("--max_request_bytes", type=int, default=16 * 2**20, help="longer requests are refused")
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


def _add_reward(parser: Parser) -> None:
    """Any reward, and its parameters."""
    parser.add_argument("reward", metavar="REWARD", help="a name from `rlobj list rewards`, package.module:name, "
                        "path/to/file.py:name, or the directory of a reward model")  # fmt: skip
    parser.add_argument("--kwargs", metavar="{…}", help="parameters of the reward; one: --kwargs.NAME VALUE")
