"""Reading and writing video, and the datasets made of it."""

from .annotations import read_annotations
from .clips import ClipFolder
from .error import VideoError
from .open import open_video
from .pool import DecodePool
from .read import VideoInfo, VideoStream, iter_video, probe_video, read_video
from .reader import Chunk, VideoReader
from .samplers import dense_clips, random_clip, uniform_segments, whole_windows
from .synthetic import demo_clip
from .tensor import frames_to_video, plan_resize, resize_video, video_to_frames
from .transforms import EvalTransform, TrainTransform
from .write import VideoWriter, write_video

__all__ = [
    "Chunk", "ClipFolder", "DecodePool", "EvalTransform", "TrainTransform", "VideoError", "VideoInfo", "VideoReader",
    "VideoStream", "VideoWriter", "demo_clip", "dense_clips", "frames_to_video", "iter_video", "open_video",
    "plan_resize", "probe_video", "random_clip", "read_annotations", "read_video", "resize_video", "uniform_segments",
    "video_to_frames", "whole_windows", "write_video",
]  # fmt: skip
