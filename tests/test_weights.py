"""Checkpoints that are damaged, hostile or something else: one line that names the file, and nothing of it is run."""
import json
import os
import pickle
import struct
import zipfile

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from net import RPFNet
from weights import KINDS, load, read_json

HOT = "stages.0.fdfm.spatial.1.running_var"


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return RPFNet(channels=4, stages=2)


@pytest.fixture
def save(model, tmp_path):
    """Writes weights and the JSON beside them."""
    def write(state=None, config=None, **options):
        path = tmp_path / "a.pth"
        torch.save(model.state_dict() if state is None else state, path, **options)
        path.with_suffix(".json").write_text(json.dumps({"config": config or model.config}))
        return path
    return write


def refusal(path, kind=ValueError):
    with pytest.raises(kind) as error:
        RPFNet.from_pretrained(path)
    message = str(error.value)
    assert "\n" not in message and "weights_only" not in message and message.isprintable() and len(message) < 500
    return message


# --- numbers ---


def changed(name, edit):
    def apply(state):
        state = {key: value.clone() for key, value in state.items()}
        state[name] = edit(state[name])
        return state
    return apply


def with_value(value):
    def edit(tensor):
        tensor.view(-1)[-1] = value
        return tensor
    return edit


STATES = {
    "NaN": (changed("head.last.weight", with_value(torch.nan)), "head.last.weight holds NaN or infinite"),
    "infinite": (changed("stem_r.1.bias", with_value(-torch.inf)), "stem_r.1.bias holds NaN or infinite"),
    "NaN statistics": (changed(HOT, with_value(torch.nan)), f"{HOT} holds NaN"),
    "too large for float32": (changed("head.last.bias", lambda x: x.double() + 1e300), "head.last.bias holds NaN"),
    "negative variance": (changed(HOT, with_value(-1.0)), f"{HOT} holds negative numbers"),
    "integers": (changed("head.last.weight", lambda x: x.mul(100).to(torch.int8)), "head.last.weight holds torch.int8"),
    "booleans": (changed("head.last.weight", lambda x: x > 0), "head.last.weight holds torch.bool"),
    "complex": (changed("head.last.weight", lambda x: x.to(torch.complex64)), "head.last.weight holds torch.complex64"),
    "sparse": (changed("head.last.weight", lambda x: x.to_sparse()), "head.last.weight is not a plain tensor"),
    "no values": (changed("head.last.weight", lambda x: x.to("meta")), "head.last.weight is not a plain tensor"),
    "another shape": (changed("head.last.bias", lambda x: x[None]), "has the shape (1, 1), and (1,)"),
    "a number": (changed("head.last.bias", lambda x: 3), "head.last.bias is a number, not a tensor"),
    "one missing": (lambda s: {k: v for k, v in s.items() if k != "head.last.bias"}, "it lacks head.last.bias"),
    "one more": (lambda s: s | {"extra\x1b[31m": torch.zeros(1)}, "it has extra\\x1b"),
    "a key that is no text": (lambda s: s | {3: torch.zeros(1)}, "it has 3"),
    "nested": (changed("head.last.weight", lambda x: torch.nested.nested_tensor([torch.rand(3), torch.rand(4)])),
               "head.last.weight is not a plain tensor"),
    "after optimize()": (lambda s: {k.replace("stem_r.1.bias", "stem_r.0.bias"): v for k, v in s.items()
                                    if "stem_r.1." not in k or k.endswith("bias")},
                         "weights after optimize(), which cannot be loaded; save"),
    "unshared": (changed("stages.1.cpm.to_fusion.0.weight", lambda x: x + 1), "but this network shares them"),
    "float8": (changed("head.last.weight", lambda x: x.to(torch.float8_e4m3fn)), "head.last.weight holds torch.float8"),
    "of nn.DataParallel": (lambda s: {f"module.{k}": v for k, v in s.items()}, "a network in DataParallel; save the state"),
    "of torch.compile": (lambda s: {f"_orig_mod.{k}": v for k, v in s.items()}, "a network in torch.compile; save the state"),
    "of another network": (lambda s: nn.Linear(2, 2).state_dict(), "another network: weight, bias"),
    "inside another dictionary": (lambda s: {"state_dict": s, "epoch": 3}, "a dictionary of state_dict, epoch"),
    "nothing": (lambda s: {}, "a dictionary of nothing"),
    "a list": (lambda s: [1, 2], "a list"),
    "a tensor": (lambda s: torch.zeros(3), "a tensor"),
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("name", STATES)
@pytest.mark.parametrize("training", [False, True])
def test_weights_that_no_network_could_use_are_refused_by_name(model, save, name, training):
    edit, message = STATES[name]
    state = edit(model.state_dict())
    said = refusal(save({"model": state, "config": model.config} if training else state))
    assert "a.pth: " in said and message in said


def test_half_and_double_precision_are_taken(model, save):
    for dtype in (torch.float16, torch.float64):
        loaded = RPFNet.from_pretrained(save({k: v.to(dtype) if v.is_floating_point() else v
                                              for k, v in model.state_dict().items()}))
        assert loaded.head.last.weight.dtype == torch.float32


# --- the file ---


def test_a_flipped_bit_in_the_weights_is_seen(save):
    path = save()
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        records = [info for info in archive.infolist() if "/data/" in info.filename and info.file_size > 16]
    for info in records[:6]:
        data = bytearray(whole)
        start = info.header_offset + 26
        names, extra = struct.unpack("<HH", whole[start:start + 4])
        data[start + 4 + names + extra + 7] ^= 1
        path.write_bytes(data)
        assert "damaged, the checksum of" in refusal(path)


def test_a_file_cut_anywhere_is_damaged(save):
    path = save()
    whole = path.read_bytes()
    for share in (0.01, 0.5, 0.9, 0.999):
        path.write_bytes(whole[:int(share * len(whole))])
        assert "damaged or incomplete" in refusal(path)


def test_older_files_without_checksums_are_read_and_their_numbers_checked(model, save):
    loaded = RPFNet.from_pretrained(save(_use_new_zipfile_serialization=False))
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())
    bad = STATES["NaN"][0](model.state_dict())
    assert "head.last.weight holds NaN" in refusal(save(bad, _use_new_zipfile_serialization=False))


