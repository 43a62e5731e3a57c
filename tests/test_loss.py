"""The losses on hand-made inputs with known answers, and where gradients could break."""
import kornia
import pytest
import torch
from scipy.ndimage import gaussian_filter

from dataset import PairDataset, named_pairs
from loss import (
    FrequencyContrastiveLoss,
    FusionLoss,
    SaliencyStructureLoss,
    SSIMLoss,
    above_deviation,
    adaptive_weight,
    max_normalised,
    sobel,
    texture_mask,
    weighted_ssim,
    whole_ssim,
)


def constant(value, size=24):
    return torch.full((1, 1, size, size), float(value))


def noise(seed=0, size=24, batch=1):
    return torch.rand(batch, 1, size, size, generator=torch.Generator().manual_seed(seed))


def hot_scene(size=32):
    """A hot square on a cool background; the visible image is bright elsewhere, with a dark target."""
    ir, vis = constant(0.2, size), constant(0.5, size)
    ir[..., 12:18, 12:18], vis[..., 12:18, 12:18] = 0.95, 0.1
    return ir + 0.02 * noise(1, size), vis + 0.02 * noise(2, size)


# --- Sobel and masks ---


def test_sobel_of_a_ramp_is_eight_steps_and_its_frame_is_no_edge():
    ramp = (torch.arange(10.) / 10).expand(1, 1, 10, 10)
    magnitude = sobel(ramp)
    torch.testing.assert_close(magnitude[..., 1:-1], torch.full((1, 1, 10, 8), 0.8))
    torch.testing.assert_close(magnitude[..., 0], torch.full((1, 1, 10), 0.4))     # half a step, not a jump to 0


def test_normalised_gradient_of_a_flat_map_is_zero_with_a_zero_gradient():
    flat = constant(0.999).requires_grad_()
    normalised = max_normalised(sobel(flat))
    normalised.sum().backward()
    assert (normalised == 0).all() and (flat.grad == 0).all()


def test_masks_know_nothing_of_the_neighbours_in_the_batch():
    batch = torch.cat([noise(0), 0.1 * noise(1), constant(1.0)])
    for mask in (above_deviation, texture_mask):
        alone = torch.cat([mask(x[None]) for x in batch])
        assert torch.equal(mask(batch), alone)


def test_texture_mask_marks_the_textured_half():
    x = constant(0.5, 32)
    x[..., 16:] = noise(3, 32)[..., 16:]
    mask = texture_mask(x)
    assert mask[..., :14].sum() == 0 and mask[..., 18:].mean() > 0.4


# --- Eq. 5-7 ---


def test_saliency_structure_loss_by_hand():
    ir, vis = hot_scene()
    m_prime = noise(4, 32)
    total, terms = SaliencyStructureLoss(lambda_1=0.3)(m_prime, ir, vis)
    hot = ir > ir.mean() + ir.std(correction=0)
    gradient = sobel(vis)
    textured = gradient > gradient.mean()
    edges = (sobel(m_prime) / sobel(m_prime).max() - sobel(ir) / sobel(ir).max()).square().mean()
    torch.testing.assert_close(terms["L_reg"], -(m_prime * hot).mean())
    torch.testing.assert_close(terms["L_grad"], edges - 0.3 * (m_prime * textured).mean())
    torch.testing.assert_close(total, terms["L_grad"] + terms["L_reg"])


def test_saliency_loss_rewards_a_response_on_the_target():
    ir, vis = hot_scene()
    loss = SaliencyStructureLoss()
    target = above_deviation(ir)
    assert loss(0.9 * target, ir, vis)[0] < loss(0.9 * target.flip(3).roll(9, 2), ir, vis)[0]


