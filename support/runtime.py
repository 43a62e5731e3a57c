"""The machine: devices, freed memory, and the processes of torchrun."""
from __future__ import annotations

import atexit
import ctypes
import os
import platform
import re
import sys
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

import torch
from torch import distributed

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3   # of glibc's malloc.h
BFLOAT16 = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")      # the instructions, x86 and ARM
IMITATED = "no bfloat16 instructions here, which makes it slower than float32: float32 is used"
LARGEST_KEPT = 2**27        # bytes; above the features of 768 x 1024 in float32, or of twice that in bfloat16


def keep_freed_memory() -> None:
    """Have glibc keep freed memory for the next tensor; given back and taken again, each page costs a fault.

    Saves an eighth (inference) to a quarter (training) of the time on CPUs. Larger blocks are still given
    back, because they leave larger holes. It holds for the whole process, so programs call it, not imports.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):        # musl has none
        return
    # Before 2.35, glibc refuses more than 32 MB; left at its 128 KB, with trimming set, it would give back almost all.
    if libc.mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT) or libc.mallopt(M_MMAP_THRESHOLD, 2**25):
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def check_device(device: str | torch.device) -> None:
    """Raises ValueError, in one line, for a device that PyTorch cannot use here."""
    if device is None:
        raise ValueError("device=None: leave it out for its default")
    try:
        if torch.device(device).type == "meta":
            raise ValueError("device meta: it holds no values; choose cpu or cuda")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {device}: {first_line(error)}") from None


def on_gpu(device: str) -> bool:
    """Whether a device's name, such as "cuda:1", is that of a GPU."""
    return device.startswith("cuda")


def has_bfloat16(device: str | torch.device) -> bool:
    """Whether a device computes in bfloat16. Others imitate it, and are then several times slower than in float32.

    A CPU whose instructions PyTorch does not tell counts as one that has it.
    """
    if torch.device(device).type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    instructions: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()       # older PyTorch has no such function
    return not instructions or any(instructions.get(name) for name in BFLOAT16)


def processor() -> str:
    """The CPU's name."""
    names = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text()) if sys.platform == "linux" else []
    return names[0] if names else platform.processor() or platform.machine()


def first_line(error: Exception) -> str:
    """What an error says, in one line; its type's name if it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


# ---------------------------------------------------------------------------------------------
# Several processes


class Team:
    """The processes that torchrun started, who share the items among them; without torchrun, this one alone."""

    rank, world = 0, 1      # which one this is, and of how many

    def join(self) -> None:
        """Meet the others, and take a GPU of one's own ("cuda" then means that one). Without torchrun: nothing."""
        launched = distributed.is_available() and distributed.is_torchelastic_launched()
        if not launched or distributed.is_initialized():
            return
        if torch.cuda.is_available():
            # Modulo: each process may have been given one GPU to see, or all may run on CPUs.
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
        # Both on a GPU: what the processes agree on between two steps must not wait for it.
        distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
        atexit.register(distributed.destroy_process_group)
        self.rank, self.world = distributed.get_rank(), distributed.get_world_size()

    def share(self, items: Sequence) -> Sequence:
        """Those of this process: every world-th."""
        return items[self.rank::self.world]

    def gathered(self, items: list) -> list:
        """What all made of their shares, for everybody, in the order before `share`. No item may be None."""
        if self.world == 1:
            return items
        parts: list = [None] * self.world
        distributed.all_gather_object(parts, items)
        return [item for row in zip_longest(*parts) for item in row if item is not None]

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        """x, added up over all processes."""
        if self.world > 1:
            distributed.all_reduce(x)
        return x


team = Team()
