"""Speed of reading videos and of data loaders.

`bench_readers` compares vidtok's reader with decord, torchcodec and plain PyAV, each with its own resizing. There are
three tasks on rendered H.264 files: stream a whole file at a short side of 128 and 224 pixels, read four clips of 17
frames from ten minutes of video, and stream a 4K file, whose peak memory is measured. Readers take turns, with one
thread each.

`bench_loader` compares the throughput of loaders with one and two worker processes with that of decoding and resizing
in the main process.
"""

import gc
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import psutil
import torch
from av.video.reformatter import Interpolation
from torch.nn import functional as F

from vidtok.bench.timing import peak_mb
from vidtok.datasets import (
    ClipFolder,
    EvalTransform,
    LabeledVideos,
    VideoError,
    demo_clip,
    dense_clips,
    open_dataset,
    write_video,
)
from vidtok.datasets.backends import has_decord
from vidtok.datasets.container import cached_timeline
from vidtok.datasets.frames import plan_view, video_to_frames
from vidtok.datasets.seek import read_selection
from vidtok.datasets.video import iter_video

HEIGHTS = {360: 200, 720: 100, 1080: 60, 2160: 20}  # height in pixels: number of frames
SIZES = (128, 224)  # short sides in pixels
LONG, GOP = 15_000, 250  # frames of the ten-minute file (25 frames per second), and frames between keyframes
CLIPS, CLIP = 4, 17  # number of clips, and frames per clip
TURNS = 5  # turns of every reader in a round; a single one takes as little as 0.2 s
REFERENCE = "decord"

EXACT = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT


def bench_readers(runs: int = 5, heights: dict[int, int] = HEIGHTS, long: int = LONG) -> Iterator[dict]:
    """Measure frames per second of vidtok's reader and its peers.

    Args:
        runs: number of rounds. In each, the readers take `TURNS` turns, and the rate of a reader is measured over all
            of its turns. A short slowdown of the machine then affects all readers alike.
        heights: {height in pixels: number of frames} of the rendered files.
        long: number of frames of the file from which clips are read.

    Yields:
        One row per task and reader: {"of": task, "reader": name, "frames_per_s" (median), "ratio" (rate over that of
        decord in the same round, median; None without decord), "lowest" (lowest ratio), "psnr" (dB against bicubic
        antialiased resizing of full RGB; None for clips), "runs"}. The last row is {"of": the largest file, "mb": peak
        memory in MB above that at the start, None if unknown}.
    """
    with tempfile.TemporaryDirectory(prefix="vidtok-bench-") as folder:
        for lines, frames in heights.items():
            path = _render(Path(folder, f"{lines}.mp4"), lines, frames)
            for size in SIZES:
                target = plan_view(*_size(lines), size, multiple=1).size
                quality = {name: _quality(read, path, target) for name, read in STREAMING.items() if _installed(name)}
                for row in _in_turns(STREAMING, path, target, runs):
                    yield {"of": f"{lines}p at {size}", **row, "psnr": quality[row["reader"]]}
            if lines == max(heights):
                memory = peak_mb(_stream_all, path, SIZES[0], device=torch.device("cpu"))
        path = _repeat(_render(Path(folder, "gop.mp4"), 360, GOP), Path(folder, "long.mp4"), long // GOP)
        for row in _in_turns(SPARSE, path, plan_view(*_size(360), 128, multiple=1).size, runs):
            yield {"of": f"{CLIPS} clips of {CLIP} frames of {long // 25 // 60} minutes at 128", **row, "psnr": None}
        yield {"of": f"{max(heights)}p memory", "mb": memory}


def _size(lines: int) -> tuple[int, int]:
    return lines, lines * 8 // 9 * 2


def _render(path: Path, lines: int, frames: int) -> Path:
    """Write a clip with fine grain like that of a camera, with a keyframe every `GOP` frames."""
    height, width = _size(lines)
    clip_TCHW = demo_clip(min(frames, 60), 360)[0].transpose(0, 1)[..., :202, :]
    grain = np.random.default_rng(0).integers(-4, 5, (height + 64, width + 64, 1), dtype=np.int16)
    with av.open(str(path), "w") as container:
        options = {"preset": "veryfast", "crf": "21", "g": str(GOP), "keyint_min": str(GOP), "sc_threshold": "0"}
        stream = container.add_stream("libx264", rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for i in range(frames):
            small_CHW = clip_TCHW[i % len(clip_TCHW)]
            large = F.interpolate(small_CHW[None], (height, width), mode="bicubic").clamp(-1, 1)[0, :, None]
            y, x = 7 * i % 64, 13 * i % 64
            picture = video_to_frames(large)[0] + grain[y : y + height, x : x + width]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture.clip(0, 255).astype(np.uint8), "rgb24")))
        container.mux(stream.encode())
    return path