def test_a_map_that_fades_is_not_blown_up_but_a_faint_one_counts_in_full():
    ir, vis = hot_scene()
    loss = SaliencyStructureLoss(lambda_1=0)
    full, faint, fading = (loss(1 - scale * (1 - ir), ir, vis)[1] for scale in (0.5, 5e-3, 1e-6))
    torch.testing.assert_close(full["L_grad"], torch.tensor(0.0), atol=1e-6, rtol=0)
    torch.testing.assert_close(faint["L_grad"], torch.tensor(0.0), atol=1e-5, rtol=0)
    assert fading["L_grad"] > 0.9 * max_normalised(sobel(ir)).square().mean()
    assert full["M_edge"] > 1 and fading["M_edge"] < 1e-4


# --- Eq. 9-12 ---


def test_w_picks_the_hot_target_and_the_printed_form_misses_it():
    ir, vis = hot_scene()
    hot = torch.zeros_like(ir)
    hot[..., 12:18, 12:18] = 1
    assert torch.equal(adaptive_weight(ir, vis), hot)
    assert (adaptive_weight(ir, vis, printed=True) * hot).sum() == 0


def test_contrastive_loss_is_equations_10_to_12():
    ir, vis, fused = noise(0), noise(1), noise(2)
    w = adaptive_weight(ir, vis)
    assert 0 < w.sum() < w.numel()
    v = 1 - w

    def d(a, b):    # every transform on its own, as printed
        return (torch.fft.fft2(a, norm="ortho") - torch.fft.fft2(b, norm="ortho")).abs().mean()

    positive = d(fused * w, ir * w) + d(fused * v, vis * v)
    negative = d(fused * w, ir * v) + d(fused * w, vis * w) + d(fused * v, ir * w) + d(fused * v, vis * v)
    loss, terms = FrequencyContrastiveLoss()(fused, ir, vis)
    torch.testing.assert_close(loss, positive / (negative + 1e-9))
    torch.testing.assert_close(terms["D_pos"], positive)
    torch.testing.assert_close(FrequencyContrastiveLoss(contrast=False)(fused, ir, vis)[0], positive)


def test_contrastive_loss_of_the_ideal_image_is_zero():
    ir, vis = hot_scene()
    w = adaptive_weight(ir, vis)
    for domain in ("frequency", "spatial"):
        loss = FrequencyContrastiveLoss(domain)
        assert loss(ir * w + vis * (1 - w), ir, vis)[0] == 0
        assert loss((ir + vis) / 2, ir, vis)[0] > 0.1


def test_spatial_domain_and_no_weight():
    ir, vis, fused = noise(0), noise(1), noise(2)
    without = FrequencyContrastiveLoss("spatial", weight="none")(fused, ir, vis)[0]
    torch.testing.assert_close(without, (fused - ir).abs().mean() + (fused - vis).abs().mean())
    w = adaptive_weight(ir, vis)
    positive = (fused * w - ir * w).abs().mean() + (fused - vis).mul(1 - w).abs().mean()
    torch.testing.assert_close(FrequencyContrastiveLoss("spatial", contrast=False)(fused, ir, vis)[0], positive)


def test_distance_of_one_pixel_is_flat_in_frequency():
    """An impulse has the same magnitude at every frequency: 1 / sqrt(HW) with the ortho norm."""
    impulse = constant(0, 16)
    impulse[..., 3, 5] = 1
    distance = FrequencyContrastiveLoss().distance(impulse, constant(0, 16))
    torch.testing.assert_close(distance, torch.tensor([1 / 16]))


def test_unknown_options_are_refused():
    with pytest.raises(ValueError, match="domain='wavelet'"):
        FrequencyContrastiveLoss("wavelet")


# --- Eq. 8, 13, 14 ---


PRINTED = {"weighted": False, "whole": False}


def test_plain_ssim_is_that_of_eq_13():
    fused, ir, vis = (noise(i, batch=2) for i in range(3))
    expected = kornia.losses.ssim_loss(fused, ir, 11) + kornia.losses.ssim_loss(fused, vis, 11)
    torch.testing.assert_close(SSIMLoss(11, **PRINTED)(fused, ir, vis)[0], expected)


