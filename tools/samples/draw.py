"""Draw the four sample pairs: ``python tools/samples/draw.py [--out DIR]``.

Each scene is described once (geometry, reflectance, temperature, emissivity) and rendered twice:

* visible  = reflectance x illumination + light sources + veiling glare + sensor noise, slightly blurred;
* infrared = temperature seen through emissivity, slightly blurred, + fixed-pattern and shot noise.

``scene.py`` holds the buffers and the two renderers, ``things.py`` the objects and materials of the scenes.
"""

import argparse
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import things as tg
from scene import Scene, blur, footprint, inside, mix, tint


# ------------------------------------------------------------------ the four scenes
def night_street():
    """A wet street at night: glare and darkness hide the people from the visible camera."""
    s = Scene(11, horizon=440, air=7.0)
    tg.sky(s, (0.0015, 0.002, 0.004), (0.012, 0.009, 0.007), cold=-12)
    terraces(s)
    shop_fronts(s)
    wet_road(s)
    pavement(s)
    for side, zs in ((-4.5, (13, 27, 42)), (4.7, (20, 34, 50))):
        for z0 in zs:
            tg.street_lamp(s, side, z0, -np.sign(side) * 1.2)
    tg.post(s, 4.1, 9.0, 2.6, 0.04, (0.3, 0.3, 0.3))
    tg.disc(s, 4.1, 2.75, 8.98, 0.34, (0.6, 0.02, 0.02), s.air + 0.5, (0.22, 0.01, 0.01))
    tg.disc(s, 4.1, 2.75, 8.97, 0.27, (0.75, 0.75, 0.75), s.air + 0.5, (0.3, 0.3, 0.3))
    sign = s.rect((3.85, 8.96), (4.35, 8.96), 0.4, 2.57)
    digits = tg.lettering(sign, "30", (0.04, 0.05, 0.46, 0.35), 9)
    s.paint(sign, (0.02, 0.02, 0.02), s.air + 0.5, 0.93, cover=digits)
    tg.car(s, -1.75, 15.5, 180, (0.25, 0.27, 0.30), engine=24, lights=420)
    for sx in (-0.58, 0.58):
        s.lamps.append(((-1.75 + sx, 0.72, 13.2), np.float32([1, 0.95, 0.85]) * 60, (0, -0.06, -1), 14))
    tg.car(s, 2.75, 12.2, 0, (0.28, 0.03, 0.03), engine=5)
    tg.car(s, -3.0, 34, 180, (0.2, 0.2, 0.2), engine=16, lights=60)
    dark, navy = (0.03, 0.03, 0.035), (0.02, 0.03, 0.06)
    tg.figure(s, -0.25, 14.2, tg.person(24, 1.0, (10, 10), (25, 25), 0.05), tg.clothes(navy, dark))
    tg.figure(s, -3.25, 13.0, tg.person(18, 0.9, (6, 6), (20, 20), 0.04, pack=True), tg.clothes(dark, navy),
              flip=True)
    tg.figure(s, 4.55, 8.3, tg.person(12, 0.3, (8, 10)), tg.clothes((0.04, 0.02, 0.02), navy))
    tg.figure(s, 5.2, 8.7, tg.person(10, 0.2, (10, 8)), tg.clothes(dark, dark), size=0.93)
    tg.figure(s, -5.15, 16, tg.person(14, 0.3), tg.clothes(navy, dark))
    tg.figure(s, 1.0, 29, tg.person(20, 1.0), tg.clothes(dark, dark))
    tg.figure(s, 5.0, 26, tg.person(15, 0.4), tg.clothes(dark, navy))
    # The dipped headlights of the car that carries the cameras.
    s.lamps.append(((0.6, 0.7, 0.2), np.float32([1, 0.95, 0.85]) * 4, (0, -0.12, 0.99), 20))
    light = s.lighting((0.012, 0.012, 0.015))
    return s.visible(light, 1.1, glare=0.05, noise=0.0035, chroma=0.4), s.infrared(-4, 42)


