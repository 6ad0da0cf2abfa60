"""Reward functions of every accepted form, as rewards with TRL's signature.

A function may score a batch, `(prompts, completions, **columns) -> list`, or one episode, `(messages) -> float`; it may
be async; a class, or a function that takes parameters alone, makes such a function.
"""

from __future__ import annotations

import asyncio
import difflib
import functools
import inspect
import math
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any

from reward_models.protocol import Conversation, Message, Reward

BATCH = ("prompts", "completions", "completion_ids")
"""A function with a parameter of one of these names scores a batch."""
ONE = "messages"
"""A function with this parameter, and none of those, scores one episode."""
ASYNC_CALLS = 16
"""Calls of an async function that run at the same time unless `concurrency` says otherwise."""
GRACE = 5.0
"""Seconds beyond its timeouts after which an async function counts as one that blocks the event loop."""

Outcome = Any
"""What one episode came to: the value that the function returned, or the exception that it raised."""


class WrongCount(ValueError):
    """A batch function returned no list, or another number of values than there are episodes."""

    kind = "count"


def as_reward(
    function: Callable[..., Any],
    kwargs: Mapping[str, Any] | None = None,
    *,
    concurrency: int | None = None,
    timeout: float | None = None,
) -> Reward:
    """A reward of TRL's signature from a function of any accepted form; what is one already comes back as it is.

    Args:
        function: `(prompts, completions, **columns) -> list`; or `(messages) -> float`, which may name columns too; or
            a class or function whose parameters are `kwargs` and which makes one of those. Async or not.
        kwargs: parameters of the function, by name.
        concurrency: calls at the same time. A batch function is given the batch in so many parts, in threads; a
            function of one episode gets so many episodes at once. None: 16 for async functions of one episode, else 1.
        timeout: seconds for one call. An async call is cancelled; a thread cannot be: it is left to itself.

    Raises:
        ValueError: a parameter that the function does not have (the nearest is named), or lacks.
        TypeError: nothing that can be called, or of another form.
    """
    if concurrency is not None and concurrency < 1:
        raise ValueError(f"concurrency is {concurrency}: expected at least 1, or None")
    if timeout is not None and not (math.isfinite(timeout) and timeout > 0):
        raise ValueError(f"timeout is {timeout}: expected a number of seconds above 0, or None")
    given = dict(kwargs or {})
    name = name_of(function)
    if not callable(function):
        raise TypeError(f"reward {name!r} is {function!r}: expected a function")
    if _is_factory(function):
        _check_kwargs(name, function, given)
        function, given = function(**given), {}
        if not callable(function) or inspect.isclass(function):
            raise TypeError(f"reward {name!r} made {function!r}: expected a function that scores episodes")
    if not (given or concurrency or timeout) and _is_reward_object(function):
        made: Reward = function
        return made
    _check_kwargs(name, function, given)
    return FunctionReward(function, given, name, concurrency, timeout)


def name_of(function: Any) -> str:
    """What logs and errors call a reward function."""
    while isinstance(function, functools.partial):
        function = function.func
    return str(getattr(function, "__name__", type(function).__name__))


