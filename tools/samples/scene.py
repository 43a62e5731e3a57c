"""Buffers and renderers of the drawn samples: one description of a scene gives a visible and an infrared image.

For each pixel it stores reflectance, emitted light, surface normal, depth, temperature and emissivity. Both renderers
read the same buffers, so the two images of a pair are exactly aligned. Lengths are in metres, temperatures in degrees
Celsius, colours in linear RGB. The camera looks along +Z, X is right, Y is up.
"""

from dataclasses import dataclass

import cv2
import numpy as np

SS = 2  # scenes are drawn at this multiple of the size, then averaged, for anti-aliasing
WIDTH, HEIGHT = 640 * SS, 480 * SS
FAR = 1e4


# ------------------------------------------------------------------ small tools
def mix(a, b, m):
    """Blend ``a`` towards ``b``. A 2-D weight is broadcast over the colour channels, if there are any."""
    if np.ndim(m) == 2 and max(np.ndim(a), np.ndim(b)) in (1, 3):
        m = m[..., None]
    return a + (np.asarray(b, np.float32) - a) * m


def tint(colour, shade):
    """A colour scaled by a 2-D map."""
    return np.asarray(colour, np.float32) * shade[..., None]


def blur(image, sigma):
    """Gaussian blur. Wide blurs are computed on a reduced image, because their result is smooth."""
    if sigma > 12:
        k = int(sigma / 5)
        small = cv2.resize(image, (WIDTH // k, HEIGHT // k), interpolation=cv2.INTER_AREA)
        return cv2.resize(cv2.GaussianBlur(small, (0, 0), sigma / k), (WIDTH, HEIGHT))
    return cv2.GaussianBlur(image, (0, 0), sigma)


def footprint(c):
    """How much a coordinate changes from one pixel to the next; used to keep patterns free of aliasing."""
    if min(c.shape) < 2:
        return np.full_like(c, 1e-3)
    gy, gx = np.gradient(c)
    return np.abs(gx) + np.abs(gy) + 1e-6


def inside(c, lo, hi, w=None):
    """1 where ``lo < c < hi`` with edges one pixel soft."""
    w = footprint(c) if w is None else w
    return np.clip((c - lo) / w + 0.5, 0, 1) * np.clip((hi - c) / w + 0.5, 0, 1)


def value_noise(tile, u, v):
    """Smoothly interpolated lattice noise in [0, 1]."""
    n = len(tile)
    iu, iv = np.floor(u).astype(np.int32), np.floor(v).astype(np.int32)
    fu, fv = u - iu, v - iv
    fu, fv = fu * fu * (3 - 2 * fu), fv * fv * (3 - 2 * fv)
    i0, i1, j0, j1 = iv % n, (iv + 1) % n, iu % n, (iu + 1) % n
    top = tile[i0, j0] * (1 - fu) + tile[i0, j1] * fu
    return top * (1 - fv) + (tile[i1, j0] * (1 - fu) + tile[i1, j1] * fu) * fv


# ------------------------------------------------------------------ the scene
@dataclass
class Patch:
    """A piece of a flat surface as the camera sees it: surface coordinates u, v in metres, and coverage."""

    box: tuple
    u: np.ndarray
    v: np.ndarray
    depth: np.ndarray
    cover: np.ndarray
    normal: np.ndarray


class Scene:
    """Per-pixel buffers of one scene, methods that paint into them, and the two renderers."""

    def __init__(self, seed, horizon, focal=1000.0, eye=1.7, air=8.0):
        self.rng = np.random.default_rng(seed)
        self.tile = self.rng.random((256, 256)).astype(np.float32)
        self.horizon, self.focal, self.eye, self.air = horizon, focal, eye, air
        y, x = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32)
        self.rx, self.ry = (x - WIDTH / 2) / focal, (y - horizon) / focal
        self.albedo = np.zeros((HEIGHT, WIDTH, 3), np.float32)
        self.emit = np.zeros_like(self.albedo)
        self.normal = np.zeros_like(self.albedo)
        self.temp = np.full((HEIGHT, WIDTH), air, np.float32)
        self.emis = np.ones_like(self.temp)
        self.depth = np.full_like(self.temp, FAR)
        self.gloss = np.zeros_like(self.temp)  # mirror strength (wet ground)
        self.shade = np.ones_like(self.temp)  # shadows that objects throw on the ground
        self.smoke = None
        self.lamps = []

    def project(self, points):
        """Pixel positions of world points."""
        p = np.asarray(points, np.float64).reshape(-1, 3)
        z = np.maximum(p[:, 2], 0.05)
        return np.stack([WIDTH / 2 + self.focal * p[:, 0] / z,
                         self.horizon + self.focal * (self.eye - p[:, 1]) / z], 1)

    def fbm(self, u, v, scale, octaves=5):
        """Fractal noise about 0 (roughly -1..1); octaves finer than a pixel fade away."""
        total, amp, norm = np.zeros_like(u), 1.0, 0.0
        w = np.maximum(footprint(u), footprint(v))
        for k in range(octaves):
            f = 2.0**k / scale
            fade = np.clip(1.6 - 1.6 * w * f, 0, 1)
            total += amp * fade * (value_noise(self.tile, u * f + 17 * k, v * f + 31 * k) * 2 - 1)
            norm, amp = norm + amp, amp * 0.6
        return total * (1.7 / norm)

    def cell(self, i, j, salt=0):
        """A repeatable random number for each integer cell."""
        i, j = np.floor(i).astype(np.int64), np.floor(j).astype(np.int64)
        return self.tile[(i * 7 + j * 3 + salt) % 256, (j * 11 + i * 5 + 13 * salt) % 256]

    def facet(self, corners):
        """The planar polygon through world ``corners``; u runs along the first edge, v across it."""
        c = np.asarray(corners, np.float64)
        px = np.clip(self.project(c), -12000, 12000)
        x0, y0 = np.clip(np.floor(px.min(0)).astype(int) - 1, 0, (WIDTH - 2, HEIGHT - 2))
        x1, y1 = np.clip(np.ceil(px.max(0)).astype(int) + 2, (x0 + 2, y0 + 2), (WIDTH, HEIGHT))
        mask = np.zeros((y1 - y0, x1 - x0), np.uint8)
        cv2.fillPoly(mask, [np.round((px - (x0, y0)) * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)
        eu = (c[1] - c[0]) / np.linalg.norm(c[1] - c[0])
        ev = c[-1] - c[0] - eu * np.dot(c[-1] - c[0], eu)
        ev /= np.linalg.norm(ev)
        n = np.cross(eu, ev)
        cam = np.array([0, self.eye, 0])
        if np.dot(n, c[0] - cam) > 0:
            n = -n  # every facet faces the camera
        box = np.s_[y0:y1, x0:x1]
        rx, ry = self.rx[box], self.ry[box]
        slope = n[0] * rx - n[1] * ry + n[2]
        z = np.dot(n, c[0] - cam) / np.where(slope > -1e-5, -1e-5, slope)
        z = np.clip(z, 0.05, FAR / 2).astype(np.float32)
        d = np.stack([rx * z, self.eye - ry * z, z], -1) - c[0]
        return Patch(box, (d @ eu).astype(np.float32), (d @ ev).astype(np.float32), z,
                     mask.astype(np.float32) / 255, n.astype(np.float32))

    def paint(self, p, albedo, temp, emis=0.95, emit=None, gloss=0.0, cover=None, normal=None):
        """Draw a surface into the buffers, except where a nearer surface has been drawn."""
        m = (p.cover if cover is None else cover * p.cover) * (p.depth < self.depth[p.box] + 1e-3)
        normal = p.normal if normal is None else normal
        for buf, val in ((self.albedo, albedo), (self.temp, temp), (self.emis, emis),
                         (self.emit, np.zeros(3) if emit is None else emit), (self.normal, normal),
                         (self.gloss, gloss), (self.shade, 1.0)):
            buf[p.box] = mix(buf[p.box], val, m)
        np.copyto(self.depth[p.box], p.depth, where=m > 0.5)

    def rect(self, a, b, height, base=0.0):
        """Upright rectangle over the ground segment from ``a`` = (X, Z) to ``b``."""
        return self.facet([(a[0], base, a[1]), (b[0], base, b[1]),
                           (b[0], base + height, b[1]), (a[0], base + height, a[1])])

    def ground(self, x0=-300.0, x1=300.0, z0=1.2, z1=400.0, y=0.0):
        """A piece of level ground: u is X - x0, v is Z - z0."""
        return self.facet([(x0, y, z0), (x1, y, z0), (x1, y, z1), (x0, y, z1)])

    def world(self):
        """World position of every pixel."""
        return self.rx * self.depth, self.eye - self.ry * self.depth, self.depth

    def heat(self, where, radius, degrees):
        """Raise the temperature of all surfaces within about ``radius`` of a world point."""
        d2 = sum((a - b) ** 2 for a, b in zip(self.world(), where, strict=True))
        self.temp += degrees * np.exp(-d2 / radius**2)

    def shadow(self, x, z, rx, rz, strength=0.6):
        """A soft contact shadow on the ground."""
        wx, wy, wz = self.world()
        near = np.clip(1 - np.abs(wy) / 0.2, 0, 1)
        self.shade *= 1 - strength * near * np.exp(-(((wx - x) / rx) ** 2 + ((wz - z) / rz) ** 2))

    # -------------------------------------------------------------- rendering
    def lighting(self, ambient, sun=None, sun_dir=(0, 1, 0)):
        """Light reaching every pixel: the sky, the sun or moon, and lamps with inverse-square fall-off."""
        light = tint(ambient, (0.65 + 0.35 * self.normal[..., 1]) * self.shade)
        if sun is not None:
            d = np.asarray(sun_dir, np.float32) / np.linalg.norm(sun_dir)
            light += tint(sun, np.clip(self.normal @ d, 0, 1) * self.shade)
        wx, wy, wz = self.world()
        for pos, colour, aim, sharp in self.lamps:
            dx, dy, dz = pos[0] - wx, pos[1] - wy, pos[2] - wz
            r2 = dx * dx + dy * dy + dz * dz + 0.15
            r = np.sqrt(r2)
            cos = (self.normal[..., 0] * dx + self.normal[..., 1] * dy + self.normal[..., 2] * dz) / r
            power = np.clip(cos * 0.85 + 0.15, 0, 1) / r2 * (0.5 + 0.5 * self.shade)
            if aim is not None:  # a beam: strongest where the ray leaves along ``aim``
                power *= np.clip(-(dx * aim[0] + dy * aim[1] + dz * aim[2]) / r, 0, 1) ** sharp
            light += tint(colour, power)
        return light

    def mirror(self, image, rough):
        """The reflection in wet ground: each point above the ground is moved to its mirror position below it."""
        _, wy, _ = self.world()
        rows = np.arange(HEIGHT, dtype=np.float32)[:, None]
        target = 2 * self.horizon + 2 * self.focal * self.eye / self.depth - rows
        ok = (wy > 0.02) & (target > self.horizon) & (target < HEIGHT - 1)
        r, c = np.nonzero(ok)
        order = np.argsort(-self.depth[r, c], kind="stable")  # nearest last, so that it overwrites the others
        r, c = r[order], c[order]
        t = target[r, c].astype(np.int64)
        out, hit = np.zeros_like(image), np.zeros_like(self.depth)
        for k in (0, 1):  # two rows per point closes the gaps
            out[t + k, c], hit[t + k, c] = image[r, c], 1
        out = cv2.GaussianBlur(out, (0, 0), rough * 0.25, sigmaY=rough)
        hit = cv2.GaussianBlur(hit, (0, 0), rough * 0.25, sigmaY=rough)
        hit = np.maximum(hit, 0.05)
        return out / (hit if image.ndim == 2 else hit[..., None])

    def smoke_depth(self):
        """Optical depth of the smoke in front of every pixel (visible light)."""
        tau, z0, z1, _ = self.smoke
        return tau * np.clip((self.depth - z0) / (z1 - z0), 0, 1)

    def visible(self, light, exposure=1.0, glare=0.02, noise=0.004, chroma=0.5, soft=0.9):
        """The visible image as 8-bit BGR."""
        rad = self.albedo * light + self.emit
        if self.gloss.any():
            ripple = self.fbm(*self.world()[::2], 0.7, 4)
            rad += self.mirror(rad, 9.0) * (self.gloss * np.clip(0.75 + 0.6 * ripple, 0, 1.5))[..., None]
        if self.smoke is not None:
            t = np.exp(-self.smoke_depth())[..., None]
            rad = rad * t + self.smoke[3] * (1 - t)
        rad = blur(rad * exposure, soft)
        # Scatter in lens and air: bright sources spill over their neighbours, strongly near, weakly far.
        spill = sum(w * blur(rad, s) for w, s in ((0.5, 7.0), (0.3, 30.0), (0.2, 110.0), (0.12, 260.0)))
        rad = reduce(rad + glare * spill * 4)
        shot = self.rng.normal(size=rad.shape).astype(np.float32)
        grey = shot.mean(-1, keepdims=True) * 1.7
        sigma = noise * np.sqrt(1 + 2 * np.clip(rad, 0, 1))  # read-out noise and photon noise
        shot = cv2.GaussianBlur(shot * chroma + grey * (1 - chroma), (0, 0), 0.55) * 1.6
        rad = np.clip(rad + shot * sigma, 0, None)
        rad = np.where(rad < 0.8, rad, 1 - 0.2 * np.exp(-(rad - 0.8) / 0.2))  # soft shoulder, then white
        return np.round(255 * np.clip(rad, 0, 1) ** (1 / 2.2)).astype(np.uint8)[..., ::-1]

    def infrared(self, lo, hi, agc=0.3, noise=0.007, soft=1.3):
        """The long-wave infrared image as 8-bit grey. ``lo`` to ``hi`` is the displayed temperature range."""
        around = self.air - 12.0  # temperature that a surface reflects: mostly cool sky
        t = self.emis * self.temp + (1 - self.emis) * around
        if self.gloss.any():
            t = mix(t, self.mirror(t, 12.0), np.clip(self.gloss * 0.25, 0, 0.2) * (self.ry > 0))
        if self.smoke is not None:  # 10 um waves pass soot and droplets almost freely
            t = mix(self.air + 4.0, t, np.exp(-0.07 * self.smoke_depth()))
        t = reduce(blur(t, soft))
        x = (t - lo) / (hi - lo)
        x = np.where(x < 0.75, x, 0.75 + 0.25 * np.tanh((x - 0.75) / 0.25))  # hot spots saturate gently
        x = gain_control(np.clip(x, 0, 1), agc)
        h, w = x.shape
        x = x + 0.4 * noise * self.rng.normal(size=(1, w)) + 0.2 * noise * self.rng.normal(size=(h, 1))
        x = x + noise * self.rng.normal(size=x.shape)
        return np.round(255 * np.clip(x, 0, 1)).astype(np.uint8)


def gain_control(x, strength):
    """Display processing of thermal cameras: clipped histogram equalisation and slight sharpening."""
    hist = np.histogram(x, 512, (0, 1))[0].astype(np.float64)
    cdf = np.cumsum(np.minimum(hist, 6 * hist.mean()))
    y = (1 - strength) * x + strength * np.interp(x, (np.arange(512) + 1) / 512, cdf / cdf[-1])
    return y + 0.25 * np.tanh(8 * (y - cv2.GaussianBlur(y, (0, 0), 6.0))) / 4


def reduce(image):
    """Average down to the output size."""
    return cv2.resize(image, (WIDTH // SS, HEIGHT // SS), interpolation=cv2.INTER_AREA)
