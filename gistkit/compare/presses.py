"""Cache compression by the kvpress library: a press chooses which k entries of the prompt stay.

    ids ──> press_worker.py, with an older transformers ──> k entries a head ──> slots 0 .. k-1

kvpress then reads at the prompt's length n, over entries at the positions they had. Attention sees
only differences of positions, so keys turned by k - n and an input at k are the same thing, and
what is kept is a prefix like any other.

The prompt ends before its gist tokens: they hold the instruction, and a press that kept one would
be a gist by another name.
"""

import json
import os
import subprocess
import sys
import tempfile
import weakref
from base64 import b64decode
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors.torch import load
from torch import Tensor

from gistkit.compare.method import Method, cached, shortest_span
from gistkit.compare.pooling import Rotate, rotation
from gistkit.errors import OptionError
from gistkit.gist import Prefix, provenance_of
from gistkit.model import GistModel

PRESSES: Mapping[str, str] = MappingProxyType(
    {
        "knorm": "Knorm",
        "snapkv": "SnapKV",
        "streaming": "StreamingLLM",
        "expected": "expected attention",
    }
)
FOLDER_VARIABLE = "GISTKIT_KVPRESS"
WORKER = Path(__file__).with_name("press_worker.py")


@dataclass(frozen=True)
class Press(Method):
    """The entries that a press keeps; OptionError without kvpress, or where it fails.

    Attributes:
        press: one of PRESSES.
        worker: gives the process that has a model; one for all presses.
    """

    press: str
    worker: "Callable[[GistModel], Worker]"

    @property
    def name(self) -> str:
        return f"kvpress: {PRESSES[self.press]}"

    def prepare(self, model: GistModel, instruction: str, budget: int) -> Prefix | None:
        if not instruction.strip():
            return None
        span = shortest_span(model)
        ids = model.encoder.instruction(instruction, span)
        if len(ids) <= budget:
            return cached(model, instruction)
        worker, length = self.worker(model), len(ids) - span
        keep = min(budget, length)
        return Prefix(
            tensors=worker.keep(self.press, ids[:length], keep),
            lengths=(keep,),
            provenance=provenance_of([instruction], [length]),
            model=model.fingerprint,
            template=model.config.template,
        )


class Workers:
    """Starts the worker when a press first needs it, and another one for another model.

    Args:
        folder: where `make kvpress` put kvpress and its transformers; default: $GISTKIT_KVPRESS,
            or `.kvpress` here.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or Path(os.environ.get(FOLDER_VARIABLE, ".kvpress"))
        self._worker: Worker | None = None

    def __call__(self, model: GistModel) -> "Worker":
        """The worker that has this model (raises OptionError where kvpress is not installed)."""
        if not (self.folder / "kvpress").is_dir():
            raise OptionError(f"kvpress is not in {self.folder}: make kvpress")
        if self._worker is None or self._worker.fingerprint != model.fingerprint:
            self._worker = Worker(self.folder, model)
        return self._worker


class Worker:
    """A process with kvpress and a copy of a model; it ends when this object is collected."""

    def __init__(self, folder: Path, model: GistModel) -> None:
        self.fingerprint = model.fingerprint
        self._device = model.device
        self._rotate: Rotate = rotation(model)
        copy = tempfile.TemporaryDirectory(prefix="gistkit-kvpress-")
        model.hf_model.save_pretrained(copy.name)
        self._errors = Path(copy.name) / "errors.txt"
        with self._errors.open("wb") as errors:
            self._process = subprocess.Popen(
                # -P: nothing is imported from the worker's own folder
                [sys.executable, "-P", str(WORKER), copy.name, str(model.device)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=os.environ | {"PYTHONPATH": str(folder.resolve()), "HF_HUB_OFFLINE": "1"},
                start_new_session=True,  # no Ctrl-C: the worker ends with its input
            )
        weakref.finalize(self, _stop, self._process, copy)

    def keep(self, press: str, ids: list[int], entries: int) -> dict[str, Tensor]:
        """The entries a press keeps of a prompt, keys at slots 0 .. (raises OptionError)."""
        answer = self._ask({"press": press, "ids": ids, "keep": entries})
        if "error" in answer:
            reason = " ".join(str(answer["error"]).split())
            raise OptionError(f"kvpress cannot do this: {reason}")
        by = torch.full((entries,), entries - len(ids), device=self._device)
        return {
            name: self._rotate(tensor, by).to(tensor) if name.endswith("keys") else tensor
            for name, loaded in load(b64decode(answer["tensors"])).items()
            for tensor in (loaded.to(self._device),)
        }

    def _ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        requests, answers = self._process.stdin, self._process.stdout
        assert requests is not None and answers is not None
        try:
            requests.write(json.dumps(request) + "\n")
            requests.flush()
            answer = answers.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            lines = self._errors.read_text(encoding="utf-8", errors="replace").split("\n")
            last = next((line for line in reversed(lines) if line.strip()), "no reason given")
            raise OptionError(f"kvpress stopped: {last.strip()}; make kvpress")
        found: dict[str, Any] = json.loads(answer)
        return found


def _stop(process: "subprocess.Popen[str]", copy: "tempfile.TemporaryDirectory[str]") -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(BrokenPipeError):  # it stopped by itself
                pipe.close()
    process.wait()
    copy.cleanup()
