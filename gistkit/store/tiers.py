"""Memory, folder and remote place as one: looked through in this order, written in the other.

    memory ──> folder (the truth, or the cache of a remote place) ──> remote place

Knows ids, not keys.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from gistkit.errors import GistFileError, SaveError
from gistkit.gist import Gist
from gistkit.store.disk import Disk
from gistkit.store.entry import Entry, Label, entry_of
from gistkit.store.folder import Found
from gistkit.store.memory import Memory
from gistkit.store.remote import Remote, RemoteError

T = TypeVar("T")


class Tiers:
    """Where the gists of a store are.

    Args:
        root: the folder.
        remote: what it is the cache of; None: it is the truth itself.
        max_bytes: quota of the folder; None: no limit.
        max_memory_bytes: quota of the memory; 0: none.

    Raises:
        SaveError: the folder cannot be made.
    """

    def __init__(
        self, root: Path, remote: Remote | None, *, max_bytes: int | None, max_memory_bytes: int
    ) -> None:
        self.memory = Memory(max_memory_bytes)
        self.disk = Disk(root, max_bytes)
        self.remote = remote

    def look(self, id: str) -> tuple[Found | None, str]:
        """The gist with this id, and which count its place has.

        Raises:
            GistFileError: it was damaged and is in quarantine, and there is no other copy.
        """
        held = self.held(id)
        if held is not None:
            return held, "hits_memory"
        found, tier, problem = None, "hits_disk", None
        try:
            found = self.disk.read(id)
        except GistFileError as error:
            problem = error
        if found is None and self.remote is not None:
            found, tier = self._fetch(self.remote, id), "hits_remote"
        if found is None and problem is not None:
            raise problem
        if found is not None:
            self.memory.put(id, found)
        return found, tier

    def held(self, id: str) -> Found | None:
        """The gist with this id, where it is in memory and still is what the folder has."""
        held = self.memory.get(id)
        if held is None or (
            held.stamp == self.disk.stamp(id) and not held.entry.expired(time.time())
        ):
            return held
        self.memory.drop(id)  # removed, or written anew
        return None

    def write(self, id: str, gist: Gist, label: Label, *, over: Found | None = None) -> bool:
        """Keep a gist; when this returns it survives a crash.

        Args:
            over: what was found, to be written again; False: it was removed meanwhile, and stays
                so (a remote place may lose that race to another machine).

        Raises:
            SaveError: it could not be written.
            GistFileError: `over` was damaged meanwhile.
        """
        if over is not None and self.look(id)[0] is None:
            return False
        data = gist.to_bytes(entry=label.to_json())
        entry = entry_of(id, gist.header(), label, num_bytes=len(data))
        if self.remote is not None:
            self._told(self.remote.write, id, data)
        again = over is not None and over.stamp is not None and self.remote is None
        written = self.disk.write(replace(entry, last_used=time.time()), data, again=again)
        self.memory.drop(id)  # what is read again has been checked, and nobody writes into it
        return written

    def hold(self, id: str, gist: Gist, label: Label) -> None:
        """Keep a gist in memory alone."""
        entry = entry_of(id, gist.header(), label, num_bytes=gist.num_bytes)
        found = Found(gist.to(device="cpu"), label, entry, self.disk.stamp(id))
        self.memory.put(id, found)

    def find(self, id: str) -> Entry | None:
        """What is known of a gist that has not expired (raises GistFileError)."""
        entry = self.disk.find(id)
        if entry is None and self.remote is not None:
            entry = self._asked(self.remote.entry, id)
        return None if entry is None or entry.expired(time.time()) else entry

    def entries(self) -> list[Entry]:
        """All gists that have not expired, the last used first (raises GistFileError)."""
        entries = self.disk.entries()
        if self.remote is not None:
            there = self._asked(self.remote.ids)
            entries = [entry for entry in entries if entry.id in there]
            missing = sorted(there - {entry.id for entry in entries})
            others = (self._asked(self.remote.entry, id) for id in missing)
            entries += [entry for entry in others if entry is not None]
        now = time.time()
        return [entry for entry in entries if not entry.expired(now)]

    def remove(self, id: str) -> bool:
        """Delete a gist everywhere; False: there was none (raises SaveError)."""
        removed = self.remote is not None and self._told(self.remote.remove, id)
        removed = self.disk.remove(id) or removed
        self.memory.drop(id)
        return removed

    def verify(self) -> tuple[set[str], set[str]]:
        """Read everything; the ids that were read, and the damaged ones, now in quarantine.

        Raises:
            GistFileError, SaveError: it cannot be read, or damage cannot be put aside.
        """
        damaged = set()
        with self.disk.reading():
            ids = set(self.disk.folder.sizes())
        for id in ids:
            try:
                self.disk.read(id)
            except GistFileError:
                damaged.add(id)
                self.memory.drop(id)
        if self.remote is not None:
            for id in self._asked(self.remote.ids):
                ids.add(id)
                data = self._asked(self.remote.read, id)
                try:
                    _ = None if data is None else self.remote.check(id, data)
                except GistFileError:
                    damaged.add(id)
                    self._told(self.remote.set_aside, id)
                    self.disk.used(None, "quarantined")
        return ids, damaged

    def collect(self) -> dict[str, int]:
        """Remove what expired and what is left over; counts of each (raises SaveError)."""
        removed = self.disk.collect()
        if self.remote is not None:
            now = time.time()
            there = self._told(self.remote.ids)
            for id in there:
                entry = self._told(self.remote.entry, id)
                if entry is not None and entry.expired(now):
                    removed["expired"] += self._told(self.remote.remove, id)
            for entry in self.disk.entries():
                if entry.id not in there:  # somebody else has removed it
                    removed["missing"] += self.disk.remove(entry.id)
        return removed

    def _fetch(self, remote: Remote, id: str) -> Found | None:
        try:
            data = remote.read(id)
            if data is None:
                return None
            found = remote.check(id, data)
        except (RemoteError, GistFileError):  # another writer may be at it: `verify` cleans up
            self.disk.used(None, "remote_errors")
            return None
        if found.entry.expired(time.time()):
            return None
        try:
            self.disk.write(replace(found.entry, last_used=time.time()), data)
            return self.disk.read(id) or found
        except (SaveError, GistFileError):  # a cache that is full is only slow
            return found

    def _asked(self, question: Callable[..., T], *about: Any) -> T:
        try:
            return question(*about)
        except RemoteError as error:
            raise GistFileError(f"the store cannot be read: {error}") from error

    def _told(self, order: Callable[..., T], *about: Any) -> T:
        try:
            return order(*about)
        except RemoteError as error:
            raise SaveError(f"the store cannot be written: {error}") from error
