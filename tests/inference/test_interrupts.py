"""Ctrl-C, silent servers and folders that vanish: real processes, one line, and work that is not lost."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from dofa.cli import main

from ..scene.conftest import model_and_head, tree, write_tiff

BANDS = ["B02", "B03", "B04", "B08"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
# A run of seconds comes to the disk as often as one of an hour: blocks are there long before its end.
COMMAND = """
import sys
from dofa.outputs import work_file
work_file.SYNC_S = 0.3
from dofa.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("interrupts")
    rng = np.random.default_rng(0)
    image = (500 + 4000 * rng.random((4, 70, 70)).repeat(16, 1).repeat(16, 2)).astype(np.uint16)
    write_tiff(folder / "scene.tif", image, names=BANDS, nodata=0, tiled=True, blockxsize=256, blockysize=256)
    model_and_head(folder, folder / "scene.tif")
    return folder


def command(verb, folder, out):
    words = ["--head", str(folder / "head")] if verb == "predict" else ["--stats", "scene"]
    words += ["--weights", str(folder / "model"), "--stride", "2", "--precision", "float32", "--out", str(out)]
    return [verb, str(folder / "scene.tif"), *words, "--sensor", "sentinel-2-l2a", "--dn-offset", "0"]


def begun(words, out):
    """The command in a process, with some blocks on the disk."""
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, *words], stderr=subprocess.PIPE, text=True, env=ENVIRONMENT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a suite in the background ignores it
    )  # fmt: skip
    journal = out.with_name(f".{out.name}.part") / "journal.json"
    for _ in range(1200):
        if process.poll() is not None or (journal.exists() and json.loads(journal.read_bytes())["done"]):
            break
        time.sleep(0.05)
    return process


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["embed", "predict"])
def test_an_interrupt_keeps_what_is_done_and_says_how_to_go_on(verb, folder, tmp_path):
    words = command(verb, folder, tmp_path / "x.tif")
    process = begun(words, tmp_path / "x.tif")
    process.send_signal(signal.SIGINT)
    told = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    (line,) = [line for line in told.splitlines() if line.startswith("dofa: ") and "interrupted" in line]
    assert "same command" in line
    assert "Traceback" not in told
    assert (tmp_path / ".x.tif.part" / "journal.json").exists()
    assert main(words) == 0
    assert main(command(verb, folder, tmp_path / "quiet.tif")) == 0
    assert tree(tmp_path / "x.tif") == tree(tmp_path / "quiet.tif")


@pytest.mark.slow
def test_a_folder_that_vanishes_is_no_traceback(folder, tmp_path):
    out = tmp_path / "out" / "x.tif"
    process = begun(command("embed", folder, out), out)
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    told = process.communicate(timeout=120)[1]
    assert process.returncode in (0, 2)
    assert "Traceback" not in told
    assert process.returncode == 2 or out.exists()


def silent_server(word):
    """A server that takes a request and then says nothing, or a byte now and then."""
    server = socket.create_server(("127.0.0.1", 0))

    def answer(connection):
        try:
            connection.recv(65536)
            if not word:
                time.sleep(120)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1000000\r\n\r\n")
            while True:
                connection.sendall(word)
                time.sleep(0.2)
        except OSError:
            pass

    def serve():
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(connection,), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    return server, server.getsockname()[1]


@pytest.mark.slow
@pytest.mark.parametrize(("word", "name"), [(b" ", "a.json"), (b"", "a.tif")])
def test_a_server_that_stays_silent_is_told_within_a_minute(word, name):
    server, port = silent_server(word)
    try:
        began = time.monotonic()
        words = [sys.executable, "-m", "dofa", "info", f"http://127.0.0.1:{port}/{name}"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=120, env=ENVIRONMENT)
        assert time.monotonic() - began < 75  # a minute, and the time to start on a busy machine
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
    finally:
        server.close()


@pytest.mark.parametrize("name", ["a.json", "a.tif"])
def test_without_a_network_there_is_one_line_at_once(name, capsys):
    began = time.monotonic()
    assert main(["info", f"https://no-such-host.invalid/{name}"]) == 2
    assert time.monotonic() - began < 8
    assert capsys.readouterr().err.count("\n") == 1
