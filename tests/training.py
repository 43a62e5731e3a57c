"""What the tests of train.py share: a short run, and what is said, written and made to fail in it."""
import csv
import re
import signal

import torch

import train
import trainer

# Options of a run that takes a moment: three steps an epoch.
TINY = ["--crop", "16", "--crops", "6", "--batch", "2", "--channels", "4", "--stages", "2"]


def tensors(state):
    """All numbers of a checkpoint that training computes, by a flat name."""
    out = {}

    def walk(prefix, value):
        if isinstance(value, dict):
            for key, item in value.items():
                walk(f"{prefix}/{key}", item)
        elif isinstance(value, (list, tuple)):
            for key, item in enumerate(value):
                walk(f"{prefix}/{key}", item)
        elif isinstance(value, torch.Tensor):
            out[prefix] = value
    walk("", {key: state[key] for key in ("model", "decoder", "optimisers")})
    return out


def same_weights(first, second):
    first, second = (tensors(torch.load(p / "last.pth", weights_only=True)) for p in (first, second))
    assert first.keys() == second.keys() and len(first) > 50
    return all(torch.equal(first[key], second[key]) for key in first)


def interrupt_at(number, monkeypatch, received=signal.SIGINT):
    """Ctrl-C or another signal in step `number`."""
    step = train.Trainer.train_step

    def interrupted(self, *batch):
        step(self, *batch)
        if self.step == number:
            signal.raise_signal(received)
    monkeypatch.setattr(train.Trainer, "train_step", interrupted)


def said(capsys):
    """The command's own lines on standard error, without progress bars; a traceback would be none."""
    return [line for line in re.split("[\r\n]", capsys.readouterr().err) if line.startswith("train.py: ")]


def rows(out):
    return list(csv.DictReader((out / "log.csv").open()))


def fail_to_write(monkeypatch, names, error, when=lambda path: True):
    written = trainer.write_atomically

    def write(path, data):
        if path.name in names and when(path):
            raise error
        written(path, data)
    monkeypatch.setattr(trainer, "write_atomically", write)
