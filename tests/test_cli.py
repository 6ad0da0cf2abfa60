"""The verbs: what they print, what they return, what they load."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml

import rlobj
from rlobj import cli
from rlobj.cli import main
from rlobj.recipes import load_recipe

HOME = Path(__file__).parents[1]
RUN = ["run", "customer-service"]


@pytest.fixture(autouse=True)
def as_a_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each test an environment and a search path of its own."""
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.setattr(os, "environ", {**os.environ, "RLOBJ_DEBUG": "0"})


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """A pipeline that trains nothing: `result` says what its run does."""
    fake = types.SimpleNamespace(configs=[], result=None)

    def run(config: Any) -> None:
        fake.configs.append(config)
        if fake.result is not None:
            raise fake.result

    fake.run = run
    monkeypatch.setitem(sys.modules, "rlobj.pipeline", fake)
    return fake


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["run", "--help"], [*RUN, "--help"], ["chat", "--help"], ["list", "-h"], ["--version"], []],
)
def test_help_loads_no_torch(arguments: list[str]) -> None:
    script = (
        "import sys; from rlobj.cli import main\n"
        f"try: status = main({arguments})\n"
        "except SystemExit as end: status = end.code\n"
        "assert not {'torch', 'transformers', 'trl', 'gymnasium', 'envs'} & set(sys.modules), sorted(sys.modules)\n"
        "sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=HOME, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "rlobj" in done.stdout


def test_help_names_every_field_with_its_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    os.environ["COLUMNS"] = "200"
    main([*RUN, "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "λ ≥ 0, which multiplies ℓ: a number, a form (linear:start=0.5,end=0,steps=40), or several" in said
    assert "--training.trl TRL any other field of trl.GRPOConfig" in said


@pytest.mark.parametrize("verb", ["run", "fit", "pretrain"])
def test_help_asks_for_nothing_that_a_recipe_gives(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    main([verb, "--help"])
    said = capsys.readouterr().out
    assert "[--name NAME]" in said and "required" not in said


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"rlobj {rlobj.__version__}\n"


def test_print_config_is_the_whole_tree(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    overrides = ["--objective.lambda_sup", "1e-6", "--training.trl.epsilon=0.1"]
    assert main([*RUN, "--print_config", *overrides]) == 0
    printed = capsys.readouterr().out
    assert yaml.safe_load(printed)["objective"]["lambda_sup"] == 1e-6
    (tmp_path / "printed.yaml").write_text(printed, encoding="utf-8")
    assert load_recipe(str(tmp_path / "printed.yaml")) == load_recipe("customer-service", overrides)


def test_a_reader_that_leaves_is_no_error() -> None:
    command = [sys.executable, "-m", "rlobj", *RUN, "--print_config"]
    process = subprocess.Popen(command, cwd=HOME, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 141


def test_run_hands_the_configuration_on(pipeline: types.SimpleNamespace) -> None:
    assert main([*RUN, "--training.steps", "3"]) == 0
    assert pipeline.configs == [load_recipe("customer-service", ["--training.steps", "3"])]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rn"], "no verb 'rn'; did you mean 'run'? (verbs: run, "),
        (["run"], "rlobj run RECIPE: the recipe comes first"),
        (["run", "--training.steps", "3"], "rlobj run RECIPE: the recipe comes first"),
        (["run", "customer-servic"], "no recipe named 'customer-servic'; did you mean 'customer-service'?"),
        (["run", "banking-intents"], "data.train is null"),
        ([*RUN, "stray"], "unrecognized arguments: stray"),
        ([*RUN, "-x"], "unrecognized arguments: -x"),
        ([*RUN, "--training.steps"], "argument --training.steps: expected one argument"),
        ([*RUN, "--objective.lambda_sup", "-1"], "objective.lambda_sup is -1.0"),
        ([*RUN, "--objective.lambda", "1"], "unknown key 'objective.lambda' in the command line; did you mean"),
        ([*RUN, "--objective.lambda", "1", "--print_config"], "unknown key 'objective.lambda'"),
        (["chat"], "rlobj chat: the following arguments are required: RUN"),
        (["chat", "x", "--polcy", "y"], "rlobj chat: unrecognized arguments: --polcy y"),
        (["list", "more"], "rlobj list more: expected one of environments, domains"),
    ],
)
def test_an_error_of_the_users_is_told_in_a_line_or_two(
    arguments: list[str], message: str, pipeline: types.SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error: {message}")
    assert len(err.splitlines()) <= 2
    assert pipeline.configs == []


def test_a_failed_run_keeps_its_traceback_unless_the_user_can_mend_it(
    pipeline: types.SimpleNamespace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline.result = ValueError("column 'text' is missing")
    assert main(RUN) == 2
    assert capsys.readouterr().err == "error: column 'text' is missing\n"
    pipeline.result = RuntimeError("a bug")
    with pytest.raises(RuntimeError):
        main(RUN)
    monkeypatch.setitem(os.environ, "RLOBJ_DEBUG", "1")
    pipeline.result = ValueError("column 'text' is missing")
    with pytest.raises(ValueError, match="column"):
        main(RUN)


def test_the_processes_that_are_left_say_that_another_failed(
    pipeline: types.SimpleNamespace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline.result = RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:6565")
    with pytest.raises(RuntimeError):
        main(RUN)  # there is no other
    monkeypatch.setitem(os.environ, "WORLD_SIZE", "2")
    monkeypatch.setattr("rlobj.cli.share_the_cpu", lambda timeout: None)
    assert main(RUN) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "another process of this launch failed" in line


def test_an_interrupted_run_says_how_to_go_on(
    pipeline: types.SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline.result = KeyboardInterrupt("stopped; what was done is in runs/x")
    arguments = [*RUN, "--name", "a b", "--training.steps=3"]
    assert main(arguments) == 130
    assert capsys.readouterr().err == (
        "stopped; what was done is in runs/x\nto go on: rlobj run customer-service --name 'a b' --training.steps=3\n"
    )


def test_chat(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    calls: list[Any] = []
    fake = types.SimpleNamespace(talk=lambda *arguments: calls.append(arguments))
    monkeypatch.setitem(sys.modules, "rlobj.chat", fake)
    run = tmp_path / "customer-service"
    run.mkdir()
    assert main(["chat", str(run), "--policy", "warm_start"]) == 0
    assert main(["chat", str(run)]) == 0
    assert calls == [(str(run), "warm_start"), (str(run), None)]
    assert main(["chat", f"{run}s"]) == 2
    assert capsys.readouterr().err == f"error: '{run}s' is not the folder of a run; did you mean '{run}'?\n"


def test_a_run_is_calm_and_the_user_may_want_it_otherwise(
    pipeline: types.SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "warnoptions", [])
    monkeypatch.setitem(os.environ, "TRANSFORMERS_VERBOSITY", "info")
    monkeypatch.delitem(os.environ, "TOKENIZERS_PARALLELISM", raising=False)
    main(RUN)
    assert {**cli.CALM, "TRANSFORMERS_VERBOSITY": "info"}.items() <= os.environ.items()
    warnings.warn_explicit("of the library's own affairs", UserWarning, "x.py", 1, module="trl.trainer.grpo_trainer")
    for module in ("rlobj.trainer", "mymodule", "trlike"):
        with pytest.raises(UserWarning):
            warnings.warn_explicit("to be read", UserWarning, "x.py", 1, module=module)


def test_list_has_a_line_for_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if not line.startswith(" ")] == ["Environments:", "Domains:", "Rewards:", "Recipes:"]
    for name in ("rlobj/CustomerService-v0", "rlobj/Classification-v0", "hotels", "label_match", "customer-service"):
        described = [line for line in lines if line.split()[0] == name]
        assert len(described) == 1
        assert len(described[0].split()) > 3
    assert any("100% of goals can succeed" in line for line in lines), "the ceiling of a domain"


@pytest.mark.skipif(shutil.which("rlobj", path=str(Path(sys.executable).parent)) is None, reason="not installed")
def test_the_installed_program(tmp_path: Path) -> None:
    program = Path(sys.executable).parent / "rlobj"
    done = subprocess.run([program, "run", "nothing.yaml"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "error: recipe file 'nothing.yaml' does not exist\n")


# The public names


def test_every_public_name_is_there() -> None:
    assert len(set(rlobj.__all__)) == len(rlobj.__all__)
    for name in rlobj.__all__:
        assert getattr(rlobj, name) is not None
    assert set(rlobj.__all__) <= set(dir(rlobj))


def test_type_checkers_see_the_same_names() -> None:
    import ast

    tree = ast.parse(Path(rlobj.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.asname: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert seen == {name: f"rlobj.{module}" for name, module in rlobj._MODULE_OF.items()}


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'rlobj' has no attribute 'nothing'"):
        _ = rlobj.nothing
