"""A reward that another process gives, over HTTP, in the format of OpenRLHF's `remote_rm_url`.

Request: {"query": [text, …], "prompts": [text, …], "labels": [label, …]}, where a query is prompt and completion in
one, and beside them what rlobj's own server reads: "prompt_messages", "completion_messages" and "columns".
Answer: {"rewards": [number or null, …]}, one for each query.
"""

from __future__ import annotations

import json
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import Future, wait
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from reward_models.protocol import Conversation

RETRIED = (408, 425, 429, 500, 502, 503, 504)
"""Statuses after which the same request may succeed."""
LONGEST_ANSWER = 64 * 2**20
"""Bytes of an answer that are read at most."""
LONGEST_REFUSAL = 2**16
"""The same where the server refuses."""
SHOWN = 200
"""Characters of an answer that an error shows."""
LONGEST_WAIT = 60.0
"""Seconds that a server may ask for (Retry-After) before the next try."""


class RemoteRewardError(RuntimeError):
    """The server could not be reached, or its answer is no list of rewards."""

    kind = "exception"  # of the whole call: asking again for each episode would only take longer


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the Authorization header to whoever the server names."""

    def redirect_request(self, *arguments: Any) -> None:
        return None  # the status stays what it is, an HTTPError


class _Refusal(Exception):
    """A status that is none of success; `str` says what the server did."""

    def __init__(self, status: int, wait: float, what: str) -> None:
        super().__init__(what)
        self.status, self.wait = status, wait


_OPENER = urllib.request.build_opener(_NoRedirect)


class RemoteReward:
    """Rewards from a server.

    Args:
        url: where requests are posted.
        batch_size: episodes in one request.
        timeout: seconds until a request, from connecting to the answer's last byte, counts as failed.
        retries: how often a request that failed is sent again, after 0.5, 1, 2, … seconds, or after as many as the
            server asks for (Retry-After). An answer that was understood and is wrong is not asked for again.
        authorization: name of the environment variable whose value is sent as the Authorization header. The value
            itself stands in no recipe and no error, and goes to no server that another one names.
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
            raise ValueError(f"url is {_address(url)!r}: expected http://host:port/path")
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
        if authorization is not None and not _is_header(os.environ[authorization]):
            raise ValueError(
                f"authorization is {authorization!r}: that environment variable's value has a line break or another "
                "character that no header may have"
            )
        self.url, self.batch_size, self.timeout, self.retries = url, batch_size, timeout, retries
        self.authorization, self.score_key = authorization, score_key
        self.__name__ = parts.hostname
        self._shown_url = _address(url)

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
        where = self._shown_url
        try:
            found = json.loads(answer)
        except ValueError:
            raise RemoteRewardError(f"{where} answered {self._shown(answer)}: expected JSON") from None
        rewards = found.get(self.score_key) if isinstance(found, dict) else None
        if not isinstance(rewards, list):
            raise RemoteRewardError(f"{where} answered {self._shown(answer)}: expected a list under {self.score_key!r}")
        if len(rewards) != count:
            raise RemoteRewardError(f"{where} gave {len(rewards)} rewards for {count} episodes: expected one for each")
        for reward in rewards:
            if reward is not None and (isinstance(reward, bool) or not isinstance(reward, int | float)):
                shown = self._without_secret(repr(reward))[:SHOWN]
                raise RemoteRewardError(f"{where} gave the reward {shown}: expected a number or null")
        return [None if reward is None else float(reward) for reward in rewards]

    def _post(self, body: bytes) -> bytes:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self.authorization is not None:
            headers["Authorization"] = os.environ[self.authorization]
        what, pause = "", 0.0
        for attempt in range(self.retries + 1):
            time.sleep(pause)
            pause = 0.5 * 2**attempt
            try:
                return self._within_timeout(urllib.request.Request(self.url, body, headers, method="POST"))
            except _Refusal as refusal:
                what = str(refusal)
                if refusal.status not in RETRIED:
                    raise RemoteRewardError(f"{self._shown_url} answered with {what}") from None
                pause = max(pause, refusal.wait)
            except (OSError, EOFError) as error:  # refused, reset, closed, timed out
                what = f"{type(error).__name__}: {error}"
            except Exception as error:
                if not type(error).__module__.startswith("http"):
                    raise
                what = f"{type(error).__name__}: {self._shown(str(error))}"  # closed amid an answer, or no HTTP at all
        raise RemoteRewardError(f"{self._shown_url} failed {self.retries + 1} times; the last time with {what}")

    def _within_timeout(self, request: urllib.request.Request) -> bytes:
        """The whole answer, in time. In a thread, which can be left: a socket's timeout is that of a single read, so a
        server that sends a byte now and then, in its headers too, would hold us for as long as it likes."""
        until = time.monotonic() + self.timeout
        done: Future[bytes] = Future()

        def work() -> None:
            try:
                done.set_result(self._answer(request, until))
            except BaseException as error:
                done.set_exception(error)

        threading.Thread(target=work, name="remote reward", daemon=True).start()
        if not wait([done], self.timeout).done:
            raise TimeoutError(f"no whole answer within {self.timeout:g} s")
        return done.result()

    def _answer(self, request: urllib.request.Request, until: float) -> bytes:
        try:
            with _OPENER.open(request, timeout=self.timeout) as answer:
                content = _read(answer, LONGEST_ANSWER + 1, until)
                if len(content) > LONGEST_ANSWER:
                    raise RemoteRewardError(f"{self._shown_url} answered with more than {LONGEST_ANSWER} bytes")
                if answer.length:  # bytes that were promised and did not come
                    raise ConnectionError("the answer was cut off")
                return content
        except urllib.error.HTTPError as error:
            with error:
                raise self._refusal(error, until) from None

    def _refusal(self, error: urllib.error.HTTPError, until: float) -> _Refusal:
        what = f"status {error.code}"
        if 300 <= error.code < 400:
            where = self._without_secret(_address(error.headers.get("Location") or "nowhere"))
            return _Refusal(error.code, 0.0, f"{what}, a redirect to {where!r}: if you trust it, set url to it")
        try:
            # more than is shown: half a secret at the end of what was read would not be known as one
            said = _read(error, LONGEST_REFUSAL, until)
        except OSError:
            said = b""
        return _Refusal(error.code, _asked_to_wait(error.headers.get("Retry-After")), f"{what}: {self._shown(said)}")

    def _shown(self, said: bytes | str) -> str:
        """The beginning of what a server said, for an error."""
        text = said if isinstance(said, str) else said.decode(errors="replace")
        return repr(self._without_secret(text)[:SHOWN])

    def _without_secret(self, text: str) -> str:
        """A server that repeats the secret does not spread it."""
        secret = os.environ.get(self.authorization or "", "")
        for part in (secret, *secret.split()[1:]):  # "Bearer TOKEN": the token alone is no less secret
            for written in filter(None, (part, json.dumps(part)[1:-1])):  # also as it stands in JSON
                text = text.replace(written, "***")
        return text


def _address(url: str) -> str:
    """scheme://host:port/path alone: keys stand in queries at times, and passwords before the host."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def _is_header(value: str) -> bool:
    return value.isprintable() and value.isascii()


def _read(answer: Any, most: int, until: float) -> bytes:
    """At most so many bytes, in pieces, so that the clock is looked at between them."""
    parts, left = [], most
    while left > 0 and (part := answer.read1(min(left, 2**16))):
        parts.append(part)
        left -= len(part)
        if time.monotonic() > until:
            raise TimeoutError("the answer went on for too long")  # nobody waits for it any more
    return b"".join(parts)


def _asked_to_wait(retry_after: str | None) -> float:
    """Seconds until a Retry-After header's number of seconds or date, bounded; 0 without a sensible one."""
    if retry_after is None:
        return 0.0
    try:
        seconds = float(retry_after)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(retry_after).timestamp() - time.time()
        except ValueError:
            return 0.0
    return min(max(seconds, 0.0), LONGEST_WAIT) if seconds == seconds else 0.0


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
