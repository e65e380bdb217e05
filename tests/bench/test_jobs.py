"""Who works on a cell: one process at a time, whatever dies."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dofa.bench import jobs as room
from dofa.bench.jobs import JobStore
from dofa.errors import DataError

RACE = """
import sys, time
from pathlib import Path
from dofa.bench.jobs import JobStore
cells = JobStore(Path(sys.argv[1]))
while time.time() < float(sys.argv[2]):
    pass
for name in map(str, range(60)):
    if cells.read(name) is None and (claim := cells.claim(name)) is not None:
        with claim:
            if cells.read(name) is None:
                time.sleep(0.01)
                print(name)
                cells.write(name, {"status": "done"})
"""


def left_behind(folder: Path, name: str, **told: object) -> Path:
    """A claim as another process left it."""
    file = folder / f"{name}.claim.0"
    file.write_text(json.dumps({"host": room._host(), "pid": 2**22 + 1, "process": "another", **told}))
    return file


def test_of_several_processes_exactly_one_computes_each_cell(tmp_path: Path) -> None:
    start = str(time.time() + 1.5)
    command = [sys.executable, "-c", RACE, str(tmp_path), start]
    racers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    won = [name for racer in racers for name in racer.communicate(timeout=60)[0].split()]
    assert sorted(won, key=int) == [str(n) for n in range(60)]
    assert not list(tmp_path.glob("*.claim.*"))


def test_a_claim_is_refused_while_it_is_held_and_free_afterwards(tmp_path: Path) -> None:
    one, two = JobStore(tmp_path), JobStore(tmp_path)
    claim = one.claim("a")
    assert claim is not None
    with claim:
        assert two.claim("a") is None
        holder = two.holder("a")
        assert holder is not None
        assert (holder.host, holder.pid) == (socket.gethostname(), os.getpid())
        assert two.claim("b") is not None
    assert one.holder("a") is None
    assert two.claim("a") is not None


@pytest.mark.parametrize("held_before", [False, True])
def test_of_all_who_see_a_cell_free_at_the_same_moment_one_gets_it(held_before, tmp_path: Path, monkeypatch) -> None:
    if held_before:
        left_behind(tmp_path, "a")
    together, look = threading.Barrier(4), JobStore._claims

    def looked(self: JobStore, name: str) -> list[Path]:
        found = look(self, name)
        together.wait(timeout=30)
        return found

    monkeypatch.setattr(JobStore, "_claims", looked)
    with ThreadPoolExecutor(4) as pool:
        claims = [c for c in pool.map(lambda _: JobStore(tmp_path).claim("a"), range(4)) if c is not None]
    monkeypatch.undo()
    assert len(claims) == 1
    with claims[0]:
        assert JobStore(tmp_path).claim("a") is None
    assert not list(tmp_path.glob("a.claim.*"))


def test_a_process_that_got_the_number_of_a_dead_one_does_not_honour_its_claims(tmp_path: Path) -> None:
    left_behind(tmp_path, "a", pid=os.getpid())
    assert JobStore(tmp_path).claim("a") is not None


def test_the_claim_of_another_machine_stands_until_it_has_been_silent_for_long(tmp_path: Path) -> None:
    file = left_behind(tmp_path, "a", host="elsewhere")
    cells = JobStore(tmp_path)
    assert cells.claim("a") is None
    long_ago = time.time() - room.STALE - 5
    os.utime(file, (long_ago, long_ago))
    assert cells.claim("a") is not None


def test_a_claim_that_is_not_yet_filled_counts_as_held(tmp_path: Path) -> None:
    (tmp_path / "a.claim.0").touch()
    assert JobStore(tmp_path).claim("a") is None


def test_a_claim_that_is_held_gives_signs_of_life(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(room, "HEARTBEAT", 0.02)
    claim = JobStore(tmp_path).claim("a")
    assert claim is not None
    (file,) = tmp_path.glob("a.claim.*")
    os.utime(file, (0, 0))
    with claim:
        deadline = time.monotonic() + 10
        while file.stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert file.stat().st_mtime > 0


def test_an_error_gives_the_cell_back(tmp_path: Path) -> None:
    claim = JobStore(tmp_path).claim("a")
    assert claim is not None
    with pytest.raises(KeyboardInterrupt), claim:
        raise KeyboardInterrupt
    assert JobStore(tmp_path).claim("a") is not None


@pytest.mark.parametrize(
    ("content", "told"),
    [("{", "no JSON"), ("[]", "no record"), ('{"name": "b"}', "no record"), (None, "format_version 99")],
)
def test_a_record_that_cannot_be_trusted_is_named(tmp_path: Path, content: str | None, told: str) -> None:
    (tmp_path / "a.json").write_text(content or json.dumps({"name": "a", "format_version": 99}))
    with pytest.raises(DataError, match=rf"a\.json.*{told}"):
        JobStore(tmp_path).read("a")
