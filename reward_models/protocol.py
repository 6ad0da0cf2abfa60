"""What a reward is: TRL's convention for reward functions, so that each works with the other."""

from collections.abc import Sequence
from typing import Any, Protocol

Message = dict[str, str]
"""{"role": "system" | "user" | "assistant" | "tool", "content": text}"""

Conversation = list[Message]


class Reward(Protocol):
    """Scores finished episodes."""

    def __call__(
        self, prompts: Sequence[Conversation], completions: Sequence[Conversation], **columns: Any
    ) -> Sequence[float | None]:
        """One value per episode, in their order; None for an episode that this reward does not apply to.

        Args:
            prompts: the opening messages of each episode.
            completions: all messages after them.
            columns: whatever else is known of the episodes, by name, one value per episode.
        """
        ...
