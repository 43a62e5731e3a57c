"""tools/export.py, and what exporters and PyTorch's function transforms ask of the network; no assertion on speed."""
import io
import json
import re
import shutil
from contextlib import redirect_stdout
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import random_pair, write_weights
from torch.torch_version import TorchVersion

import layers
from dataset import named_pairs
from images import read_ir, read_vis
from net import RPFNet
from tools import export as command

ROOT = Path(command.__file__).parents[1]
SIZE, OTHER = (64, 80), (45, 101)       # H, W


def untrained(**options):
    """A small network with running statistics that are not the initial ones."""
    torch.manual_seed(0)
    model = RPFNet(channels=4, stages=1, **options)
    with torch.no_grad():
        for seed in range(10):
            model(*random_pair(2, 32, 32, seed=50 + seed))
    return model.eval()


@pytest.fixture
def small():
    return untrained()


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A rendered pair of 64 x 80, as the options of --check name it."""
    folder = tmp_path_factory.mktemp("pair")
    paths = []
    for side in ("ir", "vis"):
        image = cv2.imread(str(ROOT / "samples" / side / "night_street.png"), cv2.IMREAD_UNCHANGED)
        paths.append(str(folder / f"{side}.png"))
        cv2.imwrite(paths[-1], cv2.resize(image, SIZE[::-1], interpolation=cv2.INTER_AREA))
    return paths


# ---------------------------------------------------------------------------------------------
# The transforms as matrix products


@pytest.mark.parametrize("size", [(16, 16), (36, 45), (37, 46), (1, 2), (7, 1)])
def test_matrix_products_are_the_transforms(size):
    x = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    spectrum = layers.rfft2_as_channels(x)
    torch.testing.assert_close(layers._rfft2_as_products(x), spectrum)
    other = torch.rand(spectrum.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(layers._irfft2_as_products(other, size), layers.irfft2_of_channels(other, size))


# ---------------------------------------------------------------------------------------------
# Files


@pytest.fixture(scope="module")
def shipped(pair, tmp_path_factory):
    """The default weights as ONNX, and what the command printed."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    out, printed = tmp_path_factory.mktemp("onnx") / "rpfnet.onnx", io.StringIO()
    with redirect_stdout(printed):
        assert command.main(["--size", "64x80", "--out", str(out), "--check", *pair, "--time", "1"]) == 0
    return out, printed.getvalue()


def test_the_shipped_network_in_onnxruntime_is_that_of_pytorch(shipped, pair):
    out, printed = shipped
    images = command.read_pair([Path(path) for path in pair])
    with torch.inference_mode():
        ours = RPFNet.from_pretrained()(*images)
    assert command.psnr(command.load(out)(*images), ours) >= 60 and ours.std() > 0.01
    assert float(re.search(r"([\d.]+) dB", printed)[1]) >= 60
    assert re.search(r"ratio [\d.]+ \(process time of one thread, median of 1\)", printed)


@pytest.mark.parametrize("layout, folder", [("roadscene", "RoadScene"), ("msrs", "MSRS_test40")])
def test_the_file_is_the_network_on_crops_of_real_pairs(shipped, data_root, layout, folder):
    run, network = command.load(shipped[0]), RPFNet.from_pretrained()
    for pair in named_pairs(layout, data_root / folder)[:3]:
        images = [x[..., 100:164, 100:180] for x in command.read_pair([pair.ir, pair.vis])]
        with torch.inference_mode():
            assert command.psnr(run(*images), network(*images)) >= 60, pair.name


def test_onnx_has_names_and_plain_operators(shipped):
    stored = pytest.importorskip("onnx").load(shipped[0])
    about = {entry.key: entry.value for entry in stored.metadata_props}
    assert (about["checkpoint"], about["size"]) == ("contrast", "64x80")
    assert [value.name for value in (*stored.graph.input, *stored.graph.output)] == ["ir", "vis_y", "fused"]
    assert all(node.domain == "" and node.op_type != "DFT" for node in stored.graph.node)


@pytest.mark.campaign        # PyTorch's exporter takes half a minute for it
def test_one_onnx_file_for_all_sizes(small, tmp_path):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    out = tmp_path / "any.onnx"
    command.export(small, out, *SIZE, dynamic=True)
    for size in (SIZE, OTHER, (16, 17)):
        images = random_pair(1, *size)
        torch.testing.assert_close(command.load(out)(*images), small(*images), atol=1e-5, rtol=0)


needs_torch_2_8 = pytest.mark.skipif(torch.__version__ < command.NEEDED_TORCH, reason="needs PyTorch 2.8 or later")


@needs_torch_2_8
@pytest.mark.parametrize("border", [pytest.param(0, marks=pytest.mark.campaign), 8])
def test_one_pt2_file_for_all_sizes(border, tmp_path):
    model, out = untrained(border=border), tmp_path / "any.pt2"
    command.export(model, out, *SIZE, dynamic=True)
    for size in (SIZE, OTHER):
        images = random_pair(1, *size)
        torch.testing.assert_close(command.load(out)(*images), model(*images))


@needs_torch_2_8
def test_onnx_of_a_transformer_is_for_one_size(tmp_path, capsys):
    weights = write_weights(tmp_path / "a.pth", untrained(global_branch="transformer"))
    assert command.main(["--size", "48x64", "--dynamic", "--checkpoint", weights, "--out", str(tmp_path / "a.onnx")]) == 1
    assert "exported to ONNX for one size; leave out --dynamic, or write .pt2" in capsys.readouterr().err
    assert not (tmp_path / "a.onnx").exists()


