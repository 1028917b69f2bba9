"""kvpress in a process of its own: a double of the library, and the real one where it is there.

`make test-kvpress` installs it and runs the tests marked so.
"""

import gc
from pathlib import Path

import pytest
import torch
from transformers import DynamicCache

from gistkit.compare import answer_all
from gistkit.compare.presses import PRESSES, Press, Workers
from gistkit.errors import OptionError
from gistkit.gist import Prefix
from gistkit.model import GistModel
from gistkit.models.kv_batch import CACHE
from gistkit.prompts import Example
from gistkit.testing import tiny_gist_model

TEXT = "Say Howdy, you are Tom. Everything costs nine coins; all is green."

DOUBLE = """
import os
from contextlib import contextmanager

print("a library that talks where answers go")


class KnormPress:
    '''Keeps the last entries.'''

    def __init__(self, ratio, **options):
        self.ratio = ratio

    @contextmanager
    def __call__(self, model):
        hook = model.model.register_forward_hook(self.prune, with_kwargs=True)
        yield
        hook.remove()

    def prune(self, module, args, given, output):
        for layer in given["past_key_values"].layers:
            keep = int(layer.keys.shape[2] * (1 - self.ratio))
            layer.keys, layer.values = layer.keys[:, :, -keep:], layer.values[:, :, -keep:]


def SnapKVPress(ratio, window_size):
    raise ValueError("not this model,\\nnever")


def StreamingLLMPress(ratio, n_sink):
    os._exit(3)
"""


@pytest.fixture(scope="module")
def model() -> GistModel:
    return tiny_gist_model("llama")


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Workers:
    """Of the double; the process starts once for all tests."""
    folder = tmp_path_factory.mktemp("kvpress")
    (folder / "kvpress").mkdir()
    (folder / "kvpress/__init__.py").write_text(DOUBLE)
    return Workers(folder)


@pytest.mark.parametrize("budget", [1, 5, 64])
def test_what_is_kept_reads_as_kvpress_would_read_it(
    model: GistModel, workers: Workers, budget: int
) -> None:
    """There the input goes on at the prompt's length, over keys at their old positions."""
    kept = Press("knorm", workers).prepare(model, TEXT, budget)
    assert kept is not None and kept.num_tokens == budget
    ids = model.encoder.instruction(TEXT, 1)[:-1]
    cache = DynamicCache()
    with torch.no_grad():
        model.hf_model.base_model(input_ids=torch.tensor([ids]), **{CACHE: cache})
        for layer in cache.layers:
            layer.keys, layer.values = layer.keys[:, :, -budget:], layer.values[:, :, -budget:]
        new = torch.tensor([model.encoder.input("cat")])
        theirs = model.hf_model(
            input_ids=new,
            **{CACHE: cache},
            position_ids=torch.arange(len(ids), len(ids) + new.shape[1])[None],
            attention_mask=torch.ones(1, budget + new.shape[1]),
        ).logits
        ours = model.adapter.read(new, torch.ones_like(new), kept, gist_id=model.gist_id)["logits"]
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_a_prompt_that_fits_is_kept_whole(model: GistModel, workers: Workers) -> None:
    kept = Press("knorm", workers).prepare(model, "Hi", 10_000)
    full = model.cache_prompt("Hi", num_gist_tokens=1)
    assert kept is not None and kept.lengths == full.lengths
    assert Press("knorm", workers).prepare(model, "  ", 4) is None


def test_a_press_that_cannot_is_told_and_others_go_on(model: GistModel, workers: Workers) -> None:
    examples = [Example(TEXT, "cat", "x")]
    found = answer_all(model, examples, Press("snapkv", workers), 4)
    assert found.missing == "kvpress cannot do this: ValueError: not this model, never"
    assert isinstance(Press("knorm", workers).prepare(model, TEXT, 4), Prefix)


def test_a_worker_that_dies_is_told(model: GistModel, workers: Workers) -> None:
    own = Workers(workers.folder)
    with pytest.raises(OptionError, match=r"kvpress stopped: .*; make kvpress"):
        Press("streaming", own).prepare(model, TEXT, 4)
    with pytest.raises(OptionError, match="kvpress stopped"):  # and stays so
        Press("knorm", own).prepare(model, TEXT, 4)


def test_kvpress_is_not_there(model: GistModel, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"kvpress is not in .*: make kvpress"):
        Press("knorm", Workers(tmp_path)).prepare(model, TEXT, 4)


def test_the_process_ends_with_its_worker(model: GistModel, workers: Workers) -> None:
    worker = Workers(workers.folder)(model)
    process = worker._process
    assert process.poll() is None
    del worker
    gc.collect()
    assert process.poll() == 0


@pytest.mark.slow
@pytest.mark.kvpress
@pytest.mark.parametrize("name", PRESSES)
def test_every_press_keeps_its_budget(model: GistModel, root: Path, name: str) -> None:
    workers = Workers(root / ".kvpress")
    for budget in (1, 2, 7, 40):
        kept = Press(name, workers).prepare(model, TEXT, budget)
        assert kept is not None and kept.lengths == (budget,)
        assert all(bool(tensor.isfinite().all()) for tensor in kept.tensors.values())
    examples = [Example(TEXT, "cat", "x"), Example("Hi", "", "y")]
    found = answer_all(model, examples, Press(name, workers), 7, max_new_tokens=4)
    assert not found.missing
    assert list(found.kept_entries) == [7, 7] and all(found.loss_tokens)
