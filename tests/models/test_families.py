"""The table of families: each is proved, each refusal has a reason."""

from pathlib import Path

import pytest
from transformers import AutoConfig

from gistkit.errors import OptionError, UnsupportedModelError
from gistkit.models.families import FAMILIES, REFUSED, adapter_class
from gistkit.testing import tiny_gist_model, tiny_model


def test_no_family_is_both_proved_and_refused() -> None:
    assert not FAMILIES.keys() & REFUSED.keys()


def test_every_family_of_the_table_is_proved(root: Path) -> None:
    """`tests/parity` takes its families from the table, all of them."""
    assert "FAMILY_NAMES = tuple(FAMILIES)" in (root / "tests/parity/paths.py").read_text()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_a_double(family: str) -> None:
    model = tiny_gist_model(family)
    assert model.hf_model.config.model_type == family
    (answer,) = model.generate("Hi there", model.compress("Greet."), max_new_tokens=6)
    assert answer.isascii()
    assert answer.isprintable()


def test_doubles_depend_on_the_seed_alone() -> None:
    assert tiny_gist_model().fingerprint == tiny_gist_model().fingerprint
    assert tiny_gist_model(seed=1).fingerprint != tiny_gist_model().fingerprint
    with pytest.raises(OptionError, match="unknown family 'gpt9'; choose one of cohere"):
        tiny_model("gpt9")


@pytest.mark.parametrize("kind", sorted(REFUSED))
def test_a_refusal_says_why(kind: str) -> None:
    try:
        config = AutoConfig.for_model(kind)
    except ValueError:
        pytest.fail(f"{kind} is no model type of transformers")
    with pytest.raises(UnsupportedModelError) as error:
        adapter_class(config)
    assert f"model type '{kind}' is not supported: {REFUSED[kind]}; supported: " in str(error.value)


def test_a_type_that_was_never_tested() -> None:
    config = AutoConfig.for_model("persimmon")
    with pytest.raises(UnsupportedModelError, match="its cached gists were never proved"):
        adapter_class(config)
