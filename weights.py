"""Read checkpoints. The files may be damaged, malicious, or not checkpoints at all.

No code in a file is executed. PyTorch's restricted unpickler reads it, and anything but plain tensors and containers is
rejected. Each error is one line that names the file and says what it contains.
"""
from __future__ import annotations

import json
import os
import pickle
import re
import reprlib
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from support.console import first_line, listed, printable

CHECKPOINTS = {name: Path(__file__).resolve().parent / "checkpoints" / file for name, file in (
    ("contrast", "rpfnet.pth"), ("paper", "rpfnet_paper.pth"), ("medical", "rpfnet_medical.pth"),
    ("small", "rpfnet_small.pth"), ("tiny", "rpfnet_tiny.pth"))}
FIRST_LAYER = "stem_f.0.weight"     # a parameter of every RPFNet
LEGACY = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"     # magic number of files of torch.save before PyTorch 1.6

# First bytes of other kinds of files.
KINDS = (
    (b"\x89PNG", "a picture (PNG)"), (b"\xff\xd8\xff", "a picture (JPEG)"), (b"GIF8", "a picture (GIF)"),
    (b"BM", "a picture (BMP)"), (b"II*\0", "a picture (TIFF)"), (b"MM\0*", "a picture (TIFF)"),
    (b"RIFF", "a picture (WebP) or a sound"), (b"\x89HDF", "an HDF5 file"), (b"\x93NUMPY", "a NumPy array"),
    (b"%PDF", "a PDF"), (b"\x1f\x8b", "a gzip file; unpack it first"),
    (b"version https://git-lfs", "a Git LFS pointer; fetch the file itself with git lfs pull"),
    *((bytes([0x80, protocol]), "a pickle that torch.save did not write") for protocol in range(2, 6)))


Network = TypeVar("Network", bound=nn.Module)
LIMITS = {"channels": (4, 1024), "stages": (1, 64), "border": (0, 1024)}    # larger than any useful value


def check_config(config: Mapping, choices: Mapping[str, tuple[str, ...]]) -> None:
    """Check the arguments of a network, which can come from a file. Raises ValueError.

    Args:
        config: the arguments of RPFNet by name.
        choices: the possible values of each string argument.
    """
    for name, value in config.items():
        if name in LIMITS:
            low, high = LIMITS[name]
            if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
                raise ValueError(f"{name}={reprlib.repr(value)}; a whole number from {low} to {high} is needed")
        elif name in choices:
            if value not in choices[name]:
                raise ValueError(f"{name}={reprlib.repr(value)}; choose from {', '.join(choices[name])}")
        elif not isinstance(value, bool):
            raise ValueError(f"{name}={reprlib.repr(value)}; True or False is needed")
    if config["channels"] % 4:
        raise ValueError(f"channels={config['channels']}; a multiple of 4 is needed")


