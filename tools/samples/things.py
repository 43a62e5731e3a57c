"""Objects and materials of the drawn samples: walls and ground, people, animals, cars, trees, posts, the sky.

Each object defines both its reflectance and its temperature. Paint, lettering and brick courses change only the
reflectance, so they are not visible in the infrared image.
"""

from itertools import pairwise

import cv2
import numpy as np
from scene import HEIGHT, WIDTH, footprint, inside, mix, tint


# ------------------------------------------------------------------ materials (reflectance only)
def brick(s, p, base=(0.36, 0.15, 0.10)):
    """Brick courses with mortar; every brick has its own shade."""
    row = np.floor(p.v / 0.12)
    along = p.u / 0.36 + 0.5 * (row % 2)
    face = inside(p.v / 0.12 % 1, 0.12, 1.2, footprint(p.v / 0.12)) \
        * inside(along % 1, 0.05, 1.2, footprint(p.u / 0.36))
    shade = 0.65 + 0.6 * s.cell(along, row) + 0.3 * s.fbm(p.u, p.v, 1.5)
    return mix(np.float32([0.42, 0.40, 0.36]), tint(base, np.clip(shade, 0.2, 1.6)), face)


def planks(s, p, base=(0.30, 0.19, 0.11), width=0.22):
    """Upright boards with grain and dark gaps."""
    k = p.u / width
    gap = inside(k % 1, 0.06, 1.2, footprint(k))
    grain = s.fbm(p.u * 9, p.v * 0.7, 0.5)
    shade = 0.6 + 0.55 * s.cell(k, 0 * k) + 0.35 * grain + 0.2 * s.fbm(p.u, p.v, 2.0)
    return tint(base, np.clip(shade, 0.15, 1.6) * (0.25 + 0.75 * gap))


def speckle(s, p, base, amount=0.4, scale=0.6):
    """Any plain rough surface: plaster, asphalt, soil."""
    return tint(base, np.clip(1 + amount * s.fbm(p.u, p.v, scale, 7), 0.1, 2))


def grass(s, p):
    """Lawn: patches of greens with fine blades that stretch with perspective."""
    patch, fine = s.fbm(p.u, p.v, 3.0), s.fbm(p.u, p.v * 0.7, 0.16, 4)
    colour = mix(np.float32([0.10, 0.20, 0.04]), np.float32([0.27, 0.26, 0.09]),
                 np.clip(0.5 + 0.6 * patch, 0, 1))
    return colour * np.clip(1 + 0.8 * fine, 0.15, 2)[..., None]


def blades(s, count, x0, x1, z0, z1, tall=0.09):
    """Single blades of grass in the foreground, drawn from far to near over what is already there."""
    z = np.sort(np.sqrt(s.rng.uniform(z0**2, z1**2, count)))[::-1]  # more of them far off, as seen from above
    x, h = s.rng.uniform(x0, x1, count), tall * s.rng.uniform(0.4, 1.2, count)
    foot = s.project(np.stack([x, 0 * x, z], 1))
    tip = s.project(np.stack([x + h * s.rng.normal(0, 0.4, count), h, z], 1))
    for a, b, k in zip(foot, tip, s.rng.uniform(0.5, 1.7, count), strict=True):
        px, py = int(a[0]), int(a[1])
        if 0 <= px < WIDTH and 0 <= py < HEIGHT:
            under = s.albedo[py, px]
            if under[1] < max(0.95 * under[0], 1.15 * under[2]):
                continue  # not on grass
            colour = tuple(float(c) for c in under * k)
            cv2.line(s.albedo, [int(v * 16) for v in a], [int(v * 16) for v in b], colour, 1, cv2.LINE_8, 4)


