"""An impossible configuration is refused with its key, its value and a remedy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rlobj.config import RunConfig, validate
from rlobj.recipes import load_recipe
from rlobj.spelling import did_you_mean

CUSTOMER_SERVICE = "name: x\nenv: {id: rlobj/CustomerService-v0}\n"


def refusal(recipe: str, *arguments: str) -> str:
    """The message of the ValueError that reading or checking gives: one line or two."""
    with pytest.raises(ValueError) as error:
        validate(load_recipe(recipe, arguments))
    message = str(error.value)
    assert len(message.splitlines()) <= 2
    return message


@pytest.fixture
def labelled(tmp_path: Path) -> str:
    path = tmp_path / "labelled.csv"
    path.write_text("text,label\nhello,greeting\nbye,farewell\n")
    return str(path)


@pytest.mark.parametrize("value", ["-1", "-1e-9", "-inf", "nan", "inf", "[0, -0.1]", "true", "x", "null", "[[0.1]]"])
def test_lambda_is_finite_and_not_negative(value: str) -> None:
    assert refusal("customer-service", "--objective.lambda_sup", value).startswith("objective.lambda_sup is ")


def test_lambda_that_is_not_a_number_in_yaml(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(CUSTOMER_SERVICE + "objective: {lambda_sup: .nan}\n")
    assert refusal(str(tmp_path / "x.yaml")).startswith("objective.lambda_sup is nan: expected a finite λ")


@pytest.mark.parametrize("value", ["[]", "[0.1, 0.1]"])
def test_a_list_of_lambdas_has_some_and_each_once(value: str) -> None:
    assert refusal("customer-service", "--objective.lambda_sup", value).startswith("objective.lambda_sup is ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--training.steps", "1.5"], "training.steps is 1.5: expected a whole number"),
        (["--training.steps", "0"], "training.steps is 0: expected a finite number above 0"),
        (["--training.learning_rate", "fast"], "training.learning_rate is fast: expected a number"),
        (["--training.learning_rate", ".nan"], "training.learning_rate is "),
        (["--training.num_generations", "1"], "training.num_generations is 1: expected a finite number of at least 2"),
        (["--training.trl", "3"], "training.trl is 3: expected a mapping of keys to values"),
        (["--training", "3"], "--training is a section"),
        (["--policy.kind", "casual"], "policy.kind is casual: expected one of causal, encoder"),
        (["--warm_start.epochs", "-1"], "warm_start.epochs is -1.0: "),
        (["--name", "a/b"], "name is 'a/b': expected the name of a folder"),
        (["--name", ""], "name is ''"),
        (["--seed", "-1"], "seed is -1"),
        (["--data.limit", "0"], "data.limit is 0"),
        (["--data.rows_per_label", "5"], "data.rows_per_label is 5: rlobj/CustomerService-v0 has no labels"),
        (["--policy.heads", "3"], "policy.hidden_size is 128: expected a multiple of 6 (policy.heads × 2)"),
        (["--policy.hidden_size", "60"], "policy.hidden_size is 60: expected a multiple of 8 (policy.heads × 2)"),
    ],
)
def test_values(arguments: list[str], message: str) -> None:
    assert refusal("customer-service", *arguments).startswith(message)


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("objective.lambda", "objective.lambda_sup"),
        ("lambda_sup", "objective.lambda_sup"),
        ("training.learnign_rate", "training.learning_rate"),
        ("policy.learning_rate", "warm_start.learning_rate"),
        ("output_dri", "output_dir"),
    ],
)
def test_an_unknown_key_names_the_nearest(key: str, nearest: str, tmp_path: Path) -> None:
    expected = f"unknown key {key!r} in the command line; did you mean {nearest!r}?"
    assert refusal("customer-service", f"--{key}", "1") == expected
    assert refusal("customer-service", f"--{key}=1") == expected
    section, _, name = key.rpartition(".")
    path = tmp_path / "x.yaml"
    path.write_text(CUSTOMER_SERVICE + (f"{section}: {{{name}: 1}}\n" if section else f"{name}: 1\n"))
    assert refusal(str(path)) == expected.replace("the command line", str(path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected keys such as name and env, got NoneType"),
        ("- a\n", "expected keys such as name and env, got list"),
        ("name: [x\n", "is not YAML: "),
        ("name: x\n", "env.id is missing: set it in the recipe or with --env.id"),
        ("name: x\nenv: foo\n", "env in {path} is 'foo': expected a section of keys, such as env.id"),
        (CUSTOMER_SERVICE + "objective:\n", "objective in {path} is None: expected a section of keys"),
        (CUSTOMER_SERVICE + "training: {steps: 1e-6}\n", "training.steps is 1e-06: expected a whole number"),
        (CUSTOMER_SERVICE + "training: {steps: '5x'}\n", "training.steps is 5x: expected a whole number"),
    ],
)
def test_files(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    assert message.format(path=path) in refusal(str(path))


def test_small_numbers_in_yaml_are_numbers(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(
        CUSTOMER_SERVICE + "training: {learning_rate: 1e-6, trl: {epsilon: 1e-2}}\nobjective: {lambda_sup: [0, 1e-6]}\n"
    )
    config = validate(load_recipe(str(path)))
    assert (config.training.learning_rate, config.objective.lambdas) == (1e-6, [0.0, 1e-6])
    assert config.training.trl == {"epsilon": 1e-2}


def test_missing_recipes_and_files() -> None:
    assert "did you mean 'customer-service'?" in refusal("customer-servce")
    assert refusal("nothing/here.yaml") == "recipe file 'nothing/here.yaml' does not exist"
    assert refusal("customer-service", "--config", "no.yaml") == "configuration file 'no.yaml' does not exist"


def test_data_files(tmp_path: Path, labelled: str) -> None:
    assert "there is no such file; did you mean " in refusal("banking-intents", "--data.train", labelled[:-5] + ".csv")
    (tmp_path / "empty.jsonl").touch()
    assert refusal("banking-intents", "--data.train", str(tmp_path / "empty.jsonl")).endswith("the file is empty")
    assert refusal("banking-intents", "--data.train", "").startswith("data.train is empty")
    assert "set --data.train too" in refusal("customer-service", "--data.eval", labelled)
    assert refusal("banking-intents").startswith("data.train is null")
    assert refusal("corpus-dialogue").startswith("data.train is null")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--policy.kind", "encoder"], "policy.kind is 'encoder', but rlobj/CustomerService-v0 takes replies"),
        (["--reward.kind", "function"], "reward.function is null"),
        (["--reward.function", "label_match"], "set --reward.kind function"),
        (["--reward.kind", "environment", "--reward.model", "x"], "set --reward.kind trained"),
        (["--training.max_reply_tokens", "640"], "expected less than policy.max_length, 640"),
        (["--env.id", "rlobj/CustomerServise-v0"], "did you mean 'rlobj/CustomerService-v0'?"),
        (["--env.id", "nowhere:rlobj/CustomerService-v0"], "cannot import 'nowhere'"),
        (["--env.kwargs.domian", "repairs"], "did you mean 'domain'?"),
        (["--training.beta_target", "0.1"], "training.beta (with training.beta_target) is 0.0: expected"),
        (["--training.target_kl", "0"], "training.target_kl is 0.0: expected"),
        (["--training.beta", "1", "--training.kl_in", "reward", "--training.trl.top_p", "0.9"], "top_p cuts"),
        (["--env.id", "CartPole-v1", "--env.kwargs", "{}"], "reward.kind is 'trained', but CartPole-v1 gives no pref"),
    ],
)
def test_impossible_combinations(arguments: list[str], message: str) -> None:
    assert message in refusal("customer-service", *arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--policy.kind", "causal"], "set --policy.kind encoder"),
        (["--policy.hidden_size", "60", "--policy.heads", "8"], "expected a multiple of 8 (policy.heads)"),
        (["--training.estimator", "exact", "--training.kl_in", "reward"], "the estimator exact samples nothing"),
        (["--training.estimator", "exact", "--training.target_kl", "0.1"], "learns from no sample"),
        (["--reward.kind", "trained", "--reward.function", "null"], "gives no preference pairs"),
    ],
)
def test_impossible_combinations_of_a_classifier(arguments: list[str], message: str, labelled: str) -> None:
    assert message in refusal("banking-intents", "--data.train", labelled, *arguments)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("label_mach", "reward.function: reward 'label_mach' is not shipped"),
        ("nowhere:score", "cannot import 'nowhere'"),
        ("{file}:scor", "has no 'scor'"),
        ("{file}:LIMIT", "is 3: expected a function"),
        ("{file}x.py:score", "there is no file"),
    ],
)
def test_reward_functions(function: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("LIMIT = 3\ndef score(completions, **columns): return [0.0] * len(completions)\n")
    arguments = ["--reward.kind", "function", "--reward.function"]
    assert message in refusal("customer-service", *arguments, function.format(file=tmp_path / "mine.py"))
    validate(load_recipe("customer-service", [*arguments, f"{tmp_path / 'mine.py'}:score"]))


def test_parameters_of_reward_functions() -> None:
    arguments = ["--reward.kind", "function", "--reward.function", "length_window"]
    config = load_recipe("customer-service", [*arguments, "--reward.kwargs.high", "30", "--reward.timeout", "2"])
    assert validate(config).reward.kwargs == {"high": 30}
    told = "reward.function: reward 'length_window' has no parameter 'hihg'; did you mean 'high'"
    assert told in refusal("customer-service", *arguments, "--reward.kwargs.hihg", "30")
    assert "reward.timeout is 0.0" in refusal("customer-service", *arguments, "--reward.timeout", "0")
    assert "reward.concurrency is -1" in refusal("customer-service", *arguments, "--reward.concurrency", "-1")
    assert "reward.kwargs has 'high': expected options" in refusal("customer-service", "--reward.kwargs.high", "30")
    assert "did you mean 'label'" in refusal("customer-service", "--reward.kwargs.lable", "good")
    assert "there is no reward.function" in refusal(
        "customer-service", "--reward.kind", "environment", "--reward.kwargs.high", "30"
    )
    assert "reward.ensemble is 0" in refusal("customer-service", "--reward.ensemble", "0")
    assert "training.kl_every is -1" in refusal("customer-service", "--training.kl_every", "-1")


def test_composed_rewards() -> None:
    arguments = ["--reward.kind", "function", "--reward.compose"]
    config = load_recipe("customer-service", [*arguments, "{sum: {success: 1, politeness: 0.2}}"])
    assert validate(config).reward.compose == {"sum": {"success": 1, "politeness": 0.2}}
    told = refusal("customer-service", *arguments, "{sum: {succes: 1}}")
    assert "reward.compose: reward 'succes' is not shipped; did you mean 'success'" in told
    both = refusal("customer-service", *arguments, "{sum: {success: 1}}", "--reward.function", "success")
    assert "takes the place of reward.function" in both


def test_isolated_rewards() -> None:
    composed = ["--reward.kind", "function", "--reward.compose", "{reward: success}", "--reward.isolated", "true"]
    assert validate(load_recipe("customer-service", [*composed, "--reward.timeout", "2"])).reward.isolated
    assert "reward.timeout is None: expected --reward.kind function" in refusal("customer-service", *composed)
    told = refusal("customer-service", "--reward.isolated", "true", "--reward.timeout", "2")
    assert "reward.isolated is true, reward.kind is 'trained'" in told
    function = ["--reward.kind", "function", "--reward.function", "success", *composed[-2:], "--reward.timeout", "2"]
    assert validate(load_recipe("customer-service", function)).reward.isolated


def test_policy_for_rewards_that_fail() -> None:
    config = load_recipe("customer-service", ["--reward.on_error", "penalise", "--reward.penalty", "-2"])
    assert validate(config).reward.on_failure == -2.0
    assert load_recipe("customer-service", ["--reward.on_error", "skip"]).reward.on_failure == "skip"
    for arguments in (["--reward.on_error", "penalise"], ["--reward.penalty", "-2"]):
        assert "expected a penalty with 'penalise'" in refusal("customer-service", *arguments)
    told = refusal("customer-service", "--reward.on_error", "penalise", "--reward.penalty", ".nan")
    assert "reward.penalty is nan: expected a finite number" in told


def test_no_supervision_without_data() -> None:
    kwargs = ["--env.kwargs", '{prompts: [[{role: user, content: "hello"}]]}']
    arguments = ["--env.id", "rlobj/Dialogue-v0", *kwargs, "--reward.kind", "environment"]
    assert "there is no labelled data for ℓ" in refusal("customer-service", *arguments)
    arguments += ["--objective.lambda_sup", "0"]
    assert refusal("customer-service", *arguments).startswith("warm_start.epochs is 1.0, but there is no labelled data")
    arguments += ["--warm_start.epochs", "0"]
    assert refusal("customer-service", *arguments).startswith("policy.model is null, and without labelled data")
    validate(load_recipe("customer-service", [*arguments, "--policy.model", "a/model"]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--training.trl.num_iteration", "2"], "trl.GRPOConfig has no such field; did you mean 'num_iterations'?"),
        (["--warm_start.trl.packin", "true"], "trl.SFTConfig has no such field; did you mean 'packing'?"),
        (["--reward.trl.learning_rat", "1"], "trl.RewardConfig has no such field; did you mean 'learning_rate'?"),
        (["--training.trl.learning_rate", "1e-6"], "use training.learning_rate instead"),
        (["--training.trl.push_to_hub", "true"], "rlobj sets it itself; leave it out"),
        (["--training.trl.num_iterations", "many"], "training.trl.num_iterations is 'many': expected int"),
        (["--training.trl.num_iterations", "true"], "training.trl.num_iterations is True: expected int"),
        (["--training.trl.epsilon", "x"], "training.trl.epsilon is 'x': expected float"),
        (["--training.trl.loss_type", "bnpo"], "divides by the tokens of a micro-batch"),
        (["--training.trl.gradient_accumulation_steps", "7"], "is 64: expected a multiple of 7"),
        (["--training.trl.gradient_accumulation_steps", "0"], "is 0: expected a finite number of at least 1"),
    ],
)
def test_fields_of_trl(arguments: list[str], message: str) -> None:
    assert message in refusal("customer-service", *arguments)


def test_fields_of_trl_that_may_be_set() -> None:
    config = load_recipe(
        "customer-service",
        ["--training.trl.epsilon", "1e-6", "--training.trl.gradient_accumulation_steps", "4",
         "--training.trl.loss_type", "dr_grpo", "--warm_start.trl.weight_decay", "0.1"],
    )  # fmt: skip
    assert validate(config) is config


def test_processes_share_a_step_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert "expected a multiple of 3 (processes × " in refusal("customer-service")


def test_did_you_mean() -> None:
    assert did_you_mean("lamda", ["lambda", "beta"]) == "; did you mean 'lambda'?"
    assert did_you_mean("zzz", ["lambda", "beta"]) == ""


def test_reading_and_checking_need_no_torch(tmp_path: Path) -> None:
    script = (
        "import sys; from rlobj.recipes import load_recipe; from rlobj.config import validate\n"
        "validate(load_recipe('customer-service'))\n"
        "print(*{'torch', 'transformers', 'trl', 'datasets'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("\n", "")


def test_the_tree_is_frozen() -> None:
    config = load_recipe("customer-service")
    assert isinstance(config, RunConfig)
    with pytest.raises(AttributeError):
        config.training.steps = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ("{train: 0}", "objective.sources.train is 0.0: expected a finite number above 0"),
        ("{train: 1, no.jsonl: 1}", "objective.sources is 'no.jsonl': there is no such file"),
    ],
)
def test_sources_of_the_supervised_stream(sources: str, message: str) -> None:
    assert message in refusal("customer-service", "--objective.sources", sources)
