"""Making a gist model of a plain one, and what is refused."""

from typing import Any

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from gistkit import GistModel
from gistkit.errors import (
    NotAGistModelError,
    OptionError,
    UnsupportedModelError,
)
from gistkit.models.config import GistConfig
from gistkit.testing import byte_tokenizer, tiny_gist_model, tiny_model


def test_from_base_teaches_the_token(model: GistModel) -> None:
    assert model.config.num_gist_tokens == (1, 2, 4)
    assert model.tokenizer.convert_ids_to_tokens(model.gist_id) == "<GIST>"
    assert not model.hf_model.training
    assert tiny_gist_model(num_gist_tokens=3).config.num_gist_tokens == (3,)


@pytest.mark.parametrize("k", [0, -1, (), (1, 0)])
def test_from_base_needs_a_sensible_k(k: Any) -> None:
    with pytest.raises(OptionError, match="`num_gist_tokens` must be at least 1"):
        GistModel.from_base(tiny_model("llama"), byte_tokenizer(), num_gist_tokens=k)


def test_a_loaded_model_needs_its_tokenizer() -> None:
    with pytest.raises(OptionError, match=r"needs its tokenizer: from_base.model, tokenizer."):
        GistModel.from_base(tiny_model("llama"))


def test_a_tokenizer_without_the_token_is_refused() -> None:
    with pytest.raises(NotAGistModelError, match="the tokenizer has no <GIST>"):
        GistModel(tiny_model("llama"), byte_tokenizer(), GistConfig())


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("gpt2", "it uses absolute positions, so a gist is tied to the length of its instruction"),
        ("opt", "absolute positions"),
        ("bloom", "ALiBi"),
        ("mamba", "recurrent layers"),
    ],
)
def test_unproved_families_are_refused_with_a_reason(kind: str, reason: str) -> None:
    config = AutoConfig.for_model(kind, vocab_size=300, hidden_size=24, num_hidden_layers=1)
    plain = AutoModelForCausalLM.from_config(config)
    tokenizer = byte_tokenizer()
    with pytest.raises(UnsupportedModelError, match=f"{kind}.* is not supported: .*{reason}"):
        GistModel.from_base(plain, tokenizer)
    assert "<GIST>" not in tokenizer.get_vocab()  # refused before anything is changed


@pytest.mark.parametrize("device", ["cuda:99", "nonsense", "cpu:x"])
def test_a_device_that_is_not_here(device: str) -> None:
    with pytest.raises(OptionError, match="is not available here; use `device='cpu'`"):
        GistModel.from_base(tiny_model("llama"), byte_tokenizer(), device=device)
