"""docs/cli.md says what the commands' help says."""

from pathlib import Path

from gisting.cli.docs import page


def test_the_page_is_what_the_commands_say(root: Path) -> None:
    written = (root / "docs" / "cli.md").read_text()
    assert written == page(), "out of date; run python -m gisting.cli.docs"
