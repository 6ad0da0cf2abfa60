"""Environments of other libraries as text environments."""

from __future__ import annotations

import random
import socket
import threading
import time

import gymnasium
import pytest
from gymnasium.spaces import Discrete
from gymnasium.spaces import Text as GymnasiumText

from envs import TextVectorEnv
from envs.adapters import FromGymnasium, FromOpenEnv, FromTextArena, FromTextWorld, spec_of
from envs.experts import demonstrations
from envs.spaces import Text
from rlobj.policies import load_causal, load_tokenizer
from rlobj.rollout import factory_of
from rlobj.supervised import dialogue_rows
from rlobj.trainer import ObjectiveTrainer
from tests.small import small_args, small_policy

their_warnings = pytest.mark.filterwarnings("ignore")  # other libraries' own


class Countdown(gymnasium.Env):
    """Shows a number and rewards it: as text, or as its `Discrete` action."""

    def __init__(self, discrete: bool = False) -> None:
        self.observation_space = GymnasiumText(20)
        self.action_space = Discrete(10) if discrete else Text()

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = int(self.np_random.integers(2, 9))
        return str(self.left), {}

    def step(self, action):
        right = str(action) == str(self.left)
        self.left -= 1
        return str(self.left), float(right), self.left == 0, False, {"right": right}


@pytest.mark.parametrize("discrete", [False, True])
def test_turns_are_messages_and_their_rewards_are_kept(discrete):
    env = FromGymnasium(Countdown(discrete))
    messages, _ = env.reset(seed=4)
    start, rewards, done = int(messages[0]["content"]), [], False
    while not done:
        shown = messages[-1]["content"]
        messages, reward, done, truncated, info = env.step(int(shown) if discrete else shown)
        rewards.append(reward)
        assert env.observation_space.contains(messages) and not truncated and info["right"]
    assert rewards == [1.0] * start
    assert [m["content"] for m in messages[1::2]] == [str(n) for n in range(start, 0, -1)]
    assert env.episode.columns == {"total": float(start)} and env.own_reward() == 0
    assert FromGymnasium(Countdown()).reset(seed=4)[0] == [{"role": "user", "content": str(start)}]


def test_a_conversation_is_appended_and_not_repeated():
    def play(env):
        messages, _ = env.reset(seed=3)
        rewards, done = [], False
        while not done:
            messages, reward, terminated, truncated, _ = env.step("Which service would you like?")
            rewards.append(reward)
            done = terminated or truncated
        return messages, rewards

    plain = gymnasium.make("rlobj/CustomerService-v0", disable_env_checker=True)
    inner = gymnasium.make("rlobj/CustomerService-v0", disable_env_checker=True)
    assert play(FromGymnasium(inner)) == play(plain)


def test_by_id():
    env = gymnasium.make("envs.adapters:adapters/FromGymnasium-v0", env_id="rlobj/CustomerService-v0")
    assert env.reset(seed=1)[0] == gymnasium.make("rlobj/CustomerService-v0").reset(seed=1)[0]


def test_what_is_not_text_is_refused():
    with pytest.raises(ValueError, match=r"CartPole-v1.*expected text"):
        FromGymnasium("CartPole-v1")


def test_many_at_once_need_no_wrapping():
    vector = TextVectorEnv(lambda: gymnasium.wrappers.TimeLimit(Countdown(), 2), 3)
    first, _ = vector.reset(seed=[5, 6, 7])
    assert [m[0]["content"] for m in first] == [
        FromGymnasium(Countdown()).reset(seed=s)[0][0]["content"] for s in (5, 6, 7)
    ]
    _, rewards, *_ = vector.step([first[0][0]["content"], "no", first[2][0]["content"]])
    assert rewards.tolist() == [1.0, 0.0, 1.0]
    _, _, terminated, truncated, _ = vector.step(["no"] * 3)
    assert all(terminated | truncated), "the time limit is kept"
    with pytest.raises(TypeError, match=r"make_env makes .*CartPole.*: expected a text environment"):
        TextVectorEnv(lambda: gymnasium.make("CartPole-v1"), 2)


# Libraries ------------------------------------------------------------------------------------------------------------


def make(env_id, **kwargs):
    return gymnasium.make(spec_of(env_id), disable_env_checker=True, **kwargs)


def play(env, texts, seed=3):
    """Rewards of a scripted episode, and its columns."""
    env.reset(seed=seed)
    rewards, over = [], False
    for text in texts:
        messages, reward, terminated, truncated, _ = env.step(text)
        assert env.observation_space.contains(messages)
        rewards.append(reward)
        if over := terminated or truncated:
            break
    return rewards, env.unwrapped.episode.columns if over else None


@their_warnings
def test_reasoning_gym_asks_and_scores():
    pytest.importorskip("reasoning_gym", reason="the extra reasoning-gym is not installed")
    env = make("reasoning_gym:leg_counting")
    [row] = demonstrations(factory_of(env), 1)
    question, answer = (message["content"] for message in row["messages"])
    assert row["success"] and "how many legs" in question
    assert env.reset(seed=row["seed"])[0] == row["messages"][:1] != env.reset(seed=row["seed"] + 1)[0]
    rewards, columns = play(env, [answer], row["seed"])
    assert rewards == [1.0] and columns == {"success": True, "score": 1.0, "turns": 1, "answer": answer}
    rewards, columns = play(env, ["a million"], row["seed"])
    assert rewards[0] < 1 and not columns["success"]


