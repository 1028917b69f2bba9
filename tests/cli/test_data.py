"""`gistkit data build` says what it read, wrote and missed."""

import json
from pathlib import Path

from tests.cli.console import Run

ROW = {"instruction": "Sing.", "input": "", "output": "la"}
HUMAN = {"instruction": "Hum.", "instances": [{"input": "", "output": "mm"}]}


def test_builds_and_reports(run: Run, tmp_path: Path) -> None:
    sources, out = tmp_path / "sources", tmp_path / "out"
    sources.mkdir()
    (sources / "alpaca_data.json").write_text(json.dumps([ROW]))
    (sources / "user_oriented_instructions.jsonl").write_text(json.dumps(HUMAN))
    command = ("data", "build", "--sources", sources, "--out", out)
    assert "is not the published" in run(*command).error
    ended = run(*command, "--no-verify", "--json")
    report = json.loads(ended.out)
    assert ended.status == 0
    assert report["files"]["alpaca_plus_validation_human.json"]["rows"] == 1
    text = run(*command, "--no-verify").out
    assert "alpaca_plus_validation_human.json: 1 rows, NOT as published" in text
    assert "missing: all_instances_82K.jsonl is not in" in text
