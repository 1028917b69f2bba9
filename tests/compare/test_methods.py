"""What each method keeps: never more than its budget, and all of the prompt where that fits."""

import pytest
import torch

from gistkit.compare import METHODS, Method, Sources, build, cached
from gistkit.compare.extractive import Extractive, pagerank
from gistkit.compare.lingua import Lingua
from gistkit.compare.method import instruction_ids
from gistkit.compare.modes import FullPrompt, NoPrompt
from gistkit.compare.pooling import MeanPooling, pooled, rotation
from gistkit.compare.presses import Press
from gistkit.compare.trained import TrainedEntries
from gistkit.compare.truncation import Truncation, cut
from gistkit.errors import OptionError
from gistkit.gist import Prefix
from gistkit.model import GistModel
from gistkit.models.kv_batch import CACHE
from gistkit.prompts import Example
from gistkit.testing import tiny_gist_model

TEXT = "Say Howdy, you are Tom. Everything costs nine coins; all is green."
OTHERS = ("Say Howdy, you are Ann.", "Everything costs two coins; all is red.", TEXT)
EXAMPLES = [Example(text, f"input {n}", "out", "shop") for n, text in enumerate(OTHERS)]
LONG = 10_000


@pytest.fixture(scope="module")
def model() -> GistModel:
    return tiny_gist_model("llama")


def every_method() -> list[Method]:
    return build((), Sources(EXAMPLES, EXAMPLES))


def same(one: Prefix, other: Prefix) -> bool:
    return one.lengths == other.lengths and all(
        torch.equal(one.tensors[name], other.tensors[name]) for name in other.tensors
    )


def budgeted() -> list[Method]:
    """Those that need nothing but the model."""
    return [m for m in every_method() if m.budgeted and not isinstance(m, Press | Lingua)]


@pytest.mark.parametrize("method", budgeted(), ids=lambda m: m.name)
@pytest.mark.parametrize("budget", [1, 2, 4])
def test_no_method_keeps_more_than_its_budget(
    model: GistModel, method: Method, budget: int
) -> None:
    if isinstance(method, TrainedEntries):
        method = TrainedEntries(EXAMPLES, {}, steps=1, probes=1, max_new_tokens=2)
    kept = method.prepare(model, TEXT, budget)
    template = model.cache_prompt("a", num_gist_tokens=1).num_tokens - 1
    text = isinstance(method, Truncation | Extractive)
    assert (0 if kept is None else kept.num_tokens) <= budget + (template if text else 0)


@pytest.mark.parametrize(
    "method", [Truncation(), Truncation(last=True), Extractive(OTHERS), MeanPooling()]
)
def test_a_large_budget_keeps_the_full_prompt(model: GistModel, method: Method) -> None:
    kept = method.prepare(model, TEXT, LONG)
    assert kept is not None
    full = FullPrompt().prepare(model, TEXT, 1)
    assert full is not None and same(kept, full)


def test_truncation_keeps_an_end(model: GistModel) -> None:
    assert cut(model, TEXT, 4) == TEXT[:4].strip()  # a token a byte
    assert cut(model, TEXT, 6, last=True) == TEXT[-6:].strip()
    assert len(instruction_ids(model, TEXT)) == len(TEXT)


def test_no_prompt_keeps_nothing(model: GistModel) -> None:
    assert NoPrompt().prepare(model, TEXT, 4) is None
    assert cached(model, "  ") is None


@pytest.mark.parametrize("family", ["llama", "glm", "gpt_neox", "qwen3", "cohere"])
def test_pooling_into_as_many_slots_changes_nothing(family: str) -> None:
    model = tiny_gist_model(family)
    full = model.cache_prompt(TEXT, num_gist_tokens=1)
    assert same(pooled(full, full.num_tokens, rotation(model)), full)


