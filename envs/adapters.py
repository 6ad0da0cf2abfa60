"""Environments of other libraries as text environments. Each library is an optional extra, imported when it is needed.

`spec_of` makes them by name: `reasoning_gym:leg_counting`, `textarena:GuessTheNumber-v0`, `textworld:game.z8`,
`openenv:http://localhost:8000`. Importing this module registers `adapters/FromGymnasium-v0`.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import random
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gymnasium
from gymnasium.envs.registration import EnvSpec, register
from gymnasium.spaces import Discrete

from envs.core import FIRST_HELD_OUT_SEED, Message, StepResult, TextEnv
from envs.spaces import Chat, Text

SHOWN = (Text, Chat, gymnasium.spaces.Text)
TAKEN = (Text, Discrete, gymnasium.spaces.Text)
"""Spaces of observations, and of actions, that a text environment can stand in for."""


class FromGymnasium(TextEnv):
    """Any Gymnasium environment that shows text and takes text or a `Discrete` action.

    | | |
    |---|---|
    | action | a text; where the environment's own is `Discrete`, its action of that number |
    | observation | the conversation: each text that the environment shows is a message of the user |
    | reward | what the environment gives for each turn; its own measure of the whole episode is 0 |
    | columns | `total`, the sum of the turns' rewards |
    | seed | passed on to the environment's `reset` |

    Args:
        env_id: what `gymnasium.make` makes, or an environment.
        env_kwargs: arguments for `gymnasium.make`.
        kwargs: those of `TextEnv`.
    """

    def __init__(
        self, env_id: str | gymnasium.Env[Any, Any], env_kwargs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.inner = gymnasium.make(env_id, **(env_kwargs or {})) if isinstance(env_id, str) else env_id
        space, actions = self.inner.observation_space, self.inner.action_space
        if not isinstance(space, SHOWN):
            raise ValueError(f"{env_id!r} shows {space}: expected text; wrap it in one that describes what it shows")
        if not isinstance(actions, TAKEN):
            raise ValueError(f"{env_id!r} takes {actions}: expected text or Discrete actions")
        # a policy may write anything, so what Gymnasium's own Text leaves out is for the environment to judge
        self.action_space = actions if isinstance(actions, Discrete) else Text()
        self._seen: list[Message] = []
        self._total = 0.0

    def close(self) -> None:
        self.inner.close()

    def _begin(self, seed: int, rng: random.Random) -> list[Message]:
        observation, _ = self.inner.reset(seed=seed)
        self._total, self._seen = 0.0, _messages(observation)
        return self._seen

    def _reply(self, action: Any) -> tuple[Message, StepResult]:
        message = {"role": "assistant", "content": str(action)}
        observation, reward, terminated, truncated, info = self.inner.step(action)
        new = _messages(observation)
        if isinstance(self.inner.observation_space, Chat):  # the whole conversation: only its new part is appended
            known = len(self._seen)
            if new[:known] != self._seen:
                raise ValueError(
                    f"{self.inner} shows a conversation that is not the one before with more behind it: expected "
                    "messages to be added alone, since the policy has read the others"
                )
            self._seen, new = new, new[known:]
            new = new[1:] if new and _role(new[0]) == "assistant" else new
        self._total += float(reward)
        return message, StepResult(new, bool(terminated), bool(truncated), info, float(reward))

    def _columns(self) -> dict[str, Any]:
        return {"total": self._total}

    def own_reward(self) -> float:
        return 0.0  # the turns have earned it all


class TextGame(TextEnv):
    """What the adapters of other libraries share: texts in and out, turns counted, a limit of turns."""

    def __init__(self, max_turns: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.action_space = Text()
        self.max_turns = max_turns
        self._turns = 0

    @abstractmethod
    def _start(self, seed: int) -> str:
        """The first text of episode `seed`."""

    @abstractmethod
    def _play(self, text: str) -> tuple[str, float, bool]:
        """What the policy's text led to: the answer, the turn's reward, whether that was the end."""

    def _begin(self, seed: int, rng: random.Random) -> list[Message]:
        self._turns = 0
        return [{"role": "user", "content": self._start(seed)}]

    def _reply(self, action: str) -> tuple[Message, StepResult]:
        answer, reward, over = self._play(action)
        self._turns += 1
        truncated = not over and self._turns == self.max_turns
        said = [{"role": "user", "content": answer}] if answer else []
        return {"role": "assistant", "content": action}, StepResult(said, over, truncated, {}, reward)

    def own_reward(self) -> float:
        return 0.0  # the turns have earned it all


class KnownAnswer:
    """The demonstrator of `FromReasoningGym`."""

    def act(self, env: FromReasoningGym, question: str) -> str:
        return env.known_answer


class FromReasoningGym(TextGame):
    """A task of reasoning-gym: a question, one answer, its score. The extra is `reasoning-gym`.

    | | |
    |---|---|
    | action | a text: the answer and nothing else |
    | observation | the question |
    | reward | at the end, the task's `score_answer`, from 0 to 1 |
    | columns | `success` (the score is 1), `score`, `turns`, `answer` (the known one) |
    | seed | the question of that number, of twice a million |

    Known answers are demonstrations, and so the labels of ℓ.

    Args:
        task: name of the data set, such as leg_counting.
        task_kwargs: its configuration.
        kwargs: those of `TextEnv`.
    """

    def __init__(self, task: str, task_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(max_turns=1, **kwargs)
        made = {"size": 2 * FIRST_HELD_OUT_SEED, "seed": 0, **(task_kwargs or {})}
        self.questions = _library("reasoning_gym").create_dataset(task, **made)
        self._entry: dict[str, Any] = {}
        self._score = 0.0

    def expert(self, rng: random.Random) -> KnownAnswer:
        """One who always gives the known answer."""
        return KnownAnswer()

    @property
    def known_answer(self) -> str:
        """The answer to the question that was asked."""
        return str(self._entry["answer"])

    def _start(self, seed: int) -> str:
        self._entry, self._score = self.questions[seed % len(self.questions)], 0.0
        return str(self._entry["question"]).strip()

    def _play(self, text: str) -> tuple[str, float, bool]:
        self._score = float(self.questions.score_answer(text, self._entry))
        return "", 0.0, True

    def _columns(self) -> dict[str, Any]:
        known = {"score": self._score, "answer": self.known_answer}
        return {"success": self._score >= 1, "turns": self._turns, **known}

    def own_reward(self) -> float:
        return self._score


class FromTextArena(TextGame):
    """A game of TextArena for one player. The extra is `textarena`.

    | | |
    |---|---|
    | action | a text, as the game's rules ask for it |
    | observation | the game's rules and what it answers; what the policy wrote is not repeated |
    | reward | with the last turn what the game gives, often from 0 to 1 |
    | columns | `success` (the game gave 1), `outcome`, `turns` |
    | seed | passed on; games draw from Python's global random state, of which each game here has its own |

    Some games, such as Wordle, fetch word lists when they are made.

    Args:
        game: its id, such as GuessTheNumber-v0.
        game_kwargs: arguments for `textarena.make`.
        max_turns: the episode is truncated after so many; None leaves it to the game.
        kwargs: those of `TextEnv`.
    """

    def __init__(
        self, game: str, game_kwargs: dict[str, Any] | None = None, max_turns: int | None = 50, **kwargs: Any
    ) -> None:
        super().__init__(max_turns, **kwargs)
        # "raw": without wrappers that repeat the conversation in every observation
        raw = game if game.endswith("-raw") else f"{game}-raw"
        self.game = _library("textarena").make(raw, **(game_kwargs or {}))
        self._chance = random.Random(0).getstate()
        self._outcome = 0.0

    @contextlib.contextmanager
    def _own_chance(self) -> Iterator[None]:
        """The game's own state in the place of the global one."""
        outside = random.getstate()
        random.setstate(self._chance)
        try:
            yield
        finally:
            self._chance = random.getstate()
            random.setstate(outside)

    def _start(self, seed: int) -> str:
        with self._own_chance():
            random.seed(seed)
            self.game.reset(num_players=1, seed=seed)
        self._outcome = 0.0
        return self._heard()

    def _heard(self) -> str:
        _, observations = self.game.get_observation()
        return "\n".join(str(text).strip() for speaker, text, *_ in observations if speaker < 0)

    def _play(self, text: str) -> tuple[str, float, bool]:
        with self._own_chance():
            over, _ = self.game.step(text)
        answer = self._heard()
        if over:
            rewards, _ = self.game.close()
            self._outcome = float((rewards or {}).get(0, 0.0))
        return answer, self._outcome, bool(over)

    def _columns(self) -> dict[str, Any]:
        return {"success": self._outcome >= 1, "outcome": self._outcome, "turns": self._turns}


