"""Image files: the limits before they are decoded, and what is converted how."""

import dataclasses
import os
import pathlib

import bombs
import numpy as np
import pytest
from PIL import Image

from mlflow_breadcrumbs import cli, errors
from mlflow_breadcrumbs.models import decoding, image_limits, image_sets

GREY = np.arange(256, dtype=np.uint8).reshape(16, 16)


def decoded(content):
    picture = decoding.decode(content, "x")
    assert picture.mode == "RGB"
    return np.asarray(picture)


def rgb(grey):
    return np.repeat(np.asarray(grey)[:, :, None], 3, axis=2)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            bombs.header(13_000, 13_000),
            "The image x has 13,000 × 13,000 pixels, 169,000,000 in all; at most 64,000,000 are "
            "taken (BREADCRUMBS_MAX_IMAGE_PIXELS sets it).",
        ),
        (
            bombs.png(1, 10_000),
            "The image x has 1 × 10,000 pixels: one side is 10,000 times the other; at most 100 "
            "are taken (BREADCRUMBS_MAX_IMAGE_ASPECT sets it).",
        ),
        (
            bombs.header(40_000, 1_000),
            "The image x has 40,000 × 1,000 pixels, 40,000 a side; at most 32,768 are taken "
            "(BREADCRUMBS_MAX_IMAGE_SIDE sets it).",
        ),
        (bombs.header(89_000_000, 1), "89,000,000 in all; at most 64,000,000 are taken"),
        (
            bombs.header(2_000_000, 2_000),
            "The image x is not decoded: Image size (4000000000 pixels) exceeds limit of 178956970 "
            "pixels, could be decompression bomb DOS attack.",
        ),
    ],
    ids=["square", "thin", "long", "wide", "huge"],
)
def test_large_images_are_refused_by_their_header(content, words):
    for look in (decoding.size, decoding.decode):
        with pytest.raises(errors.TaskError) as caught:
            look(content, "x")
        assert words in str(caught.value)


def test_a_tile_of_a_tiff_is_held_against_the_limits_too():
    """Libtiff makes room for a whole tile, however small the image is."""
    with pytest.raises(errors.TaskError, match=r"x, in a tile, has 46,336 × 46,336 pixels"):
        decoding.size(bombs.tiff(46_336), "x")


def test_what_cannot_be_identified_tells_no_address():
    with pytest.raises(errors.ImageError) as caught:
        decoding.decode(b"no image", "x")
    assert "BytesIO" not in str(caught.value)
    assert "0x" not in str(caught.value)


def test_the_limits_are_set_by_the_environment(monkeypatch):
    content = bombs.png(30, 20)
    assert decoding.size(content, "x") == (30, 20)
    limits = {"IMAGE_PIXELS": "599", "IMAGE_SIDE": "29", "IMAGE_ASPECT": "1", "IMAGE_BYTES": "60"}
    for name, value in limits.items():
        with monkeypatch.context() as context:
            context.setenv(f"BREADCRUMBS_MAX_{name}", value)
            with pytest.raises(
                errors.TaskError, match=rf"at most {value} are taken \(.*_{name} sets"
            ):
                decoding.decode(content, "x")


def test_help_and_documentation_state_the_limits():
    """Name and default of each; they are in the code once."""
    page = (pathlib.Path(__file__).parents[2] / "docs/how-to/serve.md").read_text()
    for field in dataclasses.fields(image_limits.ImageLimits):
        name, default = image_limits.variable(field.name), f"{field.default:,}"
        line = next(line for line in cli.VARIABLES.splitlines() if line.startswith(f"{name}:"))
        assert line.endswith(f"({default}).")
        assert f"| `{name}` | {default} |" in page


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "many", "٣", "9" * 30])
def test_a_limit_that_is_none(monkeypatch, value):
    monkeypatch.setenv("BREADCRUMBS_MAX_IMAGE_SIDE", value)
    with pytest.raises(errors.TaskError, match=r"BREADCRUMBS_MAX_IMAGE_SIDE is .* whole number, 1"):
        image_limits.ImageLimits.from_environment()


@pytest.mark.parametrize("order", ["<u2", ">u2"])
@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_grey_of_sixteen_bits_keeps_its_range(kind, order):
    """It became white: everything above 255 was cut to 255."""
    deep = (GREY.astype(np.uint16) * 257).astype(order)
    assert np.array_equal(decoded(bombs.saved(deep, kind)), rgb(GREY))


