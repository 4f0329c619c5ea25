"""A real browser for the console: Debian's Chromium, driven by playwright, which downloads none of its own."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from console_seed import seed
from console_world import ConsoleWorld, console_world
from umbel_server.access.actor import Role
from umbel_server.api import cookies

ROOT = Path(__file__).resolve().parents[2]
SHOTS = ROOT / "build" / "screens"
"""Screenshots: what somebody looks at afterwards."""
CHROMIUM = "/usr/bin/chromium"
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)
WATCH = """
window.violations = [];
addEventListener("securitypolicyviolation", (e) => window.violations.push(`${e.violatedDirective} ${e.blockedURI}`));
"""


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    if shutil.which(CHROMIUM) is None:
        pytest.fail(f"There is no {CHROMIUM}: apt-get install chromium fonts-dejavu-core", pytrace=False)
    with sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS), headless=True)
        yield made
        made.close()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConsoleWorld]:
    """A fleet with a life behind it, of a test module's own: what it changes there no other sees."""
    with console_world(tmp_path_factory.mktemp("browser"), approvals=2) as made:
        seed(made)
        yield made


class Opened:
    """A page of the console, and everything that went wrong on it.

    Args:
        page: The page.
    """

    def __init__(self, page: Page) -> None:
        self.page = page
        self.troubles: list[str] = []
        page.on("pageerror", lambda exc: self.troubles.append(f"script: {exc}"))
        page.on(
            "console",
            lambda said: self.troubles.append(f"console: {said.text}") if said.type == "error" else None,
        )

    def check(self) -> None:
        """Fail if a script failed, or the page tried what its policy forbids."""
        violations = self.page.evaluate("window.violations ?? []")
        assert (self.troubles, violations) == ([], [])


Open = Callable[..., Opened]


@pytest.fixture
def visit(browser: Browser, world: ConsoleWorld) -> Iterator[Open]:
    """Open a page as somebody of a role, or of none: at a path, in a window so wide, light or dark."""
    contexts: list[BrowserContext] = []

    def opened(
        path: str = "/", *, role: Role | None = Role.ADMIN, width: int = 1440, dark: bool = False
    ) -> Opened:
        context = browser.new_context(
            base_url=world.url,
            ignore_https_errors=True,  # The fleet's own authority vouches for it, which no browser knows.
            viewport={"width": width, "height": 900},
            color_scheme="dark" if dark else "light",
            reduced_motion="reduce",
        )
        contexts.append(context)
        context.set_default_timeout(15_000)
        if role is not None:
            secret = world.store.sessions.open(world.account(role))
            context.add_cookies(
                [
                    {
                        "name": cookies.SESSION,
                        "value": secret,
                        "url": world.url,
                        "secure": True,
                        "httpOnly": True,
                        "sameSite": "Strict",
                    }
                ]
            )
        context.add_init_script(WATCH)
        made = Opened(context.new_page())
        made.page.goto(path)
        return made

    yield opened
    for context in contexts:
        context.close()
