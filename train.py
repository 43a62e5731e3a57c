"""Train RPFNet.

    python train.py --data data/RoadScene                           the paper's recipe, for a GPU
    python train.py --data data/RoadScene --amp --channels-last --crop 224 --batch 3 --steps 1200      on a CPU
    python train.py --data data/RoadScene --resume                  go on after Ctrl-C, a kill or a crash
    torchrun --nproc_per_node=4 train.py --data data/RoadScene      the same run on four GPUs

Writes to --out: last.pth (everything to resume), best.pth and best.json (weights and recipe, for
RPFNet.from_pretrained and test.py), log.csv (one row an epoch).
"""
from __future__ import annotations

import argparse
import csv
import io
import json
import math
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, distributed, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

import metrics
from dataset import (
    DATASETS,
    CropDataset,
    DataError,
    PairDataset,
    crop_batches,
    match_pairs,
    named_pairs,
    positive,
    team,
    write_atomically,
)
from loss import FrequencyContrastiveLoss, FusionLoss, SaliencyStructureLoss, SSIMLoss
from net import NORMS, AuxiliaryDecoder, PooledNorm, RPFNet, check_device, keep_freed_memory, to_image

VALIDATION_METRICS = ("EN", "SF", "SD", "CC", "SCD", "VIF")
HALVINGS = 5            # lr is halved every 20 of 100 epochs: at each fifth of a run
TRAINING_SETS = tuple(name for name, layout in DATASETS.items() if "train" in layout.splits)
CHECK_EVERY = 50        # steps between looks at the loss; each look waits for the GPU
SAVE_EVERY = 300        # seconds
FLAT = 1e-4             # largest Sobel magnitude of M' under which it has no edges left; the loss keeps it near 1e-3


class TrainingError(Exception):
    """Training cannot go on; the message says what to change."""


# ---------------------------------------------------------------------------------------------
# Options

# What decides the result, stored in the checkpoint: --resume goes on with it. PLACES are stored too, but may move.
RECIPE = ("dataset", "seed", "epochs", "steps", "max_minutes", "crops", "crop", "batch", "lr", "schedule",
          "clip", "lambda_1", "lambda_2", "ssim_window", "ssim_weighted", "ssim_whole",
          "contrast_domain", "contrast", "weight", "saliency", "channels", "stages", "norm", "sharing", "amp", "channels_last", "val_every")
PLACES = ("data", "ir", "vis", "init")
VERSION = 2     # of what the recipe means; one more when the same options begin to train something else


def whole(text: str) -> int:
    """0 or a positive whole number, for argparse."""
    return 0 if text == "0" else positive(text)


