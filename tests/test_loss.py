"""The losses on hand-made inputs with known answers, and where gradients could break."""
import kornia
import pytest
import torch
from scipy.ndimage import gaussian_filter
from skimage.metrics import structural_similarity
from torch import nn

from dataset import PairDataset, named_pairs
from loss import (
    DistillationLoss,
    FrequencyContrastiveLoss,
    FusionLoss,
    LuminanceLoss,
    SaliencyStructureLoss,
    SSIMLoss,
    above_deviation,
    adaptive_weight,
    global_ssim,
    max_normalised,
    sobel,
    standardised,
    texture_mask,
    weighted_ssim,
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


@pytest.mark.parametrize("form", ["l2", "rms", "mean"])
def test_saliency_structure_loss_by_hand(form):
    ir, vis = hot_scene()
    m_prime = noise(4, 32)
    total, terms = SaliencyStructureLoss(lambda_1=0.3, form=form)(m_prime, ir, vis)
    hot = ir > ir.mean() + ir.std(correction=0)
    gradient = sobel(vis)
    textured = gradient > gradient.mean()
    if form == "l2":        # square root of the sum of squares, as Eq. 6 and 7 print
        edges = (sobel(m_prime) - sobel(ir)).square().sum().sqrt()
        texture, heat = (m_prime * textured).square().sum().sqrt(), (m_prime * hot).square().sum().sqrt()
    elif form == "rms":
        edges = (sobel(m_prime) - sobel(ir)).square().mean().sqrt()
        texture, heat = (m_prime * textured).square().mean().sqrt(), (m_prime * hot).square().mean().sqrt()
    else:
        edges = (sobel(m_prime) / sobel(m_prime).max() - sobel(ir) / sobel(ir).max()).square().mean()
        texture, heat = (m_prime * textured).mean(), (m_prime * hot).mean()
    torch.testing.assert_close(terms["L_reg"], -heat)
    torch.testing.assert_close(terms["L_grad"], edges - 0.3 * texture)
    torch.testing.assert_close(total, terms["L_grad"] + terms["L_reg"])
    torch.testing.assert_close(terms["M_edge"], sobel(m_prime).max())


def test_l2_norms_of_known_maps():
    """One hot pixel in IR, a flat M' = 1/2: no edges of M', so L_grad is the norm of IR's own, 16 neighbours of it."""
    ir, vis, m_prime = constant(0, 16), constant(0.5, 16), constant(0.5, 16)
    ir[..., 8, 8] = 1
    _, terms = SaliencyStructureLoss(form="l2")(m_prime, ir, vis)
    # Around one pixel the squared Sobel magnitudes are 2 at the corners and 4 at the sides, 0 on the pixel itself.
    torch.testing.assert_close(terms["L_grad"], torch.tensor(4 * 2.0 + 4 * 4.0).sqrt())
    torch.testing.assert_close(terms["L_reg"], torch.tensor(-0.5))
    assert terms["M_edge"] == 0


def test_the_l2_form_grows_with_the_crop_and_the_others_do_not():
    small, large = (torch.cat([noise(i, 16)] * times, 3) for i, times in ((1, 1), (1, 4)))
    for form, expected in (("l2", 2.0), ("rms", 1.0), ("mean", 1.0)):
        values = [SaliencyStructureLoss(form=form)(x, x, x)[1]["L_reg"] for x in (small, large)]
        assert (values[1] / values[0]).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("form", ["l2", "rms", "mean"])
@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_a_flat_map_has_finite_gradients(form, value):
    """sqrt has an infinite derivative at 0: of a flat map's Sobel magnitude, and of the norm of an image of zeros."""
    for ir, vis in (hot_scene(), (constant(0.4, 32), constant(0.4, 32))):
        m_prime = constant(value, 32).requires_grad_()
        total, _ = SaliencyStructureLoss(form=form)(m_prime, ir, vis)
        total.backward()
        assert total.isfinite() and m_prime.grad.isfinite().all()


@pytest.mark.parametrize("form", ["l2", "rms", "mean"])
def test_saliency_loss_rewards_a_response_on_the_target(form):
    ir, vis = hot_scene()
    loss = SaliencyStructureLoss(form=form)
    target = above_deviation(ir)
    assert loss(0.9 * target, ir, vis)[0] < loss(0.9 * target.flip(3).roll(9, 2), ir, vis)[0]


def test_a_map_that_fades_is_not_blown_up_but_a_faint_one_counts_in_full():
    ir, vis = hot_scene()
    loss = SaliencyStructureLoss(lambda_1=0, form="mean")
    full, faint, fading = (loss(1 - scale * (1 - ir), ir, vis)[1] for scale in (0.5, 5e-3, 1e-6))
    torch.testing.assert_close(full["L_grad"], torch.tensor(0.0), atol=1e-6, rtol=0)
    torch.testing.assert_close(faint["L_grad"], torch.tensor(0.0), atol=1e-5, rtol=0)
    assert fading["L_grad"] > 0.9 * max_normalised(sobel(ir)).square().mean()
    assert full["M_edge"] > 1 and fading["M_edge"] < 1e-4


# --- Eq. 9-12 ---


@pytest.mark.parametrize("plus", [False, True])
def test_w_is_equation_9(plus):
    ir, vis = noise(0), noise(1)

    def saliency(x):
        return 1 / (1 + (-(x - x.mean()) / x.std(correction=0)).exp())

    s_ir, s_m = saliency(ir), saliency(ir - vis)
    s_en = (s_ir * (1 + s_m) + s_m * (1 + s_ir)) / 2 if plus else (s_ir * (1 - s_m) + s_m * (1 - s_ir)) / 2
    expected = (s_en > s_en.mean() + s_en.std(correction=0)).float()
    assert torch.equal(adaptive_weight(ir, vis, plus), expected) and 0 < expected.mean() < 0.5


@pytest.mark.parametrize("plus", [False, True])
def test_w_of_a_flat_infrared_image_does_not_depend_on_its_level(plus):
    """The mean of a constant image is not always exact, and the mask must not follow the rounding."""
    vis = noise(1, 128)
    masks = [adaptive_weight(torch.full_like(vis, level / 255), vis, plus) for level in (0, 51, 100, 128, 200)]
    assert all(torch.equal(mask, masks[0]) for mask in masks)
    assert all(standardised(torch.full_like(vis, level / 255)).abs().max() == 0 for level in range(256))
    assert standardised(torch.full((1, 1, 5120, 5120), 225 / 255)).abs().max() == 0       # of large images, too


def test_w_picks_the_hot_target_and_the_printed_form_misses_it():
    ir, vis = hot_scene()
    hot = torch.zeros_like(ir)
    hot[..., 12:18, 12:18] = 1
    assert torch.equal(adaptive_weight(ir, vis, plus=True), hot)
    assert (adaptive_weight(ir, vis) * hot).sum() == 0


@pytest.mark.parametrize("weight", ["printed", "plus"])
def test_contrastive_loss_is_equations_10_to_12(weight):
    ir, vis, fused = noise(0), noise(1), noise(2)
    w = adaptive_weight(ir, vis, plus=weight == "plus")
    assert 0 < w.sum() < w.numel()
    v = 1 - w

    def d(a, b):    # every transform on its own, as printed
        return (torch.fft.fft2(a, norm="ortho") - torch.fft.fft2(b, norm="ortho")).abs().mean()

    positive = d(fused * w, ir * w) + d(fused * v, vis * v)
    negative = d(fused * w, ir * v) + d(fused * w, vis * w) + d(fused * v, ir * w) + d(fused * v, vis * v)
    loss, terms = FrequencyContrastiveLoss(weight=weight)(fused, ir, vis)
    torch.testing.assert_close(loss, positive / (negative + 1e-9))
    torch.testing.assert_close(terms["D_pos"], positive)
    torch.testing.assert_close(FrequencyContrastiveLoss(negatives=False, weight=weight)(fused, ir, vis)[0], positive)


def test_contrastive_loss_of_the_ideal_image_is_zero():
    ir, vis = hot_scene()
    w = adaptive_weight(ir, vis, plus=True)
    for domain in ("frequency", "spatial"):
        loss = FrequencyContrastiveLoss(domain, weight="plus")
        assert loss(ir * w + vis * (1 - w), ir, vis)[0] == 0
        assert loss((ir + vis) / 2, ir, vis)[0] > 0.1


def test_spatial_domain_and_no_weight():
    ir, vis, fused = noise(0), noise(1), noise(2)
    without = FrequencyContrastiveLoss("spatial", weight="none")(fused, ir, vis)[0]
    torch.testing.assert_close(without, (fused - ir).abs().mean() + (fused - vis).abs().mean())
    w = adaptive_weight(ir, vis)
    positive = (fused * w - ir * w).abs().mean() + (fused - vis).mul(1 - w).abs().mean()
    torch.testing.assert_close(FrequencyContrastiveLoss("spatial", negatives=False)(fused, ir, vis)[0], positive)


def test_distance_of_one_pixel_is_flat_in_frequency():
    """An impulse has the same magnitude at every frequency: 1 / sqrt(HW) with the ortho norm."""
    impulse = constant(0, 16)
    impulse[..., 3, 5] = 1
    distance = FrequencyContrastiveLoss().distance(impulse, constant(0, 16))
    torch.testing.assert_close(distance, torch.tensor([1 / 16]))


def test_unknown_options_are_refused():
    for loss, options, message in ((FrequencyContrastiveLoss, {"domain": "wavelet"}, "domain='wavelet'"),
                                   (FrequencyContrastiveLoss, {"weight": "soft"}, "weight='soft'"),
                                   (SaliencyStructureLoss, {"form": "l1"}, "form='l1'; choose from l2, rms, mean")):
        with pytest.raises(ValueError, match=message):
            loss(**options)


# --- Eq. 8, 13, 14 ---


OURS = {"window": 7, "weighted": True, "whole": True}         # of the recipes contrast and medical


def test_structure_loss_is_one_minus_ssim_with_each_source_summed():
    """Eq. 13 by scikit-image: Gaussian windows of 11 pixels and sigma 1.5."""
    fused, ir, vis = noise(0), (noise(0) + noise(1)) / 2, noise(2)
    expected = 0.0
    for source in (ir, vis):
        a, b = (x[0, 0].double().numpy() for x in (fused, source))
        score, places = structural_similarity(a, b, gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
                                              data_range=1.0, full=True)
        expected += 1 - places[5:-5, 5:-5].mean()       # borders are mirrored in two ways
    got = SSIMLoss()(fused, ir, vis)[0]
    inner = sum(2 * kornia.losses.ssim_loss(fused, s, 11, reduction="none")[..., 5:-5, 5:-5].mean() for s in (ir, vis))
    assert inner.item() == pytest.approx(expected, abs=1e-4)
    whole = kornia.losses.ssim_loss(fused, ir, 11) + kornia.losses.ssim_loss(fused, vis, 11)
    torch.testing.assert_close(got, 2 * whole)


def test_structure_loss_by_hand():
    x = noise(0)
    for loss in (SSIMLoss(), SSIMLoss(**OURS)):
        assert loss(x, x, x)[0].abs() < 1e-5
    # Two constant images: SSIM is the luminance factor alone, and there is no contrast to miss.
    a, b = 0.2, 0.6
    ssim = (2 * a * b + 0.01**2) / (a * a + b * b + 0.01**2)
    pair = constant(a), constant(a), constant(b)
    torch.testing.assert_close(SSIMLoss()(*pair)[0], torch.tensor(1 - ssim), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(SSIMLoss(whole=True)(*pair)[0], torch.tensor((1 - ssim) / 2), atol=1e-4, rtol=1e-4)
    assert SSIMLoss(**OURS)(*pair)[0].abs() < 1e-3
    # An image against its negative: the structure factor alone, -2 s^2 + C2 over 2 s^2 + C2, near -1.
    strong = SSIMLoss()(x, 1 - x, 1 - x)[0]
    assert 3 < strong < 4


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
        best, worse = (SSIMLoss(7, weighted=True)(fused, *sources)[0] for fused in (texture, faded))
        assert best.abs() < 1e-4 and worse > 0.1
        # With equal weights, half of the contrast counts for more than half of the similarity.
        best, worse = (SSIMLoss()(fused, *sources)[0] for fused in (texture, faded))
        assert worse - best < 0.1


def test_global_ssim_is_image_by_image_and_blind_to_brightness():
    x = noise(0, batch=2)
    x[1] = x[1] * 0.1                                           # a neighbour with little contrast
    c2 = 0.03**2
    for scale in (1.0, 0.5):
        variance = x.var((1, 2, 3), keepdim=True, correction=0)
        expected = (2 * scale * variance + c2) / ((1 + scale**2) * variance + c2)
        torch.testing.assert_close(global_ssim(x * scale + 0.1, (x, x)), expected)


def test_global_ssim_wants_the_variance_of_both_contents_and_what_they_share_once():
    wave = torch.sin(torch.arange(256) * torch.pi / 16).expand(256, 256)[None, None]
    across, along = 0.5 + 0.1 * wave, 0.5 + 0.2 * wave.mT       # uncorrelated
    cases = {"two contents": ((across, along), 0.5 + 0.1 * wave + 0.2 * wave.mT),
             "one content": ((across, across), across),
             "one and a flat source": ((across, constant(0.3, 256)), across)}
    for name, (sources, both) in cases.items():
        gains = torch.linspace(0.5, 1.5, 21)
        scores = [global_ssim(0.5 + gain * (both - 0.5), sources).item() for gain in gains]
        assert gains[scores.index(max(scores))].item() == pytest.approx(1, abs=0.051), name


def test_the_whole_asks_for_the_contrast_between_regions_that_windows_give_up():
    """Waves along and across: their average has less contrast than either source."""
    wave = 0.5 + 0.2 * torch.sin(torch.arange(128) / 10).expand(128, 128)[None, None]
    ir, vis = wave, wave.mT
    average = (ir + vis) / 2
    strong = 0.5 + (average - 0.5) * 2**0.5             # as much as each source has
    assert SSIMLoss(**OURS)(strong, ir, vis)[0] < SSIMLoss(**OURS)(average, ir, vis)[0] - 0.005
    assert SSIMLoss(3)(strong, ir, vis)[0] > SSIMLoss(3)(average, ir, vis)[0]


def test_luminance_loss_by_hand():
    """Flat sources have no targets (w = 0): the local mean of the visible image, 0.2 here, is wanted everywhere."""
    loss = LuminanceLoss()
    torch.testing.assert_close(loss(constant(0.5), constant(0.9), constant(0.2))[0], torch.tensor(0.3 / 0.3))
    torch.testing.assert_close(loss(constant(0.1), constant(0.9), constant(0.2))[0], torch.tensor(0.1 / 0.3))
    torch.testing.assert_close(loss(constant(0.1), constant(0.9), constant(0.0))[0], torch.tensor(0.1 / 0.1))
    ir, vis = hot_scene()
    w = adaptive_weight(ir, vis, plus=True)
    wanted = w * ir + (1 - w) * vis
    total, terms = loss(wanted, ir, vis)
    assert total == 0 and terms == {"L_l": total}
    assert 0.1 / 1.1 < loss(wanted + 0.1, ir, vis)[0] < 0.1 / 0.1


def test_luminance_loss_sees_local_means_alone():
    """scipy's Gaussian of sigma 4, cut at 3 sigma; detail that averages out in it costs little."""
    fused, ir, vis = (noise(i, 40) for i in range(3))
    w = adaptive_weight(ir, vis, plus=True)
    wanted = w * ir + (1 - w) * vis
    difference, level = (gaussian_filter(x[0, 0].double().numpy(), 4.0, mode="mirror", radius=12)
                         for x in (fused - wanted, wanted))
    expected = (abs(difference) / (level + 0.1)).mean()
    assert LuminanceLoss()(fused, ir, vis)[0].item() == pytest.approx(expected, rel=1e-3)
    checks = 0.2 * (torch.arange(48)[:, None] + torch.arange(48)).fmod(2).sub(0.5)[None, None]
    flat = constant(0.5, 48)
    assert LuminanceLoss()(flat + checks, flat, flat)[0] < 1e-3


def test_a_teacher_stays_in_eval_mode_and_in_float32():
    teacher = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1))

    class Student(nn.Module):
        def __init__(self):
            super().__init__()
            self.loss = DistillationLoss(teacher)

    teacher.forward = lambda ir, vis_y: nn.Sequential.forward(teacher, ir).sigmoid()
    system, images = Student(), [noise(seed) for seed in range(3)]
    expected = system.loss(images[0], None, *images[1:])[0]
    before = teacher[1].running_mean.clone()
    assert system.train().loss.training and not any(module.training for module in teacher.modules())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(system.loss(images[0], None, *images[1:])[0], expected)
    assert torch.equal(teacher[1].running_mean, before)
    teacher.double()
    torch.testing.assert_close(system.loss(*(x.double() for x in (images[0], *images)))[0], expected)


