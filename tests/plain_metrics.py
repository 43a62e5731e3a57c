"""Every metric on its own, in the plainest NumPy, SciPy and scikit-image, to test and time `measures` against.

Written from the definitions, with nothing shared between metrics, double precision throughout.
Arguments are uint8 (H, W).
"""
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy import ndimage, stats
from skimage.measure import shannon_entropy
from skimage.metrics import mean_squared_error, structural_similarity


def sat(x):
    return np.clip(np.floor(x + 0.5), 0, 255)


def EN(f):
    return shannon_entropy(f)


def MI(f, ir, vis, protocol="definition"):
    def joint_entropy(a):
        x, y = (a, f) if protocol == "definition" else (np.minimum(v.astype(int) + 1, 255) for v in (a, f))
        counts = np.histogram2d(x.ravel(), y.ravel(), bins=np.arange(257))[0]
        return stats.entropy(counts.ravel(), base=2)
    return sum(shannon_entropy(a) + shannon_entropy(f) - joint_entropy(a) for a in (ir, vis))


def SF(f, protocol="definition"):
    def mean_square(d):
        return (d**2).mean() if protocol == "definition" else sat(sat(d)**2).mean()
    x = f.astype(float)
    return np.sqrt(mean_square(np.diff(x, axis=0)) + mean_square(np.diff(x, axis=1)))


def SD(f, protocol="definition"):
    x = f.astype(float)
    return x.std() if protocol == "definition" else np.sqrt(sat(sat(x - x.mean())**2).mean())


def AG(f):
    gy, gx = np.gradient(f.astype(float))
    return np.sqrt((gx**2 + gy**2) / 2).sum() / ((f.shape[0] - 1) * (f.shape[1] - 1))


def MSE(f, ir, vis):
    return (mean_squared_error(f / 255, ir / 255) + mean_squared_error(f / 255, vis / 255)) / 2


def PSNR(f, ir, vis):
    return 20 * np.log10(255 / np.sqrt(MSE(f, ir, vis)))


def pearson(a, b):
    return stats.pearsonr(a.ravel().astype(float), b.ravel().astype(float)).statistic


def CC(f, ir, vis):
    return (pearson(f, ir) + pearson(f, vis)) / 2


def SCD(f, ir, vis):
    f, ir, vis = (x.astype(float) for x in (f, ir, vis))
    return pearson(f - vis, ir) + pearson(f - ir, vis)


