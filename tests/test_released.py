"""tools/released.py: the graph against an independent one, and a reader that runs nothing it reads."""
import os
import pickle
import sys
import types
import zipfile

import pytest
import torch
from torch import nn

import weights
from tools.released import FourierBranch, ReleasedNet, load_released

# ---------------------------------------------------------------------------------------------
# A network like the authors', as a module `net` that exists only while a file is written


def conv_bn(inputs, outputs, kernel=3, dilation=1):
    padding = dilation * (kernel // 2)
    return [nn.Conv2d(inputs, outputs, kernel, padding=padding, dilation=dilation), nn.BatchNorm2d(outputs)]


class CrossPromotion(nn.Module):
    __module__ = "net"

    def __init__(self):
        super().__init__()
        self.spatial_to_freq = nn.Sequential(*conv_bn(32, 32, 1), nn.Sigmoid())
        self.freq_to_spatial = nn.Sequential(*conv_bn(32, 32), nn.ReLU())

    def forward(self, spatial, freq):
        return self.freq_to_spatial(freq) + spatial, freq * (1 + self.spatial_to_freq(spatial))


class ResidualBranch(nn.Module):
    """Layers one by one, normalisations apart, and attention that is computed and dropped.

    The attention's shapes are a guess that makes up the published 72,074 parameters.
    """
    __module__ = "net"

    def __init__(self):
        super().__init__()
        self.attention = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(32, 8, 1), nn.ReLU(), nn.Conv2d(8, 32, 1))
        self.place = nn.Conv2d(32, 1, 3, padding=1)
        self.mix = nn.Linear(32, 32)
        self.conv_a, self.norm_a = conv_bn(32, 32, 3, 1)
        self.conv_b, self.norm_b = conv_bn(32, 32, 3, 3)
        self.conv_c, self.norm_c = conv_bn(32, 32, 3, 5)
        self.fusion = nn.Conv2d(96, 32, 1)

    def forward(self, x):
        self.attention(x) * self.place(x)
        parts = [self.norm_a(self.conv_a(x)), self.norm_b(self.conv_b(x)), self.norm_c(self.conv_c(x))]
        return self.fusion(torch.cat(parts, 1).clamp_min(0))