@pytest.mark.parametrize("loss", [FusionLoss.paper(), FusionLoss.contrast(), DistillationLoss(nn.Bilinear(1, 1, 1))])
def test_terms_for_the_log_hold_no_graph(loss):
    if isinstance(loss, DistillationLoss):
        loss.teacher.forward = lambda ir, vis_y: vis_y
    fused, m_prime, ir, vis = (noise(seed).requires_grad_() for seed in range(4))
    total, terms = loss(fused, m_prime, ir, vis)
    assert total.requires_grad and not any(term.requires_grad for term in terms.values())
    assert torch.equal(terms["L_total"], total)


def test_distillation_is_the_distance_to_the_teachers_picture():
    """Of constants by hand: |0.2 - 0.6|, and SSIM's luminance factor alone."""
    loss = DistillationLoss(nn.Bilinear(1, 1, 1))           # any module; its picture is set below
    loss.teacher.forward = lambda ir, vis_y: 1 * vis_y
    fused, ir, vis = (constant(value).requires_grad_() for value in (0.2, 0.9, 0.6))
    total, terms = loss(fused, None, ir, vis)
    ssim = (2 * 0.2 * 0.6 + 1e-4) / (0.2**2 + 0.6**2 + 1e-4)
    assert terms["L_1"].item() == pytest.approx(0.4) and terms["L_ssim"].item() == pytest.approx(1 - ssim, rel=1e-3)
    torch.testing.assert_close(total, terms["L_1"] + terms["L_ssim"])
    total.backward()
    assert fused.grad.abs().sum() > 0 and vis.grad is None          # nothing is taught to the teacher
    assert loss(vis, None, ir, vis)[0] < 1e-6
    with pytest.raises(ValueError, match="divide 8-bit images by 255"):
        loss.fusion(fused, 255 * ir, vis)


