"""The next reply in a corpus of dialogues, or one reply after the other to its end."""

from __future__ import annotations

import pkgutil
import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Literal

from envs.core import Message, StepResult, TextEnv
from envs.spaces import ROLES, Text
from envs.vector import vector_entry_point

User = Callable[[Sequence[Message]], str | None]
"""Gets the messages so far, the policy's reply last; returns the user's next words, None when there are no more."""
REPLAY: Literal["replay"] = "replay"

EXAMPLES: list[tuple[list[Message], str]] = [
    ([{"role": "user", "content": "where is my order ?"}], "may i have the order number , please ?"),
    ([{"role": "user", "content": "i want my money back"}], "i am sorry to hear that . what went wrong ?"),
    (
        [
            {"role": "user", "content": "do you ship to norway ?"},
            {"role": "assistant", "content": "yes , we do ."},
            {"role": "user", "content": "how long does it take ?"},
        ],
        "it takes about five days .",
    ),
]


class DialogueEnv(TextEnv):
    """Answer the last message of a dialogue, once, or turn by turn to its end.

    | | |
    |---|---|
    | action | `Text`: the reply |
    | observation | the messages of the dialogue so far |
    | reward | F1 over the words of reply and reference, mean over turns (0 without any), unless a reward function \
is given |
    | columns | `reference` (the corpus's own reply, or None); with `user`: `references` (one per turn), `turns` |
    | terminated | after the reply; with `user`: when the dialogue is over |
    | truncated | with `user`: after `max_turns` replies |
    | seed | seed i is dialogue i, modulo their number |

    Args:
        prompts: dialogues up to where the reply is wanted; a few built-in ones if None.
        references: the corpus's reply to each.
        user: who answers the policy. None: nobody, the episode ends with the reply. "replay": the corpus's own user,
            whatever the policy says. A function, or its "module:name": gets the messages so far and returns the user's
            next words, or None when there are no more.
        dialogues: whole dialogues, where there is a `user`; they begin as the corpus does, up to the first reply.
        max_turns: most replies of one episode, where there is a `user`.
    """

    def __init__(
        self,
        prompts: Sequence[Sequence[Message]] | None = None,
        references: Sequence[str | None] | None = None,
        user: User | str | None = None,
        dialogues: Sequence[Sequence[Message]] | None = None,
        max_turns: int = 20,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if (dialogues is not None) != (user is not None) and not (prompts is None and dialogues is None):
            raise ValueError("dialogues and user belong together; without a user, give prompts and references")
        if max_turns < 1:
            raise ValueError(f"max_turns is {max_turns}: expected at least 1 reply")
        self.user, self.max_turns = _resolve_user(user), max_turns
        if user is None and prompts is None:
            prompts, references = [prompt for prompt, _ in EXAMPLES], [reply for _, reply in EXAMPLES]
        if user is not None and dialogues is None:
            dialogues = [[*prompt, {"role": "assistant", "content": reply}] for prompt, reply in EXAMPLES]
        self._dialogues: Sequence[Any] = (dialogues if user is not None else prompts) or []
        if not len(self._dialogues):
            raise ValueError(f"{'prompts' if user is None else 'dialogues'} is empty: expected at least one dialogue")
        if references is not None and len(references) != len(self._dialogues):
            raise ValueError(f"{len(self._dialogues)} prompts, {len(references)} references: expected one per prompt")
        self.references = references
        self.action_space = Text()
        self._index, self._replies = 0, list[str]()
        self._script: list[Message] = []
        """What the corpus still has to say, the reply that is wanted next in front."""
        self._wanted: list[str] = []

    def _begin(self, seed: int, rng: random.Random) -> list[Message]:
        self._index, self._replies = seed % len(self._dialogues), []
        dialogue = self._dialogues[self._index]
        if not dialogue or any(message.get("role") not in ROLES for message in dialogue):
            raise ValueError(
                f"prompt {self._index} is {dialogue!r}: expected messages with roles of {', '.join(ROLES)}"
            )
        messages = [{"role": message["role"], "content": message["content"]} for message in dialogue]
        if self.user is None:
            self._wanted = [] if self.references is None else [self.references[self._index] or ""]
            return messages
        first = next((i for i, m in enumerate(messages) if i and m["role"] == "assistant"), len(messages))
        self._script, self._wanted = messages[first:], []
        return messages[:first]

    def _reply(self, action: Any) -> tuple[Message, StepResult]:
        self._replies.append(action)
        message = {"role": "assistant", "content": action}
        new = self._user_says(message)
        full = len(self._replies) >= self.max_turns
        return message, StepResult(new or [], new is None, new is not None and full, {})

    def _user_says(self, reply: Message) -> list[Message] | None:
        """What answers the policy's reply; None when the dialogue is over."""
        if self.user is None:
            return None
        if self.user != REPLAY:
            words = self.user([*self._observation(), reply])
            return None if not words else [{"role": "user", "content": words}]
        self._wanted += [m["content"] for m in self._script[:1]]
        rest = self._script[1:]
        end = next((i for i, m in enumerate(rest) if m["role"] == "assistant"), None)
        self._script = [] if end is None else rest[end:]
        return None if end is None else rest[:end]

    def _columns(self) -> dict[str, Any]:
        if self.user is None:
            return {"reference": None if self.references is None else self.references[self._index]}
        return {"references": list(self._wanted), "turns": len(self._replies)}

    def own_reward(self) -> float:
        scores = [word_f1(reply, wanted) for reply, wanted in zip(self._replies, self._wanted, strict=False)]
        return sum(scores) / len(scores) if scores else 0.0


def _resolve_user(user: User | str | None) -> User | Literal["replay"] | None:
    if user == REPLAY or user is None or callable(user):
        return user
    try:
        found: User = pkgutil.resolve_name(user)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise ValueError(
            f"user is {user!r}: expected {REPLAY!r}, a function, or a function's 'module:name' ({error})"
        ) from error
    if not callable(found):
        raise ValueError(f"user is {user!r}, which is {found!r}: expected a function (messages) -> text or None")
    return found


make_vec = vector_entry_point(DialogueEnv)


def word_f1(text: str, reference: str) -> float:
    """Harmonic mean of precision and recall over lower-case words, each counted as often as it stands there (the
    answer measure of SQuAD, Rajpurkar et al. 2016)."""
    words, wanted = Counter(text.lower().split()), Counter(reference.lower().split())
    common = (words & wanted).total()
    return 2 * common / (words.total() + wanted.total()) if common else 0.0
