"""A training run: networks, losses, optimisers, one training step, the end of an epoch, checkpoints."""
from __future__ import annotations

import argparse
import io
import json
import math
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TextIO

import torch
from torch import Tensor, distributed, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from dataset import CropDataset, PairDataset, crop_batches
from images import to_image
from layers import ExactStatistics, batch_norms
from loss import DistillationLoss, FrequencyContrastiveLoss, FusionLoss, LuminanceLoss, SaliencyStructureLoss, SSIMLoss
from measures import evaluate
from measures.registry import UndefinedWarning
from net import AuxiliaryDecoder, RPFNet
from recipe import NO_TEACHER, VERSION, TrainingError, recipe
from support.console import INTERRUPTED, handling
from support.outputs import as_csv, write_atomically
from support.records import device_name, hashed_name, packages, short_hash
from support.runtime import has_bfloat16, lacks_memory, team
from weights import check_weights, find, load

VALIDATION_METRICS = ("EN", "SF", "SD", "CC", "SCD", "VIF")
PARTS = 5               # of a run; the rate is halved from one to the next: every 20 of 100 epochs in the paper
LEAST_STEP_BYTES = 60   # lower bound of a step's memory, per pixel, channel and stage; measured: 110 with bfloat16
MEMORY_REMEDY = "lower --batch, --crop, --channels or --stages, or add --amp"
FADED = 1e-4            # if the maximum Sobel magnitude of M' is below this, M' counts as constant


def to_unit(image: Tensor, device: torch.device) -> Tensor:
    """uint8 -> float32 in [0, 1] on the device. It is copied as uint8, a quarter of the bytes."""
    return image.to(device, non_blocking=True).float().div_(255)


def uses_bfloat16(args: argparse.Namespace) -> bool:
    """Whether --amp is given and the device computes in bfloat16."""
    return args.amp and has_bfloat16(args.device)


def build_loss(args: argparse.Namespace) -> FusionLoss | DistillationLoss:
    """The loss that the options name. Raises OSError, ValueError if the teacher cannot be read."""
    if args.teacher != NO_TEACHER:
        return DistillationLoss(RPFNet.from_pretrained(args.teacher, args.device).optimize(uses_bfloat16(args)))
    return FusionLoss(
        FrequencyContrastiveLoss(args.contrast_domain, args.negatives, args.weight),
        SSIMLoss(args.ssim_window, args.ssim_weighted, args.ssim_whole) if args.lambda_2 else None,
        SaliencyStructureLoss(args.lambda_1, args.saliency_form) if args.saliency else None,
        LuminanceLoss() if args.lambda_3 else None, args.lambda_2, args.lambda_3)


def build_network(args: argparse.Namespace) -> RPFNet:
    """The network that the options name, with random weights."""
    return RPFNet(args.channels, args.stages, args.sharing, args.global_branch, args.cpm, args.prior)


def check_memory(args: argparse.Namespace) -> None:
    """Raises TrainingError if a training step cannot fit into memory. The system would kill the process silently."""
    if torch.device(args.device).type != "cpu" or not hasattr(os, "sysconf"):
        return      # on GPUs, PyTorch raises an error
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))      # on this machine; set by torchrun
    crops = min(args.batch, args.crops) * processes / team.world
    least = crops * args.crop**2 * args.channels * args.stages * LEAST_STEP_BYTES
    if least > memory:
        raise TrainingError(f"too little memory for a training step: it takes {least / 2**30:.0f} GB at least, and "
                            f"this machine has {memory / 2**30:.0f}; {MEMORY_REMEDY}")


def learning_rate(initial: float, schedule: str, progress: float) -> float:
    """Learning rate when the share `progress` of the run, in [0, 1], is done. "step" halves it after each fifth."""
    if schedule == "cosine":
        return initial * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    if schedule != "step":
        raise ValueError(f"schedule {schedule!r}; choose from cosine, step")
    return initial * 0.5 ** min(int(progress * PARTS), PARTS - 1)


