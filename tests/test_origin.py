"""Folders `envs` and `reward_models` of the user's own neither shadow ours nor are hidden without a clear error."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rlobj._origin import HOME, NEIGHBOURS, advice_on, hidden_by_us

WAYS = ["rlobj", "python -m rlobj"]
CHECKED = ["--reward.kind", "function", "--reward.function"]


def start(
    way: str, folder: Path, *arguments: str, path: tuple[Path, ...] = (HOME,), **variables: str
) -> tuple[int, str]:
    """Start the program in a folder; give its exit status and all that it said."""
    if way == "rlobj":  # what pip installs: a script elsewhere, whose own folder Python looks into first
        script = folder.parent / "bin" / "rlobj"
        script.parent.mkdir(exist_ok=True)
        script.write_text("import sys\nfrom rlobj.cli import main\nsys.exit(main())\n")
        command = [sys.executable, str(script), *arguments]
    else:
        command = [sys.executable, "-m", "rlobj", *arguments]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path)), **variables}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A user's folder with packages of our names, and a module of the user's own."""
    folder = tmp_path / "project"
    for name in NEIGHBOURS:
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text("raise RuntimeError('this is not the package of rlobj')\n")
        (folder / name / "mine.py").write_text("def score(**columns): ...\n")
    (folder / "mymodule.py").write_text(
        "print('mymodule is found')\ndef score(prompts, completions, **columns): return [0.0] * len(completions)\n"
    )
    return folder


@pytest.mark.parametrize("way", WAYS)
def test_packages_in_the_working_directory_do_not_shadow_ours(way: str, folder: Path) -> None:
    status, said = start(way, folder, "list")
    assert status == 0, said
    assert "rlobj/CustomerService-v0" in said


@pytest.mark.parametrize("way", WAYS)
def test_modules_and_bare_folders_do_not_shadow_ours(way: str, tmp_path: Path) -> None:
    folder = tmp_path / "project"
    (folder / "reward_models").mkdir(parents=True)
    (folder / "envs.py").write_text("raise RuntimeError('this is not the package of rlobj')\n")
    status, said = start(way, folder, "list")
    assert status == 0, said


@pytest.mark.parametrize("way", WAYS)
def test_a_reward_beside_them_is_found(way: str, folder: Path) -> None:
    # three processes cannot share 64 episodes: the run ends with that, behind the look at the reward
    status, said = start(way, folder, "run", "customer-service", *CHECKED, "mymodule:score", WORLD_SIZE="3")
    assert status == 2
    assert said.startswith("mymodule is found\nerror: training.prompts_per_step")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", NEIGHBOURS)
def test_a_reward_inside_them_is_refused_with_the_reason(way: str, name: str, folder: Path) -> None:
    status, said = start(way, folder, "run", "customer-service", *CHECKED, f"{name}.mine:score")
    assert status == 2
    assert said.startswith("error: ")
    assert said.endswith(f"\n{folder / name} is hidden by rlobj's own package {name!r}: give yours another name\n")


@pytest.mark.parametrize("way", WAYS)
def test_a_reward_that_imports_from_them_is_refused_with_the_reason(way: str, folder: Path) -> None:
    (folder / "mymodule.py").write_text("from envs.mine import score\n")
    status, said = start(way, folder, "run", "customer-service", *CHECKED, "mymodule:score")
    assert status == 2
    assert f"{folder / 'envs'} is hidden by rlobj's own package 'envs'" in said
    assert "Traceback" not in said


def test_a_script_beside_them_is_told_where_both_are(folder: Path) -> None:
    (folder / "train.py").write_text("import rlobj\n")
    environment = {**os.environ, "PYTHONPATH": str(HOME)}
    done = subprocess.run([sys.executable, "train.py"], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"ImportError: rlobj needs its own package 'envs' ({HOME / 'envs'}), but {folder / 'envs'} comes first in "
        "sys.path: rename that folder, or move its parent behind rlobj's in sys.path"
    )


@pytest.mark.parametrize("way", WAYS)
def test_a_search_path_that_puts_them_first_is_told_so(way: str, folder: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    status, said = start(way, elsewhere, "--version", path=(folder, HOME))
    assert status != 0
    assert f"but {folder / 'envs'} comes first in sys.path" in said


def test_safe_path_is_left_alone(folder: Path) -> None:
    status, said = start("python -m rlobj", folder, "list", PYTHONSAFEPATH="1")
    assert status == 0, said


def test_our_own_folder_hides_nothing(folder: Path) -> None:
    assert hidden_by_us(HOME) == []
    assert hidden_by_us(folder) == [folder / "envs", folder / "reward_models"]


def test_advice_is_for_failed_imports_of_these_names_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    failed = ModuleNotFoundError("no module", name="envs.mine")
    outer = ValueError("cannot import it")
    outer.__cause__ = failed
    assert "give yours another name" in advice_on(failed)
    assert "give yours another name" in advice_on(outer)
    assert advice_on(ModuleNotFoundError("no module", name="pandas")) == ""
    assert advice_on(ValueError("x")) == ""