def test_total_is_the_weighted_sum_and_none_switches_a_term_off():
    fused, m_prime, ir, vis = (noise(i) for i in range(4))
    total, terms = FusionLoss.paper()(fused, m_prime, ir, vis)
    expected = terms["L_c"] + 5 * terms["L_s"] + terms["L_grad"] + terms["L_reg"]
    torch.testing.assert_close(total, expected)
    assert terms.keys() == {"L_total", "L_c", "D_pos", "D_neg", "L_s", "L_grad", "L_reg", "M_edge"}
    only, terms = FusionLoss(contrastive=FrequencyContrastiveLoss())(fused, None, ir, vis)
    assert "L_s" not in terms and "L_grad" not in terms
    torch.testing.assert_close(only, terms["L_c"])
    loss = FusionLoss(structure=SSIMLoss(), luminance=LuminanceLoss(), lambda_2=2, lambda_3=3)
    total, terms = loss(fused, None, ir, vis)
    torch.testing.assert_close(total, 2 * terms["L_s"] + 3 * terms["L_l"])


def test_the_fusion_terms_are_those_that_need_no_decoder():
    fused, m_prime, ir, vis = (noise(i) for i in range(4))
    loss = FusionLoss(FrequencyContrastiveLoss(), SSIMLoss(), SaliencyStructureLoss(), LuminanceLoss())
    value, terms = loss.fusion(fused, ir, vis)
    assert "L_reg" not in terms and "L_l" in terms
    total, all_terms = loss(fused, m_prime, ir, vis)
    torch.testing.assert_close(total, value + all_terms["L_grad"] + all_terms["L_reg"])


