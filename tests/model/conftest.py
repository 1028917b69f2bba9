"""Models of random weights, of both kinds."""

import pytest

from gistkit import GistModel
from gistkit.testing import tiny_gist_model


@pytest.fixture(scope="module", params=["llama", "t5"])
def model(request: pytest.FixtureRequest) -> GistModel:
    return tiny_gist_model(request.param)


@pytest.fixture(scope="module")
def llama() -> GistModel:
    return tiny_gist_model()
