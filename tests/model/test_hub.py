"""Weights by name: the hub's real client against a real HTTP server on this machine."""

import errno
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import safetensors.torch
import torch
from huggingface_hub import constants, hf_hub_download

from dofa.errors import CheckpointError
from dofa.model import hub
from dofa.model.checkpoint import encoder_sha256, load, load_mae, save
from dofa.model.config import DecoderConfig, EncoderConfig
from dofa.model.convert import UnverifiedWeightsWarning
from dofa.model.encoder import DOFA, StaticViT
from dofa.model.mae import MaskedAutoencoder
from dofa.model.released import RELEASED, ReleasedFile
from dofa.model.teacher import load_teacher

from .conftest import COMMIT

FILE = "DOFA_ViT_tiny_e100.pth"


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """A small file in the released v1 layout, as bytes, and the encoder in it."""
    torch.manual_seed(0)
    config = EncoderConfig(
        32, 2, 2, 8, image_size=64, patch_offset=1, sar_wavelength=3.75, polarisation_embedding=False
    )
    model = DOFA(config)
    state = {k: v for k, v in model.state_dict().items() if not k.startswith("fc_norm.")}
    state |= {"mask_token": torch.zeros(1, 1, 512), "projector.weight": torch.zeros(32, 32)}
    path = tmp_path_factory.mktemp("released") / FILE
    torch.save(state, path)
    return path.read_bytes(), model


@pytest.fixture
def named(server, released, monkeypatch):
    """The file on the server under the name dofa-v1-tiny, its digest known."""
    content, model = released
    server.files[f"earthflow/DOFA/{FILE}"] = content
    digest = hashlib.sha256(content).hexdigest()
    monkeypatch.setitem(RELEASED, "dofa-v1-tiny", ReleasedFile("earthflow/DOFA", FILE, 2, digest))
    return model


@pytest.fixture
def repository(server, tmp_path):
    """A repository me/tiny in the native format."""
    torch.manual_seed(1)
    model = MaskedAutoencoder(DOFA(EncoderConfig(16, 1, 2, 8, image_size=32)), DecoderConfig(8, 1, 2))
    folder = save(model, tmp_path / "made")
    for path in folder.iterdir():
        server.files[f"me/tiny/{path.name}"] = path.read_bytes()
    return model


def one_line(caught):
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 600
    return text


def downloads(server):
    return [(path.rsplit("/", 1)[1], span) for method, path, span in server.requests if method == "GET"]


@torch.no_grad()
@pytest.mark.filterwarnings("error::dofa.model.convert.UnverifiedWeightsWarning")
def test_a_released_name_is_fetched_converted_and_right(server, named, tmp_path):
    model = load("dofa-v1-tiny")
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(model(x, [0.665, 0.56, 0.49]), named.eval()(x, [0.665, 0.56, 0.49]))
    assert model.origin.licence == "CC-BY-4.0"
    assert model.origin.provenance["recognised_as"] == "dofa-v1-tiny"
    assert model.origin.provenance["dropped_keys"] == ["mask_token", "projector.weight"]
    assert [p.name for p in (tmp_path / "assets" / "dofa").iterdir()] == ["dofa-v1-tiny-format1"]


def test_the_second_time_nothing_is_asked_of_the_network(server, named):
    first = encoder_sha256(load("dofa-v1-tiny"))
    asked = len(server.requests)
    assert encoder_sha256(load("dofa-v1-tiny")) == first
    assert len(server.requests) == asked
    server.stop()
    assert encoder_sha256(load("dofa-v1-tiny")) == first


def test_an_interrupted_download_is_resumed_where_it_broke_and_ends_right(server, named, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1 << 16)
    server.cut_once_at = len(server.files[f"earthflow/DOFA/{FILE}"]) // 2
    model = load("dofa-v1-tiny")
    (_, first), (_, second) = downloads(server)
    assert first is None
    assert int(re.fullmatch(r"bytes=(\d+)-", second)[1]) > 1 << 16
    assert torch.equal(model.pos_embed, named.pos_embed)


def test_another_file_under_a_known_name_is_refused_and_not_cached(server, named, released, tmp_path):
    server.files[f"earthflow/DOFA/{FILE}"] = released[0] + b" "
    with pytest.raises(CheckpointError, match=r"sha256 \w+…, but dofa-v1-tiny is \w+….*dofa convert") as caught:
        load("dofa-v1-tiny")
    one_line(caught)
    assert len(downloads(server)) == 1
    assert not (tmp_path / "assets" / "dofa").exists()


