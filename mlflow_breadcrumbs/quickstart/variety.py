"""How the images of the pretraining vary: no two steps show the base the same picture."""

import dataclasses

import numpy as np
import torch
from torch.nn import functional


@dataclasses.dataclass(frozen=True)
class Variety:
    """Ranges that are drawn from, evenly, for every image of every batch."""

    tilt: float = 12
    """Most degrees to either side."""
    shear: float = 0.25
    """Most slant to either side: how far a row moves per row below it."""
    size: tuple[float, float] = (0.8, 1.2)
    """Factor on the side of what is seen, across and down each: above 1 shows the image smaller."""
    shift: float = 0.06
    """Most distance from the middle, across and down, as a fraction of the image's side."""
    stroke: tuple[float, float] = (-0.6, 1.0)
    """1 makes every stroke two pixels wider, −1 two thinner, 0 leaves it."""
    coarse: float = 0.3
    """Probability that a character was scanned with a third of the pixels on a side."""
    paper: tuple[float, float] = (0.4, 1.0)
    """Colour of the ground, per channel, 0…1."""
    contrast: tuple[float, float] = (0.3, 0.8)
    """How much darker than the paper the ink is, per channel."""
    light: tuple[float, float] = (0.7, 1.2)
    """Factor on a photograph, which has no ink and no paper."""
    noise: tuple[float, float] = (0.0, 0.1)
    """Standard deviation of the sensor's noise per pixel and channel; one per image."""


def vary(
    pictures: torch.Tensor, drawn: torch.Tensor, variety: Variety, rng: np.random.Generator
) -> torch.Tensor:
    """Take new pictures of a batch.

    Args:
        pictures: float32 [images, 3, size, size], 0…1; of drawings the ink's share of each pixel.
        drawn: bool [images]; the others are photographs.
        variety: what is drawn from.
        rng: what draws.

    Returns:
        float32 [images, 3, size, size], 0…1.
    """
    is_drawn = drawn[:, None, None, None]
    turned = _turned(pictures, is_drawn, variety, rng)
    ink = _scanned(_penned(turned, variety, rng), variety, rng)
    count = len(pictures)
    paper = _even(variety.paper, (count, 3, 1, 1), rng)
    contrast = _even(variety.contrast, (count, 3, 1, 1), rng)
    light = _even(variety.light, (count, 1, 1, 1), rng)
    seen = torch.where(is_drawn, paper - ink * contrast, turned * light)
    noise = torch.from_numpy(rng.standard_normal(tuple(seen.shape), np.float32))
    return (seen + noise * _even(variety.noise, (count, 1, 1, 1), rng)).clip(0, 1)


def _turned(
    pictures: torch.Tensor, is_drawn: torch.Tensor, variety: Variety, rng: np.random.Generator
) -> torch.Tensor:
    """Tilt, slant, stretch and shift; past its edge paper has no ink, a photograph its mirror."""
    count = len(pictures)
    angle = torch.deg2rad(_even((-variety.tilt, variety.tilt), (count,), rng))
    shear = _even((-variety.shear, variety.shear), (count,), rng)
    across, down = (_even(variety.size, (count,), rng) for _ in range(2))
    # The grid's sides are 2 long.
    right, below = (_even((-2 * variety.shift, 2 * variety.shift), (count,), rng) for _ in range(2))
    sine, cosine = torch.sin(angle), torch.cos(angle)
    rows = (
        torch.stack([cosine * across, (shear * cosine - sine) * down, right], 1),
        torch.stack([sine * across, (shear * sine + cosine) * down, below], 1),
    )
    shape = list(pictures.shape)
    places = functional.affine_grid(torch.stack(rows, 1), shape, align_corners=False)
    drawing, photograph = (
        functional.grid_sample(pictures, places, padding_mode=edge, align_corners=False)
        for edge in ("zeros", "reflection")
    )
    return torch.where(is_drawn, drawing, photograph)


def _penned(ink: torch.Tensor, variety: Variety, rng: np.random.Generator) -> torch.Tensor:
    """Draw with another pen: strokes grow or shrink by up to a pixel on each side."""
    weight = _even(variety.stroke, (len(ink), 1, 1, 1), rng)
    wider = functional.max_pool2d(ink, 3, 1, 1)
    thinner = -functional.max_pool2d(-ink, 3, 1, 1)
    return ink + weight.clip(min=0) * (wider - ink) + (-weight).clip(min=0) * (thinner - ink)


def _scanned(ink: torch.Tensor, variety: Variety, rng: np.random.Generator) -> torch.Tensor:
    """Scan some with a third of the pixels on a side, and enlarge them again."""
    size = ink.shape[-1]
    coarse = functional.interpolate(
        functional.adaptive_avg_pool2d(ink, max(1, size // 3)), size=(size, size), mode="bilinear"
    )
    chosen = _even((0.0, 1.0), (len(ink), 1, 1, 1), rng) < variety.coarse
    return torch.where(chosen, coarse, ink)


def _even(
    ends: tuple[float, float], shape: tuple[int, ...], rng: np.random.Generator
) -> torch.Tensor:
    return torch.from_numpy(rng.uniform(*ends, shape).astype(np.float32))