def lettering(p, text, box, weight=4):
    """Coverage of a line of text filling ``box`` = (u0, v0, u1, v1) of a surface."""
    (w, h), base = cv2.getTextSize(text, cv2.FONT_HERSHEY_DUPLEX, 3, weight)
    page = np.zeros((h + base + 8, w + 8), np.uint8)
    cv2.putText(page, text, (4, h + 4), cv2.FONT_HERSHEY_DUPLEX, 3, 255, weight, cv2.LINE_AA)
    u0, v0, u1, v1 = box
    mu = (p.u - u0) / (u1 - u0) * page.shape[1]
    mv = (v1 - p.v) / (v1 - v0) * page.shape[0]
    page = cv2.GaussianBlur(page, (0, 0), 2.0)
    return cv2.remap(page, mu, mv, cv2.INTER_LINEAR).astype(np.float32) / 255


def windows(s, p, albedo, temp, lit=0.4, pitch=(2.2, 3.0), size=(1.0, 1.5), first=(0.7, 1.1), top=99.0,
            salt=0):
    """Set a grid of windows into a wall; returns albedo, temp, emissivity and emitted light."""
    cu, cv_ = (p.u - first[0]) / pitch[0], (p.v - first[1]) / pitch[1]
    fu, fv = (cu % 1) * pitch[0], (cv_ % 1) * pitch[1]
    wu, wv = footprint(p.u), footprint(p.v)
    ok = (cu > 0) & (cv_ > 0) & (p.v < top)
    frame = inside(fu, 0, size[0], wu) * inside(fv, 0, size[1], wv) * ok
    glass = inside(fu, 0.07, size[0] - 0.07, wu) * inside(fv, 0.07, size[1] - 0.07, wv) * ok
    glass *= 1 - inside(fu, size[0] / 2 - 0.03, size[0] / 2 + 0.03, wu)
    glass *= 1 - inside(fv, size[1] * 0.66, size[1] * 0.66 + 0.06, wv)
    sill = inside(fu, -0.1, size[0] + 0.1, wu) * inside(fv, pitch[1] - 0.12, pitch[1], wv) * (cv_ > -0.1)
    on = s.cell(cu, cv_, salt) < lit
    albedo = mix(mix(albedo, (0.45, 0.43, 0.40), sill), (0.5, 0.48, 0.45), frame)
    albedo = mix(albedo, (0.03, 0.035, 0.04), glass)
    warmth = s.cell(cu, cv_, salt + 1)[..., None]
    curtain = np.clip(0.55 + 0.5 * s.fbm(p.u * 3, p.v * 0.2, 0.3) + 0.5 * (fv / size[1] - 0.4), 0.15, 1.3)
    light = mix(np.float32([1.0, 0.62, 0.25]), np.float32([0.85, 0.85, 0.75]), warmth)
    emit = light * (curtain * glass * on)[..., None] * 0.75
    room = np.where(on, 6.0 + 3 * warmth[..., 0], 1.5 + 2 * warmth[..., 0])  # heat leaks through panes
    return albedo, temp + room * glass + 1.0 * frame, 0.95 - 0.05 * glass, emit


# ------------------------------------------------------------------ people and animals
def chain(x, y, *segments, dz=0.0):
    """A limb: (length, degrees from straight down towards +x, start radius, end radius, material) ..."""
    parts = []
    for length, angle, r0, r1, mat in segments:
        a = np.deg2rad(angle)
        x1, y1 = x + length * np.sin(a), y - length * np.cos(a)
        parts.append((x, y, r0, x1, y1, r1, mat, dz))
        x, y = x1, y1
    return parts