def odd(text: str) -> int:
    """An odd number from 1, for argparse."""
    value = positive(text)
    if value % 2 == 0:
        raise argparse.ArgumentTypeError(f"{text} is even; a window has a middle")
    return value


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_HelpFormatter)
    flag = argparse.BooleanOptionalAction

    main = parser.add_argument_group("main")
    main.add_argument("--data", default="data/RoadScene", help="folder of the data set")
    main.add_argument("--dataset", type=str.lower, choices=TRAINING_SETS, default="roadscene", help="its layout")
    main.add_argument("--ir", metavar="DIR", help="train on your own two folders: infrared ...")
    main.add_argument("--vis", metavar="DIR", help="... and visible, matched by file name")
    main.add_argument("--out", type=Path, default=Path("checkpoints"), help="where checkpoints and the log go")
    main.add_argument("--resume", action="store_true", help="go on from OUT/last.pth, with the recipe stored in it")
    main.add_argument("--init", metavar="PTH", help="start from these weights: fine-tune, or continue with another recipe "
                      "(a last.pth has the auxiliary decoder's too)")
    main.add_argument("--seed", type=int, default=0, help="of the weights and of the crops")

    length = parser.add_argument_group("length (the learning rate's schedule scales with it)")
    length.add_argument("--epochs", type=positive, default=100, help="passes of --crops crops")
    length.add_argument("--steps", type=whole, default=0, help="optimiser steps in place of epochs; 0: off")
    length.add_argument("--max-minutes", type=float, default=0, help="end after this time; 0: no bound")

    hyper = parser.add_argument_group("hyper-parameters (defaults: the paper's but for --norm and --clip, see README)")
    hyper.add_argument("--batch", type=positive, default=16, help="crops a step, of all processes together")
    hyper.add_argument("--crop", type=int, default=128, help="side of a crop, pixels")
    hyper.add_argument("--crops", type=positive, default=3383, help="crops an epoch")
    hyper.add_argument("--lr", type=float, default=1e-3, help="initial learning rate of both Adam optimisers")
    hyper.add_argument("--schedule", choices=("step", "cosine"), default="step", help="step: halved at each fifth of the run")
    hyper.add_argument("--clip", type=float, default=1.0, help="bound of the gradient's norm, against the "
                       "decoder's saturation; 0: off, as the paper")
    hyper.add_argument("--channels", type=int, default=32, help="width")
    hyper.add_argument("--stages", type=positive, default=3, help="iterations n")
    hyper.add_argument("--norm", choices=tuple(NORMS), default="pooled", help="normalisation")
    hyper.add_argument("--sharing", choices=("all", "convolutions", "none"), default="all",
                       help="what the iterations share")

    loss = parser.add_argument_group("loss (defaults: the paper's but for L_s and --weight, see README; the others are its ablations)")
    loss.add_argument("--lambda-1", type=float, default=0.3, help="texture term of Eq. 6")
    loss.add_argument("--lambda-2", type=float, default=5.0, help="SSIM term of Eq. 8; 0: w/o L_s")
    loss.add_argument("--ssim-window", type=odd, default=7, help="pixels, odd")
    loss.add_argument("--ssim-weighted", action=flag, default=True, help="L_s's windows compare contrast and "
                      "structure, and weigh the sources by their variance; no: SSIM, as Eq. 13 prints")
    loss.add_argument("--ssim-whole", action=flag, default=True, help="L_s also over the whole crop; no: as Eq. 13 prints")
    loss.add_argument("--saliency", action=flag, default=True, help="L_SS and the auxiliary decoder")
    loss.add_argument("--contrast", action=flag, default=True, help="no: frequency l1 without contrast")
    loss.add_argument("--contrast-domain", choices=("frequency", "spatial"), default="frequency", help="of L_c")
    loss.add_argument("--weight", choices=("adaptive", "printed", "none"), default="adaptive", help="w of Eq. 9")

    performance = parser.add_argument_group("performance")
    performance.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cuda, cuda:1, cpu")
    performance.add_argument("--amp", action="store_true", help="bfloat16, for GPUs from NVIDIA's Ampere on and CPUs with "
                             "AVX-512 BF16 or AMX; the FFT, decoder and losses stay in float32")
    performance.add_argument("--channels-last", action="store_true", help="memory layout that tensor cores and, with --amp, CPUs like")
    performance.add_argument("--workers", type=int, default=0, help="loader processes; the images are in memory, "
                             "so 0 is seldom slower")
    performance.add_argument("--val-every", type=whole, default=5, help="epochs between validations; 0: never")
    return parser


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    pass


def parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, dict | None]:
    """Options, and the state to resume from. A stored recipe replaces the defaults; contradicting it is an error."""
    parser = build_parser()
    args = parser.parse_args(argv)
    path = args.out / "last.pth"
    if not args.resume:
        if (args.ir is None) != (args.vis is None):
            parser.error("--ir and --vis go together")
        if path.exists():
            raise TrainingError(f"{path}: a run is there already; go on with --resume, or start anew with another --out")
        return args, None
    if not path.is_file():
        raise TrainingError(f"{path}: nothing to resume; start without --resume, or name the run's folder with --out")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        stored, version = state["recipe"], state["version"]
    except Exception as error:      # torch raises many types; each would hide the file's name
        raise TrainingError(f"{path}: not a checkpoint of this train.py ({type(error).__name__}); it cannot be resumed") from None
    if version != VERSION:
        raise TrainingError(f"{path}: of another version of train.py, in which the same options train something else; "
                            "it cannot be resumed, but --init takes its weights")
    parser.set_defaults(**stored)
    args = parser.parse_args(argv)
    changed = [f"{key} {stored[key]} -> {getattr(args, key)}" for key in RECIPE if getattr(args, key) != stored[key]]
    if changed:
        raise TrainingError(f"{path} was trained with another recipe ({'; '.join(changed)}). "
                            "Drop these options, or start a new run with another --out")
    return args, state


