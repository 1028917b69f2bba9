"""What would silently give wrong answers, or kill the engine, without the connector's guards."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from gistkit import GistModel
from gistkit.gist import Gist
from gistkit.store import GistKey
from tests.integrations.engines import Served, params, serving

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

ONE, OTHER = "Say it backwards.", "Everything costs nine coins. You are Nora and never laugh."
TEXT = "hello there, what does the boat cost today?"
LONG = "x" * 70  # blocks of its own behind the placeholders
ROOM = 200_000  # bytes


@pytest.fixture(scope="module")
def served(folder: Path, model: GistModel) -> Iterator[Served]:
    with serving(folder, model, block_size=32, connector={"max_memory_bytes": ROOM}) as made:
        yield made


def test_other_gists_do_not_share_a_prefix_cache(served: Served) -> None:
    """Trap 1: the ids of two prompts are the same, only their gists differ."""
    ids = {name: served.compress(name, 5) for name in (ONE, OTHER)}
    for name in (ONE, OTHER, ONE, OTHER):
        id, gist = ids[name]
        request = served.from_gist(id, 5, LONG)
        assert served.answer([request]) == [served.expected(request[0], gist)]


def test_placeholders_read_as_text_do_not_answer_for_a_gist(served: Served) -> None:
    """Trap 1, the other way round: the cache holds the same ids without any gist."""
    id, gist = served.compress(ONE, 33)
    request = served.from_gist(id, 33, LONG)
    text = (request[0], params(None))
    (before,) = served.answer([text])
    assert served.answer([request]) == [served.expected(request[0], gist)]
    assert served.answer([text]) == [before]


def test_a_gist_s_part_of_the_cache_is_used(served: Served) -> None:
    """Salted is not the same as lost: the second time only what ends the prompt is read."""
    id, _ = served.compress(OTHER, 5)
    request = served.from_gist(id, 5, "y" * 100)
    first, second = (served.finish([request])[0].num_cached_tokens for _ in range(2))
    assert first == 5
    assert second >= 96


def test_told_not_to_read_the_prefix_cache_the_gist_is_read_all_the_same(served: Served) -> None:
    """Trap 2."""
    id, gist = served.compress(OTHER, 5)
    request = served.from_gist(id, 5, TEXT, skip_reading_prefix_cache=True)
    assert served.answer([request]) == [served.expected(request[0], gist)]


@pytest.mark.parametrize(
    "fault",
    ["missing", "damaged", "logprobs", "prompt", "nonsense", "key", "shape", "swapped", "short"],
)
def test_a_bad_request_fails_alone(fault: str, served: Served) -> None:
    """Traps 3, 4 and 5; `short` is one token, of which vLLM takes none from outside."""
    id, gist = served.compress(ONE, 5)
    good = served.from_gist(id, 5, TEXT)
    bad = bad_request(fault, served)
    first, failed, last = served.finish([good, bad, good])
    wanted = served.expected(good[0], gist)
    assert [list(one.outputs[0].token_ids) for one in (first, last)] == [wanted, wanted]
    assert failed.outputs[0].finish_reason == "error"
    assert served.finish([bad])[0].outputs[0].finish_reason == "error"  # nothing of it was kept
    assert served.answer([good]) == [wanted]  # the engine lives


def bad_request(fault: str, served: Served) -> Any:
    id, gist = served.compress(ONE, 5)
    files = Path(served.store.place) / "gists"
    if fault == "missing":
        return served.from_gist("0" * 64, 5, "a")
    if fault == "logprobs":
        return served.from_gist(id, 5, "a", prompt_logprobs=1)
    if fault == "prompt":
        return {"prompt_token_ids": [5, 6, 7, 8, 9, 10, 11]}, params({"gist": id})
    if fault == "short":
        return {"prompt_token_ids": [served.model.gist_id]}, params({"gist": id})
    if fault == "nonsense":
        return {"prompt_token_ids": [5, 6, 7]}, params({"gist": {"a": [1]}})
    if fault == "key":
        key = GistKey.of(served.model, "Poisoned.", 5)
        wanted = {"compress": key.to_json(), "instruction_sha256": "0" * 64}
        return {"prompt_token_ids": [7, 8, 9, 10]}, params(wanted)
    if fault == "shape":  # says it is this model's, and has another number of layers
        id = served.store.put(None, with_layers(gist, 1))
        return served.from_gist(id, 5, "a")
    id, _ = served.compress(f"To be {fault}.", 5)
    path = files / f"{id}.safetensors"
    if fault == "damaged":
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.unlink()
        path.write_bytes(data)
    else:  # a good file of another instruction under this name, after the engine has read the first
        served.answer([served.from_gist(id, 5, "a")])
        other, _ = served.compress(OTHER, 5)
        shutil.copy(files / f"{other}.safetensors", path.with_suffix(".new"))
        path.with_suffix(".new").replace(path)
    return served.from_gist(id, 5, "a")


def with_layers(gist: Gist, count: int) -> Gist:
    kept = {n: t for n, t in gist.tensors.items() if int(n.split(".")[1]) < count}
    return replace(gist, tensors=kept)


def test_what_fails_is_not_answered_from_what_others_left(served: Served) -> None:
    """Trap 4: with its prompt in the prefix cache there would be no token left to fail on."""
    request = served.from_gist("0" * 64, 5, LONG)
    served.answer([(request[0], params(None))])
    assert served.finish([request])[0].outputs[0].finish_reason == "error"


def test_a_gist_that_is_removed_is_noticed(served: Served) -> None:
    """Also where it was just read and its keys are still in the prefix cache."""
    id, _ = served.compress("To be removed.", 5)
    request = served.from_gist(id, 5, LONG)
    served.answer([request])
    served.store.remove(id)
    assert served.finish([request])[0].outputs[0].finish_reason == "error"


def test_the_gists_at_hand_stay_within_their_room(served: Served) -> None:
    """More than fit are served all the same, from the files."""
    from vllm.distributed.kv_transfer import get_kv_transfer_group

    made = [(k, *served.compress(f"Sing of {n}.", k)) for n in range(8) for k in (16, 33)]
    assert sum(gist.num_bytes for _, _, gist in made) > 2 * ROOM
    requests = [served.from_gist(id, k, "a") for k, id, _ in made]
    wanted = [
        served.expected(prompt, gist)
        for (prompt, _), (_, _, gist) in zip(requests, made, strict=True)
    ]
    assert served.answer(requests) == wanted
    found = get_kv_transfer_group()._store.stats()
    assert 0 < found["memory_bytes"] <= ROOM
    assert served.answer(requests[::-1]) == wanted[::-1]


def test_nobody_guesses_another_gist_s_part_of_the_cache(served: Served) -> None:
    """A client may set `cache_salt` too, and gets its own part."""
    id, gist = served.compress(OTHER, 5)
    request = served.from_gist(id, 5, LONG)
    wanted = served.expected(request[0], gist)
    served.answer([request])
    for salt in (id, f"|{id}|"):
        prompt = {**request[0], "cache_salt": salt}
        assert served.answer([(prompt, params(None))]) != [wanted]
        assert served.answer([(prompt, request[1])]) == [wanted]


def test_keys_are_turned_to_where_a_gist_begins(served: Served) -> None:
    """vLLM compresses at positions P .. P+k-1; unturned keys would be off by the instruction."""
    asked, key = served.to_compress(OTHER + " Once more.", 5)
    served.answer([asked])
    found = served.store.get(key)
    assert found is not None
    wanted = served.model.compress(OTHER + " Once more.", num_gist_tokens=5)
    for name, tensor in wanted.tensors.items():
        torch.testing.assert_close(found.tensors[name], tensor, atol=1e-4, rtol=0)