@pytest.mark.parametrize(("content", "kind"), [
    (b"", "an empty file"),
    ("Größe 3\n".encode(), "a text file"),
    (b"\n<!DOCTYPE html><html>not found</html>", "a web page"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer"),
    (cv2.imencode(".png", np.zeros((8, 8), np.uint8))[1].tobytes(), "a picture"),
    (cv2.imencode(".jpg", np.zeros((8, 8), np.uint8))[1].tobytes(), "a picture"),
    (struct.pack("<Q", 64) + b'{"a":{"dtype":"F32"}}', "a safetensors file"),
    (pickle.dumps({"a": 1}), "a pickle that torch.save did not write"),
    (bytes(range(128, 256)), "a file of an unknown kind"),
    (b"\0" * 1000, "a file of an unknown kind"),
], ids=lambda value: value if isinstance(value, str) else "")
def test_other_files_are_named_for_what_they_are(tmp_path, content, kind):
    path = tmp_path / "a.pth"
    path.write_bytes(content)
    assert f"a.pth: not weights, but {kind}" in refusal(path)


def test_kinds_are_told_by_beginnings_that_exclude_each_other():
    starts = [start for start, _ in KINDS]
    assert not [(a, b) for a in starts for b in starts if a != b and b.startswith(a)]


def test_other_zip_files_are_named_for_what_they_are(tmp_path):
    path = tmp_path / "a.pth"
    for name, compression, message in (("words.txt", zipfile.ZIP_STORED, "a zip file of something else"),
                                       ("a/constants.pkl", zipfile.ZIP_STORED, "a TorchScript program"),
                                       ("a/data.pkl", zipfile.ZIP_DEFLATED, "compressed")):
        with zipfile.ZipFile(path, "w", compression) as archive:
            archive.writestr(name, b"\0" * 10_000)
        assert message in refusal(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no such files")
def test_pipes_devices_and_folders_are_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe.pth")
    for path in (tmp_path / "pipe.pth", "/dev/zero", tmp_path):
        assert "not a file, but a" in refusal(path)
    os.mkfifo(tmp_path / "a.json")
    torch.save(RPFNet(channels=4, stages=1).state_dict(), tmp_path / "a.pth")
    assert "a.json: not a file" in refusal(tmp_path / "a.pth")


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_asks_for_more_is_refused_and_not_advised_to_be_run(model, save, tmp_path, zipped):
    mark = tmp_path / "mark"
    for content, asked in ((model, "net.RPFNet"), ({"model": Call(os.mkdir, str(mark))}, "mkdir")):
        said = refusal(save(content, _use_new_zipfile_serialization=zipped))
        assert "refused, because its pickle asks for" in said and asked in said and "state_dict()" in said
    assert not mark.exists()


def test_loading_takes_no_random_numbers_of_the_caller(save):
    path = save()
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    RPFNet.from_pretrained(path)
    assert torch.equal(torch.rand(3), expected)


def test_missing_files_and_arguments_that_are_no_default(tmp_path, save):
    assert "none.pth: no such checkpoint" in refusal(tmp_path / "none.pth", FileNotFoundError)
    path = save()
    path.with_suffix(".json").unlink()
    assert "put the a.json" in refusal(path)
    for arguments in ({"path": ""}, {"path": None}, {"path": 5}, {"path": {}}, {"device": None}):
        with pytest.raises(ValueError, match="leave it out for its default"):
            RPFNet.from_pretrained(**arguments)


# --- the JSON beside it ---


@pytest.mark.parametrize(("text", "message"), [
    ("", "not a JSON file"), ("{", "not a JSON file"), ("\xff", "not a JSON file"), ("9" * 5000, "not a JSON file"),
    ("[]", "holds a list"), ("3", "holds a number"), ("null", "holds null"), ("true", "holds true or false"),
    ('"text"', "holds a text"), ("[" * 100_000, "nested too deep"), ('{"a":' * 100_000, "nested too deep"),
    ("{}", '"config", the arguments of the network, is missing'), ('{"config": null}', '"config" is null'),
    ('{"config": [1]}', '"config" is a list'), ('{"config": "x"}', '"config" is a text'),
], ids=lambda value: value[:12])
def test_json_that_is_no_description_is_named(save, text, message):
    path = save()
    path.with_suffix(".json").write_text(text, "latin-1")
    said = refusal(path)
    assert "a.json: " in said and message in said


@pytest.mark.parametrize(("field", "value"), [
    ("stages", 10**9), ("stages", 0), ("stages", -1), ("stages", 2.0), ("stages", "2"), ("stages", None),
    ("stages", [2]), ("stages", True), ("channels", 10**9), ("channels", 6), ("channels", 0), ("channels", "4"),
    ("border", 10**9), ("border", -1), ("border", 1e9), ("border", {}), ("sharing", "all"), ("sharing", 3),
    ("sharing", ["none"]),
    ("global_branch", "wavelet"), ("global_branch", None), ("cpm", "no"), ("cpm", 0), ("prior", []), ("norm", "pooled"),
    ("x\x1b[31m", 1), ("sharing", "x" * 10_000),
])
def test_absurd_fields_are_named_with_their_file(model, save, field, value):
    said = refusal(save(config=model.config | {field: value}))
    assert 'a.json: "config": ' in said and field.split("\x1b")[0] in said


@pytest.mark.parametrize(("field", "value"), [("stages", 3), ("channels", 8), ("prior", False), ("channels", 1024)])
def test_a_description_of_another_network_is_seen(model, save, field, value):
    assert "a.pth: " in refusal(save(config=model.config | {field: value}))


def test_read_json_and_load_name_the_file(tmp_path):
    (tmp_path / "a.json").write_text('{"a": 1}')
    assert read_json(tmp_path / "a.json") == {"a": 1}
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none.pth")


def test_pickles_of_all_protocols_are_named(tmp_path):
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        (tmp_path / "a.pth").write_bytes(pickle.dumps({"a": 1}, protocol))
        with pytest.raises(ValueError, match="not weights, but a pickle that torch.save did not write"):
            load(tmp_path / "a.pth")