# ---------------------------------------------------------------------------------------------
# Data


def load_data(args: argparse.Namespace) -> tuple[PairDataset, PairDataset | None]:
    """Training and validation pairs; no validation for data without a validation split."""
    progress = team.rank == 0
    if args.ir:
        return PairDataset(match_pairs(args.ir, args.vis), progress), None
    train = PairDataset(named_pairs(args.dataset, args.data, "train"), progress)
    has_val = "val" in DATASETS[args.dataset].splits and args.val_every
    return train, PairDataset(named_pairs(args.dataset, args.data, "val"), progress) if has_val else None


def to_unit(image: Tensor, device: str) -> Tensor:
    """uint8 to float in [0, 1], on the device (a quarter of the bytes travels)."""
    return image.to(device, non_blocking=True).float().div_(255)


# ---------------------------------------------------------------------------------------------
# Training


def build_loss(args: argparse.Namespace) -> FusionLoss:
    return FusionLoss(FrequencyContrastiveLoss(args.contrast_domain, args.contrast, args.weight),
                      SSIMLoss(args.ssim_window, args.ssim_weighted, args.ssim_whole) if args.lambda_2 else None,
                      SaliencyStructureLoss(args.lambda_1) if args.saliency else None, args.lambda_2)


def learning_rate(initial: float, schedule: str, progress: float) -> float:
    """Learning rate at progress in [0, 1] of the run."""
    if schedule == "cosine":
        return initial * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    return initial * 0.5 ** min(int(progress * HALVINGS), HALVINGS - 1)


