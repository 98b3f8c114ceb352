"""vidtok recognize: the whole chain from files to labels."""

import csv
import json
from dataclasses import replace
from fractions import Fraction

import av
import numpy as np
import pytest
import torch

from vidtok import Recognizer, VideoTokenizer, create_head
from vidtok.cli.main import main
from vidtok.datasets import MovingDigits, VideoWriter, probe_video, read_video, seek, write_video
from vidtok.datasets.container import cached_timeline, read_timeline
from vidtok.datasets.writing import find_audio
from vidtok.errors import UserError
from vidtok.eval.recognition import recognizer as recognizer_module
from vidtok.eval.recognition.windows import Banner, label_windows
from vidtok.heads import Head, list_shipped_heads
from vidtok.heads.head import SHIPPED

CLASSES = ["left", "right", "still"]


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    digits = MovingDigits("val", size=64)
    for number in range(2):
        write_video(folder / f"{number}.mp4", digits[number].video, digits.fps)
    return folder


@pytest.fixture(scope="module")
def tokenizer():
    return VideoTokenizer.from_pretrained("vidtok-t")


@pytest.fixture
def head(request, tmp_path, tokenizer):
    """A folder with an untrained head; indirect parameter: its input, and changes of its protocol."""
    kind, protocol = getattr(request, "param", ("tokens", {}))
    torch.manual_seed(0)
    head = create_head(
        "vivit-micro", kind, len(CLASSES), (5, 8, 8), patch_merge=2, channels=256, dim=32, depth=1, heads=2
    ).eval()
    torch.nn.init.normal_(head.head.weight)  # so that it has an opinion
    identity = {"name": "vidtok-t", "weight_hash": tokenizer.weight_hash}
    if kind == "hidden":
        identity["layer"] = "middle"
    head.record(
        classes=CLASSES,
        tokenizer=None if kind == "pixels" else identity,
        protocol={"frames": 17, "size": 64, "stride": 1, "clips": 1, "crops": 1} | protocol,
    )
    head.save_pretrained(tmp_path / "head")
    return tmp_path / "head"


def lines(capsys) -> list[dict]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize(
    "head", [("tokens", {}), ("codes", {}), ("hidden", {}), ("pixels", {}), ("tokens", {"clips": 2, "crops": 3})],
    indirect=True,
)  # fmt: skip
def test_json_lines(head, clips, capsys):
    assert main(["recognize", str(clips), "--head", str(head), "--json", "--device", "cpu"]) == 0
    found = lines(capsys)
    assert [line["path"].split("/")[-1] for line in found] == ["0.mp4", "1.mp4"]
    for line in found:
        assert {label["label"] for label in line["labels"]} == set(CLASSES) and line["views"] in (1, 6)
        probabilities = [label["probability"] for label in line["labels"]]
        assert probabilities == sorted(probabilities, reverse=True) and sum(probabilities) == pytest.approx(1, abs=1e-5)


