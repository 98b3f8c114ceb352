"""`vidtok extract --dry-run`: what there is to do, and nothing written."""

import pytest

from vidtok.cli.main import main
from vidtok.datasets import demo_clip, write_video
from vidtok.extraction.decoding import ReadConfig, read_chunks
from vidtok.extraction.run import dry_run, extract
from vidtok.extraction.sources import WorkItem, parse_clips

FRAMES = {"a.mp4": 10, "b.mp4": 20, "c.mp4": 30}


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for name, frames in FRAMES.items():
        write_video(folder / name, demo_clip(frames, 32), 10)
    (folder / "broken.mp4").write_bytes(b"no video")
    return folder


@pytest.mark.parametrize("container", ["npz", "webdataset"])
def test_what_is_complete_to_do_or_broken(videos, tmp_path, tokenizer_path, container):
    settings = {"model": tokenizer_path, "container": container}
    new = dry_run(videos, tmp_path / "out", **settings)
    assert (new.videos, new.complete, new.todo, new.frames, new.records) == (4, 0, 3, 60, 3)
    assert new.seconds == pytest.approx(6) and new.measured == 3 and new.bytes > 0 and new.run_seconds > 0
    ((item, why),) = new.failures
    assert item.id == "broken.mp4" and "not a video or image" in why
    assert not (tmp_path / "out").exists()
    extract([videos / "a.mp4", videos / "broken.mp4"], tmp_path / "out", **settings)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    rest = dry_run(videos, tmp_path / "out", **settings)
    assert (rest.complete, rest.todo, rest.frames) == (1, 2, 50)
    assert dry_run(videos, tmp_path / "out", force=True, **settings).todo == 3
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before
    with pytest.raises(ValueError, match="features of other settings: resize None, not 16"):
        dry_run(videos, tmp_path / "out", size=16, **settings)


def test_clips_rates_and_segments(videos, tmp_path, tokenizer_path):
    out, model = tmp_path / "out", {"model": tokenizer_path}
    clips = dry_run(videos / "c.mp4", out, clips="dense:2", frames=5, size=16, crop="three", **model)
    assert (clips.records, clips.frames) == (6, 30)
    windows = ReadConfig((4, 8, 8), clips=parse_clips("windows:1", 5)).beginning(11)  # three windows are measured
    assert sum(chunk.info is not None for chunk in read_chunks(WorkItem("c", f"{videos}/c.mp4"), windows)) == 3
    everything = dry_run(videos / "c.mp4", out, clips="windows:1", frames=5, **model)
    assert (everything.records, everything.frames) == (26, 130)
    assert dry_run(videos / "c.mp4", out, fps=5, **model).frames == 15
    assert dry_run(videos / "c.mp4", out, max_frames=7, **model).frames == 7
    (tmp_path / "list.csv").write_text("path,label,start,end\nc.mp4,x,1,2\nc.mp4,x,2,9\n")
    segments = dry_run(tmp_path / "list.csv", out, root=str(videos), **model)
    assert (segments.frames, segments.seconds) == (10, 1)
    assert "the segment from 2 to 9 s is not within the video" in segments.failures[0][1]
    digits = dry_run("digits", out, split="val", workers=0, **model)
    assert digits.frames == 17 * digits.videos and digits.bytes > 0


def test_the_command_says_so(videos, tmp_path, tokenizer_path, capsys):
    arguments = [f"{videos}", "-o", f"{tmp_path}/out", "--model", tokenizer_path, "--dry-run"]
    assert main(["extract", *arguments]) == 1
    printed = capsys.readouterr()
    rows = {line.split("  ")[0]: line.split("  ")[-1].strip() for line in printed.out.splitlines()}
    assert list(rows) == ["videos", "complete", "would fail", "duration", "frames", "output", "time"]
    assert (rows["videos"], rows["frames"]) == ("4, 3 to do", "60 to code, 3 records")
    assert rows["duration"] == "6.0 s to do" and rows["output"].endswith("MB, measured on 3 videos")
    assert "broken.mp4: not a video or image" in printed.err and not (tmp_path / "out").exists()
    assert main(["extract", *arguments, "--measure"]) == 1
    assert "--dry-run is without --engine ray and --measure" in capsys.readouterr().err
