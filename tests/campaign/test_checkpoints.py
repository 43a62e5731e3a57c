"""Checkpoints that are damaged or hostile: `python -m pytest -m campaign tests/campaign`.

Whatever is in the file, nothing of it is run, the refusal is one line, and what loads is what was saved.
"""
import io
import json
import os
import random
import subprocess
import sys
import time
import zipfile

import numpy as np
import pytest
import torch

from net import RPFNet
from tools.released import load_released
from train import parse
from weights import CHECKPOINTS, load

pytestmark = pytest.mark.campaign


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return RPFNet(channels=4, stages=2)


def saved(content, **options):
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def write(tmp_path, data, config):
    path = tmp_path / "a.pth"
    path.write_bytes(data)
    path.with_suffix(".json").write_text(json.dumps({"config": config}))
    return path


def refusal(read, path):
    """The line in which a reader refuses a file; None where it takes it. Quick, whatever is in it."""
    start = time.monotonic()
    try:
        read(path)
        return None
    except (ValueError, FileNotFoundError, OSError) as error:
        message = str(error)
    assert time.monotonic() - start < 20
    assert "\n" not in message and "weights_only" not in message and len(message) < 1000 and message.isprintable()
    assert path.stem in message
    return message


def same(loaded, model):
    return all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())


# --- damage ---


@pytest.mark.parametrize("part", range(10))
def test_300_flipped_bits_never_load_as_other_weights(model, tmp_path, part):
    whole, draw = saved(model.state_dict()), random.Random(part)
    for _ in range(30):
        data = bytearray(whole)
        bit = draw.randrange(8 * len(data))
        data[bit // 8] ^= 1 << bit % 8
        path = write(tmp_path, data, model.config)
        if refusal(RPFNet.from_pretrained, path) is None:       # a bit of padding, or of a time
            assert same(RPFNet.from_pretrained(path), model), bit


@pytest.mark.parametrize("part", range(5))
def test_files_cut_or_longer_or_with_a_hole(model, tmp_path, part):
    whole, draw = saved(model.state_dict()), random.Random(part)
    for _ in range(10):
        cut = draw.randrange(len(whole))
        for data in (whole[:cut], whole[cut:], whole[:cut] + bytes(512) + whole[cut + 512:], whole + bytes(cut % 99)):
            path = write(tmp_path, data, model.config)
            if refusal(RPFNet.from_pretrained, path) is None:
                assert same(RPFNet.from_pretrained(path), model)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_each_parameter_in_turn(model, tmp_path, value, legacy):
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            state = {key: other.clone() for key, other in model.state_dict().items()}
            state[name].view(-1)[0] = value
            path = write(tmp_path, saved(state, _use_new_zipfile_serialization=not legacy), model.config)
            assert f"{name} holds NaN or infinite" in refusal(RPFNet.from_pretrained, path)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool,
                                   torch.complex64, torch.complex128], ids=str)
def test_each_dtype_that_is_no_weight(model, tmp_path, dtype):
    for name in ("stem_f.0.weight", "head.last.bias", "stages.1.fdfm.spatial.1.running_mean"):
        state = model.state_dict()
        state[name] = state[name].to(dtype)
        assert f"{name} holds {dtype}" in refusal(RPFNet.from_pretrained, write(tmp_path, saved(state), model.config))


@pytest.mark.parametrize("part", range(10))
def test_random_bytes(tmp_path, part):
    draw = np.random.default_rng(part)
    for start in (b"", b"PK\3\4", b"\x80\2", b"\x80\2\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", b"\x89PNG", b"{", b"[["):
        path = write(tmp_path, start + draw.bytes(int(draw.integers(0, 5000))), {})
        for read in (RPFNet.from_pretrained, load_released):
            assert refusal(read, path)


# --- the JSON beside the weights ---

VALUES = [None, True, False, 0, -1, 3, 10**9, 10**30, -10**30, 0.5, 1e300, float("nan"), float("inf"), "", "3", "none",
          "x" * 10**6, "\x1b[2J", "\u202e", [], [3], {}, {"a": 1}, [[]] * 1000]


@pytest.mark.parametrize("field", ["channels", "stages", "sharing", "global_branch", "cpm", "prior", "border", "more"])
def test_each_field_with_each_kind_of_value(model, tmp_path, field):
    for value in VALUES:
        path = write(tmp_path, saved(model.state_dict()), model.config | {field: value})
        said = refusal(RPFNet.from_pretrained, path)
        if said is None:        # it changes no picture (copies of one convolution), or is what a user may choose
            assert model.config[field] == value or (field, value) == ("sharing", "none") or field == "border"
        else:
            assert "a.json" in said or "a.pth" in said