class Trainer:
    """The networks, their two optimisers, and where the run stands."""

    def __init__(self, args: argparse.Namespace):
        self.args, self.device = args, torch.device(args.device)
        torch.manual_seed(args.seed)
        layout = torch.channels_last if args.channels_last else torch.contiguous_format
        self.model = RPFNet(args.channels, args.stages, args.norm, args.sharing).to(self.device, memory_format=layout)
        self.decoder = AuxiliaryDecoder(args.channels, args.norm).to(self.device)
        self.wrapped = in_parallel(self.model, self.decoder) if team.world > 1 else None
        self.loss = build_loss(args)
        self.optimisers = [torch.optim.Adam(net.parameters(), args.lr) for net in (self.model, self.decoder)]
        self.pooled = [m for net in (self.model, self.decoder) for m in net.modules() if isinstance(m, PooledNorm)]
        self.per_epoch = math.ceil(args.crops / args.batch)
        self.total = args.steps or args.epochs * self.per_epoch
        self.step, self.seconds, self.best = 0, 0.0, math.inf
        self.sums: dict[str, Tensor] = {}       # of this epoch's terms, over the crops of this process
        self.history: list[dict] = []           # the log's rows
        self.edge: Tensor | None = None         # M_edge of the last step: an epoch's mean would hide a collapse in it
        self.finished = False
        self._tick = time.monotonic()

    # --- one step ---

    def train_step(self, ir: Tensor, vis_y: Tensor, size: int | None = None) -> None:
        """One step of both optimisers on a batch of (B, 1, H, W) in [0, 1].

        Args:
            size: crops of the step in all processes together, of which ir and vis_y are this one's share.
        """
        model, decoder = self.wrapped or (self.model, self.decoder)
        size = size or len(ir)
        own = len(team.share(range(size)))       # 0 where a last batch is too small: the crop is then a stand-in
        for norm in self.pooled:
            norm.takes_part = own > 0
        rate = learning_rate(self.args.lr, self.args.schedule, self.progress)
        for optimiser in self.optimisers:
            optimiser.param_groups[0]["lr"] = rate
            optimiser.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.args.amp):
            fused, features = model(ir, vis_y, return_features=True)
            m_prime = decoder(features[-1].residual) if self.args.saliency else None
        total, terms = self.loss(fused, m_prime, ir, vis_y)
        # The processes' gradients are averaged; so weighted, to the gradient of the mean over all `size` crops.
        (total * (own * team.world / size)).backward()
        for net, optimiser in zip((self.model, self.decoder), self.optimisers):
            if self.args.clip:
                torch.nn.utils.clip_grad_norm_(net.parameters(), self.args.clip)
            optimiser.step()
        for name, value in terms.items():
            self.sums[name] = self.sums.get(name, 0) + value.detach() * own
        self.edge = terms["M_edge"].detach() if "M_edge" in terms else None
        self.step += 1
        self.finished = self.progress >= 1

    @property
    def progress(self) -> float:
        """Share of the run that is done, by steps or by time, whichever is further."""
        by_time = self.clock() / (60 * self.args.max_minutes) if self.args.max_minutes else 0.0
        return max(self.step / self.total, by_time)

    def clock(self) -> float:
        """Seconds of training so far, earlier parts of a resumed run included; in several processes, as last agreed."""
        if team.world == 1:
            self._advance()
        return self.seconds

    def _advance(self) -> None:
        now = time.monotonic()
        self.seconds, self._tick = self.seconds + now - self._tick, now

    def agree(self, stop: Stop) -> None:
        """Between two steps: rank 0's clock becomes everybody's, and a signal to one process stops all.

        What they decide by (learning rate, end, when to save) stays the same in all of them until the next time.
        """
        if team.world > 1:
            self._advance()
            common = torch.tensor([0.0 if team.rank else self.seconds, stop.received], dtype=torch.float64)
            distributed.all_reduce(common, distributed.ReduceOp.MAX)
            self.seconds, stop.agreed = float(common[0]), int(common[1])
            self.finished = self.progress >= 1

    def means(self) -> dict[str, float]:
        """This epoch's terms so far, a mean over its crops. Raises TrainingError when training has failed."""
        done = min((self.step - len(self.history) * self.per_epoch) * self.args.batch, self.args.crops)
        values = {name: float(value) / done for name, value in over_all(self.sums).items()}
        bad = [name for name, value in values.items() if not math.isfinite(value)]
        if bad:
            raise TrainingError(f"step {self.step}: {', '.join(bad)} is not finite; {self._remedy}")
        if self.edge is not None and float(over_all({"M_edge": self.edge})["M_edge"]) / team.world < FLAT:
            raise TrainingError(f"step {self.step}: the auxiliary decoder is saturated (M' is flat), so L_SS teaches "
                                f"nothing any more; {self._remedy}, and start again")
        return values

    @property
    def _remedy(self) -> str:
        return "lower --lr" if self.args.clip else "lower --lr, or set --clip 1"

    # --- files ---

    def save(self, write: Callable[[Path, bytes], None]) -> None:
        """Write everything that --resume needs, whole or not at all; never a state that has failed."""
        if self.sums:
            self.means()
        state = {"model": self.model.state_dict(), "config": self.model.config, "decoder": self.decoder.state_dict(),
                 "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
                 "version": VERSION, "recipe": recipe(self.args), "step": self.step, "seconds": self.clock(), "best": self.best,
                 "sums": over_all(self.sums), "history": self.history}
        write(self.args.out / "last.pth", serialised(state))

    def start_from(self, path: str) -> None:
        """Take the weights of a checkpoint (the decoder's too, if it has them) and nothing else. Raises TrainingError."""
        start = RPFNet.from_pretrained(path)
        other = {key: value for key, value in start.config.items() if value != self.model.config[key]}
        if other:       # with shared stages, the weights of 5 iterations would fit a network of 3
            raise TrainingError(f"--init {path}: its network has "
                                f"{', '.join(f'{key} {value}' for key, value in other.items())}; give the same options")
        self.model.load_state_dict(start.state_dict())
        state = torch.load(path, map_location="cpu", weights_only=True)
        if "decoder" in state:
            self.decoder.load_state_dict(state["decoder"])

    def load(self, state: dict) -> None:
        self.model.load_state_dict(state["model"])
        self.decoder.load_state_dict(state["decoder"])
        for optimiser, stored in zip(self.optimisers, state["optimisers"]):
            optimiser.load_state_dict(stored)
        self.step, self.seconds, self.best = state["step"], state["seconds"], state["best"]
        # The sums so far are rank 0's, however many processes they came from.
        self.sums = {name: torch.zeros_like(value, device=self.device) if team.rank else value.to(self.device)
                     for name, value in state["sums"].items()}
        self.history = state["history"]
        self.finished = self.progress >= 1

    def save_best(self, scores: dict[str, float]) -> None:
        """best.pth: a plain state dict; best.json: the recipe and what was measured."""
        weights = {name: value.contiguous() for name, value in self.model.state_dict().items()}
        about = {"config": self.model.config, "version": VERSION, "recipe": recipe(self.args), "steps": self.step,
                 "minutes": round(self.clock() / 60, 1), "device": device_name(self.device),
                 "torch": torch.__version__, "validation": {k: round(v, 4) for k, v in scores.items()}}
        write_or_warn(self.args.out / "best.pth", serialised(weights))
        write_or_warn(self.args.out / "best.json", (json.dumps(about, indent=2) + "\n").encode())

    def write_log(self) -> None:
        columns = list(dict.fromkeys(key for row in self.history for key in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.history)
        write_or_warn(self.args.out / "log.csv", text.getvalue().encode())

    # --- one epoch's end ---

    def end_epoch(self, val: PairDataset | None) -> None:
        """Log the epoch, validate if it is due, keep the best weights."""
        number = len(self.history) + 1
        rate = self.optimisers[0].param_groups[0]["lr"]
        row = {"epoch": number, "step": self.step, "lr": rate, "seconds": round(self.clock(), 1)} | self.means()
        if val is not None and (self.finished or number % self.args.val_every == 0):
            row |= validate(self.model, self.loss, val, self.device)
            if row["val_loss"] < self.best:
                self.best = row["val_loss"]
                self.save_best({k: row[k] for k in ("val_loss", *VALIDATION_METRICS)})
        elif val is None and self.finished:
            self.save_best({})
        self.history.append(row)
        self.sums = {}
        self.write_log()
        if team.rank == 0:
            tqdm.write(f"epoch {number}: " + "  ".join(
                f"{k} {v:.4g}" for k, v in row.items() if isinstance(v, float) and k != "seconds"))


# --- several processes (torchrun) ---


def in_parallel(*nets: nn.Module) -> list[nn.Module]:
    """The networks, so wrapped that backward() leaves the processes' mean gradient in each."""
    if any(isinstance(module, nn.BatchNorm2d) for net in nets for module in net.modules()):
        if next(nets[0].parameters()).device.type != "cuda":
            raise TrainingError("--norm batch needs GPUs when several processes share a batch; use one process")
        # In place: what it replaces are modules inside, the parameters and their names stay.
        nets = [nn.SyncBatchNorm.convert_sync_batchnorm(net) for net in nets]
    return [nn.parallel.DistributedDataParallel(net) for net in nets]


def over_all(sums: dict[str, Tensor]) -> dict[str, Tensor]:
    """Each sum over all processes."""
    if team.world == 1 or not sums:
        return sums
    values = torch.stack(list(sums.values()))
    distributed.all_reduce(values)
    return dict(zip(sums, values))


# --- from the first step to the last ---


@torch.inference_mode()
def validate(model: RPFNet, loss: FusionLoss, val: PairDataset, device: torch.device) -> dict[str, float]:
    """Mean fusion loss L_F and metrics (float protocol, plain range) over whole validation pairs, eval mode."""
    model.eval()
    rows = []
    own = team.share(range(len(val)))
    for index in tqdm(own, desc="validating", unit="pair", leave=False, disable=team.rank > 0):
        ir, vis = val[index]
        inputs = [to_unit(x[None], device) for x in (ir, vis)]
        fused = model(*inputs)
        terms = [weight * part(fused, *inputs)[0].item() for weight, part in
                 ((1.0, loss.contrastive), (loss.lambda_2, loss.structure)) if part is not None]
        image = to_image(fused[0, 0].float().cpu().numpy())
        rows.append({"val_loss": sum(terms)} |
                    metrics.evaluate(image, ir[0].numpy(), vis[0].numpy(), names=VALIDATION_METRICS))
    model.train()
    rows = team.gathered(rows)
    return {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]}