def terraces(s):
    """Rows of houses on both sides and across the far end."""
    end = s.rect((-30, 62), (30, 62), 9)
    s.paint(end, *tg.windows(s, end, tg.speckle(s, end, (0.2, 0.18, 0.16)), s.air + 2, 0.3, salt=5))
    red, sand, slate, rose = (0.30, 0.13, 0.09), (0.34, 0.30, 0.22), (0.2, 0.22, 0.25), (0.3, 0.2, 0.16)
    plots = (5, 23, 9.5), (23, 38, 7.5), (38, 60, 11)
    for x0, colours, salt in ((-5.6, (red, red, red), 1), (5.9, (sand, slate, rose), 2)):
        for k, (z0, z1, h) in enumerate(plots):
            p = s.rect((x0, z0), (x0 + np.sign(x0) * 12, z0), h)
            s.paint(p, tg.speckle(s, p, (0.2, 0.17, 0.15)), s.air + 2)
            p = s.rect((x0, z0), (x0, z1), h)
            albedo = (tg.brick if (k + salt) % 2 else tg.speckle)(s, p, colours[k])
            # Walls are a little warmer near the ground and patchy where heat leaks out.
            temp = s.air + 2.5 + 0.25 * np.clip(3 - p.v, 0, 3) + 0.9 * s.fbm(p.u, p.v, 2.5)
            albedo, temp, emis, emit = tg.windows(s, p, albedo, temp, 0.36, first=(0.9, 3.6), top=h - 0.8,
                                                  salt=salt + 3 * k)
            s.paint(p, mix(albedo, (0.2, 0.2, 0.2), inside(p.v, -1, 0.6)), temp, emis, emit)


def wet_road(s):
    """Wet asphalt with painted lines (visible only), wheel tracks and a warm manhole (infrared)."""
    g = s.ground()
    x, z = g.u - 300, g.v + 1.2
    tracks = sum(np.exp(-(((x - c) / 0.28) ** 2)) for c in (-2.7, -1.1, 1.1, 2.7))
    wet = np.clip(0.42 + 0.5 * s.fbm(x, g.v, 2.6, 4), 0.05, 1)
    albedo = tg.speckle(s, g, (0.075, 0.075, 0.08), 0.5, 0.5) * (1 - 0.35 * wet[..., None])
    dash = inside(x, -0.07, 0.07) * inside((z + 1) % 4.5, 0, 2.4, footprint(z)) * (1 - inside(z, 6, 10.4))
    edge = inside(np.abs(x), 3.62, 3.74)
    zebra = inside(x % 0.9, 0, 0.45, footprint(x)) * inside(z, 7.0, 9.6) * inside(np.abs(x), -1, 3.4)
    worn = np.clip(0.8 + 0.6 * s.fbm(x, g.v, 0.5), 0, 1)
    albedo = mix(albedo, (0.62, 0.62, 0.58), np.maximum.reduce([dash, edge, zebra]) * worn)
    s.paint(g, albedo, s.air - 0.5 + 1.6 * tracks + 0.5 * s.fbm(x, g.v, 2.5), 0.94, gloss=0.35 * wet)
    hole = s.ground(-0.9, -0.2, 5.6, 6.3, 0.004)
    radius = np.hypot(hole.u - 0.35, hole.v - 0.35)
    iron = tg.speckle(s, hole, (0.05, 0.05, 0.05), 0.4)
    s.paint(hole, iron, s.air + 11, cover=inside(radius, -1, 0.33))


def shop_fronts(s):
    """Two lit shops with painted signs on the left and right walls."""
    for x0, z0, z1, text, board, glow in ((-5.56, 10.5, 14.9, "BAKERY", (0.05, 0.22, 0.16), (1.0, 0.75, 0.4)),
                                          (5.86, 13.5, 20.5, "HOTEL", (0.25, 0.04, 0.05), (1.0, 0.6, 0.3))):
        a, b = ((x0, z0), (x0, z1)) if x0 < 0 else ((x0, z1), (x0, z0))
        p = s.rect(a, b, 2.3, 0.5)
        wide = z1 - z0
        glass = inside(p.u % 1.8, 0.08, 1.8, footprint(p.u)) * inside(p.v, 0.06, 2.24)
        shelves = inside(p.v % 0.75, 0, 0.06, footprint(p.v))
        goods = np.clip(0.55 + 0.6 * s.fbm(p.u, p.v * 1.5, 0.5, 4) - 0.5 * shelves, 0.1, 1.2)
        emit = tint(glow, goods * glass) * 0.8
        s.paint(p, (0.05, 0.05, 0.05), s.air + 3 + 6 * glass, 0.92, emit)
        p = s.rect(a, b, 0.65, 2.85)
        ink = tg.lettering(p, text, (wide * 0.15, 0.12, wide * 0.85, 0.53), 6)
        s.paint(p, mix(tg.speckle(s, p, board, 0.2), (0.8, 0.75, 0.55), ink), s.air + 2.5, 0.94,
                tint((0.5, 0.42, 0.25), ink))
        s.lamps.append((((x0 + np.sign(-x0) * 0.6), 1.8, (z0 + z1) / 2), np.float32(glow) * 2.5, None, 0))


