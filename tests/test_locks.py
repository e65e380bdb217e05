"""One process at a time, on file systems with locks and without."""

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from dofa import io
from dofa.io import FileLock

HOLD = """
import sys, time
from dofa import io as locks
import fcntl, errno
def refuse(*_):
    raise OSError(int(sys.argv[2]), "no locks")
if int(sys.argv[2]):
    fcntl.flock = refuse
lock = locks.FileLock(__import__("pathlib").Path(sys.argv[1]))
print(lock.acquire(), flush=True)
time.sleep(60)
"""
KINDS = [0, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP]


@pytest.fixture(params=KINDS)
def kind(request, monkeypatch):
    """A file system that locks, or one that says this number."""

    def refuse(*_):
        raise OSError(request.param, "no locks")

    if request.param:
        monkeypatch.setattr(fcntl, "flock", refuse)
    return request.param


def holder(path, kind):
    """Another process with the lock."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, path, str(kind)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "True\n"
    return process


def test_one_process_has_it_until_it_is_killed(tmp_path, kind):
    other = holder(tmp_path / "lock", kind)
    lock = FileLock(tmp_path / "lock")
    try:
        assert not lock.acquire()
        assert (str(other.pid) in lock.holder) == bool(kind)
    finally:
        other.send_signal(signal.SIGKILL)
        other.wait()
    assert lock.acquire()
    lock.release()
    again = FileLock(tmp_path / "lock")
    assert again.acquire()
    again.release()


def test_of_many_that_find_an_abandoned_lock_one_gets_it(tmp_path, kind):
    path = tmp_path / "lock"
    (tmp_path / "lock.pid").write_text(json.dumps({"host": socket.gethostname(), "pid": 2**22 + 5}))
    others = [
        subprocess.Popen([sys.executable, "-c", HOLD, path, str(kind)], stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    told = [other.stdout.readline() for other in others]
    for other in others:
        other.kill()
        other.wait()
    assert sorted(told) == ["False\n"] * 3 + ["True\n"]


@pytest.mark.parametrize("kind", [errno.ENOLCK], indirect=True)
def test_a_holder_on_another_machine_is_named_with_the_file(tmp_path, kind):
    (tmp_path / "lock.pid").write_text(json.dumps({"host": "elsewhere", "pid": 7}))
    lock = FileLock(tmp_path / "lock")
    assert not lock.acquire()
    assert "elsewhere" in lock.holder
    assert str(tmp_path / "lock.pid") in lock.holder


@pytest.mark.parametrize("kind", [errno.ENOLCK], indirect=True)
def test_a_file_without_a_holder_is_left_alone_while_it_may_be_written(tmp_path, kind):
    file = tmp_path / "lock.pid"
    file.touch()
    assert not FileLock(tmp_path / "lock").acquire()
    os.utime(file, (time.time() - 2 * io.TORN_S,) * 2)
    lock = FileLock(tmp_path / "lock")
    assert lock.acquire()
    lock.release()


def test_outputs_are_written_where_nothing_locks(tmp_path, kind):
    from dofa.errors import DofaError
    from dofa.outputs.work_file import Layout, Work

    layout = Layout(4, 4, 1, "float32", ("a",), crs="EPSG:32633")
    work = Work.open(tmp_path / "x.tif", layout, {})
    with pytest.raises(DofaError, match="written by another process"):
        Work.open(tmp_path / "x.tif", layout, {})
    work.discard()
    assert list(tmp_path.iterdir()) == []
