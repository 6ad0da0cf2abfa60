"""Headless Chromium for tests, by the DevTools protocol through two pipes: no package and no port is needed."""

from __future__ import annotations

import base64
import fcntl
import itertools
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
    "--remote-debugging-pipe",
)  # fmt: skip


class Page:
    """A page without network. `errors` and `requests` gather what it complains of and asks for."""

    def __init__(self, send: IO[bytes], receive: IO[bytes]) -> None:
        self._send, self._receive = send, receive
        self._numbers, self._session = itertools.count(1), {}
        self._loads = 0
        self.errors: list[str] = []
        self.requests: list[str] = []
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        attached = self._call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = {"sessionId": attached["sessionId"]}
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")
        speed = {"latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
        self._call("Network.emulateNetworkConditions", offline=True, **speed)

    def look(self, width: int, scheme: str = "light", media: str = "screen") -> None:
        """Have a window so wide, light or dark, on screen or in print."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1}
        self._call("Emulation.setDeviceMetricsOverride", mobile=width < 600, **size)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self._call("Emulation.setEmulatedMedia", media=media, features=features)

    def open(self, path: Path) -> None:
        """Load a file and wait until it is drawn."""
        before = self._loads
        self._call("Page.navigate", url=path.resolve().as_uri())
        while self._loads == before:
            self._read()
        self.run("new Promise(drawn => requestAnimationFrame(() => requestAnimationFrame(drawn)))")

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression; of a promise, what it resolves to."""
        how = {"awaitPromise": True, "returnByValue": True, "userGesture": True}
        answer = self._call("Runtime.evaluate", expression=script, **how)
        if "exceptionDetails" in answer:
            raise RuntimeError(json.dumps(answer["exceptionDetails"])[:2000])
        return answer["result"].get("value")

    def click(self, element: str) -> None:
        """Press the mouse on the middle of what a JavaScript expression gives."""
        x, y = self.run(
            f"(e => {{ e.scrollIntoView({{block: 'center'}}); const r = e.getBoundingClientRect();"
            f" return [r.x + r.width / 2, r.y + r.height / 2]; }})({element})"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self._call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def screenshot(self, path: Path) -> None:
        """The whole page as a PNG."""
        size = self._call("Page.getLayoutMetrics")["cssContentSize"]
        answer = self._call("Page.captureScreenshot", captureBeyondViewport=True, clip={**size, "scale": 1})
        path.write_bytes(base64.b64decode(answer["data"]))

    def _call(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params, **self._session}
        self._send.write(json.dumps(message).encode() + b"\0")
        while (answer := self._read()).get("id") != number:
            pass
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        result: dict[str, Any] = answer["result"]
        return result

    def _read(self) -> dict[str, Any]:
        """The next message, an answer or an event; what an event tells is kept."""
        text = b"".join(iter(lambda: self._receive.read(1), b"\0"))
        message: dict[str, Any] = json.loads(text)
        method, said = message.get("method"), message.get("params", {})
        self._loads += method == "Page.loadEventFired"
        if method == "Runtime.exceptionThrown" or (method == "Log.entryAdded" and said["entry"]["level"] == "error"):
            self.errors.append(json.dumps(said)[:1000])
        if method == "Network.requestWillBeSent":
            self.requests.append(said["request"]["url"])
        return message


@contextmanager
def page(profile: Path) -> Iterator[Page]:
    """A page in a Chromium of its own, which ends with the block.

    Args:
        profile: an empty folder for what it writes.
    """
    assert CHROMIUM is not None
    (its_ear, our_mouth), (our_ear, its_mouth) = os.pipe(), os.pipe()
    ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (its_ear, its_mouth)]  # out of the way of 3 and 4
    process = subprocess.Popen(
        [CHROMIUM, *QUIET, f"--user-data-dir={profile}", "about:blank"],
        preexec_fn=lambda: (os.dup2(ends[0], 3), os.dup2(ends[1], 4)),  # where it listens and answers
        pass_fds=(3, 4),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    for end in (its_ear, its_mouth, *ends):
        os.close(end)
    with open(our_mouth, "wb", buffering=0) as send, open(our_ear, "rb") as receive:
        try:
            yield Page(send, receive)
        finally:
            process.kill()
            process.wait()