class Trainer:
    """The networks, their two optimisers, and the state of the run.

    Args:
        args: options of train.py, from `recipe.parse`.
        pairs: names and sizes of the training pairs. A run can only be resumed with the same ones, because crops are
            numbered.
    """

    def __init__(self, args: argparse.Namespace, pairs: Sequence[str] = ()):
        self.args, self.device, self.bfloat16 = args, torch.device(args.device), uses_bfloat16(args)
        torch.manual_seed(args.seed)
        # channels_last is faster on tensor cores and on CPUs. It changes no value.
        self.model = build_network(args).to(self.device, memory_format=torch.channels_last)
        self.decoder = AuxiliaryDecoder(args.channels).to(self.device, memory_format=torch.channels_last)
        self.wrapped = in_parallel(self.model, self.decoder) if team.world > 1 else None
        self.loss = build_loss(args)
        self.optimisers = [torch.optim.Adam(net.parameters(), args.lr) for net in (self.model, self.decoder)]
        self.per_epoch = math.ceil(args.crops / args.batch)
        self.total = args.steps or args.epochs * self.per_epoch
        self.pairs_hash = short_hash("\n".join(pairs).encode(errors="surrogateescape"))
        self.step, self.seconds, self.best = 0, 0.0, math.inf
        self.unwritten: dict[Path, bytes] = {}  # best.pth and best.json, until they are on the disk
        self.sums: dict[str, Tensor] = {}       # sums of this epoch's loss terms over the crops of this process
        self.history: list[dict] = []           # rows of the log
        # What made each part of the run: the start and each --resume.
        self.runs = [{"command": getattr(args, "command", ""), "commit": getattr(args, "commit", ""),
                      "device": device_name(self.device), "precision": "bfloat16" if self.bfloat16 else "float32",
                      "packages": packages(),
                      **({"teacher": hashed_name(find(args.teacher))} if args.teacher != NO_TEACHER else {})}]
        self.edge: Tensor | None = None         # M_edge of the last step; a mean over the epoch would hide a collapse
        self.finished = False
        # The step at which the statistics of BatchNorm are fixed; None: never.
        share = args.fixed_statistics       # of the steps, at least one
        self.fixed_from = min(round((1 - share) * self.total), self.total - 1) if share else None
        # With --init, the weights come with their statistics. A run that fixes them from its first step keeps these.
        self.fixed = self.fixed_from == 0 and bool(args.init)
        self.updating = False                   # True while parameters are updated; a checkpoint would mix two steps
        self._tick = time.monotonic()
        self.set_training()

    # --- one step ---

    def train_step(self, ir: Tensor, vis_y: Tensor, size: int | None = None) -> None:
        """One step of both optimisers.

        Args:
            ir, vis_y: crops of this process, (B, 1, H, W) in [0, 1].
            size: number of crops of this step in all processes; with one process, by default B.
        """
        model, decoder = self.wrapped or (self.model, self.decoder)
        size = size or len(ir)
        own = len(team.share(range(size)))       # 0 if the last batch has no crop for this process; see own_crops
        rate = learning_rate(self.args.lr, self.args.schedule, self.progress)
        for optimiser in self.optimisers:
            optimiser.param_groups[0]["lr"] = rate
            optimiser.zero_grad(set_to_none=True)
        fused, m_prime = self._forward(model, decoder, ir, vis_y)
        total, terms = self.loss(fused, m_prime, ir, vis_y)
        # DistributedDataParallel averages the gradients of the processes. With this weight, the average is the gradient
        # of the mean over all `size` crops, also if the processes have different numbers of crops.
        (total * (own * team.world / size)).backward()
        self.updating = True
        for net, optimiser in zip((self.model, self.decoder), self.optimisers):
            if self.args.clip:
                torch.nn.utils.clip_grad_norm_(net.parameters(), self.args.clip)
            optimiser.step()
        for name, value in terms.items():
            self.sums[name] = self.sums.get(name, 0) + value * own
        self.edge = terms.get("M_edge")
        self.step += 1
        self.updating = False
        self.finished = self.progress >= 1

    def _forward(self, model: nn.Module, decoder: nn.Module, ir: Tensor, vis_y: Tensor) -> tuple[Tensor, Tensor | None]:
        """The fused image and M', (B, 1, H, W) each; M' is None without L_SS."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            if not self.args.saliency:
                return model(ir, vis_y), None
            fused, features = model(ir, vis_y, return_features=True)
            return fused, decoder(features[-1].residual)

    def fix_statistics(self, crops: CropDataset, stop: Stop) -> None:
        """Compute the BatchNorm statistics over the crops of the epoch and use them from now on, as in inference.

        Raises Stopped.
        """
        self.exact_statistics(crops, stop)
        self.fixed = True
        self.set_training()

    def set_training(self) -> None:
        """Set training mode; BatchNorm layers are set to eval mode if their statistics are fixed."""
        self.model.train()
        if self.fixed:
            for norm in batch_norms(self.model):
                norm.eval()

    @torch.no_grad()
    def exact_statistics(self, crops: CropDataset, stop: Stop) -> None:
        """Set BatchNorm's running statistics to those over all crops of the epoch, in place of an exponential average.

        Training uses them only after `fix_statistics`. On CPUs, each of several processes normalises its own part of a
        batch, also here. Raises Stopped; the former statistics are then restored.
        """
        statistics = ExactStatistics(self.model, self.decoder)
        for ir, vis_y, size in tqdm(self.loaded(crops), total=self.per_epoch, desc="statistics", unit="batch", leave=False,
                                    disable=team.rank > 0):
            self._forward(self.model, self.decoder, ir, vis_y)
            statistics.add(len(team.share(range(size))))
            if stop:
                statistics.cancel()
                raise Stopped
        statistics.store(team.sum)

    def loaded(self, crops: CropDataset, start: int = 0) -> Iterator[tuple[Tensor, Tensor, int]]:
        """Yield the steps of this epoch, from its step `start`, as arguments of `train_step`."""
        batches = list(self.batches(len(self.history), start))
        loader = DataLoader(crops, batch_sampler=own_crops(batches), num_workers=self.args.workers,
                            pin_memory=self.device.type == "cuda", worker_init_fn=leave_signals_to_the_parent)
        for (ir, vis), numbers in zip(loader, batches):
            yield to_unit(ir, self.device), to_unit(vis, self.device), len(numbers)

    def batches(self, epoch: int, start: int = 0) -> Iterator[list[int]]:
        """Crop numbers of the steps of an epoch, from its step `start`."""
        fixed = self.args.seed if self.args.fixed_crops else None
        return crop_batches(epoch, self.args.crops, self.args.batch, start, fixed)

    @property
    def done(self) -> int:
        """Steps of the epoch so far."""
        return self.step - len(self.history) * self.per_epoch

    @property
    def progress(self) -> float:
        """Share of the run that is done, by steps or by time (--max-minutes), whichever is larger."""
        by_time = self.clock() / (60 * self.args.max_minutes) if self.args.max_minutes else 0.0
        return max(self.step / self.total, by_time)

    @property
    def complete(self) -> bool:
        """Whether the run is finished and its last epoch is logged."""
        return self.finished and self.done <= 0

    def clock(self) -> float:
        """Seconds of training so far, including earlier parts of a resumed run; with several processes, at `agree`."""
        if team.world == 1:
            self._advance()
        return self.seconds

    def _advance(self) -> None:
        now = time.monotonic()
        self.seconds, self._tick = self.seconds + now - self._tick, now

    def agree(self, stop: Stop) -> None:
        """Synchronise the processes between two steps: all use the clock of rank 0, and a signal to one stops all.

        So the learning rate, the end of the run and the time to save are the same in all processes. After the end of an
        epoch, it does not end the run: `train.run` does, if the epoch was validated.
        """
        if team.world > 1:
            self._advance()
            common = torch.tensor([0.0 if team.rank else self.seconds, stop.received], dtype=torch.float64)
            distributed.all_reduce(common, distributed.ReduceOp.MAX)
            self.seconds, stop.agreed = float(common[0]), int(common[1])
            self.finished = self.finished or self.done > 0 and self.progress >= 1

    def means(self) -> dict[str, float]:
        """Means of the loss terms over the crops of this epoch so far. Raises TrainingError after divergence."""
        done = min(self.done * self.args.batch, self.args.crops)
        values = {name: float(value) / done for name, value in over_all(self.sums).items()}
        bad = [name for name, value in values.items() if not math.isfinite(value)]
        if bad:
            raise TrainingError(f"step {self.step}: {', '.join(bad)} is not finite; {self._remedy}")
        if self.edge is not None and float(over_all({"M_edge": self.edge})["M_edge"]) / team.world < FADED:
            raise TrainingError(f"step {self.step}: the auxiliary decoder is saturated (M' is constant), so L_SS has "
                                f"no gradient; {self._remedy}, and start again")
        return values

    @property
    def _remedy(self) -> str:
        return "lower --lr" if self.args.clip else "lower --lr, or set --clip 1"

    # --- files ---

    def save(self, write: Callable[[Path, bytes], bool]) -> None:
        """Write last.pth with everything that --resume needs. Raises TrainingError if training has diverged.

        A step with a finite loss can have infinite gradients, so the weights are checked as well.

        write: `write_once`, which raises OSError, or `write_or_warn` to continue if the disk is full.
        """
        if self.sums:
            self.means()
        self._check_finite()
        self._write_best(write)
        best = math.inf if self.unwritten else self.best        # inf: after --resume, the next validation writes best.pth
        state = {"model": self.model.state_dict(), "config": self.model.config, "decoder": self.decoder.state_dict(),
                 "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
                 "version": VERSION, "recipe": recipe(self.args), "step": self.step, "seconds": self.clock(),
                 "pairs": self.pairs_hash, "best": best, "sums": over_all(self.sums), "history": self.history, "runs": self.runs}
        write(self.args.out / "last.pth", serialised(state))

    def _check_finite(self) -> None:
        values = [value for net in (self.model, self.decoder) for value in net.state_dict().values()]
        if not torch.stack([value.isfinite().all() for value in values]).all():
            raise TrainingError(f"step {self.step}: some weights or statistics are not finite; {self._remedy}")

    def rescue(self) -> None:
        """Save before an error ends the run. Not with several processes, in the middle of an update, or if diverged."""
        if team.world == 1 and self.step and not self.updating:
            try:
                with handling(lambda *_: None, "SIGCHLD"):      # PyTorch's handler raises if a loader was killed
                    self.save(write_or_warn)
            except (TrainingError, RuntimeError, MemoryError):      # the caller reports the first error
                pass

    def start_from(self, name: str) -> None:
        """Load only the weights of a checkpoint (--init), including those of the decoder if it has them.

        Raises TrainingError, OSError, ValueError.
        """
        start, path = RPFNet.from_pretrained(name), find(name)
        other = {key: value for key, value in start.config.items() if value != self.model.config[key]}
        if other:       # the weights alone do not show all differences, for example that of `border`
            remedy = "it cannot be trained here" if "border" in other else "give the same options"
            raise TrainingError(f"--init {path}: its network has "
                                f"{', '.join(f'{key} {value}' for key, value in other.items())}; {remedy}")
        self.model.load_state_dict(start.state_dict())
        state = load(path)
        if "decoder" in state:
            check_weights(path, state["decoder"], self.decoder)
            self.decoder.load_state_dict(state["decoder"])

    def load(self, state: dict, path: Path) -> None:
        """Continue from `state`, the content of `path` (see recipe.read_state). Raises TrainingError, ValueError."""
        if state["config"] != self.model.config:
            raise TrainingError(f"{path}: its network is not that of its recipe; it cannot be resumed")
        if state["pairs"] != self.pairs_hash:
            raise TrainingError(f"{path}: the training pairs have changed, so its crops would be others; give the same pairs")
        for network, weights in ((self.model, state["model"]), (self.decoder, state["decoder"])):
            check_weights(path, weights, network)
            network.load_state_dict(weights)
        try:
            for optimiser, stored in zip(self.optimisers, state["optimisers"], strict=True):
                _load_moments(optimiser, stored)
            self.step, self.seconds, self.best = int(state["step"]), float(state["seconds"]), float(state["best"])
            # The stored sums are those of all processes. Rank 0 continues them, and the other ranks begin at 0.
            self.sums = {name: torch.zeros_like(value, device=self.device) if team.rank else value.to(self.device)
                         for name, value in state["sums"].items()}
            self.history = [{str(key): float(value) if isinstance(value, float) else int(value)
                             for key, value in row.items()} for row in state["history"]]
            earlier = state.get("runs", [{}])       # older files have none, or fewer values
            self._check_teacher(path, earlier[-1].get("teacher", "unknown"))
            self.runs = [{key: _as_text(run.get(key, "unknown")) for key in self.runs[0]} for run in earlier] + self.runs
        except (AttributeError, LookupError, TypeError, ValueError, RuntimeError, OverflowError) as error:
            if lacks_memory(error) or "CUDA error" in str(error):       # says nothing about the file
                raise
            what = type(error).__name__
            raise TrainingError(f"{path}: its state is damaged ({what}); it cannot be resumed") from None
        # At step fixed_from itself, the statistics are computed again, with the same result.
        self.fixed = self.fixed or self.fixed_from is not None and self.step > self.fixed_from
        self.set_training()
        self.finished = self.progress >= 1
        lowest = 1 - self.per_epoch if self.finished else 0     # a last, shorter epoch has its row already
        if not (0 <= self.seconds < math.inf and lowest <= self.done <= self.per_epoch):
            raise TrainingError(f"{path}: its steps, epochs and seconds do not fit together; it cannot be resumed")

    def _check_teacher(self, path: Path, stored: str) -> None:
        now = self.runs[0].get("teacher", "unknown")
        if stored != "unknown" and stored.rsplit("-")[-1] != now.rsplit("-")[-1]:      # the hash; the file can have moved
            raise TrainingError(f"{path}: its teacher was {stored}, and --teacher {self.args.teacher} is now {now}; "
                                "restore this file, or start a new run")

    def take_as_best(self, scores: dict[str, float]) -> None:
        """Make best.pth, a plain state dict, and best.json, with the recipe and the scores, for `_write_best`.

        Raises TrainingError if the statistics are not finite.
        """
        self._check_finite()
        # Iterations share tensors. Each is made contiguous once, so that torch.save stores it once.
        copies: dict[int, Tensor] = {}
        weights = {name: copies.setdefault(value.data_ptr(), value.contiguous().cpu())
                   for name, value in self.model.state_dict().items()}
        about = {"config": self.model.config, "version": VERSION, "recipe": recipe(self.args), "steps": self.step,
                 "minutes": round(self.clock() / 60, 1),
                 **self.runs[0], **({"resumed": self.runs[1:]} if self.runs[1:] else {}),
                 "validation": {k: None if math.isnan(v) else round(v, 4) for k, v in scores.items()}}     # JSON has no nan
        self.unwritten = {self.args.out / "best.pth": serialised(weights),
                          self.args.out / "best.json": (json.dumps(about, indent=2) + "\n").encode()}

    def _write_best(self, write: Callable[[Path, bytes], bool]) -> None:
        """Write what is still unwritten. What fails now is tried again with the next save.

        best.json follows best.pth: it must not describe weights that could not be written.
        """
        while self.unwritten and write(*next(iter(self.unwritten.items()))):
            del self.unwritten[next(iter(self.unwritten))]

    def write_log(self) -> None:
        """Write log.csv."""
        columns = list(dict.fromkeys(key for row in self.history for key in row))
        write_or_warn(self.args.out / "log.csv", as_csv(columns, self.history))

    # --- one epoch's end ---

    def end_epoch(self, crops: CropDataset, val: PairDataset | None, stop: Stop) -> bool:
        """Log the epoch, validate if it is due, and save the weights if they are the best so far.

        Returns whether it was due: at the end of the run, and every --val-every epochs.

        Raises TrainingError if the training has diverged, OSError if the last best.pth cannot be written, and Stopped.
        """
        number = len(self.history) + 1
        due = self.finished or val is not None and number % self.args.val_every == 0
        if due and not self.fixed:
            self.exact_statistics(crops, stop)
        rate = self.optimisers[0].param_groups[0]["lr"]
        row = {"epoch": number, "step": self.step, "lr": rate, "seconds": round(self.clock(), 1)} | self.means()
        if val is not None and due:
            row |= validate(self.model, self.loss, val, self.device, stop)
            self.set_training()
            if math.isnan(row["val_loss"]):
                raise TrainingError(f"step {self.step}: the validation loss is not a number; {self._remedy}")
            if row["val_loss"] < self.best:
                self.best = row["val_loss"]
                self.take_as_best({k: row[k] for k in ("val_loss", *VALIDATION_METRICS)})
        elif val is None and self.finished:
            self.take_as_best({})
        self._write_best(write_once if self.finished else write_or_warn)    # a run without its result has failed
        self.history.append(row)
        self.sums = {}
        self.write_log()
        say(f"epoch {number}: " + "  ".join(
            f"{k} {v:.4g}" for k, v in row.items() if isinstance(v, float) and k != "seconds"))
        return due


def _as_text(value: object) -> str | dict[str, str]:
    """A value of a checkpoint's record as text, so that it can be written as JSON."""
    return {str(key): str(item) for key, item in value.items()} if isinstance(value, dict) else str(value)