def gaussian(x, size, sigma):
    """Gaussian window, valid part."""
    k = np.exp(-(np.arange(size) - size // 2)**2 / (2 * sigma**2))
    k /= k.sum()
    r = size // 2
    return ndimage.correlate1d(ndimage.correlate1d(x, k, axis=0), k, axis=1)[r:-r, r:-r]


def vif_windows(source, f, saturate):
    """Per scale: variances of source and fused image, covariance, and the model's gain and noise, as vifp has them."""
    x, y = source.astype(float), f.astype(float)
    for scale in range(1, 5):
        size = 2**(5 - scale) + 1
        if scale > 1:
            x, y = gaussian(x, size, size / 5)[::2, ::2], gaussian(y, size, size / 5)[::2, ::2]
        product = (lambda v: np.minimum(v, 255)) if saturate and scale == 1 else (lambda v: v)
        mx, my = gaussian(x, size, size / 5), gaussian(y, size, size / 5)
        vx = np.maximum(gaussian(product(x * x), size, size / 5) - mx * mx, 0)
        vy = np.maximum(gaussian(product(y * y), size, size / 5) - my * my, 0)
        cov = gaussian(product(x * y), size, size / 5) - mx * my
        gain = cov / (vx + 1e-10)
        noise = vy - gain * cov
        flat = vx < 1e-10
        gain[flat], noise[flat] = 0, vy[flat]
        vx = np.where(flat, 0, vx)
        gain[vy < 1e-10], noise[vy < 1e-10] = 0, 0
        noise = np.maximum(np.where(gain < 0, vy, noise), 1e-10)
        yield vx, np.maximum(gain, 0), noise


def VIF(f, ir, vis, protocol="definition"):
    total = 0
    for source in (ir, vis):
        kept = there = 0
        for var, gain, noise in vif_windows(source, f, protocol == "toolbox"):
            kept += np.log10(1 + gain**2 * var / (noise + 2)).sum()
            there += np.log10(1 + var / 2).sum()
        total += kept / there
    return total


def VIFF(f, ir, vis, protocol="definition"):
    if protocol == "toolbox":
        f, ir, vis = f / 255, ir / 255, vis / 255
    total, n = 0, 0.005 * 255**2
    for weight, a, b in zip((1, 0, 0.15, 1), vif_windows(ir, f, False), vif_windows(vis, f, False)):
        smaller = a[1] < b[1]
        var, gain, noise = (np.where(smaller, x, y) for x, y in zip(a, b))
        kept, there = np.log10(1 + gain**2 * var / (noise + n)), np.log10(1 + var / n)
        total += weight / 2.15 * (kept + 1e-7).sum() / (there + 1e-7).sum()
    return total


def sobel(f, mode):
    return ndimage.sobel(f, axis=1, mode=mode), ndimage.sobel(f, axis=0, mode=mode)


def strength_ratio(a, b):
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where((a == 0) & (b == 0), 0, np.where(a > b, b / a, a / b))


def Qabf(f, ir, vis):
    def polar(x):
        gx, gy = sobel(x.astype(float), "constant")
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.hypot(gx, gy), np.where(gx == 0, np.pi / 2, -np.arctan(gy / gx))
    gf, af = polar(f)
    kept = there = 0
    for source in (ir, vis):
        g, a = polar(source)
        ratio = np.where(g == gf, g / 255, strength_ratio(g, gf))      # as the toolboxes do, see metrics.Qabf
        q = 0.9994 / (1 + np.exp(-15 * (ratio - 0.5)))
        q *= 0.9879 / (1 + np.exp(-22 * (1 - np.abs(a - af) / (np.pi / 2) - 0.8)))
        kept, there = kept + (q * g).sum(), there + g.sum()
    return kept / there


def Nabf(f, ir, vis):
    def polar(x):
        gx, gy = (g / 8 for g in sobel(x.astype(float), "mirror"))
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.hypot(gx, gy), np.where((gx == 0) & (gy == 0), 0, np.arctan(gx / gy))
    (gf, af), (gi, ai), (gv, av) = polar(f), polar(ir), polar(vis)
    artifact = (gf > gi) & (gf > gv)
    lost = there = 0
    for g, a in ((gi, ai), (gv, av)):
        orientation = np.abs(np.abs(a - af) - np.pi / 2) * 2 / np.pi
        q = np.sqrt(0.9999 / (1 + np.exp(-19 * (strength_ratio(g, gf) - 0.5)))
                    * 0.9995 / (1 + np.exp(-22 * (orientation - 0.5))))
        weight = np.where(g >= 2, g**1.5, 0.001)
        lost, there = lost + (artifact * (1 - q) * weight).sum(), there + weight.sum()
    return lost / there


def SSIM(f, ir, vis):
    return sum(structural_similarity(f, s, data_range=255, gaussian_weights=True, sigma=1.5,
                                     use_sample_covariance=False) for s in (ir, vis)) / 2


def MS_SSIM(f, ir, vis):
    def one(x, y):
        value = 1
        for scale, weight in enumerate((0.0448, 0.2856, 0.3001, 0.2363, 0.1333)):
            if scale:
                x, y = (ndimage.uniform_filter(v, 2, mode="reflect", origin=-1)[::2, ::2] for v in (x, y))
            mx, my = gaussian(x, 11, 1.5), gaussian(y, 11, 1.5)
            cov = gaussian(x * y, 11, 1.5) - mx * my
            c1, c2 = (0.01 * 255)**2, (0.03 * 255)**2
            term = (2 * cov + c2) / (gaussian(x * x, 11, 1.5) - mx * mx + gaussian(y * y, 11, 1.5) - my * my + c2)
            if scale == 4:
                term = term * (2 * mx * my + c1) / (mx * mx + my * my + c1)
            value *= max(term.mean(), 0)**weight
        return value
    return (one(f.astype(float), ir.astype(float)) + one(f.astype(float), vis.astype(float))) / 2


def FMI(f, ir, vis):
    """The nine places one after the other, all windows of a row band at once."""
    def entropy(p):
        return -(p * np.log2(np.where(p == 0, 1, np.abs(p)))).sum(axis=-1)

    def places(x):
        w = sliding_window_view(x.astype(float), (3, 3)).transpose(0, 1, 3, 2).reshape(-1, 9)
        low, high = w.min(axis=1, keepdims=True), w.max(axis=1, keepdims=True)
        p = np.where(high > low, (w - low) / np.where(high > low, high - low, 1), 1)
        return w, p / p.sum(axis=1, keepdims=True)

    def information(wf, pf, ws, ps):
        k = np.arange(1, 10)
        sd = [np.sqrt(np.maximum((p * k**2).sum(axis=1) - (p * k).sum(axis=1)**2, 0)) for p in (pf, ps)]
        df, ds = pf - pf.mean(axis=1, keepdims=True), ps - ps.mean(axis=1, keepdims=True)
        norm = np.sqrt((df**2).sum(axis=1) * (ds**2).sum(axis=1))
        c = np.where(norm > 1e-12, (df * ds).sum(axis=1) / np.where(norm > 1e-12, norm, 1), 0)
        x, y = np.cumsum(pf, axis=1)[:, :, None], np.cumsum(ps, axis=1)[:, None, :]
        extreme = np.where((c >= 0)[:, None, None], np.minimum(x, y), np.maximum(x + y - 1, 0))
        covariance = (extreme - x * y).sum(axis=(1, 2))
        moving = sd[0] * sd[1] > 1e-9
        share = np.where(moving, c * sd[0] * sd[1] / np.where(moving, covariance, 1), 0)[:, None, None]
        coupling = np.diff(np.diff(np.pad(extreme, ((0, 0), (1, 0), (1, 0))), axis=1), axis=2)
        joint = share * coupling + (1 - share) * pf[:, :, None] * ps[:, None, :]
        both = entropy(pf) + entropy(ps)
        value = np.where(both > 0, 2 * (both - entropy(joint.reshape(-1, 81))) / np.where(both > 0, both, 1), 0)
        return np.where((wf == ws).all(axis=1), 1, value * moving)

    total = count = 0
    for top in range(0, len(f) - 2, 16):        # a band at a time: 81 doubles for every window
        band = slice(top, top + 18)
        fused = places(f[band])
        for source in (ir, vis):
            values = information(*fused, *places(source[band]))
            total, count = total + values.sum(), count + len(values)
    return total / count


# CDDFuse's evaluator: gray levels 0-255 in real numbers


def cddfuse_MI(f, ir, vis):
    def nats(a):
        joint = np.histogram2d(a.ravel(), f.ravel(), bins=np.arange(257))[0] / f.size
        independent = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0, keepdims=True)
        return (joint[joint > 0] * np.log(joint[joint > 0] / independent[joint > 0])).sum()
    return nats(ir) + nats(vis)


def cddfuse_AG(f):
    gy, gx = np.gradient(f.astype(float))
    return np.sqrt((gx**2 + gy**2) / 2).mean()


def cddfuse_MSE(f, ir, vis):
    return (mean_squared_error(f.astype(float), ir.astype(float)) + mean_squared_error(f.astype(float), vis)) / 2


def cddfuse_PSNR(f, ir, vis):
    return 10 * np.log10(int(f.max())**2 / cddfuse_MSE(f, ir, vis))


def cddfuse_Qabf(f, ir, vis):
    right = np.array([[1, 0, -1], [2, 0, -2], [1, 0, -1]])
    down = np.array([[-1, -2, -1], [0, 0, 0], [1, 2, 1]])

    def polar(x):
        gx, gy = (ndimage.correlate(x.astype(int), kernel, mode="constant") for kernel in (right, down))
        vertical = gx == 0
        return np.sqrt(gx**2 + gy**2), np.where(vertical, np.pi / 2, np.arctan(gy / np.where(vertical, 1, gx)))
    gf, af = polar(f)
    kept = there = 0
    for source in (ir, vis):
        g, a = polar(source)
        ratio = np.where(g == gf, g, strength_ratio(g, gf))
        q = 0.9994 / (1 + np.exp(-15 * (ratio - 0.5)))
        q *= 0.9879 / (1 + np.exp(-22 * (1 - np.abs(a - af) / (np.pi / 2) - 0.8)))
        kept, there = kept + (q * g).sum(), there + g.sum()
    return kept / there


def cddfuse_SSIM(f, ir, vis):
    def one(x, y):
        x, y = (sliding_window_view(z.astype(float), (7, 7)).reshape(-1, 49) for z in (x, y))
        mean_x, mean_y = x.mean(1), y.mean(1)
        covariance = ((x - mean_x[:, None]) * (y - mean_y[:, None])).sum(1) / 48
        c1, c2 = 0.02**2, 0.06**2
        return ((2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
                * (2 * covariance + c2) / (x.var(1, ddof=1) + y.var(1, ddof=1) + c2)).mean()
    return one(f, ir) + one(f, vis)


CDDFUSE = {"EN": EN, "SD": SD, "SF": SF, "MI": cddfuse_MI, "SCD": SCD, "VIF": VIF, "Qabf": cddfuse_Qabf,
           "SSIM": cddfuse_SSIM, "AG": cddfuse_AG, "PSNR": cddfuse_PSNR, "CC": CC, "MSE": cddfuse_MSE}


FUNCTIONS = {"EN": EN, "MI": MI, "SF": SF, "SD": SD, "AG": AG, "MSE": MSE, "PSNR": PSNR, "CC": CC, "SCD": SCD,
             "VIF": VIF, "VIFF": VIFF, "Qabf": Qabf, "SSIM": SSIM, "MS-SSIM": MS_SSIM, "FMI": FMI, "Nabf": Nabf}
FUSED_ONLY = {"EN", "SF", "SD", "AG"}
TOOLBOX_VARIANTS = {"MI", "SF", "SD", "VIF", "VIFF"}


def evaluate(f, ir, vis, protocol="definition", names=tuple(FUNCTIONS)):
    result = {}
    if protocol == "cddfuse":
        return {name: metric(f) if name in FUSED_ONLY else metric(f, ir, vis) for name, metric in CDDFUSE.items()}
    for name in names:
        images = (f,) if name in FUSED_ONLY else (f, ir, vis)
        result[name] = FUNCTIONS[name](*images, protocol) if name in TOOLBOX_VARIANTS else FUNCTIONS[name](*images)
    return result
