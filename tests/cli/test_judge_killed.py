"""`gistkit judge` killed, doubled, out of room: nothing lost, nothing asked twice."""

import json
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from gistkit.errors import SaveError
from gistkit.evaluation.judge.endpoint import Reply, Usage
from gistkit.evaluation.judge.journal import VerdictJournal
from gistkit.evaluation.judge.pairs import Pair, Question
from gistkit.evaluation.judge.prompt import Verdict
from gistkit.testing.judge import FakeEndpoint, faults
from tests.cli.console import Run
from tests.cli.judging import arguments, load


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-any")
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


def killed(command: list[str], fake: FakeEndpoint, journal: Path, after: int, how: int) -> int:
    """Run `command` until `after` verdicts are kept, and kill it; returns how many there are."""
    process = subprocess.Popen(
        [sys.executable, "-m", "gistkit", *command],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        # Who runs the tests in the background has SIGINT ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 300
    kept = -1
    while kept < after and time.monotonic() < deadline:
        time.sleep(0.02)
        kept = journal.read_bytes().count(b"\n") - 1 if journal.exists() else -1
    process.send_signal(how)
    _, err = process.communicate(timeout=300)
    assert kept >= after, err
    assert process.returncode == (130 if how == signal.SIGINT else -how), err
    return kept


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_run_resumes(run: Run, tmp_path: Path, how: int) -> None:
    """What was saved is not asked again. From the 13th on, the server makes all wait."""
    opened, lock, numbers = threading.Event(), threading.Lock(), iter(range(10**6))

    def gate(key: str) -> None:
        with lock:
            number = next(numbers)
        if number >= 12:
            opened.wait(600)

    with FakeEndpoint(on_request=gate) as fake:
        command = [*arguments(tmp_path, fake), "--concurrency", "3", "--timeout", "600"]
        journal = tmp_path / "r.json.partial"
        assert killed(command, fake, journal, 12, how) == 12
        assert len(fake.requests) <= 12 + 3
        if how == signal.SIGKILL:
            journal.write_bytes(journal.read_bytes() + b'{"row": 3, "swap')  # cut off by the kill
        else:
            assert load(tmp_path / "r.json")["complete"] is False
            assert not journal.exists()
        opened.set()
        assert run(*command).status == 0
    content = load(tmp_path / "r.json")
    assert [one["row"] for one in content["results"]] == list(range(20))
    assert content["complete"] is True
    assert content["usage"]["requests"] == 20  # 12, and then the 8 that were not kept
    assert sum(fake.requests.values()) <= 20 + 3  # of which three were on their way before


def test_a_kill_before_the_journal_went(run: Run, tmp_path: Path) -> None:
    """The file took the journal in, which is still there: its tokens do not count twice."""
    with FakeEndpoint(fault=lambda key, time: "500" if time < 4 else None) as fake:
        command = [*arguments(tmp_path, fake, n=3), "--retries", "0"]
        assert run(*command).status == 2
        journal = tmp_path / "r.json.partial"
        usage = load(tmp_path / "r.json")["usage"]
        names = ["ours", "full"]
        zero = dict.fromkeys(usage, 0)
        settings = load(tmp_path / "r.json")["judge"]
        line = {"row": 0, "swapped": True, "error": "x", "x": "", "usage": usage}
        head = {"settings": {**settings, "names": names, "usage": zero}}
        journal.write_text(json.dumps(head) + "\n" + json.dumps(line) + "\n")
        run(*command)
        assert not journal.exists()
    assert load(tmp_path / "r.json")["usage"]["requests"] == sum(fake.requests.values())


def test_two_at_once_do_not_ask_the_same(run: Run, tmp_path: Path) -> None:
    """The second is refused while the first one runs, and damages nothing."""
    opened = threading.Event()
    with FakeEndpoint(on_request=lambda key: opened.wait(600)) as fake:
        command = [*arguments(tmp_path, fake), "--timeout", "600"]
        first = subprocess.Popen(
            [sys.executable, "-m", "gistkit", *command], stdout=subprocess.DEVNULL
        )
        while not fake.requests:
            time.sleep(0.02)
        assert "another run is writing" in run(*command).error
        assert "20 requests" in run(*command, "--dry_run").out
        assert "another run" in run(*command, "--force").error
        opened.set()
        assert first.wait(300) == 0
        assert sum(fake.requests.values()) == 20
        assert run(*command).status == 0
        assert sum(fake.requests.values()) == 20
    assert load(tmp_path / "r.json")["usage"]["requests"] == 20


def test_a_journal_that_was_written_meanwhile(tmp_path: Path) -> None:
    """Between reading what is left and asking for it, another run began and was killed."""
    pairs = [Pair(row, f"q{row}", "a", "b") for row in range(2)]
    given = {"names": ("ours", "full"), "settings": {"both_orders": False}}
    verdict, asked = (
        Reply(Verdict("a", "r"), "", Usage(1)),
        [Question(one, False) for one in pairs],
    )
    mine = VerdictJournal(tmp_path / "r.json", pairs, **given)  # type: ignore[arg-type]
    other = VerdictJournal(tmp_path / "other" / "r.json", pairs, **given)  # type: ignore[arg-type]
    other.record(asked[0], verdict)
    other.journal.path.replace(mine.journal.path)
    other.close(asked)
    with pytest.raises(SaveError, match="rerun the same command to resume"):
        mine.journal.open()
    third = VerdictJournal(tmp_path / "r.json", pairs, **given)  # type: ignore[arg-type]
    assert third.left(asked) == asked[1:]
    third.record(asked[1], verdict)
    found = third.close(asked)
    assert (found.tally.wins, found.content["usage"]["requests"]) == (2, 2)


def test_a_forced_run_that_is_killed_leaves_its_verdicts(tmp_path: Path) -> None:
    """The old results file goes with the first new verdict, or the next run would read it."""
    pairs = [Pair(row, f"q{row}", "a", "b") for row in range(2)]
    questions = [Question(pair, False) for pair in pairs]

    def journal(seed: int, *, force: bool = False) -> VerdictJournal:
        settings = {"both_orders": False, "seed": seed}
        names = ("ours", "full")
        return VerdictJournal(
            tmp_path / "r.json", pairs, names=names, settings=settings, force=force
        )

    first = journal(1)
    for question in questions:
        first.record(question, Reply(Verdict("a", "old"), "", Usage(1)))
    first.close(questions)
    killed = journal(2, force=True)
    assert (tmp_path / "r.json").exists()  # until there is a verdict
    killed.record(questions[0], Reply(Verdict("b", "new"), "", Usage(1)))
    killed.journal.close()
    resumed = journal(2)
    assert resumed.left(questions) == questions[1:]
    resumed.record(questions[1], Reply(Verdict("b", "new"), "", Usage(1)))
    found = resumed.close(questions)
    assert [entry["reason"] for entry in found.content["results"]] == ["new", "new"]


def test_a_full_disk_keeps_what_was_written(run: Run, tmp_path: Path) -> None:
    with FakeEndpoint() as fake:
        command = [*arguments(tmp_path, fake, n=60), "--concurrency", "2"]
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, limits[1]))
        try:
            ended = run(*command)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert ended.status == 2
        assert "error: could not write" in ended.err and "free space" in ended.err
        asked = sum(fake.requests.values())
        assert 10 < asked < 60
        assert run(*command).status == 0
        assert sum(fake.requests.values()) <= 60 + 2  # whose answers came when there was no room
    assert len(load(tmp_path / "r.json")["results"]) == 60


