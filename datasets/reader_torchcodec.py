"""The torchcodec backend, an optional extra."""

import numpy as np

from .reader_proven import ProvenReader


class TorchCodecReader(ProvenReader):
    """Random access by torchcodec in exact mode, on files it is proven right on. See `VideoReader`.

    Raises ImportError where torchcodec, or the FFmpeg it needs, can't be loaded.
    """

    backend = "torchcodec"

    def _open(self) -> int:
        try:
            from torchcodec.decoders import VideoDecoder
        except (ImportError, OSError, RuntimeError) as e:  # RuntimeError: the wheel is there, FFmpeg or CUDA is not
            raise ImportError("backend 'torchcodec' needs torchcodec and FFmpeg's shared libraries installed") from e
        try:
            self._decoder = VideoDecoder(
                str(self.path), seek_mode="exact", dimension_order="NHWC", num_ffmpeg_threads=1
            )
            return len(self._decoder)
        except (RuntimeError, ValueError) as e:
            raise self._distrust("it can't open it") from e

    def _get(self, indices: list[int]) -> np.ndarray:
        try:
            batch = self._decoder.get_frames_at(indices)
        except RuntimeError as e:
            raise self._broken() from e
        self._check_times(batch.pts_seconds.numpy(), self.start_time + self.timestamps[indices])
        return batch.data.numpy()

    def close(self) -> None:
        self._decoder = None
