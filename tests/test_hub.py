"""hubconf.py: the entry points of torch.hub, loaded from another folder."""
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import hubconf
from weights import CHECKPOINTS

ROOT = Path(hubconf.__file__).parent


ENTRIES = {"rpfnet" if name == "paper" else f"rpfnet_{name}": path for name, path in CHECKPOINTS.items()}


def test_every_checkpoint_has_an_entry_point():
    public = {name for name, value in vars(hubconf).items() if callable(value) and not name.startswith("_")}
    assert public == set(ENTRIES)       # torch.hub.list shows what is callable and public


@pytest.mark.parametrize("entry", ENTRIES)
def test_entry_points_say_what_they_are_and_load_their_weights(entry):
    assert "device" in getattr(hubconf, entry).__doc__       # what torch.hub.help prints
    loaded = torch.hub.load(str(ROOT), entry, source="local")
    stored = torch.load(ENTRIES[entry], weights_only=True)
    assert not loaded.training and all(torch.equal(value, stored[key]) for key, value in loaded.state_dict().items())


def test_loads_and_fuses_in_another_folder(tmp_path):
    (tmp_path / "net.py").write_text("raise RuntimeError('the net.py of the current folder')")
    script = f"""
import numpy, torch
network = torch.hub.load({str(ROOT)!r}, "rpfnet", source="local")
print(network.fuse(numpy.full((32, 40), 90, "uint8"), numpy.zeros((32, 40, 3), "uint8")).shape)
"""
    result = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert result.stdout == "(32, 40, 3)\n", result.stderr


def test_another_module_net_that_is_imported_already_is_named(tmp_path):
    (tmp_path / "net.py").write_text("")
    script = f"import net, torch\ntorch.hub.load({str(ROOT)!r}, 'rpfnet', source='local')"
    result = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert result.stderr.splitlines()[-1].startswith(f"ImportError: {tmp_path / 'net.py'} is imported already")