class FunctionReward:
    """A user's function as a reward; `as_reward` makes it and says what the arguments are."""

    def __init__(
        self,
        function: Callable[..., Any],
        kwargs: dict[str, Any],
        name: str,
        concurrency: int | None,
        timeout: float | None,
    ) -> None:
        self.function, self.kwargs, self.__name__ = function, kwargs, name
        self.concurrency, self.timeout = concurrency, timeout
        self._is_async, self._is_one = _is_async(function), _is_one(function)
        parameters = _parameters(function)
        takes_all = parameters is None or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        self._takes = None if takes_all else set(parameters or ())

    def __call__(
        self, prompts: Sequence[Conversation], completions: Sequence[Conversation], **columns: Any
    ) -> list[float | None]:
        """Score all episodes; the first exception is raised."""
        outcomes = self.outcomes(prompts, completions, **columns)
        for each in outcomes:
            if isinstance(each, BaseException):
                raise each
        return outcomes

    def outcomes(
        self, prompts: Sequence[Conversation], completions: Sequence[Conversation], **columns: Any
    ) -> list[Outcome]:
        """The same, but where the function scores one episode, its exception stands in that episode's place.

        Raises:
            WrongCount: a batch function returned another number of values than there are episodes.
            TimeoutError: a batch function took longer than `timeout`.
        """
        data = {"prompts": list(prompts), "completions": list(completions), **columns}
        count = len(completions)
        if self._is_one:
            return self._run([self._episode(data, i, count) for i in range(count)])
        size = -(-count // min(self.concurrency or 1, max(count, 1))) or 1
        starts = range(0, count, size) if count else [0]
        parts = self._run([self._only_taken(_slice(data, start, start + size, count)) for start in starts])
        values: list[Outcome] = []
        for start, part in zip(starts, parts, strict=True):
            if isinstance(part, BaseException):
                raise part
            values += self._values(part, min(size, count - start))
        return values

    def _values(self, returned: Any, count: int) -> list[Any]:
        if isinstance(returned, str | bytes | Mapping) or not hasattr(returned, "__len__"):
            raise WrongCount(f"reward {self.__name__!r} returned {returned!r}: expected a list of {count} numbers")
        if len(returned) != count:
            raise WrongCount(
                f"reward {self.__name__!r} returned {len(returned)} values for {count} episodes: "
                "expected one per episode"
            )
        return list(returned)

    def _episode(self, data: dict[str, Any], index: int, count: int) -> dict[str, Any]:
        """Arguments for one episode: its messages, and its columns by their names."""
        row = {name: value[0] for name, value in _slice(data, index, index + 1, count).items() if _is_column(value, 1)}
        whole = {name: value for name, value in data.items() if not _is_column(value, count)}
        messages = _messages(row.pop("prompts"), "user") + _messages(row.pop("completions"), "assistant")
        return self._only_taken({**whole, **row, ONE: messages})

    def _only_taken(self, data: dict[str, Any]) -> dict[str, Any]:
        """What the function takes of `data`; its own parameters go before columns of the same name."""
        taken = data if self._takes is None else {name: value for name, value in data.items() if name in self._takes}
        return {**taken, **self.kwargs}

    def _run(self, calls: Sequence[dict[str, Any]]) -> list[Outcome]:
        limit = self.concurrency or (ASYNC_CALLS if self._is_async else 1)
        if not self._is_async and self.timeout is None and limit == 1:
            return [self._directly(arguments) for arguments in calls]
        begin = self.function if self._is_async else functools.partial(_in_thread, self.function)
        return self._awaited([functools.partial(begin, **arguments) for arguments in calls], limit)

    def _directly(self, arguments: dict[str, Any]) -> Outcome:
        try:
            outcome = self.function(**arguments)
        except Exception as error:
            return error
        if inspect.isawaitable(outcome):  # an async function in the clothes of another, such as a lambda
            return self._awaited([lambda: outcome], 1)[0]
        return outcome

    def _awaited(self, calls: Sequence[Callable[[], Awaitable[Any]]], limit: int) -> list[Outcome]:
        longest = None if self.timeout is None else self.timeout * -(-len(calls) // limit) + GRACE
        return _run_async(_limited(calls, limit, self.timeout, self.__name__), longest, self.__name__)


# Forms ----------------------------------------------------------------------------------------------------------------


def _parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter] | None:
    """None for a function that does not tell its parameters."""
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):
        return None


def _is_factory(function: Callable[..., Any]) -> bool:
    if inspect.isclass(function):
        return True
    parameters = _parameters(function)
    if parameters is None or any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return False
    return not any(name in parameters for name in (*BATCH, ONE))


def _is_one(function: Callable[..., Any]) -> bool:
    parameters = _parameters(function) or {}
    return ONE in parameters and not any(name in parameters for name in BATCH)


def _is_reward_object(function: Callable[..., Any]) -> bool:
    """Whether it is an object, such as a reward model, that has TRL's signature in full."""
    if inspect.isroutine(function) or isinstance(function, functools.partial) or _is_async(function):
        return False
    parameters = _parameters(function) or {}
    return {"prompts", "completions"} <= set(parameters) and any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def _is_async(function: Any) -> bool:
    while isinstance(function, functools.partial):
        function = function.func
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004


