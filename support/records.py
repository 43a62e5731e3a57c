"""What is recorded beside a result: commit, package versions, device."""
from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import torch

from support.runtime import team

ROOT = Path(__file__).resolve().parents[1]


def launcher() -> str:
    """What starts a script: python, or torchrun with the number of processes, all on one machine."""
    return "python" if team.world == 1 else f"torchrun --nproc_per_node={team.world}"


def command_line(script: str, argv: Sequence[str] | None) -> str:
    """The command that runs a script with these arguments, as for a shell. None: the arguments of this process."""
    return f"{launcher()} {shlex.join([script, *(sys.argv[1:] if argv is None else argv)])}"


def commit() -> str:
    """The git commit of this code, with a "+" if files outside results/ have changed since.

    "unknown" without git, and for a copy without .git inside another repository.
    """
    # Inside a git hook, these variables may name another repository.
    hook = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")
    environment = {name: value for name, value in os.environ.items() if name not in hook}

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, env=environment, capture_output=True, text=True, check=True,
                              timeout=10).stdout.strip()
    try:
        if git("rev-parse", "--show-prefix"):       # this folder is not the root of a repository
            return "unknown"
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)results")
        return git("describe", "--always", "--exclude=*") + "+" * bool(changed)
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def packages() -> dict[str, str]:
    """Versions of Python and of the packages that compute results."""
    return {"python": platform.python_version()} | {
        name: importlib.metadata.version(name) for name in ("torch", "numpy", "kornia")} | {"opencv": cv2.__version__}


def short_hash(*parts: bytes) -> str:
    """Eight hexadecimal digits that identify these bytes."""
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:8]


def hashed_name(path: Path) -> str:
    """Name of a file without suffix, with a hash of its content, because names of weights such as best.pth repeat."""
    return f"{path.stem}-{short_hash(path.read_bytes())}"


def processor() -> str:
    """Name of the CPU."""
    names = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text()) if sys.platform == "linux" else []
    return names[0] if names else platform.processor() or platform.machine()


def device_name(device: torch.device) -> str:
    """Name of the device for logs, with the number of processes or CPU threads."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    elif device.type == "cpu":
        name = f"cpu, {torch.get_num_threads()} threads"
    else:
        name = str(device)
    return f"{team.world} x {name}" if team.world > 1 else name
