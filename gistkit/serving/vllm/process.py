"""A vLLM server as a child process: started, waited for, started again when it ends by itself.

    with Child(options) as child:      # python -m gistkit.integrations.server OPTIONS
        child.wait()                   # until it answers
        child.url, child.key

It has a process group of its own: Ctrl-C is for the gateway, which drains first.
"""

import logging
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Self

import httpx2

from gistkit.errors import UnavailableError

log = logging.getLogger(__name__)

KEPT = 200  # lines of its output, to know why it ended
TELL = 30.0  # seconds between two signs of life while it starts
LEAVE = 20.0  # seconds to end by itself
PAUSES = (1.0, 60.0)  # seconds before it is started again: the first, the longest
LEVELS = {" ERROR ": logging.WARNING, " WARNING ": logging.INFO}
LAUNCH = (sys.executable, "-m", "gistkit.integrations.server")

_ERROR = re.compile(r"(?:[\w.]+\.)?\w*(?:Error|Exception): .+")
_CONSEQUENCE = "Engine core initialization failed"


class Child:
    """See above.

    Args:
        options: of the server, for a host and a port.
        command: what takes them; the launcher.

    Attributes:
        url: where it listens.
        key: what it wants to be asked with.
    """

    def __init__(
        self, options: Callable[[str, int], Sequence[str]], *, command: Sequence[str] = LAUNCH
    ) -> None:
        host, port = "127.0.0.1", _free_port()
        self.url, self.key = f"http://{host}:{port}", secrets.token_hex(16)
        self._command = [*command, *options(host, port)]
        self._said: deque[str] = deque(maxlen=KEPT)
        self._process: subprocess.Popen[str] | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="gistkit vllm", daemon=True)

    def __enter__(self) -> Self:
        self._begin()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stopping.set()
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(LEAVE)
            self._end()
        if self._thread.ident is not None:
            self._thread.join(LEAVE)

    def wait(self) -> None:
        """Until it answers; from then on it is started again when it ends.

        Raises:
            UnavailableError: it ended before, with the reason.
        """
        assert self._process is not None
        begun = told = time.monotonic()
        while not self._answers():
            if self._process.poll() is not None:
                time.sleep(0.2)  # its last words
                raise UnavailableError(f"vLLM did not start: {self._why()}")
            time.sleep(0.2)
            if (now := time.monotonic()) - told > TELL:  # large weights take their time
                told, last = now, self._said[-1] if self._said else ""
                facts = {"seconds": round(now - begun), "last": last[:400]}
                log.info("waiting for vLLM to start", extra={"facts": facts})
        self._thread.start()

    def _answers(self) -> bool:
        try:
            return httpx2.get(f"{self.url}/health", timeout=5, trust_env=False).status_code == 200
        except httpx2.HTTPError:
            return False

    def _begin(self) -> None:
        self._said.clear()
        environment = {"VLLM_LOGGING_LEVEL": "WARNING", **os.environ, "VLLM_API_KEY": self.key}
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=environment,
            start_new_session=True,
        )
        threading.Thread(target=self._listen, args=(self._process,), daemon=True).start()

    def _listen(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdout is not None
        with process.stdout as lines:
            for line in map(str.rstrip, lines):
                self._said.append(line)
                level = next((one for word, one in LEVELS.items() if word in line), logging.DEBUG)
                log.log(level, "vLLM says", extra={"facts": {"line": line}})

    def _keep(self) -> None:
        """Start it again when it ends by itself, the sooner the longer it ran."""
        pause, longest = PAUSES
        while True:
            assert self._process is not None
            begun = time.monotonic()
            self._process.wait()
            if self._stopping.is_set():
                return
            self._end()
            if time.monotonic() - begun > longest:
                pause = PAUSES[0]
            log.error("vLLM ended", extra={"facts": {"why": self._why(), "again_in": pause}})
            if self._stopping.wait(pause):
                return
            pause = min(2 * pause, longest)
            self._begin()

    def _end(self) -> None:
        """Let nothing of it live on."""
        assert self._process is not None and self._process.stdin is not None
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        with suppress(OSError):
            self._process.stdin.close()

    def _why(self) -> str:
        assert self._process is not None
        if self._process.returncode < 0:
            return f"it was killed by signal {-self._process.returncode}"
        errors = [m[0] for line in self._said if (m := _ERROR.search(line))]
        telling = [one for one in errors if _CONSEQUENCE not in one]
        if telling or errors:
            return (telling or errors)[-1][:400]
        last = self._said[-1] if self._said else "it said nothing"
        return f"status {self._process.returncode}: {last[:400]}"


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