def pavement(s):
    """Raised pavements with kerbs and slabs on both sides."""
    for x0, x1 in ((-5.6, -3.9), (3.9, 5.9)):
        p = s.ground(x0, x1, 2.0, 62, 0.13)
        slab = inside(p.u % 0.6, 0.02, 0.6, footprint(p.u)) * inside(p.v % 0.6, 0.02, 0.6, footprint(p.v))
        tone = 0.7 + 0.5 * s.cell(p.u / 0.6, p.v / 0.6)
        albedo = tg.speckle(s, p, (0.2, 0.19, 0.18), 0.3, 0.5) * (tone * (0.5 + 0.5 * slab))[..., None]
        s.paint(p, albedo, s.air + 1.2 + 0.3 * s.fbm(p.u, p.v, 2.0), 0.95, gloss=0.10)
        kerb = s.rect(*(((x1, 2.0), (x1, 62)) if x0 < 0 else ((x0, 2.0), (x0, 62))), 0.13)
        s.paint(kerb, tg.speckle(s, kerb, (0.25, 0.25, 0.24)), s.air + 1.6)


def smoke():
    """A yard fire: smoke hides a crew and their car from the visible camera, not from the infrared one."""
    s = Scene(23, horizon=440, air=11.0)
    tg.sky(s, (0.30, 0.42, 0.62), (0.75, 0.78, 0.80), cold=-25, cloud=14)
    tg.treeline(s, 60, 9, (0.10, 0.14, 0.05), s.air)
    p = s.rect((-17, 21), (4.5, 21), 6.6)
    temp = s.air + 3 + 0.3 * p.v
    albedo, temp, emis, _ = tg.windows(s, p, tg.brick(s, p), temp, 0.0, (3.0, 2.9), (1.4, 1.7), (2.4, 0.9))
    board = inside(p.u, 3.7, 10.3) * inside(p.v, 2.72, 3.72)
    ink = tg.lettering(p, "DEPOT 7", (4.1, 2.88, 9.9, 3.56), 7)
    albedo = mix(mix(albedo, (0.60, 0.58, 0.50), board), (0.05, 0.10, 0.30), ink)
    cornice = inside(p.v, 6.25, 6.7)
    s.paint(p, mix(albedo, (0.5, 0.48, 0.44), cornice), temp, emis)
    door = s.rect((-2.4, 20.95), (0.6, 20.95), 2.7)
    s.paint(door, mix(np.float32([0.10, 0.25, 0.14]), (0.05, 0.12, 0.07), inside(door.v % 0.3, 0, 0.06)),
            s.air + 6, 0.9)
    for x, z, h in ((7.5, 19, 6.5), (11.5, 23, 8.0), (15, 20, 6.5)):
        tg.tree(s, x, z, h, h * 0.36, (0.13, 0.22, 0.05), leaves=9600, leaf=0.09)
    yard(s)
    cones(s)
    tg.car(s, 2.4, 12.5, 62, (0.50, 0.06, 0.04), engine=26)
    crew = tg.clothes((0.16, 0.12, 0.05), (0.14, 0.11, 0.05), 29, helmet=(0.65, 0.55, 0.05))
    tg.figure(s, -1.6, 9.9, tg.person(22, 1.0, (40, 55), (30, 25), 0.08, helmet=True), crew, flip=True)
    tg.figure(s, -0.2, 11.5, tg.person(10, 0.2, (14, 10), helmet=True), crew)
    tg.figure(s, 0.75, 10.4, tg.person(26, 1.0, (15, 15), (35, 35), 0.12),
              tg.clothes((0.10, 0.16, 0.35), (0.05, 0.05, 0.08), 27))
    tg.figure(s, 4.6, 11.0, tg.person(16, 0.6, (10, 12), (20, 15), helmet=True), crew, flip=True)
    tg.figure(s, -6.9, 14.0, tg.person(8, 0.2), tg.clothes((0.3, 0.3, 0.32), (0.05, 0.06, 0.12), 26))
    fire(s, -3.7, 11.2)
    light = s.lighting((0.75, 0.80, 0.90), (0.75, 0.68, 0.55), (-0.5, 0.7, -0.6))
    s.smoke = plume(s, -3.7, 11.2)
    return s.visible(light, 0.95, glare=0.006, noise=0.006, chroma=0.3), s.infrared(-10, 46)


