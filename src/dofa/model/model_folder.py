"""The model folder, config.json and model.safetensors: written whole or not at all, read strictly."""

import hashlib
import json
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import dofa
from dofa.addresses import redact_values
from dofa.documents import read_json
from dofa.errors import CheckpointError, ConfigError, shorten
from dofa.io import json_digest, name_os_errors
from dofa.model.config import DecoderConfig, EncoderConfig, MaskConfig, Origin
from dofa.model.encoder import DOFA
from dofa.model.lora import require_merged
from dofa.model.mae import MaskedAutoencoder
from dofa.settings import check_keys, check_types, check_version, field_names

FORMAT_VERSION = 1
CONFIG, WEIGHTS = "config.json", "model.safetensors"
CONFIG_DIGEST = "config_sha256"  # of what config.json says of the weights; folders written before have none
_KEYS = (
    "format_version",
    "encoder",
    "decoder",
    "mask",
    "legacy_layout",
    "licence",
    "attribution",
    "provenance",
    "weights_sha256",
    CONFIG_DIGEST,
)
# What modules and our own code start weights with, as torch shows it to a function mode.
_RANDOM = (nn.init.kaiming_uniform_, nn.init.normal_, nn.init.uniform_, Tensor.normal_, Tensor.uniform_)
PENDING = f".{CONFIG}.tmp"
_SHOWN = 4  # names in an error line, before it only counts them


def save(model: DOFA | MaskedAutoencoder, folder: str | Path, *, provenance: dict[str, Any] | None = None) -> Path:
    """Writes a model folder.

    Both files are complete on the disk before the first takes its final name; config.json holds the digest of its
    model.safetensors. So an interruption leaves the model before or the new one: after a kill between the two renames
    the new config.json is read from beside.

    Args:
        model: an encoder, or a masked autoencoder with its decoder.
        folder: created if need be; a model already in it is replaced.
        provenance: how these weights came about (corpus and hash, steps, …), JSON values. What the model was loaded
            from stays beside it under `initialised_from`; licence and attribution are carried along from there.

    Returns:
        The folder.

    Raises:
        CheckpointError: a weight is NaN or infinite.
        ConfigError: it has LoRA adapters, which a model folder has no place for.
        OSError: the disk refuses it; what was there stays.
    """
    require_merged(model)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    encoder = model.encoder if isinstance(model, MaskedAutoencoder) else model
    state = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    broken = [name for name, tensor in state.items() if not bool(torch.isfinite(tensor).all())]
    if broken:
        raise CheckpointError(f"not saved to {folder}: NaN or infinite values in {_names(broken)}")
    temporary, pending = folder / f".{WEIGHTS}.tmp", folder / PENDING
    record: dict[str, Any] = {"format_version": FORMAT_VERSION, "encoder": encoder.config.to_dict()}
    if isinstance(model, MaskedAutoencoder):
        record["decoder"] = asdict(model.decoder_config)
        record["mask"] = asdict(model.mask_config)
        record["legacy_layout"] = model.legacy_layout
    with name_os_errors(folder / WEIGHTS):
        save_file(state, temporary, metadata={"format": "pt"})
    record[CONFIG_DIGEST] = _meaning(record)
    record["licence"] = encoder.origin.licence
    record["attribution"] = encoder.origin.attribution
    record["provenance"] = redact_values(_provenance(encoder.origin, provenance))
    record["weights_sha256"] = file_sha256(temporary)
    with name_os_errors(folder / CONFIG):
        pending.write_text(_pretty(record) + "\n", encoding="utf-8")
    shutil.copymode(pending, temporary)  # safetensors writes for the owner's eyes alone
    for written in (temporary, pending):
        with name_os_errors(written), written.open("rb+") as file:
            os.fsync(file.fileno())
    os.replace(temporary, folder / WEIGHTS)
    os.replace(pending, folder / CONFIG)  # a kill before this leaves `pending`, which readers take (`_pair`)
    _sync_folder(folder)
    return folder


def load_encoder(folder: Path) -> DOFA:
    """The encoder of a model folder, whether or not a decoder lies beside it; in eval mode, float32, on the CPU.

    Raises:
        CheckpointError: not a model folder, from a newer dofa, half written, or keys or shapes that do not fit.
    """
    model = _load(folder)
    if isinstance(model, DOFA):
        return model
    # The autoencoder froze what no reconstruction reaches; a user of the encoder trains it.
    model.encoder.fc_norm.requires_grad_(True)
    model.encoder.head.requires_grad_(True)
    return model.encoder


def read_config(folder: Path) -> EncoderConfig:
    """The configuration of a model folder's encoder, without its weights.

    Raises:
        CheckpointError: not a model folder, from a newer dofa, or a config.json that is not whole.
    """
    record = _record(folder)
    with _telling(folder):
        return EncoderConfig.from_dict(record["encoder"])


