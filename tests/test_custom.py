"""Tokenizers of the user's own, "module:Class": the example of the docs through all commands, and what goes wrong."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch

from vidtok.cli.main import main
from vidtok.datasets import demo_clip, read_video, write_video
from vidtok.extraction import TokenDataset
from vidtok.extraction.model import open_tokenizer
from vidtok.extraction.run import Extraction
from vidtok.hub import hash_weights
from vidtok.tokenizer import VideoTokenizer

PAGE = (Path(__file__).parent.parent / "docs/pages/extraction.md").read_text()
(EXAMPLE,) = (block for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "class Blocks" in block)

NETS = """
import torch
import torch.nn.functional as F
from torch import nn


class Causal(nn.Module):
    'Mean color of the nearest of 64 colors; the first frame has tokens of its own.'

    name, bits = "nearest", 6

    def __init__(self, step=2, seed=0):
        super().__init__()
        self.step = step
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("colors", torch.rand(64, 3, generator=generator) * 2 - 1)

    def encode(self, video):
        first = video[:, :, :1].repeat_interleave(self.step - 1, 2)
        mean = F.avg_pool3d(torch.cat([first, video], 2), (self.step, 8, 8)).movedim(1, -1)
        return torch.cdist(mean.flatten(0, 3), self.colors).argmin(1).view(mean.shape[:-1])

    def decode(self, ids):
        color = self.colors[ids].movedim(-1, 1).repeat_interleave(self.step, 2)
        return color[:, :, self.step - 1 :].repeat_interleave(8, 3).repeat_interleave(8, 4)


class Holder:
    'Not an nn.Module itself.'

    vocab_size, version = 64, "2"

    def __init__(self, seed=0):
        self.net = Causal(seed=seed)

    def encode(self, video):
        return self.net.encode(video)


def make(**arguments):
    return Causal(**arguments)


def refuse(**arguments):
    raise TypeError(f"got {arguments}")


class Movable(Holder):
    def to(self, device):
        self.net.to(device)


class Broken:
    vocab_size, stride, causal = 64, (4, 8, 8), False

    def __init__(self, wrong):
        self.wrong = wrong

    def encode(self, video):
        ids = F.avg_pool3d(video, self.stride)[:, 0].long().clamp(0, 63)
        wrong = {"dtype": ids.int(), "shape": ids[:, 1:], "rank": ids[0], "range": ids + 64, "type": [1]}
        return wrong.get(self.wrong, ids)

    def decode(self, ids):
        return torch.zeros(1, 3, 2, 2, 2)


class Floats(Broken):
    stride = (1, 2)


class Sizeless:
    def encode(self, video):
        return video


class Silent:
    vocab_size = 4

    def encode(self, video):
        raise RuntimeError("no frames\\nat all")


class NoTokenizer:
    pass
"""


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for name in ("a", "b"):
        write_video(folder / f"{name}.mp4", demo_clip(70, 64), 30)
    return folder


@pytest.fixture
def here(tmp_path, clips, monkeypatch):
    """The current directory, with colors.py of the docs and nets.py, and a folder of two clips."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    for name, text in (("colors", EXAMPLE), ("nets", NETS), ("failing", "1 / 0"), ("needs", "import absent_package")):
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.delitem(sys.modules, name, raising=False)
    (tmp_path / "videos").symlink_to(clips)
    yield tmp_path
    for name in ("colors", "nets", "failing", "needs"):
        sys.modules.pop(name, None)


