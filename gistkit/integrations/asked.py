"""What a request of vLLM's asks of the connector, in `kv_transfer_params`.

    {"gist": ID}                              k placeholders, then the input's tokens
    {"compress": GistKey.to_json(),           the instruction's tokens, then k placeholders
     "instruction_sha256": ...}

On the right is what the prompt must be; the placeholder is the model's `<GIST>` token. Knows
nothing of vLLM.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gistkit.errors import GistFileError, GistMismatchError, OptionError, PromptError
from gistkit.store import GistKey, GistStore
from gistkit.store.entry import ID
from gistkit.store.store import MEMORY


@dataclass(frozen=True, slots=True)
class Load:
    """Take the first k positions from a gist."""

    id: str
    k: int


@dataclass(frozen=True, slots=True)
class Save:
    """Keep the last k positions as a gist."""

    key: GistKey
    instruction_sha256: str

    @property
    def k(self) -> int:
        """The number of gist tokens."""
        return self.key.num_tokens


@dataclass(frozen=True, slots=True)
class Served:
    """What the engine runs, as whoever started it said.

    Attributes:
        models: fingerprint of the weights by the name of the LoRA adapter in use; "": none.
        gist_id: id of the `<GIST>` token.
        store: where the gists are.
        max_memory_bytes: of gists that each process keeps at hand.
        max_bytes: quota of the store; None: none.
    """

    models: Mapping[str, str]
    gist_id: int
    store: str
    max_memory_bytes: int = MEMORY
    max_bytes: int | None = None

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> "Served":
        """Read the connector's `kv_connector_extra_config` (raises OptionError)."""
        room, quota = given.get("max_memory_bytes", MEMORY), given.get("max_bytes")
        match given:
            case {
                "models": {"": str()} as models,
                "gist_id": int(gist_id),
                "store": str(store),
            } if isinstance(room, int) and isinstance(quota, int | None):
                return cls(models, gist_id, store, room, quota)
        raise OptionError(
            "kv_connector_extra_config lacks `models`, `gist_id` or `store`; make it with "
            "gistkit.integrations.start.connector_config"
        )


def read(
    params: Mapping[str, Any] | None,
    prompt: Sequence[int] | None,
    adapter: str,
    served: Served,
    store: GistStore,
) -> Load | Save | None:
    """What is asked; None: nothing of ours.

    Args:
        prompt: its token ids; None where the prompt came as embeddings.
        adapter: name of the request's LoRA; "": it has none.

    Raises:
        PromptError, OptionError, GistFileError, GistMismatchError: it cannot be done.
    """
    if not params or ("gist" not in params and "compress" not in params):
        return None
    if prompt is None:
        raise PromptError("a prompt with a gist must be token ids, not embeddings")
    model = served.models.get(adapter)
    if model is None:
        raise GistMismatchError(f"nothing is known of the adapter {adapter!r}; see `models`")
    if "gist" in params:
        return _load(params["gist"], prompt, model, served.gist_id, store)
    return _save(params, prompt, model, adapter, served.gist_id)


def _load(id: object, prompt: Sequence[int], model: str, gist_id: int, store: GistStore) -> Load:
    if not isinstance(id, str):
        raise OptionError("kv_transfer_params.gist must be a gist's id")
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
        raise OptionError("kv_transfer_params.compress is no gist's key") from error
    if key.model != model:
        raise GistMismatchError("the key is another model's or adapter's")
    if adapter:  # training gives <GIST> a row of its own, which vLLM takes from no adapter
        raise OptionError("vLLM does not compress with an adapter; let gistkit compress instead")
    if list(prompt) != [*key.tokens, *[gist_id] * key.num_tokens]:
        raise PromptError("the prompt must be the key's tokens and its k gist tokens")
    digest = params.get("instruction_sha256")
    if not isinstance(digest, str) or not ID.fullmatch(digest):
        raise OptionError("kv_transfer_params.instruction_sha256 must be 64 hex digits")
    return Save(key, digest)