def _check_kwargs(name: str, function: Callable[..., Any], given: Mapping[str, Any]) -> None:
    parameters = _parameters(function)
    if parameters is None:
        return
    settable = {
        each: p
        for each, p in parameters.items()
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and each not in (*BATCH, ONE)
    }
    for each in given:
        if each not in settable:
            raise ValueError(
                f"reward {name!r} has no parameter {each!r}{nearest(each, settable)} "
                f"(it has {', '.join(settable) or 'none'})"
            )
    if _is_factory(function):
        missing = [each for each, p in settable.items() if p.default is p.empty and each not in given]
        if missing:
            raise ValueError(
                f"reward {name!r} takes ({', '.join(parameters)}), and {missing[0]!r} is not given: expected "
                "(prompts, completions, **columns), (messages), or parameters that kwargs give"
            )


def nearest(given: str, known: Iterable[str]) -> str:
    """Say "; did you mean 'x'?" or nothing, to end a message with."""
    near = difflib.get_close_matches(given, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


# Arguments ------------------------------------------------------------------------------------------------------------


def _is_column(value: Any, count: int) -> bool:
    """Whether it has one entry per episode: TRL hands over other things too, such as its trainer's state."""
    return isinstance(value, list | tuple) and len(value) == count


def _slice(data: Mapping[str, Any], start: int, end: int, count: int) -> dict[str, Any]:
    return {name: value[start:end] if _is_column(value, count) else value for name, value in data.items()}


def _messages(said: str | Sequence[Message], role: str) -> list[Message]:
    return [{"role": role, "content": said}] if isinstance(said, str) else list(said)


# Running --------------------------------------------------------------------------------------------------------------

_LOOP: list[asyncio.AbstractEventLoop] = []
"""The event loop of all async rewards, in a thread of its own: clients that live between calls are bound to one loop.
Empty until it is needed."""
_LOOP_LOCK = threading.Lock()


def _loop() -> asyncio.AbstractEventLoop:
    with _LOOP_LOCK:
        if not _LOOP:
            loop = asyncio.new_event_loop()
            threading.Thread(target=loop.run_forever, name="async rewards", daemon=True).start()
            _LOOP.append(loop)
        return _LOOP[0]


def _run_async(work: Coroutine[Any, Any, list[Outcome]], longest: float | None, name: str) -> list[Outcome]:
    loop = _loop()
    future = asyncio.run_coroutine_threadsafe(work, loop)
    try:
        return future.result(longest)
    except TimeoutError as error:
        with _LOOP_LOCK:
            if loop in _LOOP:
                _LOOP.clear()  # it is blocked: the next call gets another
        raise TimeoutError(
            f"reward {name!r} blocks its event loop for more than {longest} s: an async function must await what "
            "takes long; make it a plain function, which runs in a thread"
        ) from error
    except BaseException:  # such as Ctrl-C
        future.cancel()
        raise


async def _limited(
    calls: Sequence[Callable[[], Awaitable[Any]]], limit: int, timeout: float | None, name: str
) -> list[Outcome]:
    """What each call returned or raised; at most `limit` run at a time, each for `timeout` seconds at the most."""
    slots = asyncio.Semaphore(limit)

    async def one(call: Callable[[], Awaitable[Any]]) -> Outcome:
        async with slots:
            clock = asyncio.timeout(timeout)
            try:
                async with clock:
                    outcome = await call()
                    return await outcome if inspect.isawaitable(outcome) else outcome
            except Exception as error:
                if clock.expired():
                    return TimeoutError(f"reward {name!r} gave no answer within its timeout of {timeout:g} s")
                return error

    return list(await asyncio.gather(*map(one, calls)))


async def _in_thread(function: Callable[..., Any], **arguments: Any) -> Any:
    """Call in a thread of its own, which ends with the process at the latest."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Any] = loop.create_future()

    def settle(set_outcome: Callable[[Any], None], outcome: Any) -> None:
        if not done.done():  # cancelled by a timeout
            set_outcome(outcome)

    def work() -> None:
        try:
            outcome, set_outcome = function(**arguments), done.set_result
        except Exception as error:
            outcome, set_outcome = error, done.set_exception
        loop.call_soon_threadsafe(settle, set_outcome, outcome)

    threading.Thread(target=work, name="reward", daemon=True).start()
    return await done
