"""Pictures of every mode, depth and number format become the values that docs/data.md states."""

import io
import struct
import zlib

import numpy as np
import PIL
import pytest
from PIL import Image, ImageCms

from iiae_cli.data.pictures import SEEN, PictureError, decode, line_of, picture_size_of

# Older releases call their own YCbCr TIFFs truncated, and such files are skipped by name.
NEW_PILLOW = pytest.mark.skipif(int(PIL.__version__.split(".")[0]) < 13, reason="Pillow below 13")
RED, GREEN, WHITE = [255, 0, 0], [0, 255, 0], [255, 255, 255]


@pytest.fixture(autouse=True)
def forget():
    SEEN.take()


def saved(path, pixels, mode=None, **options):
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    (image if mode is None else image.convert(mode)).save(path, **options)
    return path


def changes(path, channels=3):
    """What the only change of a picture is called."""
    decode(path, channels)
    return list(SEEN.take()["changes"])


# ---- numbers of more than 8 bits


def ramp(top, dtype, low=0):
    """32 × 32, from `low` to `top`."""
    return np.linspace(low, top, 1024).astype(dtype).reshape(32, 32)


@pytest.mark.parametrize(
    ("values", "low", "high"),
    [
        (ramp(1, "f4"), 0, 1),
        (ramp(1, "f4", low=-0.03), 0, 1),
        (ramp(255, "f4"), 0, 255),
        (ramp(260, "f4"), 0, 255),
        (ramp(1400, "f4"), 0, 2047),
        (ramp(65535, "f4"), 0, 65535),
        (ramp(0.01, "f4"), 0, 0.01),  # fills less than a sixteenth of 0 … 1
        (ramp(1, "f4", low=-1), -1, 1),
        (ramp(255, "i4"), 0, 255),
        (ramp(256, "i4"), 0, 1023),
        (ramp(1.99, "i4"), 0, 1),  # a mask
        (ramp(70000, "i4"), 0, 70000),
        (ramp(100, "i4", low=-100), -100, 100),
        (ramp(1000, "u2"), 0, 1023),
        (ramp(16000, "u2"), 0, 16383),
        (ramp(20000, "u2"), 0, 65535),
        (ramp(4000, ">u2"), 0, 4095),
    ],
)
def test_the_range_of_the_values_decides_not_their_type(tmp_path, values, low, high):
    path = saved(tmp_path / "deep.tif", values)
    worked = np.clip((values.astype(float) - low) / (high - low), 0, 1) * 255
    np.testing.assert_allclose(decode(path, 1)[..., 0], worked, atol=0.5 + 1e-6)
    np.testing.assert_array_equal(decode(path, 3)[..., 2], decode(path, 1)[..., 0])
    usual = low == 0 and high in (1, 255, 1023, 2047, 4095, 16383, 65535)
    own = "scaled from their own range"
    assert {f"scaled from 0 to {high}" if usual else own, own} >= {*SEEN.take()["changes"]}


@pytest.mark.parametrize("overshoot", [1.5, 50, 1e6, -3])
def test_a_few_floats_beyond_0_to_1_do_not_darken_the_others(tmp_path, overshoot):
    values = ramp(1, "f4")
    values[3, 4] = overshoot
    decoded = decode(saved(tmp_path / "sharpened.tif", values), 1)[..., 0]
    assert decoded[3, 4] == (255 if overshoot > 0 else 0)
    assert decoded[31, 31] == 255 and decoded[16, 0] == 128  # 512 / 1023


@pytest.mark.parametrize(
    ("far", "dtype", "name"), [(65535, "u2", "0 to 65535"), (-99999, "f4", "their own range")]
)
def test_a_few_values_that_take_all_contrast_are_said(tmp_path, far, dtype, name):
    values = ramp(1000, dtype)
    values[0, :5] = far
    said = changes(saved(tmp_path / "depth.tif", values))
    assert said == [f"scaled from {name}, almost all to one shade"]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused_by_name(tmp_path, value):
    with pytest.raises(PictureError, match=r"bad\.tif: holds values that are not finite"):
        decode(saved(tmp_path / "bad.tif", np.full((2, 2), value, "f4")))


