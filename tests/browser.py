"""A headless Chromium for tests: the DevTools protocol over a pipe, so that no driver, package or port is needed.

`found()` is the browser of this machine, or None. What a page asks of the network and says on the console is kept in
`Browser.requests` and `Browser.complaints`.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
SWITCHES = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage", "--hide-scrollbars",
    "--disable-extensions", "--mute-audio", "--remote-debugging-pipe", "--force-color-profile=srgb",
)  # fmt: skip
PATIENCE = 60.0
"""Seconds that an answer may take; the machine may be busy."""


def found() -> str | None:
    """The browser of this machine: $MMARD_BROWSER, or the first of the usual names."""
    named = os.environ.get("MMARD_BROWSER")
    return next((path for name in ((named,) if named else NAMES) if name and (path := shutil.which(name))), None)


class Browser:
    """One page of a browser that is this test's own, with a profile of its own."""

    def __init__(self, profile: Path) -> None:
        path = found()
        assert path is not None
        commands, self._commands = os.pipe()
        self._answers, answers = os.pipe()
        # The browser reads its commands from descriptor 3 and answers on 4.
        shell = f'exec 3<&{commands} 4>&{answers}; exec "$@"'
        call = ["sh", "-c", shell, "sh", path, *SWITCHES, f"--user-data-dir={profile}", "about:blank"]
        self._log = (profile.parent / "browser.log").open("wb")
        if commands > 9 or answers > 9:  # a plain shell knows descriptors of one digit only
            call[0] = "bash"
        self._process = subprocess.Popen(call, pass_fds=(commands, answers), stdout=self._log, stderr=self._log)
        os.close(commands)
        os.close(answers)
        self._held = b""
        self._number = 0
        self.events: list[dict[str, Any]] = []
        self._session = ""
        targets = self("Target.getTargets")["targetInfos"]
        target = next(each["targetId"] for each in targets if each["type"] == "page")
        self._session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._session = ""
            self("Browser.close")
            self._process.wait(20)
        except Exception:
            self._process.kill()
            self._process.wait(20)
        finally:
            os.close(self._commands)
            os.close(self._answers)
            self._log.close()

    def __call__(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and wait for its answer; events that come before it are kept."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        until = time.monotonic() + PATIENCE
        while True:
            got = self._next(until)
            if got.get("id") == self._number:
                assert "error" not in got, f"{method}: {got['error']}"
                result: dict[str, Any] = got["result"]
                return result
            self.events.append(got)

    def _next(self, until: float) -> dict[str, Any]:
        while b"\0" not in self._held:
            ready, _, _ = select.select([self._answers], [], [], max(0.0, until - time.monotonic()))
            assert ready, "the browser does not answer"
            more = os.read(self._answers, 1 << 20)
            assert more, "the browser is gone"
            self._held += more
        one, _, self._held = self._held.partition(b"\0")
        got: dict[str, Any] = json.loads(one)
        return got

    def wait_for(self, method: str) -> None:
        """Wait for an event."""
        until = time.monotonic() + PATIENCE
        while not any(event.get("method") == method for event in self.events):
            self.events.append(self._next(until))

    def open(self, file: Path) -> None:
        """Load a file and wait until it is whole."""
        self.events.clear()
        self("Page.navigate", url=file.resolve().as_uri())
        self.wait_for("Page.loadEventFired")
        self.value("document.fonts.ready.then(() => true)")

    def value(self, expression: str) -> Any:
        """What a JavaScript expression gives on the page."""
        done = self("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def view(self, width: int, height: int, *, phone: bool = False, dark: bool = False, paper: bool = False) -> None:
        """Set the size of the screen, the colours that its user prefers, and the medium."""
        self("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=2 if phone else 1,
             mobile=phone)  # fmt: skip
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self("Emulation.setEmulatedMedia", media="print" if paper else "screen", features=scheme)

    def key(self, key: str, code: str, number: int) -> None:
        """Press and let go of a key."""
        for kind in ("rawKeyDown", "keyUp"):
            self("Input.dispatchKeyEvent", type=kind, key=key, code=code, windowsVirtualKeyCode=number)

    def picture(self, file: Path, *, whole: bool = False, clip: dict[str, float] | None = None) -> None:
        """Write what is seen, or the whole page, as PNG."""
        more: dict[str, Any] = {"clip": {**clip, "scale": 1}} if clip else {}
        shot = self("Page.captureScreenshot", format="png", captureBeyondViewport=whole or clip is not None, **more)
        file.write_bytes(base64.b64decode(shot["data"]))

    def paper(self, file: Path) -> None:
        """Print the page as PDF."""
        self("Emulation.setEmulatedMedia", media="")
        printed = self(
            "Page.printToPDF", printBackground=True, preferCSSPageSize=True, paperWidth=8.27, paperHeight=11.69
        )
        file.write_bytes(base64.b64decode(printed["data"]))

    @property
    def requests(self) -> list[str]:
        """Addresses that were asked for since the page was opened, itself and data in it left out."""
        asked = [e["params"]["request"]["url"] for e in self.events if e.get("method") == "Network.requestWillBeSent"]
        own = self.value("location.href.split('#')[0]")
        return [url for url in asked if url.split("#")[0] != own and not url.startswith("data:")]

    @property
    def complaints(self) -> list[str]:
        """What the console and the browser had to say, and errors that no script caught."""
        kinds = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
        return [json.dumps(e["params"])[:2000] for e in self.events if e.get("method") in kinds]