def yard(s):
    """Asphalt with painted bays, an arrow, cracks, and a sunny verge on the right."""
    g = s.ground()
    x, z = g.u - 300, g.v + 1.2
    crack = np.exp(-((s.fbm(x, z, 3.0, 5) / 0.015) ** 2)) * np.clip(s.fbm(x, z, 5.0, 2) * 3, 0, 0.6)
    blotch = (1 + 0.2 * s.fbm(x, z, 2.5, 4)) * (1 - crack)
    albedo = tg.speckle(s, g, (0.19, 0.19, 0.19), 0.3, 0.12) * blotch[..., None]
    bays = inside((x + 0.3) % 2.6, 0, 0.12, footprint(x)) * inside(z, 12.2, 17.0) * inside(x, -9, 6)
    head = inside(np.abs(x) + (z - 6.0) * 0.42, -1, 0.5) * inside(z, 6.0, 7.4)
    arrow = inside(x, -0.13, 0.13) * inside(z, 4.0, 6.0) + head
    worn = np.clip(0.85 + 0.6 * s.fbm(x, z, 0.4), 0, 1)
    albedo = mix(albedo, (0.75, 0.62, 0.10), np.clip(arrow, 0, 1) * worn)
    albedo = mix(albedo, (0.7, 0.7, 0.66), bays * worn)
    lawn = inside(x + 0.8 * s.fbm(x, z, 1.5), 6.3, 300)
    albedo = mix(albedo, tg.grass(s, g), lawn)
    s.paint(g, albedo, s.air + 4 - 4 * lawn + 0.6 * s.fbm(x, z, 3.0), 0.95)


def cones(s):
    """Street furniture in front of the smoke: visible-only colours, hardly any thermal contrast."""
    orange = (0.80, 0.16, 0.02)
    for x, z in ((-2.9, 5.6), (2.2, 5.2), (3.3, 7.0)):
        for a, b, colour in ((0.0, 0.3, orange), (0.3, 0.45, (0.8, 0.8, 0.8)), (0.45, 0.75, orange)):
            ra, rb = 0.19 - 0.2 * a, 0.19 - 0.2 * b
            p = s.facet([(x - ra, a, z), (x + ra, a, z), (x + rb, b, z), (x - rb, b, z)])
            c = np.clip((p.u - ra) / ra, -1, 1)
            s.paint(p, np.float32(colour), s.air + 2.5, normal=np.stack([c, 0 * c, -np.sqrt(1 - c * c)], -1))
        s.shadow(x + 0.1, z, 0.3, 0.3, 0.6)


def fire(s, x, z):
    """A burning stack of pallets: dark wood, embers, flames."""
    for k in range(5):
        p = s.rect((x - 0.75, z - 0.02 * k), (x + 0.75, z - 0.02 * k), 0.1, 0.02 + 0.17 * k)
        s.paint(p, tg.speckle(s, p, (0.05, 0.035, 0.025), 0.5), 90 + 60 * s.fbm(p.u, p.v, 0.4))
    p = s.rect((x - 1.1, z + 0.05), (x + 1.1, z + 0.05), 2.3)
    c = (p.u - 1.1 + 0.35 * s.fbm(p.u, p.v * 0.7, 0.7) * p.v) / (0.8 * np.clip(1.05 - p.v / 2.1, 0.01, 1))
    heat = np.clip(1 - c * c, 0, 1) * np.clip(1.2 - p.v / 1.8 + 0.5 * s.fbm(p.u * 1.8, p.v, 0.5), 0, 1)
    emit = np.stack([2.6 * heat, 1.15 * heat**1.7, 0.30 * heat**3], -1)
    s.paint(p, np.zeros(3), s.air + 190 * heat, 0.9, emit, cover=np.clip(heat * 2.2, 0, 1))
    s.heat((x, 0, z), 1.2, 16)
    s.lamps.append(((x, 0.9, z - 0.6), np.float32([1, 0.45, 0.12]) * 2.2, None, 0))