def load_autoencoder(folder: Path) -> MaskedAutoencoder:
    """The masked autoencoder of a model folder; in eval mode, float32, on the CPU.

    Raises:
        CheckpointError: as `load_encoder`, or the folder holds an encoder without a decoder.
    """
    model = _load(folder)
    if isinstance(model, DOFA):
        raise CheckpointError(f"{folder} holds an encoder without a decoder: load it with dofa.load")
    return model


def encoder_sha256(model: DOFA | MaskedAutoencoder) -> str:
    """Digest of what makes an encoder's features: its weights and the conventions no tensor shows.

    The classification head is left out: a head folder replaces it. Saving and loading changes nothing; one changed
    weight does, and so does another number type.
    """
    encoder = model.encoder if isinstance(model, MaskedAutoencoder) else model
    config = encoder.config
    digest = hashlib.sha256(f"{config.heads} {config.patch_offset} {config.sar_wavelength}".encode())
    for name, tensor in sorted(encoder.state_dict().items()):
        if not name.startswith("head."):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fill(model: nn.Module, tensors: Mapping[str, Tensor], what: str) -> None:
    """Puts tensors into a model, every key accounted for.

    Args:
        model: afterwards it holds float32 copies of the tensors.
        what: names the source in an error.

    Raises:
        CheckpointError: missing, unexpected or misshapen keys, named in one line, or integers where weights belong.
    """
    expected = model.state_dict()
    faults = []
    if missing := [k for k in expected if k not in tensors]:
        faults.append(f"missing {_names(missing)}")
    if extra := [k for k in tensors if k not in expected]:
        faults.append(f"unexpected {_names(extra)}")
    shared = [k for k in expected if k in tensors]
    if wrong := [k for k in shared if tensors[k].shape != expected[k].shape]:
        told = [f"{k} {tuple(tensors[k].shape)} instead of {tuple(expected[k].shape)}" for k in wrong]
        faults.append(f"misshapen {_names(told)}")
    if odd := [k for k in shared if not tensors[k].is_floating_point()]:
        faults.append(f"not floating point {_names(odd)}")
    if faults:
        raise CheckpointError(f"{what} does not fit the model: {'; '.join(faults)}")
    # Copies: a tensor read from a file may be a view of it, and would change with the file.
    copies = {k: v.to(torch.float32, copy=True) for k, v in tensors.items()}
    model.load_state_dict(copies, strict=True, assign=True)