class FromTextWorld(TextGame):
    """Interactive fiction that TextWorld plays. The extra is `textworld`.

    | | |
    |---|---|
    | action | a command, such as "open the door" |
    | observation | the objective and the first room, then the game's answers |
    | reward | for each turn what the score rose, as a share of the highest score |
    | columns | `success` (the game was won), `score`, `turns` |
    | seed | of a folder, the game of that number modulo their count; a game itself has no chance |

    Args:
        path: a game (.z8, .ulx), or a folder of them.
        max_turns: the episode is truncated after so many.
        kwargs: those of `TextEnv`.
    """

    def __init__(self, path: str, max_turns: int | None = 50, **kwargs: Any) -> None:
        super().__init__(max_turns, **kwargs)
        self._textworld = _library("textworld")
        given = Path(path)
        found = (
            sorted(each for each in given.glob("*") if each.suffix in (".z8", ".ulx")) if given.is_dir() else [given]
        )
        if not found or not found[0].is_file():
            raise ValueError(f"path is {path!r}: expected a TextWorld game (.z8, .ulx) or a folder of them")
        self.games = [str(each) for each in found]
        self._game: Any = None
        self._playing: str | None = None
        self._score, self._most, self._won = 0.0, 1.0, False

    def close(self) -> None:
        if self._game is not None:
            self._game.close()
        self._game = self._playing = None

    def _start(self, seed: int) -> str:
        wanted = self.games[seed % len(self.games)]
        if wanted != self._playing:
            self.close()
            names = ("objective", "description", "won", "max_score")
            infos = self._textworld.EnvInfos(**dict.fromkeys(names, True))
            self._game, self._playing = self._textworld.start(wanted, infos), wanted
        state = self._game.reset()
        self._score, self._most, self._won = 0.0, float(state.max_score or 1), False
        told = [text.strip() for text in (state.objective, state.description) if text]
        return "\n\n".join(told) or _without_prompt(state.feedback)

    def _play(self, text: str) -> tuple[str, float, bool]:
        # a command is one line; a control character can stop the interpreter (it waits for ever after a NUL), and a
        # backslash begins commands of its own
        command = "".join(letter if letter.isprintable() and letter != "\\" else " " for letter in text)
        state, score, over = self._game.step(" ".join(command.split()))
        gained = (float(score) - self._score) / self._most
        self._score, self._won = float(score), bool(state.won)
        return _without_prompt(state.feedback), gained, bool(over)

    def _columns(self) -> dict[str, Any]:
        return {"success": self._won, "score": self._score, "turns": self._turns}


