"""The page of a comparison stands alone and can be read; and in a real browser, where there is one, it plays."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

from vidtok.eval.generation.report import SampleClip, write_samples_page
from vidtok.eval.metrics.intervals import paired_ratio
from vidtok.eval.recognition.inputs import Predictions
from vidtok.eval.recognition.results import correct_of, recognition_result, result_entry
from vidtok.eval.report.page import (
    choose_clips,
    class_chart,
    confusion_chart,
    draw_charts,
    overview_chart,
    write_page,
)

CLASSES = [
    "left & <right>",
    "up",
    "a_name_that_is_so_long_that_no_phone_shows_it_in_one_line_but_it_must_not_widen_the_page",
]
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def result():
    """Of two arms on twelve clips: tokens are wrong for every third, pixels never."""
    labels = np.arange(12) % 3
    ids = [f"{i}-{CLASSES[2]}.mp4" for i in range(12)]
    wrong = np.where(np.arange(12) % 4 == 0, (labels + 1) % 3, labels)
    found = {
        name: [Predictions(np.eye(3)[answers], labels, ids, [{"name": "bad.mp4", "reason": "no <video>"}])]
        for name, answers in (("tokens", wrong), ("pixels", labels))
    }
    facts = {"seed": 0, "steps": 2, "seconds": 1.0}
    entries = [
        result_entry(name, name, [(facts, runs[0])], shuffled=found["tokens"] if name == "tokens" else None)
        for name, runs in found.items()
    ]
    ratio = paired_ratio(correct_of(found["tokens"]), correct_of(found["pixels"]))
    return recognition_result(
        "compare",
        entries,
        found,
        data={"source": "clips.csv", "classes": CLASSES, "splits": {"train": "train", "test": "val"}},
        train_labels=[0, 0, 1, 2],
        protocol={"name": "5x1x1x1", "size": 32, "fps": None},
        tokenizer=None,
        config={},
        wall_time_s=1.0,
        comparisons=[{"ours": "tokens", "theirs": "pixels", **ratio}],
        costs={
            "bytes_per_clip": {"file": 900.0, "frames_uint8": 15360, "tokens": 72.0, "tokens_int64": 256},
            "clips_per_second": {"video": 100.0, "tokens": 9000.0, "ratio": 90.0, "clips": 12},
        },
    )


@pytest.fixture(scope="module")
def page(result, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    video = torch.rand(3, 9, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    shown = [(result["clips"][i], torch.cat([video, -video], -1)) for i in choose_clips(result, 4)]
    write_page(folder / "page.html", result, draw_charts(result, folder / "charts"), shown, fps=8)
    return folder / "page.html"


class Tags(HTMLParser):
    """Every tag with its attributes, the text, and whether each tag was closed."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.text, self.open = [], "", []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def all(self, tag: str) -> list[dict]:
        return [attrs for name, attrs in self.tags if name == tag]


def test_page_stands_alone_and_says_what_it_shows(page):
    found = Tags(page.read_text())
    assert not found.open and not found.all("script")
    assert found.all("html") == [{"lang": "en"}] and any(tag.get("name") == "viewport" for tag in found.all("meta"))
    addresses = [value for _, tag in found.tags for key, value in tag.items() if key in ("src", "href")]
    assert len(addresses) == 1 + 6 + 4 and all(address.startswith("data:") for address in addresses)
    assert all(len(image["alt"]) > 20 for image in found.all("img"))
    assert all("controls" in video and "original" in video["aria-label"] for video in found.all("video"))
    assert len(found.all("th")) == 7 + 3 and "no <video>" in found.text
    assert found.text.count("original") >= 4 and found.text.count("reconstruction") >= 4


def test_right_and_wrong_are_told_without_colour(page, result):
    text = Tags(page.read_text()).text
    right, wrong = text.split("What tokens got right")[1].split("What tokens got wrong")
    assert right.count("✓ tokens: ") == wrong.count("✗ tokens: ") == 2
    assert "✗" not in right and wrong.count("✓ pixels: ") == 2
    for row in result["clips"]:
        if row["id"] in wrong:
            assert row["predicted"]["tokens"][0] != row["label"]


def test_bars_matrices_and_confusions_of_each_arm(page, result):
    text = Tags(page.read_text()).text
    assert {path.stem for path in (page.parent / "charts").iterdir()} == {
        "accuracy", "ratio", "cost", "classes", "confusion-1", "confusion-2"
    }  # fmt: skip
    tokens, pixels = text.split("Confusions")[1].split("Clips")[0].split("pixels")
    assert f"25 %: {CLASSES[0]} → {CLASSES[1]} (1 of 4)" in tokens and "Most frequent" not in pixels
    figure = class_chart(result)
    (axes,) = figure.axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert [bar.get_width() for bar in axes.patches] == [0.75] * 3 and names[2] == f"{CLASSES[2][:31]}…"
    assert [line.get_xdata().tolist() for line in axes.lines] == [[1.0] * 3]
    assert [label.get_text() for label in figure.legends[0].get_texts()] == ["tokens", "pixels"]