# ---------------------------------------------------------------------------------------------
# Files


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Check the kind and the checksums of a torch.save file, then yield it, open for reading.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is damaged or of another kind.
    """
    _check_is_file(path)
    with path.open("rb") as file:
        head = file.read(512)
        if head.startswith(b"PK"):
            _check_archive(path, file)
        elif LEGACY not in head[:40]:       # files of before 1.6 have no checksums
            raise ValueError(f"{path}: not weights, but {_kind(head)}")
        file.seek(0)
        yield file


def _check_is_file(path: Path) -> None:
    if path.exists() and not path.is_file():
        raise ValueError(f"{path}: not a file, but {'a folder' if path.is_dir() else 'a device or a pipe'}")


def _kind(head: bytes) -> str:
    """Kind of the file that begins with `head`, in words."""
    if not head:
        return "an empty file"
    for start, kind in KINDS:
        if head.startswith(start):
            return kind
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 2**27:
        return "a safetensors file; convert it with torch.save"
    text = head.decode("utf-8", "ignore")
    if len(text.encode()) < len(head) - 3 or not all(char.isprintable() or char.isspace() for char in text):
        return "a file of an unknown kind"
    return "a web page; the download went wrong" if text.lstrip().startswith("<") else "a text file"


def _check_archive(path: Path, file: BinaryIO) -> None:
    try:
        with zipfile.ZipFile(file) as archive:
            parts = archive.infolist()
            compressed = any(part.compress_type != zipfile.ZIP_STORED for part in parts)
            # testzip would decompress compressed parts, for example a zip bomb.
            damaged = None if compressed else archive.testzip()
    except Exception as error:      # noqa: BLE001  zipfile raises many types for damaged files
        raise ValueError(f"{path}: damaged or incomplete ({printable(first_line(error))}); "
                         "copy or download it again") from None
    names = [part.filename for part in parts]
    if damaged:
        raise ValueError(f"{path}: damaged, the checksum of {printable(damaged)} is wrong; copy or download it again")
    if any(name.endswith("/constants.pkl") for name in names):
        raise ValueError(f"{path}: not weights, but a TorchScript program")
    if not any(name.endswith("data.pkl") for name in names):
        raise ValueError(f"{path}: not weights, but a zip file of something else")
    if compressed:
        raise ValueError(f"{path}: compressed, which torch.save never does; it is not read")


def load(path: Path) -> object:
    """Load a torch.save file: tensors on the CPU, in plain containers. Raises OSError, ValueError."""
    with opened(path) as file, warnings.catch_warnings(action="ignore"):    # warnings about sparse tensors
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            # PyTorch's own message is not shown: it advises weights_only=False, which executes code in the file.
            asked = re.search(r"GLOBAL (\S+) (?:was not|whose module)", str(error))
            what = printable(asked[1]) if asked else "objects other than tensors"
            theirs = "; if this is the authors' Model.pth, use --released" if what == "net.FusionNetwork" else ""
            raise ValueError(f"{path}: refused, because its pickle asks for {what}; weights are stored as "
                             f"model.state_dict(), not as the whole model{theirs}") from None
        except Exception as error:      # noqa: BLE001  torch raises many types; each would hide the file's name
            raise ValueError(f"{path}: cannot be read as weights ({printable(first_line(error))})") from None


def read_json(path: Path) -> dict:
    """Read a JSON file that holds an object. Raises OSError, or ValueError for any other content."""
    _check_is_file(path)
    data = path.read_bytes()
    try:
        content = json.loads(data)
    except RecursionError:
        raise ValueError(f"{path}: nested too deep for a JSON file of ours") from None
    except ValueError as error:
        raise ValueError(f"{path}: not a JSON file ({printable(first_line(error))})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds {in_words(content)}, where an object {{...}} is expected")
    return content


def in_words(value: object) -> str:
    """Type of a value from a JSON file or a checkpoint, in words."""
    kinds = {dict: "an object", list: "a list", str: "a text", bool: "true or false", int: "a number",
             float: "a number", type(None): "null", Tensor: "a tensor"}
    return kinds.get(type(value), f"a {type(value).__name__}")


# ---------------------------------------------------------------------------------------------
# Weights


class Checkpoint(NamedTuple):
    """Content of a file of weights."""
    weights: dict[str, Tensor]
    config: dict        # arguments of RPFNet
    described_in: Path  # file that holds the arguments, for error messages


def read_checkpoint(path: Path) -> Checkpoint:
    """Read weights (`.pth`, with a `.json` beside it) or a training checkpoint (last.pth).

    It does not check that the weights fit the network; `check_weights` does. Raises OSError, ValueError.
    """
    state, source = load(path), path
    if isinstance(state, dict) and {"model", "config"} <= state.keys():
        weights, config = state["model"], state["config"]
    else:
        weights, source = state, path.with_suffix(".json")
    if not isinstance(weights, dict) or FIRST_LAYER not in weights:
        raise ValueError(f"{path}: not weights of RPFNet, but {_contents(weights)}")
    if source != path:
        config = _described(path, source)
    if not isinstance(config, dict):
        raise ValueError(f'{source}: "config" is {in_words(config)}, where an object {{...}} is expected')
    return Checkpoint(weights, config, source)


def _described(path: Path, source: Path) -> object:
    """The arguments of the network, from the JSON file that train.py writes beside the weights."""
    try:
        about = read_json(source)
    except FileNotFoundError:       # the weights do not show all arguments, for example not `border`
        raise ValueError(f"{path}: the network's arguments are missing; put the {source.name} that was written "
                         'with it beside it, or save a network of your own with torch.save({"model": '
                         'model.state_dict(), "config": model.config}, path)') from None
    if "config" not in about:
        raise ValueError(f'{source}: "config", the arguments of the network, is missing')
    return about["config"]


def _contents(state: object) -> str:
    """Content of a file that holds no weights of RPFNet, in words."""
    if not isinstance(state, dict):
        return in_words(state)
    if state and all(isinstance(value, Tensor) for value in state.values()):
        for prefix, wrapper in (("module.", "DataParallel"), ("_orig_mod.", "torch.compile")):
            if all(str(name).startswith(prefix) for name in state):
                return f"those of a network in {wrapper}; save the state_dict() of the network itself"
        return f"those of another network: {_named(state)}"
    return f"a dictionary of {_named(state) or 'nothing'}"


def _named(names: Iterable[object], most: int = 3) -> str:
    return listed([printable(str(name))[:60] for name in names], most)


def check_weights(path: Path, weights: object, network: nn.Module) -> None:
    """Check a state dict: names, shapes, types, shared tensors, finite values.

    Args:
        path: file of the weights, for the message.
        weights: the state dict.
        network: the network that they should fit. It may be on the device "meta", without values.
    Raises:
        ValueError: the weights do not fit, or contain NaN or infinite values.
    """
    wanted = network.state_dict(keep_vars=True)
    if not isinstance(weights, Mapping):
        raise ValueError(f"{path}: holds {in_words(weights)}, where weights by name are expected")
    missing, unknown = ([name for name in a if name not in b] for a, b in ((wanted, weights), (weights, wanted)))
    if any(name.replace(".1.running_mean", ".0.bias") in unknown for name in missing):
        raise ValueError(f"{path}: weights after optimize(), which cannot be loaded; save the weights before optimize()")
    if missing or unknown:
        parts = [f"{what} {_named(names)}" for what, names in (("it lacks", missing), ("it has", unknown)) if names]
        raise ValueError(f"{path}: not the weights of this network: {', '.join(parts)}")
    first: dict[int, str] = {}
    for name, target in wanted.items():
        value = weights[name]
        problem = _problem(name, value, target)
        if problem:
            raise ValueError(f"{path}: {name} {problem}")
        twin = first.setdefault(id(target), name)
        if not torch.equal(value, weights[twin]):
            raise ValueError(f"{path}: {name} and {twin} differ, but this network shares them; "
                             "its config names another sharing")


def _problem(name: str, value: object, target: Tensor) -> str:
    """Reason why the value cannot be this parameter or buffer; empty if it can."""
    if not isinstance(value, Tensor):
        return f"is {in_words(value)}, not a tensor"
    if value.layout != torch.strided or value.is_nested or value.is_quantized or value.device.type != "cpu":
        return "is not a plain tensor with values"
    if value.shape != target.shape:
        return f"has the shape {tuple(value.shape)}, and {tuple(target.shape)} is expected"
    narrow = value.is_floating_point() and value.dtype.itemsize < 2         # float8, which has few operations
    if value.is_floating_point() != target.is_floating_point() or value.is_complex() or value.dtype == torch.bool or narrow:
        return f"holds {value.dtype}, and {target.dtype} is expected"
    if not value.to(target.dtype).isfinite().all():     # after conversion: a float64 value can overflow in float32
        return "holds NaN or infinite numbers, as after a training that diverged"
    if name.endswith("running_var") and (value < 0).any():
        return "holds negative numbers, and a variance has none"
    return ""


def find(name: str | Path) -> Path:
    """Path of a checkpoint: `name` is a name in CHECKPOINTS or a path. Raises FileNotFoundError, ValueError."""
    if not isinstance(name, str | os.PathLike) or str(name) in ("", "."):
        raise ValueError(f"path={name!r}: a name or a file is needed; leave it out for its default")
    path = CHECKPOINTS.get(str(name), Path(name))
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such checkpoint; choose from {', '.join(CHECKPOINTS)}, or give a file "
                                "that train.py wrote")
    return path


def restored(build: Callable[..., Network], name: str | Path) -> Network:
    """Build the network of a checkpoint and load its weights.

    Args:
        build: makes the network from its config.
        name: as for `find`.
    Raises:
        OSError, ValueError: no such file, or no valid weights of this network. One line that names the file.
    """
    path = find(name)
    weights, config, described_in = read_checkpoint(path)
    try:
        with torch.device("meta"):      # names and shapes without values, so that a wrong config takes no memory
            plan = build(**config)
    except (TypeError, ValueError) as error:
        raise ValueError(f'{described_in}: "config": {printable(first_line(error))[:200]}') from None
    check_weights(path, weights, plan)
    with torch.random.fork_rng(devices=[]):     # the random weights, which are replaced, would change the caller's numbers
        model = build(**config)
    model.load_state_dict(weights)
    return model