def person(stride=0.0, side=0.0, arm=(8, 8), bend=(12, 12), lean=0.0, pack=False, helmet=False):
    """Body parts of a 1.75 m person; ``side`` 0 faces the camera, 1 walks towards +x.

    A part is a tapered capsule: start x, y, radius, end x, y, radius, material, distance towards the camera.
    """
    sw, hw, top = 0.185 * (1 - 0.62 * side), 0.085 * (1 - 0.7 * side), lean * 0.5
    turned, parts = side > 0.5, []
    for k, sgn in ((0, 1), (1, -1)):  # the far limbs, then the near ones
        swing, dz = sgn * stride, -sgn * 0.13 * side
        thigh = swing * side + (1 - side) * sgn * 4
        knee = -side * abs(stride) / 25 * (30 if swing < 0 else 14)
        leg = chain(sgn * hw, 0.93, (0.43, thigh, 0.092, 0.064, "legs"),
                    (0.42, thigh + knee - (1 - side) * sgn * 2, 0.066, 0.042, "legs"), dz=dz)
        fx, fy = leg[-1][3], leg[-1][4]
        toe = 0.15 * side + sgn * 0.05 * (1 - side)
        a = arm[k] * (1 if turned else sgn) - swing * side
        b = bend[k] * (1 if turned else -sgn * 0.4)
        parts += leg + [(fx, fy - 0.02, 0.05, fx + toe, fy - 0.035, 0.038, "shoe", dz)]
        parts += chain(sgn * sw + top, 1.365, (0.27, a, 0.064, 0.052, "coat"),
                       (0.24, a + b, 0.052, 0.042, "coat"),
                       (0.08, a + b, 0.036, 0.030, "skin"), dz=dz + 0.02)
        parts.append((top, 1.45, 0.06, sgn * sw * 0.85 + top, 1.375, 0.072, "coat", 0.0))
    face, up = 0.025 * side, top * 1.2
    parts += [(-hw, 0.95, 0.115, hw, 0.95, 0.115, "legs", 0.0),
              (0, 0.97, 0.145 - 0.02 * side, top * 0.8, 1.28, 0.165 - 0.03 * side, "coat", 0.01),
              (top, 1.46, 0.06, top * 1.1 + face, 1.56, 0.052, "skin", 0.0),
              (up + face, 1.585, 0.075, up + face * 0.6, 1.655, 0.092, "skin", 0.02),
              (up - face, 1.66, 0.090, up - face, 1.70, 0.088, "helmet" if helmet else "hair", 0.03 * helmet)]
    if pack:
        parts.append((-0.17 + top, 1.33, 0.1, -0.18 + top * 0.6, 1.10, 0.12, "bag", 0.06))
    return parts


def deer(graze=False):
    """Body parts of a deer in profile, head towards +x; antlers unless it grazes."""
    parts = []
    for x, k, dz in ((-0.38, 1, -0.12), (0.28, 1, -0.12), (-0.52, -1, 0.03), (0.36, -1, 0.03)):
        rear = x < 0
        parts += chain(x, 0.96, (0.46, 10 * k + 6 * rear, 0.17 if rear else 0.13, 0.05, "hide"),
                       (0.24, -4 * k - 22 * rear, 0.048, 0.034, "hide"),
                       (0.24, -4 * k + 6 * rear, 0.034, 0.026, "shin"),
                       (0.05, 40, 0.03, 0.03, "shin"), dz=dz)
    parts += [(-0.50, 1.02, 0.20, 0.34, 1.0, 0.235, "hide", 0.0),
              (-0.69, 1.08, 0.06, -0.74, 0.95, 0.03, "pale", 0.0)]
    if graze:
        return parts + [(0.40, 1.04, 0.17, 0.80, 0.58, 0.085, "hide", 0.0),
                        (0.82, 0.54, 0.085, 0.97, 0.26, 0.045, "hide", 0.02),
                        (0.79, 0.58, 0.03, 0.68, 0.66, 0.035, "hide", 0.03),
                        (0.84, 0.58, 0.03, 0.95, 0.67, 0.03, "hide", -0.05)]
    parts += [(0.40, 1.06, 0.18, 0.67, 1.45, 0.082, "hide", 0.0),
              (0.70, 1.51, 0.082, 0.95, 1.43, 0.045, "hide", 0.02),
              (0.64, 1.57, 0.03, 0.50, 1.64, 0.035, "hide", 0.03),
              (0.70, 1.58, 0.03, 0.66, 1.70, 0.03, "hide", -0.05)]
    for dx, dz in ((-0.06, -0.05), (0.07, 0.05)):
        parts += chain(0.68, 1.57, (0.26, 180 - 500 * dx, 0.018, 0.014, "horn"),
                       (0.26, 165, 0.014, 0.008, "horn"), dz=dz)
        parts += chain(0.68 + 1.4 * dx, 1.74, (0.20, 128, 0.012, 0.008, "horn"), dz=dz)
    return parts


