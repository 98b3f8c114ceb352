"""The experiments at the paper's scale: each is complete, is what the paper says, and trains."""

import math
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

import vidtok
from vidtok.cli.main import main
from vidtok.configs.compose import compose_config
from vidtok.datasets import demo_clip, write_video
from vidtok.train.losses import LossWeights
from vidtok.train.state import TrainState
from vidtok.train.tokenizer import build_clips, build_tokenizer_training

# stride, tokens of a training clip, and the steps as epochs x samples / batch.
EXPERIMENTS = {
    "imagenet-8x": ((1, 8, 8), (1, 16, 16), 270 * 1_281_167),
    "imagenet-16x": ((1, 16, 16), (1, 16, 16), 270 * 1_281_167),
    "imagenet-32x": ((1, 32, 32), (1, 8, 8), 270 * 1_281_167),
    "k600": ((4, 8, 8), (5, 16, 16), 190 * 383_393),
    "ucf101": ((4, 8, 8), (5, 16, 16), 2000 * 9_537),
}
VIDEOS = ("k600", "ucf101")
BATCH = 256


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """ImageNet's, Kinetics' and UCF-101's layouts, a few files of each."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for name in ("n01440764", "n01443537"):
        folder = root / "ILSVRC" / "train" / name
        folder.mkdir(parents=True)
        for i, size in enumerate([(50, 80), (400, 300)]):
            Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / f"{name}_{i}.JPEG", "JPEG")
    for name in ("riding a bike", "abseiling"):
        (root / "k600" / name).mkdir(parents=True)
        write_video(root / "k600" / name / "aBc_-123_000012_000022.mp4", demo_clip(frames=21, size=48), fps=25)
    for group in (1, 8):
        path = root / "UCF-101" / "YoYo" / f"v_YoYo_g{group:02}_c01.avi"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_avi(path, frames=20, height=60, width=80)
    (root / "ucfTrainTestlist").mkdir()
    (root / "ucfTrainTestlist" / "trainlist01.txt").write_text("YoYo/v_YoYo_g08_c01.avi 101\n")
    return root


def write_avi(path, frames, height, width):
    """MPEG-4 in AVI, as UCF-101 has it."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25, width=width, height=height, pix_fmt="yuv420p")
        for i in range(frames):
            frame = av.VideoFrame.from_ndarray(np.full((height, width, 3), 10 * i, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def where(experiment, data) -> list[str]:
    """The overrides that a user has to give."""
    roots = {"k600": "k600", "ucf101": "UCF-101"}
    return [f"experiment={experiment}", f"data.root={data / roots.get(experiment, 'ILSVRC/train')}"]


def build(experiment, data, monkeypatch):
    """The config and the training's parts, the networks without memory."""
    make = torch.Generator
    monkeypatch.setattr(torch, "Generator", lambda device=None: make())  # timm's average wants one on "meta"
    cfg = compose_config("train_tokenizer", [*where(experiment, data), "inflate=null"])
    with torch.device("meta"), pytest.warns(UserWarning, match="without the perceptual term"):
        return cfg, build_tokenizer_training(cfg)


def test_there_are_these():
    names = {p.name.removesuffix(".yaml") for p in files("vidtok.configs").joinpath("experiment").iterdir()}
    assert set(EXPERIMENTS) <= names


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_each_is_built_as_the_paper_has_it(experiment, data, monkeypatch):
    stride, grid, samples = EXPERIMENTS[experiment]
    weights = LossWeights(**compose_config("train_tokenizer", where(experiment, data)).loss)
    assert weights == LossWeights()  # whose defaults are the paper's
    cfg, parts = build(experiment, data, monkeypatch)
    state: TrainState = parts["state"]
    model = state.model
    assert model.stride == stride and model.bits == 18
    # The paper's clip on the token grid.
    frames, crop = cfg.data.frames, cfg.data.crop
    assert (1 + (frames - 1) // stride[0], crop // stride[1], crop // stride[2]) == grid
    assert (frames, crop) == {"imagenet-8x": (1, 128)}.get(experiment, (17, 128) if experiment in VIDEOS else (1, 256))
    # The schedule, Adam for both sides, the average.
    assert parts["schedule"].max_steps == math.ceil(samples / BATCH)
    for optimizer in (state.optimizer, state.discriminator_optimizer):
        assert isinstance(optimizer, torch.optim.Adam)
        group = optimizer.param_groups[0]
        assert (group["lr"], tuple(group["betas"]), group["weight_decay"]) == (1e-4, (0.0, 0.99), 0.0)
    assert state.ema.decay == 0.999
    # The discriminator sees what the tokenizer is trained on.
    kernels = {m.kernel_size[0] for m in state.discriminator.modules() if isinstance(m, torch.nn.Conv3d)}
    assert kernels == ({1, 3} if experiment in VIDEOS else {1})
    # 256 samples a batch, images or videos, and nothing else.
    batches = parts["batches"]
    assert {batches.is_image_batch(i) for i in range(10)} == {experiment not in VIDEOS}
    assert (batches.batch_size if experiment in VIDEOS else batches.image_batch_size) == BATCH


def test_the_image_model_is_the_video_models(data):
    """So that the one can be inflated into the other: the same but for time."""
    configs = [compose_config("train_tokenizer", where(name, data)) for name in ("imagenet-8x", "k600")]
    image, video = (OmegaConf.to_container(cfg.model.net) for cfg in configs)
    assert video == image | {"temporal_downsample": [False, True, True], "depth": 3}


def test_images_of_any_size_become_crops(data):
    cfg = compose_config("train_tokenizer", [*where("imagenet-8x", data), "data.image_batch_size=4"])
    batches, _ = build_clips(OmegaConf.to_container(cfg), (1, 8, 8))
    batch = batches[0]
    assert batch.shape == (4, 3, 1, 128, 128)


def test_the_training_split_of_ucf101_is_used(data, monkeypatch):
    _, parts = build("ucf101", data, monkeypatch)
    assert [path.rsplit("/", 1)[1] for path in parts["batches"].videos] == ["v_YoYo_g08_c01.avi"]


TINY = ["model.net.base=4", "model.net.blocks=1", "discriminator.base=4", "data.batch_size=2", "trainer.max_steps=2"]
TINY += ["data.crop=32", "data.size=32", "trainer.workers=0", "trainer.accumulate=1", "trainer.log_seconds=0"]


def run(experiment, data, *overrides):
    """The trained tokenizer, from the folder that the experiment names."""
    assert main(["train", "tokenizer", *where(experiment, data), *TINY, *overrides]) == 0
    return vidtok.VideoTokenizer.from_pretrained(f"runs/{experiment}/model")


@pytest.mark.filterwarnings("ignore:no lpips.weights")
def test_the_papers_order_images_then_inflation_then_videos(data, tmp_path, capsys, monkeypatch):
    """A few steps of each, adversarial game included, one after the other as the commands stand."""
    monkeypatch.chdir(tmp_path)
    image = run("imagenet-8x", data, "data.image_batch_size=2")
    assert image.stride == (1, 8, 8)
    for experiment in VIDEOS:
        tokenizer = run(experiment, data)
        assert tokenizer.encode(demo_clip(frames=17, size=32)).shape == (1, 5, 4, 4)
        # Two steps of warm-up later it is still nearly the image model.
        weight, start = tokenizer.encoder.stem.weight, image.encoder.stem.weight
        assert (weight[:, :, 2:] - start).abs().max() < 1e-3 < start.abs().max()
    assert "discriminator" in capsys.readouterr().out


def test_inflation_from_the_wrong_model_is_one_line(data, tmp_path, capsys):
    overrides = [*where("k600", data), *TINY, f"run={tmp_path / 'run'}"]
    assert main(["train", "tokenizer", *overrides, "inflate=vidtok-t"]) == 1
    assert "vidtok: a magvit2 net of depth 1 is inflated into another magvit2 net" in capsys.readouterr().err
    overrides = [f"data.root={data / 'k600'}", f"run={tmp_path / 'run'}", "trainer.max_steps=1"]
    assert main(["train", "tokenizer", *overrides, "inflate=vidtok-t", "init=vidtok-t"]) == 1
    assert "vidtok: give one of init= and inflate=" in capsys.readouterr().err


def test_the_image_model_must_have_been_trained(data, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "tokenizer", *where("k600", data), *TINY]) == 1
    assert "no folder 'runs/imagenet-8x/model'" in capsys.readouterr().err


def test_the_readmes_table_says_the_same():
    readme = (Path(__file__).parent.parent.parent / "docs/pages/training.md").read_text()
    for experiment, (_, _, samples) in EXPERIMENTS.items():
        (line,) = (line for line in readme.splitlines() if line.startswith("|") and f"`{experiment}`" in line)
        assert line.endswith(f"| {math.ceil(samples / BATCH):,} |")