def _repeat(source: Path, path: Path, times: int) -> Path:
    """Write the packets of a file several times in a row."""
    with av.open(str(source)) as reading, av.open(str(path), "w") as writing:
        packets = [packet for packet in reading.demux(video=0) if packet.size]
        stream = writing.add_stream_from_template(reading.streams.video[0])
        length = int(GOP / 25 / packets[0].time_base)
        for _ in range(times):
            for packet in packets:
                packet.stream = stream
                writing.mux(packet)
                assert packet.pts is not None and packet.dts is not None  # the encoder sets both
                packet.pts, packet.dts = packet.pts + length, packet.dts + length
    return path


def _stream_vidtok(path: Path, target: tuple[int, int]) -> Iterator[np.ndarray]:
    yield from iter_video(path, size=min(target), multiple=1).iter_uint8()


def _stream_decord(path: Path, target: tuple[int, int]) -> Iterator[np.ndarray]:
    import decord

    video = decord.VideoReader(str(path), num_threads=1, height=target[0], width=target[1])
    for start in range(0, len(video), 16):
        yield video.get_batch(range(start, min(start + 16, len(video)))).asnumpy()


def _stream_torchcodec(path: Path, target: tuple[int, int]) -> Iterator[np.ndarray]:
    video = _torchcodec(path, target)
    for start in range(0, len(video), 16):
        yield video.get_frames_in_range(start, min(start + 16, len(video))).data.numpy()


def _stream_pyav(path: Path, target: tuple[int, int]) -> Iterator[np.ndarray]:
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            yield frame.to_ndarray(format="rgb24", height=target[0], width=target[1])[None]


def _torchcodec(path: Path, target: tuple[int, int]):
    from torchcodec.decoders import VideoDecoder
    from torchcodec.transforms import Resize

    return VideoDecoder(str(path), dimension_order="NHWC", num_ffmpeg_threads=1, transforms=[Resize(target)])


def _clip_indices() -> np.ndarray:
    """Return the frame indices of clips spread over the file, int64 [CLIPS, CLIP]."""
    starts = (np.arange(CLIPS) + 0.37) * LONG / CLIPS
    return starts.astype(np.int64)[:, None] + np.arange(CLIP)


def _clips_vidtok(path: Path, target: tuple[int, int]) -> Iterator[np.ndarray]:
    cached_timeline.cache_clear()
    chosen = lambda timestamps, fps: _clip_indices() % len(timestamps)  # noqa: E731
    yield from read_selection(path, chosen, view=lambda h, w: plan_view(h, w, min(target), multiple=1)).frames


def _clips_decord(path: Path, target: tuple[int, int]) -> Iterator[np.ndarray]:
    import decord

    video = decord.VideoReader(str(path), num_threads=1, height=target[0], width=target[1])
    yield video.get_batch((_clip_indices().ravel() % len(video)).tolist()).asnumpy()


def _clips_torchcodec(path: Path, target: tuple[int, int]) -> Iterator[np.ndarray]:
    video = _torchcodec(path, target)
    yield video.get_frames_at((_clip_indices().ravel() % len(video)).tolist()).data.numpy()