def plume(s, x, z):
    """Smoke rising from (x, z) and drifting right: optical depth, start and end of the layer, colour."""
    sx, sy = s.rx * z, s.eye - s.ry * z  # position in the plane of the fire
    wx = sx + 0.35 * s.fbm(sx, sy, 2.4, 3)
    wy = sy + 0.35 * s.fbm(sx + 50, sy, 2.4, 3)
    billow = s.fbm(wx, wy * 1.15, 2.8, 7)
    right = wx - x
    core = 0.9 + 0.30 * np.clip(right, 0, 99)  # the plume's centre line climbs as it drifts
    half = 0.9 + 0.28 * np.clip(right, 0, 99)
    band = np.exp(-(((sy - core) / half) ** 2)) * np.clip(right + 0.7, 0, 1.6) / 1.6
    low = np.exp(-((sy / 2.2) ** 2)) * np.clip((right - 0.2) / 1.6, 0, 1) * np.clip((10.5 - right) / 3, 0, 1)
    fade = np.clip((12.5 - right) / 5, 0, 1)
    tau = 5.0 * np.clip((band + low) * fade * (1 + 0.8 * billow) - 0.06, 0, 1.2)
    # Lit from the upper left: bright where the billows thin out in that direction.
    slope = s.fbm(wx - 0.5, (wy + 0.5) * 1.15, 2.8, 4) - s.fbm(wx, wy * 1.15, 2.8, 4)
    lit = 0.55 - 0.9 * slope + 0.15 * billow + 0.05 * (sy - core)
    shade = blur(np.clip(lit, 0, 1), 2.5)
    colour = mix(np.float32([0.20, 0.19, 0.19]), np.float32([0.62, 0.60, 0.58]), shade)
    return blur(tau.astype(np.float32), 3.0), z - 5.5, z - 2.0, colour


def overexposed_sky():
    """A view against the sun: the overexposed sky hides wires and tree crowns, but not in the infrared image."""
    s = Scene(37, horizon=600, eye=1.6, air=15.0)
    tg.sky(s, (0.9, 1.0, 1.15), (1.5, 1.5, 1.45), cold=-24, cloud=16)
    sun = np.exp(-((s.rx - 0.10) ** 2 + (s.ry + 0.42) ** 2) / 0.10)[..., None]
    s.emit += np.float32([9.0, 8.4, 7.2]) * sun + 40 * sun**9
    tg.treeline(s, 170, 26, (0.05, 0.08, 0.04), s.air + 1, -400, 400)
    tg.treeline(s, 90, 9, (0.07, 0.10, 0.04), s.air + 0.5, -200, 200)
    pylon(s, 14, 75)
    lawn_and_path(s)
    tg.blades(s, 30000, -8, 8, 2.8, 16)
    tg.tree(s, -9.5, 22, 11, 3.9, (0.09, 0.17, 0.04), leaves=15600, leaf=0.11, trunk=0.24)
    tg.tree(s, 13.0, 26, 12, 4.2, (0.10, 0.16, 0.04), leaves=15600, leaf=0.12, trunk=0.26)
    house(s)
    tg.tree(s, 7.6, 15, 6.4, 2.0, (0.12, 0.20, 0.05), leaves=10800, leaf=0.08)
    fence(s)
    tg.figure(s, 2.35, 8.8, tg.person(14, 0.4, (12, 8), (15, 10)),
              tg.clothes((0.35, 0.05, 0.06), (0.05, 0.07, 0.15), 28))
    tg.figure(s, 3.5, 8.6, tg.dog(), tg.hide((0.22, 0.13, 0.06), 30), flip=True)
    tg.figure(s, -5.3, 17.5, tg.person(6, 0.2, (10, 30)),
              tg.clothes((0.10, 0.20, 0.30), (0.10, 0.09, 0.07), 28))
    light = s.lighting((0.34, 0.38, 0.44), (0.5, 0.46, 0.38), (0.15, 0.62, 0.75))
    return s.visible(light, 1.0, glare=0.06, noise=0.005, chroma=0.3), s.infrared(-16, 42)


def house(s):
    """A brick house with a sun-warmed tiled roof, chimney, antenna, windows and a numbered door."""
    x0, x1, z0, zr, eaves, ridge = -6.2, 2.4, 18.0, 22.0, 3.1, 6.6
    wall = s.rect((x0, z0), (x1, z0), eaves)
    temp, bricks = s.air + 1 + 0.5 * wall.v, tg.brick(s, wall, (0.40, 0.19, 0.12))
    albedo, temp, emis, _ = tg.windows(s, wall, bricks, temp, 0.0, (2.1, 9.0), (1.2, 1.4), (0.7, 0.95), 99, 3)
    s.paint(wall, albedo, temp + 0.5 * s.fbm(wall.u, wall.v, 1.2), emis)
    door = s.rect((-1.55, z0 - 0.02), (-0.15, z0 - 0.02), 2.45)
    s.paint(door, tg.planks(s, door, (0.05, 0.16, 0.22), 0.18), s.air + 5)
    plate = s.rect((0.02, z0 - 0.02), (0.42, z0 - 0.02), 0.36, 1.7)
    number = tg.lettering(plate, "12", (0.04, 0.05, 0.36, 0.31), 9)
    s.paint(plate, mix(np.float32([0.7, 0.7, 0.68]), (0.02, 0.02, 0.1), number), s.air + 2)
    house_roof(s, x0 - 0.4, x1 + 0.4, z0 - 0.4, zr, eaves - 0.3, ridge)
    chimney = s.rect((-4.4, 21), (-3.5, 21), 2.6, 5.6)
    flue = s.air + 13 + 6 * inside(chimney.v, 2.2, 3) + s.fbm(chimney.u, chimney.v, 0.5)
    s.paint(chimney, tg.brick(s, chimney), flue)
    steel = (0.2, 0.2, 0.2)
    tg.bar(s, (0.8, 6.3, 21), (0.8, 8.6, 21), 0.03, steel, s.air + 3)
    for k in range(5):
        y = 7.5 + 0.25 * k
        tg.bar(s, (0.25 + 0.06 * k, y, 21), (1.35 - 0.06 * k, y, 21), 0.025, steel, s.air + 3)


