"""The connector's parameters of a vLLM request (`kv_transfer_params`), and the prompt they need.

    {"gist": ID}                              k placeholders, then the input's tokens
    {"compress": GistKey.to_json(),           the instruction's tokens, then k placeholders
     "instruction_sha256": ...}

The placeholder is the model's `<GIST>` token. Imports nothing of vLLM.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gistkit.errors import GistFileError, GistMismatchError, OptionError, PromptError
from gistkit.integrations.config import ConnectorConfig
from gistkit.store import GistKey, GistStore
from gistkit.store.entry import ID


@dataclass(frozen=True, slots=True)
class Load:
    """Load the first k positions from a stored gist."""

    id: str
    k: int


@dataclass(frozen=True, slots=True)
class Save:
    """Store the last k positions as a gist."""

    key: GistKey
    instruction_sha256: str

    @property
    def k(self) -> int:
        return self.key.num_tokens


def parse_request(
    params: Mapping[str, Any] | None,
    prompt: Sequence[int] | None,
    adapter: str,
    config: ConnectorConfig,
    store: GistStore,
) -> Load | Save | None:
    """What the connector is to do for a request; None: nothing.

    Args:
        prompt: its token ids; None where the prompt came as embeddings.
        adapter: name of its LoRA adapter; "": none.

    Raises:
        PromptError, OptionError, GistFileError, GistMismatchError: it cannot be done.
    """
    if not params or ("gist" not in params and "compress" not in params):
        return None
    if prompt is None:
        raise PromptError("a prompt with a gist must be token ids, not embeddings")
    model = config.models.get(adapter)
    if model is None:
        raise GistMismatchError(f"unknown adapter {adapter!r}; the connector's `models` lack it")
    if "gist" in params:
        return _load(params["gist"], prompt, model, config.gist_id, store)
    return _save(params, prompt, model, adapter, config.gist_id)


def _load(id: object, prompt: Sequence[int], model: str, gist_id: int, store: GistStore) -> Load:
    if not isinstance(id, str):
        raise OptionError("kv_transfer_params.gist must be the id of a gist")
    entry = store.find(id)
    if entry is None:
        raise GistFileError(f"no gist {id} in {store.place}")
    if entry.model != model:
        raise GistMismatchError(f"the gist {id} was made by another model or adapter")
    k = entry.num_tokens
    if len(prompt) <= k or any(token != gist_id for token in prompt[:k]):
        raise PromptError(
            f"the prompt must be {k} times the token {gist_id} and at least one token of input"
        )
    return Load(id, k)


def _save(
    params: Mapping[str, Any], prompt: Sequence[int], model: str, adapter: str, gist_id: int
) -> Save:
    try:
        key = GistKey.from_json(params["compress"])
    except ValueError as error:
        raise OptionError("kv_transfer_params.compress is not the key of a gist") from error
    if key.model != model:
        raise GistMismatchError("the key belongs to another model or adapter")
    if adapter:  # training gives <GIST> a row of its own, which vLLM takes from no adapter
        raise OptionError("vLLM cannot compress with an adapter; compress with gistkit instead")
    if list(prompt) != [*key.tokens, *[gist_id] * key.num_tokens]:
        raise PromptError("the prompt must be the key's tokens and its k gist tokens")
    digest = params.get("instruction_sha256")
    if not isinstance(digest, str) or not ID.fullmatch(digest):
        raise OptionError("kv_transfer_params.instruction_sha256 must be 64 hex digits")
    return Save(key, digest)