def test_a_damaged_copy_in_the_cache_is_fetched_again(server, named, tmp_path):
    source = Path(hf_hub_download("earthflow/DOFA", FILE))  # as another program left it there
    with source.open("rb+") as file:
        file.write(b"damaged")
    assert torch.equal(load("dofa-v1-tiny").pos_embed, named.pos_embed)
    with source.open("rb+") as file:
        file.write(b"damaged")
    shutil.rmtree(tmp_path / "assets")
    server.stop()
    with pytest.raises(CheckpointError, match=f"{FILE} is not in the cache .* cannot be reached") as caught:
        load("dofa-v1-tiny")
    one_line(caught)


def test_a_name_without_a_known_digest_loads_with_a_warning(server, named, monkeypatch):
    monkeypatch.setitem(RELEASED, "dofa-v1-tiny", ReleasedFile("earthflow/DOFA", FILE, 2))
    with pytest.warns(UnverifiedWeightsWarning, match="none of the released files"):
        model = load("dofa-v1-tiny")
    content = server.files[f"earthflow/DOFA/{FILE}"]
    assert model.origin.provenance["source_sha256"] == hashlib.sha256(content).hexdigest()


def test_a_released_file_that_is_not_there_is_one_line(server, named):
    server.files["earthflow/DOFA/README.md"] = server.files.pop(f"earthflow/DOFA/{FILE}")
    with pytest.raises(CheckpointError, match=f"earthflow/DOFA has no file {FILE}") as caught:
        load("dofa-v1-tiny")
    one_line(caught)


def test_processes_that_ask_at_once_get_one_model(server, named, tmp_path):
    with ThreadPoolExecutor(4) as pool:
        digests = set(pool.map(lambda _: encoder_sha256(load("dofa-v1-tiny")), range(4)))
    assert len(digests) == 1
    assert [p.name for p in (tmp_path / "assets" / "dofa").iterdir()] == ["dofa-v1-tiny-format1"]


def test_a_conversion_that_was_killed_is_done_again(server, named, tmp_path):
    half = tmp_path / "assets" / "dofa" / "dofa-v1-tiny-format1"
    half.mkdir(parents=True)
    (half / "model.safetensors").write_bytes(b"half")
    assert torch.equal(load("dofa-v1-tiny").pos_embed, named.pos_embed)


def test_a_repository_is_loaded_with_and_without_its_decoder(server, repository):
    assert encoder_sha256(load("me/tiny")) == encoder_sha256(repository)
    assert torch.equal(load_mae("me/tiny").mask_token, repository.mask_token)
    assert [name for name, _ in downloads(server)] == ["config.json", "model.safetensors"]
    assert {path.split("/")[4] for _, path, _ in server.requests if path.endswith("safetensors")} == {COMMIT}


def test_a_repository_comes_from_the_cache_when_the_hub_is_down(server, repository):
    before = encoder_sha256(load("me/tiny"))
    server.stop()
    assert encoder_sha256(load("me/tiny")) == before


def test_a_revision_is_asked_for_and_a_missing_one_is_one_line(server, repository):
    load("me/tiny", revision="v1.0")
    assert ("HEAD", "/me/tiny/resolve/v1.0/config.json", None) in server.requests
    with pytest.raises(CheckpointError, match="me/tiny has no revision v9") as caught:
        load("me/tiny", revision="v9")
    one_line(caught)


def test_a_missing_repository_or_file_is_one_line(server, repository):
    with pytest.raises(CheckpointError, match=r"no repository .*nobody/nothing.* no such local folder") as caught:
        load("nobody/nothing")
    one_line(caught)
    del server.files["me/tiny/model.safetensors"]
    with pytest.raises(CheckpointError, match=r"me/tiny has no file model\.safetensors") as caught:
        load("me/tiny")
    one_line(caught)


def test_a_repository_of_another_library_is_one_line(server):
    server.files["me/bert/config.json"] = json.dumps({"architectures": ["Bert"]}).encode()
    server.files["me/bert/model.safetensors"] = b"x"
    with pytest.raises(CheckpointError, match="not written by dofa") as caught:
        load("me/bert")
    one_line(caught)


@pytest.mark.parametrize("name", ["dofa-v1-base", "me/tiny"])
def test_offline_without_a_cache_is_one_line(server, monkeypatch, name):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match=r"not in the cache .* cannot be reached.*: connect once") as caught:
        load(name)
    one_line(caught)
    assert not server.requests


