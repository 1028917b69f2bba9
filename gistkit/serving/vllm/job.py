"""One answer on its way through vLLM: what is asked, and what of it has been told.

    Job.body ──> server ── Said ──> Job.take ──> chunks ──> Job.chunks

Greedy answers to one prompt are all the same: one job is told `copies` times.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from gistkit.serving.engine import StreamChunk
from gistkit.serving.sampling import Sequence
from gistkit.serving.scheduler import Request
from gistkit.serving.vllm.client import Endpoint
from gistkit.serving.vllm.wire import Said


@dataclass(eq=False, slots=True, kw_only=True)
class Job(Request):
    """See above.

    Attributes:
        body: what a server is asked.
        make: begins its answer.
        index, copies: it is told as the answers `index` to `index + copies - 1`.
        what: gist or instruction that a server would better have at hand; "": none.
        whole: nobody looks at pieces: they are told when all are there.
        answer: as far as it has come.
        told: whether anybody saw a piece, so that it cannot begin anew.
        task: what works on it.
        endpoint: which server it is on.
    """

    body: Mapping[str, Any]
    make: Callable[["Job"], Sequence]
    index: int = 0
    copies: int = 1
    what: str = ""
    whole: bool = False
    answer: Sequence = field(init=False)
    told: bool = False
    task: "asyncio.Task[None] | None" = None
    endpoint: Endpoint | None = None
    _held: list[StreamChunk] = field(default_factory=list)
    _marked: bool = False

    def __post_init__(self) -> None:
        self.answer = self.make(self)

    def again(self) -> None:
        """Begin anew, on another server."""
        assert not self.told
        self.answer = self.make(self)
        self._held = []

    def take(self, said: Said) -> None:
        """More of the answer; what comes behind its end is left out."""
        likeliest = 1 + (self.prepared.sampling.logprobs or 0)
        new = []
        for place, token in enumerate(said.tokens):
            if self.answer.done:
                break
            likely = said.likely[place][:likeliest] if said.likely else ()
            chunk = self.answer.append(token, likely)
            if chunk is not None:
                new.append(chunk)
        if self.whole:
            self._held += new
            new = []
            if self.answer.done:
                new = self._held
            elif not self._marked:  # so that it is known when the first token came
                self._marked = True
                self.chunks.put_nowait(StreamChunk(self.index, "", 0))
        self.told = self.told or bool(new)
        for chunk in new:
            for copy in range(self.copies):
                self.chunks.put_nowait(replace(chunk, index=self.index + copy))