def fails(capsys, *command) -> str:
    capsys.readouterr()
    assert main([str(word) for word in command]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    return line


def video(frames: int = 17, size: int = 32) -> torch.Tensor:
    return demo_clip(frames, size)


def test_the_example_of_the_docs_runs_in_every_command(here, capsys):
    tiny = "head=vivit-micro-factorized head_options={dim:16,depth:1,temporal_depth:1,heads:2} data.batch_size=8"
    data = "data.source=digits data.size=32 data.train_clips=16 data.val_clips=8 data.protocol=5x1x1x1"
    steps = "trainer.max_steps=2 trainer.warmup_steps=1"
    model = "colors:Blocks"
    # The arm latents reads `features`.
    arms = "arms=[tokens,latents,pixels] seeds=[0] page.clips=2 run=compare"
    probe = (
        "digits --size 32 --protocol 5x1x1x1 --train-clips 40 --test-clips 20 --input hidden,codes --json probe.json"
    )
    for command in (
        f"extract videos -o ids --size 32 --model {model} --workers 0",
        f"extract videos -o hidden --features hidden --pool mean --size 32 --model {model} --workers 0",
        f"eval reconstruction videos --size 32 --model {model} --json recon.json",
        f"eval probe {probe} --model {model} --json probe.json",
        f"eval compare {data} {tiny} {steps} {arms} tokenizer={model}",
        f"eval finetune {data} {tiny} {steps} input=tokens data.in_memory=true tokenizer={model} run=tune",
        f"eval recognition compare/runs/tokens-0/model digits --clips 8 --no-shuffle --model {model}",
        f"decode ids/a.npz -o a.mp4 --model {model}",
    ):
        assert main(command.split()) == 0, command
    sys.modules.pop("colors")
    assert f"no folder {model!r}" in fails(capsys, "eval", "recognition", "compare/runs/tokens-0/model", "digits")
    assert "colors" not in sys.modules  # the head names it
    hash = open_tokenizer(model).weight_hash
    for result in ("recon.json", "probe.json", "compare/result.json", "tune/result.json"):
        record = {"name": model, "weight_hash": hash, "stride": [4, 8, 8], "bits": 6.0}
        assert json.loads((here / result).read_text())["tokenizer"] == record
    dataset = TokenDataset(here / "ids")
    assert (dataset.meta["model"], dataset.meta["weight_hash"], dataset.meta["bits"]) == (model, hash, 6)
    assert dataset[0]["features"].shape == (19, 4, 4) and dataset.meta["dtype"] == "uint8"
    assert json.loads((here / "recon.json").read_text())["metrics"]["psnr"]["mean"] > 10


@pytest.mark.parametrize("spec", ["nets:Causal?step=4", "colors:Blocks"])
def test_streams_and_windows_have_the_ids_of_a_whole_clip(here, spec):
    """70 frames make 19 latents: two windows, which have no seam here, since no id depends on earlier frames."""
    tokenizer = open_tokenizer(spec)
    assert tokenizer.stride == (4, 8, 8) and tokenizer.causal == (spec != "colors:Blocks")
    x = video(69)
    ids = tokenizer.encode(x)
    assert ids.dtype == torch.int64 and ids.shape == (1, 18, 4, 4)
    stranger = tokenizer.model
    expected = stranger.encode(x if tokenizer.causal else torch.cat([x[:, :, :1]] * 3 + [x], 2))
    assert torch.equal(ids, expected)
    assert torch.equal(torch.cat([*tokenizer.stream_encode(x.split(7, 2))], 1), ids)
    decoded = tokenizer.decode(ids)
    assert decoded.shape == x.shape
    assert torch.equal(decoded, stranger.decode(ids)[:, :, -69:].clamp(-1, 1))
    assert torch.equal(torch.cat([*tokenizer.stream_decode(ids.split(4, 1))], 2), decoded)
    assert torch.equal(tokenizer.encode(x[:, :, :17], tile=32), ids[:, :5])


def test_extracted_ids_are_those_of_encode(here):
    extraction = Extraction(["videos/a.mp4"], model="nets:Causal?step=4", batch=2, workers=0)
    extraction.run("tokens")
    clip = read_video("videos/a.mp4", size=(64, 64), max_frames=69, stride=(4, 8, 8))
    assert torch.equal(TokenDataset("tokens")[0]["features"][:18], extraction.tokenizer.encode(clip)[0])


def test_weights_arguments_and_version_make_the_hash(here):
    hashes = [
        open_tokenizer(spec).weight_hash
        for spec in (
            "nets:Causal",
            "nets:make",
            "nets:Causal?seed=1",
            "nets:Causal?step=4",
            "nets:Holder",
            "colors:Blocks",
        )
    ]
    assert hashes[0] == hashes[1] and len({*hashes}) == len(hashes) - 1
    tokenizer = open_tokenizer("nets:Causal")
    assert tokenizer.config.name == "nearest" and tokenizer.stride == (2, 8, 8) and tokenizer.bits == 6
    assert hash_weights(tokenizer.model) == hash_weights(open_tokenizer("nets:make").model)
    sys.modules["nets"].Holder.version = "3"
    assert open_tokenizer("nets:Holder").weight_hash != hashes[4]


def test_an_object_that_is_no_module_moves_with_its_tokenizer(here):
    """As a Ray actor moves it, and `to` of a tokenizer does."""
    tokenizer = open_tokenizer("nets:Movable").to("meta")
    assert tokenizer.place == tokenizer.model.net.colors.device == torch.device("meta")
    tokenizer = open_tokenizer("nets:Holder").to("meta")  # it has no method for it
    assert tokenizer.place == tokenizer.model.net.colors.device == torch.device("cpu")


def test_arguments_in_a_name_keep_their_signs(here):
    for text, value in (("1e+3", 1e3), ("a+b", "a+b"), ("a%26b", "a&b"), ("", "")):
        with pytest.raises(ValueError, match=re.escape(f"TypeError: got {{'x': {value!r}}}")):
            open_tokenizer(f"nets:refuse?x={text}")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("absent:Blocks", "absent:Blocks: no module 'absent' in the current directory or on Python's path"),
        ("needs:Blocks", "importing needs fails: ModuleNotFoundError: No module named 'absent_package'"),
        ("failing:Blocks", "importing failing fails: ZeroDivisionError"),
        ("colors:Block", "colors has no class or function 'Block': did you mean 'Blocks'?"),
        ("colors:Blocks?size=3", "can't be built: TypeError"),
        ("nets:NoTokenizer", "is no tokenizer: NoTokenizer has no method encode(video)"),
        ("nets:Sizeless", "set vocab_size"),
        ("nets:Silent", "nets:Silent: no frames at all (from clips"),
        ("nets:Floats?wrong=none", "stride is three whole numbers"),
    ],
)
def test_what_cannot_be_loaded_fails_in_one_line(here, capsys, spec, message):
    assert message in fails(capsys, "extract", "videos", "-o", "tokens", "--model", spec)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("dtype", "encode returns int64 ids [B, t, h, w], not torch.int32"),
        ("rank", "encode returns int64 ids [B, t, h, w], not torch.int64 ["),
        ("type", "encode returns int64 ids [B, t, h, w], not list"),
        ("shape", "makes ids of [1, 4, 4] from [1, 3, 8, 32, 32]; stride (4, 8, 8) wants [2, 4, 4] (causal=False"),
        ("range", "encode is wrong: token ids lie in 0 .. 63, not 64 .. 64"),
        ("decode", "decode returns float [1, 3, 8, 32, 32], not torch.float32 [1, 3, 2, 2, 2]"),
    ],
)
def test_wrong_ids_and_videos_fail(here, wrong, message):
    tokenizer = open_tokenizer(f"nets:Broken?wrong={wrong}")
    with pytest.raises(ValueError, match=re.escape(message)):
        tokenizer.decode(tokenizer.encode(video(5)))