class FourierBranch64(nn.Module):
    __module__ = "net"

    def __init__(self):
        super().__init__()
        self.conv_layer = nn.Conv2d(64, 64, 1, bias=False)
        self.bn = nn.BatchNorm2d(64)
        self.conv_spatial = nn.Sequential(*conv_bn(32, 32), nn.ReLU())

    def forward(self, x):
        batch, channels, height, width = x.shape
        spectrum = torch.fft.rfft2(x, norm="ortho")
        parts = torch.zeros(batch, 2 * channels, height, width // 2 + 1)
        parts[:, 0::2], parts[:, 1::2] = spectrum.real, spectrum.imag
        parts = self.bn(self.conv_layer(parts)).clamp_min(0)
        spectrum = torch.complex(parts[:, 0::2], parts[:, 1::2])
        return torch.fft.irfft2(spectrum, s=(height, width), norm="ortho") + self.conv_spatial(x)


class IterationBlock(nn.Module):
    __module__ = "net"

    def __init__(self):
        super().__init__()
        self.cross_promotion = CrossPromotion()
        self.residual_branch = ResidualBranch()
        self.fourier_branch = FourierBranch64()

    def forward(self, spatial, freq):
        spatial, freq = self.cross_promotion(spatial, freq)
        return self.residual_branch(spatial), self.fourier_branch(freq)


class FusionNetwork(nn.Module):
    __module__ = "net"

    def __init__(self):
        super().__init__()
        self.init_spatial = nn.Sequential(*conv_bn(1, 32), nn.ReLU(inplace=True))
        self.init_freq = nn.Sequential(*conv_bn(2, 32), nn.ReLU(inplace=True))
        self.iteration_block = IterationBlock()
        self.decoder = nn.Sequential(*conv_bn(32, 32), nn.ReLU(), *conv_bn(32, 16), nn.ReLU(),
                                     nn.Conv2d(16, 1, 3, padding=1), nn.Sigmoid())

    def forward(self, ir, vis_y):
        spatial, freq = self.init_spatial(ir - vis_y), self.init_freq(torch.cat([vis_y, ir], 1))
        for _ in range(3):
            spatial, freq = self.iteration_block(spatial, freq)
        return self.decoder(spatial + freq)


class Other(nn.Module):
    __module__ = "net"


AUTHORS = {kind.__name__: kind for kind in (
    FusionNetwork, IterationBlock, CrossPromotion, ResidualBranch, FourierBranch64, Other)}


def authors_network(seed=0):
    """Random weights, of the size that training gives: normalisations that are not the identity."""
    torch.manual_seed(seed)
    model = FusionNetwork().train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            module.running_mean.fill_(7)        # must play no part
    return model


@pytest.fixture
def save(tmp_path, monkeypatch):
    """Writes an object as the authors did; afterwards no module `net` can be imported."""
    def write(model, **options):
        path = tmp_path / "Model.pth"
        with monkeypatch.context() as patch:
            net = types.ModuleType("net")
            vars(net).update(AUTHORS)
            patch.setitem(sys.modules, "net", net)
            torch.save(model, path, **options)
        monkeypatch.setitem(sys.modules, "net", None)       # makes `import net` fail
        return path
    return write


def pair(size=(32, 40), batch=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(batch, 1, *size, generator=generator) for _ in range(2)]


# ---------------------------------------------------------------------------------------------
# The graph


def test_has_the_parameters_of_the_published_network():
    count = {kind: sum(p.numel() for p in kind().parameters()) for kind in (FusionNetwork, ReleasedNet)}
    assert count == {FusionNetwork: 72_074, ReleasedNet: 70_177}


def test_every_parameter_reaches_the_output():
    model = ReleasedNet()
    model(*pair()).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("size", [(32, 40), (33, 40), (32, 41), (17, 19)])
def test_spectrum_interleaves_real_and_imaginary_per_channel(size):
    x = pair(size)[0].expand(2, 3, *size) * torch.tensor([1.0, 2, 3])[:, None, None]
    parts, expected = FourierBranch.spectrum(x), torch.fft.rfft2(x, norm="ortho")
    for channel in range(3):
        torch.testing.assert_close(parts[:, 2 * channel], expected[:, channel].real)
        torch.testing.assert_close(parts[:, 2 * channel + 1], expected[:, channel].imag)
    torch.testing.assert_close(FourierBranch.inverse(parts, x.shape[-2:]), x)


@pytest.mark.gpu
@pytest.mark.parametrize("size", [(6, 8), (7, 9)])
def test_a_gpu_inverts_a_spectrum_that_is_not_hermitian_as_a_cpu_does(size):
    parts = torch.randn(2, 6, size[0], size[1] // 2 + 1)
    torch.testing.assert_close(FourierBranch.inverse(parts.cuda(), size).cpu(), FourierBranch.inverse(parts, size))


def test_takes_the_statistics_of_each_image():
    model, (ir, vis) = ReleasedNet(), pair(batch=3)
    ir[1] *= 0.1        # an image that would shift the statistics of a batch
    together = model.train()(ir, vis)
    alone = torch.cat([model.eval()(ir[i:i + 1], vis[i:i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    assert all("running" not in name for name in model.state_dict())


def test_runs_under_autocast():
    model, (ir, vis) = ReleasedNet(), pair((33, 41))
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        fused = model(ir, vis)
    exact = model(ir, vis)
    assert fused.shape == ir.shape and exact.std() > 0.01
    assert 0 < (fused - exact).abs().max() < 0.05       # float32 would give 0


def test_returns_the_features_of_each_iteration():
    model, inputs = ReleasedNet(), pair()
    fused, features = model(*inputs, return_features=True)
    torch.testing.assert_close(fused, model(*inputs))
    assert [tuple(part.shape) for step in features for part in step] == [(1, 32, 32, 40)] * 8
    torch.testing.assert_close(features[1], model.iteration_block(features[0]))


def test_names_wrong_shapes():
    with pytest.raises(ValueError, match=r"\(1, 1, 32, 40\) and \(1, 1, 32, 41\)"):
        ReleasedNet()(pair()[0], pair((32, 41))[1])


# ---------------------------------------------------------------------------------------------
# Reading the authors' file


@pytest.mark.parametrize("size", [(32, 40), (33, 41)])
def test_gives_the_images_of_the_saved_network(save, size):
    source, inputs = authors_network(), pair(size)
    loaded = load_released(save(source))
    assert isinstance(loaded, ReleasedNet) and not loaded.training
    expected = source(*inputs)      # train mode: the statistics of this image
    assert expected.std() > 0.01
    torch.testing.assert_close(loaded(*inputs), expected, atol=2e-6, rtol=0)


def test_ignores_the_attention_and_says_so(save):
    ignored = load_released(save(authors_network())).ignored
    assert sorted(name.removeprefix("iteration_block.residual_branch.") for name in ignored) == [
        "attention.1", "attention.3", "mix", "place"]


def test_takes_a_missing_bias_as_zero(save):
    source = authors_network()
    source.iteration_block.residual_branch.fusion.bias = None
    inputs = pair()
    torch.testing.assert_close(load_released(save(source))(*inputs), source(*inputs), atol=2e-6, rtol=0)


def test_survives_a_network_that_holds_itself(save):
    source = authors_network()
    source.iteration_block.again = source
    assert load_released(save(source))(*pair()).isfinite().all()


CHANGES = {
    "a layer is missing": (lambda net: net.decoder.__delitem__(3), r"decoder\.3 \(16, 32, 3, 3\)"),
    "a block is missing": (lambda net: delattr(net, "init_freq"), r"init_freq\.0 \(32, 2, 3, 3\).*init_freq\.1"),
    "another width": (lambda net: setattr(net.iteration_block.residual_branch, "fusion", nn.Conv2d(96, 24, 1)),
                      r"residual_branch\.fusion \(32, 96, 1, 1\)"),
    "another dilation": (lambda net: setattr(net.iteration_block.residual_branch.conv_c, "dilation", (4, 4)),
                         r"\(32, 32, 3, 3\), dilation 5"),
    "another epsilon": (lambda net: setattr(net.iteration_block.fourier_branch.bn, "eps", 1e-3), r"fourier_branch\.bn"),
    "one layer more": (lambda net: net.init_spatial.append(nn.Conv2d(32, 32, 1)), r"init_spatial\.3 is not part"),
    "two layers that fit": (lambda net: setattr(net.iteration_block.residual_branch, "conv_d", conv_bn(32, 32)[0]),
                            r"residual_branch\.conv_d is not part"),
    "no weight": (lambda net: setattr(net.init_spatial[0], "weight", None), r"init_spatial\.0 \(32, 1, 3, 3\)"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_names_what_does_not_fit(save, change):
    source = authors_network()
    edit, message = CHANGES[change]
    edit(source)
    with pytest.raises(ValueError, match="not the released network.*" + message) as error:
        load_released(save(source))
    assert "\n" not in str(error.value)


# ---------------------------------------------------------------------------------------------
# Files that must be refused


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


ATTACKS = {
    "os.system": lambda mark: Call(os.system, f"echo > {mark}"),
    "eval": lambda mark: Call(eval, f"open({str(mark)!r}, 'w').close()"),
    "exec": lambda mark: Call(exec, f"open({str(mark)!r}, 'w').close()"),
    "open": lambda mark: Call(open, str(mark), "w"),
    "getattr": lambda mark: Call(getattr, nn.Conv2d(1, 1, 1), "weight"),
    "torch.hub": lambda mark: Call(torch.hub.load, str(mark), "model"),
    "another layer": lambda mark: nn.Bilinear(2, 2, 2),
    "a class called": lambda mark: Call(Other, str(mark)),
}


@pytest.mark.parametrize("attack", ["os.system", "eval", "exec", "open"])
def test_an_ordinary_reader_would_run_it(tmp_path, attack):
    mark = tmp_path / "mark"
    pickle.loads(pickle.dumps(ATTACKS[attack](mark)))
    assert mark.exists()


@pytest.mark.parametrize("attack", ATTACKS)
def test_refuses_a_file_that_runs_code(save, tmp_path, attack):
    source, mark = authors_network(), tmp_path / "mark"
    source.extra = ATTACKS[attack](mark)
    path = save(source)
    with pytest.raises(ValueError, match="Model.pth: refused") as error:
        load_released(path)
    assert "\n" not in str(error.value)
    assert not mark.exists()


def test_names_what_it_refuses(save):
    source = authors_network()
    source.extra = nn.Bilinear(2, 2, 2)
    with pytest.raises(ValueError, match=r"asks for torch\.nn\.modules\.linear\.Bilinear$"):
        load_released(save(source))


@pytest.mark.parametrize(("module", "name"), [("net", "os.system"), ("net.os", "system"), ("network", "run"),
                                              ("torch.nn.modules.conv", "F.conv2d"), ("net", "Übel"), ("os", "net.X")])
def test_refuses_names_that_only_look_right(save, module, name):
    path = save(authors_network())
    rewrite(path, b"cnet\nCrossPromotion\n",
            f"c{module}\n{name}\n".encode())
    with pytest.raises(ValueError, match="refused, its pickle asks for"):
        load_released(path)


def test_runs_no_call_of_a_torch_class(save):
    """A listed class is a stand-in too: calling it with any argument fails, and allocates nothing."""
    source = authors_network()
    source.extra = Call(nn.Conv2d, 1, 1, 1)
    with pytest.raises(ValueError, match="refused, it is not a pickle of plain layers"):
        load_released(save(source))


def rewrite(path, old, new):
    """Replaces bytes of the pickle inside a torch.save file."""
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in records.items():
            if name.endswith("data.pkl"):
                assert old in data
                data = data.replace(old, new)
            archive.writestr(name, data)


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
def test_refuses_the_legacy_format(save):
    """Whole modules in it carry source code, which the restricted unpickler does not take."""
    path = save(authors_network(), _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match="not a zip file of torch.save"):
        load_released(path)


@pytest.mark.parametrize("content", [b"", b"no pickle", b"PK\x03\x04 no zip", b"\x80\x02cos\nsystem\n."])
def test_refuses_other_files(tmp_path, content):
    path = tmp_path / "Model.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="Model.pth: (not weights, but an? |damaged)"):
        load_released(path)


def test_refuses_other_objects(save):
    with pytest.raises(ValueError, match=r"expected a pickled net\.FusionNetwork, got OrderedDict; .*use --checkpoint"):
        load_released(save(authors_network().state_dict()))
    with pytest.raises(ValueError, match=r"expected a pickled net\.FusionNetwork, got net\.Other$"):
        load_released(save(Other()))
    with pytest.raises(ValueError, match="if this is the authors' Model.pth, use --released"):
        weights.load(save(authors_network()))


def test_names_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.pth"):
        load_released(tmp_path / "none.pth")
