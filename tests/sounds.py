"""Videos with audio, and the packets of audio."""

from fractions import Fraction

import av
import numpy as np

RATE, FPS, SECONDS = 48000, 25, 2


def write_source(path, codec, video_start=0.0, seconds=SECONDS + 0.5, tracks=1, layout="mono"):
    """Write a video of SECONDS, which begins after `video_start`, with a tone of `seconds` in each audio track."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=FPS)
        video.width = video.height = 32
        sounds = [container.add_stream(codec, rate=RATE) for _ in range(tracks)]
        for sound in sounds:
            sound.layout = layout
        for i in range(SECONDS * FPS):
            frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8))
            frame.pts, frame.time_base = i + round(video_start * FPS), Fraction(1, FPS)
            container.mux(video.encode(frame))
        for i, sound in enumerate(sounds):
            tone = np.sin(np.arange(round(seconds * RATE)) * (440 * (i + 1) * 2 * np.pi / RATE)) * 9000
            samples = sound.codec_context.format.name
            data = (tone / 32768).astype(np.float32) if samples.startswith("flt") else tone.astype(np.int16)
            for start in range(0, len(data), 1024):
                part = np.repeat(data[start : start + 1024], sound.channels)[None]  # interleaved
                frame = av.AudioFrame.from_ndarray(part, format=samples, layout=layout)
                frame.sample_rate, frame.pts, frame.time_base = RATE, start, Fraction(1, RATE)
                container.mux(sound.encode(frame))
            container.mux(sound.encode(None))
        container.mux(video.encode(None))
    return path


def packets(file, format=None):
    """[(bytes, seconds)] of the audio."""
    with av.open(file, format=format) as container:
        return [(bytes(p), float(p.pts * p.time_base)) for p in container.demux(audio=0) if p.size]


def same(written, expected, tolerance=1e-3):
    assert [data for data, _ in written] == [data for data, _ in expected] != []
    assert np.allclose([time for _, time in written], [time for _, time in expected], atol=tolerance)
