"""The README's applications run as they stand there, each from its first line to its last, with less of everything."""

from __future__ import annotations

import re
import shlex
from importlib.util import find_spec
from pathlib import Path

import pytest
from test_pipeline import SMALL

from rlobj.cli import main

for library in ("captum", "sklearn", "torch_pruning"):
    pytest.importorskip(library)

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
SMALLER = {
    "run": {**SMALL, "policy.heads": 4, "env.eval_episodes": 12},
    "continue": {"fit.epochs": 1, "data.rows_per_label": 3},
    "probe": {"limit": 4},
    "explain": {"steps": 4, "orders": 2},
}
"""Verb -> what is put over its arguments."""


def sequences() -> dict[str, list[list[str]]]:
    """Application -> its command lines, of all blocks of its part."""
    section = README.split("\n## Three applications, from first to last\n")[1].split("\n## ")[0]
    parts = re.split(r"\n### (.+)\n", section)[1:]
    return {
        title: [shlex.split(line, comments=True) for line in re.findall(r"^    (.+)$", text, re.MULTILINE)]
        for title, text in zip(parts[::2], parts[1::2], strict=True)
    }


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of libraries that a user's terminal shows none of
@pytest.mark.parametrize("application", sequences())
def test_every_line_runs(application, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    lines = sequences()[application]
    verbs = [line[1] for line in lines if line[0] == "rlobj"]
    assert {"run", "probe", "explain", "prune", "export", "predict"} <= set(verbs)
    for line in lines:
        if line[0] in ("echo", "printf"):
            *_, text, arrow, file = line
            assert arrow == ">"
            Path(file).write_text(f"{text}\n", encoding="utf-8")
            continue
        assert line[0] == "rlobj"
        verb, arguments = line[1], line[2:]
        if "--onnx" in arguments and find_spec("onnxscript") is None:
            arguments.remove("--onnx")
        smaller = [f"--{key}={value}" for key, value in SMALLER.get(verb, {}).items()]
        assert main([verb, *arguments, *smaller]) == 0, f"{shlex.join(line)}\n{capsys.readouterr().err}"
    assert capsys.readouterr().out.rstrip().endswith("}"), "the last line predicts"
