"""Segments of videos: every way of reading is cut to them, each has a name of its own, and bad ones are found."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from vidtok.datasets import (
    ClipFolder,
    Kinetics,
    VideoError,
    check,
    dense_clips,
    files_by_split,
    open_dataset,
    random_clip,
    random_segments,
    read_annotations,
    uniform_segments,
    whole_windows,
    write_video,
)
from vidtok.datasets.annotations.table import canonical_split, parse_time
from vidtok.datasets.samplers import frames_of_segment, segment_id
from vidtok.eval.recognition.clips import ClipSource
from vidtok.extraction.decoding import ReadConfig, read_chunks
from vidtok.extraction.sources import parse_clips, plan_sources
from vidtok.names import result_names

FPS, N = 10, 60


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    """6 s at 10 fps; the brightness of frame i is i / 60 of the range."""
    path = tmp_path_factory.mktemp("video") / "u.mp4"
    values = torch.arange(N) / N * 2 - 1
    write_video(path, values[None, :, None, None].expand(3, N, 32, 32), FPS)
    return path


def table(video: Path, rows: str, header: str = "path,label,start,end", name: str = "list.csv") -> Path:
    path = video.parent / name
    path.write_text(f"{header}\n{rows}")
    return path


def shown(clip: torch.Tensor) -> list[int]:
    """Numbers of the frames of [3,T,H,W], float in [-1, 1] or uint8."""
    clip = clip / 127.5 - 1 if clip.dtype == torch.uint8 else clip
    return [round(value) for value in ((clip.mean((0, 2, 3)) + 1) / 2 * N).tolist()]


SAMPLERS = {
    "uniform": partial(uniform_segments, frames=4, clips=2),
    "random_segments": partial(random_segments, frames=4, clips=3),
    "dense": partial(dense_clips, frames=4, stride=2, clips=3),
    "random": partial(random_clip, frames=4, stride=2, clips=3),
    "windows": partial(whole_windows, frames=8),
    "all": None,
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_samples_are_cut_to_their_segment(video, name):
    listed = table(video, "u.mp4,red,0,3\nu.mp4,blue,3.0,6.0\nu.mp4,red,1.25,1.85\nu.mp4,blue,,\n")
    data = open_dataset(listed, sampler=SAMPLERS[name])
    assert data.segments == [(0, 3), (3, 6), (1.25, 1.85), None] and len(set(data.ids)) == 4
    for index, (start, end) in enumerate([(0, 30), (30, 60), (13, 19), (0, 60)]):
        sample = data[index]
        for clip, times in zip(sample.video, sample.timestamps, strict=True):
            inside = range(start - 1, end + 1)  # a level of the codec's rounding
            assert all(number in inside for number in shown(clip))
            np.testing.assert_array_less(start / FPS - 1e-6, times)
            np.testing.assert_array_less(times, end / FPS - 1e-6)
    whole = data[1].timestamps
    if name == "all":
        np.testing.assert_allclose(whole[0], np.arange(30, 60) / FPS)
    if name == "uniform":  # as of a video of 3 s, on the clock of the whole
        np.testing.assert_allclose(whole[0], 3 + np.array([0, 0.7, 1.5, 2.2]))


def test_frames_of_segment():
    times = np.arange(10) / 10
    frames = partial(frames_of_segment, "u.mp4", times, 10.0)
    assert frames(None) == slice(0, 10) and frames((0.2, 0.5)) == slice(2, 5) and frames((0.25, 0.5)) == slice(3, 5)
    assert frames((0.31, 0.35)) == slice(3, 4)  # between two frames
    assert frames((0.5, 99)) == slice(5, 10) and frames((0.95, 1)) == slice(9, 10)
    with pytest.raises(VideoError, match=r"from 1 to 2 s is not within the video, which lasts 1\.00 s"):
        frames((1, 2))


def test_a_segment_after_the_end_is_named(video):
    data = open_dataset(table(video, "u.mp4,a,2,3\nu.mp4,a,7,9\n"), on_error="return")
    assert isinstance(data[1], VideoError) and str(data[1]).startswith(f"{video} (7 to 9 s): the segment from 7 to 9 s")


def test_names_of_segments():
    assert segment_id("a/u.mp4", (3, 6)) == "a/u_000003_000006.mp4"
    assert segment_id("v1.2", (3, 6.25)) == "v1.2_000003_000006.25"
    ids = [segment_id("u.mp4", (1.5, end)) for end in (2, 2.5, 2.75)]
    assert len(set(result_names([(id, "u.mp4") for id in ids], ".npz").values())) == 3


@pytest.mark.parametrize(
    ("header", "rows"),
    [
        ("path,label,t_start,t_end", "u.mp4,a,3,6\n"),
        ("path,label,time_start,time_end", "u.mp4,a,3.0,6.0\n"),
        ("video_id,label,start_time,end_time", "u,a,0:03,00:00:06.0\n"),
        ("youtube_id,label,time_start,time_end,split", "u,a,3,6,train\n"),
    ],
)
def test_formats_with_segments(video, header, rows):
    data = open_dataset(table(video, rows, header), root=video.parent)
    assert data.segments == [(3, 6)] and data[0].timestamps[0, 0] == 3 and data.paths == [str(video)]


@pytest.mark.parametrize("entry", [{"start": 3, "end": 6.0}, {"segment": [3, 6]}])
def test_json_with_segments(video, entry):
    listed = video.parent / "list.json"
    listed.write_text(json.dumps([{"video": "u.mp4", "label": "a", "subset": "Validation"} | entry]))
    data = open_dataset(listed, split="VAL")
    assert data.segments == [(3, 6)] and data.classes == ["a"]
    listed.write_text(json.dumps([{"video": "u.mp4", "label": "a", "start": 6, "end": 3}]))
    with pytest.raises(ValueError, match=r"line 1.*a segment has a start and a later end"):
        open_dataset(listed)


def test_a_file_that_was_cut_already_is_whole(video, tmp_path):
    clip = tmp_path / "x_000003_000009.mp4"
    clip.write_bytes(video.read_bytes())
    named = table(clip, "x_000003_000009.mp4,a,3,9\n")
    by_id = table(clip, "x,a,3,9\n", "video_id,label,start,end", "ids.csv")
    kinetics = table(clip, "a,x,3,9,train\n", "label,youtube_id,time_start,time_end,split", "k.csv")
    for data in (open_dataset(named), open_dataset(by_id), Kinetics(kinetics, tmp_path)):
        assert data.segments == [None] and data.paths == [str(clip)] and data[0].timestamps.shape == (1, 60)


BAD_ROWS = {"-1,2": "start is not", "nan,2": "start is not", "2,inf": "end is not", "x,2": "start is not",
            "3,3": "later end", "4,3": "later end", "3,": "later end", ",3": "later end"}  # fmt: skip


@pytest.mark.parametrize("times", BAD_ROWS)
def test_bad_times_are_an_error_with_the_line(video, times):
    listed = table(video, f"u.mp4,a,0,1\nu.mp4,a,{times}\n")
    for function in (read_annotations, check):
        with pytest.raises(ValueError, match=f"line 3.*{BAD_ROWS[times]}"):
            function(listed)


@pytest.mark.parametrize("header", ["path,label,start", "path,label,end", "path,label,start_frame,end_frame"])
def test_columns_of_which_no_segment_can_be_made_are_refused(video, header):
    with pytest.raises(ValueError, match="segments"):
        read_annotations(table(video, "u.mp4,a" + ",3" * (header.count(",") - 1), header))


def test_check_finds_segments_outside_their_video(video, tmp_path):
    listed = table(video, "u.mp4,a,0,3\nu.mp4,a,3,6.05\nu.mp4,b,5,9\nu.mp4,b,7,8\n")
    found = check(listed, workers=1, output=tmp_path / "checked.csv")
    assert not found.ok and found.bad["status"].tolist() == ["bad segment"] * 2
    assert found.bad[["start", "end"]].values.tolist() == [[5, 9], [7, 8]]
    assert "from 5 to 9 s is not within the video, which lasts 6.00 s" in found.bad["reason"].iloc[0]
    for checked in (found.table, tmp_path / "checked.csv"):
        with pytest.warns(UserWarning, match="2 of 4"):
            assert open_dataset(listed, checked=checked).segments == [(0, 3), (3, 6.05)]


def test_extraction_is_cut_to_segments(video):
    listed = table(video, "u.mp4,a,0,3\nu.mp4,b,3,6\n")
    items = plan_sources(listed)
    assert [item.id for item in items] == ["u_000000_000003.mp4", "u_000003_000006.mp4"]
    assert [item.segment for item in items] == [(0, 3), (3, 6)] and "(3 to 6 s)" in str(items[1])

    def read(**how) -> tuple[list[int], np.ndarray]:
        chunks = list(read_chunks(items[1], ReadConfig((1, 8, 8), **how)))
        info = next(chunk.info for chunk in reversed(chunks) if chunk.info)
        return [number for chunk in chunks for number in shown(chunk.video[0])], info.timestamps

    numbers, times = read()
    assert np.abs(np.subtract(numbers, range(30, 60))).max() <= 1
    np.testing.assert_allclose(times, np.arange(30, 60) / FPS)
    numbers, times = read(fps=5, max_frames=4, size=16)
    assert np.abs(np.subtract(numbers, [30, 32, 34, 36])).max() <= 1
    np.testing.assert_allclose(times, [3, 3.2, 3.4, 3.6])
    for clips in ("uniform:2", "dense:2", "windows"):
        numbers, times = read(clips=parse_clips(clips, 4))
        assert min(numbers) >= 29 and times.min() >= 3


def test_subsets_and_groups_keep_segments(video):
    header = "path,label,start,end,split,group"
    listed = table(video, "u.mp4,a,0,3,Train,x\nu.mp4,b,3,6,TRAIN,y\n", header)
    source = ClipSource(str(listed), group_column="group")
    data = open_dataset(listed, split="train")
    assert source.groups(data.ids) == ["x", "y"]
    data.keep(np.array([1]))
    assert data.segments == [(3, 6)] and data[0].timestamps[0, 0] == 3


def test_training_windows_are_drawn_from_segments(video, tmp_path):
    listed = table(video, "u.mp4,a,4,6\n")
    for cache in (None, tmp_path):
        clips = ClipFolder(
            video.parent, frames=5, crop=16, batch_size=8, flip=False, images=False, annotations=listed, cache=cache
        )
        assert clips.videos == [str(video)]
        numbers = [number for clip in clips[0] for number in shown(clip)]
        assert min(numbers) >= 39 and max(numbers) > 50


def test_splits_compare_without_case(video):
    listed = table(video, "u.mp4,a,Train\nu.mp4,a,VAL\nu.mp4,a,Fold1\n", "path,label,split")
    assert read_annotations(listed).split.tolist() == ["train", "val", "Fold1"]
    for split in ("val", "Val", "validation", "fold1"):
        assert len(open_dataset(listed, split=split)) == 1
    for split in ("Train", "VALIDATION"):
        (video.parent / "data" / split / "a").mkdir(parents=True, exist_ok=True)
        (video.parent / "data" / split / "a" / "u.mp4").write_bytes(video.read_bytes())
    folder = video.parent / "data"
    assert list(files_by_split(folder)) == ["Train", "VALIDATION"]
    assert len(open_dataset(folder, split="train")) == len(open_dataset(folder, split="val")) == 1
    assert [item.split for item in plan_sources(folder, class_folders=True)] == ["train", "validation"]
    assert canonical_split("Dev") == "val" and open_dataset("digits", split="Validation").split == "val"


def test_labels_that_became_floats(video):
    for missing, dropped in (("", 0), ("v.mp4,\n", 1), ("v.mp4,nan\n", 1)):
        found = read_annotations(table(video, f"u.mp4,3.0\n{missing}w.mp4,0.0\n", "path,label"))
        assert found.label.tolist() == [3, 0] and found.label.dtype == "int64" and found.attrs["dropped"] == dropped
    frame = pd.DataFrame({"path": ["u.mp4", "v.mp4", "w.mp4"], "label": [3, None, 0]})
    frame.to_csv(video.parent / "list.csv", index=False)
    assert read_annotations(video.parent / "list.csv").label.tolist() == [3, 0]
    with pytest.raises(ValueError, match="scores, not classes"):
        read_annotations(table(video, "u.mp4,0.5\nv.mp4,1.0\n", "path,label"))


def test_parse_time():
    assert [parse_time(text) for text in ("", "3", "3.5", "1e1", "1:05", "01:00:02.5")] == [
        None,
        3,
        3.5,
        10,
        65,
        3602.5,
    ]


def test_segments_that_overlap_are_in_two_splits(video):
    header = "path,label,start,end,split"
    apart = table(video, "u.mp4,a,0,3,train\nu.mp4,b,3,6,val\n", header)
    assert check(apart, workers=1).ok
    ClipSource(str(apart)).validate_disjoint("train", ClipSource(str(apart)), "val")
    for rows in ("u.mp4,a,0,3.5,train\nu.mp4,b,3,6,val\n", "u.mp4,a,0,3,train\nu.mp4,b,,,val\n"):
        both = table(video, rows, header)
        assert [pair[:3:2] for pair in check(both, workers=1).overlap] == [("train", "val")]
        with pytest.raises(ValueError, match="in training and validation"):
            ClipSource(str(both)).validate_disjoint("train", ClipSource(str(both)), "val")