def test_a_server_that_never_answers_right_is_one_line(server, repository, monkeypatch):
    monkeypatch.setattr(hub, "hf_hub_download", lambda *a, **k: (_ for _ in ()).throw(OSError("disk full\nlong story")))
    with pytest.raises(CheckpointError, match=r"fetching config\.json from .*/me/tiny failed: disk full$") as caught:
        load("me/tiny")
    one_line(caught)


@pytest.mark.parametrize("method", ["HEAD", "GET"])
@pytest.mark.parametrize("fault", ["silent", "429", "503", "endless", "trickle"])
@pytest.mark.parametrize("name", ["dofa-v1-tiny", "me/tiny"])
def test_a_server_that_hangs_or_asks_to_wait_is_one_line_in_time(
    server, named, repository, monkeypatch, capfd, name, fault, method
):
    monkeypatch.setattr(hub, "SILENT_S", 0.8)
    monkeypatch.setattr(hub, "LEAST", 1 << 10)
    server.fault[method] = fault
    start, before = time.monotonic(), set(threading.enumerate())
    if method == "HEAD" and fault in ("endless", "trickle"):
        server.fault = {"GET": "silent"}  # an answer to HEAD has no body
    with pytest.raises(CheckpointError, match=f"{name}: fetching .* from .*(came in|429|503|announced)") as caught:
        load(name)
    one_line(caught)
    assert time.monotonic() - start < 6
    assert not capfd.readouterr().err.strip(" \r\n") or fault in ("endless", "trickle")  # whose progress was shown
    if method == "GET" and fault in ("endless", "trickle"):  # went on until the disk was full
        for thread in {thread for thread in threading.enumerate() if thread.name == "dofa-download"} - before:
            thread.join(3)
            assert not thread.is_alive()


@pytest.mark.parametrize("name", ["dofa-v1-tiny", "me/tiny"])
@pytest.mark.parametrize("where", ["http://127.0.0.1:9", "http://nowhere.invalid"])
def test_without_a_network_that_is_one_line_and_at_once(named, repository, monkeypatch, capfd, name, where):
    monkeypatch.setattr(constants, "ENDPOINT", where)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", where + "/{repo_id}/resolve/{revision}/{filename}")
    start = time.monotonic()
    with pytest.raises(
        CheckpointError, match=f"not in the cache .*{where}.* cannot be reached: connect once"
    ) as caught:
        load(name)
    one_line(caught)
    assert time.monotonic() - start < 5
    assert not capfd.readouterr().err


def test_a_later_run_goes_on_where_a_download_was_given_up(server, named, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1 << 12)
    content = server.files[f"earthflow/DOFA/{FILE}"]
    server.cut_once_at, server.after_cut = len(content) // 2, {"GET": "silent"}
    monkeypatch.setattr(hub, "SILENT_S", 1.6)  # the client waits a second before it asks again
    with pytest.raises(CheckpointError, match=r"came in .* run it again to go on from there"):
        load("dofa-v1-tiny")
    server.fault.clear()
    server.requests.clear()
    (part,) = (tmp_path / "assets" / "dofa-downloads").glob("*.part")
    assert content.startswith(part.read_bytes())
    load("dofa-v1-tiny")
    ((_, span),) = downloads(server)
    assert span == f"bytes={part_size(content, span)}-"
    assert not list((tmp_path / "assets" / "dofa-downloads").glob(f"*{FILE}*.p*"))


def part_size(content, span):
    start = int(span.removeprefix("bytes=").rstrip("-"))
    assert 0 < start < len(content)
    return start


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC])
@pytest.mark.parametrize("name", ["dofa-v1-tiny", "me/tiny"])
def test_a_home_that_cannot_be_written_is_one_line_with_the_cure(server, named, repository, monkeypatch, number, name):
    def refuse(self, *args, **kwargs):
        raise OSError(number, os.strerror(number), str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    monkeypatch.setattr(os, "makedirs", refuse)
    with pytest.raises(CheckpointError, match=f"{name}: .*{os.strerror(number)}.* export HF_HOME=") as caught:
        load(name)
    one_line(caught)


def test_a_cache_under_a_file_is_one_line_with_the_cure(server, named, repository, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "file" / "hub"))
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "file" / "assets"))
    for name in ("dofa-v1-tiny", "me/tiny"):
        with pytest.raises(CheckpointError, match=r"cannot be written .* export HF_HOME="):
            load(name)


