"""A server killed at any moment: what it acknowledged is there, what is there is whole.

tests/store kills writers of the store 200 times; here the whole server is killed under clients.
"""

import multiprocessing as mp
import random
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
import torch

from gistkit.store import GistKey, GistStore
from gistkit.testing import tiny_gist_model
from tests.serving.served_until_killed import serve_until_killed

KILLS, CLIENTS, EACH = 40, 4, 6


@dataclass
class Client:
    """Makes, deletes and pins gists of its own, and knows which of them must be there.

    Attributes:
        there: by instruction, whether its gist may be there: yes, no, or either after a request
            whose answer never came.
    """

    number: int
    there: dict[str, set[bool]] = field(default_factory=dict)
    acknowledged: int = 0

    def work(self, port: int, seed: int, ids: dict[str, str]) -> None:
        """Until the server is gone."""
        choose = random.Random(seed)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as http:
            try:
                while True:
                    self._one(http, choose, ids)
                    self.acknowledged += 1
            except httpx.TransportError:
                return

    def _one(self, http: httpx.Client, choose: random.Random, ids: dict[str, str]) -> None:
        text = f"Be brief {self.number} {choose.randrange(EACH)}."
        action = choose.random()
        if action < 0.15 and self.there.get(text) == {True}:
            pinned = {"pinned": choose.random() < 0.5}
            assert http.patch(f"/v1/gists/{ids[text]}", json=pinned).status_code == 200
            return
        if action < 0.4:
            self.there[text] = self.there.get(text, {False}) | {False}
            assert http.delete(f"/v1/gists/{ids[text]}").status_code in (200, 404)
            self.there[text] = {False}
            return
        self.there[text] = self.there.get(text, {False}) | {True}
        if action < 0.7:
            made = http.post("/v1/gists", json={"instruction": text})
            assert made.status_code == 201 and made.json()["id"] == ids[text]
        else:
            body = {
                "model": "tiny",
                "messages": [
                    {"role": "system", "content": text},
                    {"role": "user", "content": "one"},
                ],
            }
            answer = http.post("/v1/chat/completions", json=body)
            assert answer.json()["gist"]["id"] == ids[text]
        self.there[text] = {True}


@pytest.mark.slow
def test_a_killed_server_loses_nothing_acknowledged(tmp_path: Path) -> None:
    context = mp.get_context("forkserver")
    # what is installed: Python 3.11 looks for the tests' own modules in the wrong place
    context.set_forkserver_preload(
        ["gistkit.serving.app", "gistkit.serving.server", "gistkit.testing"]
    )
    model, choose = tiny_gist_model(), random.Random(0)
    clients = [Client(number) for number in range(CLIENTS)]
    texts = [f"Be brief {number} {n}." for number in range(CLIENTS) for n in range(EACH)]
    ids = {text: GistKey.of(model, text, 1).id for text in texts}
    gists = {text: model.compress(text) for text in texts}
    root = tmp_path / "store"
    found_there = 0
    for kill in range(KILLS):
        ours, theirs = context.Pipe()
        process = context.Process(target=serve_until_killed, args=(str(root), theirs))
        process.start()
        port = ours.recv()
        before = sum(client.acknowledged for client in clients)
        threads = [
            threading.Thread(target=client.work, args=(port, 100 * kill + client.number, ids))
            for client in clients
        ]
        for thread in threads:
            thread.start()
        until = time.monotonic() + 120
        while sum(client.acknowledged for client in clients) < before + 2 * CLIENTS:
            assert process.is_alive() and time.monotonic() < until
            time.sleep(0.001)
        time.sleep(choose.random() * 0.05)
        process.kill()
        process.join(60)
        assert process.exitcode == -9
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
        with GistStore(root) as store:
            assert store.verify()["damaged"] == []
            assert store.stats()["in_quarantine"] == 0
            for client in clients:
                for text, allowed in client.there.items():
                    there = store.find(ids[text]) is not None
                    assert there in allowed, (kill, text)
                    client.there[text] = {there}
                    if there:
                        found_there += 1
                        kept = store.load(ids[text]).tensors
                        assert kept.keys() == gists[text].tensors.keys()
                        for name, tensor in gists[text].tensors.items():
                            assert torch.equal(kept[name], tensor)
            files = {path.stem for path in (root / "gists").iterdir()}
            assert files == {entry.id for entry in store.entries()} <= set(ids.values())
    assert found_there > KILLS and sum(one.acknowledged for one in clients) > 2 * CLIENTS * KILLS