Stream = Callable[[Path, tuple[int, int]], Iterator[np.ndarray]]
STREAMING: dict[str, Stream] = {
    "vidtok": _stream_vidtok,
    "decord": _stream_decord,
    "torchcodec": _stream_torchcodec,
    "pyav": _stream_pyav,
}
SPARSE: dict[str, Stream] = {"vidtok": _clips_vidtok, "decord": _clips_decord, "torchcodec": _clips_torchcodec}


def _installed(name: str) -> bool:
    if name == "torchcodec":
        try:
            from torchcodec.decoders import VideoDecoder  # noqa: F401
            from torchcodec.transforms import Resize  # noqa: F401
        except (ImportError, OSError, RuntimeError):  # the last two are raised if FFmpeg's libraries are missing
            return False
    return name != "decord" or has_decord()


def _in_turns(readers: dict[str, Stream], path: Path, target: tuple[int, int], runs: int) -> Iterator[dict]:
    readers = {name: read for name, read in readers.items() if _installed(name)}
    rates: dict[str, list[float]] = {name: [] for name in readers}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for round_number in range(runs + 1):
            frames, seconds = dict.fromkeys(readers, 0), dict.fromkeys(readers, 0.0)
            for name, read in [*readers.items()] * (TURNS if round_number else 1):
                gc.collect()
                start = time.perf_counter()
                frames[name] += sum(len(chunk) for chunk in read(path, target))
                seconds[name] += time.perf_counter() - start
            if round_number:  # the first round loads libraries and files
                for name in readers:
                    rates[name].append(frames[name] / seconds[name])
    finally:
        torch.set_num_threads(threads)
    for name, values in rates.items():
        ratios = [a / b for a, b in zip(values, rates.get(REFERENCE, []), strict=False)]
        yield {
            "reader": name,
            "frames_per_s": float(np.median(values)),
            "ratio": float(np.median(ratios)) if ratios else None,
            "lowest": min(ratios, default=None),
            "runs": runs,
        }


def _quality(read: Stream, path: Path, target: tuple[int, int], frames: int = 4) -> float:
    """Compute the PSNR in dB of the first frames against bicubic antialiased resizing of RGB with full chroma."""
    ours = next(iter(read(path, target)))[:frames].astype(np.float64)
    truth = []
    with av.open(str(path)) as container:
        for _, frame in zip(range(len(ours)), container.decode(video=0), strict=False):
            full = frame.to_ndarray(format="rgb24", interpolation=EXACT)
            small = F.interpolate(
                torch.from_numpy(full).permute(2, 0, 1)[None].float(), target, mode="bicubic", antialias=True
            )
            truth.append(small[0].clamp(0, 255).permute(1, 2, 0).numpy())
    return float(20 * np.log10(255) - 10 * np.log10(np.square(ours - np.stack(truth)).mean()))


def _stream_all(path: Path, size: int) -> Callable[[], None]:
    def work() -> None:
        for _ in iter_video(path, size=size):
            pass

    return work


FRAMES, SIDE, BATCH = 17, 128, 8
CACHE_GB = 2  # size of the cache of decoded videos in the temporary folder
RENDERED = 16  # number of rendered clips if no data are given


def bench_loader(
    data: str | None = None,
    batches: int = 12,
    runs: int = 3,
    workers: tuple[int, ...] = (1, 2),
) -> Iterator[dict]:
    """Measure the throughput of data loaders for clips of 17 x 128 x 128, against reading in the main process.

    The loaders take turns. Their start-up is not counted.

    Args:
        data: folder of videos, or annotation file with the videos beside it; None, rendered clips of 240 x 320.
        batches: number of batches of 8 clips per run.
        runs: number of runs of each loader.
        workers: numbers of worker processes to measure.

    Yields:
        One row per loader and number of workers (0: the main process alone): {"of", "workers", "clips_per_s" (median;
        also "best_clips_per_s" and "worst_clips_per_s"), "share" (rate over that of the main process alone, median over
        the runs), "cpu_ms" (CPU milliseconds per clip over all processes, median), "runs"}. "of" is "labeled" (`loader`
        of a labeled dataset), "training" (`ClipFolder`) or "training, cached" (`ClipFolder` with videos decoded
        beforehand, see `vidtok.datasets.yuv_store`).

    Raises:
        ValueError: the data hold no videos.
    """
    with tempfile.TemporaryDirectory(prefix="vidtok-bench-") as made:
        videos, cache = Path(made, "videos"), Path(made, "cache")
        if data is None:
            videos.mkdir()
            for i in range(RENDERED):
                write_video(videos / f"{i}.mp4", demo_clip(2 * FRAMES, 320, seed=i)[..., :240, :], 25)
        labeled, training, cached = _datasets(data or str(videos), batches * BATCH, cache)
        yield from _rows("labeled", partial(_labeled, labeled), runs, workers)
        yield from _rows("training", partial(_training, training, batches), runs, workers)
        yield from _rows("training, cached", partial(_training, cached, batches), runs, workers)


