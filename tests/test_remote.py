"""Videos at addresses: read by ranges, tried again, one clear line where they can't be read."""

import http.server
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
import urllib.request
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from vidtok import archives, demo, remote
from vidtok.codec import compress, decompress
from vidtok.configs.compose import compose_config
from vidtok.datasets import check, demo_clip, open_dataset, open_video, write_video
from vidtok.datasets.seek import read_selection
from vidtok.errors import UserError, VideoError
from vidtok.eval.compression import evaluate
from vidtok.extraction import open_reader
from vidtok.extraction.output import read_failures
from vidtok.extraction.run import dry_run, encode_files, extract
from vidtok.extraction.videos import decode_files
from vidtok.files import RemoteFolder, plan_jobs, validate_output
from vidtok.inputs import exists, file_version, find_videos, open_binary
from vidtok.remote import as_address, is_remote_folder

fsspec = pytest.importorskip("fsspec")
NAMES = ("a.mp4", "sub/b.mkv")


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    (folder / "sub").mkdir()
    for number, name in enumerate(NAMES):
        write_video(folder / name, demo_clip(9 + 8 * number, 48), 10)
    return folder


@pytest.fixture
def memory(videos):
    """The videos in fsspec's memory, as memory://bucket/..."""
    system = fsspec.filesystem("memory")
    for name in NAMES:
        system.pipe(f"/bucket/{name}", (videos / name).read_bytes())
    system.pipe("/bucket/.hidden.mp4", b"x")
    system.pipe("/bucket/notes.txt", b"x")
    system.pipe("/bucket/broken/c.mp4", b"no video")
    yield "memory://bucket"
    system.rm("/bucket", recursive=True)


def test_addresses_survive_as_paths():
    for text in ("s3://bucket/a b.mp4", "https://host:80/a.mp4?key=1", "gs://b/c/d.mp4", "memory://bucket/a.mp4"):
        assert as_address(text) == as_address(Path(text)) == text
    for text in ("a.mp4", "/s3://x", "c:/a.mp4", "file:a.mp4", "s3:a.mp4"):
        assert as_address(text) is None


def test_folders_files_and_patterns(memory):
    found = {below.as_posix(): file for file, below in find_videos([f"{memory}/"])}
    assert list(found) == ["a.mp4", "broken/c.mp4", "sub/b.mkv"]
    assert as_address(found["sub/b.mkv"]) == f"{memory}/sub/b.mkv"
    assert [below.as_posix() for _, below in find_videos([f"{memory}/*/*.mkv"])] == ["sub/b.mkv"]
    assert find_videos([f"{memory}/a.mp4"]) == [(Path(f"{memory}/a.mp4"), Path("a.mp4"))]
    with pytest.raises(UserError, match=r"no \.mp4/\.m4v/\.mov file there"):
        find_videos([f"{memory}/nothing/*.mp4"])
    with pytest.raises(UserError, match="no such file or folder"):
        find_videos(["ftp://host/a.mp4"])
    with pytest.raises(UserError, match=r"az needs a package: pip install 'vidtok\[remote\]'"):
        find_videos(["az://bucket/a.mp4"])


def test_they_are_read_as_files_are(memory, videos, monkeypatch):
    monkeypatch.setattr(remote, "RANGE", 1000)
    for name in NAMES:
        with open_video(videos / name) as expected, open_video(f"{memory}/{name}") as reader:
            last = expected.num_frames - 1
            np.testing.assert_array_equal(reader.frames([last, 0]), expected.frames([last, 0]))
            np.testing.assert_array_equal(reader.timestamps, expected.timestamps)
        assert file_version(f"{memory}/{name}").size == (videos / name).stat().st_size
        with open_binary(Path(memory, name)) as file:
            assert file.read() == (videos / name).read_bytes()
    choose = lambda timestamps, fps: np.array([8, 2])  # noqa: E731
    ours, theirs = (read_selection(f"{place}/a.mp4", choose) for place in (memory, videos))
    np.testing.assert_array_equal(ours.frames, theirs.frames)
    remote._ask_version.cache_clear()
    assert exists(f"{memory}/a.mp4") and not exists(f"{memory}/z.mp4")
    with pytest.raises(VideoError, match=r"no such file"):
        open_video(f"{memory}/z.mp4")


