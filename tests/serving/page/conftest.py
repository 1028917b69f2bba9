"""Chromium without a window, and a tab on a server's page that must stay free of errors."""

import shutil
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, sync_playwright

from tests.serving.http_running import Running
from tests.serving.page.page_steps import Visit

SWITCHES = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
STARTED = """() => document.querySelector("#login:not([hidden])")
    || document.getElementById("model").textContent !== "…" """
WAIT = 20_000  # milliseconds, on a machine that is busy


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = shutil.which("chromium")
    assert path is not None, "no Chromium here; `make test-page` installs Debian's"
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=path, args=list(SWITCHES))
        yield found
        found.close()


@pytest.fixture
def visit(browser: Browser) -> Iterator[Visit]:
    """`visit(server, ...)` opens its page in a tab of its own; options as `Browser.new_context`.

    Scripts must not fail, and nothing may be asked of any other host.
    """
    troubles: list[str] = []
    contexts = []

    def open_page(server: Running, **options: object) -> Page:
        own = urlsplit(server.url).netloc

        def asked(request: Request) -> None:
            place = urlsplit(request.url)
            if place.scheme not in ("blob", "data") and place.netloc != own:
                troubles.append(f"asked {request.url}")

        def said(message: ConsoleMessage) -> None:
            # a status of 400 or more is told there as well; the page tells it to its user
            if message.type == "error" and "Failed to load resource" not in message.text:
                troubles.append(message.text)

        context = browser.new_context(**options)  # type: ignore[arg-type]
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(WAIT)
        page.on("request", asked)
        page.on("console", said)
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.goto(server.url)
        page.wait_for_function(STARTED)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert troubles == []
