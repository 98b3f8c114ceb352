"""Views: regions that are cropped and resized while decoding."""

import av
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from vidtok.bench.loader import EXACT
from vidtok.datasets import DecodePool, VideoFolder, backends, iter_video, open_video
from vidtok.datasets.decode import FrameConverter, PyAVReader, convert_pictures
from vidtok.datasets.frames import View, plan_view
from vidtok.datasets.loading import pack
from vidtok.datasets.samplers import dense_clips
from vidtok.datasets.transforms import EvalTransform, TrainTransform
from vidtok.errors import VideoError

WIDTH, HEIGHT = 160, 96


def picture(i: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """A smooth picture that differs in every direction, uint8 [H,W,3]."""
    y, x = np.mgrid[:height, :width] / (height, width)[0]
    return (127 + 80 * np.stack([np.sin(2 * x + i), np.cos(2 * y + x), np.sin(3 * y - i)], -1)).astype(np.uint8)


PATCHES = np.random.default_rng(0).integers(0, 256, (6, 10, 3), dtype=np.uint8)


def patches(i: int) -> np.ndarray:
    """Flat patches of 16 x 16 pixels, uint8 [H,W,3]."""
    return PATCHES.repeat(16, 0).repeat(16, 1)


def write(path, pix_fmt: str = "yuv420p", frames: int = 6, tags: dict | None = None, turn: int = 0, paint=picture):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "4"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, pix_fmt
        if turn:
            stream.set_display_rotation(turn)
        for name, value in (tags or {}).items():
            setattr(stream.codec_context, name, value)
        for i in range(frames):
            frame = av.VideoFrame.from_ndarray(paint(i), "rgb24")
            colors = {} if not tags else {"dst_colorspace": tags["colorspace"], "dst_color_range": tags["color_range"]}
            container.mux(stream.encode(frame.reformat(format=pix_fmt, **colors)))
        container.mux(stream.encode())
    return path


def resized(frames: np.ndarray, view: View) -> np.ndarray:
    """What a view should give, by bicubic antialiased resizing of the full picture."""
    top, left, height, width = view.box
    crop = torch.from_numpy(frames[:, top : top + height, left : left + width].copy()).permute(0, 3, 1, 2).float()
    return F.interpolate(crop, view.size, mode="bicubic", antialias=True).clamp(0, 255).permute(0, 2, 3, 1).numpy()


VIEWS = [
    View((0, 0, 96, 160), (32, 53)),  # by 3
    View((0, 0, 96, 160), (60, 100)),  # by 1.6
    View((0, 0, 96, 160), (192, 320)),  # enlarged
    View((0, 32, 96, 96), (24, 24)),  # a center crop
    View((11, 47, 63, 35), (21, 33)),  # odd (read to whole chroma samples), and another aspect ratio
    View((3, 5, 40, 50), (40, 50)),  # cropped only
]


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv444p", "yuv420p10le"])
def test_a_view_is_the_region_resized(tmp_path, pix_fmt):
    with open_video(write(tmp_path / "a.mp4", pix_fmt)) as reader:
        whole = reader.frames(range(6))
        for view in VIEWS:
            ours = reader.frames([4, 1, 1], view)
            assert ours.shape == (3, *view.size, 3) and ours.dtype == np.uint8
            assert np.abs(ours - resized(whole[[4, 1, 1]], view)).mean() < 3  # half a pixel of chroma, the box filter
            chunks = np.concatenate([chunk.frames for chunk in reader.iter_frames(4, view)])
            np.testing.assert_array_equal(chunks[[4, 1, 1]], ours)


@pytest.mark.parametrize("size", [(36, 60), (60, 100), (80, 132), (192, 320)])  # by area, bicubic, and enlarged
def test_resizing_keeps_the_mean(tmp_path, size):
    path = write(tmp_path / "a.mp4")
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0)).to_ndarray(format="rgb24", interpolation=EXACT)
    with open_video(path) as reader:
        ours = reader.frames([0], View((0, 0, HEIGHT, WIDTH), size))
    assert abs(ours.mean() - frame.mean()) < 0.25
    assert np.abs(ours.mean((0, 1, 2)) - frame.mean((0, 1))).max() < 0.4