@pytest.mark.parametrize("loss", [
    FusionLoss.paper(),
    FusionLoss(FrequencyContrastiveLoss(weight="plus"), SSIMLoss(**OURS), SaliencyStructureLoss(form="mean"),
               LuminanceLoss(), 5, 5),
], ids=["paper", "contrast"])
def test_loss_of_a_batch_is_the_mean_of_its_images(loss):
    fused, m_prime, ir, vis = (noise(i, batch=3) * torch.tensor([1, 0.1, 0.6])[:, None, None, None] for i in range(4))
    alone = torch.stack([loss(*(x[i:i + 1] for x in (fused, m_prime, ir, vis)))[0] for i in range(3)])
    torch.testing.assert_close(loss(fused, m_prime, ir, vis)[0], alone.mean(), atol=1e-5, rtol=1e-5)


# --- finite everywhere ---

SOURCES = {
    "constant": (constant(0.3), constant(0.7)),
    "identical": (noise(0), noise(0)),
    "black": (constant(0), constant(0)),
    "white": (constant(1), constant(1)),
    "one pixel": (torch.nn.functional.pad(torch.ones(1, 1, 1, 1), (3, 20, 5, 18)), noise(1)),
}
LOSSES = {
    "paper": FusionLoss.paper(),
    "contrast recipe": FusionLoss(FrequencyContrastiveLoss(weight="plus"), SSIMLoss(**OURS), SaliencyStructureLoss(form="mean"),
                                  LuminanceLoss(), 5, 5),
    "spatial": FusionLoss(FrequencyContrastiveLoss("spatial")),
    "no negatives": FusionLoss(FrequencyContrastiveLoss(negatives=False)),
    "no weight": FusionLoss(FrequencyContrastiveLoss(weight="none")),
    "windows": FusionLoss(None, SSIMLoss(7, weighted=True)),
    "whole": FusionLoss(None, SSIMLoss(whole=True)),
}


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("sources", SOURCES.values(), ids=SOURCES.keys())
@pytest.mark.parametrize("output", ["noise", "flat", "source"])
def test_gradients_are_finite(sources, output, autocast):
    ir, vis = sources
    start = {"noise": noise(5), "flat": constant(0.5), "source": vis.clone()}[output]
    for name, loss in LOSSES.items():
        fused, m_prime = start.clone().requires_grad_(), start.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            dtype = torch.bfloat16 if autocast else torch.float32
            total, _ = loss(fused.to(dtype), m_prime.to(dtype), ir, vis)
        total.backward()
        assert total.dtype == torch.float32 and total.isfinite(), name
        assert fused.grad.isfinite().all(), name
        assert (m_prime.grad is None) == (loss.saliency is None), name
        assert m_prime.grad is None or m_prime.grad.isfinite().all(), name


