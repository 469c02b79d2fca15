"""A headless Chromium that a test drives by the DevTools protocol; it reaches 127.0.0.1 and nothing else."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import tempfile
import urllib.request
from contextlib import contextmanager

from websockets.sync.client import connect

CHROMIUM = shutil.which("chromium")
START_TIMEOUT_S = 90.0
ANSWER_TIMEOUT_S = 30.0
_FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions"),
    *("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--remote-debugging-port=0", "--mute-audio"),
)


class Page:
    """One tab. problems: what its console and its security policy complained about."""

    def __init__(self, socket):
        self._socket = socket
        self._number = 0
        self.problems = []
        for domain in ("Page", "Runtime", "Log"):
            self._ask(f"{domain}.enable")

    def open(self, url, *, width=1200, height=800, scale=1, mobile=False):
        """Go there and wait until it is loaded; problems of before are forgotten."""
        self.problems.clear()
        self._ask(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=mobile
        )
        self._ask("Page.navigate", url=url)
        self.until("document.readyState === 'complete'")

    def run(self, script):
        """The value of an expression, awaited."""
        answer = self._ask("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def until(self, condition):
        """Wait, in the page, until an expression is true."""
        looking = f"""new Promise((done, fail) => {{
            const end = Date.now() + {ANSWER_TIMEOUT_S * 1000};
            const look = () => ({condition}) ? done(true)
                : Date.now() > end ? fail(new Error({json.dumps("never true: " + condition)})) : setTimeout(look, 20);
            look();
        }})"""
        assert self.run(looking) is True

    def fill(self, selector, text):
        """Put text into a field, as if it was typed."""
        self.run(
            f"{{ const field = document.querySelector({json.dumps(selector)}); field.value = {json.dumps(text)};"
            f" field.dispatchEvent(new Event('input')); field.dispatchEvent(new Event('change')); }}"
        )

    def click(self, selector):
        """Press something."""
        self.run(f"document.querySelector({json.dumps(selector)}).click()")

    def text(self, selector):
        """All that is written in something."""
        return self.run(f"document.querySelector({json.dumps(selector)}).innerText")

    def prefer_dark(self, is_dark):
        """Which colours the visitor likes."""
        value = "dark" if is_dark else "light"
        self._ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": value}])

    def picture(self, path):
        """Keep what is seen as a PNG."""
        path.write_bytes(base64.b64decode(self._ask("Page.captureScreenshot", format="png")["data"]))

    def _ask(self, method, **parameters):
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv(timeout=ANSWER_TIMEOUT_S * 1.5))
            if message.get("id") == self._number:
                assert "error" not in message, message
                return message["result"]
            if message.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
                entry = message["params"].get("entry") or message["params"]["exceptionDetails"]
                if entry.get("level") != "verbose":
                    self.problems.append(entry.get("text", "") + " " + entry.get("url", ""))


@contextmanager
def browser():
    """A Page; Chromium ends with the block."""
    with tempfile.TemporaryDirectory(prefix="baleen-chromium-", ignore_cleanup_errors=True) as folder:
        command = [CHROMIUM, *_FLAGS, f"--user-data-dir={folder}", "about:blank"]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        try:
            address = _address(process)
            listing = address.replace("ws://", "http://").split("/devtools")[0] + "/json/list"
            with connect(_tab(listing), max_size=1 << 26, open_timeout=START_TIMEOUT_S, proxy=None) as socket:
                yield Page(socket)
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(20)
            process.stderr.close()


def _address(process):
    for line in process.stderr:
        if "DevTools listening on " in line:
            return line.split()[-1]
    raise AssertionError(f"Chromium ended with {process.wait(20)}")


def _tab(listing):
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(listing, timeout=START_TIMEOUT_S) as answer:
        tabs = json.loads(answer.read())
    return next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page")
