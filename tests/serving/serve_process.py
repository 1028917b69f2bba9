"""`gistkit serve` as a process of its own."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai


@dataclass
class Process:
    """A server that listens; `lines` are what it says on standard error."""

    process: "subprocess.Popen[str]"
    lines: list[str] = field(default_factory=list)
    url: str = ""

    def client(self, key: str = "none") -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=60)

    def listen(self) -> None:
        """Take in what it says until it listens; the rest is taken in by a thread."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            if '"listening"' in line:
                self.url = json.loads(line)["url"]
                self._reader = threading.Thread(target=self._read, daemon=True)
                self._reader.start()
                return
        raise AssertionError("".join(self.lines))

    def events(self, name: str) -> list[dict[str, Any]]:
        """What it logged under this name."""
        found = [json.loads(line) for line in self.lines]
        return [one for one in found if one["event"] == name]

    def leave(self, sign: signal.Signals = signal.SIGTERM, seconds: float = 60) -> int:
        """Send a signal; the exit status."""
        self.process.send_signal(sign)
        status = self.process.wait(seconds)
        self._reader.join(10)
        return status

    def _read(self) -> None:
        assert self.process.stderr is not None
        self.lines += self.process.stderr


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "gistkit", "serve", *map(str, arguments)]


@contextmanager
def serving(folder: Path, *arguments: object) -> Iterator[Process]:
    """A server on a free port with a store in `folder`."""
    with subprocess.Popen(
        command("--port", 0, "--store", folder / "store", *arguments),
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "HOME": str(folder)},
    ) as process:
        found = Process(process)
        try:
            found.listen()
            yield found
        finally:
            process.kill()


def refused(*arguments: object) -> str:
    """What a server that does not start says: one line."""
    words: Sequence[str] = command(*arguments)
    ended = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("gistkit: error: ") and ended.stderr.count("\n") == 1
    return ended.stderr
