"""Draw the console as the docs show it: the fleet that is made up for ``umbel demo --keep``, in Chromium, over TLS.

Usage: python tests/pictures.py [docs/images]
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

from browser.conftest import CHROMIUM, FLAGS
from lived_in import lived_in
from service_fleet import ManualClock
from umbel_server.api import cookies
from umbel_server.console.server import ConsoleServer
from umbel_server.demo.past.people import VISITOR, invite_visitor

PICTURES = {
    "console-drift": "/drift?model=parcels",
    "console-fairness": "/fairness?model=parcels&label=0",
}
PENDING = '[hx-trigger="load delay:1s"][hx-target="#screen"]'
"""What a page has whose figures follow in a moment."""
WIDTH, HEIGHT, LIMIT_MS = 1280, 900, 60_000.0


def draw(browser: Browser, url: str, session: str, into: Path) -> None:
    """Open each screen, wait until its figures are there and still, and keep what a window of it shows."""
    context = browser.new_context(
        base_url=url,
        ignore_https_errors=True,  # The fleet's own authority vouches for it.
        viewport={"width": WIDTH, "height": HEIGHT},
        color_scheme="light",
        reduced_motion="reduce",
    )
    context.set_default_timeout(LIMIT_MS)
    context.add_cookies(
        [{"name": cookies.SESSION, "value": session, "url": url, "secure": True, "sameSite": "Strict"}]
    )
    page = context.new_page()
    for name, path in PICTURES.items():
        page.goto(path)
        page.locator(PENDING).wait_for(state="detached")
        page.wait_for_load_state("networkidle")
        page.wait_for_timeout(500)  # A chart draws in the frame after its figures.
        page.screenshot(path=into / f"{name}.png")
        print(into / f"{name}.png")
    context.close()


def main(into: Path) -> None:
    into.mkdir(parents=True, exist_ok=True)
    now_s = time.time()
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        fleet, _ = lived_in(Path(folder) / "fleet", now_s=now_s)
        with (
            fleet.open_store(clock=ManualClock(now_s)) as store,
            ConsoleServer(fleet, store, port=0) as server,
            playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS)) as browser,
        ):
            invite_visitor(store)
            account = store.accounts.get(VISITOR)
            assert account is not None
            draw(browser, f"https://{server.address}", store.sessions.open(account), into)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/images"))
