"""An answer as it grows: one thread generates ids, another reads text that is final.

Held back until more is known: bytes of an unfinished letter, white space that may be the last, and
what may become a stop string. So the pieces, joined, are the answer that `generate` gives.
"""

import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence

from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from gistkit.models.inputs import cut_at

UNFINISHED = "\N{REPLACEMENT CHARACTER}"


class Abandoned(Exception):
    """Raised in the generating thread when its reader has left."""


class TokenQueue(BaseStreamer):
    """New ids of one sequence, handed from thread to thread."""

    def __init__(self) -> None:
        self._ids: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._prompt_seen = False
        self.abandoned = False

    def put(self, value: Tensor) -> None:
        """Take ids from `generate`, which shows the prompt first."""
        if self.abandoned:
            raise Abandoned
        if self._prompt_seen:
            for token in value.flatten().tolist():
                self._ids.put(token)
        self._prompt_seen = True

    def end(self) -> None:
        self._ids.put(None)

    def __iter__(self) -> Iterator[int]:
        return iter(self._ids.get, None)


def stream_text(
    generate: Callable[..., object],
    decode: Callable[[list[int]], str],
    stops: Sequence[str],
) -> Iterator[str]:
    """Run `generate(streamer=...)` in a thread and yield its answer in pieces.

    Leaving early ends the thread. Raises: what `generate` raises.
    """
    tokens, failures = TokenQueue(), list[BaseException]()

    def run() -> None:
        try:
            generate(streamer=tokens)
        except Abandoned:
            pass
        except BaseException as error:  # handed to the reader's thread
            failures.append(error)
        finally:
            tokens.end()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield from pieces(tokens, decode, stops)
    finally:
        tokens.abandoned = True
        thread.join()
    if failures:
        raise failures[0]


def pieces(
    tokens: Iterable[int], decode: Callable[[list[int]], str], stops: Sequence[str]
) -> Iterator[str]:
    """The text of `tokens` as soon as it is final.

    >>> list(pieces([72, 105, 32, 33, 10], lambda ids: bytes(ids).decode(), ["!!"]))
    ['H', 'i', ' !']
    """
    growing = Growing(decode, stops)
    for token in tokens:
        if piece := growing.push(token):
            yield piece
    if rest := growing.rest():
        yield rest


class Growing:
    """A text made of tokens that come one by one.

    Attributes:
        stopped: whether a stop string has come; the text ends before it.
    """

    def __init__(self, decode: Callable[[list[int]], str], stops: Sequence[str]) -> None:
        self.ids: list[int] = []
        self.stopped = False
        self._decode, self._stops = decode, stops
        self._sent = 0
        self._text = ""  # of the tokens before `_until`
        self._start = self._until = 0  # a decoder sees the tokens between, to know the next ones'

    def push(self, token: int) -> str:
        """Take a token; returns what of the text became final by it, often nothing."""
        self.ids.append(token)
        text = self._read()
        if any(stop in text for stop in self._stops):
            self.stopped = True
            return ""  # which stop string comes first is known when all tokens are
        return self._new(settled(text, self._stops).strip())

    def rest(self) -> str:
        """What is left when no more tokens come."""
        return self._new(cut_at(self._decode(self.ids), self._stops))

    def _read(self) -> str:
        """The text so far, from the last few tokens: decoding all each time is quadratic."""
        before = self._decode(self.ids[self._start : self._until])
        now = self._decode(self.ids[self._start :])
        text = self._text + now[len(before) :]
        if len(now) > len(before) and not now.endswith(UNFINISHED):
            self._text, self._start, self._until = text, self._until, len(self.ids)
        return text

    def _new(self, text: str) -> str:
        new = text[self._sent :]
        self._sent = max(self._sent, len(text))
        return new


def settled(text: str, stops: Sequence[str]) -> str:
    """`text` without an end that may still change."""
    text = text.rstrip(UNFINISHED)
    open_ends = (n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n]))
    return text[: len(text) - max(open_ends, default=0)]
