"""From a decoded FFmpeg frame to the picture a viewer sees."""

import math
from pathlib import Path

import numpy as np
from av import VideoFrame
from PIL import Image

Matrix = tuple[int, int, int, int]

# Of EXIF's orientations 2 to 8: what a pixel at (x, y) is shown at, see `display_matrix`.
_ORIENTATIONS: dict[int, Matrix] = {
    2: (-1, 0, 0, 1),
    3: (-1, 0, 0, -1),
    4: (1, 0, 0, -1),
    5: (0, 1, 1, 0),
    6: (0, 1, -1, 0),
    7: (0, -1, -1, 0),
    8: (0, -1, 1, 0),
}


def to_rgb(frame: VideoFrame, width: int, height: int, matrix: Matrix | None = None) -> np.ndarray:
    """Decoded frame -> uint8 [H,W,3] RGB, scaled to width x height (coded orientation) if it differs, then turned: by
    `matrix`, or by the frame's own."""
    image_HWC = frame.reformat(width=width, height=height, format="rgb24").to_ndarray()
    return orient(image_HWC, matrix or display_matrix(frame))


def exif_matrix(path: Path) -> Matrix | None:
    """The display matrix that an image file's EXIF orientation stands for; None: upright, or nothing is said."""
    try:
        with Image.open(path) as image:
            return _ORIENTATIONS.get(image.getexif().get(0x0112))
    except (OSError, SyntaxError, ValueError):  # FFmpeg can read it, Pillow can't
        return None


def display_matrix(frame: VideoFrame) -> Matrix | None:
    """(a, b, c, d) of the frame's display matrix: a pixel at (x, y) is shown at (ax + cy, bx + dy). None: upright."""
    try:
        side_data = frame.side_data
    except ValueError:  # PyAV stumbles over kinds it does not know; the angle it still tells, mirrors are lost
        turn = round(frame.rotation / 90) * math.pi / 2
        cos, sin = round(math.cos(turn)), round(math.sin(turn))
        return (cos, -sin, sin, cos) if turn else None
    for data in side_data:
        if data.type.name == "DISPLAYMATRIX":
            m = np.frombuffer(bytes(data), dtype=np.int32)
            return int(m[0]), int(m[1]), int(m[3]), int(m[4])
    return None


def swaps_sides(matrix: Matrix | None) -> bool:
    """Whether the matrix lays rows down as columns."""
    return matrix is not None and abs(matrix[1]) + abs(matrix[2]) > abs(matrix[0]) + abs(matrix[3])


def orient(image_HWC: np.ndarray, matrix: Matrix | None) -> np.ndarray:
    """Apply a display matrix of quarter turns and mirrors, the way ffmpeg's autorotate does."""
    if matrix is None:
        return image_HWC
    a, b, c, d = matrix
    if swaps_sides(matrix):
        image_HWC, a, d = image_HWC.transpose(1, 0, 2), c, b
    return image_HWC[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