def test_ssim_term_by_hand():
    x = noise(0)
    assert SSIMLoss()(x, x, x)[0].abs() < 1e-5
    # Two constant images: SSIM is the luminance factor alone, and there is no contrast to miss.
    a, b = 0.2, 0.6
    ssim = (2 * a * b + 0.01**2) / (a * a + b * b + 0.01**2)
    plain = torch.tensor((1 - ssim) / 2)
    pair = constant(a), constant(a), constant(b)
    torch.testing.assert_close(SSIMLoss(**PRINTED)(*pair)[0], plain, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(SSIMLoss(weighted=False)(*pair)[0], plain / 2, atol=1e-4, rtol=1e-4)
    assert SSIMLoss()(*pair)[0].abs() < 1e-3


def test_weighted_ssim_is_scipys_windows_weighed_by_variance():
    fused, *sources = (x.double() for x in (noise(0), noise(1), 0.3 * noise(2)))

    def window(x):
        return gaussian_filter(x[0, 0].numpy(), 1.5, mode="mirror", radius=3)

    def variance(x, y):
        return window(x * y) - window(x) * window(y)

    c2 = 0.03**2
    similarity = [(2 * variance(fused, s) + c2) / (variance(fused, fused) + variance(s, s) + c2) for s in sources]
    total = sum(variance(s, s) for s in sources)
    expected = sum(each * variance(s, s) / total for each, s in zip(similarity, sources))
    got = weighted_ssim(fused, tuple(sources), 7)[0, 0].numpy()
    assert got == pytest.approx(expected, abs=1e-6)


def test_a_flat_source_does_not_flatten_the_texture_of_the_other():
    texture, flat = 0.3 + 0.2 * noise(), constant(0.7)
    faded = 0.3 + 0.1 * noise()
    for sources in ((texture, flat), (flat, texture)):
        best, worse = (SSIMLoss(whole=False)(fused, *sources)[0] for fused in (texture, faded))
        assert best.abs() < 1e-4 and worse > 0.1
        # With equal weights, half of the contrast counts for more than half of the similarity.
        best, worse = (SSIMLoss(**PRINTED)(fused, *sources)[0] for fused in (texture, faded))
        assert worse - best < 0.05


def test_whole_ssim_is_image_by_image_and_blind_to_brightness():
    x = noise(0, batch=2)
    x[1] = x[1] * 0.1                                           # a neighbour with little contrast
    c2 = 0.03**2
    for scale in (1.0, 0.5):
        variance = x.var((1, 2, 3), keepdim=True, correction=0)
        expected = (2 * scale * variance + c2) / ((1 + scale**2) * variance + c2)
        torch.testing.assert_close(whole_ssim(x * scale + 0.1, (x, x)), expected)


def test_whole_ssim_wants_the_variance_of_both_contents_and_what_they_share_once():
    wave = torch.sin(torch.arange(256) * torch.pi / 16).expand(256, 256)[None, None]
    across, along = 0.5 + 0.1 * wave, 0.5 + 0.2 * wave.mT       # uncorrelated
    cases = {"two contents": ((across, along), 0.5 + 0.1 * wave + 0.2 * wave.mT),
             "one content": ((across, across), across),
             "one and a flat source": ((across, constant(0.3, 256)), across)}
    for name, (sources, both) in cases.items():
        gains = torch.linspace(0.5, 1.5, 21)
        scores = [whole_ssim(0.5 + gain * (both - 0.5), sources).item() for gain in gains]
        assert gains[scores.index(max(scores))].item() == pytest.approx(1, abs=0.051), name


def test_the_whole_asks_for_the_contrast_between_regions_that_windows_give_up():
    """Waves along and across: their average has less contrast than either source."""
    wave = 0.5 + 0.2 * torch.sin(torch.arange(128) / 10).expand(128, 128)[None, None]
    ir, vis = wave, wave.mT
    average = (ir + vis) / 2
    strong = 0.5 + (average - 0.5) * 2**0.5             # as much as each source has
    assert SSIMLoss()(strong, ir, vis)[0] < SSIMLoss()(average, ir, vis)[0] - 0.005
    assert SSIMLoss(3, **PRINTED)(strong, ir, vis)[0] > SSIMLoss(3, **PRINTED)(average, ir, vis)[0]


def test_total_is_the_weighted_sum_and_none_switches_a_term_off():
    fused, m_prime, ir, vis = (noise(i) for i in range(4))
    total, terms = FusionLoss.default()(fused, m_prime, ir, vis)
    expected = terms["L_c"] + 5 * terms["L_s"] + terms["L_grad"] + terms["L_reg"]
    torch.testing.assert_close(total, expected)
    assert {"L_total", "L_c", "L_s", "L_grad", "L_reg"} <= terms.keys()
    only, terms = FusionLoss(contrastive=FrequencyContrastiveLoss())(fused, None, ir, vis)
    assert "L_s" not in terms and "L_grad" not in terms
    torch.testing.assert_close(only, terms["L_c"])


def test_loss_of_a_batch_is_the_mean_of_its_images():
    fused, m_prime, ir, vis = (noise(i, batch=3) * torch.tensor([1, 0.1, 0.6])[:, None, None, None] for i in range(4))
    loss = FusionLoss.default()
    alone = torch.stack([loss(*(x[i:i + 1] for x in (fused, m_prime, ir, vis)))[0] for i in range(3)])
    torch.testing.assert_close(loss(fused, m_prime, ir, vis)[0], alone.mean(), atol=1e-5, rtol=1e-5)


# --- finite everywhere ---

SOURCES = {
    "constant": (constant(0.3), constant(0.7)),
    "identical": (noise(0), noise(0)),
    "black": (constant(0), constant(0)),
    "white": (constant(1), constant(1)),
    "one pixel": (torch.eye(24)[None, None] * 0 + torch.nn.functional.pad(torch.ones(1, 1, 1, 1), (3, 20, 5, 18)), noise(1)),
}
OPTIONS = [{}, {"domain": "spatial"}, {"contrast": False}, {"weight": "printed"}, {"weight": "none"}]


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("sources", SOURCES.values(), ids=SOURCES.keys())
@pytest.mark.parametrize("output", ["noise", "flat", "source"])
def test_gradients_are_finite(sources, output, autocast):
    ir, vis = sources
    start = {"noise": noise(5), "flat": constant(0.5), "source": vis.clone()}[output]
    for options in OPTIONS:
        fused, m_prime = start.clone().requires_grad_(), start.clone().requires_grad_()
        loss = FusionLoss(FrequencyContrastiveLoss(**options), SSIMLoss(), SaliencyStructureLoss())
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            dtype = torch.bfloat16 if autocast else torch.float32
            total, _ = loss(fused.to(dtype), m_prime.to(dtype), ir, vis)
        total.backward()
        assert total.dtype == torch.float32 and total.isfinite(), options
        assert fused.grad.isfinite().all() and m_prime.grad.isfinite().all(), options


def test_w_covers_the_hot_pixels_of_real_pairs(data_root):
    """Share of the hot pixels (IR > mean + std) that w marks, over the 40 validation pairs; `-s` prints it."""
    pairs = PairDataset(named_pairs("roadscene", data_root / "RoadScene", "val"))
    coverage = {}
    for printed in (False, True):
        shares = []
        for ir, vis in pairs.items:
            ir, vis = (x[None] / 255 for x in (ir, vis))
            hot = above_deviation(ir)
            shares.append(((adaptive_weight(ir, vis, printed) * hot).sum() / hot.sum()).item())
        coverage[printed] = sum(shares) / len(shares)
    print(f"hot pixels that w covers: {coverage[False]:.2f}, with Eq. 9 as printed: {coverage[True]:.2f}")
    assert coverage[False] > 0.8 and coverage[True] < 0.1
