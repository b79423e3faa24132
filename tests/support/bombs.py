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
