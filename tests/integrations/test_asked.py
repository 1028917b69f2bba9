"""What a request asks of the connector, and what it must not."""

from dataclasses import replace
from typing import Any

import pytest

from gistkit.errors import GistFileError, GistMismatchError, OptionError, PromptError
from gistkit.integrations.asked import Load, Save, Served, read
from gistkit.integrations.start import connector_config
from gistkit.model import GistModel
from gistkit.store import GistKey, GistStore
from gistkit.testing import tiny_gist_model

DIGEST = "ab" * 32


@pytest.fixture(scope="module")
def model() -> GistModel:
    return tiny_gist_model(num_gist_tokens=[2])


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> GistStore:
    return GistStore(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def id(model: GistModel, store: GistStore) -> str:
    store.get_or_compress(model, "Say it.")
    return GistKey.of(model, "Say it.").id


@pytest.fixture(scope="module")
def served(model: GistModel, store: GistStore) -> Served:
    config = connector_config(model, store.place, adapters={"polite": "f" * 64})
    return Served.of(config["kv_connector_extra_config"])


def test_a_gist_is_loaded(model: GistModel, store: GistStore, id: str, served: Served) -> None:
    prompt = [model.gist_id] * 2 + model.encoder.input("a")
    assert read({"gist": id}, prompt, "", served, store) == Load(id, 2)


def test_a_gist_is_saved(model: GistModel, store: GistStore, served: Served) -> None:
    key = GistKey.of(model, "Sing it.")
    prompt = [*key.tokens, *[model.gist_id] * 2]
    params = {"compress": key.to_json(), "instruction_sha256": DIGEST}
    assert read(params, prompt, "", served, store) == Save(key, DIGEST)


@pytest.mark.parametrize("params", [None, {}, {"do_remote_prefill": True}])
def test_what_is_not_ours_is_left_alone(
    params: dict[str, Any] | None, store: GistStore, served: Served
) -> None:
    assert read(params, None, "unheard of", served, store) is None


@pytest.mark.parametrize(
    ("asked", "prompt", "adapter", "error"),
    [
        ("0" * 64, None, "", GistFileError),
        ("../../etc/passwd", None, "", OptionError),
        (7, None, "", OptionError),
        (None, [], "", PromptError),
        (None, [1, 1, 1], "", PromptError),  # no placeholders
        (None, None, "polite", GistMismatchError),  # a gist of the model without its adapter
        (None, None, "unheard of", GistMismatchError),
    ],
)
def test_a_gist_that_cannot_be_loaded(
    asked: object,
    prompt: list[int] | None,
    adapter: str,
    error: type[Exception],
    model: GistModel,
    store: GistStore,
    id: str,
    served: Served,
) -> None:
    given = [model.gist_id] * 2 + [3] if prompt is None else prompt
    with pytest.raises(error):
        read({"gist": id if asked is None else asked}, given, adapter, served, store)


def test_a_prompt_of_placeholders_alone_is_refused(
    model: GistModel, store: GistStore, id: str, served: Served
) -> None:
    with pytest.raises(PromptError, match="2 times"):
        read({"gist": id}, [model.gist_id] * 2, "", served, store)
    with pytest.raises(PromptError, match="embeddings"):
        read({"gist": id}, None, "", served, store)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"compress": "a"}, OptionError),
        ({"compress": {"model": "m"}}, OptionError),
        ({"instruction_sha256": None}, OptionError),
        ({"instruction_sha256": "../x"}, OptionError),
    ],
)
def test_a_gist_that_cannot_be_saved(
    change: dict[str, Any],
    error: type[Exception],
    model: GistModel,
    store: GistStore,
    served: Served,
) -> None:
    key = GistKey.of(model, "Sing it.")
    prompt = [*key.tokens, *[model.gist_id] * 2]
    params = {"compress": key.to_json(), "instruction_sha256": DIGEST} | change
    with pytest.raises(error):
        read(params, prompt, "", served, store)


def test_nobody_writes_a_gist_under_another_instruction(
    model: GistModel, store: GistStore, served: Served
) -> None:
    key = GistKey.of(model, "Sing it.")
    params = {"compress": key.to_json(), "instruction_sha256": DIGEST}
    with pytest.raises(PromptError):
        read(params, [5, *key.tokens[1:], *[model.gist_id] * 2], "", served, store)
    with pytest.raises(GistMismatchError):
        read(params, [*key.tokens, *[model.gist_id] * 2], "polite", served, store)


def test_an_adapter_compresses_elsewhere(
    model: GistModel, store: GistStore, served: Served
) -> None:
    """vLLM takes no row of <GIST> from an adapter, so what it made would be another gist."""
    key = replace(GistKey.of(model, "Sing it."), model=served.models["polite"])
    params = {"compress": key.to_json(), "instruction_sha256": DIGEST}
    with pytest.raises(OptionError, match="adapter"):
        read(params, [*key.tokens, *[model.gist_id] * 2], "polite", served, store)


def test_the_room_that_gists_may_take(model: GistModel, store: GistStore) -> None:
    config = connector_config(model, store.place, max_memory_bytes=1000)
    assert Served.of(config["kv_connector_extra_config"]).max_memory_bytes == 1000
    with pytest.raises(OptionError):
        Served.of(config["kv_connector_extra_config"] | {"max_memory_bytes": "all"})


def test_a_config_that_lacks_something() -> None:
    with pytest.raises(OptionError, match="gist_id"):
        Served.of({"models": {"": "m"}, "store": "s"})