def house_roof(s, x0, x1, z0, z1, y0, y1):
    """Tiles (visible), the timbers that keep them warm (infrared), a skylight and a gutter."""
    p = s.facet([(x0, y0, z0), (x1, y0, z0), (x1, y1, z1), (x0, y1, z1)])
    row = np.floor(p.v / 0.3)
    along = p.u / 0.25 + row * 0.5
    tile = inside(p.v / 0.3 % 1, 0.14, 1, footprint(p.v / 0.3))
    tile = tile * inside(along % 1, 0.1, 1, footprint(p.u / 0.25))
    tone = (0.6 + 0.6 * s.cell(along, row)) * (0.45 + 0.55 * tile) * (1 + 0.3 * s.fbm(p.u, p.v, 1.0))
    rafters = inside(p.u % 0.9, 0, 0.14, footprint(p.u))
    temp = s.air + 4 + 0.9 * p.v + 1.2 * rafters + 1.2 * s.fbm(p.u, p.v, 2.0)
    s.paint(p, tint((0.34, 0.13, 0.08), tone), temp)
    za, zb = z0 + 1.58, z0 + 2.48
    pane = s.facet([(-1.8, 4.3, za), (-0.9, 4.3, za), (-0.9, 5.1, zb), (-1.8, 5.1, zb)])
    s.paint(pane, (0.06, 0.07, 0.08), s.air + 1, 0.8)
    tg.bar(s, (x0, y0, z0 - 0.05), (x1, y0, z0 - 0.05), 0.08, (0.30, 0.30, 0.30), s.air + 2)


def pylon(s, x, z):
    """A lattice mast with wires that sag towards the camera's left."""
    for sg in (-1, 1):
        tg.bar(s, (x + 2.2 * sg, 0, z), (x + 0.4 * sg, 30, z), 0.16, (0.2, 0.2, 0.2), s.air + 6)
    for k in range(9):
        y0, y1 = 3.2 * k, 3.2 * (k + 1)
        w0, w1 = 2.2 - 0.06 * y0, 2.2 - 0.06 * y1
        for sg in (-1, 1):
            tg.bar(s, (x - sg * w0, y0, z), (x + sg * w1, y1, z), 0.09, (0.2, 0.2, 0.2), s.air + 5)
    for y, reach in ((22, 5.5), (26, 4.2)):
        tg.bar(s, (x - reach, y, z), (x + reach, y, z), 0.14, (0.2, 0.2, 0.2), s.air + 6)
        for sg in (-1, 1):
            ends = np.array([(x + sg * reach, y - 0.8, z), (x + sg * reach - 42, y - 1.5, z - 22)])
            t = np.linspace(0, 1, 17)
            pts = ends[0] + (ends[1] - ends[0]) * t[:, None] - np.array([0, 10, 0]) * (t * (1 - t))[:, None]
            for a, b in pairwise(pts):
                tg.bar(s, a, b, 0.05, (0.1, 0.1, 0.1), s.air + 8)


