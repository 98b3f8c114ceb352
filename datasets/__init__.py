"""Reading and writing video, and the datasets made of it."""

from .annotations import read_annotations
from .check import check_video, check_videos, find_overlap, refuse_overlap
from .clips import ClipFolder
from .digit_clips import DigitClips
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
from .samplers import dense_clips, random_clip, random_segments, uniform_segments, whole_windows
from .something import SomethingSomethingV2
from .source import files_by_split, open_dataset
from .synthetic import demo_clip
from .tensor import frames_to_video, plan_resize, resize_video, video_to_frames
from .transforms import EvalTransform, SquareTransform, TrainTransform
from .video_folder import VideoFolder
from .video_list import VideoList
from .write import VideoWriter, write_video

__all__ = [
    "Batch", "Chunk", "ClipFolder", "DecodePool", "DigitClips", "EvalTransform", "Kinetics", "LabelledDataset",
    "LabelledVideos", "MovingDigits", "Sample", "SomethingSomethingV2", "SquareTransform", "TrainTransform",
    "VideoError", "VideoFolder", "VideoInfo", "VideoList", "VideoReader", "VideoStream", "VideoWriter", "check_video",
    "check_videos", "collate_samples", "demo_clip", "dense_clips", "files_by_split", "find_overlap", "frames_to_video",
    "iter_video", "open_dataset", "open_video", "plan_resize", "probe_video", "random_clip", "random_segments",
    "read_annotations", "read_video", "refuse_overlap", "resize_video", "uniform_segments", "video_to_frames",
    "whole_windows", "write_video",
]  # fmt: skip
