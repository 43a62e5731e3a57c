"""Fuse image pairs and write the results to ./Fused/.

    python test.py                                                  the rendered pairs in samples/
    python test.py --ir DIR --vis DIR                               your own folders, matched by file name
    python test.py --ir a.png --vis b.png                           one pair
    python test.py --dataset roadscene --data data/RoadScene        a published data set
    python test.py --ir ir.mp4 --vis vis.mp4 --out fused.mp4        video: files, folders of frames, cameras
    torchrun --nproc_per_node=4 test.py ...                         the pairs are divided among four processes

The results keep the names and sizes of the sources. The colour is that of the visible image.
"""
from __future__ import annotations

if __name__ == "__main__":
    from support import console

    console.before_imports()

import argparse
import statistics
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

import torch
from torch import nn

import video
from dataset import add_reading_options, add_source_options, sources_or_samples
from images import DataError
from inference import MIN_TILE
from net import RPFNet
from pipeline import PAIR_ERRORS, Fuser, compare_folder, explained
from support.console import (
    INTERRUPTED,
    collected,
    complain,
    count,
    explain,
    failed,
    finished,
    given,
    given_path,
    printable,
    run,
)
from support.headers import SUFFIXES
from support.outputs import OutputError, locked, making, refuse_overwriting
from support.pairing import Pair, shared_name
from support.records import device_name
from support.runtime import IMITATED, default_device, has_bfloat16, keep_freed_memory, on_gpu, show_trace, team, use_device
from weights import CHECKPOINTS

FORMATS = ("png", "bmp", "tif", "jpg")
SPELLINGS = {".jpeg": "jpg", ".tiff": "tif"} | {f".{name}": name for name in FORMATS}      # of the suffixes of --out
LARGEST_TILE = 10**6
MOST_IN_A_BATCH = 256       # a batch is read into memory before it is fused
FATAL = (*PAIR_ERRORS, OutputError)     # reported in one line
PATIENCE = timedelta(days=7)            # with torchrun: a process that is done waits for the slowest one


# ---------------------------------------------------------------------------------------------
# Options


def tile_side(text: str) -> int:
    """Type of --tile for argparse: 0, or at least MIN_TILE."""
    side = count(0, LARGEST_TILE)(text)
    if 0 < side < MIN_TILE:
        raise argparse.ArgumentTypeError(f"{text} is less than {MIN_TILE} pixels; use 1024 or more, or 0 for no tiles")
    return side


def _source_options(parser: argparse.ArgumentParser) -> None:
    add_source_options(parser.add_argument_group("what to fuse (default: the rendered samples)"), "folder or file")


def _reading_options(parser: argparse.ArgumentParser) -> None:
    pixels = parser.add_argument_group("how images are read")
    add_reading_options(pixels)
    pixels.add_argument("--no-alignment-check", action="store_true", help="do not check the alignment; by default a "
                        "note names the pairs that seem to be shifted by more than 4 pixels, and they are fused "
                        "anyway; it found 59 of 74 RoadScene pairs that were shifted by 6 to 20 pixels")


def _output_options(parser: argparse.ArgumentParser) -> None:
    output = parser.add_argument_group("output")
    output.add_argument("--out", type=given_path, default=Path("Fused"),
                        help="folder for the results (default: ./Fused); for one pair also a file, such as fused.png")
    output.add_argument("--format", choices=FORMATS,
                        help="format of the results (default: png); jpg is lossy and changes the metrics")
    output.add_argument("--gray", action="store_true",
                        help="write the fused luminance without colour, which is what the metrics use")
    output.add_argument("--compare", action="store_true", help="also write infrared | visible | fused to OUT/compare/")
    output.add_argument("--studio-range", action="store_true", help="stretch the contrast by 1.164 (Y - 16), as in the "
                        "published images; off by default, because it mixes two colour ranges")


