"""A server as a process of its own, and its memory over time (Linux: read from /proc)."""

import asyncio
import json
import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

STARTS_WITHIN = 180.0  # seconds


@dataclass(slots=True)
class Served:
    """A server that answers.

    Attributes:
        port: on loopback.
        process: its process.
        log: what it wrote to standard error.
    """

    port: int
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def cpu_seconds(self) -> float:
        """That it has used."""
        # behind the command's name, which may hold blanks: fields 14 and 15 of proc(5)
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @property
    def rss(self) -> int:
        """Resident bytes."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def troubles(self) -> list[str]:
        """Lines of its log above the level info (of JSON logs)."""
        found = []
        with self.log.open() as lines:
            for line in lines:
                with suppress(ValueError):
                    if json.loads(line)["level"] != "info":
                        found.append(line.strip()[:400])
        return found


@dataclass(slots=True)
class Memory:
    """Resident bytes of a process, a sample a second.

    Attributes:
        seconds: since sampling began.
        rss: as many bytes.
    """

    seconds: list[float] = field(default_factory=list)
    rss: list[int] = field(default_factory=list)

    def slope(self, after: float) -> float:
        """Bytes a minute by least squares over the samples from `after` seconds on."""
        pairs = [(t, y) for t, y in zip(self.seconds, self.rss, strict=True) if t >= after]
        if len(pairs) < 2:
            return 0.0
        mean_t = sum(t for t, _ in pairs) / len(pairs)
        mean_y = sum(y for _, y in pairs) / len(pairs)
        spread = sum((t - mean_t) ** 2 for t, _ in pairs)
        return 60 * sum((t - mean_t) * (y - mean_y) for t, y in pairs) / spread


@contextmanager
def started(
    command: Sequence[str], *, port: int, alive: str, folder: Path, env: dict[str, str]
) -> Iterator[Served]:
    """Run a server until the block ends; it must answer at `alive` with status 200 first.

    Raises:
        RuntimeError: it ended, or did not answer in time; with the end of its log.
    """
    log = folder / "server.log"
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=env)
    try:
        until = time.monotonic() + STARTS_WITHIN
        while not _answers(f"http://127.0.0.1:{port}{alive}"):
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"{command[0]} did not start: {log.read_text()[-2000:]}")
            time.sleep(0.2)
        yield Served(port, process, log)
    finally:
        process.terminate()
        try:
            process.wait(40)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@asynccontextmanager
async def watched(served: Served) -> AsyncIterator[Memory]:
    """Sample its memory while the block runs."""
    memory = Memory()
    begun = time.perf_counter()

    async def sample() -> None:
        while True:
            memory.seconds.append(round(time.perf_counter() - begun, 2))
            memory.rss.append(served.rss)
            await asyncio.sleep(1)

    sampling = asyncio.create_task(sample())
    try:
        yield memory
    finally:
        sampling.cancel()
        with suppress(asyncio.CancelledError):
            await sampling


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
