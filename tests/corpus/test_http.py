"""Stores on web servers that are busy, silent, slow, that cut answers off, send elsewhere or want a signature."""

import json
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from dofa.corpus import http
from dofa.corpus.pack import pack
from dofa.corpus.store import open_stores
from dofa.errors import DataError
from dofa.raster import remote

SCRIPT = Path(__file__).parents[1] / "flaky_server.py"


class Server:
    def __init__(self, url: str):
        self.url = url

    def misbehave(self, *rules):
        urllib.request.urlopen(urllib.request.Request(self.url, json.dumps(rules).encode(), method="POST")).close()

    def asked(self, fault: bool = True) -> int:
        with urllib.request.urlopen(f"{self.url}/-/log") as answer:
            return sum((entry["fault"] is not None) == fault for entry in json.load(answer))


@pytest.fixture(scope="module")
def process(toy, tmp_path_factory):
    root = tmp_path_factory.mktemp("served")
    pack(toy.reading(4, side=64), root / "store", progress=False)
    with subprocess.Popen([sys.executable, str(SCRIPT), str(root)], stdout=subprocess.PIPE, text=True) as running:
        yield root, f"http://127.0.0.1:{running.stdout.readline().strip()}"
        running.terminate()


@pytest.fixture
def server(process, monkeypatch):
    monkeypatch.setattr(remote, "WAITS_S", (0.02, 0.05))
    monkeypatch.setattr(remote, "TIMEOUT_S", 0.7)
    monkeypatch.setattr(http, "DEADLINE_S", 2.0)
    http.HTTPStore.clear_instance_cache()  # they keep their timeouts
    yield (one := Server(process[1]))
    one.misbehave()
    http.HTTPStore.clear_instance_cache()


PASSING = [500, 502, 503, {"status": 429, "headers": {"Retry-After": "1"}}, "truncate", "reset", "stall"]
WHERE = ["store/zarr.json", "toy/zarr.json", "images/zarr.json", "images/c/", "split/c/"]


def read_all(url: str) -> np.ndarray:
    store = open_stores(url)["toy"]
    store.indices("train")
    return np.stack([store.read(n)[0] for n in range(store.count)])


@pytest.mark.parametrize("fault", PASSING, ids=str)
def test_a_fault_that_passes_costs_another_request_and_no_run(process, server, fault):
    """A single 500 ended a pretraining run."""
    expected = read_all(str(process[0] / "store"))
    server.misbehave(*({"path": path, "times": 1, "fault": fault} for path in WHERE))
    np.testing.assert_array_equal(read_all(f"{server.url}/store"), expected)
    assert server.asked() == len(WHERE)


@pytest.mark.parametrize("path", ["images/c/", *(pytest.param(w, marks=pytest.mark.slow) for w in WHERE[:3])])
@pytest.mark.parametrize("fault", [*PASSING, 403, "drip"], ids=str)
def test_a_fault_that_stays_is_one_line_with_the_store_in_bounded_time(server, fault, path):
    if isinstance(fault, dict):
        fault = {"status": 429, "headers": {"Retry-After": "0"}}
    server.misbehave({"path": path, "fault": fault})
    began = time.monotonic()
    with pytest.raises(DataError) as caught:
        read_all(f"{server.url}/store")
    assert time.monotonic() - began < 10
    assert f"{server.url}/store" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert server.asked() <= 2 * 3  # Zarr may ask for two chunks at a time


def test_a_refusal_is_not_asked_again_and_says_what_to_look_at(server):
    server.misbehave({"path": "images/c/", "fault": 403})
    with pytest.raises(DataError, match=r"403.*signature"):
        read_all(f"{server.url}/store")
    server.misbehave({"path": "store/zarr.json", "fault": 401})
    with pytest.raises(DataError, match=r"401.*password"):
        open_stores(f"{server.url}/store")
    assert server.asked() == 1


def test_a_server_that_asks_for_an_hour_is_not_waited_for_so_long(server, monkeypatch):
    monkeypatch.setattr(http, "LONGEST_WAIT_S", 0.1)
    server.misbehave({"path": "store/zarr.json", "fault": {"status": 429, "headers": {"Retry-After": "3600"}}})
    began = time.monotonic()
    with pytest.raises(DataError, match="429"):
        open_stores(f"{server.url}/store")
    assert time.monotonic() - began < 3
    for said in ("Wed, 21 Oct 2099 07:28:00 GMT", "soon", "-5", "9" * 400):
        server.misbehave(
            {"path": "store/zarr.json", "times": 1, "fault": {"status": 503, "headers": {"Retry-After": said}}}
        )
        open_stores(f"{server.url}/store")
    assert time.monotonic() - began < 6


def test_redirects_are_followed_and_circles_are_not(process, server):
    away = {"status": 302, "headers": {"Location": f"{server.url}/store/toy/images/c/0/0/0/0"}}
    server.misbehave({"path": "/old/.*/c/0/0/0/0", "fault": away})
    root = process[0]
    shutil.copytree(root / "store", root / "old", dirs_exist_ok=True)
    (root / "old" / "toy" / "images" / "c" / "0" / "0" / "0" / "0").unlink()
    np.testing.assert_array_equal(read_all(f"{server.url}/old"), read_all(str(root / "store")))
    circle = {"status": 302, "headers": {"Location": f"{server.url}/store/zarr.json"}}
    server.misbehave({"path": "store/zarr.json", "fault": circle})
    with pytest.raises(DataError, match="look at the address"):
        open_stores(f"{server.url}/store")


def test_a_signature_goes_to_the_server_with_every_file_and_is_never_shown(process, server):
    server.misbehave({"path": r"^/store[^?]*$", "fault": 403})  # whatever comes without one
    url = f"{server.url.replace('//', '//me:hunter2@')}/store?sv=1&sig=s3cr3t"
    np.testing.assert_array_equal(read_all(url), read_all(str(process[0] / "store")))
    store = open_stores(url)["toy"]
    server.misbehave({"path": "images/", "fault": 403})
    with pytest.raises(DataError) as caught:
        store.read(0)
    for text in (str(caught.value), repr(store), repr(caught.value)):
        assert "s3cr3t" not in text
        assert "hunter2" not in text
    assert "/store?…" in str(caught.value)


def test_a_flipped_bit_is_noticed_over_http_too(process, server):
    root = process[0]
    shutil.copytree(root / "store", root / "flipped", dirs_exist_ok=True)
    shard = root / "flipped" / "toy" / "images" / "c" / "0" / "0" / "0" / "0"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 4
    shard.write_bytes(data)
    with pytest.raises(DataError, match="flipped, toy: images of image"):
        read_all(f"{server.url}/flipped")
