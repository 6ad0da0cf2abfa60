"""A reward function in a process of its own, which can be killed: a thread that computes cannot be stopped."""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import functools
import inspect
import multiprocessing
import os
import pickle
import queue
import signal
import threading
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from types import SimpleNamespace
from typing import Any

from reward_models.calling import FunctionReward, name_of
from reward_models.protocol import Reward

LOADING = 300.0
"""Seconds for a process to start and to load its function."""
ENDING = 0.5
"""Seconds that a process has to end of its own accord."""
LONGEST_ANSWER = 64 * 2**20
"""Bytes of what a function returns or raises."""
TOLD = ("log_extra", "log_metric")
"""Arguments that a function calls, without an answer, to be logged."""
STATE = "trainer_state"
"""An argument that would bring torch along; only its fields are sent."""


class CallKilled(TimeoutError):
    """A call took longer than its timeout, and its process was killed."""

    each_alone = True  # in a batch it is some episode's doing: each is asked for alone
    place = ""  # it was raised by no line of the function


class ProcessEnded(RuntimeError):
    """A reward's process ended of its own accord: a crash, or an exit."""

    place = ""


def isolated_reward(
    reward: Reward, spec: str, kwargs: Mapping[str, Any] | None, concurrency: int | None, timeout: float | None
) -> FunctionReward:
    """The same, but called in processes of its own: as many as `concurrency`, else one.

    Each is started when it is first needed, runs one call at a time, and is killed, with what it has started itself,
    when that takes longer than `timeout`; the next call has a new one. What a function kept between calls is then lost.
    Of what a trainer tells its rewards, `trainer_state` comes without its methods.

    Args:
        reward: what `load_reward` makes of `spec` and `kwargs` here.
        spec: name of the function, by which its processes load it.
        timeout: seconds for one call; a process's start does not count.

    Raises:
        ValueError: no timeout.
    """
    if timeout is None:
        raise ValueError(
            "isolated is true and timeout is None: expected the seconds after which the process of a call is killed"
        )
    function, given = (reward.function, reward.kwargs) if isinstance(reward, FunctionReward) else (reward, {})
    return FunctionReward(
        _Isolated(function, spec, kwargs, timeout, concurrency or 1), given, name_of(reward), concurrency, None
    )


class _Isolated:
    """Called as `function` is, and told from it by nobody who looks at its parameters."""

    def __init__(
        self,
        function: Callable[..., Any],
        spec: str,
        kwargs: Mapping[str, Any] | None,
        timeout: float,
        processes: int,
    ) -> None:
        self.__name__ = name_of(function)
        with contextlib.suppress(TypeError, ValueError):  # a function that does not tell its parameters
            self.__signature__ = inspect.signature(function)
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        for _ in range(processes):
            self._idle.put(_Worker(self.__name__, spec, dict(kwargs or {}), timeout))

    def __call__(self, **arguments: Any) -> Any:
        worker = self._idle.get()
        try:
            return worker.call(arguments)
        finally:
            self._idle.put(worker)


class _Worker:
    """A process, when there is one, and the pipe to it."""

    def __init__(self, name: str, spec: str, kwargs: dict[str, Any], timeout: float) -> None:
        self.name, self.spec, self.kwargs, self.timeout = name, spec, kwargs, timeout
        self._running: tuple[SpawnProcess, Connection] | None = None

    def call(self, arguments: Mapping[str, Any]) -> Any:
        """What the function returns, or raises, for these arguments.

        Raises:
            CallKilled: it took longer than `timeout`.
            ProcessEnded: it ended its process.
            TypeError: an argument cannot be sent.
        """
        message = pickle.dumps(
            {name: None if name in TOLD else self._packed(name, arguments[name]) for name in arguments}
        )
        if self._running is None:
            self._start()
        raised, outcome, told = self._exchange(message, self.timeout)
        for name, what in told:
            arguments[name](*what)
        if raised:
            raise outcome
        return outcome

    def _packed(self, name: str, value: Any) -> bytes:
        try:
            return pickle.dumps(SimpleNamespace(**vars(value)) if name == STATE else value)
        except Exception as error:
            raise TypeError(
                f"reward {self.name!r} has a process of its own, and its argument {name!r} ({type(value).__name__}) "
                f"cannot be sent there: {error}"
            ) from error

    def _start(self) -> None:
        spawning = multiprocessing.get_context("spawn")
        ours, theirs = spawning.Pipe()
        # a daemon: the end of this process ends it
        process = spawning.Process(target=_work, args=(theirs, self.spec, self.kwargs, self.timeout), daemon=True)
        process.start()
        theirs.close()  # so that its end is heard of
        self._running = process, ours
        raised, outcome, _ = self._exchange(None, LOADING)
        if raised:
            self._stop()
            raise outcome

    def _exchange(self, message: bytes | None, seconds: float) -> tuple[bool, Any, list[tuple[str, tuple[Any, ...]]]]:
        """Send, and wait for what comes back: whether something was raised, what, and what is to be logged."""
        assert self._running is not None
        process, pipe = self._running
        late = threading.Event()

        def kill() -> None:
            late.set()
            _kill(process)

        clock = threading.Timer(seconds, kill)
        clock.start()
        answer = None
        try:
            try:
                with contextlib.suppress(EOFError, OSError):  # the process is no more
                    if message is not None:
                        pipe.send_bytes(message)
                    answer = pipe.recv_bytes()
            finally:
                clock.cancel()
                clock.join()
        except BaseException:  # such as Ctrl-C: an answer that comes now is none to the next call
            self._stop()
            raise
        if answer is not None and not late.is_set():
            return pickle.loads(answer)  # type: ignore[no-any-return]
        status = self._stop()
        if late.is_set():
            what = "was not loaded within" if message is None else "gave no answer within its timeout of"
            raise CallKilled(f"reward {self.name!r} {what} {seconds:g} s: its process was killed")
        when = "in the middle of a call"
        if message is None:
            when = 'before it had loaded the function (a script that starts it needs `if __name__ == "__main__":`)'
        raise ProcessEnded(f"the process of reward {self.name!r} ended {when}, {status}")

    def _stop(self) -> str:
        """End the process; how it had ended, if it had."""
        assert self._running is not None
        process, pipe = self._running
        self._running = None
        process.join(ENDING)  # one that has closed the pipe is about to end, and has a status to tell
        _kill(process)
        process.join()
        code = process.exitcode or 0
        process.close()
        pipe.close()
        return f"by signal {signal.Signals(-code).name}" if code < 0 else f"with exit status {code}"