def tiff(path, values, kind, order="<", **tags):
    """A TIFF of one band, written by hand: signed (`kind` 2) or unsigned, of any width."""
    height, width = values.shape
    known = {256: width, 257: height, 258: values.itemsize * 8, 259: 1, 262: 1, 273: 8, 277: 1}
    known |= {278: height, 279: values.nbytes} | {int(tag[1:]): tags[tag] for tag in tags}
    entries = [
        struct.pack(order + "HHII", tag, 4, 1, value)
        for tag, value in sorted(known.items())
        if value is not None
    ]
    entries.append(struct.pack(order + "HHIHH", 339, 3, 1, kind, 0))
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 8 + values.nbytes)
    directory = struct.pack(order + "H", len(entries)) + b"".join(entries) + bytes(4)
    path.write_bytes(head + values.tobytes() + directory)
    return path


@pytest.mark.parametrize(
    ("values", "kind", "order"),
    [([-100, 0, 100], "i2", "<"), ([-100, 0, 100], "i2", ">"), ([0, 2**31, 2**32 - 1], "u4", "<")],
)
def test_numbers_that_pillow_cannot_write_are_read_too(tmp_path, values, kind, order):
    path = tiff(tmp_path / "a.tif", np.array([values], order + kind), 1 + (kind == "i2"), order)
    assert decode(path, 1)[..., 0].tolist() == [[0, 128, 255]]


def misread_files(folder):
    """Files that Pillow reads as other values than they hold."""
    bytes_, words = np.array([[1, 2]], "u1"), np.array([[1, 2]], "<u2")
    yield tiff(folder / "untagged.tif", bytes_, 1, t262=None), "without a photometric tag"
    yield tiff(folder / "untagged16.tif", words, 1, t262=None), "without a photometric tag"
    yield tiff(folder / "white.tif", words, 1, t262=0), "in which zero is white"
    yield tiff(folder / "signed.tif", bytes_.view("i1"), 2), "signed bytes"
    file = io.BytesIO()
    Image.new("CMYK", (8, 8)).save(file, "JPEG")
    content, path = file.getvalue(), folder / "plain.jpg"
    mark = content.index(b"Adobe") - 4
    path.write_bytes(content[:mark] + content[mark + 16 :])
    yield path, "without Adobe's mark"
    image = Image.new("P", (1, 1))
    image.putpalette([255, 0, 0])
    path = saved(folder / "map.tif", image)
    with Image.open(path) as opened:
        colours = opened.tag_v2[320]
    wide, narrow = (struct.pack("<768H", *(c >> bits for c in colours)) for bits in (0, 8))
    path.write_bytes(path.read_bytes().replace(wide, narrow))
    yield path, "colour map of 8 bits"
    chunk = (b"tRNS", struct.pack(">HHH", 256, 512, 768))
    yield png(folder / "a.png", 16, 2, bytes(6), chunk), "transparent colour of 16 bits"


def test_what_pillow_misreads_is_refused_by_name(tmp_path):
    for path, said in misread_files(tmp_path):
        with pytest.raises(PictureError, match=f"{said}.*, which Pillow misreads"):
            decode(path)


def png(path, depth, kind, row, more):
    """A PNG of one row and one chunk more, written by hand."""

    def chunk(name, data):
        check = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + check

    width = len(row) * 8 // depth // (3 if kind == 2 else 1)
    head = struct.pack(">IIBBBBB", width, 1, depth, kind, 0, 0, 0)
    chunks = ((b"IHDR", head), more, (b"IDAT", zlib.compress(b"\0" + row)), (b"IEND", b""))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*item) for item in chunks))
    return path


