"""Checkpoints laid over one another: a tensor from one, another from the next, some made on demand.

Nothing is copied. What is laid out so is read as one checkpoint: `taken` names for each tensor the
layer that has it and its name there, `made` are the tensors that are computed when they are first
asked for, into files without a name.
"""

import concurrent.futures
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from mlflow_breadcrumbs.engine import headers, stored_bytes, tensor_files

NONE: Mapping[str, headers.TensorEntry] = MappingProxyType({})


class Taken(NamedTuple):
    """Where a tensor of an overlay comes from."""

    layer: int
    name: str
    """In that layer."""


def lay(
    layers: Sequence[tensor_files.TensorFiles],
    taken: Mapping[str, Taken],
    made: Mapping[str, headers.TensorEntry] = NONE,
    make: Callable[[str], stored_bytes.NamelessFile] | None = None,
    *,
    closing: Sequence[tensor_files.TensorFiles] = (),
) -> "tuple[headers.CheckpointHeaders, Overlay]":
    """What a checkpoint over others is made of: its headers, and its bytes.

    Args:
        layers: open, and to be kept open by who has them.
        taken: by tensor, where its bytes are.
        made: the tensors that are computed; one that is taken too is made.
        make: computes one of them; any thread may call it.
        closing: the layers that are closed with what lies over them.
    """
    content = Overlay(layers, made, make, closing)
    entries = {name: layers[found.layer].entry(found.name) for name, found in taken.items()}
    places = {name: content.place(found) for name, found in taken.items()}
    entries |= made
    places |= content.places
    return headers.CheckpointHeaders(Path(), content.files, entries, places), content


class Overlay:
    """The bytes of several checkpoints, and of what is made of them; see `StoredBytes`.

    File 0 is what is made, then come the files of the layers, one layer after the other.

    Args:
        layers: see `lay`.
        made: see `lay`.
        make: see `lay`.
        closing: see `lay`.
    """

    def __init__(
        self,
        layers: Sequence[tensor_files.TensorFiles],
        made: Mapping[str, headers.TensorEntry],
        make: Callable[[str], stored_bytes.NamelessFile] | None,
        closing: Sequence[tensor_files.TensorFiles] = (),
    ) -> None:
        self._layers, self._make, self._closing = tuple(layers), make, tuple(closing)
        self._shifts = [1]
        for layer in self._layers:
            self._shifts.append(self._shifts[-1] + len(layer.content.states))
        self.files = tuple(file for layer in self._layers for file in layer.content.files)
        self.places: dict[str, headers.Position] = {}
        """Of the tensors that are made."""
        self._names: dict[int, str] = {}
        end = 0
        for name, entry in made.items():
            self.places[name] = headers.Position(0, end)
            if entry.nbytes:
                self._names[end] = name
            end += entry.nbytes
        self._starts = np.array(sorted(self._names), np.int64)
        self._lock = threading.Lock()
        self._held: dict[str, concurrent.futures.Future[stored_bytes.NamelessFile]] = {}

    def place(self, found: Taken) -> headers.Position:
        """Where the bytes of a layer's tensor are, by the numbers of the files here."""
        place = self._layers[found.layer].place(found.name)
        return headers.Position(self._shifts[found.layer] + place.file, place.offset)

    @property
    def states(self) -> tuple[stored_bytes.FileState, ...]:
        """See `StoredBytes.states`."""
        return tuple(state for layer in self._layers for state in layer.content.states)

    def states_now(self) -> tuple[stored_bytes.FileState, ...]:
        """See `StoredBytes.states_now`."""
        return tuple(state for layer in self._layers for state in layer.content.states_now())

    def _elsewhere(self, file: int) -> tuple[stored_bytes.StoredBytes, int]:
        """The bytes that have a file, and its number there."""
        # Of layers that begin at one number, all but the last have no file.
        number = int(np.searchsorted(self._shifts[:-1], file, side="right")) - 1
        return self._layers[number].content, file - self._shifts[number]

    def raw(self, file: int, offset: int, nbytes: int) -> memoryview:
        """See `StoredBytes.raw`."""
        if file:
            content, number = self._elsewhere(file)
            return content.raw(number, offset, nbytes)
        if not nbytes:
            return memoryview(bytearray())
        return self._tensor(self._names[offset]).map()

    def read_into(self, file: int, offset: int, out: memoryview) -> int:
        """See `StoredBytes.read_into`."""
        if file:
            content, number = self._elsewhere(file)
            return content.read_into(number, offset, out)
        start = int(self._starts[np.searchsorted(self._starts, offset, side="right") - 1])
        held = self._tensor(self._names[start])
        return held.read_into(out, offset - start)

    def held(self, file: int, offset: int, nbytes: int) -> int:
        """See `StoredBytes.held`."""
        if file:
            content, number = self._elsewhere(file)
            return content.held(number, offset, nbytes)
        return nbytes

    def fetch(self, file: int, offset: int, nbytes: int) -> None:
        """See `StoredBytes.fetch`."""
        if file:
            content, number = self._elsewhere(file)
            content.fetch(number, offset, nbytes)

    def release(self, file: int, offset: int, nbytes: int) -> None:
        """See `StoredBytes.release`; what was made is made again when it is asked for again."""
        if file:
            content, number = self._elsewhere(file)
            content.release(number, offset, nbytes)
        elif nbytes:
            with self._lock:
                self._held.pop(self._names[offset], None)

    def close(self) -> None:
        """Let go of what was made, and of the layers that close with it."""
        with self._lock:
            self._held.clear()
        for layer in self._closing:
            layer.close()

    def _tensor(self, name: str) -> stored_bytes.NamelessFile:
        """The tensor, made by the first who asks while others wait."""
        assert self._make is not None
        with self._lock:
            coming = self._held.get(name)
            mine = coming is None
            if coming is None:
                coming = self._held[name] = concurrent.futures.Future()
        if mine:
            try:
                coming.set_result(self._make(name))
            except BaseException as error:  # noqa: BLE001  who waits must hear of any
                coming.set_exception(error)
                with self._lock:
                    self._held.pop(name, None)
        return coming.result()
