"""The playground without a mouse, without eyes, in the dark, on a narrow screen."""

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from tests.serving.http_running import Running
from tests.serving.page.page_steps import Visit, ask, compress

pytestmark = [pytest.mark.slow, pytest.mark.browser]

WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 320, "height": 640}


def fill(page: Page, server: Running) -> None:
    """Have something in every part of the page."""
    page.get_by_label("Inputs like those to come").fill("Hello\nGood day")
    compress(page, "Be kind, and answer every letter in full sentences without a name.")
    expect(page.locator("#fidelity")).to_contain_text("Fidelity 0.99")
    ask(page, "Hello there, how are you today")
    expect(page.locator("#talk-full .answered")).to_contain_text("how are you today")
    ask(page, "one BREAK")
    expect(page.locator("#talk-full .failed")).to_have_count(1)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
def test_axe_finds_nothing(
    server: Running, visit: Visit, scheme: str, size: dict[str, int]
) -> None:
    page = visit(server, color_scheme=scheme, viewport=size)
    before = Axe().run(page)
    assert before.violations_count == 0, before.generate_report()
    fill(page, server)
    filled = Axe().run(page)
    assert filled.violations_count == 0, filled.generate_report()
    unsure = {
        node["target"][0]
        for one in filled.response["incomplete"]
        if one["id"] == "color-contrast"
        for node in one["nodes"]
    }
    # what a conversation has scrolled out of sight it cannot judge
    assert {target for target in unsure if not target.startswith("#talk-")} == set()
    page.get_by_label("Instruction", exact=True).fill("BUSY")
    page.get_by_role("button", name="Compress").click()
    expect(page.get_by_role("alert")).to_have_text("too many instructions wait")
    failed = Axe().run(page)
    assert failed.violations_count == 0, failed.generate_report()


@pytest.mark.parametrize(("scheme", "paper"), [("light", 255), ("dark", 23)])
def test_light_and_dark_follow_the_system(
    server: Running, visit: Visit, scheme: str, paper: int
) -> None:
    page = visit(server, color_scheme=scheme)
    found = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert found.startswith(f"rgb({paper}, {paper}, ")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_step_can_be_done_by_keyboard(server: Running, visit: Visit, scheme: str) -> None:
    page = visit(server, color_scheme=scheme)
    keys = page.keyboard
    keys.press("Tab")
    expect(page.get_by_text("Skip to the instruction")).to_be_focused()
    expect(page.get_by_text("Skip to the instruction")).to_be_in_viewport()
    keys.press("Enter")
    expect(page.get_by_label("Instruction", exact=True)).to_be_focused()
    keys.type("Be kind.")
    keys.press("Control+Enter")
    expect(page.locator("#gist")).to_contain_text(" tokens became ")
    expect(page.get_by_label("Instruction", exact=True)).to_be_focused()

    seen = []
    while "Delete" not in (seen or [""])[-1]:
        keys.press("Tab")
        here = page.evaluate(
            """() => {
                const at = document.activeElement, style = getComputedStyle(at);
                const text = at.labels?.[0]?.textContent ?? at.textContent.trim().slice(0, 40);
                return [at.getAttribute("aria-label") ?? text, style.outlineStyle,
                        parseFloat(style.outlineWidth), at.matches(":focus-visible")];
            }"""
        )
        name, outline, width, visible = here
        assert visible and outline == "solid" and width >= 2, here
        seen.append(name)
        assert len(seen) < 30, seen
        if name == "Input":
            keys.type("Hello")
        if name == "Ask":
            keys.press("Enter")
            expect(page.locator("#talk-gist .answered")).to_have_text("gist: Hello")
            expect(page.get_by_label("Input", exact=True)).to_be_focused()
            for _ in range(seen.index("Ask") - seen.index("Input")):
                keys.press("Tab")
    order = [
        *("Inputs like those to come, one a line", "Gist tokens", "Compress", "Measure fidelity"),
        *("Input", "At most, in tokens", "one after the other", "Ask", "New conversation"),
        *("Conversation from the gist", "Conversation from the full prompt"),
    ]
    assert [name for name in seen if name in order] == order
    page.once("dialog", lambda dialog: dialog.accept())
    keys.press("Enter")
    expect(page.get_by_text("None yet.")).to_be_visible()


def test_what_is_busy_keeps_the_focus_and_is_not_done_twice(server: Running, visit: Visit) -> None:
    page = visit(server)
    compress(page, "Be kind.")
    page.get_by_label("Input", exact=True).fill("SLOW walk home")
    button = page.get_by_role("button", name="Ask")
    button.focus()
    page.keyboard.press("Enter")
    expect(button).to_have_attribute("aria-disabled", "true")
    expect(button).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#talk-gist .answered")).to_have_text("gist: SLOW walk home")
    expect(page.locator("#talk-gist .asked")).to_have_count(1)


def test_regions_have_names_and_roles(server: Running, visit: Visit) -> None:
    page = visit(server)
    fill(page, server)
    for name in ("1. Compress an instruction", "2. Ask both"):
        expect(page.get_by_role("region", name=name)).to_be_visible()
    expect(page.get_by_role("log", name="Conversation from the gist")).to_be_visible()
    expect(page.get_by_role("article", name="From the full prompt")).to_be_visible()
    expect(page.get_by_role("columnheader", name="Fidelity")).to_be_visible()
    expect(page.get_by_role("main")).to_be_visible()
    assert page.locator("html").get_attribute("lang") == "en"
    live = page.locator("[role=status], [role=alert], [role=log]")
    assert live.count() == 6  # gist, fidelity, two conversations, what was done, what failed


@pytest.mark.parametrize("width", [320, 768])
def test_nothing_is_cut_off_on_a_narrow_screen(server: Running, visit: Visit, width: int) -> None:
    page = visit(server, viewport={"width": width, "height": 640})
    fill(page, server)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for button in page.get_by_role("button").all():
        box = button.bounding_box()
        assert box is not None
        assert box["height"] >= 24 and box["width"] >= 24  # WCAG 2.2, target size
        assert box["x"] + box["width"] <= width