def lawn_and_path(s):
    """Grass with flowers and a winding path of setts."""
    g = s.ground()
    x, z = g.u - 300, g.v + 1.2
    mid = 1.2 - 1.9 * np.clip((z - 4) / 13, 0, 1.2) ** 1.5
    path = inside(np.abs(x - mid), -1, 0.85 + 0.08 * s.fbm(x, z, 0.5)) * inside(z, 0, 18)
    row = np.floor(z / 0.3)
    along = x / 0.36 + 0.5 * (row % 2)
    sett = inside(along % 1, 0.08, 1, footprint(x / 0.36)) * inside(z / 0.3 % 1, 0.1, 1, footprint(z / 0.3))
    tone = (0.6 + 0.7 * s.cell(along, row)) * (0.35 + 0.65 * sett) * (1 + 0.3 * s.fbm(x, z, 0.2))
    stone = tint((0.34, 0.31, 0.28), tone)
    lawn = tg.grass(s, g)
    spot = np.hypot(x / 0.22 % 1 - 0.5, z / 0.22 % 1 - 0.5) < 0.2
    bloom = spot * (s.cell(x / 0.22, z / 0.22, 2) < 0.2) * (s.fbm(x, z, 3.0) > -0.1)
    yellow = s.cell(x / 0.22, z / 0.22, 4) < 0.5
    petal = np.where(yellow[..., None], np.float32([0.8, 0.7, 0.1]), np.float32([0.8, 0.75, 0.8]))
    lawn = np.where(bloom[..., None] > 0, petal, lawn)
    temp = s.air + 0.8 + 0.9 * s.fbm(x, z, 1.4) + path * (4 + 0.8 * (s.cell(along, row) - 0.5))
    s.paint(g, mix(lawn, stone, path), temp, 0.96)


def fence(s):
    """A painted picket fence on both sides of the path."""
    for a, b in ((-9.0, -3.2), (4.2, 11.0)):
        for y in (0.35, 0.8):
            p = s.rect((a, 13.02), (b, 13.02), 0.09, y)
            s.paint(p, tg.speckle(s, p, (0.55, 0.53, 0.48)), s.air + 3)
        for k in np.arange(a, b, 0.24):
            outline = (0, 0.08), (0.13, 0.08), (0.13, 1.0), (0.065, 1.1), (0, 1.0)
            p = s.facet([(k + px, py, 13) for px, py in outline])
            s.paint(p, tg.planks(s, p, (0.6, 0.58, 0.53), 0.6), s.air + 3.5)


def low_light():
    """A farm after dusk: a noisy visible image with colours, and warm animals that are hard to see in it."""
    s = Scene(53, horizon=450, air=5.0)
    tg.sky(s, (0.006, 0.009, 0.020), (0.03, 0.032, 0.04), cold=-22, cloud=10)
    tg.treeline(s, 70, 13, (0.05, 0.08, 0.03), s.air - 0.5)
    g = s.ground()
    x, z = g.u - 300, g.v + 1.2
    track = np.exp(-(((x - 1.2 - 0.05 * z) / 0.5) ** 2)) + np.exp(-(((x - 3.2 - 0.05 * z) / 0.5) ** 2))
    track = np.clip(track * (1 + 0.5 * s.fbm(x, z, 0.6)), 0, 1)
    s.paint(g, mix(tg.grass(s, g), tg.speckle(s, g, (0.20, 0.14, 0.09), 0.6, 0.4), track),
            s.air - 2 + 2.2 * track + 0.8 * s.fbm(x, z, 1.2), 0.96)
    tg.blades(s, 30000, -9, 9, 2.8, 15, 0.13)
    tg.tree(s, 9.5, 19, 8.5, 3.2, (0.09, 0.15, 0.04), leaves=12600, leaf=0.10)
    tg.tree(s, 4.2, 30, 9.5, 3.4, (0.10, 0.13, 0.04), leaves=10800, leaf=0.12)
    barn(s)
    field_fence(s)
    tg.car(s, 5.0, 11.5, 215, (0.04, 0.22, 0.24), engine=22)
    coat = tg.clothes((0.30, 0.10, 0.03), (0.05, 0.07, 0.16), 21)
    tg.figure(s, -1.3, 9.2, tg.person(16, 0.7, (10, 14), (18, 30), 0.04), coat)
    tg.figure(s, -0.1, 9.0, tg.dog(), tg.hide((0.12, 0.08, 0.05), 24))
    tg.figure(s, 1.05, 12.5, tg.deer(), tg.hide((0.16, 0.10, 0.06), 23), flip=True)
    tg.figure(s, 3.0, 15.0, tg.deer(graze=True), tg.hide((0.16, 0.10, 0.06), 23))
    tg.figure(s, -8.6, 14.3, tg.person(6, 0.2, (10, 16), (15, 40)),
              tg.clothes((0.03, 0.03, 0.04), (0.03, 0.03, 0.05), 20))
    light = s.lighting((0.020, 0.024, 0.036), (0.016, 0.020, 0.030), (0.5, 0.7, -0.5))
    return s.visible(light, 2.9, glare=0.014, noise=0.011, chroma=0.7, soft=1.2), s.infrared(-9, 38)