def test_of_many_classes_the_page_shows_the_extremes_and_numbers(result, tmp_path):
    """174 classes, as of Something-Something-v2: names of all rows of a matrix could not be read."""
    counts = np.diag(np.arange(174))
    counts[1:, 0] = 174 - np.arange(1, 174)
    entries = [{**entry, "runs": [{**entry["runs"][0], "confusion": counts.tolist()}]} for entry in result["results"]]
    classes = [f"class {i}" for i in range(174)]
    many = {**result, "results": entries, "data": {**result["data"], "classes": classes}}
    (axes,) = class_chart(many).axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert (
        names == [f"{i} class {i}" for i in (*range(173, 158, -1), *range(15, 0, -1))]
        and "15 lowest of 173 classes" in axes.get_title()
    )
    matrix = confusion_chart(entries[0], classes)
    assert max(matrix.get_size_inches()) < 15 and len(matrix.axes[0].get_yticks()) < 20
    write_page(tmp_path / "page.html", many, draw_charts(many, tmp_path), [], fps=8)
    text = Tags((tmp_path / "page.html").read_text()).text
    assert "99 %: class 1 → class 0 (173 of 174)" in text and text.count("class 173") == 1


def test_rows_of_the_overview_are_shared(result):
    figure = overview_chart({"one": result, "other": result}, ["tokens", "codes", "pixels"])
    first, second = figure.axes
    assert [label.get_text() for label in first.get_yticklabels()] == ["tokens", "codes", "pixels"]
    assert first.get_ylim() == second.get_ylim() == (2.5, -0.5)


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    folder = tmp_path_factory.mktemp("samples")
    video = torch.rand(3, 9, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    clips = [SampleClip(f"clip-{i}", video, CLASSES[i], CLASSES[2 * (i == 1)]) for i in range(3)]
    sections = {
        "masked <4> steps": clips,
        "without classes": [SampleClip("a", video), SampleClip("b", video, None, "up")],
    }
    table = [["generator", "FVD"], ["masked", "12.5"], ["<diffusion>", "13.0"]]
    about = {"git": "0123", "date": "2026-01-01"}
    write_samples_page(
        folder / "page.html", "Generators of a & b", ["No difference.", CLASSES[2]], sections, 8, "some/1", about, table
    )
    return folder / "page.html"


def test_page_of_samples_tells_what_was_requested(samples):
    found = Tags(samples.read_text())
    assert not found.open and not found.all("script") and len(found.all("video")) == 5
    addresses = [value for _, tag in found.tags for key, value in tag.items() if key in ("src", "href")]
    assert len(addresses) == 1 + 5 and all(address.startswith("data:") for address in addresses)
    assert found.text.count("✓") == 1 and found.text.count("✗") == 2 and "1 of \n3 as requested" in found.text
    for text in (
        "Generators of a & b",
        "masked <4> steps",
        "<diffusion>",
        "12.5",
        "left & <right>",
        "some/1, git 0123",
    ):
        assert text in found.text


PROBE = """<script>
addEventListener('load', async () => {
  const players = [...document.querySelectorAll('video')]
  for (const video of players) {
    video.currentTime = 0.5
    await new Promise(done => video.addEventListener('seeked', done))
  }
  const root = document.documentElement
  document.title = JSON.stringify({
    videos: players.map(video => [video.videoWidth, video.videoHeight, video.readyState, video.currentTime]),
    images: [...document.images].map(image => image.naturalWidth),
    excess: root.scrollWidth - root.clientWidth,
    loaded: performance.getEntriesByType('resource').map(entry => entry.name.slice(0, 5)),
  })
})</script>"""


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no chromium")
def test_page_in_a_browser(page, tmp_path):
    seen = probe(page, tmp_path)
    assert seen["videos"] == [[64, 32, 4, 0.5]] * 4
    assert len(seen["images"]) == 6 and min(seen["images"]) > 200
    assert seen["excess"] <= 0 and set(seen["loaded"]) <= {"data:"}


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no chromium")
def test_page_of_samples_in_a_browser(samples, tmp_path):
    seen = probe(samples, tmp_path)
    assert seen["videos"] == [[32, 32, 4, 0.5]] * 5
    assert seen["excess"] <= 0 and set(seen["loaded"]) <= {"data:"}


def probe(page, tmp_path):
    """What a browser, with a window as wide as it allows for a phone, says of a page."""
    probed = tmp_path / "page.html"
    probed.write_text(page.read_text() + PROBE)
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000", "--window-size=500,900"]
    command = [BROWSER, *options, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", probed.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    return json.loads(re.search(r"<title>(\{.*?\})</title>", dom)[1])