def _load_moments(optimiser: torch.optim.Optimizer, stored: dict) -> None:
    """Load Adam's moments and the last learning rate. The other options of Adam come from the recipe."""
    groups = optimiser.state_dict()["param_groups"]
    groups[0]["lr"] = float(stored["param_groups"][0]["lr"])
    optimiser.load_state_dict({"state": stored["state"], "param_groups": groups})


class Stopped(Exception):
    """A signal came between two steps. No step is lost, and --resume continues with the part that was left."""


class Stop:
    """True after Ctrl-C, SIGTERM or SIGHUP. The current step is then finished and saved.

    The computation of exact statistics and the validation can take minutes. One process leaves them with Stopped, and
    --resume does them from their start. Several processes complete them.

    A Ctrl-C after the first signal raises KeyboardInterrupt, the next one ends the process at once. Signals that the
    shell ignores (SIGHUP under nohup, SIGINT of a background job) are still ignored. With several processes it becomes
    true in all of them at the same step (`Trainer.agree`). Further signals are then ignored, because torchrun may pass
    on a signal twice.

    It handles the signals in its `with` block. The former handlers are restored at the end.
    """

    def __init__(self):
        self.received, self.agreed = 0, 0       # signal numbers: of this process; of all, set by Trainer.agree
        self._handlers = handling(self._set, "SIGINT", "SIGTERM", "SIGHUP")

    def __enter__(self) -> Stop:
        self._handlers.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._handlers.__exit__(None, None, None)

    def _set(self, number: int, frame: object) -> None:
        # A closed terminal can send SIGHUP twice, and a supervisor repeats SIGTERM. Only a person repeats Ctrl-C.
        if self.received and number == signal.SIGINT and team.world == 1:
            signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))
            raise KeyboardInterrupt
        self.received = self.received or number

    @property
    def signal(self) -> int:
        return self.received if team.world == 1 else self.agreed

    def __bool__(self) -> bool:
        return bool(self.signal)