class FromOpenEnv(TextGame):
    """An environment behind an OpenEnv server. The extra is `openenv`.

    | | |
    |---|---|
    | action | a text, which becomes the field `action_field` of the server's action |
    | observation | the field `observation_field` of the server's observation, or all of it as JSON |
    | reward | what the server gives for each turn; None is 0 |
    | columns | `total`, the sum of the turns' rewards, and `turns` |
    | seed | passed on to the server's `reset` |

    Each environment holds a session: the server must allow as many as a step has episodes (`max_concurrent_envs`).

    Args:
        url: the server's, such as http://localhost:8000.
        action_field: name of the action's field that takes the text.
        observation_field: name of the observation's field that is shown.
        max_turns: the episode is truncated after so many.
        kwargs: those of `TextEnv`.
    """

    def __init__(
        self,
        url: str,
        action_field: str = "message",
        observation_field: str | None = None,
        max_turns: int | None = 50,
        **kwargs: Any,
    ) -> None:
        super().__init__(max_turns, **kwargs)
        self.action_field, self.observation_field = action_field, observation_field
        self.client = _library("openenv.core.generic_client").GenericEnvClient(base_url=url).sync()
        self._total = 0.0

    def close(self) -> None:
        self.client.close()

    def _start(self, seed: int) -> str:
        self._total = 0.0
        return self._shown_of(self.client.reset(seed=seed).observation)

    def _play(self, text: str) -> tuple[str, float, bool]:
        result = self.client.step({self.action_field: text})
        reward = float(result.reward or 0.0)
        self._total += reward
        return self._shown_of(result.observation), reward, bool(result.done)

    def _shown_of(self, observation: dict[str, Any]) -> str:
        if self.observation_field is None:
            return json.dumps(observation, ensure_ascii=False)
        if self.observation_field not in observation:
            raise ValueError(
                f"observation_field is {self.observation_field!r}: the server shows {', '.join(sorted(observation))}"
            )
        return str(observation[self.observation_field])

    def _columns(self) -> dict[str, Any]:
        return {"total": self._total, "turns": self._turns}


