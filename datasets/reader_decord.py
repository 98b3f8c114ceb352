"""The decord backend."""

from importlib.util import find_spec

import numpy as np

from .reader_proven import ProvenReader


def has_decord() -> bool:
    return find_spec("decord") is not None


class DecordReader(ProvenReader):
    """Random access by decord, on files it is proven right on. See `VideoReader`."""

    backend = "decord"

    def _open(self) -> int:
        import decord

        decord.logging.set_level(decord.logging.QUIET)  # it writes packet bytes to the console
        self._failure = decord.DECORDError, RuntimeError
        try:
            self._decoder = decord.VideoReader(str(self.path), num_threads=1)
            times = self._decoder.get_frame_timestamp(range(len(self._decoder)))[:, 0].astype(np.float64)
        except self._failure as e:
            raise self._distrust("it can't open it") from e
        if len(times) == self.num_frames:
            self._check_times(times - times[0], self.timestamps)
        return len(times)

    def _get(self, indices: list[int]) -> np.ndarray:
        try:
            return self._decoder.get_batch(indices).asnumpy()
        except self._failure as e:
            raise self._broken() from e

    def close(self) -> None:
        self._decoder = None