def test_a_whole_file_is_few_requests(memory, monkeypatch):
    system = fsspec.filesystem("memory")
    data = os.urandom(300_000)
    system.pipe("/bucket/list.csv", data)
    sizes, cat_file = [], type(system).cat_file

    def count(self, path, start=None, end=None):
        sizes.append(end - start)
        return cat_file(self, path, start=start, end=end)

    monkeypatch.setattr(type(system), "cat_file", count)
    monkeypatch.setattr(remote, "RANGE", 100_000)
    with open_binary(f"{memory}/list.csv") as file:
        assert file.read(10) + file.read() == data
    assert len(sizes) <= 4


def test_extraction_is_that_of_files(memory, videos, tmp_path, tokenizer_path):
    stats = extract(memory, tmp_path / "remote", model=tokenizer_path)
    assert (stats.done, stats.failed) == (2, 1)
    extract(videos, tmp_path / "local", model=tokenizer_path)
    ours, theirs = open_reader(tmp_path / "remote"), open_reader(tmp_path / "local")
    for i, entry in enumerate(ours.entries):
        assert entry == theirs.entries[i]
        np.testing.assert_array_equal(ours.read(i).features, theirs.read(i).features)
    (failure,) = read_failures(tmp_path / "remote", None)
    assert failure["name"] == "broken/c.mp4" and "not a video or image" in failure["reason"]
    assert extract(memory, tmp_path / "remote", model=tokenizer_path).skipped == 2


def test_annotations_and_checks(memory, tmp_path):
    (tmp_path / "list.csv").write_text("path,label\na.mp4,x\nsub/b.mkv,y\n")
    data = open_dataset(tmp_path / "list.csv", root=memory)
    assert [data[i].video.shape[2] for i in range(2)] == [9, 17]
    (tmp_path / "names.csv").write_text("path,label\na,x\nb,y\n")
    assert [data[i].video.shape[2] for data in [open_dataset(tmp_path / "names.csv", root=memory)] for i in (0, 1)] == [
        9,
        17,
    ]


def content(url: str) -> dict[str, bytes]:
    """The files of a folder at an address, by their paths below it."""
    system, name = fsspec.core.url_to_fs(url)
    return {entry.removeprefix(name).lstrip("/"): system.cat_file(entry) for entry in system.find(name)}


def assert_same_features(folder: Path, other: Path) -> None:
    ours, theirs = open_reader(folder), open_reader(other)
    assert ours.settings == theirs.settings and sorted(ours.entries) == sorted(theirs.entries)
    places = {entry.id: i for i, entry in enumerate(theirs.entries)}
    for i, entry in enumerate(ours.entries):
        np.testing.assert_array_equal(ours.read(i).features, theirs.read(places[entry.id]).features)


@pytest.mark.parametrize("container", ["npz", "webdataset"])
def test_results_at_an_address(memory, videos, tmp_path, tokenizer_path, monkeypatch, container):
    monkeypatch.setenv("VIDTOK_CACHE", str(tmp_path / "cache"))
    settings = {"model": tokenizer_path, "container": container}
    out = f"{memory}/out"
    stats = extract([memory], out, **settings)
    assert (stats.done, stats.failed) == (2, 1)
    sent = content(out)
    assert {"settings.json", "failures.csv"} <= set(sent) and not any(name.startswith(".") for name in sent)
    (copy,) = (tmp_path / "cache/outputs").iterdir()
    extract(videos, tmp_path / "local", **settings)
    assert_same_features(copy, tmp_path / "local")
    shutil.rmtree(copy)  # as on another machine
    good = [f"{memory}/{name}" for name in NAMES]
    assert dry_run([memory], out, **settings).complete == 2
    assert extract([memory], out, **settings).skipped == 2 and set(content(out)) == set(sent)
    with pytest.raises(ValueError, match="features of other settings"):
        extract(good[:1], out, size=16, **settings)
    fsspec.filesystem("memory").pipe("/bucket/broken/c.mp4", (videos / "a.mp4").read_bytes())
    remote._ask_version.cache_clear()
    assert extract([memory], out, **settings).done == 1 and "failures.csv" not in content(out)
    fsspec.filesystem("memory").rm("/bucket/out", recursive=True)
    assert extract(good[:1], out, size=16, **settings).done == 1  # a new folder


