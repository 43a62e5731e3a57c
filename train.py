"""Train RPFNet.

    python train.py --steps 3 --crops 48 --out runs/trial                           a trial: three steps, then the validation
    python train.py --data data/RoadScene --out runs/paper                          the paper's recipe (recipes/paper.json)
    python train.py --data data/RoadScene --recipe contrast --out runs/contrast     our loss, for natural pictures
    python train.py --amp --steps 4240 --out runs/short                             options override the recipe
    python train.py --out runs/paper --resume                                       resume after Ctrl-C, a kill or a crash
    torchrun --nproc_per_node=4 train.py --out runs/four                            the paper's recipe on four GPUs

Files in --out: last.pth (everything that --resume needs), best.pth and best.json (weights and recipe, for test.py and
RPFNet.from_pretrained), log.csv (one row for each epoch).
"""
from __future__ import annotations

if __name__ == "__main__":
    from support import console

    console.before_imports()

import argparse
import shlex
import sys
from collections.abc import Sequence
from contextlib import nullcontext

from torch import distributed
from tqdm import tqdm

from dataset import CropDataset, Pair, PairDataset, match_pairs, named_pairs, reader
from images import DataError
from recipe import (
    TrainingError,
    dropped_init,
    has_validation,
    parse,
    read_state,
    refuse_overwriting_a_run,
)
from support.console import INTERRUPTED, Lasting, collected, complain, explain, failed, one_line
from support.outputs import OutputError, locked, making, refuse_overwriting, remove_parts
from support.records import command_line, commit, device_name, launcher
from support.runtime import (
    IMITATED,
    default_device,
    exact_convolutions,
    keep_freed_memory,
    lacks_memory,
    show_trace,
    team,
    use_device,
)
from trainer import (
    MEMORY_REMEDY,
    Stop,
    Stopped,
    Trainer,
    check_memory,
    say,
    write_once,
    write_or_warn,
)

CHECK_EVERY = 50        # steps between checks of the loss; each check waits for the GPU
SAVE_EVERY = 300        # seconds between checkpoints


def load_data(args: argparse.Namespace) -> tuple[PairDataset, PairDataset | None]:
    """Training and validation pairs. The latter are None for data without a validation split.

    Raises DataError, or OutputError if --out holds such images.
    """
    def load(pairs: Sequence[Pair]) -> PairDataset:
        refuse_overwriting([args.out], None, [image for pair in pairs for image in (pair.ir, pair.vis)])
        try:
            return PairDataset(pairs, team.rank == 0, reader(args))
        except MemoryError:
            raise DataError(f"too little memory to hold {len(pairs)} pairs; train on fewer, or on smaller images") from None

    if args.ir:
        return load(match_pairs(args.ir, args.vis, args.ir_pattern, args.vis_pattern)), None
    has_val = has_validation(args) and args.val_every
    return (load(named_pairs(args.dataset, args.data, "train")),
            load(named_pairs(args.dataset, args.data, "val")) if has_val else None)


def run(trainer: Trainer, pairs: PairDataset, val: PairDataset | None, stop: Stop) -> None:
    """Train until the end of the schedule or until `stop` is set. All processes take the same branches here."""
    crops = CropDataset(pairs, trainer.args.crop, trainer.args.seed, trainer.args.flips, trainer.args.dim,
                        trainer.args.lamps)
    bar = tqdm(initial=trainer.step, total=trainer.total, unit="step", dynamic_ncols=True, smoothing=0.05,
               disable=team.rank > 0)
    try:
        with bar:
            while not stop:
                done = trainer.done
                if done == trainer.per_epoch or trainer.finished and done > 0:
                    trainer.save(write_or_warn)         # before the validation, which takes a while
                    due = trainer.end_epoch(crops, val, stop)
                    trainer.save(write_or_warn)
                    trainer.agree(stop)
                    if due:     # --max-minutes can pass during the validation
                        trainer.finished = trainer.progress >= 1
                elif trainer.finished:
                    break
                elif trainer.step == trainer.fixed_from and not trainer.fixed:
                    trainer.fix_statistics(crops, stop)
                else:
                    train_epoch(trainer, crops, done, bar, stop)
    except Stopped:
        pass
    except Exception:
        trainer.rescue()
        raise
    try:
        if trainer.history:
            trainer.write_log()     # again, because the disk may have been full
        trainer.save(write_once)
    finally:
        if team.world > 1:
            distributed.barrier()       # rank 0 has to write first: torchrun ends all processes when one fails


