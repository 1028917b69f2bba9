"""KVBatch decoded step by step answer as `generate` does, whoever joins and leaves meanwhile."""

import random

import pytest
import torch
from torch import Tensor

from gistkit.gist import Gist, Prefix
from gistkit.model import GistModel
from gistkit.models.kv_batch import COLUMNS, ContinuousBatch, KVBatch
from gistkit.testing import EOS, FIRST_BYTE, PAD, tiny_gist_model

ANSWER = 12
PROMPTS = [
    ("Be brief.", "one", 1),
    ("Answer in capitals, and never twice.", "another input, longer", 4),
    ("Translate.", "x", 2),
    ("Count.", "one two three four five", 1),
    ("Sing of ships.", "", 4),
]


def begin(model: GistModel, inputs: list[str], prefix: Prefix | None) -> KVBatch:
    ids, padding = model.pad([model.encoder.input(text) for text in inputs])
    return model.adapter.begin(ids, padding, prefix, gist_id=model.gist_id)


def expected(model: GistModel, gist: Prefix | None, text: str, tokens: int = ANSWER) -> str:
    return model.generate(text, gist, max_new_tokens=tokens)[0]


def said(model: GistModel, tokens: list[int]) -> str:
    ended = tokens[: tokens.index(EOS)] if EOS in tokens else tokens
    return model.tokenizer.decode(ended, skip_special_tokens=True).strip()


def greedy(rows: KVBatch) -> Tensor:
    return rows.logits.argmax(-1)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt_neox", "t5", "gemma2"])
def test_a_batch_stepped_is_the_batch_generated(family: str) -> None:
    model = tiny_gist_model(family)
    gists = [model.compress(i, num_gist_tokens=k) for i, _, k in PROMPTS]
    inputs = [text for _, text, _ in PROMPTS]
    if not model.adapter.rows_differ:
        inputs, gists = ["same"] * 5, [model.compress(i, num_gist_tokens=2) for i, _, _ in PROMPTS]
    rows = begin(model, inputs, Gist.stack(gists))
    made: list[list[int]] = [[] for _ in inputs]
    for _ in range(ANSWER):
        chosen = greedy(rows)
        for answer, token in zip(made, chosen.tolist(), strict=True):
            answer.append(token)
        rows.step(chosen)
    for gist, text, tokens in zip(gists, inputs, made, strict=True):
        assert said(model, tokens) == expected(model, gist, text)


@pytest.mark.parametrize("seed", range(2))
def test_rows_that_join_and_leave_at_random_do_not_disturb_each_other(seed: int) -> None:
    chance = random.Random(seed)
    model = tiny_gist_model(seed=seed)
    waiting = []
    for number in range(14):
        instruction, text, k = chance.choice(PROMPTS)
        text += "y" * chance.randrange(2 * COLUMNS)
        prefix = chance.choice(["gist", "prefix", "none"])
        kept = {
            "gist": lambda i, k: model.compress(i, num_gist_tokens=k),
            "prefix": lambda i, k: model.cache_prompt(i, num_gist_tokens=k),
            "none": lambda i, k: None,
        }[prefix](instruction, k)
        waiting.append((number, kept, text, chance.randrange(1, 90)))
    wanted = {n: expected(model, kept, text, length) for n, kept, text, length in waiting}
    lengths = {n: length for n, _, _, length in waiting}
    running: list[int] = []
    made: dict[int, list[int]] = {n: [] for n in wanted}
    rows: KVBatch | None = None
    while waiting or running:
        while waiting and (not running or chance.random() < 0.1):
            number, kept, text, _ = waiting.pop()
            new = begin(model, [text], kept)
            if rows is None or not running:
                rows = new
            else:
                rows.join(new)
            running.append(number)
        assert rows is not None and len(rows) == len(running)
        chosen = greedy(rows)
        for number, token in zip(running, chosen.tolist(), strict=True):
            made[number].append(token)
        rows.step(chosen)
        done = [i for i, n in enumerate(running) if len(made[n]) == lengths[n]]
        if done:
            order = rows.drop(done)
            running = [running[i] for i in order]
    for number, text in wanted.items():
        assert said(model, made[number]) == text


