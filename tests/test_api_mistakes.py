"""What the API says to values of the wrong kind: the argument, the value, what to give instead."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import TextStreamer

from gistkit import Gist, GistModel
from gistkit.errors import (
    GistkitError,
    GistMismatchError,
    OptionError,
    PromptError,
    SaveError,
)
from gistkit.testing import byte_tokenizer, tiny_gist_model, tiny_model


@pytest.fixture(scope="module")
def model() -> GistModel:
    return tiny_gist_model()


@pytest.mark.parametrize("wrong", [5, None, b"text", ["text", 5], [["text"]], [None]])
def test_text_is_text(model: GistModel, wrong: Any) -> None:
    gist = model.compress("Greet.")
    calls: dict[str, Callable[[], object]] = {
        "instruction": lambda: model.compress(wrong),
        "input": lambda: model.generate(wrong, gist),
    }
    for what, call in calls.items():
        with pytest.raises(PromptError, match=rf"^{what} .* is no text; give a string or a list"):
            call()
    with pytest.raises(PromptError, match="is no text"):
        list(model.stream(wrong, gist))


def test_any_collection_of_strings_will_do(model: GistModel) -> None:
    assert len(model.compress(("Greet.", "Translate."))) == 2
    assert len(model.compress(text for text in ("Greet.", "Translate."))) == 2  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", ["a", 1.0, True, [1]])
@pytest.mark.parametrize(
    "name", ["num_gist_tokens", "max_new_tokens", "num_beams", "num_return_sequences", "top_k"]
)
def test_counts_are_whole_numbers(model: GistModel, name: str, wrong: Any) -> None:
    with pytest.raises(OptionError, match=f"^`{name}` must be a whole number, not "):
        if name == "num_gist_tokens":
            model.compress("Greet.", num_gist_tokens=wrong)
        else:
            model.generate("hm", **{name: wrong})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": "warm"}, "`temperature` must be a number, not 'warm'"),
        ({"temperature": float("inf")}, "`temperature` must be a number, not inf"),
        ({"temperature": 1e-40}, r"`temperature` must be at least 1e-06 \(greedy"),
        ({"top_p": None}, "`top_p` must be a number, not None"),
        ({"top_k": -1}, "`top_k` must be at least 0, not -1"),
        ({"seed": "a"}, "`seed` must be a whole number, not 'a'"),
        ({"seed": 1.5}, "`seed` must be a whole number, not 1.5"),
        ({"seed": 2**63}, r"`seed` must be below 2\*\*63"),
        ({"stop_strings": ""}, "stop string '' is no text, or empty"),
        ({"stop_strings": [5]}, "stop string 5 is no text, or empty"),
        ({"stop_strings": 5}, "stop string 5 is no text, or empty"),
    ],
)
def test_options_of_generate(model: GistModel, options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=f"^{message}"):
        model.generate("hm", do_sample=True, **options)


@pytest.mark.parametrize("wrong", ["gist.safetensors", "Greet.", [1]])
def test_something_else_for_a_gist(model: GistModel, wrong: Any) -> None:
    with pytest.raises(OptionError, match=r"is no gist; compress the instruction, or read a file"):
        model.generate("hm", wrong)
    with pytest.raises(GistMismatchError, match="is no gist; stack what compress returned"):
        Gist.stack([model.compress("Greet."), wrong])


def test_a_stream_is_one_answer(model: GistModel) -> None:
    streamer = TextStreamer(model.tokenizer)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="a stream is one answer, not 2; give one input"):
        model.generate(["hm", "x"], streamer=streamer)


@pytest.mark.parametrize("wrong", [torch.int8, torch.float64, None, [], "fp8"])
def test_a_precision_that_gists_do_not_have(wrong: Any) -> None:
    with pytest.raises(OptionError, match=r"unknown precision .*; choose one of float32, bfloat16"):
        GistModel.from_pretrained(dtype=wrong)


@pytest.mark.parametrize("wrong", [5, None, "abacus"])
def test_a_device_that_is_not_there(wrong: Any) -> None:
    with pytest.raises(OptionError, match="is not available here; use `device='cpu'`"):
        GistModel.from_pretrained(device=wrong)


@pytest.mark.parametrize("wrong", ["2", 1.5, None, [], [1, "2"], 0, [1, 0]])
def test_from_base_wants_numbers_of_gist_tokens(wrong: Any) -> None:
    with pytest.raises(OptionError, match="`num_gist_tokens` must be "):
        GistModel.from_base(tiny_model("llama"), byte_tokenizer(), num_gist_tokens=wrong)


def test_from_base_changes_nothing_that_it_refuses() -> None:
    plain, tokenizer = tiny_model("llama"), byte_tokenizer()
    rows, words = len(plain.get_input_embeddings().weight), len(tokenizer)
    for options in ({"template": "sonnet"}, {"template": "chat"}):
        with pytest.raises(OptionError, match="template"):
            GistModel.from_base(plain, tokenizer, **options)
    with pytest.raises(OptionError, match="needs its tokenizer"):
        GistModel.from_base(plain, "toy")  # type: ignore[arg-type]
    assert (len(plain.get_input_embeddings().weight), len(tokenizer)) == (rows, words)


@pytest.mark.parametrize("name", ["me/model", "a/b/c"])
def test_a_hub_that_is_not_there(model: GistModel, name: str) -> None:
    with pytest.raises(SaveError, match=f"could not upload to '{name}': .*; check the name"):
        model.push_to_hub(name)


def test_every_complaint_can_be_caught_as_one(model: GistModel) -> None:
    with pytest.raises(GistkitError):
        model.compress(5)  # type: ignore[arg-type]