def test_w_covers_the_hot_pixels_of_real_pairs(data_root):
    """Share of the hot pixels (IR > mean + std) that w marks, over the 40 validation pairs; `-s` prints it."""
    pairs = PairDataset(named_pairs("roadscene", data_root / "RoadScene", "val"))
    coverage = {}
    for plus in (False, True):
        shares = []
        for ir, vis in pairs.items:
            ir, vis = (torch.from_numpy(x[None]) / 255 for x in (ir, vis))
            hot = above_deviation(ir)
            shares.append(((adaptive_weight(ir, vis, plus) * hot).sum() / hot.sum()).item())
        coverage[plus] = sum(shares) / len(shares)
    print(f"hot pixels that w covers: {coverage[True]:.2f}, with Eq. 9 as printed: {coverage[False]:.2f}")
    assert coverage[True] > 0.8 and coverage[False] < 0.1


# --- what is refused ---

EACH = [FrequencyContrastiveLoss(), SSIMLoss(3), LuminanceLoss(1.0), SaliencyStructureLoss()]


def refused(loss, *images):
    with pytest.raises(ValueError) as error:
        loss(*images)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("loss", EACH, ids=lambda loss: type(loss).__name__)
def test_images_that_are_none_are_refused_by_each_loss(loss):
    x = noise(0)
    first = "m_prime" if isinstance(loss, SaliencyStructureLoss) else "fused"
    assert "expected images of one shape" in refused(loss, x, x, noise(0, 20))
    assert "expected images of one shape" in refused(loss, x.expand(-1, 3, -1, -1), x, x)
    assert "take Y of YCbCr" in refused(loss, *[x.expand(-1, 3, -1, -1)] * 3)
    assert "expected images of one shape" in refused(loss, *[x[0]] * 3)
    assert "expected images of one shape" in refused(loss, *[x.numpy()] * 3)
    assert f"{first} ndarray" in refused(loss, x.numpy(), x, x)
    assert "the batch is empty" in refused(loss, *[x[:0]] * 3)
    assert "too small" in refused(loss, *[x[..., :1]] * 3)
    assert "ir is torch.uint8" in refused(loss, x, (x * 255).byte(), x)
    assert "vis_y has values from" in refused(loss, x, x, x * 255)
    assert "ir has values from -" in refused(loss, x, x * 2 - 1, x)
    assert f"{first} has values from" in refused(loss, x * 255, x, x)
    assert "on meta and ir on cpu" in refused(loss, x, x, x.to("meta"))


