"""Folders in the place of others: whatever moment a process is killed at, one of the two is whole."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dofa import io
from dofa.errors import DofaError
from dofa.io import allocate, json_digest, lock_folder, place_folder, restore_folder


def folders(root: Path) -> tuple[Path, Path, Path]:
    """The new one, the place, and the name for a moment."""
    for name in ("work/new", "out"):
        (root / name).mkdir(parents=True)
        (root / name / "says").write_text(name)
    return root / "work" / "new", root / "out", root / "work" / "previous"


@pytest.mark.parametrize("exchanged", [True, False])
@pytest.mark.parametrize("renames", [0, 1, 2])
def test_a_kill_between_renames_leaves_the_old_or_the_new(tmp_path, monkeypatch, exchanged, renames):
    """The chips that were finished were removed by a kill between two renames."""
    new, out, previous = folders(tmp_path)
    if exchanged and not io.exchange(new, out):
        pytest.skip("this system cannot exchange folders")
    if exchanged:
        io.exchange(new, out)
    else:
        monkeypatch.setattr(io, "exchange", lambda *_: False)
    real, done = os.replace, []

    def rename(one, two):
        if len(done) == renames:
            raise KeyboardInterrupt
        done.append(one)
        real(one, two)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", rename)
        try:
            place_folder(new, out, previous)
        except KeyboardInterrupt:
            restore = True
        else:
            restore = False
    assert (out / "says").exists() or not exchanged
    restore_folder(out, previous)
    assert (out / "says").read_text() == ("out" if restore else "work/new")
    assert not previous.exists()


def test_only_one_process_makes_an_output_and_a_killed_one_lets_go(tmp_path):
    work = tmp_path / ".out.part"
    code = (
        "import sys, time; from pathlib import Path; from dofa.io import lock_folder\n"
        "lock_folder(Path(sys.argv[1]), Path('out')); print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(work)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(DofaError, match="out is being written by another process"):
            lock_folder(work, tmp_path / "out")
        other.kill()
    lock_folder(work, tmp_path / "out").release()


def test_a_folder_that_is_removed_while_it_is_waited_for_is_made_anew(tmp_path, monkeypatch):
    work, real, times = tmp_path / "work", os.open, []

    def remove_once(path, flags, mode=0o777):
        handle = real(path, flags, mode)
        if not times:
            times.append(os.unlink(path))
        return handle

    monkeypatch.setattr(os, "open", remove_once)
    lock = lock_folder(work, tmp_path / "out")
    assert times
    assert lock.in_place
    lock.release()


def test_what_is_too_large_for_the_disk_takes_nothing_of_it(tmp_path):
    with (tmp_path / "file").open("w+b") as file:
        file.write(b"kept")
        file.flush()
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            allocate(file.fileno(), 2 * shutil.disk_usage(tmp_path).total)
        assert 512 * os.fstat(file.fileno()).st_blocks < 10**6
        allocate(file.fileno(), 10**6)
        assert 512 * os.fstat(file.fileno()).st_blocks >= 10**6
    assert (tmp_path / "file").read_bytes()[:5] == b"kept\0"


def test_a_digest_of_json_is_that_of_what_is_read_back():
    value = {"b": (1, 2.5, float("inf")), "a": {"x": None, "y": "µ"}}
    assert json_digest(value) == json_digest({"a": {"y": "µ", "x": None}, "b": [1, 2.5, float("inf")]})
    assert json_digest(value) != json_digest({**value, "b": [1, 2.5]})