def test_the_full_training_file_has_a_name_for_the_encoder_and_for_the_autoencoder(server, tmp_path, monkeypatch):
    torch.manual_seed(2)
    config = EncoderConfig(
        32, 2, 2, 8, image_size=64, patch_offset=1, sar_wavelength=3.75, polarisation_embedding=False
    )
    model = MaskedAutoencoder(DOFA(config), DecoderConfig(32, 1, 2), legacy_layout=True)
    state = {k.removeprefix("encoder."): v for k, v in model.state_dict().items() if "fc_norm" not in k}
    state |= {"teacher.cls_token": torch.zeros(1, 1, 32), "projector.weight": torch.zeros(32, 32)}
    torch.save({"model": state, "epoch": 99}, tmp_path / "full.pth")
    server.files["earthflow/DOFA/full.pth"] = (tmp_path / "full.pth").read_bytes()
    monkeypatch.setitem(RELEASED, "dofa-v1-base-full", ReleasedFile("earthflow/DOFA", "full.pth", 2, decoder=True))
    monkeypatch.setattr("dofa.model.convert.DECODER_HEADS", {32: 2})
    with pytest.warns(UnverifiedWeightsWarning):
        again = load_mae("dofa-v1-base-full")
    assert again.legacy_layout
    x = torch.randn(1, 3, 64, 64)
    torch.manual_seed(3)
    expected = model.eval()(x, [0.665, 0.56, 0.49])["loss"]
    torch.manual_seed(3)
    assert torch.equal(again(x, [0.665, 0.56, 0.49])["loss"], expected)
    assert encoder_sha256(load("dofa-v1-base-full")) == encoder_sha256(model)
    assert len(downloads(server)) == 1


@pytest.fixture
def timm(server):
    """A repository me/vit_tiny as timm keeps its weights on the hub, and its tensors."""
    state = StaticViT(EncoderConfig(16, 2, 2, 8, image_size=32, pooled_norm=False), 3).state_dict()
    config = {"architecture": "vit_tiny", "model_args": {"num_heads": 2}}
    config["pretrained_cfg"] = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "license": "mit"}
    server.files["me/vit_tiny/config.json"] = json.dumps(config).encode()
    server.files["me/vit_tiny/model.safetensors"] = safetensors.torch.save(state)
    return state


def test_a_teacher_comes_by_its_name_with_what_its_config_says_and_later_from_the_cache(server, timm):
    teacher = load_teacher("me/vit_tiny", image_size=64)
    assert torch.equal(teacher.vit.state_dict()["blocks.1.mlp.fc1.weight"], timm["blocks.1.mlp.fc1.weight"])
    assert teacher.sha256 == hashlib.sha256(server.files["me/vit_tiny/model.safetensors"]).hexdigest()
    told = (teacher.name, teacher.licence, teacher.config.heads, teacher.mean.tolist())
    assert told == ("me/vit_tiny", "mit", 2, [0.5, 0.5, 0.5])
    assert [name for name, _ in downloads(server)] == ["config.json", "model.safetensors"]
    server.stop()
    assert load_teacher("me/vit_tiny").sha256 == teacher.sha256


def test_a_teacher_that_is_not_on_the_hub_is_one_line(server, timm, repository):
    del server.files["me/vit_tiny/model.safetensors"]
    for name, told in (
        ("me/vit_tiny", r"me/vit_tiny has no file model\.safetensors"),
        ("you/vit_huge", "no repository .*you/vit_huge.* no such local folder"),
        ("me/tiny", "holds a DOFA model; a teacher is an ordinary RGB ViT"),
    ):
        with pytest.raises(CheckpointError, match=told) as caught:
            load_teacher(name)
        one_line(caught)


DRIVER = """
import sys, dofa
from dofa.model.checkpoint import encoder_sha256
from dofa.model.released import RELEASED, ReleasedFile
RELEASED["dofa-v1-tiny"] = ReleasedFile("earthflow/DOFA", sys.argv[1], 2, sys.argv[2])
print(*(encoder_sha256(dofa.load(name)) for name in ("dofa-v1-tiny", "me/tiny")))
"""


def test_a_stranger_needs_only_HF_ENDPOINT_and_HF_HOME(server, named, repository, tmp_path):
    """Untouched processes, as a user starts them: online, then with the hub gone."""
    env = {**os.environ, "HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error::UserWarning", "-c", DRIVER, FILE, RELEASED["dofa-v1-tiny"].sha256]

    def run():
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=True).stdout.split()

    first = run()
    assert first[1] == encoder_sha256(repository)
    assert Path(tmp_path / "home" / "assets" / "dofa" / "dofa-v1-tiny-format1" / "config.json").is_file()
    server.stop()
    start = time.monotonic()
    assert run() == first
    assert time.monotonic() - start < 60