@pytest.mark.parametrize("chunk", [(b"gAMA", struct.pack(">I", 100_000)), (b"gAMA", bytes(4))])
def test_a_gamma_that_is_not_applied_is_said(tmp_path, chunk):
    assert changes(png(tmp_path / "a.png", 8, 0, b"\7", chunk)) == ["read without their gamma"]


@pytest.mark.parametrize(("high", "said"), [(255, ""), (15, ", almost black")])
def test_sixteen_bits_of_colour_are_cut_and_said(tmp_path, high, said):
    row = bytes([high, 255, 1, 0, 0, 255])
    path = png(tmp_path / "deep.png", 16, 2, row, (b"gAMA", b"\0\0\xb1\x8f"))
    assert decode(path).tolist() == [[[high, 1, 0]]]
    assert changes(path) == [f"cut to the upper 8 of 16 bits{said}"]


@pytest.mark.parametrize(
    ("depth", "kind", "row", "clear", "shown"),
    [
        (1, 0, b"\x40", (1,), [0, 255, 0, 0]),
        (2, 0, b"\x1b", (1,), [0, 255, 170, 255]),
        (4, 0, b"\x5a", (5,), [255, 170]),
        (8, 0, b"\x05\x06", (5,), [255, 6]),
        (16, 0, struct.pack(">HHH", 0, 40000, 65535), (0,), [255, 156, 255]),
    ],
)
def test_the_transparent_colour_of_a_png_is_shown_on_white(
    tmp_path, depth, kind, row, clear, shown
):
    path = png(
        tmp_path / "a.png", depth, kind, row, (b"tRNS", struct.pack(f">{len(clear)}H", *clear))
    )
    assert decode(path)[0, : len(shown), 0].tolist() == shown
    assert "flattened on white" in changes(path)
    assert decode(path, 2)[0, 0, 1] == (0 if shown[0] == 255 else 255)


# ---- modes of 8 bits and fewer


@pytest.mark.parametrize(
    ("mode", "suffix", "colour", "expected"),
    [
        ("1", ".png", 255, WHITE),
        ("L", ".png", 77, [77, 77, 77]),
        ("LA", ".png", (0, 0), WHITE),
        ("PA", ".tif", (0, 0), WHITE),
        ("RGB", ".png", (255, 0, 0), RED),
        ("RGBA", ".png", (255, 0, 0, 0), WHITE),
        ("RGBA", ".png", (255, 0, 0, 128), [255, 127, 127]),
        ("RGBX", ".tif", (255, 0, 0, 9), RED),
        ("CMYK", ".tif", (0, 255, 255, 0), RED),
        ("CMYK", ".jpg", (0, 255, 255, 0), RED),  # which holds them inverted, as Adobe does
        pytest.param(*("YCbCr", ".tif", (76, 85, 255), [254, 0, 0]), marks=NEW_PILLOW),
        ("LAB", ".tif", (255, 128, 128), WHITE),  # L* 100, a* and b* 0
    ],
)
def test_every_mode_is_read(tmp_path, mode, suffix, colour, expected):
    path = saved(tmp_path / f"one{suffix}", Image.new(mode, (3, 2), colour))
    np.testing.assert_allclose(decode(path), [[expected] * 3] * 2, atol=1)
    for channels in (1, 2, 4):
        assert decode(path, channels).shape == (2, 3, channels)


def test_the_first_frame_of_several_is_read_and_said_once(tmp_path):
    first, second = Image.new("RGB", (4, 3), (255, 0, 0)), Image.new("RGB", (4, 3), (0, 0, 255))
    for suffix in (".gif", ".png", ".tif", ".webp"):
        path = tmp_path / f"moving{suffix}"
        first.save(path, save_all=True, append_images=[second])
        np.testing.assert_allclose(decode(path), [[RED] * 4] * 3, atol=8)
        decode(path)
        assert SEEN.take()["changes"] == {"first of several frames": 1}