def run(trainer: Trainer, train: PairDataset, val: PairDataset | None, stop: Stop) -> None:
    """Train until the end of the schedule or until `stop` is set. All processes take the same turns here."""
    crops = CropDataset(train, trainer.args.crop, trainer.args.seed)
    bar = tqdm(initial=trainer.step, total=trainer.total, unit="step", dynamic_ncols=True, smoothing=0.05,
               disable=team.rank > 0)
    with bar:
        while not stop:
            done = trainer.step - len(trainer.history) * trainer.per_epoch      # steps of this epoch
            if done == trainer.per_epoch or trainer.finished and done > 0:
                trainer.save(write_or_warn)         # before the validation: it takes a while
                trainer.end_epoch(val)
                trainer.save(write_or_warn)
                trainer.agree(stop)
            elif trainer.finished:
                break
            else:
                train_epoch(trainer, crops, done, bar, stop)
    try:
        trainer.save(write_once)
    finally:
        if team.world > 1:
            distributed.barrier()       # torchrun ends all when one leaves with a code: not while rank 0 writes


def train_epoch(trainer: Trainer, crops: CropDataset, start: int, bar: tqdm, stop: Stop) -> None:
    """The steps of one epoch from step `start` of it, or until the run ends or is stopped."""
    args, saved = trainer.args, trainer.clock()
    batches = list(crop_batches(len(trainer.history), args.crops, args.batch, start))
    own = [team.share(numbers) or numbers[:1] for numbers in batches]
    loader = DataLoader(crops, batch_sampler=own, num_workers=args.workers, pin_memory=trainer.device.type == "cuda")
    for (ir, vis), numbers in zip(loader, batches):
        trainer.train_step(to_unit(ir, trainer.device), to_unit(vis, trainer.device), len(numbers))
        trainer.agree(stop)
        bar.update()
        if trainer.step % CHECK_EVERY == 0:
            bar.set_postfix({k: f"{v:.3f}" for k, v in trainer.means().items()}, refresh=False)
        if trainer.finished or stop:
            break
        if trainer.clock() - saved > SAVE_EVERY:
            trainer.save(write_or_warn)
            saved = trainer.clock()


