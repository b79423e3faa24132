"""Real images from installed packages, each float32 [size, size, 3], 0…1, and dark on light.

- scikit-learn's handwritten digits (1,797 scans of 8×8; Alpaydin & Kaynak 1998, CC BY 4.0),
- the typefaces that come with matplotlib: DejaVu (Bitstream Vera's licence) and STIX (SIL OFL),
- scikit-learn's photographs `china.jpg` and `flower.jpg` (CC BY 2.0), in patches.
"""

import dataclasses
import functools
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

Picture = npt.NDArray[np.float32]
"""[size, size, 3], 0…1."""

Share = npt.NDArray[np.float32]
"""[size, size, 1], 0…1: how much of a pixel is ink."""

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

CHARACTERS: dict[str, dict[str, str]] = {
    "digit": dict(zip(DIGITS, string.digits, strict=True)),
    "letter": {letter: letter for letter in string.ascii_uppercase},
    "small letter": {letter: letter for letter in string.ascii_lowercase},
    "greek": {
        "alpha": "α",
        "beta": "β",
        "gamma": "γ",
        "delta": "δ",
        "theta": "θ",
        "lambda": "λ",
        "xi": "ξ",
        "phi": "φ",
        "psi": "ψ",
        "omega": "ω",
    },
    "cyrillic": {
        "zhe": "Ж",
        "i": "И",
        "de": "Д",
        "el": "Л",
        "fe": "Ф",
        "tse": "Ц",
        "che": "Ч",
        "sha": "Ш",
        "e": "Э",
        "yu": "Ю",
    },
    "arrow": {
        "left": "←",
        "right": "→",
        "up": "↑",
        "down": "↓",
        "north east": "↗",
        "south east": "↘",
        "south west": "↙",
        "north west": "↖",
        "left right": "↔",
        "up down": "↕",
    },
    "symbol": {
        "plus": "+",
        "times": "×",
        "divide": "÷",
        "equals": "=",
        "less": "<",
        "greater": ">",
        "integral": "∫",
        "sum": "∑",
        "infinity": "∞",
        "root": "√",
    },
}
"""Characters by kind and name."""

SURFACES: dict[str, tuple[str, tuple[int, int, int, int]]] = {
    "sky": ("china.jpg", (0, 0, 640, 110)),
    "roof": ("china.jpg", (180, 130, 460, 215)),
    "trees": ("china.jpg", (0, 250, 140, 400)),
    "petals": ("flower.jpg", (230, 120, 420, 330)),
    "leaves": ("flower.jpg", (0, 0, 180, 427)),
}
"""What is where in the photographs: left, top, right, bottom."""

TYPEFACES = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-BoldOblique",
    "DejaVuSans-Oblique",
    "DejaVuSansMono",
    "DejaVuSansMono-Bold",
    "DejaVuSansMono-BoldOblique",
    "DejaVuSansMono-Oblique",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSerif-BoldItalic",
    "DejaVuSerif-Italic",
    "STIXGeneral",
    "STIXGeneralBol",
    "STIXGeneralBolIta",
    "STIXGeneralItalic",
)


@dataclasses.dataclass(frozen=True)
class Light:
    """How pictures are taken: paper and ink, how straight, how much noise the sensor makes."""

    paper: tuple[float, float, float]
    """Colour of the ground, red, green, blue, 0…1."""
    paper_varies: tuple[float, float]
    """Factor on the paper's colour, least and most."""
    contrast: tuple[float, float]
    """How much darker than the paper the ink is, least and most; drawn per channel."""
    tilt: float
    """Most degrees to either side."""
    noise: float
    """Standard deviation per pixel and channel."""

    def print(self, ink: Share, rng: np.random.Generator) -> Picture:
        """Colour a drawing and photograph it."""
        paper = np.array(self.paper) * rng.uniform(*self.paper_varies)
        return self.photograph(paper - ink * rng.uniform(*self.contrast, 3), rng)

    def photograph(self, picture: npt.NDArray[Any], rng: np.random.Generator) -> Picture:
        """Add the sensor's noise."""
        noisy = picture + rng.normal(0, self.noise, picture.shape)
        return np.clip(noisy, 0, 1).astype(np.float32)


