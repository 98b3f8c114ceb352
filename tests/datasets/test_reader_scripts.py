"""A video file is data: what only names other files is refused, and FFmpeg opens no other file than the one given."""

import tarfile
import zipfile
from pathlib import Path

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


@pytest.fixture
def places(tmp_path):
    """A function that puts a file into archives and to addresses, and returns its paths there."""
    fsspec = pytest.importorskip("fsspec")
    system = fsspec.filesystem("memory")

    def put(file: Path) -> list[str]:
        with tarfile.open(tmp_path / "x.tar", "w") as tar, zipfile.ZipFile(tmp_path / "x.zip", "w") as packed:
            tar.add(file, file.name)
            packed.write(file, file.name)
        for path in (file, tmp_path / "x.tar", tmp_path / "x.zip"):
            system.pipe(f"/scripts/{path.name}", path.read_bytes())
        folders = [f"{root}{inside}" for root in (tmp_path, "memory://scripts") for inside in ("/x.tar", "/x.zip")]
        return [f"{folder}/{file.name}" for folder in (*folders, "memory://scripts")]

    yield put
    system.rm("/scripts", recursive=True)


@pytest.mark.parametrize("kind", SCRIPTS)
def test_scripts_in_archives_and_at_addresses(tmp_path, monkeypatch, places, kind):
    """Neither the relative name of a video beside the script nor its whole path is opened."""
    write(tmp_path / "other.mp4")
    monkeypatch.chdir(tmp_path)
    what, text = SCRIPTS[kind]
    for other in ("other.mp4", tmp_path / "other.mp4", f"file:{tmp_path / 'other.mp4'}"):
        (tmp_path / "script.mp4").write_text(text.format(other=other))
        for path in places(tmp_path / "script.mp4"):
            with pytest.raises(VideoError, match=f"{what}, not a video"):
                open_video(path)
            with monkeypatch.context() as patch:
                patch.setattr(container, "_SCRIPTS", ())
                with pytest.raises(VideoError, match="not a video or image that FFmpeg can read"):
                    open_container(path)


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