def _kill(process: SpawnProcess) -> None:
    """The process, and those that it has started."""
    assert process.pid is not None  # it was started
    with contextlib.suppress(OSError):  # it has no group yet, or none any more
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()


# In the process -------------------------------------------------------------------------------------------------------


def _work(pipe: Connection, spec: str, kwargs: dict[str, Any], timeout: float) -> None:
    from reward_models.functions import load_reward

    os.setsid()  # a group to be killed together; and Ctrl-C is for the process that trains
    multiprocessing.current_process().daemon = False  # daemons may start no processes; functions that run code do
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        reward = load_reward(spec, kwargs)
    except Exception as error:
        pipe.send_bytes(_answer(True, error, []))
        return
    function = reward.function if isinstance(reward, FunctionReward) else reward
    pipe.send_bytes(_answer(False, None, []))
    with asyncio.Runner() as runner, open(os.devnull, "w") as nowhere, contextlib.suppress(EOFError):
        while True:
            message = pipe.recv_bytes()
            # for when nobody is left to kill it, and code that holds the interpreter's lock stops `_end_with_parent`
            faulthandler.dump_traceback_later(timeout + 5.0, exit=True, file=nowhere)
            answer = _called(function, message, runner)
            faulthandler.cancel_dump_traceback_later()
            pipe.send_bytes(answer)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.killpg(0, signal.SIGKILL)


def _called(function: Callable[..., Any], message: bytes, runner: asyncio.Runner) -> bytes:
    told: list[tuple[str, tuple[Any, ...]]] = []

    def tell(name: str, *what: Any) -> None:
        told.append((name, what))

    async def awaited(outcome: Any) -> Any:
        return await outcome

    try:
        arguments = {
            name: functools.partial(tell, name) if packed is None else pickle.loads(packed)
            for name, packed in pickle.loads(message).items()
        }
        outcome = function(**arguments)
        return _answer(False, runner.run(awaited(outcome)) if inspect.isawaitable(outcome) else outcome, told)
    except Exception as error:
        return _answer(True, error, told)


def _answer(raised: bool, outcome: Any, told: list[tuple[str, tuple[Any, ...]]]) -> bytes:
    if isinstance(outcome, Exception) and raised:
        place = traceback.extract_tb(outcome.__traceback__)[-1:]
        outcome = _sendable(outcome)
        outcome.place = f"{place[0].filename}, line {place[0].lineno}" if place else ""
    try:
        answer = pickle.dumps((raised, outcome, told))
    except Exception as error:
        return _answer(True, TypeError(f"returned a {type(outcome).__name__} that cannot be sent: {error}"), [])
    if len(answer) > LONGEST_ANSWER:
        return _answer(True, ValueError(f"returned {len(answer)} bytes: expected at most {LONGEST_ANSWER}"), [])
    return answer


def _sendable(error: Exception) -> Any:
    """The same, or what it says, where it does not survive to be sent."""
    with contextlib.suppress(Exception):
        if type(pickle.loads(pickle.dumps(error))) is type(error):
            return error
    return RuntimeError(f"{type(error).__name__}: {error}"[: LONGEST_ANSWER // 8])