def test_a_pgm_of_sixteen_bits_keeps_its_range():
    content = b"P5 16 16 65535\n" + (GREY.astype(">u2") * 257).astype(">u2").tobytes()
    assert np.array_equal(decoded(content), rgb(GREY))


def test_sixteen_bits_in_memory_are_the_same():
    deep = Image.fromarray(GREY.astype(np.uint16) * 257)
    example = image_sets.Example(lambda: deep, 0, "x")
    assert np.array_equal(np.asarray(example.image()), rgb(GREY))


def test_floats_from_black_to_white():
    """They became black."""
    assert np.array_equal(decoded(bombs.saved((GREY / 255).astype(np.float32), "tiff")), rgb(GREY))


@pytest.mark.parametrize(
    ("values", "range_"),
    [([0, 255], "from 0 to 255"), ([-0.5, 1], "from -0.5 to 1"), ([0, float("nan")], "nan")],
)
def test_floats_of_another_range_are_refused(values, range_):
    content = bombs.saved(np.array([values], np.float32), "tiff")
    with pytest.raises(errors.TaskError, match=rf"floating-point numbers .*{range_}") as caught:
        decoding.decode(content, "x")
    assert "Only 0 (black) to 1 (white) are taken: divide by the white value" in str(caught.value)


def test_integers_of_32_bits_are_refused():
    with pytest.raises(errors.TaskError, match="holds integers of 32 bits, and nothing says which"):
        decoding.decode(bombs.saved(GREY.astype(np.int32) * 9999, "tiff"), "x")


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp", "tiff", "avif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_as_exif_says(kind, orientation):
    picture = np.zeros((16, 24, 3), np.uint8)
    picture[:8, :8], picture[8:, :8] = (250, 0, 0), (0, 250, 0)
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = bombs.saved(picture, kind, exif=exif)
    found = decoded(content)
    upright = {
        1: picture,
        2: picture[:, ::-1],
        3: picture[::-1, ::-1],
        4: picture[::-1],
        5: picture.transpose(1, 0, 2),
        6: np.rot90(picture, -1),
        7: np.rot90(picture, 2).transpose(1, 0, 2),
        8: np.rot90(picture),
    }[orientation]
    assert found.shape == upright.shape
    assert np.abs(found.astype(int) - upright).mean() < 12  # JPEG and its kin are not exact


@pytest.mark.parametrize("exif", [b"Exif\0\0II*\0", b"Exif\0\0" + b"\xff" * 40, b"Exif\0\0"])
def test_a_damaged_orientation_is_none(exif):
    assert decoded(bombs.saved(GREY, "png", exif=exif)).shape == (16, 16, 3)


def test_a_conversion_is_told_once(caplog, monkeypatch):
    monkeypatch.setattr(decoding, "_told", set())
    content = bombs.saved(GREY.astype(np.uint16), "png")
    for name in ("first.png", "second.png"):
        decoding.decode(content, name)
    (said,) = [record.getMessage() for record in caplog.records]
    assert said == (
        "The image first.png has 16 bits of grey, taken by the upper 8 bits; "
        "so are all of its kind."
    )


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "tiff", "gif", "avif", "bmp", "jpeg2000"])
def test_damaged_images_of_every_format(kind):
    content = bombs.saved(Image.effect_noise((64, 64), 90), kind)
    for damaged in (content[: len(content) // 2], content[:20], content[:-200] + b"\xff" * 200):
        try:
            decoding.decode(damaged, "x")
        except errors.TaskError as error:
            assert str(error).startswith("The image x can't be decoded (")  # noqa: PT017


def test_formats_that_start_programs_are_unknown():
    with pytest.raises(errors.ImageError, match="cannot identify image file"):
        decoding.decode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "x")


def test_a_pipe_is_no_image(tmp_path):
    """To open one would wait for ever."""
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(errors.TaskError, match=r"The image .*a\.png is not a file"):
        decoding.read(tmp_path / "a.png")


def test_a_file_beyond_the_limit_is_not_read(tmp_path):
    with (tmp_path / "a.tif").open("wb") as file:
        file.truncate(300 << 20)  # a hole, which takes no room
    with pytest.raises(errors.TaskError, match=r"has 314,572,800 bytes; at most 268,435,456 are"):
        decoding.read(tmp_path / "a.tif")