@pytest.mark.parametrize("text", ["[" * 10**5, '{"config":' * 10**5, '{"config":{"stages":' + "[" * 10**5, "9" * 10**5,
                                  "\0" * 1000, "\ufeff{}", "{}{}", "NaN", "'config'", "//", "{", '{"config"}', "nul"],
                         ids=lambda text: repr(text[:14]))
def test_text_that_is_no_json_of_ours(model, tmp_path, text):
    path = write(tmp_path, saved(model.state_dict()), {})
    path.with_suffix(".json").write_text(text)
    assert "a.json" in refusal(RPFNet.from_pretrained, path)


# --- hostile pickles ---


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


class Set(Call):
    """Pickles as a call whose result is given a state."""

    def __reduce__(self):
        return (*self.call, {"a": 1})


CALLS = {
    "os.system": lambda mark: Call(os.system, f"echo > {mark}"),
    "os.mkdir": lambda mark: Call(os.mkdir, str(mark)),
    "eval": lambda mark: Call(eval, f"open({str(mark)!r}, 'w').close()"),
    "exec": lambda mark: Call(exec, f"open({str(mark)!r}, 'w').close()"),
    "open": lambda mark: Call(open, str(mark), "w"),
    "getattr": lambda mark: Call(getattr, torch.nn.Conv2d(1, 1, 1), "weight"),
    "subprocess": lambda mark: Call(subprocess.check_call, ["touch", str(mark)]),
    "torch.load": lambda mark: Call(torch.load, str(mark)),
    "torch.save": lambda mark: Call(torch.save, {}, str(mark)),
    "torch.hub": lambda mark: Call(torch.hub.load, str(mark), "model"),
    "numpy": lambda mark: Call(np.save, str(mark), [1]),
    "state": lambda mark: Set(os.mkdir, str(mark)),
}
PLACES = {
    "alone": lambda call, model: call,
    "a weight": lambda call, model: model.state_dict() | {"head.last.bias": call},
    "a key": lambda call, model: {"model": model.state_dict(), "config": model.config, "decoder": [call]},
    "the config": lambda call, model: {"model": model.state_dict(), "config": call},
    "the recipe": lambda call, model: {"model": {}, "config": {}, "recipe": {"out": call}},
    "a list": lambda call, model: [[[call]]],
}


def resume(path):
    """As --resume reads last.pth."""
    path.rename(path.with_name("last.pth"))
    try:
        parse(["--resume", "--out", str(path.parent)])
    except Exception as error:
        raise ValueError(str(error).replace("last.pth", "a.pth")) from None
    finally:
        path.with_name("last.pth").rename(path)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("call", CALLS)
def test_nothing_in_a_pickle_is_run(model, tmp_path, call, place, legacy):
    mark = tmp_path / "mark"
    data = saved(PLACES[place](CALLS[call](mark), model), _use_new_zipfile_serialization=not legacy)
    path = write(tmp_path, data, model.config)
    for read in (RPFNet.from_pretrained, load_released, load, resume):
        assert refusal(read, path)
    assert not mark.exists() and not list(tmp_path.glob("mark*"))


def test_a_zip_that_unpacks_to_any_size_is_not_unpacked(model, tmp_path):
    with zipfile.ZipFile(io.BytesIO(saved(model.state_dict()))) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in records.items():
            archive.writestr(name, data + bytes(10**8 if name.endswith("/0") else 0))
    path = write(tmp_path, buffer.getvalue(), model.config)
    assert path.stat().st_size < 10**6 and "compressed" in refusal(RPFNet.from_pretrained, path)


# --- what the commands say ---


@pytest.mark.parametrize("command", ["test.py --checkpoint", "test.py --released", "train.py --init"])
@pytest.mark.parametrize("thing", ["/dev/zero", "/dev/null", "/", "pipe", "picture", "text", "missing"])
def test_commands_name_what_is_no_checkpoint(tmp_path, folders, command, thing):
    script, option = command.split()
    path = {"pipe": tmp_path / "pipe", "picture": tmp_path / "p.png", "text": tmp_path / "t.txt",
            "missing": tmp_path / "none.pth"}.get(thing, thing)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "p.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    (tmp_path / "t.txt").write_text("weights: see the cloud")
    root = CHECKPOINTS["contrast"].parents[1]
    argv = [sys.executable, str(root / script), *folders, option, str(path), "--out", str(tmp_path / "o")]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300, check=False)
    line = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and line.startswith(f"{script}: ") and str(path) in line
    assert "Traceback" not in done.stderr