@their_warnings
def test_the_objective_trains_on_reasoning_gym(tmp_path):
    pytest.importorskip("reasoning_gym", reason="the extra reasoning-gym is not installed")
    env = make("reasoning_gym:leg_counting", task_kwargs={"max_animals": 3})
    path = small_policy(tmp_path / "policy")
    tokenizer = load_tokenizer(path)
    rows = dialogue_rows(tokenizer, [d["messages"] for d in demonstrations(factory_of(env), 8)], 512)
    trainer = ObjectiveTrainer(
        load_causal(path), args=small_args(tmp_path / "out", max_steps=2), processing_class=tokenizer, env=env,
        supervised=rows, lambda_sup=0.5, train_seeds=range(8),
    )  # fmt: skip
    trainer.train()
    logs = [log for log in trainer.state.log_history if "objective/ell" in log]
    assert len(logs) == 2 and all(log["objective/ell"] > 0 and "environment/score" in log for log in logs)


@their_warnings
def test_textarena_games_are_played_to_their_end():
    pytest.importorskip("textarena", reason="the extra textarena is not installed")
    guesses = [f"[{n}]" for n in range(1, 21)]
    env = make("textarena:GuessTheNumber-v0")
    outcomes = [play(env, guesses, seed) for seed in range(6)]
    assert outcomes == [play(env, guesses, seed) for seed in range(6)]
    won = [rewards for rewards, columns in outcomes if columns["success"]]
    assert won and all(rewards == [0.0] * (len(rewards) - 1) + [1.0] for rewards in won)
    assert len({len(rewards) for rewards in won}) > 1, "seeds hide different numbers"
    assert play(env, ["hm"] * 9)[1]["success"] is False, "moves that are none end the game"
    assert play(FromTextArena("TowerOfHanoi-v0", max_turns=1), ["[A C]"])[1]["turns"] == 1


@their_warnings
def test_games_of_textarena_do_not_share_their_chance():
    pytest.importorskip("textarena", reason="the extra textarena is not installed")
    vector = TextVectorEnv(lambda: FromTextArena("Bandit-v0"), 2)
    random.seed(1)
    before = random.getstate()
    together, _ = vector.reset(seed=[4, 4])
    assert together[0] == together[1] and random.getstate() == before


@pytest.fixture(scope="module")
def game(tmp_path_factory):
    textworld = pytest.importorskip("textworld", reason="the extra textworld is not installed")
    options = textworld.GameOptions()
    options.seeds, options.nb_rooms, options.nb_objects, options.quest_length = 3, 2, 3, 2
    options.path = str(tmp_path_factory.mktemp("games") / "game.z8")
    made = textworld.generator.make_game(options)
    return textworld.generator.compile_game(made, options), made.metadata["walkthrough"]


@their_warnings
def test_textworld_is_won_by_its_walkthrough(game):
    path, walkthrough = game
    env = make(f"textworld:{path}")
    rewards, columns = play(env, walkthrough)
    assert sum(rewards) == 1 and columns["success"] and columns["turns"] == len(walkthrough)
    assert play(env, walkthrough) == (rewards, columns), "again, after a reset"
    bad = ["", "\x00 look\nlook", "\ud800", "客服 🙂 [/INST]", "look " * 20_000, "restart", "quit", "restore", "\\quit"]
    assert play(make(f"textworld:{path}", max_turns=len(bad)), bad)[1]["success"] is False
    folder = FromTextWorld(path.rpartition("/")[0])
    assert folder.reset(seed=1)[0] == env.reset(seed=2)[0]
    with pytest.raises(ValueError, match=r"path is 'none.z8': expected a TextWorld game"):
        FromTextWorld("none.z8")


@pytest.fixture(scope="module")
def openenv_url():
    pytest.importorskip("openenv.core", reason="the extra openenv is not installed")
    import uvicorn
    from openenv.core.env_server import Action, Environment, Observation, State, create_fastapi_app

    class Said(Action):
        message: str

    class Shown(Observation):
        text: str

    class Echo(Environment):
        """Says what it hears; pays a point for each, and is done after three."""

        SUPPORTS_CONCURRENT_SESSIONS = True

        def reset(self, seed=None, episode_id=None, **kwargs):
            self.heard = 0
            return Shown(text=f"episode {seed}")

        def step(self, action, timeout_s=None, **kwargs):
            self.heard += 1
            return Shown(text=action.message, reward=1.0, done=self.heard == 3)

        @property
        def state(self):
            return State(step_count=self.heard)

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    app = create_fastapi_app(Echo, Said, Shown, max_concurrent_envs=8)
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    for _ in range(200):
        if server.started:
            break
        time.sleep(0.05)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(10)


@their_warnings
def test_openenv_is_played_over_its_client(openenv_url):
    env = make(f"openenv:{openenv_url}", observation_field="text")
    assert env.reset(seed=7)[0] == [{"role": "user", "content": "episode 7"}]
    assert play(env, ["a", "客服 🙂", "c"]) == ([1.0] * 3, {"total": 3.0, "turns": 3})
    assert [m["content"] for m in env.unwrapped.episode.completion] == ["a", "a", "客服 🙂", "客服 🙂", "c", "c"]
    plain = FromOpenEnv(openenv_url)
    assert '"text": "episode 1"' in plain.reset(seed=1)[0][0]["content"]
    with pytest.raises(ValueError, match="observation_field is 'txt': the server shows text"):
        FromOpenEnv(openenv_url, observation_field="txt").reset()
    env.close()
    plain.close()
