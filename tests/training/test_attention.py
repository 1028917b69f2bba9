"""`model.attention`: which kernel trains; one that cannot is said at once."""

import pytest

from gistkit.errors import OptionError
from gistkit.testing import tiny_gist_model
from gistkit.training.start import set_attention


def test_the_model_gets_the_attention_asked_for() -> None:
    model = tiny_gist_model("llama")
    set_attention(model, "eager")
    assert model.hf_model.config._attn_implementation == "eager"
    set_attention(model, None)
    assert model.hf_model.config._attn_implementation == "eager"


@pytest.mark.parametrize(
    ("name", "message"),
    [("flex_attention", "no backward pass on a CPU"), ("fast", "model.attention=fast: ")],
)
def test_an_attention_that_cannot_train_is_refused(name: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        set_attention(tiny_gist_model("llama"), name)
