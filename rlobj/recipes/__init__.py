"""Ready-made runs, and how a run is read: a YAML recipe, then the command line's dotted names over it.

Nothing here imports torch.
"""

import contextlib
import dataclasses
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import yaml
from jsonargparse import ArgumentError, ArgumentParser, set_parsing_settings

from rlobj.config import RunConfig
from rlobj.continue_config import ContinueConfig
from rlobj.fit_config import FitConfig, PretrainConfig
from rlobj.spelling import did_you_mean

VERBS: dict[type, str] = {RunConfig: "run", FitConfig: "fit", PretrainConfig: "pretrain", ContinueConfig: "continue"}
"""Kind of recipe -> the verb that it is for. Recipes of `run` stand in this folder, of other verbs in one of theirs;
`continue` has none, since what it begins with is a run."""
Tree = TypeVar("Tree", RunConfig, FitConfig, PretrainConfig, ContinueConfig)


def recipes(kind: type = RunConfig) -> dict[str, Path]:
    """The shipped recipes of one verb, by name."""
    folder = Path(__file__).parent
    folder = folder if kind is RunConfig else folder / VERBS[kind]
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def descriptions(kind: type = RunConfig) -> dict[str, str]:
    """Name -> the comment in the first line of each shipped recipe."""
    first_lines = {name: path.read_text(encoding="utf-8").partition("\n")[0] for name, path in recipes(kind).items()}
    return {name: line.removeprefix("#").strip() for name, line in first_lines.items()}


def load_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a shipped recipe or a YAML file, then command-line arguments over it. Not yet validated.

    Args:
        overrides: as on the command line: `["--objective.lambda_sup", "0.1", "--config", "more.yaml"]`.

    Raises:
        ValueError: unknown recipe, unreadable file, unknown key, or wrong type, with the nearest valid name.
    """
    return read_recipe(RunConfig, name_or_path, overrides)


def read_recipe(kind: type[Tree], name_or_path: str, overrides: Sequence[str] = ()) -> Tree:
    """`load_recipe` for the configuration of any verb."""
    path = recipe_path(name_or_path, kind)
    _check_file(path, kind)
    arguments = _with_equals(overrides)
    _check_arguments(arguments, kind)
    try:
        values = run_parser(path, kind).parse_args(arguments)
    except ArgumentError as error:
        raise ValueError(_in_short(error, kind)) from error
    config: Tree = _build(kind, values.as_dict())
    return config


def run_parser(recipe: Path | None = None, kind: type = RunConfig) -> ArgumentParser:
    """Parser of all fields by their dotted names; a recipe gives the defaults."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    defaults = [] if recipe is None else [str(recipe)]
    parser = ArgumentParser(
        prog=f"rlobj {VERBS[kind]} RECIPE",
        description="Train as a recipe says. RECIPE: a name from `rlobj list`, or a YAML file.",
        default_config_files=defaults,
        exit_on_error=False,
    )
    parser.add_argument("--config", action="config", help="YAML file over the recipe; may be given again")
    sections = dict(_sections(kind))
    parser.add_class_arguments(kind, skip=set(sections))
    for name, section in sections.items():
        parser.add_class_arguments(section, name)
    return parser


def help_text(kind: type, recipe: Path | None) -> str:
    """What every field is, and its default. None is called required: a recipe gives those that have no default."""
    parser = run_parser(recipe, kind)
    for action in parser._actions:
        action.required = False
    text: str = parser.format_help()
    return text


def recipe_path(name_or_path: str, kind: type = RunConfig) -> Path:
    """The file of a recipe. Raises ValueError if there is none, naming the nearest."""
    shipped = recipes(kind)
    if name_or_path in shipped:
        return shipped[name_or_path]
    path = Path(name_or_path)
    if path.is_file():
        return path
    if path.suffix in (".yaml", ".yml") or "/" in name_or_path:
        raise ValueError(f"recipe file {name_or_path!r} does not exist")
    for other, verb in VERBS.items():
        if name_or_path in recipes(other):
            raise ValueError(f"{name_or_path!r} is a recipe of another verb: rlobj {verb} {name_or_path}")
    raise ValueError(
        f"no recipe named {name_or_path!r}{did_you_mean(name_or_path, shipped)} "
        f"(shipped: {', '.join(shipped)}; or give the path of a YAML file)"
    )


def _sections(kind: type) -> Iterator[tuple[str, type]]:
    for each in dataclasses.fields(kind):
        if dataclasses.is_dataclass(each.type):
            assert isinstance(each.type, type)
            yield each.name, each.type