def test_pooled_keys_stand_at_their_slots(model: GistModel) -> None:
    # one token alone has the same keys wherever it stands, but for their rotation; so the mean of
    # copies at positions 0 .. 5 in two slots must be those of a token at 0 and of one at 1
    ids = torch.full((1, 1), model.gist_id)
    caches = [
        model.hf_model.base_model(input_ids=ids, position_ids=ids * 0 + place, use_cache=True)[
            CACHE
        ]
        for place in range(6)
    ]
    layers = [[(k, v) for k, v, *_ in cache] for cache in caches]
    full = model.cache_prompt(TEXT, num_gist_tokens=1)
    tensors = {
        f"layers.{i}.{name}": torch.cat([layer[i][j] for layer in layers], dim=-2).detach()
        for i in range(len(layers[0]))
        for j, name in enumerate(("keys", "values"))
    }
    copies = Prefix(tensors, (6,), full.provenance, full.model, full.template)
    two = pooled(copies, 2, rotation(model))
    for name, kept in two.tensors.items():
        torch.testing.assert_close(kept, tensors[name][..., :2, :], rtol=1e-5, atol=1e-5)


def test_pooling_refuses_keys_it_cannot_turn() -> None:
    with pytest.raises(OptionError, match="cannot turn the keys"):
        rotation(tiny_gist_model("smollm3"))  # every second layer does not rotate


@pytest.mark.parametrize("lexrank", [False, True])
@pytest.mark.parametrize("budget", [10, 25, 40])
def test_extracts_are_words_of_the_instruction_in_their_order(
    model: GistModel, lexrank: bool, budget: int
) -> None:
    extract = Extractive(OTHERS, lexrank).extract(model, TEXT, budget)
    words = iter(TEXT.split())
    assert 0 < len(extract) <= budget
    assert all(word in words for word in extract.split())  # each found behind the one before


def test_tfidf_takes_what_is_rare_first(model: GistModel) -> None:
    method = Extractive(("say one. stay home.",) * 9 + ("say one. fly away.",))
    assert method.ranked(["say one.", "fly away."]) == [1, 0]
    assert method.extract(model, "say one. fly away.", 9) == "fly away."
    assert method.extract(model, "say one. fly away.", 4) == "fly"


def test_pagerank_is_a_distribution_that_follows_the_links() -> None:
    import numpy

    star = numpy.array([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    ranks = pagerank(star)
    assert ranks.sum() == pytest.approx(1)
    assert ranks[0] == pytest.approx((0.05 + 0.85 * 0.1) / (1 - 0.85**2))  # solved by hand
    assert pagerank(numpy.zeros((2, 2))) == pytest.approx([0.5, 0.5])


def test_training_comes_closer_to_the_full_prompt(model: GistModel) -> None:
    def apart(prefix: Prefix | None) -> float:
        assert prefix is not None
        rows = [model.encoder.input(e.input) for e in EXAMPLES]
        ids, padding = model.pad(rows)
        full = model.cache_prompt(TEXT, num_gist_tokens=1)
        with torch.no_grad():
            found, expected = (
                model.adapter.read(ids, padding, p, gist_id=model.gist_id)["logits"][:, -1]
                for p in (prefix, full)
            )
        return float((expected.softmax(-1) - found.softmax(-1)).abs().sum())

    before = {p.grad for p in model.hf_model.parameters()}
    options = {"pool": EXAMPLES, "sources": {}, "max_new_tokens": 4}
    untrained = TrainedEntries(steps=1, rate=0.0, **options).prepare(model, TEXT, 4)
    trained = TrainedEntries(steps=60, **options).prepare(model, TEXT, 4)
    assert apart(trained) < 0.7 * apart(untrained)
    assert before == {None} == {p.grad for p in model.hf_model.parameters()}


def test_probes_are_not_of_the_instruction_itself() -> None:
    method = TrainedEntries(EXAMPLES, {TEXT: "shop"})
    assert set(method.inputs(TEXT)) == {"input 0", "input 1"}
    assert TrainedEntries([], {}).inputs(TEXT) == [""]


def test_the_full_prompt_comes_first_and_once() -> None:
    names = [method.name for method in build(("gist", "full"), Sources(EXAMPLES, ()))]
    assert names == ["full prompt", "gist"]
    assert len(every_method()) == len(METHODS) == 14
    with pytest.raises(OptionError, match="no method 'magic'"):
        build(("magic",), Sources(EXAMPLES, ()))
