"""Losses of RPFNet: section 3.2, Eq. 5-7, and section 3.3, Eq. 8-14, of the paper.

`LuminanceLoss`, `DistillationLoss` and two options of `SSIMLoss` are ours and not in the paper.

Every module returns `(total, terms)`: a scalar to minimise, and a dict of its terms by name for the log, without
gradients. Everything is computed in float32, also under autocast. All statistics (mean, standard deviation, maximum, the
ratio of Eq. 10) are those of each image. Over a whole batch, the mask of an image would depend on the other images.

Images are floats, (B, 1, H, W) in [0, 1], of one size. Anything else raises a ValueError that says what was given. Only
the fused image may leave [0, 1]: values from -1 to 2 are accepted, because a network may end without a sigmoid.
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real

import torch
from kornia.filters import gaussian_blur2d
from torch import Tensor, nn
from torch.nn import functional as F

from layers import at_least_float32, check_range

IMAGE = (1, 2, 3)       # the axes of one image in a batch
EPSILON = 1e-9          # epsilon of Eq. 10; also added to variances, which are 0 in a constant window
SSIM_C1, SSIM_C2 = 0.01**2, 0.03**2       # constants of SSIM for images in [0, 1] (Wang et al. 2004)
SSIM_WINDOW = 11        # side of SSIM's Gaussian window, pixels
SSIM_SIGMA = 1.5        # its standard deviation, pixels
DARK = 0.1              # added to the level in LuminanceLoss; limits the weight of dark pixels
FAINT = 1e-3            # least divisor in `max_normalised`, a Sobel magnitude; a step of one 8-bit level gives 1.6e-2
ROUNDING = 1e-3         # tolerance of the range check, for interpolation and half precision
FLAT = 1e-5             # upper bound of the Sobel magnitude that rounding causes in a constant image

Terms = dict[str, Tensor]       # detached: a kept list of them would keep the graphs of all steps in memory

# ---------------------------------------------------------------------------------------------
# Helpers


def image_mean(x: Tensor) -> Tensor:
    """Mean of each image, (B, 1, H, W) -> (B, 1, 1, 1)."""
    return x.mean(IMAGE, keepdim=True)


def above_deviation(x: Tensor) -> Tensor:
    """Indicator of x > mean + standard deviation of the image, as in Eq. 7 and 9: 0 or 1, (B, 1, H, W)."""
    deviation = x.std(IMAGE, keepdim=True, correction=0)
    return (x > image_mean(x) + deviation).to(x.dtype)


def sobel(x: Tensor) -> Tensor:
    """Magnitude of the Sobel gradient, not normalised: (B, 1, H, W) -> (B, 1, H, W).

    Borders are replicated, so that the image frame is no edge. Where the image is constant, the result and its gradient
    are 0. There are two reasons: the derivative of sqrt at 0 is infinite, and `max_normalised` would amplify rounding
    noise to full edges.
    """
    # Slices in place of a convolution: with TF32, GPUs round the input to ten bits, and faint edges would be lost.
    x = F.pad(x, (1, 1, 1, 1), mode="replicate")
    columns = x[..., :-2, :] + 2 * x[..., 1:-1, :] + x[..., 2:, :]                # (B, 1, H, W + 2)
    rows = x[..., :-2] + 2 * x[..., 1:-1] + x[..., 2:]                            # (B, 1, H + 2, W)
    squared = (columns[..., 2:] - columns[..., :-2]).square() + (rows[..., 2:, :] - rows[..., :-2, :]).square()
    flat = squared < FLAT**2
    return squared.masked_fill(flat, 1).sqrt().masked_fill(flat, 0)


def max_normalised(x: Tensor) -> Tensor:
    """x / maximum of the image, (B, 1, H, W) >= 0. The divisor is at least FAINT.

    Without this bound, a map of very faint edges would be amplified to 1, and the loss would not ask for stronger ones.
    """
    return x / x.amax(IMAGE, keepdim=True).clamp_min(FAINT)


def l2_norm(x: Tensor) -> Tensor:
    """l2 norm of each image, (B, 1, H, W) -> (B,). The gradient is 0 for an image of zeros."""
    return torch.linalg.vector_norm(x, dim=IMAGE)


def detached(**terms: Tensor) -> Terms:
    """The terms without their gradients, for the log."""
    return {name: term.detach() for name, term in terms.items()}


class ImageLoss(nn.Module):
    """Base class of the losses. It checks their images."""

    smallest = 2            # least height and width of an image, pixels
    range_checked = False   # whether the range of a batch on a GPU has been checked

    def check(self, **images: Tensor) -> None:
        """Raises ValueError for images that do not fit the description at the top of this file.

        On a CPU, the range of values is checked in each batch. On a GPU it is checked in the first batch only: each
        check waits for the GPU, and a wrong range comes from the data loading, so the first batch shows it.
        """
        shapes = {name: tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__ for name, x in images.items()}
        listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        if len(set(shapes.values())) > 1 or not all(isinstance(x, Tensor) and x.dim() == 4 for x in images.values()):
            raise ValueError(f"expected images of one shape (B, 1, H, W), got {listed}")
        batch, channels, height, width = shapes["ir"]
        if channels != 1:
            raise ValueError(f"expected luminance, (B, 1, H, W), got {listed}; take Y of YCbCr from colour images")
        if not batch:
            raise ValueError("the batch is empty")
        if min(height, width) < self.smallest:
            raise ValueError(f"images of {height} x {width} are too small: {type(self).__name__} needs {self.smallest} "
                             "pixels each side")
        for name, x in images.items():
            if not x.is_floating_point():
                raise ValueError(f"{name} is {x.dtype}; expected floats in [0, 1], so divide 8-bit images by 255")
            if x.device != images["ir"].device:
                raise ValueError(f"{name} is on {x.device} and ir on {images['ir'].device}")
        on_cpu = images["ir"].device.type == "cpu"
        if on_cpu or not self.range_checked:
            seen = []
            for name, x in images.items():
                low, high, remedy = (-1, 2, "; end the network in a sigmoid") if name == "fused" else (0, 1, "")
                seen.append(check_range(name, x, low - ROUNDING, high + ROUNDING, remedy))
            if all(seen) and not on_cpu:
                self.range_checked = True


def _check_weight(name: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= value < math.inf:
        raise ValueError(f"{name}={value!r}; a finite number from 0 is needed")


def _check_choice(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name}={value!r}; choose from {', '.join(known)}")


def standardised(x: Tensor) -> Tensor:
    """(x - mean) / standard deviation of each image, (B, 1, H, W); 0 for a constant image."""
    deviation = x.std(IMAGE, keepdim=True, correction=0).clamp_min(1e-6)
    # Rounding gives a constant image a deviation above 0. Divided by it, rounding would decide on the mask of Eq. 9.
    flat = x.amax(IMAGE, keepdim=True) == x.amin(IMAGE, keepdim=True)
    return (x - image_mean(x)) / deviation.masked_fill(flat, math.inf)


# ---------------------------------------------------------------------------------------------
# Eq. 5-7


class SaliencyStructureLoss(ImageLoss):
    """L_SS = L_grad + L_reg for the output M' of the auxiliary decoder (Eq. 5-7).

        L_grad = ||grad M' - grad IR|| - lambda_1 ||m M'||      Eq. 6
        L_reg  = -||h M'||                                      Eq. 7

    grad is the Sobel magnitude, m the `texture_mask` of VIS, h is 1 where IR is above its mean plus standard deviation.

    Terms: "L_grad", "L_reg", and "M_edge", which is only for the log. M_edge is the largest Sobel magnitude of M', as a
    mean over the batch. If it is near 0, M' is constant and the edge term has no gradient.

    Args:
        lambda_1: weight of the texture term of Eq. 6, at least 0.
        form: "l2" uses the l2 norms of each image, as Eq. 6 and 7 print, which grow with the size of the crop. "rms"
            divides them by the square root of the number of pixels. "mean" uses means: the mean squared difference of
            Sobel magnitudes, each divided by its maximum, and the means of M' under the masks. With "mean" the edge
            term is scale-invariant, so M' ends close to 1 with faint edges.
    Raises:
        ValueError: an argument out of its range.
    """

    def __init__(self, lambda_1: float = 0.3, form: str = "rms"):
        super().__init__()
        _check_choice("form", form, ("l2", "rms", "mean"))
        _check_weight("lambda_1", lambda_1)
        self.lambda_1, self.form = lambda_1, form

    def forward(self, m_prime: Tensor, ir: Tensor, vis_y: Tensor) -> tuple[Tensor, Terms]:
        """(L_SS, terms) for images (B, 1, H, W) in [0, 1]. Raises ValueError for images that do not fit."""
        self.check(m_prime=m_prime, ir=ir, vis_y=vis_y)
        with torch.autocast(ir.device.type, enabled=False):
            m_prime, ir, vis_y = m_prime.float(), ir.float(), vis_y.float()
            gradient, wanted = sobel(m_prime), sobel(ir)
            textured, hot = m_prime * texture_mask(vis_y), m_prime * above_deviation(ir)
            if self.form == "mean":
                edges = F.mse_loss(max_normalised(gradient), max_normalised(wanted))
                texture, heat = textured.mean(), hot.mean()
            else:
                scale = math.sqrt(ir[0].numel()) if self.form == "rms" else 1
                edges, texture, heat = (l2_norm(x).mean() / scale for x in (gradient - wanted, textured, hot))
        grad, reg = edges - self.lambda_1 * texture, -heat
        return grad + reg, detached(L_grad=grad, L_reg=reg, M_edge=gradient.amax(IMAGE).mean())


def texture_mask(vis_y: Tensor) -> Tensor:
    """Mask m of Eq. 6: 1 where the Sobel magnitude is above its mean over the image, else 0. (B, 1, H, W)"""
    gradient = sobel(vis_y)
    return (gradient > image_mean(gradient)).to(vis_y.dtype)


# ---------------------------------------------------------------------------------------------
# Eq. 9-12


def adaptive_weight(ir: Tensor, vis_y: Tensor, plus: bool = False) -> Tensor:
    """w of Eq. 9: 1 on infrared targets, where the fused image should follow the infrared; 0 elsewhere. (B, 1, H, W)

    Both saliencies are combined as S_en = (S_IR (1 - S_M) + S_M (1 - S_IR)) / 2. This is small where both saliencies are
    high, so it misses the hot targets. plus: with (1 + S) in place of (1 - S), which is ours.
    """
    s_ir, s_m = torch.sigmoid(standardised(ir)), torch.sigmoid(standardised(ir - vis_y))
    sign = 1 if plus else -1
    s_en = (s_ir * (1 + sign * s_m) + s_m * (1 + sign * s_ir)) / 2
    return above_deviation(s_en)


class FrequencyContrastiveLoss(ImageLoss):
    """L_c in the frequency domain, with w of Eq. 9 and v = 1 - w.

        L_c   = D_pos / (D_neg + epsilon)                                       Eq. 10
        D_pos = d(F w, IR w) + d(F v, VIS v)                                    Eq. 11
        D_neg = d(F w, IR v) + d(F w, VIS w) + d(F v, IR w) + d(F v, VIS v)     Eq. 12

    d is the mean magnitude of the difference of two spectra, see `distance`. The loss pulls each region of the
    fused image to one source (infrared where w = 1, visible elsewhere) and pushes it away from the other. The last
    negative pair is also a positive pair, as the paper prints.

    Args:
        domain: "frequency", or "spatial" for the ablation "w/o freq. domain L_c".
        negatives: False uses D_pos only, the ablation "L_c => freq. l1-norm".
        weight: "printed" (Eq. 9), "plus" (with 1 + S in place of 1 - S), or "none" for the ablation "w/o w": D_pos pulls
            the whole fused image to both sources, and there are no negative pairs.
    Raises:
        ValueError: an unknown choice.
    """

    def __init__(self, domain: str = "frequency", negatives: bool = True, weight: str = "printed"):
        super().__init__()
        _check_choice("domain", domain, ("frequency", "spatial"))
        _check_choice("weight", weight, ("printed", "plus", "none"))
        self.domain, self.negatives, self.weight = domain, negatives, weight

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """Mean magnitude of the difference of spectra (or of images), one value for each image: (B,)."""
        difference = a - b      # the FFT is linear, so one FFT of the difference is enough
        if self.domain == "frequency":
            difference = torch.fft.fft2(difference, norm="ortho")
        return difference.abs().mean(IMAGE)

    def forward(self, fused: Tensor, ir: Tensor, vis_y: Tensor) -> tuple[Tensor, Terms]:
        """(L_c, terms) for images (B, 1, H, W) in [0, 1]. Raises ValueError for images that do not fit."""
        self.check(fused=fused, ir=ir, vis_y=vis_y)
        with torch.autocast(ir.device.type, enabled=False):
            fused, ir, vis_y = fused.float(), ir.float(), vis_y.float()
            if self.weight == "none":
                return self._positive_alone(self.distance(fused, ir) + self.distance(fused, vis_y))
            w = adaptive_weight(ir, vis_y, plus=self.weight == "plus")
            rest = 1 - w
            background = self.distance(fused * rest, vis_y * rest)
            positive = self.distance(fused * w, ir * w) + background                       # Eq. 11
            if not self.negatives:
                return self._positive_alone(positive)
            negative = (self.distance(fused * w, ir * rest) + self.distance(fused * w, vis_y * w)
                        + self.distance(fused * rest, ir * w) + background)                # Eq. 12
            loss = (positive / (negative + EPSILON)).mean()                                # Eq. 10
        return loss, detached(L_c=loss, D_pos=positive.mean(), D_neg=negative.mean())

    @staticmethod
    def _positive_alone(positive: Tensor) -> tuple[Tensor, Terms]:
        loss = positive.mean()
        return loss, detached(L_c=loss, D_pos=loss)


# ---------------------------------------------------------------------------------------------
# Eq. 8, 13, 14


def contrast_structure(covariance: Tensor, variance_a: Tensor, variance_b: Tensor) -> Tensor:
    """Product of the contrast and structure factors of SSIM (Wang et al. 2004)."""
    return (2 * covariance + SSIM_C2) / (variance_a + variance_b + SSIM_C2)


def global_ssim(fused: Tensor, sources: tuple[Tensor, Tensor]) -> Tensor:
    """Structure and contrast of SSIM with the whole image as one window, (B, 1, 1, 1) in [-1, 1]. Images: (B, 1, H, W).

        (2 d_F d + C2) / (d_F^2 + d^2 + C2) mean over S of (cov_FS + C2/2) / (d_F d_S + C2/2)
        d^2 = d_IR^2 + d_VIS^2 - max(cov_IR,VIS, 0)

    d_F and d_S are standard deviations, cov covariances. The structure is compared with each source, and the two
    values are averaged. The contrast is compared once, with the contrast of an ideal image that holds the content
    of both sources: its variance is the sum of both variances minus their covariance (if positive), so that common
    content counts once. A comparison with each source alone would penalise an image that holds the content of both.
    """
    fused, first, second = (x - image_mean(x) for x in (fused, *sources))
    own, *variances = (image_mean(x * x) + EPSILON for x in (fused, first, second))
    wanted = sum(variances) - image_mean(first * second).clamp_min(0)
    contrast = contrast_structure((own * wanted).sqrt(), own, wanted)       # the structure factor is 1 here
    structures = ((image_mean(fused * x) + SSIM_C2 / 2) / ((own * variance).sqrt() + SSIM_C2 / 2)
                  for x, variance in zip((first, second), variances))
    return contrast * sum(structures) / 2


def window_statistics(fused: Tensor, sources: Sequence[Tensor], window: int) -> tuple[Tensor, Tensor, Tensor]:
    """Means, variances and covariances in Gaussian windows around each pixel; borders are reflected.

    Args:
        fused, sources: images (B, 1, H, W). There are S sources.
        window: side of the windows, pixels.
    Returns:
        (means, variances, covariances): those of F and of each source, (B, 1 + S, H, W) each, and the covariances of F
        with each source, (B, S, H, W). By rounding, a variance can be slightly negative.
    """
    stacked = torch.cat([fused, *sources, fused * fused, *(s * s for s in sources), *(fused * s for s in sources)], 1)
    blurred = gaussian_blur2d(stacked, (window, window), (SSIM_SIGMA, SSIM_SIGMA))
    means, squares, products = blurred.split((len(sources) + 1, len(sources) + 1, len(sources)), 1)
    return means, squares - means * means, products - means[:, :1] * means[:, 1:]


def ssim(fused: Tensor, sources: Sequence[Tensor], window: int) -> Tensor:
    """SSIM of F with each of S sources in Gaussian windows, (B, S, H, W) in [-1, 1] (Wang et al. 2004).

    SSIM = (2 m_F m_S + C1) / (m_F^2 + m_S^2 + C1) (2 cov_FS + C2) / (var_F + var_S + C2), with the mean m, the variance
    and the covariance of `window_statistics`. Arguments as there.
    """
    means, variances, covariance = window_statistics(fused, sources, window)
    own, others = means[:, :1], means[:, 1:]
    luminance = (2 * own * others + SSIM_C1) / (own * own + others * others + SSIM_C1)
    return luminance * contrast_structure(covariance, variances[:, :1], variances[:, 1:])


def weighted_ssim(fused: Tensor, sources: Sequence[Tensor], window: int) -> Tensor:
    """Contrast and structure of SSIM with both sources in Gaussian windows, (B, 1, H, W) in [-1, 1].

    sum over S of (2 cov_FS + C2) / (var_F + var_S + C2) var_S / (var_IR + var_VIS). In each window, each source is weighted
    by its variance (Piella and Heijmans, A new quality metric for image fusion, 2003). The fused image then takes detail
    from the source that has it. A source without detail does not flatten it. Arguments as for `window_statistics`.
    """
    _, variances, covariance = window_statistics(fused, sources, window)
    others = variances[:, 1:]
    similarity = contrast_structure(covariance, variances[:, :1], others)
    return (similarity * F.normalize(others.clamp_min(0) + EPSILON, p=1, dim=1)).sum(1, keepdim=True)


class SSIMLoss(ImageLoss):
    """L_s of Eq. 13. The paper prints a similarity and minimises it; this loss is 1 - similarity.

    Args:
        window: side of SSIM's Gaussian window in pixels, odd, at least 3. [16] of the paper has 11. Images must be at
            least this large.
        weighted: False is (1 - SSIM(F, IR)) + (1 - SSIM(F, VIS)), Eq. 13. True is ours: 1 - `weighted_ssim`, where each
            window weights the sources by their variance. With equal weights, a flat source flattens the texture of the
            other.
        whole: True is ours: 1 - `global_ssim`, which uses the whole image as one window, is added, and the sum is
            halved. Small windows alone do not ask for contrast between regions.
    Raises:
        ValueError: the window is not an odd number from 3.
    """

    def __init__(self, window: int = SSIM_WINDOW, weighted: bool = False, whole: bool = False):
        super().__init__()
        if isinstance(window, bool) or not isinstance(window, int) or window < 3 or window % 2 == 0:
            raise ValueError(f"window={window!r}; an odd number of pixels from 3 is needed")
        self.window, self.weighted, self.whole = window, weighted, whole
        self.smallest = window

    def forward(self, fused: Tensor, ir: Tensor, vis_y: Tensor) -> tuple[Tensor, Terms]:
        """(L_s, terms) for images (B, 1, H, W) in [0, 1]. Raises ValueError for images that do not fit."""
        self.check(fused=fused, ir=ir, vis_y=vis_y)
        with torch.autocast(ir.device.type, enabled=False):
            fused, sources = fused.float(), (ir.float(), vis_y.float())
            if self.weighted:
                loss = 1 - weighted_ssim(fused, sources, self.window).mean()
            else:
                loss = (1 - ssim(fused, sources, self.window)).mean((0, 2, 3)).sum()
            if self.whole:
                loss = (loss + 1 - global_ssim(fused, sources).mean()) / 2
        return loss, detached(L_s=loss)


class LuminanceLoss(ImageLoss):
    """L_l, ours: the local mean of F should be that of the infrared on targets (w = 1) and of the visible elsewhere.

    The other terms of the contrast recipe hardly constrain brightness. In the orthonormal spectrum of L_c, the mean of
    a crop has the weight 1 / side. Contrast and structure do not depend on the mean.

    L_l = mean of |G(F - T)| / (G(T) + 0.1), where T = w IR + (1 - w) VIS is the target and G is a Gaussian blur. w is
    always that of `adaptive_weight`, also if L_c has another one. An error of ten gray levels counts three times as much
    at night (T near 0.05) as by day (T near 0.4). This follows human perception.

    Args:
        sigma: standard deviation of the blur, pixels.
    Raises:
        ValueError: sigma is not a finite number above 0.
    """

    def __init__(self, sigma: float = 4.0):
        super().__init__()
        if isinstance(sigma, bool) or not isinstance(sigma, (int, float)) or not 0 < sigma < math.inf:
            raise ValueError(f"sigma={sigma!r}; a finite number of pixels above 0 is needed")
        self.sigma = sigma
        self.side = 2 * round(3 * sigma) + 1
        self.smallest = self.side // 2 + 1      # a smaller image cannot be padded by reflection

    def forward(self, fused: Tensor, ir: Tensor, vis_y: Tensor) -> tuple[Tensor, Terms]:
        """(L_l, terms) for images (B, 1, H, W) in [0, 1]. Raises ValueError for images that do not fit."""
        self.check(fused=fused, ir=ir, vis_y=vis_y)
        with torch.autocast(ir.device.type, enabled=False):
            fused, ir, vis_y = fused.float(), ir.float(), vis_y.float()
            w = adaptive_weight(ir, vis_y, plus=True)
            wanted = w * ir + (1 - w) * vis_y
            difference, level = (gaussian_blur2d(x, (self.side, self.side), (self.sigma, self.sigma))
                                 for x in (fused - wanted, wanted))
            loss = (difference.abs() / (level + DARK)).mean()
        return loss, detached(L_l=loss)


class DistillationLoss(ImageLoss):
    """Ours, for small networks: distance to the output T of a teacher network, mean |F - T| + 1 - SSIM(F, T).

    The interface is that of FusionLoss. M' is ignored. The sources are used only as input of the teacher.

    Args:
        teacher: a trained network, called as teacher(ir, vis_y). It is put into eval mode and stays in it, also when
            this loss is put into training mode. Inputs and output are (B, 1, H, W) in [0, 1].
    """

    smallest = SSIM_WINDOW

    def __init__(self, teacher: nn.Module):
        super().__init__()
        self.teacher = teacher.eval()

    def train(self, mode: bool = True) -> DistillationLoss:
        super().train(mode)
        self.teacher.eval()     # in training mode, it would change its targets and its running statistics
        return self

    def fusion(self, fused: Tensor, ir: Tensor, vis_y: Tensor) -> tuple[Tensor, Terms]:
        """Arguments, result and errors as for `FusionLoss.fusion`."""
        self.check(fused=fused, ir=ir, vis_y=vis_y)
        with torch.autocast(ir.device.type, enabled=False):
            with torch.no_grad():
                wanted = self.teacher(at_least_float32(ir), at_least_float32(vis_y))
            fused, wanted = fused.float(), wanted.float()
            absolute, structure = F.l1_loss(fused, wanted), 1 - ssim(fused, [wanted], SSIM_WINDOW).mean()
        return absolute + structure, detached(L_1=absolute, L_ssim=structure)

    def forward(self, fused: Tensor, m_prime: Tensor | None, ir: Tensor, vis_y: Tensor) -> tuple[Tensor, Terms]:
        """Arguments and result as for `FusionLoss.forward`; m_prime is ignored."""
        total, terms = self.fusion(fused, ir, vis_y)
        return total, {**detached(L_total=total), **terms}


class FusionLoss(nn.Module):
    """L_total = L_SS + L_c + lambda_2 L_s (Eq. 8 and 14), plus lambda_3 L_l if that term is given.

    Each term is a module or None. None switches the term off (the ablations "w/o L_s" and "w/o L_SS"). At least one
    term is required.

    A network without residual features has no M'. Leave `saliency` out for it, or call `fusion`, which needs only the
    fused image:

        loss = FusionLoss.paper()
        total, terms = loss.fusion(fused, ir, vis_y)

    Args:
        contrastive, structure, saliency, luminance: the terms L_c, L_s, L_SS and L_l.
        lambda_2, lambda_3: weights of L_s and L_l, at least 0.
    Raises:
        ValueError: no term is given, or a weight is out of its range.
    """

    def __init__(self, contrastive: nn.Module | None = None, structure: nn.Module | None = None,
                 saliency: nn.Module | None = None, luminance: nn.Module | None = None,
                 lambda_2: float = 5.0, lambda_3: float = 1.0):
        super().__init__()
        if all(term is None for term in (contrastive, structure, saliency, luminance)):
            raise ValueError("FusionLoss() has no terms; FusionLoss.paper() is the paper's loss")
        _check_weight("lambda_2", lambda_2)
        _check_weight("lambda_3", lambda_3)
        self.contrastive, self.structure, self.saliency, self.luminance = contrastive, structure, saliency, luminance
        self.lambda_2, self.lambda_3 = lambda_2, lambda_3

    @classmethod
    def paper(cls) -> FusionLoss:
        """The loss of the paper, with the options of recipes/paper.json."""
        return cls(FrequencyContrastiveLoss(), SSIMLoss(), SaliencyStructureLoss())

    @classmethod
    def contrast(cls) -> FusionLoss:
        """Our loss for natural pictures, with the options of recipes/contrast.json."""
        return cls(FrequencyContrastiveLoss(weight="plus"), SSIMLoss(7, weighted=True, whole=True),
                   SaliencyStructureLoss(form="mean"), LuminanceLoss(), lambda_3=2.0)

    def fusion(self, fused: Tensor, ir: Tensor, vis_y: Tensor) -> tuple[Tensor, Terms]:
        """L_F, the terms that need only the fused image (Eq. 8); arguments as for `forward`.

        Returns:
            The total, a float32 scalar, and the terms by name.
        """
        total = fused.new_zeros((), dtype=torch.float32)
        terms: Terms = {}
        for weight, term in ((1.0, self.contrastive), (self.lambda_2, self.structure), (self.lambda_3, self.luminance)):
            if term is not None:
                value, named = term(fused, ir, vis_y)
                total, terms = total + weight * value, {**terms, **named}
        return total, terms

    def forward(self, fused: Tensor, m_prime: Tensor | None, ir: Tensor, vis_y: Tensor) -> tuple[Tensor, Terms]:
        """L_total (Eq. 14).

        Args:
            fused, ir, vis_y: (B, 1, H, W) in [0, 1].
            m_prime: output of the auxiliary decoder, (B, 1, H, W) in [0, 1]; None without L_SS.
        Returns:
            The total, a float32 scalar, and the terms by name, "L_total" included.
        Raises:
            ValueError: images that do not fit, or no m_prime where L_SS needs it.
        """
        if self.saliency is not None and m_prime is None:
            raise ValueError("m_prime is None, and L_SS needs the auxiliary decoder's output; "
                             "FusionLoss.fusion is the loss without it")
        total, terms = self.fusion(fused, ir, vis_y)
        if self.saliency is not None:
            value, named = self.saliency(m_prime, ir, vis_y)
            total, terms = total + value, {**terms, **named}
        return total, {**detached(L_total=total), **terms}
