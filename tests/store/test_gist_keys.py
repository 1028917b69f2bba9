"""Keys: what differs in the model, the text or k differs in the key, and nothing else does."""

import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gistkit import GistModel
from gistkit.errors import OptionError, PromptError
from gistkit.store import GistKey
from gistkit.store.entry import adapter_fingerprint, tokenizer_fingerprint
from gistkit.testing import byte_tokenizer, tiny_gist_model, tiny_model


def test_what_a_key_holds() -> None:
    model = tiny_gist_model()
    key = GistKey.of(model, "Greet.", 2)
    assert key.model == model.fingerprint
    assert (key.adapter, key.template, key.num_tokens) == ("", "decoder", 2)
    assert list(key.tokens) == model.encoder.instruction("Greet.", 2)[:-2]
    assert len(key.tokens) == model.compress("Greet.").provenance[0].instruction_tokens
    key.check(model.compress("Greet.", num_gist_tokens=2))
    assert GistKey.of(model, "Greet.").num_tokens == model.config.default_k
    assert GistKey.from_json(key.to_json()) == key
    assert GistKey.from_json(key.to_json()).id == key.id
    assert len(key.id) == 64


def test_mistakes_are_those_of_compress() -> None:
    model = tiny_gist_model()
    with pytest.raises(PromptError):
        GistKey.of(model, "")
    with pytest.raises(PromptError):
        GistKey.of(model, "a <GIST> b")
    with pytest.raises(OptionError):
        GistKey.of(model, "a", 0)


def test_equal_models_have_equal_keys(tmp_path: Path) -> None:
    model = tiny_gist_model()
    key = GistKey.of(model, "Greet.")
    assert GistKey.of(tiny_gist_model(), "Greet.") == key
    model.save_pretrained(tmp_path)
    assert GistKey.of(GistModel.from_pretrained(tmp_path), "Greet.") == key


def test_what_differs_makes_another_key() -> None:
    model = tiny_gist_model()
    keys = {
        GistKey.of(model, "Greet.").id,
        GistKey.of(model, "Greet").id,
        GistKey.of(model, "Greet.", 2).id,
        GistKey.of(tiny_gist_model(seed=1), "Greet.").id,
        GistKey.of(tiny_gist_model(template="encoder-decoder"), "Greet.").id,
    }
    assert len(keys) == 5
    with torch.no_grad():
        model.hf_model.get_input_embeddings().weight[:, 0] += 1
    keys.add(GistKey.of(model, "Greet.").id)
    model.hf_model.to(torch.bfloat16)
    keys.add(GistKey.of(model, "Greet.").id)
    assert len(keys) == 7


def test_a_tokenizers_fingerprint_is_of_what_it_does() -> None:
    ours = byte_tokenizer()
    before = tokenizer_fingerprint(ours)
    assert tokenizer_fingerprint(byte_tokenizer()) == before
    assert tokenizer_fingerprint(byte_tokenizer(closing=True)) != before
    padded = byte_tokenizer()
    padded(["a", "bcd"], padding=True, truncation=True, max_length=8)  # leaves its options behind
    assert tokenizer_fingerprint(padded) == before
    ours.add_tokens(["<new>"])
    assert tokenizer_fingerprint(ours) != before


def test_without_lora_there_is_no_adapter() -> None:
    assert adapter_fingerprint(tiny_model("llama")) == ""


def test_adapters_count_by_what_is_active() -> None:
    peft = pytest.importorskip("peft")
    base = tiny_model("llama")
    plain = adapter_fingerprint(base)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = peft.LoraConfig(r=2, lora_alpha=4, target_modules="all-linear")
        wrapped = peft.get_peft_model(base, config)
        wrapped.add_adapter("second", replace_alpha(config, 8))
    first = adapter_fingerprint(base)
    wrapped.set_adapter("second")
    second = adapter_fingerprint(base)
    with wrapped.disable_adapter():
        off = adapter_fingerprint(base)
    assert len({plain, first, second, off}) == 4
    assert adapter_fingerprint(base) == second
    layer = next(m for m in base.modules() if isinstance(m, peft.tuners.lora.LoraLayer))
    layer.scale_layer(0.5)
    assert adapter_fingerprint(base) not in (first, second, off)


def replace_alpha(config: object, alpha: int) -> object:
    return replace(config, lora_alpha=alpha)  # type: ignore[type-var]


@pytest.mark.parametrize(
    "value",
    [
        None,
        3,
        {},
        {"model": "m"},
        {"num_tokens": 0},
        {"num_tokens": "1"},
        {"tokens": [1.5]},
        {"tokens": [True]},
        {"tokens": 3},
        {"more": 1},
    ],
    ids=str,
)
def test_forged_keys_are_refused(value: object) -> None:
    good = GistKey("m", "", "t", "decoder", 1, (1, 2)).to_json()
    forged = {**good, **value} if isinstance(value, dict) and "model" not in value else value
    if value == {}:
        forged = {}
    with pytest.raises(ValueError, match="its key cannot be read"):
        GistKey.from_json(forged)
