"""A video file is data: what only names other files is refused, and FFmpeg opens no other file than the one given."""

import av
import numpy as np
import pytest
from PIL import Image

from vidtok.datasets import container, open_video
from vidtok.datasets.container import open_container
from vidtok.errors import VideoError

SCRIPTS = {
    "hls": (
        "an HLS playlist",
        "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{other}\n#EXT-X-ENDLIST\n",
    ),
    "ffconcat": ("an ffconcat script", "ffconcat version 1.0\nfile {other}\n"),
    "dash": (
        "a DASH manifest",
        '<?xml version="1.0"?>\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
        'profiles="urn:mpeg:dash:profile:isoff-on-demand:2011" mediaPresentationDuration="PT2S"><Period>'
        '<AdaptationSet contentType="video"><Representation id="0" mimeType="video/mp4" bandwidth="1">'
        "<BaseURL>{other}</BaseURL></Representation></AdaptationSet></Period></MPD>\n",
    ),
    "sdp": (
        "an SDP session description",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"
        "a=rtpmap:96 H264/90000\n",
    ),
}


def write(path) -> None:
    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for level in range(5):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((32, 32, 3), level * 40, np.uint8), "rgb24")))
        file.mux(stream.encode())


@pytest.mark.parametrize("suffix", [".mp4", ".ts", ".m3u8", ".png"])
@pytest.mark.parametrize("kind", SCRIPTS)
def test_scripts_are_refused_in_one_line(tmp_path, kind, suffix):
    write(tmp_path / "other.mp4")
    what, text = SCRIPTS[kind]
    script = tmp_path / f"script{suffix}"
    script.write_text(text.format(other="other.mp4"))
    for backend in ("pyav", "decord"):
        with pytest.raises(VideoError, match=f"{what}, not a video: give the video files that it names") as caught:
            open_video(script, backend)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", SCRIPTS)
def test_ffmpeg_itself_opens_no_script(tmp_path, monkeypatch, kind):
    """Scripts may look otherwise than those that are known here."""
    monkeypatch.setattr(container, "_SCRIPTS", ())
    write(tmp_path / "other.mp4")
    script = tmp_path / "script.mp4"
    script.write_text(SCRIPTS[kind][1].format(other="other.mp4"))
    with pytest.raises(VideoError, match="not a video or image that FFmpeg can read"):
        open_container(script)


def test_a_percent_in_a_name_is_no_pattern(tmp_path):
    for level in (50, 100, 150):
        Image.new("RGB", (32, 32), (level,) * 3).save(tmp_path / f"x{level:03d}.ppm")
    with pytest.raises(VideoError, match="no such file"):
        open_video(tmp_path / "x%03d.ppm")
    Image.new("RGB", (32, 32), (200,) * 3).save(tmp_path / "x%03d.ppm")
    with open_video(tmp_path / "x%03d.ppm") as reader:
        assert reader.num_frames == 1
        assert abs(int(reader.frames([0])[0, 0, 0, 0]) - 200) < 2
