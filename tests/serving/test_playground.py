"""The page's files as they are served; `page/` has it in a browser."""

import re
from pathlib import Path

import pytest

from gistkit.serving.app import PAGE
from gistkit.serving.keys import Keys, new_key
from tests.serving.fake_engine import FakeEngine
from tests.serving.http_running import Running, running

FILES = sorted(path.name for path in PAGE.iterdir())


def test_the_page_and_its_parts_are_served_under_a_strict_policy(server: Running) -> None:
    http = server.http()
    kind = {"html": "text/html", "js": "text/javascript", "css": "text/css"}
    for name in FILES:
        answer = http.get("/" if name == "index.html" else f"/page/{name}")
        assert answer.status_code == 200, name
        assert answer.content == (PAGE / name).read_bytes()
        assert answer.headers["content-type"].startswith(kind[name.rpartition(".")[2]])
        assert answer.headers["x-content-type-options"] == "nosniff"
        policy = answer.headers["content-security-policy"]
        assert "default-src 'self'" in policy
        assert "unsafe" not in policy


def test_every_part_named_is_there_and_none_is_from_elsewhere() -> None:
    for name in FILES:
        text = (PAGE / name).read_text(encoding="utf-8")
        assert not re.search(r"(https?:)?//[a-z]", text.replace("http://www.w3.org", "")), name
        for part in re.findall(r'(?:from "\./|(?:href|src)="page/)([\w.]+)"', text):
            assert part in FILES, f"{name} names {part}"


@pytest.mark.parametrize(
    "name", ["missing.js", "../run.py", "..%2Frun.py", "%2e%2e/run.py", "index.html", "a.b.js", ""]
)
def test_nothing_else_is_served(server: Running, name: str) -> None:
    assert server.http().get(f"/page/{name}").status_code in (400, 404, 422)


def test_the_page_needs_no_key(fake: FakeEngine, tmp_path: Path) -> None:
    new_key(tmp_path / "keys.json", "me", ())
    with running(fake, keys=Keys.read(tmp_path / "keys.json")) as server:
        http = server.http()
        assert http.get("/").status_code == 200
        assert http.get("/page/page.js").status_code == 200
        assert http.get("/v1/models").status_code == 401
