"""The generated pages of docs/ say what the commands and the configuration say."""

from pathlib import Path

import pytest

from gistkit.cli.docs import pages


@pytest.mark.parametrize("name", ["cli.md", "configuration.md"])
def test_the_page_is_up_to_date(name: str, root: Path) -> None:
    written = (root / "docs" / name).read_text(encoding="utf-8")
    assert written == pages()[name], "run python -m gistkit.cli.docs"
