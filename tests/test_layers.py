"""Who may import whom: `envs` and `reward_models` stand alone, and within rlobj imports go down or sideways."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HOME = Path(__file__).parents[1]

LAYERS = {
    "0 pure": (
        "_origin", "asha", "chat_format", "intervals", "objective", "row_cache", "runs", "sampling", "schedules",
        "spelling", "stream", "trajectories",
    ),
    "1 parts": (
        "adapters", "advantages", "alarms", "arguments", "attribution", "callbacks", "checkpoints", "checks",
        "completions", "config", "continue_config", "controllers", "critic", "data", "drift", "encoder_policy",
        "environment_checks", "estimators", "fit_config", "fit_data", "gradient_probe", "inference", "lambdas",
        "latency", "loading", "measures", "measuring_trainer", "modes", "perturbations", "pictures", "policies",
        "progress", "pruning", "quantising", "reading", "readings", "recipes", "reference", "reward_checks", "scoring",
        "search_space", "sharding", "shrinking", "splitting", "steering", "trackers", "tracking", "trainer_checks",
        "trl_fields", "try_reward", "validation",
    ),
    "2 loops": (
        "bad_steps", "best_policy", "dialogue_play", "episodes", "evaluation", "exact", "fit_tasks",
        "forgetting", "kl", "long_prompts", "model_user", "rehearsal", "reward_watch", "rollout",
        "self_supervised", "supervised", "trainer",
    ),
    "3 story": (
        "chat", "compared", "comparison", "comparison_report", "continuing", "early_stopping", "evaluation_stage",
        "explaining", "explanation_page", "exporting", "fit_report", "fitting", "forgetting_report", "grpo_config",
        "jobs", "judging", "one_run", "pipeline", "policy_stage", "prediction", "pretraining", "probe_report",
        "probed", "probed_episodes", "probing", "prunable", "ray_jobs", "report", "results", "reward_stage",
        "run_report", "searched", "slimming", "soup", "stage_inputs", "stages", "subjects", "tasks", "tuning",
        "tuning_report", "warm_stage",
    ),
    "4 verbs": ("cli", "comparison_verbs", "model_verbs", "reward_verbs", "__main__"),
}  # fmt: skip
"""A module of layer 0 imports no other module of ours; of the others, none from a higher layer."""
LAYER_OF = {module: int(layer[0]) for layer, modules in LAYERS.items() for module in modules}


def sources(package: str) -> Iterator[tuple[str, ast.Module]]:
    """Name within the package, and syntax tree, of each of its modules but its own __init__."""
    root = HOME / package
    for path in sorted(root.rglob("*.py")):
        place = path.relative_to(root).with_suffix("")
        parts = place.parts[:-1] if place.name == "__init__" else place.parts
        if parts:
            yield ".".join(parts), ast.parse(path.read_text(encoding="utf-8"))


def is_for_type_checkers(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def statements(tree: ast.AST, inside_functions: bool) -> Iterator[ast.stmt]:
    """Statements that run, those in functions too if asked; none that are for type checkers alone."""
    for node in ast.iter_child_nodes(tree):
        is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if is_for_type_checkers(node) or (is_function and not inside_functions):
            continue
        if isinstance(node, ast.stmt):
            yield node
        yield from statements(node, inside_functions)


def imported(tree: ast.AST, inside_functions: bool = True) -> set[str]:
    """Full names that are imported; `from a import b` counts as `a.b`."""
    names: set[str] = set()
    for node in statements(tree, inside_functions):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute here"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def modules_of_ours(names: set[str]) -> set[str]:
    """Of the names imported, the modules of rlobj."""
    within = {name.split(".")[1] for name in names if name.startswith("rlobj.")}
    return within & set(LAYER_OF)


def test_every_module_has_a_layer() -> None:
    assert {name for name, _ in sources("rlobj")} == set(LAYER_OF), "put each module of rlobj into LAYERS"


def test_imports_go_down_or_sideways() -> None:
    for name, tree in sources("rlobj"):
        used = modules_of_ours(imported(tree)) - {name}
        higher = {each for each in used if LAYER_OF[each] > LAYER_OF.get(name, 0)}
        assert not higher, f"rlobj.{name} imports {sorted(higher)} from a higher layer"
        assert not (used and LAYER_OF.get(name) == 0), f"rlobj.{name} is pure and imports {sorted(used)}"


def test_imports_make_no_circle() -> None:
    graph = {name: modules_of_ours(imported(tree, inside_functions=False)) - {name} for name, tree in sources("rlobj")}
    graphlib.TopologicalSorter(graph).prepare()


@pytest.mark.parametrize(
    ("package", "never"),
    [
        ("envs", {"torch", "transformers", "trl", "reward_models", "rlobj"}),
        ("reward_models", {"envs", "rlobj", "gymnasium"}),
    ],
)
def test_the_lower_packages_stand_alone(package: str, never: set[str]) -> None:
    root = HOME / package / "__init__.py"
    trees = [*sources(package), ("__init__", ast.parse(root.read_text(encoding="utf-8")))]
    for name, tree in trees:
        tops = {each.partition(".")[0] for each in imported(tree)}
        assert not tops & never, f"{package}.{name} imports {sorted(tops & never)}"


@pytest.mark.parametrize(
    ("package", "never"), [("envs", "torch transformers reward_models rlobj"), ("reward_models", "envs rlobj")]
)
def test_what_importing_a_lower_package_loads(package: str, never: str) -> None:
    script = (
        f"import importlib, pkgutil, sys, {package}\n"
        f"for each in pkgutil.walk_packages({package}.__path__, '{package}.'): importlib.import_module(each.name)\n"
        f"print(*sorted(set('{never}'.split()) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=HOME, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "\n"), done.stderr


def test_importing_rlobj_and_its_command_line_loads_no_torch() -> None:
    script = "import rlobj, rlobj.cli, sys; print(*{'torch', 'transformers', 'envs', 'yaml'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], cwd=HOME, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "\n"), done.stderr
