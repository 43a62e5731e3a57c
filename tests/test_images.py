"""Pixels in and out: files, luma, colour conversion."""
import warnings
import zlib

import cv2
import numpy as np
import pytest

import images
from images import (
    DataError,
    apparent_shift,
    luma,
    read_gray,
    read_ir,
    read_result,
    read_vis,
    split_colour,
    to_image,
    visible_bits,
    write_image,
)

rng = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def the_same_images_in_any_order_of_tests():
    rng.bit_generator.state = np.random.default_rng(0).bit_generator.state


def gray(height=20, width=30, dtype=np.uint8):
    return rng.integers(0, np.iinfo(dtype).max, (height, width), dtype)


def save(path, image=None):
    cv2.imwrite(str(path), gray() if image is None else image)
    return path


# --- reading ---


def test_rgba_loses_alpha_and_gray_in_three_planes_is_gray(tmp_path):
    rgba = rng.integers(0, 256, (20, 30, 4), np.uint8)
    assert np.array_equal(read_vis(save(tmp_path / "a.png", rgba)), rgba[..., 2::-1])
    plane = gray()
    assert np.array_equal(read_vis(save(tmp_path / "b.png", np.dstack([plane] * 3))), plane)


def test_a_path_need_not_be_ascii(tmp_path):
    image = gray()
    write_image(tmp_path / "Übung 図.png", image)
    assert np.array_equal(read_gray(tmp_path / "Übung 図.png"), image)


def test_files_that_cannot_be_read_are_named(tmp_path):
    path = save(tmp_path / "a.png")
    data = bytearray(path.read_bytes())
    data[16:24] = (40000).to_bytes(4, "big") * 2            # the header's width and height: more than OpenCV takes
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    for broken in (bytes(data), b"", b"damaged", b"\x89PNG nothing more"):
        path.write_bytes(broken)
        for read in (read_ir, read_vis, read_gray):
            with pytest.raises(DataError, match=r"a\.png: not an image"):
                read(path)
    with pytest.raises(DataError, match=r"absent\.png: no such file"):
        read_ir(tmp_path / "absent.png")


def test_a_file_without_permission_is_named(tmp_path, monkeypatch):
    path = save(tmp_path / "a.png")

    def refuse(*_):
        raise PermissionError(13, "Permission denied")
    monkeypatch.setattr(images.Path, "read_bytes", refuse)
    with pytest.raises(DataError, match=r"a\.png: cannot be read \(Permission denied\)"):
        read_vis(path)


