"""Export the network and its weights to one file, for use without this repository.

    python tools/export.py --size 480x640 --out rpfnet.onnx     for onnxruntime and other runtimes
    python tools/export.py --size 480x640 --out rpfnet.pt2      for PyTorch: torch.export.load(FILE).module()

inputs      ir, vis_y: float32 in [0, 1], (1, 1, H, W); vis_y is the luma of the visible image
output      fused: float32 in [0, 1], (1, 1, H, W)
metadata    checkpoint and size: in ONNX as metadata_props, in .pt2 as the extra file rpfnet.json

The graph is that of net.py in eval mode, with reflect padding. BatchNorm is folded into the convolutions. ONNX needs
the packages in requirements-export.txt. docs/export.md lists what works and how fast it is.
"""
from __future__ import annotations

import argparse
import importlib.util
import io
import json
import math
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

# At position 0, because another folder on the path may have a net.py, too.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dataset import Pair, load_pair
from inference import MIN_SIZE, prepare
from net import RPFNet
from pipeline import PAIR_ERRORS
from support.console import complain, failed, given, given_path, noted, positive
from support.console import run as run_command
from support.outputs import check_place, write_atomically
from support.runtime import keep_freed_memory
from tools.bench import size

INPUTS, OUTPUT = ("ir", "vis_y"), "fused"
LARGEST = 8192      # largest side in pixels of a file with dynamic sizes
ENOUGH = 60         # dB; PSNR that --check requires
# PyTorch 2.6 takes no range of sizes for --dynamic. For ONNX, is_in_onnx_export() was False in exports with dynamo=True
# (PyTorch issue 149141).
NEEDED_TORCH = "2.8"
Fuse = Callable[[Tensor, Tensor], Tensor]


# ---------------------------------------------------------------------------------------------
# Writing


def graph(height: int, width: int, dynamic: bool) -> dict:
    """Example inputs and dynamic sizes, as arguments of torch.export.export and torch.onnx.export."""
    sides = {2: torch.export.Dim("height", min=MIN_SIZE, max=LARGEST), 3: torch.export.Dim("width", min=MIN_SIZE, max=LARGEST)}
    return {"args": tuple(torch.zeros(1, 1, height, width) for _ in INPUTS),
            "dynamic_shapes": {name: sides for name in INPUTS} if dynamic else None}


def to_onnx(model: nn.Module, height: int, width: int, dynamic: bool, about: dict[str, str]) -> bytes:
    """Content of an ONNX file of the network.

    Args:
        model: RPFNet after `optimize()`.
        height, width: size of the images; with `dynamic`, of an example image.
        dynamic: allow any height and width.
        about: metadata to store.
    """
    program = torch.onnx.export(model, **graph(height, width, dynamic), input_names=INPUTS, output_names=[OUTPUT],
                                dynamo=True, verbose=False)
    program.model.metadata_props.update(about)
    return program.model_proto.SerializeToString()


def to_pt2(model: nn.Module, height: int, width: int, dynamic: bool, about: dict[str, str]) -> bytes:
    """Content of a torch.export file; arguments as for `to_onnx`."""
    file = io.BytesIO()
    torch.export.save(torch.export.export(model, **graph(height, width, dynamic)), file,
                      extra_files={"rpfnet.json": json.dumps(about)})
    return file.getvalue()


FORMATS = {".onnx": to_onnx, ".pt2": to_pt2}


def export(model: RPFNet, path: Path, height: int, width: int, dynamic: bool = False, checkpoint: str = "") -> None:
    """Write the network to `path`, in the format of its suffix (.onnx or .pt2). Raises OSError.

    It calls `model.optimize()` and freezes the model. Other arguments are those of `to_onnx`; `checkpoint` is stored as
    metadata.
    """
    about = {"checkpoint": checkpoint, "size": "any" if dynamic else f"{height}x{width}"}
    with warnings.catch_warnings(action="ignore"):      # warnings of the exporters about their own code
        data = FORMATS[path.suffix](model.optimize().requires_grad_(False), height, width, dynamic, about)
    write_atomically(path, data)


# ---------------------------------------------------------------------------------------------
# Checking


def load(path: Path, threads: int = 0) -> Fuse:
    """Load an exported file as a function of ir and vis_y, (1, 1, H, W) each, on the CPU. threads: 0 means all."""
    if path.suffix == ".pt2":
        return torch.export.load(path).module()
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda *images: torch.from_numpy(session.run([OUTPUT], {k: x.numpy() for k, x in zip(INPUTS, images)})[0])


def psnr(first: Tensor, second: Tensor) -> float:
    """Peak signal-to-noise ratio of two images in [0, 1], dB; inf for equal images."""
    error = (first.double() - second.double()).square().mean().item()
    return 10 * math.log10(1 / error) if error else math.inf


def read_pair(paths: Sequence[Path]) -> list[Tensor]:
    """Read ir and vis_y, (1, 1, H, W) in [0, 1], from two files. Raises DataError."""
    ir, vis_y = prepare(*load_pair(Pair(paths[0].stem, *paths)))
    return [torch.from_numpy(np.float32(image))[None, None] for image in (ir / 255, vis_y)]


