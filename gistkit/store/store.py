"""GistStore: the one home of compressed instructions, for a process and for many.

    get(key):   memory ──> folder (mapped, checked) ──> remote ──> None
    put(key):   remote ──> folder (fsync, rename, index); then it is acknowledged

Knows nothing about serving. Safe from many threads and processes at once; not across `os.fork`
(open it in the child).
"""

import math
import os
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from gistkit.errors import GistFileError, GistMismatchError, OptionError, SaveError
from gistkit.gist import Gist
from gistkit.single_flight import SingleFlight
from gistkit.store.entry import Entry, Label, check_id, content_id
from gistkit.store.folder import Found
from gistkit.store.key import GistKey
from gistkit.store.remote import Remote, cache_of
from gistkit.store.tiers import Tiers

if TYPE_CHECKING:
    from gistkit.model import GistModel

MEMORY = 256 * 2**20
"""Bytes of activations kept in memory where nobody says how many."""

COUNTS = (
    *("hits_memory", "hits_disk", "hits_remote", "misses", "compressed", "unsaved"),
    *("evictions", "quarantined", "remote_errors"),
)


class GistStore:
    """Gists by their content address.

    Args:
        place: a folder, made where there is none; or a URL that fsspec knows ("s3://bucket/gists",
            "memory://gists"): then a local folder is the cache of it.
        max_bytes: quota of the folder; beyond it the least recently used go, pinned ones never.
        max_memory_bytes: quota of the memory tier; 0: none.
        ttl: seconds after which a gist expires; None: never.
        cache_dir: folder of the local cache of a URL; default below ~/.cache/gistkit/store.

    Raises:
        OptionError: an empty place, a number below zero, or no such kind of URL.
        SaveError: the folder cannot be made.
        MissingExtraError: what this kind of URL needs is not installed.
    """

    def __init__(
        self,
        place: str | os.PathLike[str],
        *,
        max_bytes: int | None = None,
        max_memory_bytes: int = MEMORY,
        ttl: float | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        for name, number in (("max_bytes", max_bytes), ("max_memory_bytes", max_memory_bytes)):
            if number is not None and number < 0:
                raise OptionError(f"{name} must be 0 or more, not {number}")
        self.place = os.fspath(place)
        if not self.place:  # as from a variable that is not set; the system takes it for "."
            raise OptionError("the store's place is empty; give a folder or a URL")
        self.ttl = _check_ttl(ttl)
        remote = Remote(self.place) if "://" in self.place else None
        self._tiers = Tiers(
            Path(self.place) if remote is None else Path(cache_dir or cache_of(self.place)),
            remote,
            max_bytes=max_bytes,
            max_memory_bytes=max_memory_bytes,
        )
        self._flights = SingleFlight()
        self._compressing = threading.Lock()

    @staticmethod
    def default_place() -> str:
        """$GISTKIT_STORE, else ~/.cache/gistkit/gists: where a place need not be named."""
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        return os.environ.get("GISTKIT_STORE") or str(Path(home) / "gistkit" / "gists")

    def get(self, key: GistKey) -> Gist | None:
        """The gist of `key`, on the CPU; None where there is none, it expired, or it is damaged.

        A damaged file is moved to quarantine. Do not write into the tensors: callers share them.
        """
        try:
            found, tier = self._tiers.look(key.id)
        except GistFileError:
            found, tier = None, ""
        if found is None or found.label.key != key:  # the same hash is not yet the same key
            self._tiers.disk.used(None, "misses")
            return None
        self._tiers.disk.used(key.id, tier)
        return found.gist

    def held(self, key: GistKey) -> Gist | None:
        """The gist of `key` if it is in memory; waits for nothing, so an event loop may ask.

        None where `get` has to look, and now and then where it only has to write down what was
        used.
        """
        found = self._tiers.held(key.id)
        if found is None or found.label.key != key or self._tiers.disk.due:
            return None
        self._tiers.disk.note(key.id, "hits_memory")
        return found.gist

    def load(self, id: str) -> Gist:
        """The gist with this id.

        Raises:
            OptionError: it is no id.
            GistFileError: there is none (any more), or it was damaged and is now in quarantine.
        """
        found, tier = self._tiers.look(check_id(id))
        if found is None:
            self._tiers.disk.used(None, "misses")
            raise self._nothing(id)
        self._tiers.disk.used(id, tier)
        return found.gist

    def put(
        self,
        key: GistKey | None,
        gist: Gist,
        *,
        pinned: bool | None = None,
        ttl: float | None = None,
    ) -> str:
        """Keep `gist` (one row); when this returns, it survives a crash. Replaces what was there.

        Args:
            key: from `GistKey.of`; None for a gist that came as a file: it is found by its id
                alone and never answers for an instruction.
            pinned: never evict it; None: as before, and at first not.
            ttl: seconds until it expires; None: as before, and at first the store's.

        Returns:
            Its id: `key.id`, or the SHA-256 of what the gist holds (without its fidelity).

        Raises:
            GistMismatchError: more than one row, or it cannot be this key's.
            OptionError: `ttl` is not above 0.
            SaveError: it could not be written, or does not fit the quota.
        """
        if key is not None:
            key.check(gist)
        elif len(gist) != 1:
            raise GistMismatchError(f"a store keeps gists one by one, not {len(gist)} in a batch")
        id = content_id(gist) if key is None else key.id
        now = time.time()
        before = None
        with suppress(GistFileError):
            before = self._tiers.find(id)
        if ttl is None and before is not None:
            expires = before.expires
        else:
            lasts = self.ttl if ttl is None else _check_ttl(ttl)
            expires = None if lasts is None else now + lasts
        if pinned is None:
            pinned = before is not None and before.pinned
        self._tiers.write(id, gist, Label(key=key, created=now, expires=expires, pinned=pinned))
        return id

    def update(self, id: str, gist: Gist) -> None:
        """Keep what is known of a stored gist now (`with_fidelity`); its pin and time stay.

        Raises:
            OptionError: it is no id.
            GistMismatchError: this is another gist than the one with this id.
            GistFileError: there is none (any more).
            SaveError: it could not be written.
        """
        found = self._found(id)
        if content_id(gist) != content_id(found.gist):
            raise GistMismatchError(f"this is not the gist {id}")
        self._rewrite(found, gist, found.label)

    def get_or_compress(
        self,
        model: "GistModel",
        instruction: str,
        *,
        num_gist_tokens: int | None = None,
        allow_untrained: bool = False,
        pinned: bool | None = None,
        ttl: float | None = None,
    ) -> Gist:
        """The instruction's gist, on the model's device: from here, or compressed now and kept.

        Threads that ask for the same at once wait for one compression, and the store compresses
        one instruction at a time. Where the gist cannot be kept (disk full, read-only), it is
        returned all the same and counted as `unsaved`.

        Raises: as `GistModel.compress`.
        """
        k = model.check_k(num_gist_tokens, allow_untrained=allow_untrained)
        key = GistKey.of(model, instruction, k)
        gist = self.get(key)
        if gist is not None:
            return gist.to(device=model.device)
        return self._flights.run(
            key.id, lambda: self._compress(model, instruction, key, allow_untrained, pinned, ttl)
        )

    def find(self, id: str) -> Entry | None:
        """What is known of the gist with this id; None: there is none (any more).

        Raises:
            OptionError: it is no id.
            GistFileError: the store cannot be read.
        """
        return self._tiers.find(check_id(id))

    def entries(self) -> list[Entry]:
        """All gists that have not expired, the last used first.

        Of a URL all its gists, whether they are in the local cache or not.

        Raises:
            GistFileError: the store cannot be read.
        """
        return self._tiers.entries()

    def remove(self, id: str) -> bool:
        """Delete a gist, pinned or not; False where there was none.

        Raises:
            OptionError: it is no id.
            SaveError: it could not be deleted.
        """
        return self._tiers.remove(check_id(id))

    def pin(self, id: str, pinned: bool = True) -> None:
        """Keep from eviction, or no longer.

        Raises:
            OptionError: it is no id.
            GistFileError: there is none.
            SaveError: it could not be written.
        """
        self._relabel(id, pinned=pinned)

    def expire(self, id: str, ttl: float | None) -> None:
        """Have a gist expire in `ttl` seconds; None: never (raises as `pin`)."""
        lasts = _check_ttl(ttl)
        self._relabel(id, expires=None if lasts is None else time.time() + lasts)

    def verify(self) -> dict[str, Any]:
        """Read every gist; damaged ones go to quarantine. {"checked": n, "damaged": [ids]}.

        Raises:
            GistFileError, SaveError: the store cannot be read, or its remote place not mended.
        """
        checked, damaged = self._tiers.verify()
        return {"checked": len(checked), "damaged": sorted(damaged)}

    def gc(self) -> dict[str, int]:
        """Remove what expired and leftovers of killed writers; counts of each (raises SaveError).

        Quarantine is left alone: look at it, then delete it.
        """
        return self._tiers.collect()

    def stats(self) -> dict[str, int]:
        """Counts by name: entries, bytes, hits, misses, evictions, quarantined and others.

        Those of the folder are all processes' together, since it was made; `memory_*` are this
        one's. Of a URL they are the local cache's.
        """
        found = dict.fromkeys(COUNTS, 0) | self._tiers.disk.totals()
        found["hits"] = sum(found[f"hits_{tier}"] for tier in ("memory", "disk", "remote"))
        found["memory_entries"] = len(self._tiers.memory)
        found["memory_bytes"] = self._tiers.memory.num_bytes
        return found

    def close(self) -> None:
        """Write down what is only counted so far, and let go of the index."""
        self._tiers.disk.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _compress(
        self,
        model: "GistModel",
        instruction: str,
        key: GistKey,
        allow_untrained: bool,
        pinned: bool | None,
        ttl: float | None,
    ) -> Gist:
        found = None
        with self._compressing:
            # somebody may have been quicker, while this one looked
            with suppress(GistFileError):
                found, _ = self._tiers.look(key.id)
            if found is not None and found.label.key == key:
                return found.gist.to(device=model.device)
            gist = model.compress(
                instruction, num_gist_tokens=key.num_tokens, allow_untrained=allow_untrained
            )
        try:
            self.put(key, gist, pinned=pinned, ttl=ttl)
        except SaveError:
            self._tiers.disk.used(None, "unsaved")
            self._tiers.hold(key.id, gist, Label(key=key, created=time.time()))
        self._tiers.disk.used(None, "compressed")
        return gist

    def _relabel(self, id: str, **changes: Any) -> None:
        found = self._found(id)
        label = replace(found.label, **changes)
        if label != found.label or found.stamp is None:  # what is in memory alone may fit now
            self._rewrite(found, found.gist, label)

    def _found(self, id: str) -> Found:
        found, _ = self._tiers.look(check_id(id))
        if found is None:
            raise self._nothing(id)
        return found

    def _rewrite(self, found: Found, gist: Gist, label: Label) -> None:
        if not self._tiers.write(found.entry.id, gist, label, over=found):
            raise self._nothing(found.entry.id)

    def _nothing(self, id: str) -> GistFileError:
        return GistFileError(f"no gist {id} in {self.place}; see gistkit store ls")


def _check_ttl(ttl: float | None) -> float | None:
    if ttl is not None and not 0 < ttl < math.inf:
        raise OptionError(f"ttl must be above 0 seconds, not {ttl}")
    return ttl