def test_the_last_rows_fill_the_gaps_and_columns_of_padding_are_cut() -> None:
    model = tiny_gist_model()
    rows = begin(model, ["a much longer input than the others", "b", "cc", "d"], None)
    assert isinstance(rows, ContinuousBatch)
    wide = rows.extent.width
    assert rows.drop([0]) == [3, 1, 2]
    assert rows.extent.width == wide - (len("a much longer input than the others") - 2)
    assert rows.drop([0, 1, 2]) == [] and len(rows) == 0


def test_steps_write_in_place() -> None:
    model = tiny_gist_model()
    rows = begin(model, ["a", "b"], None)
    assert isinstance(rows, ContinuousBatch)
    rows.step(greedy(rows))
    places = [layer.keys.data_ptr() for layer in rows.layers]
    for _ in range(COLUMNS // 2):
        rows.step(greedy(rows))
    assert places == [layer.keys.data_ptr() for layer in rows.layers]


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_bytes_of_a_token_are_those_of_the_cache(family: str) -> None:
    model = tiny_gist_model(family)
    rows = begin(model, ["abc"], None)
    for _ in range(3):
        rows.step(torch.tensor([FIRST_BYTE]))
    if family == "llama":
        kept = sum(t.numel() * 4 for layer in rows.layers for t in (layer.keys, layer.values))
        assert model.adapter.kv_bytes_per_token * rows.padding.shape[2] == kept
    else:
        layers = [*rows.cache.self_attention_cache.layers, *rows.cache.cross_attention_cache.layers]
        kept = sum(t.numel() * 4 for layer in layers for t in (layer.keys, layer.values))
        length = len(model.encoder.input("abc"))
        assert model.adapter.kv_bytes_per_token * (length + 4) == kept  # with the start token


def test_rows_of_a_wave_leave(family: str = "t5") -> None:
    model = tiny_gist_model(family)
    inputs = ["one", "two and more", "three"]
    gist = model.compress("Be brief.")
    rows = begin(model, inputs, gist)
    made: list[list[int]] = [[], [], []]
    here = [0, 1, 2]
    for step in range(ANSWER):
        if step == 5:
            here = [here[i] for i in rows.drop([1])]
        chosen = greedy(rows)
        for number, token in zip(here, chosen.tolist(), strict=True):
            made[number].append(token)
        rows.step(chosen)
    assert here == [0, 2]
    for number in here:
        assert said(model, made[number]) == expected(model, gist, inputs[number])
    assert PAD not in made[0]


def test_a_gist_is_not_cut_off_where_its_input_is_shorter_than_others() -> None:
    """Rows that begin together are padded between gist and input; the longest one leaves first."""
    model = tiny_gist_model()
    gists = [model.compress(text, num_gist_tokens=1) for text in ("Translate.", "Count.", "Sing.")]
    inputs = ["a much longer input than the others", "one", ""]
    wanted = [expected(model, gist, text) for gist, text in zip(gists, inputs, strict=True)]
    rows = begin(model, inputs, Gist.stack(gists))
    logits = rows.logits
    assert rows.drop([0]) == [2, 1]
    assert torch.equal(rows.logits, logits[[2, 1]])
    made: list[list[int]] = [[], []]
    for _ in range(ANSWER):
        chosen = greedy(rows)
        for answer, token in zip(made, chosen.tolist(), strict=True):
            answer.append(token)
        rows.step(chosen)
    alone = begin(model, [inputs[1]], gists[1])
    for token in made[1]:
        alone.step(torch.tensor([token]))
    assert torch.allclose(rows.logits[1], alone.logits[0], atol=1e-4)
    assert [said(model, tokens) for tokens in made] == [wanted[2], wanted[1]]
