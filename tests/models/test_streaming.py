"""Pieces of a stream, joined, are the whole answer; nothing that may still change is shown."""

import random

import pytest

from gistkit.models.streaming import cut_at, pieces


def decode(ids: list[int]) -> str:
    return bytes(ids).decode(errors="replace")


def streamed(text: str, *stops: str) -> list[str]:
    return list(pieces(text.encode(), decode, stops))


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("ab", [], ["a", "b"]),
        ("", [], []),
        ("  ", [], []),
        (" a  b ", [], ["a", "  b"]),  # white space waits for what follows
        ("é🙂!", [], ["é", "🙂", "!"]),  # letters of several bytes come whole
        ("ab<end>cd", ["<end>"], ["a", "b"]),
        ("ab<en>c", ["<end>"], ["a", "b", "<en>", "c"]),
        ("ab<en", ["<end>"], ["a", "b", "<en"]),  # it did not become a stop string
        ("xaab", ["aa"], ["x"]),
        ("aab", ["ab"], ["a"]),
        ("ab", ["b", "ab"], []),
        ("a\n\nb", ["\n\n"], ["a"]),
        ("\n\nb", ["\n\n"], []),
        ("ab", ["c"], ["a", "b"]),
    ],
)
def test_pieces(text: str, stops: list[str], expected: list[str]) -> None:
    assert streamed(text, *stops) == expected
    assert "".join(expected) == cut_at(text, stops)


def test_random_texts_join_to_the_answer() -> None:
    source = random.Random(0)
    for _ in range(2000):
        text = "".join(source.choices("ab \né", k=source.randint(0, 12)))
        stops = ["".join(source.choices("ab ", k=source.randint(1, 3))) for _ in range(2)]
        assert "".join(streamed(text, *stops)) == cut_at(text, stops), (text, stops)


def test_broken_bytes_at_the_end_are_shown_as_decoded() -> None:
    assert "".join(pieces(b"a\xf0\x9f", decode, [])) == decode(list(b"a\xf0\x9f"))