ADAPTERS = {
    "reasoning_gym": ("FromReasoningGym", "task"),
    "textarena": ("FromTextArena", "game"),
    "textworld": ("FromTextWorld", "path"),
    "openenv": ("FromOpenEnv", "url"),
}
"""Library: its adapter, and the argument that the id gives."""


def spec_of(env_id: str) -> str | EnvSpec:
    """What `gymnasium.make` takes for `env_id`: a spec where it is "library:name" of one of ADAPTERS, or itself.

    Raises:
        ImportError: the library is not installed.
    """
    library, colon, name = env_id.partition(":")
    if not colon or library not in ADAPTERS:
        return env_id
    _library(library)
    adapter, argument = ADAPTERS[library]
    return EnvSpec(f"adapters/{adapter}-v0", entry_point=f"envs.adapters:{adapter}", kwargs={argument: name})


def _library(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        extra = module.partition(".")[0].replace("_", "-")
        raise ImportError(f"{extra} cannot be imported ({error}): pip install 'rlobj[{extra}]'") from error


def _without_prompt(feedback: str) -> str:
    """What a game says, without the prompt and the status line after it."""
    return feedback.rpartition("\n>")[0].strip() if "\n>" in feedback else feedback.strip()


def as_text_env(env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
    """`env` itself, or in `FromGymnasium` where it is no text environment but shows and takes text."""
    if isinstance(env.unwrapped, TextEnv):
        return env
    is_text = isinstance(env.observation_space, SHOWN) and isinstance(env.action_space, TAKEN)
    return FromGymnasium(env) if is_text else env


def _role(message: Any) -> Any:
    return message.get("role") if isinstance(message, Mapping) else None


def _messages(observation: Any) -> list[Message]:
    """What an environment shows; whether these are messages is seen to by TextEnv."""
    if isinstance(observation, str):
        return [{"role": "user", "content": str(observation)}]
    if not isinstance(observation, list | tuple):
        raise TypeError(f"the environment shows {observation!r:.80} ({type(observation).__name__}): expected text")
    return [dict(message) if isinstance(message, Mapping) else message for message in observation]


if "adapters/FromGymnasium-v0" not in gymnasium.registry:
    register("adapters/FromGymnasium-v0", entry_point="envs.adapters:FromGymnasium")
