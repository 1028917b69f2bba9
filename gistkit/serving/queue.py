"""Who waits, and whose turn it is: a bounded queue, one turn for each client after the other.

    client a   1 2 3
    client b   4            in turn: 1 4 5 2 6 3
    client c   5 6

Knows nothing about models or threads.
"""

from collections import deque
from collections.abc import Collection
from itertools import chain, zip_longest

from gistkit.serving.requests import Request


class Waiting:
    """Requests by client.

    Args:
        most: so many wait at the most.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._clients: dict[str, deque[Request]] = {}  # whose turn is next stands first

    def __len__(self) -> int:
        return sum(len(own) for own in self._clients.values())

    @property
    def full(self) -> bool:
        """Whether nobody else may wait."""
        return len(self) >= self.most

    def push(self, request: Request) -> None:
        """Line up (an assertion: there is room)."""
        assert not self.full
        self._clients.setdefault(request.client, deque()).append(request)

    def in_turn(self) -> list[Request]:
        """All, those first whose turn comes first."""
        turns = zip_longest(*self._clients.values())
        return [request for request in chain.from_iterable(turns) if request is not None]

    def remove(self, request: Request) -> bool:
        """Take out one that gives up; False: it is not here (any more)."""
        own = self._clients.get(request.client)
        if own is None or request not in own:
            return False
        own.remove(request)
        if not own:
            del self._clients[request.client]
        return True

    def serve(self, requests: Collection[Request]) -> None:
        """Take out those whose turn it was; their clients line up again behind the others."""
        for request in requests:
            own = self._clients.pop(request.client)
            own.remove(request)
            if own:
                self._clients[request.client] = own

    def clear(self) -> list[Request]:
        """Take out all."""
        everybody = self.in_turn()
        self._clients.clear()
        return everybody