def leave_signals_to_the_parent(worker: int) -> None:
    """For data loader processes: ignore Ctrl-C and the first SIGTERM, which can go to all processes of a run.

    The parent ends its loaders. PyTorch sends SIGTERM to those that do not answer, so a second one ends them.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))


# --- several processes (torchrun) ---


def own_crops(batches: Sequence[list[int]]) -> list[Sequence[int]]:
    """The crop numbers of this process in each batch.

    A last batch can be too small to give each process a crop. Such a process takes one crop with the weight 0.
    """
    return [team.share(numbers) or numbers[:1] for numbers in batches]


def in_parallel(*nets: nn.Module) -> list[nn.Module]:
    """Wrap the networks, so that backward() averages the gradients over all processes.

    Raises TrainingError if two processes use one GPU, which NCCL does not support.
    """
    if next(nets[0].parameters()).device.type == "cuda":
        gpus = team.gathered([str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)])
        if len({*gpus}) < len(gpus):
            raise TrainingError(f"{team.world} processes, but only {len({*gpus})} GPUs; start one process for each GPU")
        # The conversion replaces submodules in place and keeps parameters and names. PyTorch has no SyncBatchNorm for
        # CPUs, so each process normalises its own part of the batch there.
        nets = [nn.SyncBatchNorm.convert_sync_batchnorm(net) for net in nets]
    return [nn.parallel.DistributedDataParallel(net) for net in nets]


def over_all(sums: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add up each sum over all processes."""
    if team.world == 1 or not sums:
        return sums
    return dict(zip(sums, team.sum(torch.stack(list(sums.values())))))


