"""Text is told as soon as it is final, and never taken back."""

import json
import random

import pytest
from tokenizers import Tokenizer, decoders
from tokenizers.models import Unigram
from transformers import PreTrainedTokenizerFast

from gistkit.model import GistModel
from gistkit.serving import sampling
from gistkit.serving.engine import Prepared, Sampling, StreamChunk
from gistkit.serving.responses import encode
from gistkit.serving.sampling import Sequence
from gistkit.serving.scheduler import Request
from gistkit.testing import EOS, byte_tokenizer


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every token is told by itself, whatever time it is."""
    monkeypatch.setattr(sampling, "CHUNK_SECONDS", 0.0)


def answer(tokenizer: PreTrainedTokenizerFast, *stop: str) -> Sequence:
    prepared = Prepared(
        ids=[1],
        gist=None,
        gist_id="",
        instruction="",
        sampling=Sampling(1000, stop=stop),
        client="",
        num_cached=0,
        prompt_tokens=1,
        total_tokens=1001,
        kv_bytes=0,
    )
    return Sequence(Request(prepared), 0, tokenizer, {EOS})


def told(answering: Sequence, ids: list[int]) -> list[StreamChunk]:
    found = [chunk for id in [*ids, EOS] if not answering.done and (chunk := answering.append(id))]
    assert answering.done
    return found


def of_words() -> PreTrainedTokenizerFast:
    """As T5's and LLaMA's tokenizers: the space belongs to the word, and the first one is lost."""
    words = ["<pad>", "<s>", "</s>", "▁the", "▁a", "ship", "▁", "s", "▁Sails", ".", ",", "▁sea"]
    tokenizer = Tokenizer(Unigram([(word, -1.0) for word in words], unk_id=0))
    tokenizer.decoder = decoders.Metaspace()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def test_letters_of_several_bytes_come_whole() -> None:
    tokenizer = byte_tokenizer()
    text = "naïve 😀, Ωmega — 漢字"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    found = told(answer(tokenizer), ids)
    assert "".join(d.text for d in found) == text
    assert not any("\N{REPLACEMENT CHARACTER}" in d.text for d in found)
    assert sum(d.tokens for d in found) == len(ids) + 1


def test_what_may_become_a_stop_string_is_held_back() -> None:
    tokenizer = byte_tokenizer()
    ids = tokenizer("one E two END three", add_special_tokens=False)["input_ids"]
    found = told(answer(tokenizer, "END"), ids)
    assert "".join(d.text for d in found) == "one E two"
    assert found[-1].finish == "stop"
    assert [d.text for d in found[:2]] == ["o", "n"]  # and what cannot become one is told at once


def test_text_that_comes_too_soon_after_a_chunk_waits_for_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokenizer, now = byte_tokenizer(), 100.0
    monkeypatch.setattr(sampling, "CHUNK_SECONDS", 0.03)
    monkeypatch.setattr(sampling.time, "monotonic", lambda: now)
    answering = answer(tokenizer)
    said = []
    for id in tokenizer("abcdefgh", add_special_tokens=False)["input_ids"]:
        said.append(answering.append(id))
        now += 0.01
    last = answering.append(EOS)
    assert [d and (d.text, d.tokens) for d in said] == [
        ("a", 1), None, None, ("bcd", 3), None, None, ("efg", 3), None,
    ]  # fmt: skip
    assert last is not None and (last.text, last.tokens, last.finish) == ("h", 2, "stop")


@pytest.mark.parametrize("kind", ["bytes", "words", "toy"])
def test_pieces_of_any_tokens_are_the_text_of_all(kind: str) -> None:
    tokenizer = {
        "bytes": byte_tokenizer,
        "words": of_words,
        "toy": lambda: GistModel.from_pretrained("toy").tokenizer,
    }[kind]()
    chance = random.Random(kind)
    for _ in range(100):
        ids = [chance.randrange(len(tokenizer)) for _ in range(chance.randrange(1, 60))]
        ids = [id for id in ids if id != EOS]
        text = tokenizer.decode(ids, skip_special_tokens=True).strip()
        assert "".join(d.text for d in told(answer(tokenizer), ids)) == text


def test_an_event_is_one_line_for_clients_that_split_by_any_line_end() -> None:
    text = "".join(map(chr, range(0x3000))) + "\N{GRINNING FACE}"
    said = encode([{"text": text}]).decode()
    assert said.splitlines() == [said.removesuffix("\n\n"), ""]
    assert json.loads(said.removeprefix("data: ")) == {"text": text}
