"""Chromium over its debugging pipe: a page at a width, in light or dark, with what it complained of. No dependency.

with Browser(program()) as browser:
    browser.open(path, width=390, dark=True)
    browser.value("document.title")
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

_PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --remote-debugging-pipe"
).split()
_SECONDS = 60


def program() -> str | None:
    """A browser that is installed here; None without one."""
    return next((found for name in _PROGRAMS if (found := shutil.which(name))), None)


class Browser:
    """One page of one browser.

    Attributes:
        complaints: errors of the console, of scripts and of the page's policy, since it was opened.
    """

    def __init__(self, binary: str) -> None:
        self.complaints: list[str] = []
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        (low, self._write), (self._read, also_low) = os.pipe(), os.pipe()
        # The browser reads commands from descriptor 3 and answers on 4; ours must not be one of them before they are put there.
        to_read, to_write = (fcntl.fcntl(number, fcntl.F_DUPFD, 10) for number in (low, also_low))
        begin = f"import os, sys; os.dup2({to_read}, 3); os.dup2({to_write}, 4); os.execv(sys.argv[1], sys.argv[1:])"
        command = [sys.executable, "-S", "-c", begin, binary, *_FLAGS, f"--user-data-dir={self._profile.name}", "about:blank"]
        nothing = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
        self._process = subprocess.Popen(command, pass_fds=(to_read, to_write), **nothing)
        for number in (low, also_low, to_read, to_write):
            os.close(number)
        self._pending, self._number, self._session, self._loaded = b"", 0, None, False
        try:
            pages = [t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page"]
            target = pages[0]["targetId"] if pages else self.call("Target.createTarget", url="about:blank")["targetId"]
            self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            for domain in ("Page", "Runtime", "Log"):
                self.call(f"{domain}.enable")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._write)
        os.close(self._read)
        self._profile.cleanup()

    def open(self, path: Path, *, width: int = 1280, height: int = 900, dark: bool = False, media: str = "screen") -> None:
        """Load a page and wait until it is whole."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        self.call("Emulation.setFocusEmulationEnabled", enabled=True)  # a page in the background is told of no focus
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", media=media, features=[scheme])
        self.complaints, self._loaded = [], False
        self.call("Page.navigate", url=path.absolute().as_uri())
        end = time.monotonic() + _SECONDS
        while not self._loaded:
            self._receive(end)

    def value(self, expression: str) -> Any:
        """What an expression comes to in the page; AssertionError where it raises."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def press(self, key: str) -> None:
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key)

    def point(self, x: float, y: float) -> None:
        """Move the mouse there, in pixels of the window."""
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        session = {"sessionId": self._session} if self._session else {}
        message = {"id": self._number, "method": method, "params": parameters, **session}
        os.write(self._write, json.dumps(message).encode() + b"\0")
        number, end = self._number, time.monotonic() + _SECONDS
        while True:
            answer = self._receive(end)
            if answer.get("id") == number:
                assert "error" not in answer, answer["error"]
                return answer["result"]

    def _receive(self, end: float) -> dict[str, Any]:
        while b"\0" not in self._pending:
            ready, *_ = select.select([self._read], [], [], max(end - time.monotonic(), 0))
            more = os.read(self._read, 2**16) if ready else b""
            if not more:
                raise TimeoutError("the browser does not answer")
            self._pending += more
        line, self._pending = self._pending.split(b"\0", 1)
        message = json.loads(line)
        told = message.get("params", {})
        match message.get("method"):
            case "Page.loadEventFired":
                self._loaded = True
            case "Runtime.exceptionThrown":
                self.complaints.append(str(told["exceptionDetails"]))
            case "Log.entryAdded":
                self.complaints.append(told["entry"]["text"])
            case "Runtime.consoleAPICalled" if told["type"] in ("error", "warning", "assert"):
                self.complaints.append(str(told["args"]))
        return message