class _NoRandomStart(TorchFunctionMode):
    """Leaves out random starts, which for 100 million weights take seconds; their memory is never touched."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _RANDOM:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def build_encoder(config: EncoderConfig) -> DOFA:
    """An encoder to be filled: its weights are whatever lies in memory."""
    with _NoRandomStart():
        return DOFA(config)


def build_autoencoder(
    config: EncoderConfig, decoder: DecoderConfig, mask: MaskConfig, legacy_layout: bool
) -> MaskedAutoencoder:
    """Like `build_encoder`, with its decoder.

    Args:
        legacy_layout: the order of predicted pixels in released weights.
    """
    with _NoRandomStart():
        return MaskedAutoencoder(DOFA(config), decoder, mask, legacy_layout)


def _load(folder: Path) -> DOFA | MaskedAutoencoder:
    record = _pair(folder)
    with _telling(folder):
        config = EncoderConfig.from_dict(record["encoder"])
        origin = Origin(record.get("licence", ""), record.get("attribution", ""), record.get("provenance", {}))
        check_types(origin, "")
        sha256 = record.get("weights_sha256")
        if sha256 is not None and not isinstance(sha256, str):
            raise ConfigError(f"weights_sha256 is {shorten(repr(sha256))}; text is expected")
        tensors = _read_weights(folder, sha256)
        _check_size(folder / WEIGHTS, config)
        if "decoder" in record:
            decoder = DecoderConfig(**check_keys(record["decoder"], field_names(DecoderConfig), "decoder"))
            mask = MaskConfig(**check_keys(record["mask"], field_names(MaskConfig), "mask"))
            if not isinstance(record["legacy_layout"], bool):
                raise ConfigError(
                    f"legacy_layout is {shorten(repr(record['legacy_layout']))}; true or false is expected"
                )
            model: DOFA | MaskedAutoencoder = build_autoencoder(config, decoder, mask, record["legacy_layout"])
        else:
            model = build_encoder(config)
    _check_config(folder, record)
    fill(model, tensors, str(folder / WEIGHTS))
    (model.encoder if isinstance(model, MaskedAutoencoder) else model).origin = origin
    return model.eval()


def _meaning(record: dict[str, Any]) -> str:
    """Digest of what config.json says about the weights: all but their origin."""
    return json_digest({key: record.get(key) for key in ("encoder", "decoder", "mask", "legacy_layout")})


def _check_config(folder: Path, record: dict[str, Any]) -> None:
    """Refuse a configuration that is not the one the weights were saved with: other wavelengths are other features."""
    if record.get(CONFIG_DIGEST) not in (None, _meaning(record)):
        raise CheckpointError(
            f"{folder / CONFIG} is not the one its {WEIGHTS} was saved with: a damaged copy, or it was changed; copy "
            "or save both again"
        )


def _check_size(weights: Path, config: EncoderConfig) -> None:
    """Refuse a configuration that could not be that of the weights beside it, before memory is taken for it."""
    if weights.is_file() and weights.stat().st_size < config.fewest_weights():
        raise ConfigError(
            f"it describes a model of at least {config.fewest_weights():,} weights, and {WEIGHTS} has "
            f"{weights.stat().st_size:,} bytes: one of the two was replaced, or the copy is truncated"
        )


def _record(folder: Path) -> dict[str, Any]:
    return read_record(folder / CONFIG, "model", FORMAT_VERSION, _KEYS)


def _pair(folder: Path) -> dict[str, Any]:
    """The config.json of the weights that are there, also where `save` was killed between its two renames."""
    if (folder / PENDING).is_file() and (folder / WEIGHTS).is_file():
        with suppress(CheckpointError, FileNotFoundError):  # half written, or just renamed: config.json counts
            pending = read_record(folder / PENDING, "model", FORMAT_VERSION, _KEYS)
            if pending.get("weights_sha256") == file_sha256(folder / WEIGHTS):
                return pending
    return _record(folder)


@contextmanager
def _telling(folder: Path) -> Iterator[None]:
    """What does not fit in a config.json, told with its path."""
    try:
        yield
    except KeyError as error:
        raise CheckpointError(f"{folder / CONFIG}: {error.args[0]} is missing") from None
    except CheckpointError:
        raise
    except (ConfigError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{folder / CONFIG}: {error}") from None


def _inside(path: Path) -> str:
    """Folders one level below that have the file: of a run or a probe, which people name in place of what is in it."""
    found = sorted(str(file.parent) for file in path.parent.glob(f"*/{path.name}"))[:3]
    return f"; did you mean {' or '.join(found)}?" if found else ""


def read_record(path: Path, what: str, version: int, keys: Collection[str]) -> dict[str, Any]:
    """The JSON record of a model or head folder.

    Args:
        what: model or head, for the messages.
        version: the newest format version this code reads.

    Raises:
        CheckpointError: missing, no JSON, without a format version, from the future, or with a key nobody knows.
    """
    if not path.is_file():
        raise CheckpointError(f"{path.parent} is no {what} folder: {path.name} is missing{_inside(path)}")
    record = read_json(path, CheckpointError)
    check_version(
        record.get("format_version") if isinstance(record, dict) else None, version, str(path), CheckpointError
    )
    return dict(check_keys(record, keys, str(path), error=CheckpointError))


def _read_weights(folder: Path, sha256: str | None) -> dict[str, Tensor]:
    path = folder / WEIGHTS
    if not path.is_file():
        raise CheckpointError(f"{folder} is no model folder: {WEIGHTS} is missing")
    if sha256 is not None and (found := file_sha256(path)) != sha256:
        raise CheckpointError(
            f"{path} is not the file its {CONFIG} describes (sha256 {found[:8]}…, expected {sha256[:8]}…): "
            "a truncated copy, an interrupted save, or one of the two was replaced; copy or save both again"
        )
    return read_safetensors(path)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file.

    Raises:
        CheckpointError: it is none, or truncated.
    """
    try:
        return load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is no safetensors file, or truncated: {error}") from None


def _provenance(origin: Origin, given: dict[str, Any] | None) -> dict[str, Any]:
    version = {"dofa_version": dofa.__version__}
    if given is None:
        return version | origin.provenance
    return version | given | ({"initialised_from": origin.provenance} if origin.provenance else {})


def _pretty(value: Any, indent: str = "") -> str:
    """JSON with one line a key and each list on its own line: 202 wavelengths stay readable."""
    if not isinstance(value, dict) or not value:
        return json.dumps(value, ensure_ascii=False)
    inner = indent + "  "
    lines = [f"{inner}{json.dumps(key, ensure_ascii=False)}: {_pretty(v, inner)}" for key, v in value.items()]
    return "{\n" + ",\n".join(lines) + "\n" + indent + "}"


def _names(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _sync_folder(folder: Path) -> None:
    """Makes the new names themselves survive a power cut, where folders can be synced."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