@pytest.mark.parametrize("backend", ["decord", "torchcodec"])
def test_views_of_other_readers(tmp_path, backend):
    path = write(tmp_path / "a.mp4")
    try:
        reader = open_video(path, backend)
    except ImportError as e:
        pytest.skip(str(e))
    with reader, open_video(path, "pyav") as pyav:
        for view in VIEWS:
            difference = reader.frames([2, 5], view).astype(int) - pyav.frames([2, 5], view)
            assert np.abs(difference).mean() < 2.5


def test_other_readers_hold_few_whole_pictures(tmp_path, monkeypatch):
    pytest.importorskip("decord")
    monkeypatch.setattr(backends, "PIXELS_AT_ONCE", 2 * WIDTH * HEIGHT)
    with open_video(write(tmp_path / "a.mp4"), "decord") as reader:
        whole, asked, counts, get = reader.frames(range(6)), [5, 0, 3, 3, 1], [], reader._get
        monkeypatch.setattr(reader, "_get", lambda indices: counts.append(len(indices)) or get(indices))
        np.testing.assert_array_equal(reader.frames(asked, VIEWS[0]), convert_pictures(whole[asked], VIEWS[0]))
    assert counts == [2, 2, 1]


@pytest.mark.parametrize("turn", [90, 180, 270])
def test_a_view_of_a_turned_video(tmp_path, turn):
    """Boxes are of the picture as shown."""
    with PyAVReader(write(tmp_path / "a.mp4", turn=turn)) as reader:
        assert reader.turned and reader.size == ((WIDTH, HEIGHT) if turn != 180 else (HEIGHT, WIDTH))
        whole = reader.frames([3])
        for view in (plan_view(*reader.size, 32), View((10, 20, 60, 40), (30, 20)), View((1, 3, 50, 30), (50, 30))):
            assert np.abs(reader.frames([3], view) - resized(whole, view)).mean() < 2.5


TAGS = [(5, 1), (1, 1), (9, 1), (1, 2), (5, 2)]  # BT.601, 709 and 2020, limited and full range