@torch.inference_mode()
def validate(model: RPFNet, loss: FusionLoss | DistillationLoss, val: PairDataset,
             device: torch.device, stop: Stop) -> dict[str, float]:
    """Means over the full-size validation pairs: the loss (L_F, or the distance to the teacher) and VALIDATION_METRICS.

    Metrics: protocol "definition", plain range. The network is left in eval mode. Raises Stopped.

    Returns:
        {"val_loss": mean, metric: mean, ...}
    """
    model.eval()
    rows = []
    own = team.share(range(len(val)))
    for index in tqdm(own, desc="validating", unit="pair", leave=False, disable=team.rank > 0):
        ir, vis = val[index]
        inputs = [to_unit(torch.from_numpy(x[None]), device) for x in (ir, vis)]
        try:
            fused = model(*inputs)
            value = loss.fusion(fused, *inputs)[0].item()
        except (RuntimeError, MemoryError) as error:
            if not lacks_memory(error):
                raise
            raise TrainingError(f"validation pair {val.names[index]} ({ir.shape[2]}x{ir.shape[1]}): too little memory; "
                                "--val-every 0 trains without validation") from None
        image = to_image(fused[0, 0].float().cpu().numpy())
        with warnings.catch_warnings():     # of a metric that is undefined for a pair, the log shows the mean as nan
            warnings.simplefilter("ignore", UndefinedWarning)
            rows.append({"val_loss": value} | evaluate(image, ir[0], vis[0], names=VALIDATION_METRICS))
        if stop:
            raise Stopped
    rows = team.gathered(rows)
    return {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]}


# --- files and records ---


def write_or_warn(path: Path, data: bytes) -> bool:
    """As `write_once`, but an error is only a warning, and the result False: a full disk should not end a run."""
    try:
        return write_once(path, data)
    except OSError as error:
        earlier = "the earlier file of this name is intact" if path.exists() else "there is no earlier file"
        say(f"warning: {path} not written ({error.strerror}); {earlier}", sys.stderr)
        return False


def say(text: str, stream: TextIO | None = None) -> None:
    """Print a line above the progress bar, by rank 0 only, and flush it, so that a log file is up to date."""
    if team.rank > 0:
        return
    tqdm.write(text, stream)
    (stream or sys.stdout).flush()


def serialised(state: dict) -> bytes:
    """Content of a torch.save file."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def write_once(path: Path, data: bytes) -> bool:
    """`write_atomically` by rank 0 only. Always True, as opposed to `write_or_warn`. Raises OSError."""
    if team.rank == 0:
        write_atomically(path, data)
    return True
