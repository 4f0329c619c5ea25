"""First paint of the console's screens in Debian's Chromium: from the click to the first thing that can be read.

What Chromium itself tells (First Contentful Paint): the request, the page, its style and the layout. The browser has
been here before, as an operator's has, but for the first of all.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from playwright.sync_api import BrowserContext, Page, sync_playwright

from umbel_server.api import cookies

CHROMIUM = "/usr/bin/chromium"
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-sync",
    "--no-first-run",
)
PAINT = """() => new Promise((told) => {
  const look = () => {
    const paint = performance.getEntriesByName("first-contentful-paint")[0];
    if (paint) told(paint.startTime); else setTimeout(look, 5);
  };
  look();
})"""


def painted_ms(
    url: str, secret: str, paths: Mapping[str, str], *, loads: int
) -> tuple[float, dict[str, float]]:
    """Return when the first screen is painted for a browser that was never here, and when each is, milliseconds.

    Args:
        url: The console's.
        secret: What the cookie of somebody who has signed in holds.
        paths: The screens, by what they are called.
        loads: How often each is opened: the median counts.
    """
    with _browser(url, secret) as context:
        page = context.new_page()
        first = _painted(page, next(iter(paths.values())))
        return first, {
            what: statistics.median(_painted(page, path) for _ in range(loads))
            for what, path in paths.items()
        }


def _painted(page: Page, path: str) -> float:
    page.goto(path)
    return float(page.evaluate(PAINT))


@contextmanager
def _browser(url: str, secret: str) -> Iterator[BrowserContext]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS), headless=True)
        try:
            # The fleet's own authority vouches for it, which no browser knows.
            context = browser.new_context(
                base_url=url, ignore_https_errors=True, viewport={"width": 1440, "height": 900}
            )
            context.add_cookies(
                [{"name": cookies.SESSION, "value": secret, "url": url, "secure": True, "httpOnly": True}]
            )
            yield context
        finally:
            browser.close()
