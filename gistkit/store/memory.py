"""The memory tier: whole gists, the least recently used go first. Knows nothing of files."""

import threading
from collections import OrderedDict

from gistkit.store.folder import Found


class Memory:
    """At most `max_bytes` of activations; safe from many threads."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._held: OrderedDict[str, Found] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._held)

    def get(self, id: str) -> Found | None:
        """The gist, which is now the last used."""
        with self._lock:
            found = self._held.get(id)
            if found is not None:
                self._held.move_to_end(id)
            return found

    def put(self, id: str, found: Found) -> None:
        """Keep it, where it fits at all."""
        with self._lock:
            self._drop(id)
            if found.gist.num_bytes > self.max_bytes:
                return
            self._held[id] = found
            self.num_bytes += found.gist.num_bytes
            while self.num_bytes > self.max_bytes:
                self._drop(next(iter(self._held)))

    def drop(self, id: str) -> None:
        """Forget it."""
        with self._lock:
            self._drop(id)

    def _drop(self, id: str) -> None:
        found = self._held.pop(id, None)
        if found is not None:
            self.num_bytes -= found.gist.num_bytes