def test_no_room_for_a_first_verdict_asks_nothing(run: Run, tmp_path: Path) -> None:
    with FakeEndpoint() as fake:
        command = [*arguments(tmp_path, fake), "--model", "m" * 4000]
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
        try:
            assert "could not write" in run(*command).error
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert not fake.requests


@pytest.mark.slow
def test_a_thousand_pairs_and_a_kill(run: Run, tmp_path: Path) -> None:
    """Misbehaving server, killed once: nothing lost, nothing kept asked again, the same file."""
    with FakeEndpoint() as calm:
        run(*arguments(tmp_path, calm, n=1000))
    kept: dict[tuple[int, bool], bytes] = {}
    with FakeEndpoint(fault=faults(9)) as fake:
        command = arguments(tmp_path, fake, n=1000, name="s.json")
        journal = tmp_path / "s.json.partial"
        killed(command, fake, journal, 400, signal.SIGKILL)
        for line in journal.read_bytes().splitlines()[1:]:
            entry = json.loads(line)
            kept[entry["row"], entry["swapped"]] = line
        assert run(*command).status == 0
    one, other = load(tmp_path / "r.json"), load(tmp_path / "s.json")
    assert len(other["results"]) == 1000
    assert (one["results"], one["scores"]) == (other["results"], other["scores"])
    assert len(fake.judged) == 1000
    again = [key for key, times in fake.judged.items() if times > 1]
    assert len(again) <= 8  # those whose answer was on its way when the run was killed
    assert len(kept) >= 400