def train_epoch(trainer: Trainer, crops: CropDataset, start: int, bar: tqdm, stop: Stop) -> None:
    """Train one epoch from its step `start`. Ends early if the run is finished or stopped, or at fixed_from."""
    saved = trainer.clock()
    for batch in trainer.loaded(crops, start):
        trainer.train_step(*batch)
        trainer.agree(stop)
        bar.update()
        if trainer.step % CHECK_EVERY == 0:
            bar.set_postfix({k: f"{v:.3f}" for k, v in trainer.means().items()}, refresh=False)
        if trainer.finished or stop or trainer.step == trainer.fixed_from:
            break
        if trainer.clock() - saved > SAVE_EVERY:
            trainer.save(write_or_warn)
            saved = trainer.clock()


def worker_ended(error: Exception) -> bool:
    """Whether an error says that a process of the data loader was killed."""
    return isinstance(error, EOFError | ConnectionError) or "DataLoader worker" in str(error)


def described(error: Exception) -> str:
    """The error in one line, or as a list of files. The message for a lack of memory has a remedy."""
    if worker_ended(error):
        return f"a data loader process has ended ({one_line(error)}), perhaps for lack of memory; lower --workers (0: none)"
    if lacks_memory(error):
        return f"too little memory for a training step ({one_line(error)}); {MEMORY_REMEDY}"
    return str(error) if isinstance(error, DataError | TrainingError) else one_line(error)


def train(args: argparse.Namespace, state: dict | None) -> tuple[Trainer, Stop]:
    """Run the training that the options name, from its start or from `state`, until its end or a signal."""
    notes: list[tuple[str, ...]] = []
    with collected(notes):
        pairs, val = load_data(args)
    if team.rank == 0:
        explain(notes)
    check_memory(args)
    trainer = Trainer(args, pairs.described)
    if state:
        trainer.load(state, args.out / "last.pth")
        if len(set(team.gathered([trainer.step]))) > 1:     # each process reads the file by itself
            raise TrainingError(f"{args.out / 'last.pth'}: the processes have read different states; was it written at this "
                                "moment? Start again with --resume")
    elif args.init:
        trainer.start_from(args.init)
    if trainer.complete:
        say(f"the run is finished after {trainer.step} steps; to train on, start a new run with "
            f"--init {args.out / 'last.pth'} and another --out, without --resume")
    if start := dropped_init(args):
        say(f"note: {args.recipe} is of a run with --init {start}; this run starts from random weights", sys.stderr)
    if args.amp and not trainer.bfloat16:
        say(f"note: --amp: {IMITATED}", sys.stderr)
    length = f"{trainer.total} steps"
    if args.max_minutes:
        length = f"at most {length} (or {args.max_minutes:g} minutes)"
    say(f"{len(pairs)} training pairs of {args.data or args.ir}, {len(val) if val else 'no'} validation pairs; "
        f"{length} of {args.batch} crops on {device_name(trainer.device)}")
    with Stop() as stop:
        run(trainer, pairs, val, stop)
    return trainer, stop


def main(argv: Sequence[str] | None = None) -> int:
    args = None
    try:
        team.join()
        keep_freed_memory()
        args = parse(argv, __doc__)
        args.command = command_line("train.py", argv)
        args.commit = commit()      # read now: a commit during the run is not that of the loaded code
        use_device(args.device)
        exact_convolutions()
        with making([args.out]), locked(args.out) if team.rank == 0 else nullcontext():
            if team.rank == 0:
                remove_parts(args.out)
            if not args.resume:
                refuse_overwriting_a_run(args.out)
            # Read again: the run that held the lock until now may have saved after `parse`.
            trainer, stop = train(args, read_state(args.out / "last.pth") if args.resume else None)
    except (DataError, TrainingError, OutputError, ValueError, OSError, EOFError, RuntimeError,
            MemoryError) as error:
        team.failed = True
        if not worker_ended(error):
            show_trace(error)
        return failed("train.py", described(error))
    except KeyboardInterrupt:
        saved = f"; the last save, if there was one, is {args.out / 'last.pth'}" if args else ""
        complain("", f"train.py: ended at once{saved}")
        return INTERRUPTED
    interrupted = stop and not trainer.complete
    if interrupted:
        device = "" if args.device == default_device() else f" --device {args.device}"
        say(f"stopped at step {trainer.step}; resume with: {launcher()} train.py --out {shlex.quote(str(args.out))} "
            f"--resume{device}")
    return 128 + stop.signal if interrupted else 0


def lasting() -> int:
    """`main`, where a closed output stream does not end the training."""
    sys.stdout = Lasting(sys.stdout)
    return main()


if __name__ == "__main__":
    sys.exit(console.run(lasting))