def dog():
    """Body parts of a dog in profile, head towards +x."""
    parts = []
    for x, a, dz in ((-0.22, 14, -0.08), (0.14, -12, -0.08), (-0.28, -8, 0.03), (0.21, 10, 0.03)):
        parts += chain(x, 0.45, (0.24, a + 8 * (x < 0), 0.095, 0.038, "hide"),
                       (0.21, -a - 8 * (x < 0), 0.034, 0.026, "shin"), dz=dz)
    return parts + [(-0.26, 0.48, 0.115, 0.18, 0.47, 0.14, "hide", 0.0),
                    (0.20, 0.52, 0.11, 0.36, 0.67, 0.075, "hide", 0.0),
                    (0.38, 0.69, 0.08, 0.54, 0.65, 0.04, "hide", 0.02),
                    (0.35, 0.74, 0.03, 0.29, 0.64, 0.04, "hide", 0.08),
                    (-0.35, 0.52, 0.035, -0.50, 0.68, 0.018, "hide", 0.0)]


def figure(s, x, z, parts, looks, size=1.0, flip=False):
    """Paint a creature standing at (x, z). ``looks`` maps a material to (reflectance, temperature)."""
    reach = 1.1 * size
    p = s.rect((x - reach, z), (x + reach, z), 2.15 * size, -0.1)
    sign = -1 if flip else 1
    lx, ly = (p.u / size - 1.1) * sign, p.v / size - 0.1 / size
    px = z / s.focal / size
    cover, front = np.zeros_like(lx), np.full_like(lx, -9.0)
    albedo, normal = np.zeros((*lx.shape, 3), np.float32), np.zeros((*lx.shape, 3), np.float32)
    temp = np.zeros_like(lx)
    folds = s.fbm(lx * 1.6 + 7 * x, ly, 0.22, 4)
    for ax, ay, ra, bx, by, rb, mat, dz in parts:
        dx, dy = bx - ax, by - ay
        t = np.clip(((lx - ax) * dx + (ly - ay) * dy) / (dx * dx + dy * dy + 1e-9), 0, 1)
        r = ra + (rb - ra) * t
        ex, ey = lx - ax - t * dx, ly - ay - t * dy
        dist = np.hypot(ex, ey)
        edge = np.clip((r - dist) / px + 0.5, 0, 1)
        bulge = np.sqrt(np.clip(1 - (dist / r) ** 2, 0, 1))
        # The part bulging furthest towards the camera is seen; a soft change-over joins limbs without seams.
        near = dz + r * bulge
        m = edge * np.clip((near - front) / 0.05 + 0.5, 0, 1)
        m = np.where(cover < 0.5, edge, m)
        colour, warmth = looks[mat]
        cloth = np.clip(1 + (0.12 if mat == "skin" else 0.4) * folds, 0.3, 1.8)
        # A limb is a cylinder: its rim is seen at a grazing angle and its thin edge is cooler.
        rim = s.air + (warmth - s.air) * (0.62 + 0.38 * bulge) + (0.0 if mat == "skin" else 1.4) * folds
        n = np.stack([ex / r * sign, ey / r, -bulge], -1)
        albedo, temp, normal = mix(albedo, tint(colour, cloth), m), mix(temp, rim, m), mix(normal, n, m)
        cover = np.maximum(cover, edge)
        front = np.where(edge > 0.5, np.maximum(front, near), front)
    s.paint(p, albedo, temp, 0.98, cover=cover, normal=normal)
    s.shadow(x, z, 0.45 * size, 0.35 * size)