def write_or_warn(path: Path, data: bytes) -> None:
    """In mid-run a full disk is no reason to lose the run: the older file is still whole."""
    try:
        write_once(path, data)
    except OSError as error:
        tqdm.write(f"warning: {path} not written ({error.strerror}); training goes on", file=sys.stderr)


class Stop:
    """True after Ctrl-C or SIGTERM, so that the step in hand is finished and saved; a second Ctrl-C ends at once.

    In several processes it is true when all know of it; torchrun passes signals on, maybe twice.
    """

    def __init__(self):
        self.received, self.agreed = 0, 0       # signal numbers; the second by Trainer.agree
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._set)

    def _set(self, number: int, frame: object) -> None:
        if self.received and team.world == 1:
            raise KeyboardInterrupt
        self.received = number

    @property
    def signal(self) -> int:
        return self.received if team.world == 1 else self.agreed

    def __bool__(self) -> bool:
        return bool(self.signal)


# ---------------------------------------------------------------------------------------------
# Small helpers


def recipe(args: argparse.Namespace) -> dict:
    return {key: getattr(args, key) for key in RECIPE} | {
        key: None if getattr(args, key) is None else str(getattr(args, key)) for key in PLACES}


def serialised(state: dict) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def write_once(path: Path, data: bytes) -> None:
    """`write_atomically`, by one process for all."""
    if team.rank == 0:
        write_atomically(path, data)


def device_name(device: torch.device) -> str:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    return f"{team.world} x {name}" if team.world > 1 else name


def main(argv: Sequence[str] | None = None) -> int:
    team.join()
    keep_freed_memory()
    try:
        args, state = parse(argv)
        check_device(args.device)
        args.out.mkdir(parents=True, exist_ok=True)
        train, val = load_data(args)
        trainer = Trainer(args)
        if state:
            trainer.load(state)
        elif args.init:
            trainer.start_from(args.init)
        if team.rank == 0:
            print(f"{len(train)} training pairs, {len(val) if val else 'no'} validation pairs; "
                  f"{trainer.total} steps of {args.batch} crops on {device_name(trainer.device)}", flush=True)
        stop = Stop()
        run(trainer, train, val, stop)
    except (DataError, TrainingError, ValueError, OSError) as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\ntrain.py: ended at once; the last save, if there was one, is {args.out / 'last.pth'}", file=sys.stderr)
        return 130
    if stop and team.rank == 0:
        print(f"stopped at step {trainer.step}; go on with: python train.py --out {args.out} --resume")
    return 128 + stop.signal if stop else 0


if __name__ == "__main__":
    sys.exit(main())
