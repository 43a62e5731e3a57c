"""What OpenCV passes over in image files."""
import io
import zlib

import cv2
import numpy as np
import pytest
import tifffile  # a requirement of scikit-image
from PIL import Image, ImageOps, TiffImagePlugin

from images import DataError, decode, read_gray, read_ir, read_vis
from support import headers
from support.console import ImageWarning


def smooth(height=40, width=60, seed=0):
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 2), None, 0, 255, cv2.NORM_MINMAX)


def stored(image, kind, **options):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, **options)
    if options.get("big_tiff") and not buffer.getvalue().startswith(b"II+\0"):
        pytest.skip("Pillow before 11.1 writes no BigTIFF")
    return buffer.getvalue()


def test_reading_a_header_loses_no_note_of_another_thread(monkeypatch):
    """The filters of warnings are those of all threads: with "ignore" in one thread, the notes of all are lost."""
    from support import console

    directory, notes = TiffImagePlugin.ImageFileDirectory_v2, []
    data, load = stored(smooth(), "TIFF"), directory.load
    monkeypatch.setattr(directory, "load", lambda *given: console.note("as of another thread", "a.png") or load(*given))
    with console.collected(notes):
        headers.pages(data)
        headers.min_is_white(data)
    assert notes == [("as of another thread", "a.png")] * 2


# --- orientation ---


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_images_are_upright_as_pillow_shows_them(tmp_path, kind, orientation):
    """The pixels are those of OpenCV, whose versions differ in which kinds of files they turn."""
    exif = Image.Exif()
    exif[274] = orientation
    data = stored(smooth(), kind, exif=exif)
    assert headers.orientation(data) == orientation
    path = tmp_path / f"a.{kind.lower()}"
    path.write_bytes(data)
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    pixels = Image.fromarray(cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), flags), cv2.COLOR_BGR2RGB))
    pixels.getexif()[274] = orientation
    assert np.array_equal(read_vis(path), ImageOps.exif_transpose(pixels))
    with pytest.warns(UserWarning, match="in colour"):
        assert read_ir(path).shape == read_gray(path).shape == ((60, 40) if orientation >= 5 else (40, 60))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")     # of Pillow; commands leave it out of their notes
