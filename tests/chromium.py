"""A browser without a window, driven over the DevTools protocol through two pipes; nothing but the standard library."""

import base64
import itertools
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)


def program() -> str | None:
    """The installed browser, if any."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Page:
    """One page: `do` calls a method of the protocol, `events` holds all that came meanwhile."""

    def __init__(self, reading: int, writing: int) -> None:
        self.reading, self.writing, self.numbers = reading, writing, itertools.count(1)
        self.events: list[dict[str, Any]] = []
        self.rest, self.session = b"", None
        target = self.do("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.do("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.do(f"{domain}.enable")

    def do(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self.numbers)
        call = {"id": number, "method": method, "params": parameters}
        call |= {"sessionId": self.session} if self.session else {}
        os.write(self.writing, json.dumps(call).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self.events.append(answer)

    def _next(self, seconds: float = 60) -> dict[str, Any]:
        while b"\0" not in self.rest:
            if not select.select([self.reading], [], [], seconds)[0]:
                raise TimeoutError(f"The browser has said nothing for {seconds:.0f} s.")
            self.rest += os.read(self.reading, 1 << 20)
        message, _, self.rest = self.rest.partition(b"\0")
        return json.loads(message)

    def value(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        found = self.do("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise RuntimeError(f"{expression}: {found['exceptionDetails']}")
        return found["result"].get("value")

    def wait(self, expression: str, seconds: float = 60) -> None:
        """Until an expression is true."""
        end = time.monotonic() + seconds
        while not self.value(expression):
            if time.monotonic() > end:
                raise TimeoutError(f"{expression} is not true after {seconds:.0f} s.")
            time.sleep(0.1)

    def settle(self) -> None:
        """Until what was drawn is on the screen."""
        self.value("new Promise(done => requestAnimationFrame(() => setTimeout(done, 600)))")

    def screenshot(self, path: Path) -> Path:
        path.write_bytes(base64.b64decode(self.do("Page.captureScreenshot", format="png")["data"]))
        return path

    def problems(self) -> list[str]:
        """Uncaught errors, console errors and what the browser itself logged as one."""
        found = []
        for event in self.events:
            method, content = event.get("method"), event.get("params", {})
            wrong = method == "Runtime.consoleAPICalled" and content["type"] in ("error", "assert")
            wrong = wrong or (method == "Log.entryAdded" and content["entry"]["level"] == "error")
            if wrong or method == "Runtime.exceptionThrown":
                found.append(json.dumps(content)[:600])
        return found

    def requests(self) -> list[str]:
        """Addresses that the page asked for, other than files and data of its own."""
        asked = [e["params"]["request"]["url"] for e in self.events if e.get("method") == "Network.requestWillBeSent"]
        return [url for url in asked if not url.startswith(("file:", "data:", "blob:"))]


@contextmanager
def page(width: int = 1400, height: int = 1000) -> Iterator[Page]:
    """A fresh browser with one empty page; ended afterwards."""
    to_browser, from_browser = os.pipe(), os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home, open(os.devnull, "w") as quiet:
        shell = f'exec "$0" "$@" 3<&{to_browser[0]} 4>&{from_browser[1]}'
        flags = [*FLAGS, f"--user-data-dir={home}", f"--window-size={width},{height}"]
        browser = subprocess.Popen(
            ["/bin/bash", "-c", shell, str(program()), *flags],
            pass_fds=(to_browser[0], from_browser[1]), stdout=quiet, stderr=quiet, start_new_session=True,
        )  # fmt: skip
        os.close(to_browser[0])
        os.close(from_browser[1])
        try:
            yield Page(from_browser[0], to_browser[1])
        finally:
            os.killpg(browser.pid, signal.SIGKILL)
            browser.wait()
            os.close(to_browser[1])
            os.close(from_browser[0])
