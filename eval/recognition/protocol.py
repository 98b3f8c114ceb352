"""Test protocols of recognition: which clips and crops of a video are classified."""

import re
from dataclasses import asdict, dataclass
from functools import partial

from omegaconf import DictConfig

from vidtok.datasets import EvalTransform, TrainTransform, dense_clips, random_clip, random_segments, uniform_segments
from vidtok.datasets.labeled import Sampler

_NAME = re.compile(r"(\d+)x(\d+|u)x(\d+)x(\d+)")
EXAMPLE = "17x4x5x3 (frames x stride x segments x crops), or 17xux2x3 for frames spread evenly over the video"


@dataclass(frozen=True)
class Protocol:
    """Frames, stride, segments and crops of a test, written as in the literature: `16x4x5x3`.

    Attributes:
        frames: number of frames of a clip.
        stride: video frames between two of them. None ("u" in the name): they are spread evenly over the whole video,
            each in the middle of one of `frames` equal parts.
        segments: number of clips of a video, evenly spaced; a single one is taken from the middle.
        crops: 1, the center, or 3 along the long side. Probabilities are averaged over the segments x crops views.
        size: side of the square crops in pixels. resize: short side before the crop in pixels; None, `size`.
        fps: frame rate in which `stride` is counted; None, the video's own.
        concat_segments: whether the head sees the features of all segments at once, as V-JEPA's probe does.
            Probabilities are then averaged over the crops alone, and training takes as many clips, one from each part
            of the video.

    Raises:
        ValueError: for illegal numbers.
    """

    frames: int = 17
    stride: int | None = None
    segments: int = 1
    crops: int = 1
    size: int = 128
    fps: float | None = None
    resize: int | None = None
    concat_segments: bool = False

    def __post_init__(self):
        if min(self.frames, self.segments, self.size) < 1 or self.stride == 0 or self.crops not in (1, 3):
            raise ValueError(f"protocol {self}: all numbers are at least 1, and crops are 1 or 3")
        if self.fps is not None and (self.stride is None or not self.fps > 0):
            raise ValueError(f"protocol {self}: fps={self.fps} is above 0, and goes with a stride only")
        if self.resize is not None and self.resize < self.size:
            raise ValueError(f"protocol {self}: a crop of {self.size} does not fit into a short side of {self.resize}")

    @classmethod
    def parse(
        cls,
        name: str,
        size: int = 128,
        fps: float | None = None,
        resize: int | None = None,
        concat_segments: bool = False,
    ) -> "Protocol":
        """Parse FRAMESxSTRIDExSEGMENTSxCROPS. Raises ValueError for another name."""
        match = _NAME.fullmatch(name)
        if not match:
            raise ValueError(f"protocol {name!r}: want such as {EXAMPLE}")
        frames, stride, segments, crops = match.groups()
        stride = None if stride == "u" else int(stride)
        return cls(int(frames), stride, int(segments), int(crops), size, fps, resize, concat_segments)

    def __str__(self) -> str:
        return f"{self.frames}x{self.stride or 'u'}x{self.segments}x{self.crops}"

    @property
    def views(self) -> int:
        return self.segments * self.crops

    @property
    def at_once(self) -> int:
        """Number of clips that the head sees at once."""
        return self.segments if self.concat_segments else 1

    def sampler(self) -> Sampler:
        """Return the deterministic sampler of the test."""
        if self.stride is None:
            return partial(uniform_segments, frames=self.frames, clips=self.segments)
        return partial(dense_clips, frames=self.frames, stride=self.stride, clips=self.segments, at_fps=self.fps)

    def train_sampler(self) -> Sampler:
        """Return the sampler of random clips for training, as many as the head sees at once."""
        if self.stride is None:
            return partial(random_segments, frames=self.frames, clips=self.at_once)
        return partial(
            random_clip, frames=self.frames, stride=self.stride, at_fps=self.fps, clips=self.at_once, spread=True
        )

    def transform(self) -> EvalTransform:
        return EvalTransform(self.size, self.crops, self.resize)

    def train_transform(self, **settings) -> TrainTransform:
        """Return the transform of training. settings: of `TrainTransform`, but for the size."""
        return TrainTransform(self.size, **settings)

    def record(self) -> dict:
        """Return the record for a result file: the name and all settings."""
        averaged = "crops, segments seen at once" if self.concat_segments else "segments x crops"
        return {"name": str(self), **asdict(self), "views": f"probabilities averaged over {averaged}"}

    def for_head(self) -> dict:
        """Return the record for `vidtok.heads.HeadConfig.protocol`."""
        rest = {"fps": self.fps, "resize": self.resize, "concat_segments": self.concat_segments or None}
        return {
            "frames": self.frames, "stride": self.stride, "size": self.size,
            "clips": self.segments, "crops": self.crops,
            **{key: value for key, value in rest.items() if value is not None},
        }  # fmt: skip

    @classmethod
    def of_head(cls, record: dict) -> "Protocol":
        """Read the record of `for_head`."""
        stride = record.get("stride", 1 if "fps" in record else None)
        segments, crops, concat = record.get("clips", 1), record.get("crops", 1), record.get("concat_segments", False)
        fps, resize = record.get("fps"), record.get("resize")
        return cls(record["frames"], stride, segments, crops, record["size"], fps, resize, concat)


def build_protocol(cfg: DictConfig) -> Protocol:
    """Build the protocol of the group `data`."""
    return Protocol.parse(cfg.data.protocol, cfg.data.size, cfg.data.fps, cfg.data.resize, cfg.data.concat_segments)
