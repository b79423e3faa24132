"""Small files that ask for a lot of memory, and images of kinds that are rare."""

import io
import struct
import zlib

import numpy as np
from PIL import Image


def png(width: int, height: int) -> bytes:
    """A black PNG of one bit per pixel, whole and of a few kilobytes."""
    rows = zlib.compressobj(9)
    line = bytes(1 + (width + 7) // 8)
    content = b"".join(rows.compress(line) for _ in range(height)) + rows.flush()
    return _png(width, height, content)


def header(width: int, height: int) -> bytes:
    """A PNG that is no more than its header: 69 bytes."""
    return _png(width, height, zlib.compress(b""))


def _png(width: int, height: int, content: bytes) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
        + chunk(b"IDAT", content)
        + chunk(b"IEND", b"")
    )


def saved(image: Image.Image | np.ndarray, kind: str, **settings: object) -> bytes:
    """A picture as a file of some format."""
    buffer = io.BytesIO()
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    picture.save(buffer, format=kind, **settings)
    return buffer.getvalue()


def tiff(tile: int, *, side: int = 16, compression: int = 8) -> bytes:
    """A grey TIFF of one tile, which is larger than the image."""
    tags = [(256, side), (257, side), (258, 8), (259, compression), (262, 1), (277, 1)]
    tags += [(322, tile), (323, tile), (324, 150), (325, 64)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    header = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", 0)
    return header.ljust(150, b"\0") + zlib.compress(bytes(tile)).ljust(64, b"\0")[:64]