def test_other_results_at_addresses(memory, videos, tmp_path, tokenizer_path, monkeypatch):
    monkeypatch.setenv("VIDTOK_CACHE", str(tmp_path / "cache"))
    assert encode_files(videos, f"{memory}/encoded", model=tokenizer_path).done == 2
    assert encode_files(videos, f"{memory}/encoded", model=tokenizer_path).skipped == 2
    assert {name for name in content(f"{memory}/encoded") if name.endswith(".npz")} == {"a.npz", "sub/b.npz"}
    fsspec.filesystem("memory").pipe("/bucket/list.csv", b"path,label\na.mp4,x\n")
    assert encode_files(f"{memory}/list.csv", tmp_path / "listed", model=tokenizer_path).done == 1
    assert [(entry.id, entry.label) for entry in open_reader(tmp_path / "listed").entries] == [("a.mp4", "x")]
    compress(f"{memory}/a.mp4", f"{memory}/a.vtk", model=tokenizer_path, entropy="raw")
    compress(videos / "a.mp4", tmp_path / "a.vtk", model=tokenizer_path, entropy="raw")
    assert content(memory)["a.vtk"][-500:] == (tmp_path / "a.vtk").read_bytes()[-500:]
    assert decompress(f"{memory}/a.vtk", model=tokenizer_path).shape[2] == 9
    assert check(videos, output=f"{memory}/checked.csv", workers=1).ok
    assert content(memory)["checked.csv"].count(b",ok,") == 2
    for again in (
        lambda: compress(videos / "a.mp4", f"{memory}/a.vtk", model=tokenizer_path, entropy="raw"),
        lambda: check(videos, output=f"{memory}/checked.csv", workers=1),
    ):
        with pytest.raises(UserError, match=r"memory://bucket/.* exists: --force overwrites it"):
            again()