def test_a_fused_image_may_leave_the_range_a_little_and_a_diverged_one_shows_in_the_loss():
    ir, vis = noise(0), noise(1)
    for loss in EACH[:3]:
        assert loss(noise(2) * 1.5 - 0.25, ir, vis)[0].isfinite()
        assert loss(ir + torch.nan, ir, vis)[0].isnan()
        assert loss(ir, ir + 1e-4, vis - 1e-4)[0].isfinite()        # rounding of an interpolation


def test_on_a_gpu_the_range_is_looked_at_once(monkeypatch):
    """Each look waits for the GPU; here a device of another name stands in for one."""
    loss, looks, x = SSIMLoss(3), [], noise(0)
    monkeypatch.setattr("loss.check_range", lambda name, *args: not looks.append(name))
    loss.check(fused=x, ir=x, vis_y=x)
    loss.check(fused=x, ir=x, vis_y=x)
    assert looks == ["fused", "ir", "vis_y"] * 2
    looks.clear()
    images = {name: x.to("meta") for name in ("fused", "ir", "vis_y")}
    loss.check(**images)        # looks at the CPU do not count
    loss.check(**images)
    assert looks == ["fused", "ir", "vis_y"]


@pytest.mark.parametrize("loss", [FusionLoss.paper(), FusionLoss.contrast()], ids=["paper", "contrast"])
def test_losses_in_function_transforms_and_in_one_compiled_graph(loss):
    """There the range of values cannot be looked at."""
    images = [noise(seed)[None].expand(3, -1, -1, -1, -1) * torch.tensor([0.5, 0.7, 1]).view(3, 1, 1, 1, 1)
              for seed in range(3)]

    def total(fused, ir, vis_y):
        return loss(fused, ir, ir, vis_y)[0]        # the infrared stands in for M'

    each = torch.stack([total(*item) for item in zip(*images)])
    torch.testing.assert_close(torch.func.vmap(total)(*images), each)
    compiled = torch.compile(total, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(*(image[0] for image in images)), each[0])


