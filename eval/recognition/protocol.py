"""How a video becomes the clips that a recognition result is measured on."""

import re
from dataclasses import asdict, dataclass
from functools import partial

from omegaconf import DictConfig

from vidtok.datasets import EvalTransform, TrainTransform, dense_clips, random_clip, random_segments, uniform_segments
from vidtok.datasets.labelled import Sampler

_NAME = re.compile(r"(\d+)x(\d+|u)x(\d+)x(\d+)")
EXAMPLE = "17x4x5x3 (frames x stride x segments x crops), or 17xux2x3 for frames spread evenly over the video"


@dataclass(frozen=True)
class Protocol:
    """Frames, stride, segments and crops, with the name that the field gives them: `16x4x5x3`.

    Attributes:
        frames: of each clip. stride: video frames from one to the next; None ("u" in the name), they are spread evenly
            over the whole video, the middle of each of `frames` equal parts.
        segments: clips of each video, evenly spaced; one alone is taken from the middle. crops: 1, the centre, or 3
            along the long side. Probabilities are averaged over the segments x crops views.
        joined: the head sees the features of all segments at once instead, as V-JEPA's probe does, and probabilities
            are averaged over the crops alone; it is trained on as many clips, one from each part of the video.
        size: pixels of the crops, size x size; resize: the short side before, None, the same.
        fps: what `stride` is counted in; None, the video's own rate.

    Raises ValueError for numbers that are none of this.
    """

    frames: int = 17
    stride: int | None = None
    segments: int = 1
    crops: int = 1
    size: int = 128
    fps: float | None = None
    resize: int | None = None
    joined: bool = False

    def __post_init__(self):
        if min(self.frames, self.segments, self.size) < 1 or self.stride == 0 or self.crops not in (1, 3):
            raise ValueError(f"protocol {self}: all numbers are at least 1, and crops are 1 or 3")
        if self.fps is not None and (self.stride is None or not self.fps > 0):
            raise ValueError(f"protocol {self}: fps={self.fps} is above 0, and goes with a stride only")
        if self.resize is not None and self.resize < self.size:
            raise ValueError(f"protocol {self}: a crop of {self.size} does not fit into a short side of {self.resize}")

    @classmethod
    def parse(
        cls, name: str, size: int = 128, fps: float | None = None, resize: int | None = None, joined: bool = False
    ) -> "Protocol":
        """Raises ValueError for a name that isn't FRAMESxSTRIDExSEGMENTSxCROPS."""
        match = _NAME.fullmatch(name)
        if not match:
            raise ValueError(f"protocol {name!r}: want such as {EXAMPLE}")
        frames, stride, segments, crops = match.groups()
        stride = None if stride == "u" else int(stride)
        return cls(int(frames), stride, int(segments), int(crops), size, fps, resize, joined)

    def __str__(self) -> str:
        return f"{self.frames}x{self.stride or 'u'}x{self.segments}x{self.crops}"

    @property
    def views(self) -> int:
        return self.segments * self.crops

    @property
    def at_once(self) -> int:
        """Clips that the head sees at once."""
        return self.segments if self.joined else 1

    def sampler(self) -> Sampler:
        """Which moments are tested; nothing is random."""
        if self.stride is None:
            return partial(uniform_segments, frames=self.frames, clips=self.segments)
        return partial(dense_clips, frames=self.frames, stride=self.stride, clips=self.segments, at_fps=self.fps)

    def train_sampler(self) -> Sampler:
        """As many clips as the head sees at once, of the same kind from random places, or with random moments."""
        if self.stride is None:
            return partial(random_segments, frames=self.frames, clips=self.at_once)
        clips = {"clips": self.at_once, "spread": True}
        return partial(random_clip, frames=self.frames, stride=self.stride, at_fps=self.fps, **clips)

    def transform(self) -> EvalTransform:
        return EvalTransform(self.size, self.crops, self.resize)

    def train_transform(self, **settings) -> TrainTransform:
        """settings: of `TrainTransform`, but for the size."""
        return TrainTransform(self.size, **settings)

    def record(self) -> dict:
        """For a result file: the name and all that it leaves out."""
        averaged = "crops, segments seen at once" if self.joined else "segments x crops"
        return {"name": str(self), **asdict(self), "views": f"probabilities averaged over {averaged}"}

    def for_head(self) -> dict:
        """As `vidtok.heads.HeadConfig.protocol` has it."""
        rest = {"fps": self.fps, "resize": self.resize, "joined": self.joined or None}
        return {
            "frames": self.frames, "stride": self.stride, "size": self.size,
            "clips": self.segments, "crops": self.crops,
            **{key: value for key, value in rest.items() if value is not None},
        }  # fmt: skip

    @classmethod
    def of_head(cls, record: dict) -> "Protocol":
        """The inverse of `for_head`."""
        stride = record.get("stride", 1 if "fps" in record else None)
        views = record.get("clips", 1), record.get("crops", 1)
        rest = record.get("fps"), record.get("resize"), record.get("joined", False)
        return cls(record["frames"], stride, *views, record["size"], *rest)


def build_protocol(cfg: DictConfig) -> "Protocol":

    return Protocol.parse(cfg.data.protocol, cfg.data.size, cfg.data.fps, cfg.data.resize, cfg.data.joined)
