"""Devices, memory allocation on CPUs, and the processes of torchrun."""
from __future__ import annotations

import atexit
import ctypes
import os
import re
import sys
import traceback
from collections.abc import Sequence
from datetime import timedelta
from itertools import zip_longest

import cv2
import torch
from torch import distributed

from support.console import first_line

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3   # constants of malloc.h of glibc
BFLOAT16 = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")      # names of instruction sets on x86 and ARM
IMITATED = "no bfloat16 instructions here, so bfloat16 would be slower than float32; float32 is used"
# Messages of errors for lack of memory. The last two are those of cuDNN and cuFFT if they find no room for a workspace.
NO_MEMORY = "alloc|out of memory|not enough memory|unable to find an engine|CU(DNN_STATUS|FFT)_INTERNAL_ERROR"
LARGEST_KEPT = 2**27        # bytes; more than the features of 768 x 1024 in float32, or twice as many in bfloat16


def keep_freed_memory() -> None:
    """Let glibc keep freed memory for the next tensor. Memory that is returned to the system costs page faults later.

    This saves an eighth (inference) to a quarter (training) of the time on CPUs. Blocks above LARGEST_KEPT are still
    returned, because they would cause more fragmentation. The setting affects the whole process, so programs call this
    function, and imports do not.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):        # musl has no mallopt
        return
    # glibc before 2.35 rejects more than 32 MB, so 32 MB is tried next. The default of 128 KB must not stay: setting
    # the trim threshold turns off its automatic growth, and almost all blocks would be returned.
    if libc.mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT) or libc.mallopt(M_MMAP_THRESHOLD, 2**25):
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def lacks_memory(error: Exception) -> bool:
    """Whether an error says that memory could not be allocated. PyTorch, cuFFT and OpenCV have no common type for it."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or isinstance(error, RuntimeError | cv2.error) and \
        re.search(NO_MEMORY, str(error), re.IGNORECASE) is not None


def show_trace(error: Exception) -> None:
    """Print the traceback of an error that is probably a bug, such as wrong shapes after a change of net.py.

    PyTorch reports these as RuntimeError, and those of a GPU as AcceleratorError. Messages for users have other types.
    """
    if type(error).__name__ in ("RuntimeError", "AcceleratorError") and not lacks_memory(error):
        traceback.print_exception(error)


def default_device() -> str:
    """"cuda" if PyTorch can use a GPU, otherwise "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def check_device(device: str | torch.device) -> None:
    """Raises ValueError with a message of one line if PyTorch cannot use this device."""
    if device is None:
        raise ValueError("device=None: leave it out for its default")
    try:
        known = torch.device(device)
    except RuntimeError:
        raise ValueError(f"device {device}: unknown; choose cpu or cuda") from None
    if known.type == "meta":
        raise ValueError("device meta: it holds no values; choose cpu or cuda")
    if team.world > 1 and known.index is not None:
        raise ValueError(f"device {device}: torchrun gives each process a GPU of its own; use cuda")
    if known.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {device}: PyTorch finds no CUDA GPU here; use cpu")
    if known.type not in ("cpu", "cuda"):
        raise ValueError(f"device {device}: is not supported; choose cpu or cuda")
    try:
        torch.zeros(1, device=device).add_(1)       # a GPU that is too old for this build of PyTorch fails when it computes
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {device}: {first_line(error)}; use cpu, or a build of PyTorch for this GPU") from None


def on_gpu(device: str) -> bool:
    """Whether the name of a device, such as "cuda:1", is that of a CUDA GPU."""
    return device.startswith("cuda")


def use_device(device: str) -> None:
    """Check a device. A GPU with a number, such as "cuda:1", becomes the current GPU of this program. Raises ValueError.

    Otherwise, questions about "the GPU" and pinned memory would concern GPU 0.
    """
    check_device(device)
    if on_gpu(device) and torch.device(device).index is not None:
        torch.cuda.set_device(device)


def exact_convolutions() -> None:
    """Turn off TF32, in which GPUs from Ampere on round the inputs of float32 convolutions to ten bits.

    In SSIM, E[x^2] - E[x]^2 would then lose most of its digits, and its gradient would be wrong.
    """
    torch.backends.cudnn.allow_tf32 = False
    # Newer PyTorch has a second setting. Without a value, it is that of the program, torch.backends.fp32_precision.
    for part in (getattr(torch.backends.cudnn, name, None) for name in ("conv", "rnn")):
        if part is not None and hasattr(part, "fp32_precision"):
            part.fp32_precision = "ieee"


def has_bfloat16(device: str | torch.device) -> bool:
    """Whether a device has bfloat16 instructions. Without them bfloat16 is emulated, several times slower than float32.

    If PyTorch does not report the instructions of the CPU, the result is True.
    """
    if torch.device(device).type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    instructions: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()    # older PyTorch lacks it
    return not instructions or any(instructions.get(name) for name in BFLOAT16)


# ---------------------------------------------------------------------------------------------
# Several processes


class Team:
    """The processes that torchrun started. They divide the work. Without torchrun, there is only this process."""

    rank, world = 0, 1      # rank of this process, and number of processes (world size)
    failed = False          # whether this process ends with an error of its own

    def join(self, patience: timedelta | None = None) -> None:
        """Join the process group, and make "cuda" mean the GPU of this process. No effect without torchrun.

        patience: how long one process waits for another, by default as long as PyTorch does (minutes).
        """
        launched = distributed.is_available() and distributed.is_torchelastic_launched()
        if not launched or distributed.is_initialized():
            return
        if torch.cuda.is_available():
            # Modulo: each process may see only one GPU, or all processes may run on CPUs beside fewer GPUs.
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
        # Gloo is used beside NCCL for tensors on the CPU: what the processes exchange between two steps must not wait
        # for the GPU.
        nccl = torch.cuda.is_available() and distributed.is_nccl_available()       # Windows has no NCCL
        distributed.init_process_group("cpu:gloo,cuda:nccl" if nccl else "gloo", timeout=patience)
        atexit.register(self._leave)
        self.rank, self.world = distributed.get_rank(), distributed.get_world_size()

    def _leave(self) -> None:
        if not self.failed:     # otherwise NCCL would wait for the other processes, which wait for this one
            distributed.destroy_process_group()

    def share(self, items: Sequence) -> Sequence:
        """The items of this process: every world-th, beginning with its rank."""
        return items[self.rank::self.world]

    def gathered(self, items: list) -> list:
        """Gather the results of all processes, in the order before `share`. No item may be None."""
        if self.world == 1:
            return items
        parts: list = [None] * self.world
        distributed.all_gather_object(parts, items)
        return [item for row in zip_longest(*parts) for item in row if item is not None]

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        """Sum of x over all processes (all-reduce, in place)."""
        if self.world > 1:
            distributed.all_reduce(x)
        return x


team = Team()