@pytest.mark.parametrize("backend", ["pyav", "decord", "torchcodec"])
@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv420p10le"])
@pytest.mark.parametrize(("matrix", "color_range"), TAGS)
def test_colors_follow_the_tags(tmp_path, matrix, color_range, pix_fmt, backend):
    """Flat patches come within 4 levels of the truth, or the reader refuses the file."""
    path = tmp_path / "a.mp4"
    write(path, pix_fmt, 3, {"colorspace": matrix, "color_range": color_range}, paint=patches)
    try:
        reader = open_video(path, backend)
    except ImportError as e:
        pytest.skip(str(e))
    except VideoError as e:
        assert backend != "pyav" and "can't be proven right" in str(e)
        return
    with reader:
        for scale in (1, 1 / 2, 2):
            view = View((0, 0, HEIGHT, WIDTH), (int(HEIGHT * scale), int(WIDTH * scale)))
            step = int(16 * scale)
            centers = reader.frames([1], view)[0, step // 2 :: step, step // 2 :: step]
            assert np.abs(centers.astype(int) - PATCHES).max() <= 4


FORMATS = ["rgb24", "rgb555be", "bgr565be", "rgb565le", "rgb444le", "monob", "monow", "gray", "yuv410p", "yuv411p"]


@pytest.mark.parametrize("pix_fmt", FORMATS)
def test_regions_of_rare_pixel_formats(pix_fmt):
    """Bitmaps, few bits a color in either byte order, chroma of every fourth pixel; also at the borders."""
    picture_HWC = patches(0)
    if pix_fmt.startswith(("mono", "gray")):
        picture_HWC = np.where(picture_HWC[..., :1] > 127, np.uint8(255), np.uint8(0)).repeat(3, 2)
    frame = av.VideoFrame.from_ndarray(picture_HWC, "rgb24").reformat(format=pix_fmt)
    convert = FrameConverter("", (WIDTH, HEIGHT), None)
    for top, left in ((0, 0), (37, 51), (HEIGHT - 32, WIDTH - 32), (HEIGHT - 1, WIDTH - 1)):
        side = min(32, HEIGHT - top)
        rows, columns = slice((8 - top) % 16, side, 16), slice((8 - left) % 16, side, 16)  # centers of patches
        truth = picture_HWC[top : top + side, left : left + side].astype(int)
        for scale in (1, 2):
            image = convert(frame, View((top, left, side, side), (scale * side, scale * side)))
            assert np.abs(image[::scale, ::scale][rows, columns] - truth[rows, columns]).max(initial=0) <= 17


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 30), (30, 1), (2, 31), (17, 400), (97, 161)])
def test_views_of_small_and_odd_pictures(height, width):
    """Views are inside the picture and not empty; the last row and column count."""
    frame = av.VideoFrame.from_ndarray(np.full((height, width, 3), 90, np.uint8), "rgb24").reformat(format="yuv420p")
    convert, rng = FrameConverter("", (width, height), None), np.random.default_rng(0)
    transforms = [EvalTransform(8, resize=256), EvalTransform(16), EvalTransform(16, 3), TrainTransform(16)]
    views = [plan_view(height, width, size, 1) for size in (None, 8, (1, 100), (100, 1), (7, 13))]
    views += [transform.view(height, width, rng) for transform in transforms]
    views.append(View((height - 1, width - 1, 1, 1), (3, 5)))
    for view in views:
        top, left, rows, columns = view.box
        assert 0 <= top < top + rows <= height and 0 <= left < left + columns <= width
        picture_HWC = convert(frame, view)
        assert picture_HWC.shape == (*view.size, 3) and np.abs(picture_HWC.astype(int) - 90).max() <= 2


def test_the_last_odd_row_is_read():
    """An odd picture of 4:2:0 is not cut to whole chroma samples."""
    picture_HWC = np.full((33, 64, 3), 40, np.uint8)
    picture_HWC[32:] = 220
    convert = FrameConverter("", (64, 33), None)
    cropped = convert(
        av.VideoFrame.from_ndarray(picture_HWC, "rgb24").reformat(format="yuv420p"), View((30, 0, 3, 32), (6, 64))
    )
    assert cropped[-1].min() > 200 and cropped[0].max() < 60


def test_color_matrices_that_swscale_does_not_know():
    """The reserved one is none; others are refused in one line."""
    frame = av.VideoFrame.from_ndarray(patches(0), "rgb24").reformat(format="yuv420p")
    convert = FrameConverter("a.mp4", (WIDTH, HEIGHT), None)
    for view in (None, View((0, 0, HEIGHT, WIDTH), (48, 80))):
        frame.colorspace = 2
        truth = convert(frame, view).copy()
        frame.colorspace = 3
        np.testing.assert_array_equal(convert(frame, view), truth)
        for matrix, name in ((8, "YCgCo"), (10, "BT.2020 with constant"), (14, "ICtCp"), (16, "number 16")):
            frame.colorspace = matrix
            with pytest.raises(VideoError, match=f"a.mp4: its color matrix is {name}"):
                convert(frame, view)