def test_pt2_of_one_size_knows_its_checkpoint(small, tmp_path):
    out, images = tmp_path / "small.pt2", random_pair(1, *SIZE)
    expected = small(*images)
    command.export(small, out, *SIZE, checkpoint="small")
    torch.testing.assert_close(command.load(out)(*images), expected)
    stored = {"rpfnet.json": ""}
    torch.export.load(out, extra_files=stored)
    assert json.loads(stored["rpfnet.json"]) == {"checkpoint": "small", "size": "64x80"}


def test_fails_below_60_db(small, pair, tmp_path, monkeypatch, capsys):
    torch.save({"model": small.state_dict(), "config": small.config}, tmp_path / "last.pth")
    load = command.load
    monkeypatch.setattr(command, "load", lambda *args, **options: lambda *images: load(*args)(*images) + 0.01)
    options = ["--size", "64x80", "--out", str(tmp_path / "a.pt2"), "--checkpoint", str(tmp_path / "last.pth")]
    assert command.main([*options, "--check", *pair]) == 1
    out, error = capsys.readouterr()
    assert "40.0 dB from PyTorch" in out
    assert "a.pt2: below 60 dB from PyTorch, so do not use it; please report" in error


def test_psnr_has_the_values_of_its_definition():
    flat = torch.full((1, 1, 4, 4), 0.5)
    assert command.psnr(flat, flat + 0.1) == pytest.approx(20, abs=1e-4)
    assert command.psnr(flat, flat) == float("inf")


# ---------------------------------------------------------------------------------------------
# What cannot work


@pytest.mark.parametrize("options, message", [
    (["--size", "64"], "expected HEIGHTxWIDTH"),
    (["--size", "64x8"], "each at least 16"),
    (["--size", "64x80", "--out", "rpfnet.pth"], r"end in \.onnx or \.pt2"),
])
def test_bad_options_are_named(options, message, capsys):
    with pytest.raises(SystemExit):
        command.main([*options, "--out", "a.pt2"] if "--out" not in options else options)
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize("options, message", [
    (["--out", "missing/a.pt2"], "--out missing/a.pt2: no such folder"),
    (["--out", "folder.pt2"], "--out folder.pt2: is a folder"),
    (["--size", "64x9000", "--dynamic"], "--size 64x9000: --dynamic allows at most 8192 pixels a side"),
    (["--time", "1"], "--time needs images; give --check IR VIS"),
    (["--size", "64x96", "--check"], "ir.png: is 64x80; give --size 64x80, --dynamic or another pair"),
    (["--checkpoint", "nothing"], "nothing: no such checkpoint; choose from contrast"),
])
def test_what_cannot_work_is_one_line_and_leaves_no_file(options, message, pair, tmp_path, monkeypatch, capsys):
    (tmp_path / "folder.pt2").mkdir()
    monkeypatch.chdir(tmp_path)
    pictures = pair if "--check" in options else []
    assert command.main(["--size", "64x80", "--out", "a.pt2", *options, *pictures]) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["folder.pt2"]


def test_missing_packages_are_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.7.1"))
    for options, needs in ((["a.onnx"], "ONNX needs onnx, onnxscript, onnxruntime, torch 2.8 or later"),
                           (["a.pt2", "--dynamic"], "--dynamic needs torch 2.8 or later")):
        assert command.main(["--size", "64x80", "--out", str(tmp_path / options[0]), *options[1:]]) == 1
        assert f"{options[0]}: {needs}; python -m pip install -r requirements-export.txt" in capsys.readouterr().err


@pytest.mark.parametrize("version, wanted", [("2.7.1", True), ("2.8.0", False), ("2.14.1", False)])
def test_an_old_pytorch_is_named_for_onnx_only(tmp_path, monkeypatch, version, wanted):
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion(version))
    for name in ("a.onnx", "a.pt2"):
        args = command.build_parser().parse_args(["--size", "64x80", "--out", str(tmp_path / name)])
        if wanted and name == "a.onnx":
            with pytest.raises(ValueError, match="ONNX needs torch 2.8 or later"):
                command.check_options(args)
        else:
            command.check_options(args)


# ---------------------------------------------------------------------------------------------
# Derivatives of derivatives


def test_double_backward(small):
    """The derivative of a gradient's squared norm along a direction, against a difference quotient."""
    small.double()
    ir, vis_y = (image.double() for image in random_pair(1, 16, 20))

    def penalty(image):
        (gradient,) = torch.autograd.grad(small(image, vis_y).square().sum(), image, create_graph=True)
        return gradient.square().sum()

    ir.requires_grad_()
    (second,) = torch.autograd.grad(penalty(ir), ir)
    step = 1e-6 * torch.randn(ir.shape, generator=torch.Generator().manual_seed(0), dtype=ir.dtype)
    change = penalty(ir + step) - penalty(ir - step)
    torch.testing.assert_close((second * step).sum() * 2, change, rtol=1e-3, atol=0)


# ---------------------------------------------------------------------------------------------
# docs/export.md


def test_the_snippet_of_the_page_runs(shipped, pair, tmp_path, monkeypatch):
    page = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
    (snippet,) = re.findall(r"```python\n(import cv2.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    for path in (shipped[0], *pair):
        shutil.copy(path, tmp_path)
    exec(snippet, {})
    expected = RPFNet.from_pretrained().fuse(read_ir(pair[0]), read_vis(pair[1]))
    assert np.abs(read_vis("fused.png").astype(int) - expected).max() <= 2      # the luma is rounded before