@pytest.mark.parametrize("exif", [b"", b"II*\0", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\xff\xff", b"nothing",
                                  b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x63\0\0\0"])
def test_damaged_or_senseless_exif_is_upright(exif):
    assert headers.orientation(stored(smooth(), "JPEG", exif=b"Exif\0\0" + exif)) == 1


def test_files_without_exif_are_upright():
    for kind in ("JPEG", "PNG", "WEBP", "BMP"):
        assert headers.orientation(stored(smooth(), kind)) == 1


def test_exif_after_the_pixels_of_a_png_is_found():
    exif = Image.Exif()
    exif[274] = 6
    data, block = stored(smooth(), "PNG"), exif.tobytes().removeprefix(b"Exif\0\0")
    chunk = len(block).to_bytes(4, "big") + b"eXIf" + block + zlib.crc32(b"eXIf" + block).to_bytes(4, "big")
    assert headers.orientation(data[:-12] + chunk + data[-12:]) == 6


# --- min is white ---


@pytest.mark.parametrize("big", [False, True])
def test_a_16_bit_tiff_whose_zero_is_white_is_no_negative(tmp_path, big):
    deep = smooth()[..., 0].astype(np.uint16) * 257
    for photometric, expected in ((1, deep), (0, 65535 - deep)):
        data = stored(deep, "TIFF", tiffinfo={262: photometric}, big_tiff=big)
        assert data[:4] == (b"II+\0" if big else b"II*\0")
        (tmp_path / "a.tif").write_bytes(data)
        assert np.array_equal(read_vis(tmp_path / "a.tif"), expected // 257)


# --- pages ---


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")     # of Pillow; commands leave it out of their notes
def test_further_pages_of_a_tiff_are_mentioned_and_thumbnails_are_not(tmp_path):
    page, small = (Image.fromarray(smooth(side, side)) for side in (64, 16))
    for name, pages in (("three", [(page, {})] * 3), ("thumbnail", [(page, {}), (small, {254: 1})])):      # 1: a reduced copy
        with TiffImagePlugin.AppendingTiffWriter(str(tmp_path / f"{name}.tif"), new=True) as file:
            for image, tags in pages:
                image.save(file, "TIFF", tiffinfo=tags)
                file.newFrame()
    assert [headers.pages((tmp_path / f"{name}.tif").read_bytes()) for name in ("three", "thumbnail")] == [3, 1]
    assert headers.pages(stored(smooth(), "PNG")) == headers.pages(b"II*\0damaged") == 1
    with pytest.warns(ImageWarning, match="three.tif: the file has several pages or frames, and only the first is read"):
        read_vis(tmp_path / "three.tif")


@pytest.mark.parametrize("kind", ["GIF", "WEBP"])
def test_further_frames_of_an_animation_are_mentioned(kind):
    frames = [Image.fromarray(smooth() // level) for level in (1, 2, 3)]
    data = stored(smooth(), kind, save_all=True, append_images=frames[1:])
    assert headers.pages(data) == 3 and headers.pages(stored(smooth(), kind)) == headers.pages(data[:20]) == 1


def test_further_pages_of_a_big_tiff_are_mentioned():
    assert headers.pages(stored(smooth(), "TIFF", big_tiff=True, save_all=True, append_images=[Image.fromarray(smooth())])) == 2


# --- damage ---


def jpegs():
    for options in ({}, {"progressive": True}, {"restart_marker_blocks": 2}, {"optimize": True}):
        yield stored(smooth(), "JPEG", quality=95, **options)
    thumbnail = stored(smooth(8, 8), "JPEG")        # has an end of its own
    yield stored(smooth(), "JPEG", quality=95, exif=b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0" + thumbnail)


def test_whole_jpegs_are_whole_also_with_something_behind():
    for data in jpegs():
        assert headers.damage(data) == headers.damage(data + b"\0" * 999) == ""


@pytest.mark.parametrize("share", [0.3, 0.5, 0.8, 0.99])
def test_jpegs_that_end_early_are_refused(tmp_path, share):
    for data in jpegs():
        (tmp_path / "a.jpg").write_bytes(data[:int(share * len(data))])
        with pytest.raises(DataError, match=r"a\.jpg: "):
            read_vis(tmp_path / "a.jpg")


def test_overwritten_bytes_in_a_jpeg_are_noticed():
    data = bytearray(stored(smooth(200, 300), "JPEG", quality=95))
    data[len(data) // 2:len(data) // 2 + 2000] = np.random.default_rng(1).integers(0, 256, 2000, np.uint8).tobytes()
    assert "damaged" in headers.damage(bytes(data))


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate"])
def test_damaged_8_bit_tiffs_are_refused(tmp_path, compression, big):
    data = bytearray(stored(smooth(100, 120), "TIFF", compression=compression, big_tiff=big))
    assert headers.damage(bytes(data)) == ""
    data[len(data) // 2:len(data) // 2 + 500] = np.random.default_rng(1).integers(0, 256, 500, np.uint8).tobytes()
    (tmp_path / "a.tif").write_bytes(data)
    with pytest.raises(DataError, match=r"a\.tif: (its data are damaged|not an image)"):
        read_vis(tmp_path / "a.tif")


def test_a_deflated_tiff_that_decodes_with_a_wrong_checksum_is_noticed():
    data = stored(np.zeros((20, 30), np.uint8), "TIFF", compression="tiff_adobe_deflate")
    checksum = zlib.adler32(bytes(600)).to_bytes(4, "big")
    assert checksum in data and headers.damage(data) == ""
    assert "damaged" in headers.damage(data.replace(checksum, b"\x12\x34\x56\x78"))


# --- kinds of TIFF that OpenCV decodes to wrong pixels ---


@pytest.mark.parametrize("colour, deep, options, words", [
    (True, True, {"planarconfig": "separate"}, "16-bit TIFF with separate planes"),
    (True, False, {"planarconfig": "separate"}, ""),
    (False, True, {"extrasamples": ["unassalpha"]}, "TIFF of 16 bits, of which OpenCV reads only 8"),
    (False, False, {"tile": (32, 32), "orientation": 3}, "TIFF with tiles and orientation 3"),
    (False, False, {"tile": (32, 32), "orientation": 4}, ""),
    (False, True, {"tile": (32, 32), "orientation": 3}, ""),
    (False, False, {"orientation": 3}, ""),
    (True, False, {"extrasamples": ["unassalpha"]}, "TIFF with transparent pixels"),
    (True, False, {"extrasamples": ["unassalpha"], "opaque": True}, "")], ids=str)
def test_tiffs_that_opencv_misreads_are_refused_and_their_neighbours_read(tmp_path, colour, deep, options, words):
    pixels = expected = smooth(64, 96) if colour else smooth(64, 96)[..., 0]
    orientation, opaque = options.get("orientation", 1), options.get("opaque")
    options = {key: value for key, value in options.items() if key not in ("orientation", "opaque")}
    if "extrasamples" in options:
        alpha = np.full(pixels.shape[:2], 255 if opaque else 128, np.uint8)
        pixels = np.dstack([pixels, alpha])
    if options.get("planarconfig"):
        pixels = np.moveaxis(pixels, -1, 0)
    tifffile.imwrite(tmp_path / "a.tif", pixels.astype(np.uint16) * 257 if deep else pixels, metadata=None,
                     photometric="rgb" if colour else "minisblack", extratags=[(274, "H", 1, orientation, True)], **options)
    if words:
        with pytest.raises(DataError, match=rf"a\.tif: is a {words}.*; save it"):
            decode(tmp_path / "a.tif")
    else:
        image = decode(tmp_path / "a.tif")
        assert image.dtype == (np.uint16 if deep else np.uint8)
        assert np.array_equal(image // 257 if deep else image, headers.turned(expected, orientation))


def test_headers_are_read_also_above_the_limit_of_pillow(monkeypatch):
    """Image.open refuses images above twice this number of pixels."""
    exif = Image.Exif()
    exif[274] = 6
    files = {kind: stored(smooth(), kind, exif=exif) for kind in ("JPEG", "PNG", "WEBP")}
    tiff = stored(smooth()[..., 0], "TIFF", tiffinfo={262: 0}, save_all=True, append_images=[Image.fromarray(smooth())])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert all(headers.orientation(data) == 6 for data in files.values())
    assert headers.min_is_white(tiff) and headers.pages(tiff) == 2


def test_exif_after_an_odd_chunk_of_a_webp_is_found():
    exif = Image.Exif()
    exif[274] = 6
    assert headers.orientation(stored(smooth(), "WEBP", exif=exif, icc_profile=b"abc")) == 6


@pytest.mark.parametrize("segment", [b"\xff\xdc\0\x04\0\x28", b"\xff\xdd\0\x04\0\0", b"\xff\xfe\0\x03x",
                                     b"\xff\xe0\0\x03x", b"\xff\xcc\0\x04\0\x10"])
def test_segments_after_a_scan_are_no_damage(segment):
    data = stored(smooth(), "JPEG")
    assert headers.damage(data[:-2] + segment + data[-2:]) == ""


def test_a_marker_without_content_is_no_damage():
    data = stored(smooth(), "JPEG")
    data = data[:2] + b"\xff\x01" + data[2:]
    assert cv2.imdecode(np.frombuffer(data, np.uint8), 1) is not None and headers.damage(data) == ""
