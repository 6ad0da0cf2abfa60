"""A reward that another process gives, over HTTP, in the format of OpenRLHF's `remote_rm_url`.

Request: {"query": [text, …], "prompts": [text, …], "labels": [label, …]}, where a query is prompt and completion in
one, and beside them what rlobj's own server reads: "prompt_messages", "completion_messages" and "columns".
Answer: {"rewards": [number or null, …]}, one for each query.
"""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from reward_models.protocol import Conversation

RETRIED = (408, 425, 429, 500, 502, 503, 504)
"""Statuses after which the same request may succeed."""
LONGEST_ANSWER = 64 * 2**20
"""Bytes of an answer that are read at most."""
SHOWN = 200
"""Characters of an answer that an error shows."""


class RemoteRewardError(RuntimeError):
    """The server could not be reached, or its answer is no list of rewards."""

    kind = "exception"  # of the whole call: asking again for each episode would only take longer


class RemoteReward:
    """Rewards from a server.

    Args:
        url: where requests are posted.
        batch_size: episodes in one request.
        timeout: seconds until a request counts as failed.
        retries: how often a request that failed is sent again, after 0.5, 1, 2, … seconds. An answer that was
            understood and is wrong is not asked for again.
        authorization: name of the environment variable whose value is sent as the Authorization header. The value
            itself stands in no recipe and no error.
        score_key: where the rewards stand in the answer.

    Raises:
        ValueError: `url` is none, a number makes no sense, or the environment variable is not set.
    """

    def __init__(
        self,
        url: str,
        batch_size: int = 64,
        timeout: float = 60.0,
        retries: int = 4,
        authorization: str | None = None,
        score_key: str = "rewards",
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"url is {url!r}: expected http://host:port/path")
        if parts.username or parts.password:
            raise ValueError("url holds a user or password: put them into an environment variable, see `authorization`")
        if batch_size < 1 or retries < 0 or not timeout > 0:
            raise ValueError(
                f"batch_size, retries and timeout are {batch_size}, {retries} and {timeout}: expected at least 1, at "
                "least 0, and above 0"
            )
        if authorization is not None and not os.environ.get(authorization):
            raise ValueError(
                f"authorization is {authorization!r}: there is no such environment variable, or it is empty"
            )
        self.url, self.batch_size, self.timeout, self.retries = url, batch_size, timeout, retries
        self.authorization, self.score_key = authorization, score_key
        self.__name__ = parts.hostname

    def __call__(
        self,
        prompts: Sequence[str | Conversation],
        completions: Sequence[str | Conversation],
        **columns: Any,
    ) -> list[float | None]:
        """Ask for all episodes, in batches.

        Raises:
            RemoteRewardError: see there.
        """
        count = len(completions)
        known = {name: value for name, value in columns.items() if _is_column(value, count)}
        rewards: list[float | None] = []
        for start in range(0, count, self.batch_size):
            end = min(start + self.batch_size, count)
            asked, said = list(prompts[start:end]), list(completions[start:end])
            some = {name: value[start:end] for name, value in known.items()}
            body = {
                "query": [as_text(a) + as_text(b) for a, b in zip(asked, said, strict=True)],
                "prompts": [as_text(a) for a in asked],
                "labels": list(some.get("label", [None] * (end - start))),
                "prompt_messages": asked,
                "completion_messages": said,
                "columns": some,
            }
            rewards += self._rewards(self._post(json.dumps(body).encode()), end - start)
        return rewards

    def _rewards(self, answer: bytes, count: int) -> list[float | None]:
        shown = answer[:SHOWN].decode(errors="replace")
        try:
            found = json.loads(answer)
        except ValueError as error:
            raise RemoteRewardError(f"{self.url} answered {shown!r}: expected JSON") from error
        rewards = found.get(self.score_key) if isinstance(found, dict) else None
        if not isinstance(rewards, list):
            raise RemoteRewardError(f"{self.url} answered {shown!r}: expected a list under {self.score_key!r}")
        if len(rewards) != count:
            raise RemoteRewardError(
                f"{self.url} gave {len(rewards)} rewards for {count} episodes: expected one for each"
            )
        for reward in rewards:
            if reward is not None and (isinstance(reward, bool) or not isinstance(reward, int | float)):
                raise RemoteRewardError(f"{self.url} gave the reward {reward!r}: expected a number or null")
        return [None if reward is None else float(reward) for reward in rewards]

    def _post(self, body: bytes) -> bytes:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self.authorization is not None:
            headers["Authorization"] = os.environ[self.authorization]
        for attempt in range(self.retries + 1):
            if attempt:
                time.sleep(0.5 * 2 ** (attempt - 1))
            request = urllib.request.Request(self.url, body, headers, method="POST")
            try:
                with urllib.request.urlopen(request, timeout=self.timeout) as answer:
                    content: bytes = answer.read(LONGEST_ANSWER + 1)
                    if len(content) > LONGEST_ANSWER:
                        raise RemoteRewardError(f"{self.url} answered with more than {LONGEST_ANSWER} bytes")
                    if answer.length:  # bytes that were promised and did not come
                        raise ConnectionError("the answer was cut off")
                    return content
            except urllib.error.HTTPError as error:
                what = f"status {error.code}: {error.read(SHOWN).decode(errors='replace')!r}"
                if error.code not in RETRIED:
                    raise RemoteRewardError(f"{self.url} answered with {what}") from error
            except (OSError, EOFError) as error:  # refused, reset, closed, timed out
                what = f"{type(error).__name__}: {error}"
            except Exception as error:
                if not type(error).__module__.startswith("http"):
                    raise
                what = f"{type(error).__name__}: {error}"  # closed in the middle of an answer
        raise RemoteRewardError(f"{self.url} failed {self.retries + 1} times; the last time with {what}")


def as_text(part: str | Conversation) -> str:
    """Messages as the plain text of OpenRLHF's queries: a line for each, role and content."""
    if isinstance(part, str):
        return part
    return "".join(f"{message['role']}: {message['content']}\n" for message in part)


def _is_column(value: Any, count: int) -> bool:
    if not isinstance(value, list | tuple) or len(value) != count:
        return False
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True