def test_16_bit_infrared_is_scaled_by_its_own_range_and_says_so(tmp_path):
    raw = np.linspace(7000, 8020, 600).astype(np.uint16).reshape(20, 30)
    with pytest.warns(UserWarning, match="16-bit infrared") as caught:
        image = read_ir(save(tmp_path / "a.png", raw))
        read_ir(save(tmp_path / "b.png", raw[::-1] // 2))
    assert [warning.message.args[1] for warning in caught] == ["a.png", "b.png"]
    assert len({warning.message.args[0] for warning in caught}) == 1        # so that a command names them in one line
    assert image.min() == 0 and image.max() == 255
    assert np.abs(image - (raw - 7000.) / 4).max() <= 0.5
    with pytest.warns(UserWarning):
        assert (read_ir(save(tmp_path / "flat.png", np.full((20, 30), 500, np.uint16))) == 0).all()


def test_16_bit_visible_keeps_its_exposure(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = read_vis(save(tmp_path / "a.png", np.array([[0, 257, 32896, 65535]] * 9, np.uint16)))
    assert image[0].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize("bits", [12, 14])
def test_fewer_bits_in_a_16_bit_visible_image_fill_the_range(tmp_path, bits):
    levels = np.array([[0, 2**bits // 2, 2**bits - 1]] * 9, np.uint16)
    with pytest.warns(UserWarning, match=f"a.png: .*{bits} bits"):
        assert read_vis(save(tmp_path / "a.png", levels))[0].tolist() == [0, 128, 255]


def test_16_bit_visible_with_a_given_depth(tmp_path):
    path = save(tmp_path / "a.png", np.array([[0, 512, 1023]] * 9, np.uint16))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_vis(path, 10)[0].tolist() == [0, 128, 255]
        assert read_vis(path, 12)[0].tolist() == [0, 32, 64]
        assert read_vis(path, 16)[0].tolist() == [0, 2, 4]
    assert visible_bits(path) == 12 and visible_bits(save(tmp_path / "b.png")) == 8
    with pytest.raises(DataError, match=r"a.png: has levels above 511 \(9 bits\); --vis-bits"):
        read_vis(path, 9)
    with pytest.raises(DataError, match="b.png: 8-bit visible"):
        read_vis(tmp_path / "b.png", 12)


def test_infrared_of_16_bits_with_a_given_range(tmp_path):
    path = save(tmp_path / "a.png", np.array([[0, 1000, 1051, 1510, 1600]] * 9, np.uint16))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_ir(path, (1000, 1510))[0].tolist() == [0, 0, 26, 255, 255]
    with pytest.raises(DataError, match="a.png: 8-bit infrared"):
        read_ir(save(tmp_path / "a.png"), (0, 100))


def test_colour_maps_are_named_and_the_colours_of_jpeg_are_not(tmp_path):
    image = cv2.GaussianBlur(gray(100, 120), (0, 0), 3)
    with pytest.warns(UserWarning, match="a.png: infrared in colour"):
        read_ir(save(tmp_path / "a.png", cv2.applyColorMap(image, cv2.COLORMAP_INFERNO)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_ir(save(tmp_path / "a.jpg", np.dstack([image, image + 1, image])))


# --- alignment ---


@pytest.mark.parametrize(("down", "right"), [(0, 0), (0, 9), (-14, 0), (11, -7), (12, 12)])
@pytest.mark.parametrize("size", [1, 3])
def test_shifts_are_found_also_in_a_negative_of_another_contrast(down, right, size):
    blocks = cv2.resize(gray(30, 40), None, fx=10 * size, fy=10 * size, interpolation=cv2.INTER_CUBIC)
    height, width = 220 * size, 300 * size
    vis = blocks[30:30 + height, 40:40 + width]
    ir = 200 - blocks[30 + down:30 + down + height, 40 + right:40 + right + width] // 2
    for shift in apparent_shift(ir, vis), apparent_shift(np.dstack([ir] * 3), vis):
        if down or right:
            assert shift == pytest.approx(np.hypot(down, right), abs=1.5)
        else:
            assert not shift


def test_nothing_is_said_of_images_without_common_edges_or_very_small_ones():
    assert not apparent_shift(gray(200, 200), gray(200, 200))
    assert not apparent_shift(np.zeros((200, 200), np.uint8), gray(200, 200))
    image = gray(60, 300)
    assert apparent_shift(image, np.roll(image, 9, 1)) is None
    lines = gray(100, 30000)
    assert apparent_shift(lines, lines) is None     # one row after resizing


def test_other_pixel_types_are_refused(tmp_path):
    with pytest.raises(DataError, match="float32"):
        read_vis(save(tmp_path / "a.tif", np.zeros((20, 30), np.float32)))


def test_infrared_and_gray_readers_take_the_luma_of_colour(tmp_path):
    path = save(tmp_path / "a.png", np.full((20, 30, 3), (50, 100, 200), np.uint8))      # OpenCV's blue, green, red
    expected = round(0.299 * 200 + 0.587 * 100 + 0.114 * 50)
    with pytest.warns(UserWarning, match="a.png: infrared in colour"):
        assert (read_ir(path) == expected).all()
    assert (read_gray(path) == expected).all()


# --- writing ---


def test_png_round_trip_keeps_every_pixel_and_the_order_of_colours(tmp_path):
    for image in (gray(), rng.integers(0, 256, (20, 30, 3), np.uint8)):
        write_image(tmp_path / "a.png", image)
        assert np.array_equal(read_vis(tmp_path / "a.png"), image)
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]      # no temporary file is left


def test_an_unknown_suffix_is_named(tmp_path):
    for name in ("a.xyz", "a"):
        with pytest.raises(DataError, match=f"{name}: cannot encode .*use .png"):
            write_image(tmp_path / name, gray())


# --- colour ---


def test_luma_is_bt601():
    pixel = np.array([[[200, 100, 50]]], np.uint8)
    assert luma(pixel)[0, 0] == round(0.299 * 200 + 0.587 * 100 + 0.114 * 50)


def test_colour_round_trip_is_exact_to_one_level():
    rgb = rng.integers(0, 256, (40, 50, 3), np.uint8)
    assert np.abs(to_image(*split_colour(rgb)).astype(int) - rgb).max() <= 1
    gray = rgb[..., 0]
    assert np.array_equal(to_image(*split_colour(gray)), gray)


def test_luminance_weighs_red_green_and_blue_in_this_order():
    pure = np.eye(3, dtype=np.uint8)[None] * 255
    np.testing.assert_allclose(split_colour(pure)[0][0], [0.299, 0.587, 0.114], atol=1e-3)
    # Y, Cr, Cb of a saturated red through the studio-range matrix, by hand.
    chroma = np.float32([[[0.9, 0.4]]])
    y = 1.164 * (90 / 255 - 16 / 255)
    expected = [y + 1.596 * 0.4, y - 0.813 * 0.4 + 0.392 * 0.1, y - 2.017 * 0.1]
    image = to_image(np.float32([[90 / 255]]), chroma, studio_range=True)
    assert image[0, 0].tolist() == [round(255 * min(max(v, 0), 1)) for v in expected]


def test_studio_range_is_the_published_stretch():
    levels = np.array([[0, 16, 100, 235, 255]], np.uint8)
    stretched = to_image(np.float32(levels) / 255, None, studio_range=True)
    assert stretched.tolist() == [[0, 0, round(1.164 * 84), 255, 255]]
    # A gray visible image has Cr = Cb = 1/2 and stays gray.
    colour = to_image(np.float32(levels) / 255, np.full((1, 5, 2), 0.5, np.float32), studio_range=True)
    assert (colour == stretched[..., None]).all()


def test_values_outside_the_range_are_clipped_not_wrapped():
    assert to_image(np.float32([[-0.1, 0.5, 1.2]])).tolist() == [[0, 128, 255]]


@pytest.mark.parametrize(("image", "message"), [
    (np.random.default_rng(0).random((20, 20)), r"float64 \(20, 20\); convert values in \[0, 1\]"),
    (np.full((20, 20), 300), "int64"), (np.zeros((20, 20, 4), np.uint8), r"\(20, 20, 4\)"),
    (np.zeros((20, 20, 1), np.uint8), r"\(20, 20, 1\)"), (np.zeros((20, 20), np.uint16), "uint16")])
def test_only_images_that_a_file_keeps_are_written(tmp_path, image, message):
    with pytest.raises(TypeError, match=rf"a.png: expected an image of uint8, .*got .*{message}"):
        write_image(tmp_path / "a.png", image)
    assert not any(tmp_path.iterdir())


def test_two_equal_planes_are_still_colour(tmp_path):
    plane = gray()
    for planes in ((plane, plane, 255 - plane), (plane, 255 - plane, plane), (255 - plane, plane, plane)):
        assert np.array_equal(read_vis(save(tmp_path / "a.png", np.dstack(planes[::-1]))), np.dstack(planes))


def test_a_depth_of_8_bits_fits_8_bit_images(tmp_path):
    plane = gray()
    assert np.array_equal(read_vis(save(tmp_path / "a.png", plane), 8), plane)


def test_nearly_gray_infrared_of_16_bits_is_no_colour_map(tmp_path):
    noise = np.random.default_rng(0).integers(0, 60000, (100, 120), np.uint16)
    plane = cv2.GaussianBlur(noise, (0, 0), 3)
    path = save(tmp_path / "a.png", np.dstack([plane, plane + 257, plane]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_ir(path, (0, 65535))


@pytest.mark.parametrize("top, noted", [(4095, True), (16383, True), (16384, False)])
def test_a_dark_result_of_16_bits_is_noted(tmp_path, top, noted):
    path = save(tmp_path / "a.png", np.linspace(0, top, 600).astype(np.uint16).reshape(20, 30))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert read_result(path).max() == round(top / 257)
    assert bool(caught) == noted and all("too dark" in str(warning.message) for warning in caught)