def test_local_outputs_refuse_addresses(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    local = "s3://b/out.mp4: only extract, encode, compress and check write to addresses: give a path"
    for refused in (
        lambda: plan_jobs([], "s3://b/out.mp4", ".mp4", (".mp4",)),
        lambda: validate_output("s3://b/out.mp4", force=True),
        lambda: list(demo.run_demo(output="s3://b/out.mp4")),
        lambda: evaluate("none", "s3://b/out.mp4"),
    ):
        with pytest.raises(UserError, match=local):
            refused()
    for key in ("run", "data.cache"):
        with pytest.raises(UserError, match=f"{key} is a folder on this machine, not an address"):
            compose_config("finetune", ["data.source=digits", f"{key}=s3://b/run"])
    for out, why in (
        ("https://host/out", "nothing is written to addresses of http"),
        ("s3://b/out.npz", "one .npz file is written to a path only: give a folder"),
    ):
        with pytest.raises(UserError, match=why):
            RemoteFolder(out)
    for function in (open_reader, lambda path: decode_files([path], tmp_path)):
        with pytest.raises((ValueError, UserError), match="s3://b/t: features are read on this machine: download them"):
            function("s3://b/t")
    assert not any(tmp_path.iterdir())


def test_requests_are_tried_again(monkeypatch):
    pauses: list[float] = []
    monkeypatch.setattr(remote.time, "sleep", pauses.append)
    failures = [OSError("reset"), TimeoutError()]

    def request():
        if failures:
            raise failures.pop()
        return "answer"

    assert remote.request("s3://b/a.mp4", request) == "answer" and pauses == [1, 2]

    def fail(error: Exception):
        raise error

    pauses.clear()
    with pytest.raises(VideoError, match=r"b/a\.mp4: reset"):
        remote.request("s3://b/a.mp4", lambda: fail(OSError("reset")))
    assert pauses == [1, 2, 4, 8]

    class Down:
        def isdir(self, name: str):
            raise OSError("down")

    monkeypatch.setattr(remote, "file_system", lambda url: (Down(), "b/a.mp4"))
    assert not is_remote_folder("s3://b/a.mp4")  # it fails when it is read
    pauses.clear()
    for error, why in ((FileNotFoundError("x"), "no such file"), (PermissionError("Forbidden"), "Forbidden")):
        with pytest.raises(VideoError, match=why):
            remote.request("s3://b/a.mp4", lambda error=error: fail(error))
    assert not pauses


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves `folder` with ranges; the first `refusals` requests get 503; whole files where `ranges` is False."""

    folder, refusals, ranges = Path(), 0, True

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.folder / self.path.partition("?")[0].lstrip("/")
        if type(self).refusals:
            type(self).refusals -= 1
            self.send_error(503)
            return
        if not path.is_file():
            self.send_error(404)
            return
        data, total = path.read_bytes(), path.stat().st_size
        if self.ranges and (asked := self.headers.get("Range")):
            first, last = asked.removeprefix("bytes=").split("-")
            data = data[int(first) : int(last) + 1]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{int(first) + len(data) - 1}/{total}")
        else:
            self.send_response(200)
        self.send_header("Accept-Ranges", "bytes" if self.ranges else "none")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *args):
        pass


@pytest.fixture
def web(videos):
    pytest.importorskip("aiohttp")
    handler = type("OwnHandler", (Handler,), {"folder": videos})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", handler
    server.shutdown()
    server.server_close()


def test_http(web, videos, monkeypatch):
    url, handler = web
    monkeypatch.setattr(remote.time, "sleep", lambda seconds: None)
    handler.refusals = 2
    assert find_videos([f"{url}/sub/b.mkv"]) == [(Path(f"{url}/sub/b.mkv"), Path("b.mkv"))]
    with open_video(f"{url}/sub/b.mkv") as reader, open_video(videos / "sub/b.mkv") as expected:
        np.testing.assert_array_equal(reader.frames([16, 3]), expected.frames([16, 3]))
    with pytest.raises(VideoError, match="no such file"):
        open_video(f"{url}/none.mp4")
    handler.ranges = False
    monkeypatch.setattr(remote, "RANGE", 100)
    with pytest.raises(VideoError, match="sends whole files, not ranges of bytes: download it first"):
        open_video(f"{url}/a.mp4")


def test_http_archives_and_lists(web, videos, tmp_path, monkeypatch):
    url, handler = web
    monkeypatch.setattr(remote.time, "sleep", lambda seconds: None)
    monkeypatch.setenv("VIDTOK_CACHE", str(tmp_path / "cache"))
    handler.folder = tmp_path
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as file:
        file.write(videos / "a.mp4", "p/a.mp4")
    shutil.copy(videos / "a.mp4", tmp_path / "a.mp4")
    (tmp_path / "list.csv").write_text("path,label\na.mp4,p\nx.zip/p/a.mp4,q\n")
    for query in ("", "?key=1"):
        handler.refusals = 2
        ((member, below),) = find_videos([f"{url}/x.zip{query}"])
        assert (as_address(member), below) == (f"{url}/x.zip{query}/p/a.mp4", Path("p/a.mp4"))
        data = open_dataset(f"{url}/list.csv{query}")
        assert data.paths == [f"{url}/a.mp4", f"{url}/x.zip/p/a.mp4"]
        for path in (member, *data.paths):
            with open_video(path) as reader:
                assert reader.num_frames == 9
    assert open_dataset(f"{url}/x.zip").classes == ["p"]
    handler.ranges = False
    monkeypatch.setattr(archives, "_READ_AHEAD", 100)
    shutil.copy(tmp_path / "x.zip", tmp_path / "y.zip")
    with pytest.raises(VideoError, match="sends whole files, not ranges of bytes: download it first"):
        archives.members(f"{url}/y.zip")


def test_a_member_whose_server_fails_is_a_row_of_failures(memory, videos, tmp_path, tokenizer_path, monkeypatch):
    monkeypatch.setenv("VIDTOK_CACHE", str(tmp_path / "cache"))
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name in NAMES:
            tar.add(videos / name, name)
    system, pauses = fsspec.filesystem("memory"), list[float]()
    system.pipe("/bucket/x.tar", (tmp_path / "x.tar").read_bytes())
    size, place, _ = archives.members(f"{memory}/x.tar")["sub/b.mkv"]
    monkeypatch.setattr(remote.time, "sleep", pauses.append)
    monkeypatch.setattr(remote, "RANGE", 1000)
    cat_file, fails = type(system).cat_file, [True] * 3 + [False] * 1000

    def failing(self, path, start=None, end=None):
        if end > place + size // 2 and (not fails or fails.pop(0)):
            raise OSError("reset")
        return cat_file(self, path, start, end)

    monkeypatch.setattr(type(system), "cat_file", failing)
    assert extract(f"{memory}/x.tar", tmp_path / "again", model=tokenizer_path).done == 2 and pauses == [1, 2, 4]
    fails.clear()
    for on_error in ("raise", "keep"):  # frames that can't be fetched are no damage
        pauses.clear()
        stats = extract(f"{memory}/x.tar", tmp_path / on_error, model=tokenizer_path, reader="pyav", on_error=on_error)
        ((item, why),) = stats.failures
        assert (str(item), why, stats.done) == (f"{memory}/x.tar/sub/b.mkv", "reset", 1) and pauses == [1, 2, 4, 8]
        assert [row["name"] for row in read_failures(tmp_path / on_error, None)] == ["sub/b.mkv"]


@pytest.fixture(scope="module")
def s3(videos):
    """A bucket of a real S3 server on the loopback."""
    pytest.importorskip("s3fs")
    server_module = pytest.importorskip("moto.server")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    names = {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    before = {name: os.environ.get(name) for name in names}
    os.environ |= names
    system = fsspec.filesystem("s3", skip_instance_cache=True)
    system.mkdir("bucket")
    for name in NAMES:
        system.put_file(str(videos / name), f"bucket/v/{name}")
    yield "s3://bucket/v"
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})
    fsspec.filesystem("s3").clear_instance_cache()
    server.stop()


def test_s3(s3, videos, tmp_path, tokenizer_path):
    # In a process of its own: the workers of this one may have begun before the server's address was set.
    command = [sys.executable, "-m", "vidtok", "check", s3, "-o", str(tmp_path / "checked.csv"), "--workers", "1"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert pd.read_csv(tmp_path / "checked.csv")["frames"].tolist() == [9, 17]
    missing = {"s3://bucket/v/none.mp4": "no such file", "s3://bucket/none.tar": "no such file"}
    missing |= {"s3://nowhere/x.mp4": "no such bucket", "s3://nowhere": "no such bucket"}
    stats = extract([s3, *missing], tmp_path / "remote", model=tokenizer_path, workers=0)
    assert stats.done == 2
    assert {str(item): why for item, why in stats.failures} == missing
    assert [row["reason"] for row in read_failures(tmp_path / "remote", None)] == [*missing.values()]
    extract(videos, tmp_path / "local", model=tokenizer_path)
    ours, theirs = open_reader(tmp_path / "remote"), open_reader(tmp_path / "local")
    assert ours.entries == theirs.entries
    for i in range(2):
        np.testing.assert_array_equal(ours.read(i).features, theirs.read(i).features)


def test_wrong_credentials(s3, tmp_path, tokenizer_path, monkeypatch):
    def check_keys(after: str) -> None:
        """Let the server check keys after so many requests."""
        url = f"{os.environ['AWS_ENDPOINT_URL']}/moto-api/reset-auth"
        headers = {"Content-Type": "text/plain"}
        urllib.request.urlopen(urllib.request.Request(url, after.encode(), headers, method="POST")).close()
        remote._ask_version.cache_clear()
        fsspec.filesystem("s3").invalidate_cache()

    monkeypatch.setenv("VIDTOK_CACHE", str(tmp_path / "cache"))
    check_keys("0")
    try:
        why = "The AWS Access Key Id you provided does not exist in our records."
        for source in ("s3://bucket/v", "s3://bucket/v/a.mp4", "s3://bucket/x.tar", "s3://bucket/x.tar/a.mp4"):
            ((item, reason),) = extract(source, tmp_path / source[-5:], model=tokenizer_path, workers=0).failures
            assert str(item) == source and reason in (why, "Forbidden")
            assert [row["reason"] for row in read_failures(tmp_path / source[-5:], None)] == [reason]
        for refused in (
            lambda: extract("s3://bucket/v/*.mp4", tmp_path / "x", model=tokenizer_path),
            lambda: extract("s3://bucket/list.csv", tmp_path / "x", model=tokenizer_path),
            lambda: extract("digits", "s3://bucket/x", model=tokenizer_path, size=32),
        ):
            with pytest.raises(VideoError, match=f"s3://bucket/.*({re.escape(why)}|Forbidden)"):
                refused()
    finally:
        check_keys("inf")


def test_killed_three_times_from_a_tar_on_s3_to_s3(s3, tmp_path, tokenizer_path):
    system, out = fsspec.filesystem("s3", skip_instance_cache=True), "bucket/out"
    with tarfile.open(tmp_path / "clips.tar", "w") as tar:
        for number in range(40):
            write_video(tmp_path / "clip.mp4", demo_clip(5 + number % 7, 32 + 8 * (number % 3)), 10)
            tar.add(tmp_path / "clip.mp4", f"{number:02d}.mp4")
    system.put_file(str(tmp_path / "clips.tar"), "bucket/clips.tar")
    environment = os.environ | {"VIDTOK_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "vidtok", "extract", "s3://bucket/clips.tar", "-o", f"s3://{out}"]
    command += ["--model", tokenizer_path, "--workers", "0"]
    for _ in range(3):
        run = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        sent = len(system.find(out, refresh=True))
        while run.poll() is None and len(system.find(out, refresh=True)) <= max(sent, 1):
            time.sleep(0.02)
        run.send_signal(signal.SIGKILL)
        run.wait()
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    found = {path.removeprefix(f"{out}/") for path in system.find(out, refresh=True)}
    assert found == {"settings.json", *(f"{number:02d}.npz" for number in range(40))}
    system.get(f"{out}/", str(tmp_path / "fetched"), recursive=True)
    assert extract(tmp_path / "clips.tar", tmp_path / "local", model=tokenizer_path, workers=0).done == 40
    assert_same_features(tmp_path / "fetched", tmp_path / "local")


@pytest.mark.slow
def test_ray_actors_write_to_s3(s3, videos, tmp_path, tokenizer_path):
    pytest.importorskip("ray")
    environment = os.environ | {"VIDTOK_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "vidtok", "extract", s3, "-o", "s3://bucket/ray", "--container", "webdataset"]
    command += ["--model", tokenizer_path, "--workers", "0", "--engine", "ray", "--actors", "1"]
    command += ["--ray-write", "actors"]
    system = fsspec.filesystem("s3", skip_instance_cache=True)
    for summary in ("extracted 2 of 2 videos", "2 were complete"):
        run = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert run.returncode == 0 and summary in run.stdout, run.stderr
        assert [Path(path).suffix for path in sorted(system.find("bucket/ray", refresh=True))] == [".tar", ".json"]
    system.get("bucket/ray/", str(tmp_path / "fetched"), recursive=True)
    extract(videos, tmp_path / "local", model=tokenizer_path)
    assert_same_features(tmp_path / "fetched", tmp_path / "local")
