"""Another picture at every step, of the same thing; by the ranges that are asked for."""

import dataclasses

import numpy as np
import pytest
import torch

from mlflow_breadcrumbs.quickstart import variety

STILL = variety.Variety(
    tilt=0,
    shear=0,
    size=(1.0, 1.0),
    shift=0,
    stroke=(0.0, 0.0),
    coarse=0,
    paper=(1.0, 1.0),
    contrast=(1.0, 1.0),
    light=(1.0, 1.0),
    noise=(0.0, 0.0),
)
"""Nothing varies."""


def taken(pictures, drawn, seed=0, **ranges):
    ranges = dataclasses.replace(STILL, **ranges)
    return variety.vary(pictures, torch.tensor(drawn), ranges, np.random.default_rng(seed))


def stroke():
    """An upright stroke of two columns, [2, 3, 32, 32]: once as ink, once as a photograph."""
    ink = torch.zeros(2, 3, 32, 32)
    ink[:, :, 8:24, 15:17] = 1
    return ink


def test_where_nothing_varies_ink_is_black_on_white_and_a_photograph_is_itself():
    drawing, photograph = taken(stroke(), [True, False])
    torch.testing.assert_close(drawing, 1 - stroke()[0])
    torch.testing.assert_close(photograph, stroke()[1])


@pytest.mark.parametrize(
    ("ranges", "columns"),
    [
        ({"stroke": (1.0, 1.0)}, range(14, 18)),
        ({"stroke": (-1.0, -1.0)}, range(0)),
        ({"paper": (0.6, 0.6), "contrast": (0.2, 0.2)}, range(15, 17)),
    ],
)
def test_a_pen_makes_strokes_wider_or_thinner_and_light_changes_colours_alone(ranges, columns):
    middle = taken(stroke(), [True, True], **ranges)[0, 0, 16]
    ground = middle.max()
    assert [i for i in range(32) if middle[i] < ground] == list(columns)
    if "paper" in ranges:
        assert ground == pytest.approx(0.6)
        assert middle.min() == pytest.approx(0.4)


def test_a_tilt_turns_without_slanting():
    """Two strokes that cross at right angles still do, whatever else is drawn."""
    cross = torch.zeros(1, 3, 33, 33)
    cross[:, :, 16, 4:29] = cross[:, :, 4:29, 16] = 1
    turned = 1 - taken(cross, [True], seed=3, tilt=40)[0, 0]
    assert not torch.equal(turned, cross[0, 0])
    torch.testing.assert_close(turned, turned.rot90(), atol=1e-3, rtol=0)


def test_a_slant_moves_rows_and_keeps_them():
    slanted = 1 - taken(stroke(), [True, True], seed=1, shear=0.4)[0, 0]
    where = (slanted * torch.arange(32)).sum(1)[9:23] / slanted.sum(1)[9:23]
    steps = where.diff()
    assert steps.abs().min() > 0.01
    torch.testing.assert_close(steps, steps.mean().expand_as(steps), atol=2e-3, rtol=0)


def test_a_coarse_scan_shows_no_chequers_of_single_pixels():
    chequers = ((torch.arange(32)[:, None] + torch.arange(32)) % 2).float().repeat(2, 3, 1, 1)
    assert taken(chequers, [True, True])[0].std() > 0.45
    assert taken(chequers, [True, True], coarse=1)[0].std() < 0.1


def test_past_its_edge_paper_is_empty_and_a_photograph_goes_on():
    full = torch.ones(2, 3, 32, 32)
    drawing, photograph = taken(full, [True, False], size=(1.5, 1.5))
    assert drawing[0, 0, 0] == 1  # no ink
    assert photograph.min() == 1


def test_every_image_of_a_batch_is_taken_anew_and_the_seed_says_how():
    alike = stroke()[:1].repeat(4, 1, 1, 1)
    first = variety.vary(alike, torch.ones(4).bool(), variety.Variety(), np.random.default_rng(0))
    again = variety.vary(alike, torch.ones(4).bool(), variety.Variety(), np.random.default_rng(0))
    assert torch.equal(first, again)
    assert all(not torch.equal(first[0], other) for other in first[1:])
    assert first.dtype == torch.float32
    assert 0 <= first.min() < first.max() <= 1
