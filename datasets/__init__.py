"""Read and write video, and build datasets of videos."""

from vidtok.datasets.annotations import read_annotations
from vidtok.datasets.backends import VideoReader, open_video
from vidtok.datasets.checking import CheckResult, check, check_video, check_videos, find_overlap, validate_disjoint
from vidtok.datasets.clips import ClipFolder
from vidtok.datasets.frames import Chunk, frames_to_video, plan_resize, resize_video, video_to_frames
from vidtok.datasets.labeled import Batch, LabeledDataset, LabeledVideos, Sample, collate_samples
from vidtok.datasets.loading import DecodePool
from vidtok.datasets.samplers import dense_clips, random_clip, random_segments, uniform_segments, whole_windows
from vidtok.datasets.sources import Kinetics, SomethingSomethingV2, VideoFolder, VideoList, files_by_split, open_dataset
from vidtok.datasets.synthetic.digits import DigitClips, MovingDigits, demo_clip
from vidtok.datasets.synthetic.motion import MotionTasks
from vidtok.datasets.transforms import EvalTransform, SquareTransform, TrainTransform
from vidtok.datasets.video import VideoInfo, VideoStream, iter_video, probe_video, read_video
from vidtok.datasets.writing import AudioPackets, VideoWriter, write_video
from vidtok.errors import VideoError

__all__ = [
    "AudioPackets",
    "Batch",
    "CheckResult",
    "Chunk",
    "ClipFolder",
    "DecodePool",
    "DigitClips",
    "EvalTransform",
    "Kinetics",
    "LabeledDataset",
    "LabeledVideos",
    "MotionTasks",
    "MovingDigits",
    "Sample",
    "SomethingSomethingV2",
    "SquareTransform",
    "TrainTransform",
    "VideoError",
    "VideoFolder",
    "VideoInfo",
    "VideoList",
    "VideoReader",
    "VideoStream",
    "VideoWriter",
    "check",
    "check_video",
    "check_videos",
    "collate_samples",
    "demo_clip",
    "dense_clips",
    "files_by_split",
    "find_overlap",
    "frames_to_video",
    "iter_video",
    "open_dataset",
    "open_video",
    "plan_resize",
    "probe_video",
    "random_clip",
    "random_segments",
    "read_annotations",
    "read_video",
    "resize_video",
    "uniform_segments",
    "validate_disjoint",
    "video_to_frames",
    "whole_windows",
    "write_video",
]  # fmt: skip