def _datasets(data: str, clips: int, cache: Path) -> tuple[LabeledVideos, ClipFolder, ClipFolder]:
    found = open_dataset(data)
    if not found.paths:
        raise ValueError(f"{data} is rendered, not decoded: give a folder of videos, or an annotation file")
    places = [*itertools.islice(itertools.cycle(range(len(found.paths))), clips)]
    paths, ids = [found.paths[i] for i in places], [found.ids[i] for i in places]
    labels = [found.labels[i] for i in places]
    reading: dict[str, Any] = {
        "sampler": partial(dense_clips, frames=FRAMES),
        "transform": EvalTransform(SIDE),
        "on_error": "return",
    }
    folder = data if Path(data).is_dir() else Path(data).parent
    training, cached = (
        ClipFolder(folder, FRAMES, size=SIDE, crop=SIDE, images=False, batch_size=BATCH, cache=where, cache_gb=CACHE_GB)
        for where in (None, cache)
    )
    return LabeledVideos(paths, ids, labels, found.classes, **reading), training, cached


def _labeled(dataset: LabeledVideos, workers: int) -> Iterator[int]:
    """Read the samples; yield the number of samples of each read."""
    if workers:
        return (len(batch.label) for batch in dataset.loader(BATCH, workers))
    return (int(not isinstance(dataset[i], VideoError)) for i in range(len(dataset)))


def _training(dataset: ClipFolder, batches: int, workers: int) -> Iterator[int]:
    return (len(batch) for batch in dataset.loader(stop=batches, workers=workers))


def _rows(of: str, read: Callable[[int], Iterator[int]], runs: int, workers: tuple[int, ...]) -> Iterator[dict]:
    rates: dict[int, list[float]] = {count: [] for count in (0, *workers)}
    costs: dict[int, list[float]] = {count: [] for count in rates}
    for _ in read(0):  # warm-up: fills the file cache and loads libraries
        pass
    for _ in range(runs):
        for count in rates:
            seconds, processor, clips = _measure(read(count))
            rates[count].append(clips / seconds)
            costs[count].append(1e3 * processor / clips)
    for count, values in rates.items():
        yield {
            "of": of,
            "workers": count,
            "clips_per_s": statistics.median(values),
            "best_clips_per_s": max(values),
            "worst_clips_per_s": min(values),
            "share": statistics.median(ours / alone for ours, alone in zip(values, rates[0], strict=True)),
            "cpu_ms": statistics.median(costs[count]),
            "runs": runs,
        }


def _measure(arrivals: Iterator[int]) -> tuple[float, float, int]:
    """Return (seconds, CPU seconds, clips) from the first arrival, when all processes have started, to the last."""
    next(arrivals)
    processor, start, clips = _processor_time(), time.perf_counter(), 0
    for count in arrivals:
        clips, processor_now, now = clips + count, _processor_time(), time.perf_counter()
    return now - start, processor_now - processor, clips


def _processor_time() -> float:
    """Return the user and system CPU seconds of this process and all of its descendants."""
    me = psutil.Process()
    return sum(sum(p.cpu_times()[:2]) for p in [me, *me.children(recursive=True)])
