"""What a request asks of the connector, and what it must not."""

from dataclasses import replace
from typing import Any

import pytest

from gistkit.errors import GistFileError, GistMismatchError, OptionError, PromptError
from gistkit.integrations.config import ConnectorConfig, connector_config
from gistkit.integrations.requests import Load, Save, parse_request
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
def config(model: GistModel, store: GistStore) -> ConnectorConfig:
    config = connector_config(model, store.place, adapters={"polite": "f" * 64})
    return ConnectorConfig.parse(config["kv_connector_extra_config"])


def test_a_gist_is_loaded(
    model: GistModel, store: GistStore, id: str, config: ConnectorConfig
) -> None:
    prompt = [model.gist_id] * 2 + model.encoder.input("a")
    assert parse_request({"gist": id}, prompt, "", config, store) == Load(id, 2)


def test_a_gist_is_saved(model: GistModel, store: GistStore, config: ConnectorConfig) -> None:
    key = GistKey.of(model, "Sing it.")
    prompt = [*key.tokens, *[model.gist_id] * 2]
    params = {"compress": key.to_json(), "instruction_sha256": DIGEST}
    assert parse_request(params, prompt, "", config, store) == Save(key, DIGEST)


@pytest.mark.parametrize("params", [None, {}, {"do_remote_prefill": True}])
def test_what_is_not_ours_is_left_alone(
    params: dict[str, Any] | None, store: GistStore, config: ConnectorConfig
) -> None:
    assert parse_request(params, None, "unheard of", config, store) is None


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
    config: ConnectorConfig,
) -> None:
    given = [model.gist_id] * 2 + [3] if prompt is None else prompt
    with pytest.raises(error):
        parse_request({"gist": id if asked is None else asked}, given, adapter, config, store)


def test_a_prompt_of_placeholders_alone_is_refused(
    model: GistModel, store: GistStore, id: str, config: ConnectorConfig
) -> None:
    with pytest.raises(PromptError, match="2 times"):
        parse_request({"gist": id}, [model.gist_id] * 2, "", config, store)
    with pytest.raises(PromptError, match="embeddings"):
        parse_request({"gist": id}, None, "", config, store)


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
    config: ConnectorConfig,
) -> None:
    key = GistKey.of(model, "Sing it.")
    prompt = [*key.tokens, *[model.gist_id] * 2]
    params = {"compress": key.to_json(), "instruction_sha256": DIGEST} | change
    with pytest.raises(error):
        parse_request(params, prompt, "", config, store)


def test_nobody_writes_a_gist_under_another_instruction(
    model: GistModel, store: GistStore, config: ConnectorConfig
) -> None:
    key = GistKey.of(model, "Sing it.")
    params = {"compress": key.to_json(), "instruction_sha256": DIGEST}
    with pytest.raises(PromptError):
        parse_request(params, [5, *key.tokens[1:], *[model.gist_id] * 2], "", config, store)
    with pytest.raises(GistMismatchError):
        parse_request(params, [*key.tokens, *[model.gist_id] * 2], "polite", config, store)


def test_an_adapter_compresses_elsewhere(
    model: GistModel, store: GistStore, config: ConnectorConfig
) -> None:
    """vLLM takes no row of <GIST> from an adapter, so what it made would be another gist."""
    key = replace(GistKey.of(model, "Sing it."), model=config.models["polite"])
    params = {"compress": key.to_json(), "instruction_sha256": DIGEST}
    with pytest.raises(OptionError, match="adapter"):
        parse_request(params, [*key.tokens, *[model.gist_id] * 2], "polite", config, store)


def test_the_room_that_gists_may_take(model: GistModel, store: GistStore) -> None:
    config = connector_config(model, store.place, max_memory_bytes=1000)
    assert ConnectorConfig.parse(config["kv_connector_extra_config"]).max_memory_bytes == 1000
    with pytest.raises(OptionError):
        ConnectorConfig.parse(config["kv_connector_extra_config"] | {"max_memory_bytes": "all"})


def test_a_config_that_lacks_something() -> None:
    with pytest.raises(OptionError, match="gist_id"):
        ConnectorConfig.parse({"models": {"": "m"}, "store": "s"})