def clothes(coat, legs, warm=24.0, skin=(0.45, 0.27, 0.19), helmet=(0.6, 0.5, 0.05)):
    """Looks of a person: loose clothing is several degrees cooler than bare skin."""
    return {"skin": (skin, warm + 8), "coat": (coat, warm), "legs": (legs, warm - 1),
            "hair": ((0.03, 0.02, 0.015), warm), "shoe": ((0.03, 0.03, 0.03), warm - 7),
            "bag": ((0.30, 0.08, 0.05), warm - 12), "helmet": (helmet, warm - 6)}


def hide(colour, warm=25.0):
    """Looks of a furred animal."""
    c = np.float32(colour)
    return {"hide": (c, warm), "shin": (c * 0.7, warm - 5), "pale": (c * 0 + 0.5, warm + 2),
            "horn": (c * 0 + 0.2, warm - 12)}


# ------------------------------------------------------------------ cars, trees, posts
PROFILE = [(-2.05, 0.30), (-2.16, 0.55), (-2.12, 0.95), (-1.95, 1.05), (-1.45, 1.44), (-0.6, 1.50),
           (0.15, 1.44), (0.95, 1.03), (1.75, 0.90), (2.10, 0.78), (2.16, 0.55), (2.08, 0.30)]


def smooth(points, rounds=2):
    """Chaikin corner cutting of an open line."""
    p = np.asarray(points, np.float64)
    for _ in range(rounds):
        q = np.stack([0.75 * p[:-1] + 0.25 * p[1:], 0.25 * p[:-1] + 0.75 * p[1:]], 1).reshape(-1, 2)
        p = np.vstack([p[:1], q, p[-1:]])
    return p


def half_width(x, y):
    """Half the width of the car body: rounded ends, a cabin that leans in."""
    return 0.88 * (1 - 0.12 * (abs(x) / 2.16) ** 5) - 0.42 * max(0.0, y - 1.0)


def ring(count, radius, stretch=1.0):
    """Points of an ellipse about the origin."""
    q = np.linspace(0, 2 * np.pi, count, endpoint=False)
    return np.stack([stretch * radius * np.cos(q), radius * np.sin(q)], 1)


BLACK, GLASS, CHROME = (0.02, 0.02, 0.022), (0.025, 0.03, 0.035), (0.35, 0.35, 0.37)


def car_body(face, line, paint, warm):
    """The skin that runs from bumper over bonnet, windscreen and roof to the other bumper."""
    for (x0, y0), (x1, y1) in pairwise(line):
        w0, w1, ym = half_width(x0, y0), half_width(x1, y1), (y0 + y1) / 2
        quad = [(x0, y0, -w0), (x0, y0, w0), (x1, y1, w1), (x1, y1, -w1)]
        face(quad, BLACK if ym < 0.45 else paint, warm)
        if 1.09 < ym < 1.41 and abs((x0 + x1) / 2) > 0.2:
            # Glass reflects part of the cold sky, so it reads colder than the paint around it.
            face([(px, py + 0.004, pz * 0.88) for px, py, pz in quad], GLASS, warm - 2, 0.85, order=0.02)


