"""A real headless Chromium, driven through the DevTools protocol: load a page, ask it things, photograph it."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from websocket import WebSocket, create_connection

BINARIES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
SWITCHES = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --remote-debugging-port=0"
)


def find() -> str | None:
    """The browser's binary, if this machine has one."""
    return next((found for name in BINARIES if (found := shutil.which(name))), None)


@contextmanager
def page(folder: Path) -> Iterator[Page]:
    """An empty page of a browser whose profile is in `folder`."""
    binary = find()
    assert binary is not None
    command = [binary, *SWITCHES.split(), f"--user-data-dir={folder}", "about:blank"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        port = _port(folder / "DevToolsActivePort")
        target = next(found for found in httpx.get(f"http://127.0.0.1:{port}/json").json() if found["type"] == "page")
        socket = create_connection(target["webSocketDebuggerUrl"], timeout=60, suppress_origin=True)
        try:
            yield Page(socket)
        finally:
            socket.close()
    finally:
        process.terminate()
        process.wait(20)


class Page:
    """What the tests ask of a page. `errors` holds what its console complained of, `requests` the URLs it asked for."""

    def __init__(self, socket: WebSocket) -> None:
        self.errors: list[str] = []
        self.requests: list[str] = []
        self._socket = socket
        self._last_id = 0
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def open(self, url: str) -> None:
        """Go to a page; it may still be loading."""
        self.errors.clear()
        self.requests.clear()
        self.send("Page.navigate", url=url)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        answer = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait_for(self, expression: str, seconds: float = 30) -> Any:
        """Wait until an expression is true, and return it; while a page loads it may also fail."""
        until = time.monotonic() + seconds
        while True:
            answer = self.send("Runtime.evaluate", expression=expression, returnByValue=True)
            if "exceptionDetails" not in answer and answer["result"].get("value"):
                return answer["result"]["value"]
            assert time.monotonic() < until, (
                f"never true: {expression}\n{self.evaluate('document.body.innerText')[:2000]}"
            )
            time.sleep(0.1)

    def screenshot(self, path: Path) -> None:
        """Photograph the whole page."""
        answer = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(answer["data"]))

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command of the protocol and wait for its answer."""
        self._last_id += 1
        self._socket.send(json.dumps({"id": self._last_id, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv())
            if message.get("id") == self._last_id:
                assert "error" not in message, message
                result: dict[str, Any] = message["result"]
                return result
            self._note(message["method"], message["params"])

    def _note(self, event: str, given: dict[str, Any]) -> None:
        if event == "Runtime.exceptionThrown":
            self.errors.append(str(given["exceptionDetails"]))
        elif event == "Log.entryAdded" and given["entry"]["level"] == "error":
            self.errors.append(f"{given['entry']['text']} {given['entry'].get('url', '')}")
        elif event == "Runtime.consoleAPICalled" and given["type"] in ("error", "assert"):
            self.errors.append(str(given["args"]))
        elif event == "Network.requestWillBeSent":
            self.requests.append(given["request"]["url"])


def _port(file: Path) -> str:
    until = time.monotonic() + 60
    while not (file.exists() and file.read_text().strip()):
        assert time.monotonic() < until, "Chromium did not start"
        time.sleep(0.05)
    return file.read_text().split()[0]
