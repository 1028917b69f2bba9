"""GistModel.stream: generate, piece by piece; and many threads at once."""

import threading
from typing import Any

import pytest

from gistkit import GistModel
from gistkit.errors import (
    GistMismatchError,
    OptionError,
    PromptError,
)
from gistkit.testing import tiny_gist_model
from tests.model.asked import INPUTS, INSTRUCTIONS, brief


def pieces(model: GistModel, *args: Any, **options: Any) -> list[str]:
    return list(model.stream(*args, max_new_tokens=40, **options))


def test_a_stream_is_generate_piece_by_piece(model: GistModel) -> None:
    gist = model.compress("Greet.")
    for x in (*INPUTS, "something else"):
        got = pieces(model, x, gist)
        assert len(got) > 1
        assert "".join(got) == model.generate(x, gist, max_new_tokens=40)[0]
    whole = model.generate("x", instructions="Greet.", max_new_tokens=40)[0]
    assert "".join(pieces(model, "x", instructions="Greet.")) == whole
    assert "".join(pieces(model, "x")) == model.generate("x", max_new_tokens=40)[0]


def test_a_stream_stops_at_stop_strings(model: GistModel) -> None:
    (whole,) = model.generate("x y", max_new_tokens=40)
    for stop in (whole[6:9], whole[:2], whole[10], whole[-3:]):
        cut = model.generate("x y", max_new_tokens=40, stop_strings=stop)[0]
        assert "".join(pieces(model, "x y", stop_strings=stop)) == cut


def test_a_stream_of_samples(model: GistModel) -> None:
    options: dict[str, Any] = {"do_sample": True, "seed": 4, "temperature": 2.0}
    whole = model.generate("x", max_new_tokens=40, **options)[0]
    assert "".join(pieces(model, "x", **options)) == whole


def test_pieces_come_as_they_are_made(llama: GistModel) -> None:
    stream = llama.stream("x y", max_new_tokens=400)
    first = next(stream)
    assert 0 < len(first) < 40
    stream.close()


def test_leaving_a_stream_ends_its_work(llama: GistModel) -> None:
    before = threading.active_count()
    stream = llama.stream("x y", max_new_tokens=400)
    next(stream)
    stream.close()
    assert threading.active_count() == before


def test_a_streams_errors_reach_the_caller(llama: GistModel) -> None:
    gist = llama.compress("Greet.")
    with pytest.raises(PromptError, match="the input contains <GIST>"):
        next(llama.stream("a <GIST>", gist))
    with pytest.raises(GistMismatchError):
        next(tiny_gist_model(seed=1).stream("x", gist))
    for options in ({"num_beams": 2}, {"num_return_sequences": 2, "do_sample": True}):
        with pytest.raises(OptionError, match="stream"):
            next(llama.stream("x", **options))


def test_threads_do_not_disturb_each_other(model: GistModel) -> None:
    """T5 reads gists through hooks on a shared encoder; others may use it meanwhile."""
    gist = model.compress(INSTRUCTIONS[0])
    jobs: list[tuple[str, dict[str, Any]]] = [
        ("Capital of France?", {"gist": gist}),
        ("Capital of France?", {}),
        ("hm", {"instructions": "Translate."}),
    ]
    expected = [brief(model, x, **options) for x, options in jobs]
    made: list[list[list[str]]] = [[] for _ in jobs]

    def work(number: int) -> None:
        x, options = jobs[number]
        for _ in range(8):
            made[number].append(brief(model, x, **options))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [[answer] * 8 for answer in expected]