@pytest.mark.parametrize("window", [0, 1, 4, -3, 2.5, 7.0, True, None, "7"])
def test_windows_without_a_middle_are_refused(window):
    with pytest.raises(ValueError, match=f"window={window!r}; an odd number of pixels from 3"):
        SSIMLoss(window)


def test_images_smaller_than_a_window_are_refused():
    assert "SSIMLoss needs 11 pixels each side" in refused(SSIMLoss(), *[noise(0, 10)] * 3)
    assert SSIMLoss()(*[noise(0, 11)] * 3)[0].abs() < 1e-5
    assert "LuminanceLoss needs 13 pixels each side" in refused(LuminanceLoss(), *[noise(0, 12)] * 3)
    assert LuminanceLoss()(*[noise(0, 13)] * 3)[0].abs() < 1e-5


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1, "5", True, None])
def test_weights_that_are_no_weights_are_refused(value):
    for make in (lambda: SaliencyStructureLoss(lambda_1=value), lambda: LuminanceLoss(sigma=value),
                 lambda: FusionLoss(SSIMLoss(), lambda_2=value), lambda: FusionLoss(SSIMLoss(), lambda_3=value)):
        with pytest.raises(ValueError, match=f"={value!r}; a finite number"):
            make()


def test_a_loss_without_terms_or_without_its_decoder_says_what_to_do():
    with pytest.raises(ValueError, match=r"no terms; FusionLoss.paper\(\)"):
        FusionLoss()
    fused, ir, vis = (noise(i) for i in range(3))
    loss = FusionLoss.paper()
    with pytest.raises(ValueError, match="m_prime is None.*FusionLoss.fusion"):
        loss(fused, None, ir, vis)
    total, terms = loss.fusion(fused, ir, vis)      # the way for a network that has no M'
    torch.testing.assert_close(total, terms["L_c"] + 5 * terms["L_s"])


