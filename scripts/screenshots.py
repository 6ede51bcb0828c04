"""Look at the site in Chromium: `screenshots.py [--to FOLDER] SITE [PAGE...]`.

Each page is opened at four widths, from a telephone's to a desk's. Where it can be scrolled sideways, or something of it
lies beyond the edge of the window where no block scrolls, that is said, and the exit code is 1. With `--to`, a picture
of each is written there, light and dark. PAGE is a name in the site, such as howto/retry.html; all of them, if none is.

Chromium is spoken to through a pipe (`--remote-debugging-pipe`: JSON texts, each ended by a zero byte), so that no port
is opened and nothing but Python is needed.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

WIDTHS = (390, 768, 1024, 1400)
SCHEMES = ("light", "dark")
TALLEST = 12_000
"""Pixels of a page that a picture shows at most."""

BEYOND = """(() => {
  const wide = document.documentElement.clientWidth;
  const contained = e => {
    for (let p = e.parentElement; p; p = p.parentElement)
      if (getComputedStyle(p).overflowX !== 'visible') return true;
    return false;
  };
  const found = [];
  if (document.documentElement.scrollWidth > wide) found.push('the page is ' + document.documentElement.scrollWidth);
  for (const e of document.querySelectorAll('article *')) {
    const box = e.getBoundingClientRect();
    if (box.width && (box.right > wide + 1 || box.left < -1) && !contained(e))
      found.push(e.tagName.toLowerCase() + ' to ' + Math.round(box.right) + ': ' + e.textContent.trim().slice(0, 60));
  }
  for (const text of document.querySelectorAll('.picture text')) {
    const box = text.getBoundingClientRect(), all = text.ownerSVGElement.getBoundingClientRect();
    if (box.right > all.right + 1 || box.left < all.left - 1) found.push('a picture has no room for: ' + text.textContent);
  }
  return found.slice(0, 5);
})()"""
"""What is beyond the edge of the window, or of its picture, as texts. A block that scrolls by itself may have what it
likes."""


class Browser:
    """A Chromium with one page."""

    def __init__(self, folder: str) -> None:
        to_browser, self._write = os.pipe()
        self._read, from_browser = os.pipe()
        given = (to_browser, from_browser)
        self._process = subprocess.Popen(
            # Chromium reads at 3 and writes at 4, which Popen may use itself until the shell has moved them there.
            ["sh", "-c", f'exec "$@" 3<&{given[0]} 4>&{given[1]}', "sh", *self._command(folder)],
            pass_fds=given,
            stderr=subprocess.DEVNULL,
        )
        for each in given:
            os.close(each)
        self._buffer = b""
        self._last = 0
        self._session = ""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.call("Page.enable")

    @staticmethod
    def _command(folder: str) -> list[str]:
        sandbox = ["--no-sandbox"] if os.getuid() == 0 else []  # which Chromium does not run with as root
        return [
            "chromium",
            "--headless",
            "--remote-debugging-pipe",
            "--hide-scrollbars",
            "--disable-gpu",
            "--disable-background-networking",
            f"--user-data-dir={folder}",
            *sandbox,
        ]

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Ask for something, and return the answer. Raises RuntimeError with what Chromium says against it."""
        self._last += 1
        asked = {"id": self._last, "method": method, "params": parameters}
        if self._session:
            asked["sessionId"] = self._session
        os.write(self._write, json.dumps(asked).encode() + b"\0")
        while (said := self._next()).get("id") != self._last:
            pass
        if "error" in said:
            raise RuntimeError(f"{method}: {said['error']['message']}")
        answer: dict[str, Any] = said["result"]
        return answer

    def open(self, address: str) -> None:
        """Open a page, and wait until it is all there."""
        self.call("Page.navigate", url=address)
        while self._next().get("method") != "Page.loadEventFired":
            pass

    def look(self, width: int, scheme: str = "light", height: int = 900) -> None:
        """Make the window so wide, and its owner one who prefers this scheme."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def evaluate(self, expression: str) -> Any:
        """Return the value of an expression of JavaScript in the page."""
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def picture(self, width: int) -> bytes:
        """Return what the page looks like, from its top to its end, as PNG."""
        height = min(TALLEST, int(self.evaluate("document.documentElement.scrollHeight")))
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        taken = self.call("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        return base64.b64decode(taken["data"])

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            read = os.read(self._read, 1 << 20)
            if not read:
                raise RuntimeError(f"Chromium has ended with {self._process.wait()}")
            self._buffer += read
        text, _, self._buffer = self._buffer.partition(b"\0")
        said: dict[str, Any] = json.loads(text)
        return said

    def close(self) -> None:
        """End it."""
        self._session = ""
        self.call("Browser.close")
        os.close(self._write)
        os.close(self._read)
        self._process.wait(timeout=20)


@contextmanager
def browser() -> Generator[Browser]:
    """Open a browser for as long as somebody looks."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        opened = Browser(folder)
        try:
            yield opened
        finally:
            opened.close()


def look_at(opened: Browser, site: Path, name: str, to: Path | None) -> list[str]:
    """Look at one page at all widths; return what is wrong with it, and write its pictures."""
    wrong: list[str] = []
    opened.open((site / name).as_uri())
    for width in WIDTHS:
        opened.look(width)
        wrong += [f"{name} at {width}: {found}" for found in opened.evaluate(BEYOND)]
        for scheme in SCHEMES if to else ():
            opened.look(width, scheme)
            picture = f"{name.removesuffix('.html').replace('/', '-')}-{width}-{scheme}.png"
            (to or site).joinpath(picture).write_bytes(opened.picture(width))
    return wrong


def main() -> int:
    """Look at what the command line names; return the exit code."""
    parser = argparse.ArgumentParser(description="Look at the site in Chromium.")
    parser.add_argument("site", type=Path)
    parser.add_argument("--to", type=Path, help="write pictures into this folder")
    parser.add_argument("pages", nargs="*", metavar="PAGE")
    given = parser.parse_intermixed_args()
    if given.to:
        given.to.mkdir(parents=True, exist_ok=True)
    names = given.pages or [str(page.relative_to(given.site)) for page in sorted(given.site.rglob("*.html"))]
    with browser() as opened:
        wrong = [line for name in names for line in look_at(opened, given.site.resolve(), name, given.to)]
    print(*wrong, f"{len(names)} pages at {len(WIDTHS)} widths, {len(wrong)} things beyond the edge", sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
