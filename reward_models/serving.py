"""Any reward as an HTTP server, in the format of `reward_models.remote`. Needs starlette and uvicorn."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Mapping
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from reward_models.calling import name_of
from reward_models.protocol import Reward

PATH = "/get_reward"
HEALTH = "/health"
SHOWN = 100
"""Characters of a wrong value that an error shows."""


class _Refused(Exception):
    def __init__(self, status: int, what: str) -> None:
        super().__init__(what)
        self.status = status


def make_app(reward: Reward, max_request_bytes: int = 16 * 2**20, max_episodes: int = 4096) -> Starlette:
    """A server application: POST to /get_reward, GET /health.

    A reward that raises is a status 500 with the error's first line, never a reward of 0. One request is scored at a
    time: rewards need not be safe for threads.
    """
    one_at_a_time = threading.Lock()

    def score(episodes: tuple[list[Any], list[Any], dict[str, list[Any]]]) -> Any:
        prompts, completions, columns = episodes
        with one_at_a_time:
            return reward(prompts=prompts, completions=completions, **columns)

    async def get_reward(request: Request) -> JSONResponse:
        try:
            episodes = _episodes(await _body(request, max_request_bytes), max_episodes)
        except _Refused as refused:
            return JSONResponse({"error": str(refused)}, refused.status)
        try:
            rewards = _checked(await run_in_threadpool(score, episodes), len(episodes[1]))
        except Exception as error:
            first = str(error).partition("\n")[0]
            return JSONResponse({"error": f"reward {name_of(reward)!r}: {type(error).__name__}: {first}"}, 500)
        return JSONResponse({"rewards": rewards})

    async def health(request: Request) -> JSONResponse:
        return JSONResponse({"status": "ok", "reward": name_of(reward)})

    return Starlette(
        routes=[
            Route(PATH, get_reward, methods=["POST"]),
            Route("/", get_reward, methods=["POST"]),
            Route(HEALTH, health),
        ]
    )


def serve(reward: Reward, host: str, port: int, max_request_bytes: int) -> None:
    """Serve until interrupted."""
    import uvicorn

    uvicorn.run(make_app(reward, max_request_bytes), host=host, port=port, log_level="warning")


def _checked(scores: Any, count: int) -> list[float | None]:
    """One number or None for each episode. What is neither is a failure: told as null it would be no reward."""
    if isinstance(scores, str | bytes | Mapping) or not hasattr(scores, "__len__"):
        raise TypeError(f"gave {_short(scores)}: expected a list of {count} numbers")
    if len(scores) != count:
        raise ValueError(f"gave {len(scores)} values for {count} episodes: expected one for each")
    return [None if score is None else _number(score, row) for row, score in enumerate(scores)]


def _number(score: Any, row: int) -> float:
    try:
        number = float("text" if isinstance(score, str | bytes) else score)  # float("1") would hide a mistake
    except Exception:
        raise TypeError(f"gave {_short(score)} for episode {row}: expected a number or None") from None
    if not math.isfinite(number):
        raise ValueError(f"gave {number} for episode {row}: expected a finite number or None")
    return number


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


async def _body(request: Request, most: int) -> bytes:
    """What was sent, read no further than allowed."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > most:
            raise _Refused(413, f"the request has more than {most} bytes: send fewer episodes at once")
        parts.append(part)
    return b"".join(parts)


def _episodes(body: bytes, most: int) -> tuple[list[Any], list[Any], dict[str, list[Any]]]:
    """Prompts, completions and columns of a request, rlobj's or OpenRLHF's."""
    try:
        data = json.loads(body)
    except ValueError:
        raise _Refused(400, "the request is not JSON") from None
    if not isinstance(data, dict):
        raise _Refused(400, f"the request is a {type(data).__name__}: expected an object with query")
    if "completion_messages" in data:
        prompts, completions = data.get("prompt_messages"), data["completion_messages"]
    else:
        queries, prompts = data.get("query"), data.get("prompts")
        if not isinstance(queries, list) or not all(isinstance(query, str) for query in queries):
            raise _Refused(400, "query is missing or not a list of texts")
        prompts = prompts if prompts else [""] * len(queries)
        if not isinstance(prompts, list) or len(prompts) != len(queries):
            raise _Refused(400, "prompts is not a list as long as query")
        pairs = zip(queries, map(str, prompts), strict=True)
        completions = [query.removeprefix(prompt) for query, prompt in pairs]
    if not isinstance(completions, list) or not isinstance(prompts, list) or len(prompts) != len(completions):
        raise _Refused(400, "prompt_messages and completion_messages are not two lists of one length")
    if len(completions) > most:
        raise _Refused(413, f"the request has {len(completions)} episodes: expected at most {most}")
    columns = data.get("columns") or {}
    if not isinstance(columns, dict) or any(
        not isinstance(value, list) or len(value) != len(completions) for value in columns.values()
    ):
        raise _Refused(400, "columns are not lists with a value for each episode")
    if "label" not in columns and isinstance(data.get("labels"), list) and len(data["labels"]) == len(completions):
        columns = {**columns, "label": data["labels"]}
    return prompts, completions, columns