def test_a_size_that_changes_within_the_stream(tmp_path):
    """Frames of another size are scaled to the first's before the view."""
    path = tmp_path / "a.mjpeg.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuvj420p"
        for _ in range(4):
            frame = av.VideoFrame.from_ndarray(picture(1), "rgb24").reformat(format="yuvj420p")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with PyAVReader(path) as reader:
        view, convert = plan_view(*reader.size, 32), reader.convert
        small = av.VideoFrame.from_ndarray(picture(1, 48, 80), "rgb24").reformat(format="yuvj420p")
        first = convert(next(reader.iter_decoded())[1], view).copy()
        other = convert(small, view).copy()
        assert np.abs(first.astype(int) - other).mean() < 8
        np.testing.assert_array_equal(convert(next(reader.iter_decoded())[1], view), first)


def test_pictures_are_converted_as_frames():
    frames = np.stack([np.stack([picture(i), picture(i + 1)]) for i in range(3)])
    view = View((0, 32, 96, 96), (32, 32))
    ours = convert_pictures(frames, view)
    assert ours.shape == (3, 2, 32, 32, 3)
    assert np.abs(ours[2, 1] - resized(frames[2, 1:], view)[0]).mean() < 1.5


def test_datasets_crop_while_decoding(tmp_path):
    """Evaluation clips are the extraction's center crops; training crops are the region that was drawn."""
    (tmp_path / "x").mkdir()
    path = write(tmp_path / "x/a.mp4")
    (clip,) = VideoFolder(tmp_path, sampler=lambda *_: np.arange(5)[None] / 25, transform=EvalTransform(32))
    stream = next(iter(iter_video(path, size=(32, 32), chunk=5)))
    assert torch.equal(clip.video, stream)
    train = TrainTransform(32)
    (crop,) = VideoFolder(tmp_path, sampler=lambda *_: np.arange(5)[None] / 25, transform=train, seed=1)
    rng = np.random.default_rng([1, 0, 0, 0])
    view = train.view(HEIGHT, WIDTH, rng)
    with open_video(path) as reader:
        truth = torch.from_numpy(resized(reader.frames(range(5)), view)).permute(3, 0, 1, 2)[None] / 127.5 - 1
    truth = train.finish(truth, rng)
    assert (crop.video - truth).abs().mean() < 0.03


def test_no_frame_is_pickled(tmp_path):
    """Frames pass from the worker through shared memory as uint8; the message holds only where they are."""
    video = torch.from_numpy(np.stack([picture(i) for i in range(4)])).permute(3, 0, 1, 2)[None]
    memory = torch.empty(1 << 20, dtype=torch.uint8).share_memory_()
    message = pack(video, memory)
    assert len(message.body) < 1000 and not message.arrays
    assert message.size == video.numel() + -video.numel() % 64
    with DecodePool(_views, 1, 60) as pool:
        for _ in range(2):  # the first answer shows how much memory is needed
            ((_, answer),) = pool.imap([str(write(tmp_path / "a.mp4"))])
    assert answer.dtype == torch.uint8 and answer.shape == (1, 3, 6, 32, 32)


def _views(path: str) -> torch.Tensor:
    with open_video(path) as reader:
        frames = reader.frames(range(6), View((0, 32, 96, 96), (32, 32)))
    return torch.from_numpy(frames).permute(3, 0, 1, 2)[None]


def test_sparse_clips_are_the_frames_of_the_whole(tmp_path):
    path = write(tmp_path / "x.mp4", frames=120)
    data = VideoFolder(_folder(tmp_path, path), sampler=lambda d, fps, rng: dense_clips(d, fps, rng, frames=4, clips=3))
    with open_video(path) as reader:
        whole = reader.frames(range(120))
    (sample,) = data
    for clip, times in zip(sample.video, sample.timestamps, strict=True):
        indices = (times * 25).round().long().tolist()
        truth = torch.from_numpy(whole[indices]).permute(3, 0, 1, 2) / 127.5 - 1
        assert torch.allclose(clip, truth)


def _folder(tmp_path, path):
    (tmp_path / "set/x").mkdir(parents=True)
    path.rename(tmp_path / "set/x/a.mp4")
    path.symlink_to(tmp_path / "set/x/a.mp4")
    return tmp_path / "set"