def barn(s):
    """A plank barn with a hay door, a lantern and a line of coloured blankets."""
    wall = s.facet([(-13, 0, 15), (-3.2, 0, 15), (-3.2, 3.4, 15), (-8.1, 6.4, 15), (-13, 3.4, 15)])
    albedo = tg.planks(s, wall, (0.30, 0.08, 0.05), 0.25)
    sign = tg.lettering(wall, "FARM", (4.1, 3.2, 7.0, 3.9), 9)
    temp = s.air + 1 + 0.2 * wall.v + 0.3 * s.fbm(wall.u * 3, wall.v, 1.0)
    s.paint(wall, mix(albedo, (0.7, 0.68, 0.6), sign), temp)
    side = s.rect((-3.2, 15), (-3.2, 24), 3.4)
    s.paint(side, tg.planks(s, side, (0.30, 0.08, 0.05), 0.25), s.air + 1)
    door = s.rect((-7.6, 14.97), (-5.0, 14.97), 2.6)
    du, dv = door.u / 2.6, door.v / 2.6
    cross = np.maximum(inside(np.abs(du - dv), -1, 0.05), inside(np.abs(du + dv - 1), -1, 0.05))
    rim = 1 - inside(door.u, 0.14, 2.46) * inside(door.v, 0.14, 2.46)
    s.paint(door, mix(tg.planks(s, door, (0.16, 0.05, 0.03)), (0.55, 0.53, 0.48), np.maximum(cross, rim)),
            s.air + 3.5 + 1.2 * s.fbm(door.u, door.v, 0.8))
    for xe in (-13.5, -2.7):
        tg.bar(s, (xe, 3.1, 14.8), (-8.1, 6.45, 14.8), 0.12, (0.25, 0.23, 0.2), s.air - 1)
    tg.disc(s, -4.3, 2.5, 14.6, 0.09, (0.3, 0.3, 0.3), s.air + 40, np.float32([1.0, 0.62, 0.25]) * 6)
    s.lamps.append(((-4.3, 2.45, 14.3), np.float32([1.0, 0.6, 0.25]) * 1.3, None, 0))
    tg.bar(s, (-3.1, 2.1, 13.2), (-0.2, 2.05, 13.2), 0.015, (0.3, 0.3, 0.3), s.air - 1)
    tg.post(s, -0.2, 13.2, 2.1, 0.05, (0.2, 0.14, 0.09))
    red, cream, blue, grey = (0.5, 0.06, 0.05), (0.6, 0.55, 0.4), (0.05, 0.18, 0.40), (0.6, 0.6, 0.6)
    for x, colour, other in ((-2.75, red, cream), (-1.55, blue, grey)):
        p = s.rect((x, 13.15), (x + 1.05, 13.15), 1.25, 0.8)
        weave = inside(p.v % 0.3, 0, 0.11, footprint(p.v)) + inside(p.u % 0.35, 0, 0.08, footprint(p.u))
        fold = 1 + 0.35 * np.sin(p.u * 11 + x)
        s.paint(p, mix(np.float32(colour), other, np.clip(weave, 0, 1)) * fold[..., None], s.air - 1)


def field_fence(s):
    """A rail fence across the field behind the barn."""
    for k in np.arange(-2.0, 14.0, 2.0):
        tg.post(s, k, 24, 1.3, 0.08, (0.22, 0.17, 0.12), s.air - 0.5)
    for y in (0.5, 0.95):
        tg.bar(s, (-2.5, y, 24), (14, y, 24), 0.05, (0.24, 0.19, 0.14), s.air - 0.5)


SCENES = {"night_street": night_street, "smoke": smoke, "overexposed_sky": overexposed_sky,
          "low_light": low_light}


def main():
    """Write ``ir/NAME.png`` and ``vis/NAME.png`` for every scene."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parents[2] / "samples",
                        help="folder to write to")
    parser.add_argument("--only", choices=SCENES, help="draw one scene")
    args = parser.parse_args()
    cv2.setNumThreads(1)  # a fixed order of summation, so that all machines give the same result
    for name, draw in SCENES.items():
        if args.only in (None, name):
            for kind, image in zip(("vis", "ir"), draw(), strict=True):
                path = args.out / kind / f"{name}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                if not cv2.imwrite(str(path), image, [cv2.IMWRITE_PNG_COMPRESSION, 9]):
                    raise OSError(f"cannot write {path}")


if __name__ == "__main__":
    main()
