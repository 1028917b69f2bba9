"""Numbers, names and negations of an instruction."""

import pytest

from gistkit.fidelity import details


def test_numbers_in_digits_and_words() -> None:
    text = "Pay 1,250.50 by 12:30, nine times, never one more; Nine."
    assert details.numbers(text) == ("1,250.50", "12:30", "Nine", "one")


def test_names_are_capitals_that_begin_no_sentence() -> None:
    text = 'You are Nora. Always mention Paris: Say "Hello" to NASA.\nThen rest, O\'Brien.'
    assert details.names(text) == ("Nora", "Paris", "Hello", "NASA", "O'Brien")


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        ("Do not name the city, and don't greet.", "Do name the city, and do greet."),
        ("You cannot sell. Never ask.", "You can sell. ask."),
        ("Note the notice.", None),
        ("Not", None),
    ],
)
def test_negations_cut_out(text: str, cut: str | None) -> None:
    assert details.without_negations(text) == cut


def test_spans_are_whole_words_in_any_case() -> None:
    assert details.spans(["nine", "Nora"], "NINE nines, Nora") == [(0, 4), (12, 16)]
    assert details.spans([], "nine") == []
