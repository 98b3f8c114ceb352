"""Reading and writing video, and the datasets made of it."""

from .annotations import read_annotations
from .clips import ClipFolder
from .digits import MovingDigits
from .error import VideoError
from .kinetics import Kinetics
from .labelled import LabelledDataset
from .labelled_videos import LabelledVideos
from .open import open_video
from .pool import DecodePool
from .read import VideoInfo, VideoStream, iter_video, probe_video, read_video
from .reader import Chunk, VideoReader
from .sample import Batch, Sample, collate_samples
from .samplers import dense_clips, random_clip, uniform_segments, whole_windows
from .something import SomethingSomethingV2
from .synthetic import demo_clip
from .tensor import frames_to_video, plan_resize, resize_video, video_to_frames
from .transforms import EvalTransform, TrainTransform
from .video_folder import VideoFolder
from .video_list import VideoList
from .write import VideoWriter, write_video

__all__ = [
    "Batch", "Chunk", "ClipFolder", "DecodePool", "EvalTransform", "Kinetics", "LabelledDataset", "LabelledVideos",
    "MovingDigits", "Sample", "SomethingSomethingV2", "TrainTransform", "VideoError", "VideoFolder", "VideoInfo",
    "VideoList", "VideoReader", "VideoStream", "VideoWriter", "collate_samples", "demo_clip", "dense_clips",
    "frames_to_video", "iter_video", "open_video", "plan_resize", "probe_video", "random_clip", "read_annotations",
    "read_video", "resize_video", "uniform_segments", "video_to_frames", "whole_windows", "write_video",
]  # fmt: skip
