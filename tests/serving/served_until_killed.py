"""What the process of test_killed_server.py does: serve on a free port, and say which."""

from multiprocessing.connection import Connection

from gistkit.serving.app import make_app
from gistkit.serving.server import Server, listen
from gistkit.store import GistStore
from gistkit.testing import tiny_gist_model
from tests.serving.fake_engine import FakeEngine


def serve_until_killed(root: str, told: Connection) -> None:
    with GistStore(root) as store, listen("127.0.0.1", 0) as found:
        app = make_app(FakeEngine(tiny_gist_model(), store), store)
        told.send(found.getsockname()[1])
        Server(app).run(sockets=[found])
