"""GistStore: compressed instructions by what they are made of, for one process or many.

    get(key):   memory ──> folder (read, checked) ──> remote ──> None
    put(key):   remote ──> folder (fsync, rename, index); then it is acknowledged

Knows nothing about serving. Safe for many threads and processes at once; not across `os.fork`
(open it in the child).
"""

import hashlib
import math
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from gistkit.errors import GistFileError, GistMismatchError, OptionError, SaveError
from gistkit.gist import Gist
from gistkit.single_flight import SingleFlight
from gistkit.store.disk import Disk
from gistkit.store.entry import Entry, GistKey, Record, Stamp, check_id, check_single, content_id
from gistkit.store.tiers import Remote, Tier

if TYPE_CHECKING:
    from gistkit.model import GistModel

MEMORY = 256 * 2**20
"""Default bytes of activations kept in memory."""

COUNTS = (
    *("hits_memory", "hits_disk", "hits_remote", "misses", "compressed", "unsaved"),
    *("evictions", "quarantined", "remote_errors"),
)


class Memory:
    """At most `max_bytes` of activations, the least recently used go first.

    Args:
        max_bytes: 0: none.
        stamp: which file the folder has for an id; a gist of another file is forgotten.
    """

    name = "memory"

    def __init__(self, max_bytes: int, stamp: Callable[[str], Stamp | None]) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._stamp = stamp
        self._records: OrderedDict[str, Record] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._records)

    def read(self, id: str) -> Record | None:
        with self._lock:
            record = self._records.get(id)
            if record is None:
                return None
            self._records.move_to_end(id)
        if record.stamp != self._stamp(id) or record.entry.expired(time.time()):
            self.remove(id)
            return None
        return record

    def write(self, record: Record) -> Record:
        id, size = record.entry.id, record.gist.num_bytes
        with self._lock:
            self._drop(id)
            if size <= self.max_bytes:
                self._records[id] = replace(record, data=b"")
                self.num_bytes += size
            while self.num_bytes > self.max_bytes:
                self._drop(next(iter(self._records)))
        return record

    def remove(self, id: str) -> bool:
        with self._lock:
            return self._drop(id)

    def _drop(self, id: str) -> bool:
        record = self._records.pop(id, None)
        if record is not None:
            self.num_bytes -= record.gist.num_bytes
        return record is not None