def test_what_a_class_lacks_fails_before_the_work(here, capsys):
    lacks = "nets:Holder has no method decode(ids)"
    assert lacks in fails(capsys, "eval", "reconstruction", "videos", "--model", "nets:Holder")
    data = [
        "data.source=digits",
        "data.size=32",
        "data.protocol=5x1x1x1",
        "run=r",
        "arms=[tokens]",
        "tokenizer=nets:Holder",
    ]
    assert lacks in fails(capsys, "eval", "compare", *data)
    lacks = "nets:Holder has no method features(video, kind)"
    assert lacks in fails(capsys, "eval", "probe", "digits", "--protocol", "5x1x1x1", "--model", "nets:Holder")
    assert lacks in fails(capsys, "extract", "videos", "-o", "o", "--features", "hidden", "--model", "nets:Holder")
    assert "leave out precision=bf16" in fails(
        capsys, "extract", "videos", "-o", "o", "--precision", "bf16", "--model", "nets:Causal"
    )


def test_a_name_in_a_file_is_never_imported(here, capsys):
    with pytest.raises(ValueError, match="no shipped tokenizer and no folder 'colors:Blocks'"):
        VideoTokenizer.from_pretrained("colors:Blocks")
    assert main(["extract", "videos", "-o", "ids", "--size", "32", "--model", "colors:Blocks", "--workers", "0"]) == 0
    sys.modules.pop("colors")
    assert main(["info", "ids/a.npz"]) == 0
    TokenDataset(here / "ids")[0]
    fails(capsys, "decode", "ids/a.npz", "-o", "a.mp4")
    assert "no folder 'colors:Blocks'" in fails(
        capsys, "compress", "videos/a.mp4", "-o", "a.vtk", "--model", "colors:Blocks"
    )
    assert "colors" not in sys.modules
