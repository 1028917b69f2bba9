"""The table of published outputs: made of what is there, and honest about what is not."""

import csv
import gzip
from pathlib import Path

import pytest

pytest.importorskip("rouge_score")

from experiments import rouge_reproduced


def released(folder: Path) -> Path:
    """Two models' outputs, of one row each, and a third that was not released."""
    with gzip.open(_outputs(folder, "M-gist-1"), "wt", newline="") as file:
        csv.writer(file).writerows([("x", "y_pred", "y_true"), ("I <GIST> In", "a b", "a c")])
    with gzip.open(_outputs(folder, "M-pos_control-1"), "wt", newline="") as file:
        csv.writer(file).writerows([("x", "y_pred", "y_true"), ("I <GIST> In", "a c", "a c")])
    table = "model,condition,num_gist_tokens,steps,value,split\n"
    rows = (f"M,{case},7,{value},seen\n" for case, value in CASES.items())
    (folder / "rouge.csv").write_text(table + "".join(rows))
    return folder


CASES = {"pos_control,1": 99.5, "gist,1": 50.1, "gist,5": 60.0}


def _outputs(folder: Path, name: str) -> Path:
    path = folder / "model_outputs" / name / "outputs-7-validation_seen.csv.gz"
    path.parent.mkdir(parents=True)
    return path


def test_rows_and_differences(tmp_path: Path) -> None:
    rows, paired = rouge_reproduced.measure(released(tmp_path))
    assert [row.get("rougeL") for row in rows] == [100, 50, None]
    assert [row.get("difference") for row in rows] == [0.5, pytest.approx(-0.1), None]
    assert rows[1]["library"]["rouge1"] == 50
    assert paired[0]["rougeL"] == {"difference": -50, "interval": [-50, -50]}
    head = {"command": "c", "date": "d", "versions": {"v": "1"}, "seed": 0}
    text = rouge_reproduced.to_markdown({**head, "rows": rows, "paired": paired})
    assert "Of 3 rows of the published table 2 have their outputs here; not M-gist-5." in text
    assert "+0.500 (M-pos_control-1, seen); at most 0.05 apart: 0 of 2" in text
    assert "| M-gist-1 | seen | -50.00 [-50.00, -50.00] |" in text
