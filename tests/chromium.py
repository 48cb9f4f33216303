"""A real browser for pages that are files: Chromium, headless, spoken to through two pipes.

They carry the protocol of its developer tools, which takes no library so: JSON, and a zero byte.
Also takes the pictures in the documentation; see ``docs/pictures/take.py``.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

_NAMES = ("chromium", "chromium-browser", "google-chrome")

# How many seconds it may take to answer.
_PATIENCE = 60.0

_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    # What it would do on its own account.
    "--disable-background-networking",
    "--disable-breakpad",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-extensions",
    "--disable-sync",
    "--no-first-run",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
    "about:blank",
)


class PageError(Exception):
    """The page, or the browser, has failed."""


def command() -> str | None:
    """Return the path of a Chromium; ``None`` if there is none."""
    return next(filter(None, map(shutil.which, _NAMES)), None)


@contextlib.contextmanager
def chromium() -> Iterator[Chromium]:
    """Run a browser."""
    path = command()
    if path is None:
        raise PageError("there is no chromium")
    their_in, our_out = os.pipe()
    our_in, their_out = os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        line = shlex.join([path, *_FLAGS, f"--user-data-dir={profile}"])
        process = subprocess.Popen(
            # It reads from its descriptor 3, and writes to 4.
            ["/bin/bash", "-c", f"exec 3<&{their_in} 4>&{their_out}; exec {line}"],
            pass_fds=(their_in, their_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(their_in)
        os.close(their_out)
        browser = Chromium(our_in, our_out)
        try:
            # Once it answers, it is no shell any more.
            browser.do("Browser.getVersion")
            yield browser
        finally:
            # Which ends its own processes, too; if it does not answer, they are ended as a group.
            with contextlib.suppress(PageError, OSError):
                browser.do("Browser.close")
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_PATIENCE)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            os.close(our_in)
            os.close(our_out)


class Chromium:
    """A browser; see :func:`chromium`."""

    def __init__(self, our_in: int, our_out: int) -> None:
        self._in = our_in
        self._out = our_out
        self._rest = b""
        self._last = 0
        self._events: list[dict[str, Any]] = []

    def open(self, path: Path, **options: Any) -> Page:
        """Show a file; see :class:`Page`."""
        return Page(self, path, **options)

    def do(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """Have the browser do something, and return its answer."""
        self._last += 1
        message: dict[str, Any] = {"id": self._last, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._out, data) :]
        answer = self._until(lambda one: one.get("id") == self._last)
        if "error" in answer:
            raise PageError(f"{method}: {answer['error']}")
        return answer["result"]

    def event(self, session: str, method: str) -> dict[str, Any]:
        """Wait for something to happen, if it has not, and return what is known of it."""
        return self._until(lambda one: _is_event(one, session, method))["params"]

    def events(self, session: str) -> list[dict[str, Any]]:
        """Return what has happened."""
        return [one for one in self._events if one.get("sessionId") == session]

    def _until(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        for known in self._events:
            if wanted(known):
                return known
        end = time.monotonic() + _PATIENCE
        while True:
            while b"\0" in self._rest:
                line, self._rest = self._rest.split(b"\0", 1)
                message = json.loads(line)
                if "method" in message:
                    self._events.append(message)
                if wanted(message):
                    return message
            if not select.select([self._in], [], [], max(end - time.monotonic(), 0))[0]:
                raise PageError("chromium does not answer")
            piece = os.read(self._in, 1 << 20)
            if not piece:
                raise PageError("chromium has ended")
            self._rest += piece


def _is_event(message: dict[str, Any], session: str, method: str) -> bool:
    return message.get("sessionId") == session and message.get("method") == method


class Page:
    """A file that is shown.

    Args:
        browser: shows it.
        path: of the file.
        width: of the window, in pixels.
        height: of the window.
        scale: pixels of the screen to one of these.
        dark: whether the user prefers dark colours.
        media: ``"screen"`` or ``"print"``.
        grey: whether it is shown without colours.
        script: whether scripts are run.
    """

    def __init__(
        self,
        browser: Chromium,
        path: Path,
        *,
        width: int = 1100,
        height: int = 900,
        scale: float = 1,
        dark: bool = False,
        media: str = "screen",
        grey: bool = False,
        script: bool = True,
    ) -> None:
        self._browser = browser
        self.url = path.resolve().as_uri()
        target = browser.do("Target.createTarget", url="about:blank")["targetId"]
        attached = browser.do("Target.attachToTarget", targetId=target, flatten=True)
        self._target = target
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.do(f"{domain}.enable")
        self.do(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=False,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.do("Emulation.setEmulatedMedia", media=media, features=[scheme])
        self.do("Emulation.setScriptExecutionDisabled", value=not script)
        if grey:
            self.do("Emulation.setEmulatedVisionDeficiency", type="achromatopsia")
        self.do("Page.navigate", url=self.url)
        browser.event(self._session, "Page.loadEventFired")

    def __enter__(self) -> Page:
        return self

    def __exit__(self, *error: object) -> None:
        self._browser.do("Target.closeTarget", targetId=self._target)

    def do(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Have the browser do something with the page, and return its answer."""
        return self._browser.do(method, self._session, **parameters)

    def run(self, script: str) -> Any:
        """Run an expression in JavaScript, and return its value, or what it promises."""
        facts = {"expression": script, "returnByValue": True, "awaitPromise": True}
        answer = self.do("Runtime.evaluate", **facts)
        if "exceptionDetails" in answer:
            raise PageError(json.dumps(answer["exceptionDetails"]))
        return answer["result"].get("value")

    def press(self, key: str) -> None:
        """Press a key, and let go of it."""
        code = {"Enter": 13, "Tab": 9, " ": 32, "Escape": 27, "Home": 36, "End": 35}
        arrows = {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}
        facts: dict[str, Any] = {
            "key": key,
            "code": "Space" if key == " " else key,
            "windowsVirtualKeyCode": {**code, **arrows}[key],
        }
        text = {"Enter": "\r", " ": " "}.get(key)
        self.do(
            "Input.dispatchKeyEvent", type="keyDown", **facts, **({"text": text} if text else {})
        )
        self.do("Input.dispatchKeyEvent", type="keyUp", **facts)

    def box(self, selector: str) -> dict[str, float]:
        """Return where an element is in the window, scrolled to."""
        return self.run(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            "e.scrollIntoView({block: 'center'}); const b = e.getBoundingClientRect();"
            "return {x: b.x, y: b.y, width: b.width, height: b.height} })()"
        )

    def point(self, x: float, y: float) -> None:
        """Move the mouse to a place in the window."""
        self.do("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def click(self, selector: str) -> None:
        """Click on the middle of an element."""
        box = self.box(selector)
        place = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
        for kind in ("mousePressed", "mouseReleased"):
            self.do("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **place)

    def picture(self, path: Path, selector: str | None = None, margin: int = 0) -> None:
        """Write what is seen into a file: the whole page, or one element with a margin."""
        facts: dict[str, Any] = {"captureBeyondViewport": True}
        if selector is not None:
            clip = self.run(
                f"(() => {{ const m = {margin};"
                f"const b = document.querySelector({json.dumps(selector)}).getBoundingClientRect();"
                "return {x: b.x + scrollX - m, y: b.y + scrollY - m, width: b.width + 2 * m,"
                "height: b.height + 2 * m, scale: 1} })()"
            )
            facts["clip"] = clip
        else:
            size = self.do("Page.getLayoutMetrics")["cssContentSize"]
            facts["clip"] = {
                "x": 0,
                "y": 0,
                **{k: size[k] for k in ("width", "height")},
                "scale": 1,
            }
        data = self.do("Page.captureScreenshot", format="png", **facts)["data"]
        path.write_bytes(base64.b64decode(data))

    def printed(self) -> bytes:
        """Return the page as PDF, as it would be printed."""
        answer = self.do("Page.printToPDF", printBackground=False, preferCSSPageSize=True)
        return base64.b64decode(answer["data"])

    def requested(self) -> list[str]:
        """Return the URLs that the page has asked for."""
        return [
            one["params"]["request"]["url"] for one in self._happened("Network.requestWillBeSent")
        ]

    def complaints(self) -> list[str]:
        """Return what is in the console: errors, warnings, and all else."""
        logged = [one["params"]["entry"]["text"] for one in self._happened("Log.entryAdded")]
        thrown = [
            json.dumps(one["params"]["exceptionDetails"])
            for one in self._happened("Runtime.exceptionThrown")
        ]
        said = [
            json.dumps(one["params"]["args"]) for one in self._happened("Runtime.consoleAPICalled")
        ]
        return logged + thrown + said

    def _happened(self, method: str) -> list[dict[str, Any]]:
        self.run("1")  # what came before the answer has been read
        return [one for one in self._browser.events(self._session) if one["method"] == method]