def _network_options(parser: argparse.ArgumentParser) -> None:
    network = parser.add_argument_group("network")
    network.add_argument("--checkpoint", type=given, metavar="NAME|FILE", help=f"weights: {', '.join(CHECKPOINTS)} "
                         "(default: contrast), or a file, such as best.pth or last.pth of train.py")
    network.add_argument("--as-published", action="store_true", help="normalise each image by its own statistics, as "
                         "for the published images: more contrast, but night scenes become gray fog; add "
                         "--studio-range to use their colour conversion too; not with --fast and --compile")
    network.add_argument("--released", type=given_path, metavar="MODEL.PTH", help="use the authors' published network "
                         "and its graph, normalised by the statistics of each image; the pickle is read without "
                         "executing it")
    network.add_argument("--fast", action="store_true", help="compute in bfloat16: nearly the same image (PSNR above 50 dB), "
                         "faster on CPUs with bfloat16 instructions, and meant for NVIDIA GPUs from Ampere on; "
                         "ignored on older ones")
    network.add_argument("--compile", action="store_true", help="--fast and torch.compile with CUDA graphs, for many "
                         "images of one size on a GPU; the first batch is slow, and so is a smaller last one")
    network.add_argument("--batch", type=count(1, MOST_IN_A_BATCH), metavar="N", help="consecutive pairs of one size "
                         f"that are fused in one pass (default: 4 on a GPU, 1 on a CPU; at most {MOST_IN_A_BATCH}); the "
                         "result does not depend on it, except for rounding")
    network.add_argument("--tile", type=tile_side, default=0, metavar="PIXELS", help="fuse in overlapping tiles of "
                         f"this side, {MIN_TILE} or more, for images that do not fit into memory; off by default, "
                         "because the contrast can differ from tile to tile (on MSRS, tiles of 256: PSNR of 35 dB "
                         "against the whole image)")
    network.add_argument("--device", type=given, default=default_device(),
                         help="cuda, cuda:1 or cpu (default: cuda if available)")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     usage="python test.py [options]")
    for add_options in (_source_options, _reading_options, _output_options, _network_options, video.add_options):
        add_options(parser)
    return parser


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options. Ends the program with exit code 2 if they are wrong."""
    parser = build_parser()
    args = parser.parse_args(argv)
    try:
        video.check_options(args)
    except ValueError as error:
        parser.error(str(error))
    args.batch = args.batch or (4 if on_gpu(args.device) else 1)
    return args


# ---------------------------------------------------------------------------------------------
# Input, output, network


def collect_pairs(args: argparse.Namespace) -> tuple[list[Pair], list[str]]:
    """The pairs to fuse, and one line for each file without a partner. Raises DataError."""
    if not (args.ir and args.vis) or args.dataset or args.data or args.ir.is_dir() and args.vis.is_dir():
        return sources_or_samples(args)
    for source in (args.ir, args.vis):
        if not source.exists():
            raise DataError(f"{source}: no such file or folder")
    if args.ir.is_dir() or args.vis.is_dir():
        raise DataError("--ir and --vis: give two files or two folders")
    if args.ir_pattern or args.vis_pattern or args.split:
        raise DataError("--ir-pattern, --vis-pattern and --split go with folders, not with two files")
    return [Pair(shared_name(args.ir, args.vis), args.ir, args.vis)], []


def choose_output(args: argparse.Namespace, pairs: Sequence[Pair]) -> None:
    """Set args.out to the output folder, args.out_file to the output file if --out names one, and args.format.

    Raises:
        DataError: options that do not fit together.
        OutputError: the results would overwrite sources.
    """
    args.out_file = None
    suffix = args.out.suffix.lower()
    if video.is_video(args.out):
        raise DataError(f"--out {args.out}: this is a video file, and the sources are images; give a folder, or --video for "
                        "two folders of frames")
    two_files = args.ir and args.ir.is_file()       # then a name with a suffix is meant as a file
    if (suffix in SUFFIXES or suffix and two_files) and not args.out.is_dir():
        if suffix not in SPELLINGS:
            raise DataError(f"--out {args.out}: results are written as {', '.join(FORMATS)}; a folder of this name must exist")
        if args.format and args.format != SPELLINGS[suffix]:
            raise DataError(f"--out {args.out} and --format {args.format} name two formats")
        if len(pairs) != 1:
            raise DataError(f"--out {args.out}: one file for {len(pairs)} pairs; give a folder")
        args.out_file, args.out = args.out, args.out.parent
    args.format = args.format or "png"
    refuse_overwriting(output_folders(args), args.out_file, [image for pair in pairs for image in (pair.ir, pair.vis)])


def output_folders(args: argparse.Namespace) -> list[Path]:
    """The folders that are written to."""
    return [args.out, compare_folder(args)] if args.compare else [args.out]


def load_network(args: argparse.Namespace) -> nn.Module:
    """The network that the options name, on its device, ready for inference. Raises DataError, OSError, ValueError."""
    if args.released and (args.checkpoint or args.fast or args.compile or args.as_published):
        raise DataError("--released goes without --checkpoint, --as-published, --fast and --compile")
    if args.as_published and (args.fast or args.compile):
        raise DataError("--as-published goes without --fast and --compile, which need fixed statistics")
    if args.released:
        from tools.released import load_released  # imported here, because other runs do not need it
        return load_released(args.released).to(args.device)
    model = RPFNet.from_pretrained(args.checkpoint or "contrast", args.device)
    if args.as_published:
        return model.use_image_statistics()
    fast = args.fast or args.compile
    if fast and not has_bfloat16(args.device):
        if team.rank == 0:
            complain(f"note: --fast: {IMITATED}")
        fast = False
    return model.optimize(fast, args.compile)


# ---------------------------------------------------------------------------------------------
# The run


class Result:
    """Result of a run in this process. With torchrun, `report` gathers the results of all processes."""

    def __init__(self):
        self.pairs, self.unpaired = [], []      # equal in all processes
        self.fatal: list[str] = []              # error that ended this process; the others continue
        self.fuser: Fuser | None = None

    @property
    def written(self) -> int:
        return self.fuser.written if self.fuser else 0

    def counted(self) -> str:
        return f"{self.written} of {len(team.share(self.pairs))} images were written"


def fuse(args: argparse.Namespace, result: Result) -> None:
    """The whole run, from the options to the files. Errors are stored in `result`. Raises KeyboardInterrupt."""
    with ExitStack() as held:
        try:
            use_device(args.device)
            result.pairs, result.unpaired = collect_pairs(args)
            choose_output(args, result.pairs)
            if team.rank == 0:
                held.enter_context(making(output_folders(args)))
                held.enter_context(locked(args.out))
            result.fuser = Fuser(args, load_network(args))
        except FATAL as error:
            show_trace(error)
            result.fatal = [explained(error, args)]
        if team.gathered(result.fatal):
            return
        try:
            result.fuser.fuse_all(team.share(result.pairs))
        except FATAL as error:
            show_trace(error)
            result.fatal = [f"{explained(error, args)}; {result.counted()}"]
        team.gathered([])       # rank 0 holds the lock for all processes, so it waits for them here


def report(args: argparse.Namespace, result: Result, notes: list[tuple[str, ...]]) -> int:
    """Print the summary of all processes. Returns the exit code."""
    seconds = team.gathered(result.fuser.seconds if result.fuser else [])
    problems = result.unpaired + team.gathered(result.fuser.problems if result.fuser else [])
    written, fatal, notes = sum(team.gathered([result.written])), team.gathered(result.fatal), team.gathered(notes)
    if team.rank > 0:
        # Rank 0 reports for all processes, and its exit code counts. If this process failed first, torchrun would end
        # rank 0 before its report.
        return 0
    if written:
        # The first batch of each process is left out: it includes memory allocation and the choice of kernels. The median
        # leaves out the compilation for further sizes.
        usual = statistics.median(seconds[team.world * args.batch:] or seconds)
        place = args.out_file or f"{args.out}{'/' if args.out.name else ''}"
        side_by_side = f"; {team.world} processes fuse at the same time" if team.world > 1 else ""
        print(printable(f"{written} image{'s' * (written > 1)} in {place}, {1000 * usual:.0f} ms an image on "
                        f"{device_name(torch.device(args.device))}{side_by_side}"))
    explain(notes)
    code = finished(problems)
    for text in dict.fromkeys(fatal):
        code = failed("test.py", text)
    return code


def fuse_images(args: argparse.Namespace) -> int:
    """Fuse pairs of images. Returns the exit code."""
    result = Result()
    notes: list[tuple[str, ...]] = []
    try:
        with collected(notes):
            fuse(args, result)
    except KeyboardInterrupt:
        complain("", f"test.py: interrupted; {result.counted()}")
        explain(notes)
        return finished(result.unpaired + (result.fuser.problems if result.fuser else []), interrupted=True)
    return report(args, result, notes)


def fuse_video(args: argparse.Namespace) -> int:
    """Fuse a video. Returns the exit code. Frames that were written before an error or Ctrl-C are kept."""
    fuser, code, problem = None, 0, ""
    notes: list[tuple[str, ...]] = []
    with collected(notes):
        try:
            use_device(args.device)
            fuser = video.VideoFuser(args)
            with making([fuser.folder]), locked(fuser.folder):
                fuser.fuse_all(load_network(args))
        except FATAL as error:
            show_trace(error)
            code, problem = 1, explained(error, args)
        except KeyboardInterrupt:
            code, problem = INTERRUPTED, "interrupted"
    if fuser and fuser.written:
        print(printable(f"{fuser.written} frame{'s' * (fuser.written > 1)} in {fuser.place}, "
                        f"{fuser.written / fuser.seconds:.1f} frames a second on {device_name(torch.device(args.device))}"))
    explain(notes)
    if problem:
        failed("test.py", problem)
    return code


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    team.join(PATIENCE)
    keep_freed_memory()
    return fuse_video(args) if args.video else fuse_images(args)


if __name__ == "__main__":
    sys.exit(run(main))
