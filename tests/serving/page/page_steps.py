"""What a user does on the page, and reads there."""

from collections.abc import Callable

from playwright.sync_api import Page, expect

Visit = Callable[..., Page]


def compress(page: Page, instruction: str, k: str | None = None) -> None:
    page.get_by_label("Instruction", exact=True).fill(instruction)
    if k is not None:
        page.get_by_label("Gist tokens").select_option(k)
    page.get_by_role("button", name="Compress").click()
    expect(page.locator("#gist")).to_contain_text(" tokens became ")


def ask(page: Page, text: str) -> None:
    page.get_by_label("Input", exact=True).fill(text)
    button = page.get_by_role("button", name="Ask")
    expect(button).not_to_have_attribute("aria-disabled", "true")  # the last answer has ended
    button.click()


def facts(page: Page, side: str) -> dict[str, str]:
    rows = page.locator(f"#facts-{side} > div")
    expect(rows).to_have_count(4)
    return {row.locator("dt").inner_text(): row.locator("dd").inner_text() for row in rows.all()}


def kilobytes(text: str) -> float:
    number, unit = text.split(" ")
    return float(number) * {"B": 0.001, "kB": 1, "MB": 1000}[unit]