def test_table_shows_the_top(head, clips, capsys):
    assert main(["recognize", str(clips / "0.mp4"), "--head", str(head), "--top", "2", "--device", "cpu"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert len(rows) == 2 and all("0.mp4" in row and "%" in row and row.split()[-1] in CLASSES for row in rows)


def test_recognizer_takes_paths_and_tensors(head, clips):
    recognizer = Recognizer(str(head), device="cpu")
    of_folder = list(recognizer(clips, top=2))
    assert [found.path.name for found in of_folder] == ["0.mp4", "1.mp4"] and all(f.views == 1 for f in of_folder)
    assert all(len(found.labels) == 2 and found.error is None for found in of_folder)
    video = read_video(clips / "0.mp4", size=None)[0, :, :17]
    one, several, *_ = recognizer([video, torch.stack([video, video]), clips / "1.mp4"], top=3)
    assert (one.path, one.views, several.views) == (None, 1, 2)
    assert dict(one.labels) == pytest.approx(dict(several.labels), abs=1e-6)
    assert sum(p for _, p in one.labels) == pytest.approx(1)
    with pytest.raises(ValueError, match="video"):
        list(recognizer(video[0]))
    with pytest.raises(UserError, match="no such file"):
        recognizer("nothing.mp4")


def test_token_files_give_what_their_videos_give(head, clips, tmp_path, capsys):
    assert main(["encode", str(clips / "0.mp4"), "-o", str(tmp_path / "0.npz"), "--device", "cpu"]) == 0
    capsys.readouterr()
    command = ["recognize", str(clips / "0.mp4"), str(tmp_path / "0.npz"), "--head", str(head), "--json"]
    assert main([*command, "--device", "cpu"]) == 0
    video, tokens = lines(capsys)
    assert video["labels"] == tokens["labels"]


def test_what_fails_is_one_line_and_the_others_go_on(head, clips, tmp_path, capsys):
    (tmp_path / "bad.mp4").write_text("no video")
    (tmp_path / "bad.npz").write_text("no tokens")
    write_video(tmp_path / "long.mp4", MovingDigits("val", frames=21)[0].video, 25)
    assert main(["encode", str(tmp_path / "long.mp4"), "-o", str(tmp_path / "long.npz"), "--device", "cpu"]) == 0
    capsys.readouterr()
    files = [tmp_path / "bad.mp4", tmp_path / "bad.npz", tmp_path / "long.npz", clips / "1.mp4"]
    assert main(["recognize", *map(str, files), "--head", str(head), "--json", "--device", "cpu"]) == 1
    out, err = capsys.readouterr()
    assert [json.loads(line)["path"] for line in out.splitlines()] == [str(clips / "1.mp4")]
    errors = err.splitlines()
    assert len(errors) == 3 and all(line.startswith("vidtok: ") for line in errors)
    assert "21 frames of 64 x 64, and the head sees clips of 17 of 64 x 64" in errors[2]


@pytest.mark.parametrize("head", [("hidden", {})], indirect=True)
def test_tokens_for_a_head_on_features(head, clips, tmp_path, capsys):
    assert main(["encode", str(clips / "0.mp4"), "-o", str(tmp_path / "0.npz"), "--device", "cpu"]) == 0
    assert main(["recognize", str(tmp_path / "0.npz"), "--head", str(head), "--device", "cpu"]) == 1
    assert "it holds ids" in capsys.readouterr().err


def test_another_tokenizer_is_refused(head, clips, capsys):
    command = ["recognize", str(clips / "0.mp4"), "--head", str(head), "--model", "vidtok-t-r", "--device", "cpu"]
    assert main(command) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "reads tokens of tokenizer 'vidtok-t'" in err and "'vidtok-t-r'" in err


def test_no_such_head(clips, capsys):
    assert main(["recognize", str(clips), "--head", "nothing"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("vidtok: no shipped head and no folder 'nothing'") and err.count("\n") == 1


@pytest.mark.parametrize("name", [name for name in list_shipped_heads() if Head.from_pretrained(name).num_classes])
def test_shipped_heads_are_those_of_their_result_file(name, tmp_path, capsys):
    folder = SHIPPED / name
    result = json.loads((folder / "evaluation.json").read_text())
    top1 = result["results"][0]["runs"][0]["top1"]
    head = Head.from_pretrained(name)
    assert head.weight_hash == result["results"][0]["runs"][0]["head"]["weight_hash"]
    assert result["tokenizer"]["weight_hash"] == VideoTokenizer.from_pretrained("vidtok-t").weight_hash
    assert (folder / "model.safetensors").stat().st_size < 3e6
    card = (folder / "README.md").read_text()
    assert f"| {top1['value']:.1%} | {top1['low']:.1%} - {top1['high']:.1%} |".replace("%", "") in card
    for kind, row in zip(result["data"]["classes"], result["results"][0]["runs"][0]["confusion"], strict=True):
        assert f"| {kind} | {row[result['data']['classes'].index(kind)]} of {sum(row)} |" in card

    digits = MovingDigits("val", size=64)
    places = [digits.ids.index(clip["id"]) for clip in result["clips"][:18]]
    for number, place in enumerate(places):
        write_video(tmp_path / f"{number:02}.mp4", digits[place].video, digits.fps)
    assert main(["recognize", str(tmp_path), "--head", name, "--json", "--device", "cpu"]) == 0
    told = [line["labels"][0]["label"] for line in lines(capsys)]
    before = [next(iter(clip["predicted"].values()))[0] for clip in result["clips"][:18]]
    assert sum(a == b for a, b in zip(told, before, strict=True)) >= 15  # the same ones, after H.264


@pytest.fixture(scope="module")
def long_video(tmp_path_factory):
    """Three clips of 17 frames in one video, and 4 frames more."""
    digits = MovingDigits("val", size=64)
    path = tmp_path_factory.mktemp("long") / "long.mp4"
    clips = [digits[number].video for number in range(3)]
    write_video(path, torch.cat([*clips, clips[0][:, :, :4]], 2), digits.fps)
    return path


@pytest.mark.parametrize("is_reliable", [True, False])
def test_windows_are_clips(head, long_video, monkeypatch, is_reliable):
    if not is_reliable:  # as of a file whose packets don't tell its frames
        doubt = lambda *args: replace(cached_timeline(*args), unreliable="a test")  # noqa: E731
        monkeypatch.setattr(seek, "cached_timeline", doubt)
    monkeypatch.setattr(recognizer_module, "WINDOWS_AT_ONCE", 3)
    recognizer = Recognizer(str(head), device="cpu")
    video = read_video(long_video, size=None, stride=(1, 8, 8))[0]
    windows = list(recognizer.windows(long_video, top=3))
    assert [(round(w.start, 6), round(w.end, 6)) for w in windows] == [
        (0, 0.68),
        (0.68, 1.36),
        (1.36, 2.04),
        (1.52, 2.2),
    ]
    for window, first in zip(windows, (0, 17, 34, 38), strict=True):
        (expected,) = recognizer(video[:, first : first + 17], top=3)
        assert dict(window.labels) == pytest.approx(dict(expected.labels), abs=1e-5)
    assert [round(w.start, 6) for w in recognizer.windows(long_video, hop=0.5)] == [0, 0.5, 1, 1.5, 1.52]
    with pytest.raises(ValueError, match="are its clips of 17 frames, every 1: give no seconds"):
        next(recognizer.windows(long_video, seconds=2))


@pytest.mark.parametrize("head", [("tokens", {"stride": None, "crops": 3})], indirect=True)
def test_heads_that_see_whole_videos_need_the_length_of_a_window(head, long_video):
    recognizer = Recognizer(str(head), device="cpu")
    with pytest.raises(ValueError, match="sees frames spread over a video: give seconds of a window"):
        next(recognizer.windows(long_video))
    windows = list(recognizer.windows(long_video, seconds=1, top=3))
    assert [(w.start, round(w.end, 6)) for w in windows][:2] == [(0, 1), (1, 2)] and len(windows) == 3
    assert sum(p for _, p in windows[0].labels) == pytest.approx(1, abs=1e-5)


def test_windows_become_a_table_and_subtitles(head, long_video, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.mp4").write_bytes(long_video.read_bytes())
    (tmp_path / "in/b.mp4").write_bytes(b"no video")
    arguments = ["recognize", f"{tmp_path}/in", "--head", str(head), "--device", "cpu", "--windows", f"{tmp_path}/out"]
    assert main([*arguments, "--top", "2"]) == 1
    printed = capsys.readouterr()
    assert f"a.mp4: 4 windows, {tmp_path}/out/a.csv" in printed.out and "b.mp4: not a video or image" in printed.err
    rows = list(csv.DictReader((tmp_path / "out/a.csv").read_text().splitlines()))
    assert len(rows) == 8 and rows[2]["start"] == "0.680" and {row["label"] for row in rows} <= set(CLASSES)
    blocks = (tmp_path / "out/a.srt").read_text().strip().split("\n\n")
    assert len(blocks) == 4
    assert blocks[2].splitlines()[:2] == ["3", "00:00:01,360 --> 00:00:01,520"]  # the last window begins there
    assert blocks[0].splitlines()[2] == f"{rows[0]['label']} ({float(rows[0]['probability']):.0%})"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.csv", "a.srt"]
    assert main(arguments) == 1 and "a.csv exists: --force overwrites it" in capsys.readouterr().err
    one = ["recognize", str(long_video), "--head", str(head)]
    assert main([*one, "--device", "cpu", "--windows", f"{tmp_path}/labels.webm"]) == 1
    assert "labels.webm: give a folder, or a file in .csv, .srt, .vtt, .mp4" in capsys.readouterr().err
    assert main([*one, "-o", f"{tmp_path}/x", "--formats", "csv,txt"]) == 1
    assert "unknown format 'txt': give csv, srt" in capsys.readouterr().err
    assert main([*one, "--hop", "1"]) == 1
    assert "--hop is of -o" in capsys.readouterr().err


def test_several_outputs_of_one_video(head, long_video, tmp_path, capsys):
    outputs = [f"{tmp_path}/a/labels.{suffix}" for suffix in ("csv", "vtt", "mkv")]
    arguments = ["recognize", str(long_video), "--head", str(head), "--device", "cpu"]
    assert main([*arguments, *(x for path in outputs for x in ("-o", path))]) == 0
    assert f"long.mp4: 4 windows, {', '.join(outputs)}" in capsys.readouterr().out
    first, block, *_ = (tmp_path / "a/labels.vtt").read_text().split("\n\n")
    assert first == "WEBVTT" and block.splitlines()[1] == "00:00:00.000 --> 00:00:00.680"
    assert sorted(path.suffix for path in (tmp_path / "a").iterdir()) == [".csv", ".mkv", ".vtt"]
    assert main([*arguments, "-o", f"{tmp_path}/b", "--formats", "mp4"]) == 0
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["long.mp4"]
    assert main([*arguments, "-o", str(long_video), "--force"]) == 1
    assert "is one of the inputs" in capsys.readouterr().err


def test_overlay_is_the_video_with_a_label_below(head, tmp_path):
    digits = MovingDigits("val", size=64)
    video, sound = torch.cat([digits[number].video for number in range(3)], 2)[0], tmp_path / "sound.mp4"
    times = [20 * i + (i % 3) for i in range(video.shape[1])]  # variable rate, in milliseconds
    with av.open(str(sound), "w") as container:
        picture, stream = container.add_stream("libx264", rate=25), container.add_stream("aac", rate=16000)
        picture.width, picture.height, picture.pix_fmt = 64, 64, "yuv420p"
        stream.layout = "mono"
        container.mux(picture.encode(av.VideoFrame(64, 64, "yuv420p")))
        for start in range(0, 16000, 1000):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1000), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16000, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        container.mux(picture.encode(None))
    source = tmp_path / "source.mp4"
    with VideoWriter(source, 49, Fraction(1, 1000), find_audio(sound), Fraction(4, 3)) as writer:
        writer.write(video, times)
    recognizer = Recognizer(str(head), device="cpu")
    list(label_windows(recognizer, [source], tmp_path / "overlay.mp4", hop=0.5))
    before, after = (read_timeline(path).timestamps for path in (source, tmp_path / "overlay.mp4"))
    np.testing.assert_allclose(after, before, atol=1e-3)
    info = probe_video(tmp_path / "overlay.mp4")
    assert (info.width, info.traits) == (85 * 4, {}) and info.height > 64 * 4  # square pixels, and enlarged
    kept = find_audio(tmp_path / "overlay.mp4")
    assert kept is not None and len([*kept.until(9)]) >= 15
    shown = read_video(tmp_path / "overlay.mp4", size=None, stride=(1, 1, 1))[0]
    small = torch.nn.functional.avg_pool2d(shown[:, :, : 64 * 4].transpose(0, 1), 4)  # [T, 3, 64, 85]
    expected = read_video(source, size=None, stride=(1, 1, 1))[0].transpose(0, 1)
    expected = torch.nn.functional.interpolate(expected, (64, 85), mode="bicubic")
    assert (small - expected).abs().mean() < 0.06
    assert shown[:, :, 64 * 4 :].amax() > 0.8  # letters


@pytest.mark.parametrize("size", [(64, 64), (1080, 1920), (48, 1000), (600, 40)])
def test_captions_are_never_cut_off(size):
    long = "Pretending to put something behind something, but " + "W" * 90
    banner = Banner(*size, ["short", long])
    frames = np.full((2, *size, 3), 90, np.uint8)
    height, width = banner.size
    assert height % 2 == width % 2 == 0 and width >= 320
    for text in ("short", long):
        out = banner.below(frames, text)
        assert out.shape == (2, *banner.size, 3) and (out[0] == out[1]).all()
        places = np.argwhere((out[0] == 255).all(-1))
        assert (places.min(0) > 0).all() and (places.max(0) < np.array(banner.size) - 1).all()
        assert "".join(banner.lines(text)).replace(" ", "") == text.replace(" ", "")
