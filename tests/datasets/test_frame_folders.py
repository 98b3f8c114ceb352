"""Folders of numbered images as videos: read as their images are, found by every command, refused in one line."""

import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vidtok.cli.main import main
from vidtok.configs.compose import compose_config, to_dict
from vidtok.datasets import check, open_dataset, open_video
from vidtok.datasets.checking import find_overlap
from vidtok.datasets.samplers import uniform_segments
from vidtok.datasets.seek import read_selection
from vidtok.errors import VideoError
from vidtok.eval.recognition import probe
from vidtok.eval.recognition.clips import ClipSource, Protocol, build_clip_sources
from vidtok.extraction import open_reader, read_npz
from vidtok.extraction.sources import plan_sources
from vidtok.inputs import file_version, find_videos

KINDS = ("jpg", "png", "tif")


def write_frames(folder: Path, count: int, suffix: str = "jpg", first: int = 1, seed: int = 0) -> Path:
    """Write numbered images of 48 x 64 pixels, each the one before shifted."""
    folder.mkdir(parents=True)
    cells = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), np.uint8)
    for i in range(count):
        picture_HWC = np.kron(np.roll(cells, i, 1), np.ones((8, 8, 1), np.uint8))
        Image.fromarray(picture_HWC).save(folder / f"img_{first + i:05d}.{suffix}")
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Class folders of frame folders, and an archive of them."""
    root = tmp_path_factory.mktemp("frames")
    for seed, place in enumerate(("walk/a", "walk/b", "run/c", "run/d")):
        write_frames(root / "videos" / place, 5 + seed, seed=seed)
    with tarfile.open(root / "videos.tar", "w") as tar:
        tar.add(root / "videos", ".")
    return root


@pytest.mark.parametrize("suffix", KINDS)
def test_frames_are_those_of_the_images(tmp_path, suffix):
    folder = write_frames(tmp_path / "clip", 9, suffix, first=7)
    with open_video(folder / "@29.97") as reader:
        assert (reader.size, reader.fps, reader.num_frames) == ((48, 64), 29.97, 9)
        np.testing.assert_allclose(reader.timestamps, np.arange(9) / 29.97, atol=1e-6)
        frames = reader.frames(range(9))
    for number, frame_HWC in enumerate(frames):
        with open_video(folder / f"img_{number + 7:05d}.{suffix}") as image:
            np.testing.assert_array_equal(frame_HWC, image.frames([0])[0])
    chosen = read_selection(folder / "@29.97", lambda timestamps, fps: np.array([8, 2]))
    np.testing.assert_array_equal(chosen.frames, frames[[8, 2]])


def test_numbers_need_no_zeros_and_archives_hold_folders_too(root, tmp_path):
    folder = write_frames(tmp_path / "clip", 11)
    for path in sorted(folder.iterdir()):
        path.rename(folder / f"{int(path.stem[4:])}.jpg")
    with open_video(folder / "@10") as reader, open_video(root / "videos.tar/run/d/@10") as inside:
        assert reader.num_frames == 11
        with open_video(root / "videos/run/d/@10") as outside:
            np.testing.assert_array_equal(inside.frames([0, 7]), outside.frames([0, 7]))
    sizes = sum(path.stat().st_size for path in folder.iterdir())
    before = file_version(folder / "@10")
    assert before.size == sizes
    (folder / "11.jpg").unlink()
    assert file_version(folder / "@10") != before


def spoil(folder: Path, what: str) -> None:
    if what == "gap":
        (folder / "img_00002.jpg").unlink()
    elif what == "size":
        Image.new("RGB", (32, 32)).save(folder / "img_00003.jpg")
    elif what == "format":
        Image.new("RGB", (64, 48)).save(folder / "img_00004.png")
    elif what == "disguise":
        Image.new("RGB", (64, 48)).save(folder / "img_00003.jpg", "png")
    elif what == "webp":
        for path in folder.iterdir():
            Image.open(path).save(path.with_suffix(".webp"))
            path.unlink()
    elif what == "series":
        Image.new("RGB", (64, 48)).save(folder / "flow_00001.jpg")
    elif what == "name":
        Image.new("RGB", (64, 48)).save(folder / "cover.jpg")
    elif what == "twice":
        Image.new("RGB", (64, 48)).save(folder / "img_2.jpg")
    elif what == "text":
        (folder / "img_00003.jpg").write_text("no image")
    elif what == "empty":
        for path in folder.iterdir():
            path.unlink()


REASONS = {
    "gap": "frame 2 is missing: it holds img_00001.jpg to img_00003.jpg",
    "size": "img_00003.jpg (JPEG, 32x32) is unlike img_00001.jpg (JPEG, 64x48): frames have one format and one size",
    "format": "img_00001.jpg and img_00004.png are of two series: a folder holds the frames of one video",
    "disguise": "img_00003.jpg (PNG, 64x48) is unlike img_00001.jpg (JPEG, 64x48): frames have one format and one size",
    "webp": "img_00001.webp is WEBP, 64x48: frames are JPEG, PNG or TIFF of up to 65535 pixels a side",
    "series": "flow_00001.jpg and img_00001.jpg are of two series: a folder holds the frames of one video",
    "name": "cover.jpg has no number at its end: frames are named as 0001.jpg, 0002.jpg, ...",
    "twice": "img_00002.jpg and img_2.jpg are both frame 2",
    "text": "img_00003.jpg is not an image that can be read",
    "empty": "no images (.png, .jpg, .jpeg, .webp, .bmp, .tif, .tiff) in this folder",
}


@pytest.mark.parametrize("what", REASONS)
def test_what_is_no_video_is_one_clear_line(tmp_path, what):
    folder = write_frames(tmp_path / "clip", 3)
    spoil(folder, what)
    with pytest.raises(VideoError) as caught:
        open_video(folder / "@25")
    assert str(caught.value) == f"{folder}: {REASONS[what]}"


def test_a_rate_is_needed_that_a_video_can_have(tmp_path):
    folder = write_frames(tmp_path / "clip", 2)
    for rate in ("0", "1001"):
        with pytest.raises(VideoError, match=f"{rate} frames per second: give a rate from"):
            open_video(folder / f"@{rate}")
    with pytest.raises(VideoError, match="No such file or directory"):
        open_video(tmp_path / "none/@25")


def test_every_kind_of_source_finds_them(root, monkeypatch):
    monkeypatch.chdir(root)
    names = ["run/c", "run/d", "walk/a", "walk/b"]
    found = [(Path("videos", name, "@10"), Path(name)) for name in names]
    assert find_videos(["videos"], 10) == found
    assert {str(below) for _, below in find_videos(["videos.tar"], 10)} == set(names)
    assert find_videos(["videos/run/c"], 12.5) == [(Path("videos/run/c/@12.5"), Path("c"))]
    assert find_videos(["videos/run/c/@12.5"]) == [(Path("videos/run/c/@12.5"), Path("c"))]
    assert [item.id for item in plan_sources("videos", frame_folders=10)] == names
    labeled = plan_sources("videos", class_folders=True, frame_folders=10)
    assert [(item.id, item.label) for item in labeled] == [(name, name.split("/")[0]) for name in names]
    one = {"sampler": lambda t, fps, rng=None: uniform_segments(t, fps, frames=4), "frame_folders": 10}
    assert [open_dataset("videos", **one)[i].label for i in range(4)] == [0, 0, 1, 1]
    assert open_dataset("videos/run", **one).ids == ["c", "d"] and not open_dataset("videos/run", **one).classes
    Path("list.csv").write_text("path,label\nvideos/run/c,p\nwalk/a,q\n")
    found = [Path(path) for path in open_dataset("list.csv", **one).paths]
    assert found == [Path("videos/run/c/@10"), Path("videos/walk/a/@10")]
    Path("k400.csv").write_text("label,youtube_id,time_start,time_end,split\nrun,c,0,10,train\n")
    assert open_dataset("k400.csv", "videos", **one).paths == ["videos/run/c/@10"]
    Path("ssv2.json").write_text('[{"id": "c", "label": "x", "template": "x"}, {"id": "9", "template": "x"}]')
    assert open_dataset("ssv2.json", "videos", **one).paths == ["videos/run/c/@10", "videos/9.webm"]
    with pytest.raises(ValueError, match="frame_folders is for files, not for digits"):
        open_dataset("digits", frame_folders=10)


def test_without_the_option_images_are_what_they_were(root):
    data = open_dataset(root / "videos")
    assert len(data) == 5 + 6 + 7 + 8 and data[0].video.shape[2] == 1


def test_check_and_overlap(root):
    found = check(root / "videos", frame_folders=10, workers=1)
    assert found.ok and found.table["frames"].tolist() == [7, 8, 5, 6] and set(found.table["fps"]) == {10}
    ours, inside = str(root / "videos/run/c/@10"), str(root / "videos.tar/run/c/@10")
    assert find_overlap([ours, str(root / "videos/run/d/@10")], [inside]) == [(ours, inside)]


def test_extract_encode_and_reconstruct(root, tmp_path, tokenizer_path, capsys):
    model = ["--model", tokenizer_path, "--frame-folders"]
    assert main(["extract", f"{root}/videos", "-o", f"{tmp_path}/out", *model, "10", "--clips", "windows"]) == 0
    entries = open_reader(tmp_path / "out").entries
    assert [(entry.id, entry.frames) for entry in entries] == [(n, 16) for n in ("run/c", "run/d", "walk/a", "walk/b")]
    with open_video(root / "videos/run/c/@10") as reader:
        size = reader.version.size
    assert main(["encode", f"{root}/videos/run", "-o", f"{tmp_path}/tokens", *model, "10"]) == 0
    meta = read_npz(tmp_path / "tokens/c.npz")[0].meta
    assert (meta.source, meta.source_bytes, meta.frames, meta.fps, meta.frame_folders) == ("c", size, 7, 10, 10)
    capsys.readouterr()
    assert main(["encode", f"{root}/videos/run", "-o", f"{tmp_path}/tokens", *model, "12"]) == 1
    assert "frame_folders 10.0, not 12.0" in capsys.readouterr().err
    assert main(["reconstruct", f"{root}/videos/run", "-o", f"{tmp_path}/decoded", *model, "10"]) == 0
    with open_video(tmp_path / "decoded/d.mp4") as reader:
        assert (reader.num_frames, reader.fps) == (8, 10)


def test_clips_of_probes_finetuning_and_comparisons(root, tokenizer_path):
    protocol = Protocol.parse("5x1x1x1", 32, None)
    data = to_dict(compose_config("finetune", [f"data.source={root}/videos", "data.frame_folders=10"]))["data"]
    for source in (ClipSource(f"{root}/videos", frame_folders=10), *build_clip_sources(data)):
        videos = source.open(None, protocol)
        assert len(videos) == 4 and videos[0].video.shape == (1, 3, 5, 32, 32)
    for seed, name in enumerate("efgh"):
        write_frames(root / "more" / name, 5, seed=seed)
    rows = [f"more/{name},{'walk' if name in 'ef' else 'run'},train\n" for name in "efgh"]
    rows += [f"videos/{name},{name.split('/')[0]},val\n" for name in ("walk/b", "run/d")]
    (root / "split.csv").write_text("path,label,split\n" + "".join(rows))
    settings = {"protocol": "5x1x1x1", "size": 32, "model": tokenizer_path, "pool": "mean", "folds": 0}
    result = probe(f"{root}/split.csv", frame_folders=10, **settings)
    assert (result["n_failed"], result["config"]["frame_folders"]) == (0, 10)