def car_side(face, line, sg, paint, warm, air, engine):
    """One flank (``sg`` -1 left, 1 right): doors, windows, wheels."""
    face([(px, min(py, 1.02), sg * half_width(px, 1.0)) for px, py in line], paint, warm)
    face([(px, py, sg * half_width(px, py)) for px, py in line if py > 1.0], paint, warm)
    for g0, g1 in ((-1.5, -0.55), (-0.45, 0.72)):
        xs = np.linspace(g1, g0, 8)
        tops = np.clip(np.interp(xs, line[:, 0], line[:, 1]) - 0.08, 1.07, 1.40)
        pane = [(g0, 1.07), (g1, 1.07), *zip(xs, tops, strict=True)]
        pane = [(px, py, sg * (half_width(px, py) + 0.004)) for px, py in pane]
        face(pane, GLASS, warm - 2, 0.85, order=0.03)
    tyre, hub = air + engine * 0.35, air + engine * 0.6  # rolling and braking warm the wheels
    for wx in (-1.32, 1.32):
        for radius, out, colour, temp in ((0.39, 0.005, BLACK, warm), (0.33, 0.01, (0.03, 0.03, 0.03), tyre),
                                          (0.21, 0.015, CHROME, hub), (0.07, 0.02, BLACK, warm)):
            wheel = [(wx + px, max(0.33 + py, 0.0), sg * (0.87 + out)) for px, py in ring(24, radius)]
            face(wheel, colour, temp, order=0.04 + out)
    w = sg * 0.885
    face([(-0.48, 0.42, w), (-0.47, 0.42, w), (-0.47, 1.02, w), (-0.48, 1.02, w)], BLACK, warm, order=0.03)


def car_ends(face, warm, engine, lights):
    """Lamps, number plates and the grille."""
    for sg in (-1, 1):
        for end, glow, lens in ((2.17, (1.0, 0.95, 0.85), (0.5, 0.5, 0.5)),
                                (-2.18, (0.03, 0.001, 0.0006), (0.4, 0.02, 0.02))):
            lamp = [(end, 0.72 + py, sg * 0.58 + px) for px, py in ring(16, 0.09, 1.67)]
            face(lamp, lens, warm + (14 if lights else 0), emit=np.float32(glow) * lights, order=0.05)
    for end in (2.175, -2.185):
        plate = [(end, 0.44, -0.26), (end, 0.44, 0.26), (end, 0.55, 0.26), (end, 0.55, -0.26)]
        face(plate, (0.6, 0.6, 0.55), warm, order=0.05)
    grille = [(2.17, 0.58, -0.4), (2.17, 0.58, 0.4), (2.17, 0.78, 0.36), (2.17, 0.78, -0.36)]
    face(grille, BLACK, warm + engine * 0.12, order=0.04)


def car(s, x, z, yaw, paint, engine=18.0, lights=0.0):
    """A car at (x, z); ``yaw`` 0 drives away from the camera, 180 towards it, 90 to the right."""
    a = np.deg2rad(yaw)
    fwd, right = np.array([np.sin(a), 0, np.cos(a)]), np.array([np.cos(a), 0, -np.sin(a)])
    warm, faces = s.air + 2, []

    def at(px, py, pz):
        return np.array([x, py, z]) + px * fwd + pz * right

    def face(points, albedo, temp, emis=0.93, emit=None, order=0.0):
        pts = [at(*q) for q in points]
        faces.append((np.mean([q[2] for q in pts]) - order, pts, albedo, temp, emis, emit))

    line = smooth(PROFILE)
    car_body(face, line, paint, warm)
    for sg in (-1, 1):
        car_side(face, line, sg, paint, warm, s.air, engine)
    car_ends(face, warm, engine, lights)
    s.shadow(x, z, 1.1 + abs(np.sin(a)) * 1.2, 1.1 + abs(np.cos(a)) * 1.2, 0.75)
    for _, pts, albedo, temp, emis, emit in sorted(faces, key=lambda f: -f[0]):  # far faces first
        p = s.facet(pts)
        s.paint(p, speckle(s, p, albedo, 0.06, 2.0), temp, emis, emit)
    s.heat(at(1.35, 0.92, 0), 0.75, engine * 0.6)  # the bonnet
    s.heat(at(2.1, 0.6, 0), 0.5, engine * 0.4)  # the radiator
    s.heat(at(-2.1, 0.32, 0.45), 0.18, engine * 0.9)  # the exhaust