def characters(
    kind: str,
    names: Sequence[str],
    each: int,
    size: int,
    light: Light,
    rng: np.random.Generator,
) -> tuple[list[Picture], list[int]]:
    """Pictures of characters in many typefaces, and each one's position in `names`."""
    pictures, labels = [], []
    for label, name in enumerate(names):
        character = CHARACTERS[kind][name]
        able = [face for face in TYPEFACES if ord(character) in _repertoire(face)]
        for _ in range(each):
            face = able[rng.integers(len(able))]
            pictures.append(light.print(_draw(character, face, size, light.tilt, rng), rng))
            labels.append(label)
    return pictures, labels


def handwriting(
    size: int, light: Light, rng: np.random.Generator
) -> tuple[list[Picture], list[int]]:
    """All of scikit-learn's handwritten digits in the middle of a paper, and their values."""
    from sklearn.datasets import load_digits

    inner, margin = size * 13 // 16, size * 3 // 32
    scans = load_digits()
    pictures = []
    for scan in scans.images:
        enlarged = Image.fromarray((scan / 16 * 255).astype(np.uint8)).resize(
            (inner, inner), Image.Resampling.BILINEAR
        )
        sheet = Image.new("L", (size, size), 0)
        sheet.paste(enlarged, (margin, margin))
        pictures.append(light.print(_shares(sheet), rng))
    return pictures, [int(value) for value in scans.target]


def surfaces(
    each: int, size: int, light: Light, rng: np.random.Generator
) -> tuple[list[Picture], list[int]]:
    """Patches of the photographs, and each one's position in `SURFACES`."""
    pictures, labels = [], []
    for label, (file, (left, top, right, bottom)) in enumerate(SURFACES.values()):
        photo = _photograph(file)
        for _ in range(each):
            side = int(rng.integers(28, 56))
            x, y = int(rng.integers(left, right - side)), int(rng.integers(top, bottom - side))
            patch = photo.crop((x, y, x + side, y + side)).resize(
                (size, size), Image.Resampling.BOX
            )
            lit = np.asarray(patch, np.float32) / np.float32(255) * rng.uniform(0.7, 1.2)
            pictures.append(light.photograph(lit, rng))
            labels.append(label)
    return pictures, labels


def _draw(character: str, face: str, size: int, tilt: float, rng: np.random.Generator) -> Share:
    """A character somewhere near the middle, turned a little; drawn larger and reduced."""
    large = size * 4
    canvas = Image.new("L", (large, large), 0)
    font = _font(face, int(large * rng.uniform(0.6, 0.85)))
    x, y = large * (0.5 + rng.uniform(-0.03, 0.03, 2))
    ImageDraw.Draw(canvas).text((x, y), character, fill=255, font=font, anchor="mm")
    turned = canvas.rotate(rng.uniform(-tilt, tilt), resample=Image.Resampling.BILINEAR)
    return _shares(turned.resize((size, size), Image.Resampling.BOX))


def _shares(drawing: Image.Image) -> Share:
    return (np.asarray(drawing, np.float32) / np.float32(255))[..., None]


def _path(face: str) -> Path:
    import matplotlib

    return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{face}.ttf"


@functools.lru_cache(maxsize=1024)
def _font(face: str, points: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(_path(face), points)


@functools.cache
def _repertoire(face: str) -> frozenset[int]:
    """The code points that a typeface has glyphs for."""
    from matplotlib.ft2font import FT2Font

    return frozenset(FT2Font(str(_path(face))).get_charmap())


@functools.cache
def _photograph(file: str) -> Image.Image:
    from sklearn.datasets import load_sample_image

    return Image.fromarray(load_sample_image(file))