def test_rounding_noise_in_a_flat_image_is_no_edge():
    assert (sobel(constant(0.3) + 1e-7 * noise()) == 0).all()


def test_a_faint_map_is_divided_by_a_thousandth():
    torch.testing.assert_close(max_normalised(constant(1e-4)), constant(0.1))


def test_the_limits_of_the_range():
    x = noise(0)
    for loss in EACH[:3]:
        assert "ir has values from" in refused(loss, x, 1.01 * x / x.max(), x)
        for end in (-1.1, 2.1):
            assert "fused has values from" in refused(loss, end * x / x.max(), x, x)


def test_contents_that_oppose_each_other_are_not_wanted_twice():
    wave = 0.1 * torch.sin(torch.arange(256) * torch.pi / 16).expand(256, 256)[None, None]
    first, second = wave, wave.mT - wave / 2
    (a, b), shared, c2 = (x.square().mean() for x in (first, second)), (first * second).mean(), 0.03**2
    contrast = (2 * (a * (a + b)).sqrt() + c2) / (2 * a + b + c2)
    structure = (1 + (shared + c2 / 2) / ((a * b).sqrt() + c2 / 2)) / 2
    assert shared < 0
    torch.testing.assert_close(global_ssim(first, (first, second)).squeeze(), contrast * structure, rtol=1e-4, atol=0)


def test_a_teacher_is_put_into_eval_mode():
    assert not DistillationLoss(nn.Dropout()).teacher.training


def test_where_both_sources_are_flat_the_fused_image_should_be():
    """As in the black background of medical images."""
    black, loss = constant(0), SSIMLoss(7, weighted=True)
    assert loss(black, black, black)[0].abs() < 1e-6
    assert loss(noise(), black, black)[0] > 0.9


def test_d_neg_of_the_log():
    loss, terms = FrequencyContrastiveLoss()(noise(2), noise(0), noise(1))
    torch.testing.assert_close(terms["D_neg"], terms["D_pos"] / loss)


def test_m_edge_is_a_mean_over_the_batch():
    x = torch.cat([noise(4), constant(0.5)])
    torch.testing.assert_close(SaliencyStructureLoss()(x, x, x)[1]["M_edge"], sobel(noise(4)).max() / 2)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
def test_autocast_changes_no_loss(loss):
    images = [noise(seed) for seed in range(4)]
    expected = loss(*images)[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(loss(*images)[0], expected)