class GistStore:
    """Gists by their content address.

    Args:
        place: a folder, created if it is missing; or a URL that fsspec knows ("s3://bucket/gists",
            "memory://gists"), with a local folder as its cache.
        max_bytes: quota of the folder; the least recently used are evicted, pinned ones never.
        max_memory_bytes: quota of the memory tier; 0: none.
        ttl: seconds after which a gist expires; None: never.
        cache_dir: folder of the local cache of a URL; default below ~/.cache/gistkit/store.

    Raises:
        OptionError: an empty place, a number below zero, or no such kind of URL.
        SaveError: the folder cannot be created.
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
                raise OptionError(f"`{name}` must be 0 or more, not {number}")
        self.place = os.fspath(place)
        if not self.place:  # as from a variable that is not set; the system takes it for "."
            raise OptionError("the store's place is empty; give a folder or a URL")
        _expiry(ttl, 0)  # checks it
        self.ttl = ttl
        self._remote = Remote(self.place) if "://" in self.place else None
        root = Path(self.place) if self._remote is None else Path(cache_dir or _cache(self.place))
        self._disk = Disk(root, max_bytes)
        self._memory = Memory(max_memory_bytes, self._disk.stamp)
        self._tiers: list[Tier] = [self._memory, self._disk]
        if self._remote is not None:
            self._tiers.append(self._remote)
        self._flights = SingleFlight()
        self._compressing = threading.Lock()

    @staticmethod
    def default_place() -> str:
        """$GISTKIT_STORE, else ~/.cache/gistkit/gists: the store if no place is given."""
        return os.environ.get("GISTKIT_STORE") or str(_cache_home() / "gistkit" / "gists")

    def get(self, key: GistKey) -> Gist | None:
        """The gist of `key`, on the CPU; None if there is none, it expired, or it is damaged.

        A damaged file is moved to quarantine. Do not write into the tensors: callers share them.
        """
        gist, hit = self._find(key)
        self._disk.used(key.id if gist is not None else None, hit)
        return gist

    def held(self, key: GistKey) -> Gist | None:
        """The gist of `key` if it is in memory; never blocks, so an event loop may call it.

        None where `get` has to look, and now and then where it only has to write down what was
        used.
        """
        record = self._memory.read(key.id)
        if record is None or record.key != key or self._disk.due:
            return None
        self._disk.note(key.id, "hits_memory")
        return record.gist

    def load(self, id: str) -> Gist:
        """The gist with this id.

        Raises:
            OptionError: it is no id.
            GistFileError: there is none, or it was damaged and is now in quarantine.
        """
        record, hit = self._look(check_id(id))
        self._disk.used(id if record is not None else None, hit)
        if record is None:
            raise self._nothing(id)
        return record.gist

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
            pinned: never evict it; None: as before, or False for a new gist.
            ttl: seconds until it expires; None: as before, or the store's for a new gist.

        Returns:
            Its id: `key.id`, or the SHA-256 of what the gist holds (without its fidelity).

        Raises:
            GistMismatchError: more than one row, or it cannot be this key's.
            OptionError: `ttl` is not above 0.
            SaveError: it could not be written, or does not fit the quota.
        """
        if key is not None:
            key.check(gist)
        id = content_id(check_single(gist)) if key is None else key.id
        now, before = time.time(), None
        expires = _expiry(self.ttl if ttl is None else ttl, now)
        with suppress(GistFileError):
            before = self.find(id)
        if before is not None:
            expires = before.expires if ttl is None else expires
            pinned = before.pinned if pinned is None else pinned
        self._write(Record.of(id, key, gist, created=now, expires=expires, pinned=bool(pinned)))
        return id

    def update(self, id: str, gist: Gist) -> None:
        """Replace what a stored gist says of itself (`with_fidelity`); pin and expiry stay.

        Raises:
            OptionError: it is no id.
            GistMismatchError: `gist` is another gist than the one with this id.
            GistFileError: there is none.
            SaveError: it could not be written.
        """
        record = self._record(id)
        if content_id(gist) != content_id(record.gist):
            raise GistMismatchError(f"this is not the gist {id}")
        self._rewrite(record, gist)

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
        """The instruction's gist, on the model's device: from the store, or compressed and stored.

        Threads that ask for the same gist wait for one compression, and the store compresses one
        instruction at a time. A gist that cannot be stored (disk full, read-only) is returned
        nevertheless, and counted as `unsaved`.

        Raises: as `GistModel.compress`.
        """
        k = model.check_k(num_gist_tokens, allow_untrained=allow_untrained)
        key = GistKey.of(model, instruction, k)
        gist = self.get(key)
        if gist is not None:
            return gist.to(device=model.device)

        def compress() -> Gist:
            with self._compressing:
                # another thread or process may have been faster
                found, _ = self._find(key)
                if found is not None:
                    return found.to(device=model.device)
                made = model.compress(
                    instruction, num_gist_tokens=k, allow_untrained=allow_untrained
                )
            try:
                self.put(key, made, pinned=pinned, ttl=ttl)
                with suppress(GistFileError):
                    self._look(key.id)  # into memory, where the next caller finds it
            except SaveError:
                self._disk.used(None, "unsaved")
                on_cpu, now = made.to(device="cpu"), time.time()
                unsaved = Record.of(key.id, key, on_cpu, created=now, expires=None, pinned=False)
                self._memory.write(replace(unsaved, stamp=self._disk.stamp(key.id)))
            self._disk.used(None, "compressed")
            return made

        return self._flights.run(key.id, compress)

    def find(self, id: str) -> Entry | None:
        """What is known of the gist with this id; None: there is none, or it expired.

        Raises:
            OptionError: it is no id.
            GistFileError: the store cannot be read.
        """
        entry = self._disk.find(check_id(id))
        if entry is None and self._remote is not None:
            entry = self._remote.find(id)
        return None if entry is None or entry.expired(time.time()) else entry

    def entries(self) -> list[Entry]:
        """All gists that have not expired, the last used first (raises GistFileError).

        For a URL these are all its gists, in the local cache or not.
        """
        entries = self._disk.entries()
        if self._remote is not None:
            there = self._remote.ids()
            entries = [entry for entry in entries if entry.id in there]
            missing = sorted(there - {entry.id for entry in entries})
            others = (self._remote.find(id) for id in missing)
            entries += [entry for entry in others if entry is not None]
        now = time.time()
        return [entry for entry in entries if not entry.expired(now)]

    def remove(self, id: str) -> bool:
        """Delete a gist, pinned or not; False if there was none (raises OptionError, SaveError)."""
        check_id(id)
        held = self._memory.read(id) is not None  # not if another process removed it
        removed = [tier.remove(id) for tier in reversed(self._tiers) if tier is not self._memory]
        self._memory.remove(id)
        return held or any(removed)

    def pin(self, id: str, pinned: bool = True) -> None:
        """Keep from eviction, or no longer.

        Raises:
            OptionError: it is no id.
            GistFileError: there is none.
            SaveError: it could not be written.
        """
        self._rewrite(self._record(id), pinned=pinned)

    def expire(self, id: str, ttl: float | None) -> None:
        """Have a gist expire in `ttl` seconds; None: never (raises as `pin`)."""
        expires = _expiry(ttl, time.time())
        self._rewrite(self._record(id), expires=expires)

    def verify(self) -> dict[str, Any]:
        """Read every gist; damaged ones go to quarantine. {"checked": n, "damaged": [ids]}.

        Raises:
            GistFileError, SaveError: the store cannot be read, or damaged objects not moved.
        """
        ids, damaged = self._disk.verify()
        if self._remote is not None:
            others, wrong = self._remote.verify()
            ids, damaged = ids | others, damaged | wrong
            self._disk.used(None, *["quarantined"] * len(wrong))
        return {"checked": len(ids), "damaged": sorted(damaged)}

    def gc(self) -> dict[str, int]:
        """Remove what expired and leftovers of killed writers; counts of each.

        Quarantine is left alone: look at it, then delete it.

        Raises:
            GistFileError, SaveError: the store cannot be read or written.
        """
        removed = self._disk.collect()
        if self._remote is not None:
            there, now = self._remote.ids(), time.time()
            for id in there:
                entry = self._remote.find(id)
                if entry is not None and entry.expired(now):
                    removed["expired"] += self._remote.remove(id)
            for entry in self._disk.entries():
                if entry.id not in there:  # removed by another machine
                    removed["missing"] += self._disk.remove(entry.id)
        return removed

    def stats(self) -> dict[str, int]:
        """Counts by name: entries, bytes, hits, misses, evictions, quarantined and others.

        Those of the folder are all processes' together, since it was created; `memory_*` are this
        process's. For a URL they are the local cache's.
        """
        found = dict.fromkeys(COUNTS, 0) | self._disk.totals()
        found["hits"] = sum(found[f"hits_{tier}"] for tier in ("memory", "disk", "remote"))
        found["memory_entries"] = len(self._memory)
        found["memory_bytes"] = self._memory.num_bytes
        return found

    def close(self) -> None:
        """Write down what is only counted so far, and close the index."""
        self._disk.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _find(self, key: GistKey) -> tuple[Gist | None, str]:
        """The gist of a key, and what to count."""
        with suppress(GistFileError):
            record, hit = self._look(key.id)
            if record is not None and record.key == key:  # the same hash is not yet the same key
                return record.gist, hit
        return None, "misses"

    def _look(self, id: str) -> tuple[Record | None, str]:
        """The gist from the first tier that has it, now in those above too, and what to count.

        Raises:
            GistFileError: it was damaged and is in quarantine, and there is no other copy.
        """
        problem = None
        for depth, tier in enumerate(self._tiers):
            try:
                record = tier.read(id)
            except GistFileError as error:
                if tier is self._remote:  # another writer may be at it: `verify` cleans up
                    self._disk.used(None, "remote_errors")
                else:
                    problem = error
                continue
            if record is not None:
                for above in reversed(self._tiers[:depth]):
                    with suppress(SaveError):  # a full cache is only slow
                        record = above.write(record) or record
                return record, f"hits_{tier.name}"
        if problem is not None:
            raise problem
        return None, "misses"

    def _write(self, record: Record, *, over: Record | None = None) -> bool:
        """Write to all tiers but memory, which takes what was read again and checked.

        False: `over`, which this was to replace, was removed meanwhile (a remote place may lose
        that race to another machine).
        """
        id = record.entry.id
        if over is not None and self._look(id)[0] is None:
            return False
        replacing = over is not None and over.stamp is not None and self._remote is None
        if self._remote is not None:
            self._remote.write(record)
        written = self._disk.write(record, replacing=replacing)
        self._memory.remove(id)
        return written is not None

    def _record(self, id: str) -> Record:
        record, _ = self._look(check_id(id))
        if record is None:
            raise self._nothing(id)
        return record

    def _rewrite(self, record: Record, gist: Gist | None = None, **changes: Any) -> None:
        entry = replace(record.entry, **changes)
        if gist is None and entry == record.entry and record.stamp is not None:
            return  # what is in memory alone is written: it may fit now
        label = {name: getattr(entry, name) for name in ("created", "expires", "pinned")}
        rewritten = Record.of(entry.id, record.key, gist or record.gist, **label)
        if not self._write(rewritten, over=record):
            raise self._nothing(entry.id)

    def _nothing(self, id: str) -> GistFileError:
        return GistFileError(f"no gist {id} in {self.place}; see gistkit store ls")


def _expiry(ttl: float | None, now: float) -> float | None:
    if ttl is not None and not 0 < ttl < math.inf:
        raise OptionError(f"`ttl` must be above 0 seconds, not {ttl}")
    return None if ttl is None else now + ttl


def _cache_home() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def _cache(url: str) -> Path:
    return _cache_home() / "gistkit" / "store" / hashlib.sha256(url.encode()).hexdigest()[:16]