def _leaves(kind: type) -> dict[str, Any]:
    """Dotted name of every field -> its type; sections too, with their dataclass."""
    sections = dict(_sections(kind))
    leaves: dict[str, Any] = {each.name: each.type for each in dataclasses.fields(kind)}
    for name, section in sections.items():
        leaves |= {f"{name}.{each.name}": each.type for each in dataclasses.fields(section)}
    return leaves


def field_type(key: str, kind: type = RunConfig) -> Any:
    """The type of the field of a dotted name; None below a mapping."""
    return _leaves(kind).get(key)


def check_key(key: str, where: str, kind: type = RunConfig) -> None:
    """Raise ValueError, naming the nearest, unless a field has this dotted name."""
    leaves = _leaves(kind)
    parent = key.rsplit(".", 1)[0]
    while parent not in leaves and "." in parent:
        parent = parent.rsplit(".", 1)[0]
    if key in leaves or get_origin(leaves.get(parent)) is dict:
        return
    last = key.rsplit(".", 1)[-1]
    same_name = [leaf for leaf in leaves if leaf.rsplit(".", 1)[-1] == last]
    hint = f"; did you mean {same_name[0]!r}?" if same_name else did_you_mean(key, leaves)
    raise ValueError(f"unknown key {key!r} in {where}{hint}")


def _with_equals(arguments: Sequence[str]) -> list[str]:
    """Join "--key", "-1e-9" into "--key=-1e-9": argparse takes such a number for an option."""
    joined: list[str] = []
    for argument in arguments:
        if joined and joined[-1].startswith("--") and "=" not in joined[-1] and _is_negative_number(argument):
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


def _is_negative_number(text: str) -> bool:
    with contextlib.suppress(ValueError):
        return text.startswith("-") and float(text) <= 0
    return False


def _check_arguments(arguments: Sequence[str], kind: type) -> None:
    own = ("config", "print_config", "help")
    for at, argument in enumerate(arguments):
        if not argument.startswith("--"):
            continue
        key, equals, value = argument[2:].partition("=")
        key = key.rstrip("+")
        if key not in own:
            check_key(key, "the command line", kind)
        elif key == "config" and (equals or at + 1 < len(arguments)):
            _check_file(Path(value if equals else arguments[at + 1]), kind)


def _check_file(path: Path, kind: type) -> None:
    """Refuse a missing, empty or malformed file and unknown keys in it."""
    if not path.is_file():
        raise ValueError(f"configuration file {str(path)!r} does not exist")
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML: {_yaml_problem(error)}") from error
    if not isinstance(tree, dict):
        raise ValueError(f"{path}: expected keys such as name and env, got {type(tree).__name__}")
    sections = dict(_sections(kind))
    for name, value in tree.items():
        check_key(str(name), str(path), kind)
        if name in sections and not isinstance(value, dict):
            raise ValueError(
                f"{name} in {path} is {value!r}: expected a section of keys, "
                f"such as {name}.{dataclasses.fields(sections[name])[0].name}"
            )
        for key in value if name in sections else ():
            check_key(f"{name}.{key}", str(path), kind)


def _yaml_problem(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"{error.problem} (line {error.problem_mark.line + 1})"
    return " ".join(str(error).split())


def _build(kind: Any, values: dict[str, Any]) -> Any:
    """Instance of a dataclass tree from nested mappings of already checked types."""
    parts = {
        each.name: _build(each.type, values[each.name])
        for each in dataclasses.fields(kind)
        if dataclasses.is_dataclass(each.type)
    }
    return kind(**{each.name: values[each.name] for each in dataclasses.fields(kind)} | parts)


def _in_short(error: ArgumentError, tree: type) -> str:
    """jsonargparse's message, in one line: key, value given, what is expected."""
    text = str(error)
    key, given = re.search(r'Parser key "([^"]+)"', text), re.search(r"(?:Got|Given) value: (.*)", text)
    kind = _leaves(tree).get(key.group(1)) if key else None
    if key and given and kind is not None:
        return f"{key.group(1)} is {given.group(1)}: expected {_expectation(kind)}"
    missing = re.search(r'[Kk]ey "([^"]+)" is required|arguments are required: ([\w.]+)', text)
    if missing:
        name = missing.group(1) or missing.group(2)
        return f"{name} is missing: set it in the recipe or with --{name}"
    section = re.match(r'Parser key "(\w+)":\s+Unable to load config', text)
    if section:
        return f"--{section.group(1)} is a section: give its fields one by one, or a YAML file with --config"
    return " ".join(text.split())


def _expectation(kind: Any) -> str:
    names = {float: "a number", int: "a whole number", str: "text", bool: "true or false", type(None): "null"}
    if kind in names:
        return names[kind]
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(_expectation(each) for each in get_args(kind))
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(str, get_args(kind)))
    if get_origin(kind) is list:
        return "a list, each " + _expectation(get_args(kind)[0])
    return "a mapping of keys to values"