@pytest.mark.parametrize(
    "kind",
    [".png RGB", ".jpg RGB", ".webp RGB", ".png I;16", ".tif RGB", ".tif L", ".tif P", ".tif I;16"],
)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_shown_as_exif_turns_them(tmp_path, kind, orientation):
    suffix, mode = kind.split()
    exif = Image.Exif()
    exif[0x0112] = orientation
    corners = np.array([[10, 80], [150, 220]], np.uint8).repeat(16, 0).repeat(24, 1)
    values = corners.astype(np.uint16) * 257 if mode == "I;16" else corners
    path = saved(tmp_path / f"turned{suffix}", values, mode, exif=exif)
    assert picture_size_of(path) == decode(path).shape[:2] == ((32, 48), (48, 32))[orientation > 4]
    first = (10, 80, 220, 150, 10, 150, 220, 80)[orientation - 1]  # what stands top left
    assert abs(int(decode(path, 1)[2, 2, 0]) - first) < 9
    assert (orientation > 1) == ("turned as EXIF says" in changes(path))


def test_pictures_in_memory_and_one_pixel_wide_or_high_are_read():
    assert decode(Image.new("RGBa", (1, 1), (64, 0, 0, 128))).tolist() == [[[191, 127, 127]]]
    for size in ((1, 1), (1, 9), (9, 1)):
        picture = Image.new("RGB", size, (255, 0, 0))
        assert decode(picture, 3, (4, 4)).reshape(-1, 3).tolist() == [RED] * 16


# ---- colour profiles


def swapped():
    """sRGB's profile with red for green."""
    data = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    names = data.replace(b"rXYZ", b"....").replace(b"gXYZ", b"rXYZ").replace(b"....", b"gXYZ")
    return names.replace("sRGB".encode("utf-16-be"), "GRBs".encode("utf-16-be"))


def test_an_embedded_profile_is_converted_to_srgb(tmp_path):
    path = saved(tmp_path / "wide.png", np.array([[RED]], np.uint8), icc_profile=swapped())
    np.testing.assert_allclose(decode(path), [[GREEN]], atol=2)
    assert changes(path) == ["converted to sRGB"]
    half = np.array([[[*RED, 40]]], np.uint8)
    path = saved(tmp_path / "clear.png", half, icc_profile=swapped())
    np.testing.assert_allclose(decode(path, 4), [[[*GREEN, 40]]], atol=2)  # opacity is kept


@pytest.mark.parametrize("mode", ["CMYK", "RGB"])
def test_a_profile_that_cannot_be_used_is_said_and_srgb_left_as_it_is(tmp_path, mode):
    image = Image.new(mode, (1, 1), (0, 255, 255, 0) if mode == "CMYK" else (255, 0, 0))
    usual = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for profile, said in ((b"none", ["read without their colour profile"]), (usual, [])):
        path = saved(tmp_path / "odd.tif", image, icc_profile=profile)
        assert decode(path).tolist() == [[RED]]
        assert changes(path) == said


# ---- what is said


def test_what_was_seen_is_said_in_a_line(tmp_path):
    a = saved(tmp_path / "a.png", Image.new("RGB", (4, 3)))
    b = saved(tmp_path / "b.png", Image.new("RGBA", (8, 6)))
    c = saved(tmp_path / "c.png", Image.new("RGBA", (2, 2), (0, 0, 0, 255)))
    for path in (a, b, c, a):
        decode(path, 3, (3, 4))
    seen = SEEN.take()
    assert seen == {
        "read": 3,
        "modes": {"RGBA": 2, "RGB": 1},
        "sizes": ["2×2", "8×6"],
        "changes": {"resized to 4×3": 2, "flattened on white": 1},
        "left_out": {},
    }
    assert line_of(seen).startswith("pictures: 3 read (RGBA 2, RGB 1), 2×2 to 8×6; 2 resized to")
    assert SEEN.take()["read"] == 0 and changes(a, 1) == ["made grey"] and changes(a, 3) == []
