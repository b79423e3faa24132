"""The cuts of long masking units on a GPU, found without sorting.

As in `selection`, the order (|τ|, flat index) is cut before two ranks. Both are sought at once, for
all sources and units of a round, in passes over its pieces:

1. Three passes count the magnitudes by their next bits, those that begin as the cut's magnitude
   is known to begin; in between, the digit that holds the rank is read off the running sum.
2. One pass counts, tile by tile, the elements that have exactly the cut's magnitude.
3. When a piece is merged, the tile in which the count is reached is searched for the place.

Nothing is read back to the host: the steps between the passes are operations on the device too.
"""

from collections.abc import Sequence
from typing import Any

import torch

from mlflow_breadcrumbs.engine.backends.gpu import layout, triton_kernels
from mlflow_breadcrumbs.engine.backends.gpu.layout import Piece, Round, Tiles

DIGITS = ((20, 11), (10, 10), (0, 10))
"""Shift and width, in bits, of the digits of a magnitude; 31 bits in all."""

BINS = 1 << 11
"""Room for the counts of a digit."""

PASSES = len(DIGITS) + 1
"""How often the pieces of a round are visited before they are merged."""


class View:
    """A piece as the kernels take it.

    Args:
        piece: what it is.
        device: where its tables are put.
    """

    def __init__(self, piece: Piece, device: torch.device) -> None:
        self.piece = piece
        self.sources = len(piece.kinds) - 1
        self._offsets = torch.tensor(piece.offsets[:-1], dtype=torch.int64, device=device)
        self._kinds = torch.tensor(piece.kinds, dtype=torch.int32, device=device)
        self.table = torch.from_numpy(piece.table).to(device)
        """int64 [tiles, gpu_layout.TABLE_COLUMNS]."""

    def arguments(self, raw: torch.Tensor, tiles: Tiles) -> tuple[torch.Tensor, ...]:
        """The first arguments of every kernel, given the piece's bytes (uint8) on the device."""
        return raw, self._offsets, self._kinds, self.table[tiles.first : tiles.last]

    def constants(self, tiles: Tiles) -> dict[str, int]:
        """What every kernel is compiled for."""
        return {
            "BASE_KIND": self.piece.kinds[0],
            "KIND": self.piece.source_kind,
            "ALIGNED": tiles.aligned,
        }


class Selection:
    """The search for the cuts of one round.

    Args:
        found: the round.
        views: of its pieces.
        device: where they are.
    """

    def __init__(self, found: Round, views: Sequence[View], device: torch.device) -> None:
        self._views = views
        self._device = device
        ranks = torch.from_numpy(found.ranks).to(device)
        self._units = len(ranks)
        # [sources, units, 2]: what is left of the rank, and the magnitude's bits so far.
        self._ranks = ranks.expand(views[0].sources, -1, -1).clone()
        self._magnitudes = torch.zeros(self._ranks.shape, dtype=torch.int32, device=device)
        self._histogram = torch.zeros((*self._ranks.shape, BINS), dtype=torch.int64, device=device)
        self._equal: list[torch.Tensor] = []
        self._ties: Sequence[torch.Tensor] = ()

    def look(self, number: int, position: int, raw: torch.Tensor) -> None:
        """Pass `number` over the piece at a position in the round; the pieces come in order."""
        if number < len(DIGITS):
            shift, width = DIGITS[number]
            digit = {"CUTS": 2 if number else 1, "SHIFT": shift, "WIDTH": width, "BINS": BINS}
            arguments = (self._magnitudes, self._histogram, self._units)
            self._launch(triton_kernels.count_digits, position, raw, *arguments, **digit)
            return
        equal = self._room(position, 2)
        self._launch(
            triton_kernels.count_equal, position, raw, self._magnitudes, equal, self._units
        )
        self._equal.append(equal)

    def conclude(self, number: int) -> None:
        """What pass `number` has found, now that it is over."""
        if number < len(DIGITS):
            triton_kernels.launch(
                triton_kernels.read_digits,
                (self._ranks.numel() // 2,),
                self._histogram,
                self._ranks,
                self._magnitudes,
                CUTS=2 if number else 1,
                WIDTH=DIGITS[number][1],
                BINS=BINS,
            )
        else:
            self._share_ties()

    def cuts(self, position: int, raw: torch.Tensor) -> torch.Tensor:
        """The cuts of a piece's long tiles, int32 [tiles, sources, 4]; see `merge_tiles`."""
        found = self._room(position, 4)
        arguments = (self._magnitudes, self._equal[position], self._ties[position], found)
        self._launch(triton_kernels.place_cuts, position, raw, *arguments, self._units)
        return found

    def _share_ties(self) -> None:
        """How many elements of a cut's magnitude lie before it, counted from each tile on."""
        tables = [
            view.table[: len(equal)] for view, equal in zip(self._views, self._equal, strict=True)
        ]
        unit = torch.cat(tables)[:, layout.UNIT].contiguous()
        equal = torch.cat(self._equal).to(torch.int64)
        passed = equal.cumsum(0) - equal
        first = torch.searchsorted(unit, torch.arange(self._units, device=self._device))
        ties = self._ranks.transpose(0, 1)[unit] - (passed - passed[first][unit])
        sizes = [len(equal) for equal in self._equal]
        self._ties = torch.split(ties.clamp(0, layout.TILE + 1).to(torch.int32), sizes)

    def _room(self, position: int, width: int) -> torch.Tensor:
        view = self._views[position]
        tiles = view.piece.long.last if view.piece.long else 0
        return torch.empty((tiles, view.sources, width), dtype=torch.int32, device=self._device)

    def _launch(
        self, kernel: Any, position: int, raw: torch.Tensor, *arguments: Any, **constants: int
    ) -> None:
        """Run a kernel on all long tiles of a piece, for every source."""
        view = self._views[position]
        tiles = view.piece.long
        if tiles is not None:
            triton_kernels.launch(
                kernel,
                (tiles.last, view.sources),
                *view.arguments(raw, tiles),
                *arguments,
                BLOCK=layout.TILE,
                **view.constants(tiles),
                **constants,
            )
