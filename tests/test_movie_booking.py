"""Movie booking: the ceilings as published, what a booking must be to succeed, the desk, noise, and seeds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium
import pytest

import envs  # noqa: F401  (registers the environments)
from envs.core import FIRST_HELD_OUT_SEED
from envs.experts import demonstrations, preference_pairs
from envs.movie_booking import (
    Desk,
    Goal,
    KnowledgeBase,
    MovieBookingEnv,
    UserAct,
    ceiling,
    load_goals,
    load_knowledge_base,
)
from rlobj.pipeline import run
from rlobj.policies import make_tokenizer
from rlobj.recipes import load_recipe
from rlobj.runs import read_outputs
from rlobj.tasks import make_task

DATA = os.environ.get("RLOBJ_TCBOT_DATA", "")
ROWS = [
    {"moviename": "Zoo", "city": "york", "theater": "roxy", "starttime": "8 pm", "date": "today"},
    {"moviename": "Zoo", "city": "york", "theater": "palace", "starttime": "9 pm", "date": "today"},
    {"moviename": "Zoo", "city": "leeds", "theater": "rex", "date": "today"},
    {"moviename": "Ants", "city": "york", "theater": "roxy", "starttime": "8 pm"},
]


def write(path: Path, lines: list[Any]) -> str:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return str(path)


def make(tmp_path: Path, informs: dict[str, str], requests: list[str], **kwargs: Any) -> MovieBookingEnv:
    """An environment whose customers all have one goal."""
    goals = write(
        tmp_path / "goals.jsonl", [{"inform_slots": informs, "request_slots": dict.fromkeys(requests, "UNK")}]
    )
    kb = write(tmp_path / "kb.jsonl", [{"id": i, **row} for i, row in enumerate(ROWS)])
    return MovieBookingEnv(goals, kb, **kwargs)


def screen(env: MovieBookingEnv) -> str:
    return env.desk.screen()


# Ceilings -------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not DATA, reason="RLOBJ_TCBOT_DATA names no folder with TC-Bot's goals and knowledge bases")
@pytest.mark.parametrize(
    ("goals", "kb", "expected"),
    [
        ("goals_first_turn_movie", "kb_1k", (125, 118, 128)),
        ("goals_first_turn", "kb_1k", (183, 163, 194)),
        ("goals_first_turn", "kb_v2", (70, 62, 194)),
    ],
)
def test_the_ceilings_are_the_published_ones(goals: str, kb: str, expected: tuple[int, int, int]) -> None:
    files = [Path(DATA) / f"tcbot_movie_{name}.jsonl.gz" for name in (goals, kb)]
    wanted, showings = load_goals(files[0]), load_knowledge_base(files[1])
    assert (ceiling(wanted, showings), ceiling(wanted, showings, answers=True), len(wanted)) == expected


def test_the_ceiling_counts_goals_that_one_showing_fits() -> None:
    goals = [
        Goal({"moviename": "zoo", "city": "YORK", "numberofpeople": "3"}, ()),  # capitals aside; any number of people
        Goal({"moviename": "zoo", "city": "leeds"}, ("starttime",)),  # fits, but its time is not in the files
        Goal({"moviename": "ants", "date": "today"}, ()),  # the row lacks a date
        Goal({"moviename": "ants", "theater": "palace"}, ()),  # each value occurs, never together
    ]
    assert ceiling(goals, KnowledgeBase(ROWS)) == 2
    assert ceiling(goals, KnowledgeBase(ROWS), answers=True) == 1


# Success and reward ---------------------------------------------------------------------------------------------------

GOAL = {"moviename": "Zoo", "city": "york", "numberofpeople": "3"}


def test_a_dialogue_that_succeeds(tmp_path: Path) -> None:
    env = make(tmp_path, GOAL, ["theater", "starttime"])
    env.reset(seed=0)
    rewards = []
    for text in ("which city ?", "how many tickets ?", "[theater] has it at [time]"):
        result = env.act(text)
        rewards.append(result.reward)
        assert not result.terminated
    assert screen(env) == "known film city tickets | few | asked ticket"
    result = env.act("I book it.")
    assert result.terminated
    assert env.episode.columns == {"success": True, "inform": True, "matched": 1.0, "turns": 4}
    assert env.customer.answers == {"theater": "roxy", "starttime": "8 pm"}
    assert (rewards, result.reward, env.own_reward()) == ([-1.0] * 3, 0.0, 80.0)


@pytest.mark.parametrize(
    ("requests", "texts", "why"),
    [
        (["theater", "starttime"], ["which city ?", "how many tickets ?", "it is [theater]"], "no time told"),
        ([], ["which city ?"], "the number of tickets is not known"),
        (["theater"], ["how many tickets ?", "which city ?", "it is"], "nothing told"),
    ],
)
def test_a_booking_that_lacks_something_fails(tmp_path: Path, requests: list[str], texts: list[str], why: str) -> None:
    for seed in range(30):  # the customer may open with any constraint
        env = make(tmp_path, GOAL, requests)
        env.reset(seed=seed)
        if "numberofpeople" not in env.desk.known and "city" not in env.desk.known:
            break
    for text in texts:
        env.act(text)
    env.act("booked")
    assert not env.episode.columns["success"], why
    assert env.own_reward() == -40


def test_a_booking_of_another_showing_fails(tmp_path: Path) -> None:
    env = make(tmp_path, {"moviename": "Zoo", "starttime": "9 pm", "city": "york"}, [])
    seed = next(s for s in range(50) if env.reset(seed=s) and "starttime" not in env.desk.known)
    env.reset(seed=seed)
    env.act("book")
    assert not env.episode.columns["success"]
    assert env.episode.columns["matched"] == pytest.approx(2 / 3)


def test_an_answer_from_another_showing_than_the_booked_one_is_not_true(tmp_path: Path) -> None:
    env = make(tmp_path, {"moviename": "Zoo", "starttime": "9 pm"}, ["theater"])
    seed = next(s for s in range(50) if env.reset(seed=s) and "starttime" not in env.desk.known)
    env.reset(seed=seed)
    env.act("it is [theater]")  # too early: roxy, of the first showing
    assert env.customer.answers == {"theater": "roxy"}
    env.act("which time ?")
    assert "asked theater" in screen(env), "the desk sees that the answer no longer holds"
    env.act("it is [theater]")
    assert env.customer.answers == {"theater": "palace"}
    env.act("book")
    assert env.episode.columns["success"]


def test_forty_turns_of_both_sides_are_a_failure(tmp_path: Path) -> None:
    env = make(tmp_path, GOAL, [])
    env.reset(seed=0)
    results = [env.act("good day") for _ in range(20)]
    assert [r.truncated for r in results] == [False] * 19 + [True]
    assert sum(r.reward for r in results) + env.own_reward() == -19 - 40
    assert [m["content"] for r in results for m in r.new_messages if m["role"] == "tool"][-1] == screen(env)


# Customer and desk ----------------------------------------------------------------------------------------------------


def test_what_the_customer_answers(tmp_path: Path) -> None:
    env = make(tmp_path, {"moviename": "Zoo", "numberofpeople": "3"}, ["theater"])
    env.reset(seed=1)
    assert env.customer.respond(["city"], {}).indifferent == ["city"]
    assert env.customer.respond(["theater"], {}).requests == ["theater"]
    assert env.customer.respond([], {}).pardon
    assert env.customer.respond([], {"moviename": "Ants"}).informs == {"moviename": "Zoo"}, "a wrong value is corrected"
    assert env.customer.respond(["numberofpeople"], {}).informs == {"numberofpeople": "3"}
    assert env.customer.respond([], {"theater": "roxy"}).requests == ["ticket"], "nothing is left to say"
    assert env.customer.respond(["theater"], {}).informs == {"theater": "roxy"}, "the customer was told so"


def test_placeholders_without_a_value_tell_nothing(tmp_path: Path) -> None:
    env = make(tmp_path, {"moviename": "Zoo", "city": "leeds"}, ["starttime"])
    env.reset(seed=0)
    env.act("which city ?")
    env.act("it is at [time] [nonsense] []")
    assert env.customer.answers == {}
    assert "asked time" in screen(env)


def test_the_desk_prefers_a_showing_that_says_what_was_asked() -> None:
    desk = Desk(KnowledgeBase(ROWS[::-1]))
    desk.hear_customer(UserAct({"moviename": "zoo"}, ["starttime"]))
    assert desk.tell(["starttime"]) == {"starttime": "9 pm"}
    assert desk.screen() == "known film | few | asked nothing"


@pytest.mark.parametrize(
    "text", ["", "[]" * 50_000, "\x00\ud800", "<|end|><|im_end|>[/INST]", "which", "[{0}] {x}", "客服🙂"]
)
def test_any_text_is_answered(tmp_path: Path, text: str) -> None:
    env = make(tmp_path, GOAL, ["theater"])
    env.reset(seed=0)
    result = env.act(text)
    assert result.new_messages[0]["role"] == "user"
    assert not result.terminated


def test_noise_makes_the_desk_mishear(tmp_path: Path) -> None:
    env = make(tmp_path, GOAL, ["theater"], error_rate=0.5)
    heard: set[str | None] = set()
    for seed in range(60):
        env.reset(seed=seed)
        heard.add(env.desk.known.get("moviename"))
    assert heard == {None, "Zoo", "Ants"}
    env.reset(seed=next(s for s in range(60) if env.reset(seed=s) and env.desk.known.get("moviename") == "Ants"))
    assert env.customer.respond([], {"moviename": "Ants"}).informs == {"moviename": "Zoo"}


def test_the_rule_agent_demonstrates_and_serves_some() -> None:
    rows = demonstrations(MovieBookingEnv, 200)
    assert 60 < sum(row["success"] for row in rows) < 160
    assert rows == demonstrations(MovieBookingEnv, 200)
    said = {message["content"] for row in rows for message in row["messages"] if message["role"] == "assistant"}
    assert {"which city ?", "which tickets ?", "it is [theater] .", "it is [time] .", "i book it ."} <= said
    with pytest.raises(ValueError, match="always acts alike"):
        preference_pairs(MovieBookingEnv, 1)


def test_ell_beside_reward_can_leave_out_what_failed() -> None:
    task = make_task(load_recipe("movie-booking", ["--data.demonstrations=60", "--objective.only_successful=true"]))
    tokenizer = make_tokenizer(task.texts(), 800, 512)
    assert task.rows_beside_reward is not None
    warm, beside = task.rows(tokenizer)[0], task.rows_beside_reward(tokenizer)
    kept = {tuple(row.input_ids) for row in beside}
    assert 0 < len(beside) < len(warm) and kept < {tuple(row.input_ids) for row in warm}
    unanswered = [tokenizer.decode(row.input_ids).rpartition("asked")[2] for row in beside]
    assert not any(slot in text for text in unanswered for slot in ("date", "time", "theater")), "these would fail"


def test_every_customer_of_the_made_up_town_can_be_served() -> None:
    env = MovieBookingEnv()
    assert len(env.goals) == ceiling(env.goals, env.kb, answers=True), (
        "every customer of the made-up town can be served"
    )


# Files, templates, seeds ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['{"inform_slots": {"city": "york"}, "request_slots": {}}', "{"], r"line 2 is not JSON"),
        (['{"inform_slots": {"city": 3}, "request_slots": {}}'], r'line 1: expected \{"inform_slots"'),
        (["[]"], "line 1: expected an object"),
        ([], "is empty"),
    ],
)
def test_files_that_are_not_goals(tmp_path: Path, lines: list[str], message: str) -> None:
    path = tmp_path / "goals.jsonl"
    path.write_text("\n".join(lines))
    with pytest.raises(ValueError, match=message):
        load_goals(path)


def test_arguments_that_are_not_usable() -> None:
    with pytest.raises(ValueError, match="belong together"):
        MovieBookingEnv(goals="goals.jsonl")
    with pytest.raises(ValueError, match="error_rate is 1"):
        MovieBookingEnv(error_rate=1)
    with pytest.raises(ValueError, match="held_out_every is 1"):
        MovieBookingEnv(held_out_every=1)
    with pytest.raises(ValueError, match="max_turns is 1"):
        MovieBookingEnv(max_turns=1)


def test_templates_of_a_file_are_spoken(tmp_path: Path) -> None:
    sentence = {"inform_slots": ["moviename"], "request_slots": ["ticket"], "nl": {"usr": "tickets for $moviename$ !"}}
    path = tmp_path / "meta.json"
    path.write_text(json.dumps({"nl_templates": {"dia_acts": {"request": [sentence]}}}))
    env = make(tmp_path, {"moviename": "Zoo"}, [], templates=str(path))
    observation, _ = env.reset(seed=0)
    assert observation[0] == {"role": "user", "content": "tickets for Zoo !"}
    path.write_text("{}")
    with pytest.raises(ValueError, match="expected nl_templates"):
        make(tmp_path, {"moviename": "Zoo"}, [], templates=str(path))


def test_held_out_goals_are_never_trained_on() -> None:
    env = MovieBookingEnv(held_out_every=5)

    def goals(seeds: range) -> set[str]:
        found = set()
        for seed in seeds:
            env.reset(seed=seed)
            found.add(str(env.customer.goal))
        return found

    train, held_out = goals(range(300)), goals(range(FIRST_HELD_OUT_SEED, FIRST_HELD_OUT_SEED + 100))
    assert len(train) > 20 and len(held_out) >= 5 and not train & held_out


def test_steps_and_vectors_give_the_reward_of_the_turn() -> None:
    env = gymnasium.make("rlobj/MovieBooking-v0")
    env.reset(seed=0)
    assert env.step("which city ?")[1] == -1
    assert env.step("book")[1] in (80, -40)
    several = gymnasium.make_vec("rlobj/MovieBooking-v0", num_envs=2)
    several.reset(seed=0)
    assert several.step(["which city ?", "book"])[1].tolist() in ([-1, 80], [-1, -40])


def test_the_seed_decides_the_dialogue_in_every_process() -> None:
    script = (
        "from envs.movie_booking import MovieBookingEnv\n"
        "env = MovieBookingEnv(error_rate=0.2, held_out_every=4)\n"
        "for seed in (0, 7, 1_000_001):\n"
        "    env.reset(seed=seed)\n"
        "    for text in ('which city ?', 'it is [theater]', 'which date ?', 'book'): env.act(text)\n"
        "    print(env.episode)\n"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            cwd=Path(__file__).parents[1],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert len(outputs) == 1


def test_the_recipe_runs(tmp_path: Path) -> None:
    config = load_recipe(
        "movie-booking",
        [
            "--output_dir", str(tmp_path), "--policy.hidden_size=16", "--policy.layers=1", "--warm_start.epochs=0.2",
            "--data.demonstrations=20", "--training.steps=1", "--training.prompts_per_step=1", "--env.eval_episodes=4",
            "--training.num_generations=2", "--objective.lambda_sup=0.1",
        ],
    )  # fmt: skip
    report = run(config)
    assert report.exists()
    history = read_outputs(tmp_path / "movie-booking" / "policies" / "lambda=0.1")["history"]
    assert 0 <= history[0]["environment/success"] <= 1
    assert -60 <= history[0]["objective/return"] <= 80