def skeleton(s, height, spread, lo, trunk):
    """Branches of a tree as rows (x0, y0, x1, y1, radius, level), the crown fitted to its size."""
    rows = []

    def branch(bx, by, angle, length, r, level):
        ex, ey = bx + length * np.sin(angle), by + length * np.cos(angle)
        rows.append((bx, by, ex, ey, r, level))
        for j in range(3 if level else 0):
            spin = (j - 1) * 0.6 + s.rng.normal(0, 0.22)
            branch(ex, ey, angle * 0.75 + spin, length * s.rng.uniform(0.55, 0.8), r * 0.6, level - 1)

    branch(0, 0, 0.02, lo, trunk, 4)
    seg = np.array(rows)
    x, y = seg[:, [0, 2]], seg[:, [1, 3]]
    grow = np.clip(y - lo, 0, None)
    seg[:, [0, 2]] = x * np.where(grow > 0, 0.85 * spread / np.abs(x).max(), 1)
    seg[:, [1, 3]] = np.minimum(y, lo) + grow * (0.92 * height - lo) / grow.max()
    return seg


def tree(s, x, z, height, spread, green=(0.10, 0.17, 0.04), leaves=9000, leaf=0.07, trunk=0.16, bare=0.35):
    """A tree: a forking trunk, then leaves in clumps, light above and dark within."""
    p = s.rect((x - spread * 1.7, z), (x + spread * 1.7, z), height * 1.2)
    k, lo = s.focal / z, height * bare
    ox, oy = s.project((x, 0, z))[0] - (p.box[1].start, p.box[0].start)

    def pixel(px, py):
        return int((ox + px * k) * 16), int((oy - py * k) * 16)

    art = np.zeros((*p.u.shape, 4), np.float32)  # shade, normal x, normal y, kind (1 wood, 2 leaf)
    seg = skeleton(s, height, spread, lo, trunk)
    for bx, by, ex, ey, r, _ in seg:
        shade = 0.7 + 0.3 * s.rng.random()
        width = max(1, round(2 * r * k))
        cv2.line(art, pixel(bx, by), pixel(ex, ey), (shade, 0, 0, 1), width, cv2.LINE_8, 4)
    tips = seg[seg[:, 5] <= 1][:, 2:4]
    turn = s.rng.uniform(0, 2 * np.pi, leaves)
    out = np.sqrt(s.rng.random(leaves)) * spread * s.rng.uniform(0.08, 0.26, leaves)
    around = np.stack([out * np.cos(turn), 0.8 * out * np.sin(turn)], 1)
    for i, (lx, ly) in enumerate(tips[s.rng.integers(0, len(tips), leaves)] + around):
        nx, ny = lx / spread, (2 * ly - height - lo) / (height - lo)
        depth = i / leaves  # later leaves are nearer and lighter
        shade = (0.35 + 0.65 * depth) * s.rng.uniform(0.7, 1.3) * (1 + 0.25 * ny)
        size = max(12, int(leaf * k * 16 * s.rng.uniform(0.5, 1.0)))
        cv2.ellipse(art, pixel(lx, ly), (size, max(8, size // 2)), s.rng.uniform(0, 180), 0, 360,
                    (shade, np.clip(nx, -1, 1), np.clip(ny, -1, 1), 2), -1, cv2.LINE_8, 4)
    wood = art[..., 3] == 1
    dry = np.clip(0.5 + s.fbm(p.u, p.v, 0.8), 0, 1)
    hue = mix(np.float32(green), np.float32(green) * (1.5, 1.15, 0.8), dry)
    albedo = np.where(wood[..., None], np.float32([0.12, 0.09, 0.06]), hue) * art[..., :1]
    normal = np.stack([art[..., 1] * 0.7, art[..., 2] * 0.7, np.full_like(p.u, -0.6)], -1)
    temp = s.air + np.where(wood, 2.5, 0.6 + 1.6 * (art[..., 0] - 0.7)) + 0.5 * s.fbm(p.u, p.v, 0.7)
    s.paint(p, albedo, temp, 0.97, cover=(art[..., 3] > 0).astype(np.float32), normal=normal)
    s.shadow(x, z, spread, spread, 0.35)


def post(s, x, z, height, r=0.06, colour=(0.12, 0.12, 0.12), temp=None, base=0.0):
    """An upright pole."""
    p = s.rect((x - r, z), (x + r, z), height, base)
    c = (p.u - r) / r
    n = np.stack([c, 0 * c, -np.sqrt(np.clip(1 - c * c, 0, 1))], -1)
    s.paint(p, speckle(s, p, colour, 0.15), s.air + 1 if temp is None else temp, 0.9, normal=n)


def bar(s, a, b, r, colour, temp):
    """A straight rod between two world points."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    n = np.cross(b - a, (a + b) / 2 - [0, s.eye, 0])
    n *= r / (np.linalg.norm(n) + 1e-9)
    p = s.facet([a - n, b - n, b + n, a + n])
    s.paint(p, np.float32(colour), temp, 0.9)


def disc(s, x, y, z, r, albedo, temp, emit=None, emis=0.93):
    """A disc facing the camera (signs, lamp heads)."""
    p = s.facet([(x + px, y + py, z) for px, py in ring(28, r)])
    s.paint(p, np.float32(albedo), temp, emis, emit)


def street_lamp(s, x, z, arm, height=5.2, power=26.0):
    """A lamp post with an arm; its housing is warm."""
    post(s, x, z, height, 0.07)
    hx, hy, steel = x + arm, height + 0.1, (0.2, 0.2, 0.2)
    bar(s, (x, height - 0.05, z), (hx, hy, z), 0.045, steel, s.air + 2)
    bar(s, (hx - 0.28, hy, z), (hx + 0.28, hy, z), 0.09, steel, s.air + 16)
    glow = np.float32([1.0, 0.72, 0.38])
    disc(s, hx, hy - 0.12, z - 0.02, 0.16, (0.5, 0.5, 0.5), s.air + 24, glow * 14)
    s.lamps.append(((hx, hy - 0.25, z), glow * power, (0, -1, 0), 0.6))


def sky(s, zenith, horizon, cold=-18.0, cloud=0.0):
    """Fill the background; to the infrared a clear sky is far colder than the ground."""
    up = np.clip(-s.ry, 0, 1)[..., None] ** 0.6
    s.emit[:] = mix(np.float32(horizon), np.float32(zenith), np.minimum(up * 1.3, 1))
    s.temp[:] = s.air - 2 + (cold - s.air) * np.clip(-s.ry + 0.01, 0, 1) ** 0.6
    if cloud:
        h = np.maximum(-s.ry, 0.04)
        c = np.clip(1.3 * s.fbm(s.rx / h * 0.5, 0.8 / h, 2.2, 6) + 0.15, 0, 1) * np.clip(-s.ry * 8, 0, 1)
        s.temp += cloud * c  # cloud droplets radiate at nearly air temperature
        s.emit += 0.35 * c[..., None] * s.emit


def treeline(s, z, height, colour, temp, x0=-80.0, x1=80.0):
    """A distant wood with a ragged top."""
    p = s.rect((x0, z), (x1, z), height * 1.6)
    top = height * (0.8 + 0.45 * s.fbm(p.u, 0 * p.u, 9.0, 3) + 0.16 * s.fbm(p.u, p.v, 1.6, 5))
    clump = s.fbm(p.u, p.v * 1.4, 2.2, 6)
    s.paint(p, tint(colour, np.clip(0.8 + 0.9 * clump, 0.1, 2)), temp + 0.7 * clump, 0.97,
            cover=inside(p.v, -1, top))