def medians(ways: dict[str, Fuse], images: Sequence[Tensor], passes: int) -> dict[str, float]:
    """Median process time in seconds of each way, on one thread. The ways run in turns, after an untimed pass."""
    torch.set_num_threads(1)
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(1 + passes):
        for name, fuse in ways.items():
            start = time.process_time()
            fuse(*images)
            times[name].append(time.process_time() - start)
    return {name: statistics.median(seconds[1:]) for name, seconds in times.items()}


# ---------------------------------------------------------------------------------------------
# python tools/export.py


def output(text: str) -> Path:
    """Type of --out for argparse: a path that ends in .onnx or .pt2."""
    path = given_path(text)
    if path.suffix not in FORMATS:
        raise argparse.ArgumentTypeError(f"{text!r}: the name has to end in {' or '.join(FORMATS)}")
    return path


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     usage="python tools/export.py --size HxW --out FILE [options]")
    add = parser.add_argument
    add("--size", type=size, required=True, metavar="HxW", help="height and width of the images, such as 480x640")
    add("--out", type=output, required=True, metavar="FILE", help="file to write: .onnx or .pt2")
    add("--checkpoint", type=given, default="contrast", metavar="NAME|FILE", help="weights (default: %(default)s)")
    add("--dynamic", action="store_true", help=f"allow any height and width from {MIN_SIZE} to {LARGEST} pixels; "
        "--size is then an example. An ONNX file is slower with it")
    add("--check", type=given_path, nargs=2, metavar=("IR", "VIS"), help="run the file on this pair and compare the "
        f"result with PyTorch in float32; below {ENOUGH} dB the exit code is 1")
    add("--time", type=positive, metavar="PASSES", help="with --check: also time the file and PyTorch, on one thread")
    return parser


def check_options(args: argparse.Namespace) -> list[Tensor]:
    """Check the options before the export. Returns the images of --check. Raises ValueError, OSError, DataError."""
    check_place("--out", args.out)
    if args.dynamic and max(map(int, args.size.split("x"))) > LARGEST:
        raise ValueError(f"--size {args.size}: --dynamic allows at most {LARGEST} pixels a side")
    if args.time and not args.check:
        raise ValueError("--time needs images; give --check IR VIS")
    is_onnx = args.out.suffix == ".onnx"
    packages = ("onnx", "onnxscript", "onnxruntime") if is_onnx else ()
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if (is_onnx or args.dynamic) and torch.__version__ < NEEDED_TORCH:
        missing.append(f"torch {NEEDED_TORCH} or later")
    if missing:
        raise ValueError(f"{args.out}: {'ONNX' if is_onnx else '--dynamic'} needs {', '.join(missing)}; "
                         "python -m pip install -r requirements-export.txt")
    images = read_pair(args.check) if args.check else []
    found = "x".join(map(str, images[0].shape[2:])) if images else args.size
    if found != args.size and not args.dynamic:
        raise ValueError(f"{args.check[0]}: is {found}; give --size {found}, --dynamic or another pair")
    return images


def check(args: argparse.Namespace, model: nn.Module, images: Sequence[Tensor]) -> bool:
    """Compare the file with the network, print PSNR and (with --time) speed. Complains and returns False below ENOUGH dB."""
    ways = {str(args.out): load(args.out, threads=1 if args.time else 0), "PyTorch": torch.inference_mode()(model.__call__)}
    score = psnr(*(fuse(*images) for fuse in ways.values()))
    print(f"{args.out}: {score:.1f} dB from PyTorch in float32 on {args.check[0].name}")
    if args.time:
        exported, ours = medians(ways, images, args.time).values()
        print(f"{args.out}: {exported:.3f} s, PyTorch {ours:.3f} s, ratio {exported / ours:.2f} "
              f"(process time of one thread, median of {args.time})")
    if score < ENOUGH:
        complain(f"export.py: {args.out}: below {ENOUGH} dB from PyTorch, so do not use it; please report the versions "
                 "of torch and onnxruntime")
    return score >= ENOUGH


def run(args: argparse.Namespace) -> bool:
    """Export and check. Returns False if the check fails. Raises OSError, ValueError, DataError."""
    images = check_options(args)
    model = RPFNet.from_pretrained(args.checkpoint)
    if args.dynamic and args.out.suffix == ".onnx" and model.config["global_branch"] == "transformer":
        raise ValueError(f"{args.out}: a network with a transformer is exported to ONNX for one size; leave out --dynamic, "
                         "or write .pt2")
    print(f"exporting {args.checkpoint}; this takes up to a minute", file=sys.stderr)
    height, width = map(int, args.size.split("x"))
    export(model, args.out, height, width, args.dynamic, args.checkpoint)
    print(f"{args.out}: {args.out.stat().st_size / 1e6:.1f} MB, {args.checkpoint}, "
          f"{'any size' if args.dynamic else args.size}")
    return not images or check(args, model, images)


@noted()
def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    keep_freed_memory()
    try:
        return 0 if run(args) else 1
    except PAIR_ERRORS as error:
        return failed("export.py", error)


if __name__ == "__main__":
    sys.exit(run_command(main))
