"""The parts that every report is made of."""

from gistkit.report import error_bars, interval, or_dash, record, table, versions


def test_a_table() -> None:
    assert table(("k", "a|b"), [(1, "x|y"), (2, None)]).splitlines() == [
        "| k | a|b |", "|---|---|", "| 1 | x\\|y |", "| 2 | None |",
    ]  # fmt: skip
    assert table(("k", "a"), [], numbers=True).splitlines()[1] == "|---|---:|"


def test_numbers() -> None:
    assert interval(1.25, (1, 2.04)) == "1.2 [1.0, 2.0]"
    assert (or_dash(None), or_dash(2.0, ".2f")) == ("-", "2.00")
    assert error_bars([2.0, 1.0], [(1.0, 4.0), (1.5, 1.0)]) == [[1.0, 0.0], [2.0, 0.0]]


def test_a_record_names_what_is_installed() -> None:
    assert list(versions(("torch", "no-such-package"))) == ["python", "torch"]
    head = record("speed")
    assert (head["schema_version"], head["theme"]) == (1, "speed")
    assert head["versions"]["gistkit"]
    assert head["date"].endswith("+00:00")
