"""Generators from the command line: training, sampling, measuring; the published recipes; conventions of evaluation."""

import itertools
import json
import os
import re
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from safetensors.torch import load_file

from vidtok.cli.main import main
from vidtok.configs.compose import compose_config
from vidtok.datasets import MovingDigits, read_video, write_video
from vidtok.errors import UserError
from vidtok.eval.generation import compare, merge_results
from vidtok.eval.generation.conventions import (
    CONVENTIONS,
    ClipStatistics,
    Neighbors,
    RealClips,
    describe,
    frames_of,
    get_convention,
    over_folds,
    prepare,
    real_clips,
    shares_over_folds,
)
from vidtok.eval.generation.extractors import ClassAgreement, FeatureExtractors, load_feature_extractors, load_head
from vidtok.eval.generation.report import markdown_table, over_seeds, verdict
from vidtok.eval.generation.run import Evaluation, check_conditions
from vidtok.eval.metrics.intervals import wilson_interval
from vidtok.eval.report import markdown
from vidtok.extraction import read_npz
from vidtok.generator import Objective, create_generator, from_pretrained
from vidtok.generator.training import FIRST_SAMPLES, build_generator_training, training_flops
from vidtok.heads import HeadConfig, create_head, make_head
from vidtok.tokenizer import VideoTokenizer
from vidtok.train.run_folder import RunFolder

SMALL = ["data.source=digits", "data.frames=9", "data.size=32", "data.batch_size=2", "size.width=32", "size.depth=1"]
SMALL += ["size.heads=2", "trainer.max_steps=4", "trainer.log_seconds=0", "trainer.workers=0", "samples=2"]
I3D_WEIGHTS = Path(os.environ.get("VIDTOK_WEIGHTS", "weights")) / "i3d_k400.safetensors"
RECIPES = sorted(p.name[:-5] for p in files("vidtok.configs").joinpath("experiment", "generator").iterdir())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "masked"
    overrides = [*SMALL, "data.held_out=val", "data.held_out_samples=2", f"run={run}", "sampling.steps=2"]
    assert main(["train", "generator", *overrides]) == 0
    return run


@pytest.mark.parametrize("kind", ["autoregressive", "diffusion"])
def test_the_other_kinds_train_by_the_same_command(kind, tmp_path, capsys):
    run = tmp_path / kind
    assert main(["train", "generator", f"generator={kind}", *SMALL, f"run={run}", "samples=0"]) == 0
    assert from_pretrained(run / "model").config.kind == kind
    assert capsys.readouterr().out.count("step") >= 4


def test_a_run_leaves_model_and_pictures_and_resumes_exactly(trained, tmp_path, monkeypatch):
    model = from_pretrained(trained / "model")
    assert model.config.classes == tuple(MovingDigits().classes) and model.config.grid == (3, 4, 4)
    assert model.config.weight_hash == VideoTokenizer.from_pretrained("vidtok-t").weight_hash
    assert list((trained / "pictures").glob("samples-*.png"))
    command = ["train", "generator", *SMALL, "samples=0", "trainer.save_steps=2"]
    assert main([*command, f"run={tmp_path / 'whole'}"]) == 0

    def save_and_end(folder, state):
        save(folder, state)
        raise OSError("ended after the first checkpoint")

    save = RunFolder.save_checkpoint
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save_checkpoint", save_and_end)
        assert main([*command, f"run={tmp_path / 'ended'}"]) == 1
    assert torch.load(tmp_path / "ended" / "checkpoint.pt", weights_only=True)["step"] == 2
    assert main([*command, f"run={tmp_path / 'ended'}"]) == 0
    states = [torch.load(tmp_path / name / "checkpoint.pt", weights_only=True) for name in ("whole", "ended")]
    assert states[0]["step"] == states[1]["step"] == 4
    assert all(torch.equal(value, states[1]["model"][name]) for name, value in states[0]["model"].items())


def test_a_run_is_gone_on_with_by_the_same_generator_alone(trained, capsys):
    command = ["train", "generator", *SMALL, "samples=0", f"run={trained}"]
    for other, message in (("tokenizer=vidtok-t-r", "another tokenizer"), ("size.heads=1", "another heads")):
        assert main([*command, other]) == 1 and message in capsys.readouterr().err
    assert main([*command, "name=renamed"]) == 0  # it was done
    assert "done at step 4" in capsys.readouterr().out


def test_tokens_on_disk_train_like_the_clips_they_are_of(tmp_path):
    for feature in ("ids", "latents"):
        folder = tmp_path / feature
        clips = [MovingDigits("train", 9, 32)[i].video for i in range(3)]
        for i, clip in enumerate(clips):
            (tmp_path / "videos" / "left").mkdir(parents=True, exist_ok=True)
            write_video(tmp_path / "videos" / "left" / f"{i}.mp4", clip, 25)
        source = str(tmp_path / "videos")
        assert (
            main(["extract", source, "--class-folders", "-o", str(folder), "--features", feature, "--workers", "0"])
            == 0
        )
        cfg = compose_config("train_generator", [f"data.features={folder}", *SMALL[1:], "data.source=null"])
        built = build_generator_training(cfg)
        batch = built["task"].encoded(built["batches"][0])
        assert batch["ids"].shape == (2, 3, 4, 4) and ("latents" in batch) == (feature == "latents")
        assert built["state"].model.config.classes == ("left",)
        assert torch.equal(next(built["batches"].loader(start=5))["seed"], built["batches"][5]["seed"])
        part = built["task"].encoded(next(built["batches"].loader(shard=(1, 2))))
        assert all(torch.equal(value[1:], part[name]) for name, value in batch.items())
        if feature == "ids":
            first = batch
    # A latent that is almost 0 may have either sign.
    assert (first["ids"] == batch["ids"]).float().mean() > 0.95


@pytest.mark.parametrize("name", RECIPES)
def test_published_recipes_build(name, tmp_path, monkeypatch):
    """Each is complete: with data and a tokenizer it builds and steps, here with a small model."""
    image = name.startswith("imagenet")
    given = [f"experiment=generator/{name}", "tokenizer=vidtok-t"]
    assert compose_config("train_generator", [*given, "data.features=tokens"]).data.source is None
    with pytest.raises(ValueError, match=r"give either data.features= \(extracted tokens\) or data.source="):
        build_generator_training(compose_config("train_generator", given))
    cfg = compose_config("train_generator", [*given, "data.source=digits"])
    assert cfg.size.width == 1024 and cfg.size.depth == 24 and cfg.size.heads == 16
    assert (cfg.data.frames, cfg.data.batch_size) == ((1, 1024) if image else (17, 256))
    cfg.data.batch_size, cfg.data.size = 2, 32
    cfg.size = {"width": 64, "depth": 1, "heads": 2, "dropout": 0.1}
    cfg.data.source = str(tmp_path / "data")
    folder = tmp_path / "data" / (cfg.data.split or "")
    clip = MovingDigits("train", 17, 32)[0].video
    for name_of_class in ("one", "two"):
        (folder / name_of_class).mkdir(parents=True)
        file = folder / name_of_class / f"clip.{'png' if image else 'mp4'}"
        write_video(file, clip[:, :, :1] if image else clip, 25)
    built = build_generator_training(cfg)
    model, batch = built["state"].model, built["task"].encoded(built["batches"][0])
    loss, terms, _ = built["task"].terms(model, batch, 0)
    assert loss.isfinite() and terms["objective"] is loss
    if name == "k600":
        assert model.config.classes == () and built["task"].objective.tasks["prefix-2"] == 1
    sampling = dict(built["task"].sampling) | {"steps": 1}
    assert model.config.classes == (() if name == "k600" else ("one", "two"))
    label = "two" if model.config.classes else None
    assert model.generate(1, label, **sampling).shape == (1, *model.config.grid)


def test_generate_writes_clips_pictures_and_tokens(trained, tmp_path, capsys):
    model, out = str(trained / "model"), tmp_path / "new"
    arguments = ["generate", model, "-o", str(out), "--label", "turning left", "--number", "3", "--steps", "2"]
    assert main([*arguments, "--tokens", "--batch", "2", "--guidance", "2"]) == 0
    names = sorted(p.name for p in out.iterdir())
    assert names == sorted(f"turning_left-{i:04d}.{end}" for i in range(3) for end in ("mp4", "npz"))
    record = read_npz(out / "turning_left-0001.npz")[0]
    assert record.label == "turning left" and record.features.shape == (3, 4, 4)
    assert read_video(out / "turning_left-0001.mp4").shape[2] == 9
    assert main(["decode", str(out / "turning_left-0001.npz"), "-o", str(tmp_path / "again.mp4")]) == 0
    # One at a time gives the same.
    assert (
        main([*arguments[:3], str(tmp_path / "ones"), *arguments[4:], "--tokens", "--batch", "1", "--guidance", "2"])
        == 0
    )
    other = read_npz(tmp_path / "ones" / "turning_left-0001.npz")[0]
    assert np.array_equal(other.features, record.features)
    assert main(arguments) == 1 and "exists: --force" in capsys.readouterr().err
    for name in ("all.png", "all.gif"):
        assert main(["generate", model, "-o", str(tmp_path / name), "--number", "2", "--steps", "1"]) == 0
        assert (tmp_path / name).stat().st_size > 0
    create_head("linear", "tokens", 9, (3, 4, 4)).save_pretrained(tmp_path / "head")
    judged = ["--head", str(tmp_path / "head"), "--steps", "1"]
    assert main(["generate", model, "-o", str(tmp_path / "all.html"), "--number", "2", *judged]) == 0
    page = (tmp_path / "all.html").read_text()
    assert page.count("<video") == 2 and "<b>left</b>" in page and page.count("✓") + page.count("✗") == 2
    assert main(["generate", model, "-o", str(tmp_path / "other"), *judged]) == 1
    assert "--head judges the clips of a page" in capsys.readouterr().err
    prefix = str(out / "turning_left-0000.mp4")
    longer = ["--prefix", prefix, "--frames", "17", "--free", "--steps", "1", "--tokens"]
    assert main(["generate", model, "-o", str(tmp_path / "long"), *longer]) == 0
    assert read_npz(tmp_path / "long" / "0000.npz")[0].features.shape == (5, 4, 4)


def test_info_says_what_a_generator_is(trained, capsys):
    assert main(["info", str(trained / "model")]) == 0
    out = capsys.readouterr().out
    assert ", masked" in out and "3 x 4 x 4 of 18 bits" in out and "9: left, right, up" in out


def test_wrong_wishes_of_generate_are_one_line(trained, tmp_path, capsys):
    model = str(trained / "model")
    for arguments, message in (
        (["--label", "sideways"], "no class 'sideways'"),
        (["--top-k", "3"], "masked sampling has no 'top_k'"),
        (["--frames", "8"], "1 + 4k frames, not 8"),
        (["--label", "9"], "no class 9"),
        (["--prefix-frames", "9"], "--prefix-frames is of --prefix CLIP"),
        (["--label", "left", "--free"], "--label or --free, not both"),
        (["--guidance", "2", "--free"], "guidance needs a label"),
        (["--temperature", "-1"], "temperature is at least 0"),
        (["--schedule", "cosin"], "did you mean 'cosine'"),
        (["--prefix", str(tmp_path / "none.mp4")], "none.mp4"),
        (["--device", "cuda:7"], "cuda"),
        (["--tokenizer", "vidtok-t-r"], "say where its tokenizer is"),
    ):
        assert main(["generate", model, "-o", str(tmp_path / "x"), *arguments]) == 1
        error = capsys.readouterr().err
        assert error.startswith("vidtok: ") and message in error and error.count("\n") == 1
    assert main(["generate", model, "-o", str(tmp_path / "x.mp4"), "--format", "gif"]) == 1
    assert "--format is of clips in a folder, not of x.mp4" in capsys.readouterr().err
    write_video(tmp_path / "clip.mp4", MovingDigits("train", 9, 32)[0].video, 25)
    assert main(["extract", str(tmp_path / "clip.mp4"), "-o", str(tmp_path / "ids"), "--workers", "0"]) == 0
    (tmp_path / "empty").mkdir()
    stored = [f"data.features={tmp_path / 'ids'}", *SMALL[1:]]
    for overrides, message in (
        ([], "give either data.features="),
        ([f"data.source={tmp_path}", "data.stride=2"], "data.stride=2 counts frames of data.fps"),
        ([f"data.features={tmp_path / 'empty'}"], "features"),
        (["data.source=digits", "size.heads=3"], "doesn't divide into 3 heads"),
        (["data.source=digits", "objective.tasks={none: 0}"], "tasks need weights"),
        (["data.source=digits", "data.split=test"], "is not 'train' or 'val'"),
        (["data.source=digits", "tokenizer=nothing"], "nothing"),
        (["data.source=digits", "objective.tasks.interpolatoin=1"], "did you mean"),
        ([*SMALL, "sampling.top_k=3"], "masked sampling has no 'top_k'"),
        ([*SMALL, "objective.tasks={prefix-3: 1.0}"], "objective.tasks has the keys none, prefix, prefix-2"),
        ([*SMALL, "data.classes=[]", "sampling.guidance=2"], "needs classes"),
        ([*SMALL, "objective.class_dropout_prob=2"], "objective.class_dropout_prob is a share of 0 to 1, not 2"),
        ([*SMALL, "objective.label_smoothing=3"], "objective.label_smoothing is a share of 0 to 1, not 3"),
        ([*SMALL, "size.depth=0"], "width, depth and heads are at least 1"),
        ([*SMALL, "generator=diffusion", "generator.arguments.betas=x"], "no noise schedule betas=x"),
        ([*SMALL, "data.frames=5", "objective.tasks.interpolation=1"], "interpolation needs at least 3 latent frames"),
        ([*SMALL, "sampling.temperature=abc"], "temperature is a number, not 'abc'"),
        ([*SMALL, "sampling.steps=2.5"], "steps is a whole number, not 2.5"),
        ([*SMALL, "generator=autoregressive", "objective.tasks.inpainting=1"], "takes only prefixes"),
        ([*stored, "generator=diffusion"], "diffusion is trained on latents"),
    ):
        assert main(["train", "generator", *overrides, f"run={tmp_path / 'run'}"]) == 1, overrides
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("vidtok: ") and message in error
    assert not (tmp_path / "run").exists()


def test_clips_of_different_rates_are_said(tmp_path):
    for fps in (10, 25):
        write_video(tmp_path / f"{fps}.mp4", MovingDigits("train", 9, 32)[0].video, fps)
    sources = [str(tmp_path / f"{fps}.mp4") for fps in (10, 25)]
    assert main(["extract", *sources, "-o", str(tmp_path / "ids"), "--workers", "0"]) == 0
    cfg = compose_config("train_generator", [f"data.features={tmp_path / 'ids'}", *SMALL[1:]])
    with pytest.warns(UserWarning, match="clips of different rates"):
        assert build_generator_training(cfg)["state"].model.config.fps is None


def test_conventions_are_those_of_the_papers():
    k600, ucf, styleganv = (get_convention(name) for name in ("magvit-k600", "magvit-ucf", "stylegan-v-2048x16"))
    assert (k600.frames, k600.score_size, k600.given_frames, k600.n_fake, k600.folds) == (16, 64, 5, 50_000, 4)
    assert k600.windows * k600.crops == 6
    assert (ucf.frames, ucf.n_fake, ucf.folds) == (16, 10_000, 4)
    assert (styleganv.frames, styleganv.n_real, styleganv.n_fake) == (16, 2048, 2048)
    with pytest.raises(ValueError, match="did you mean 'magvit-k600'"):
        get_convention("magvit_k600")
    video = torch.rand(2, 3, 17, 128, 160) * 2 - 1
    scored = prepare(video, k600)
    assert scored.shape == (2, 3, 16, 64, 64)
    square = video[:, :, 3, :, 16:144]
    assert torch.allclose(scored[:, :, 3], F.interpolate(square, (64, 64), mode="bilinear"), atol=1e-6)
    assert torch.equal(prepare(video, CONVENTIONS["plain"]), video)
    with pytest.raises(ValueError, match="scores 16 frames"):
        prepare(video[:, :, :9], k600)


def score_clips(clips, networks, convention):
    found = ClipStatistics(networks, convention)
    for video in clips:
        found.update(video)
    return found


def test_clips_are_scored_as_they_stream_by():
    draw = torch.Generator().manual_seed(0)
    a, b = (torch.randn(4000, 3, 1, 2, 2, generator=draw) for _ in range(2))
    networks = {"mean": lambda video: video.mean((2, 3, 4)) * 2, "frames": frames_of(lambda x: x[:, :, 0, 0])}
    plain = get_convention("plain")
    whole, parts = (score_clips(a.split(size), networks, plain) for size in (4000, 7))
    assert whole.n == parts.n == 4000 and whole.kinds["frames"].n == 4000
    torch.testing.assert_close(parts.kinds["mean"].covariance, whole.kinds["mean"].covariance)
    assert whole.kinds["mean"].covariance.dtype == torch.float64
    others, shifted = (score_clips([x], networks, plain) for x in (b, b + 2))
    assert whole.distance("mean", others) < 0.01 and whole.distance("mean", shifted) == pytest.approx(48, rel=0.05)

    seen = []
    tokenizer = VideoTokenizer.from_pretrained("vidtok-t")
    clips = a[..., :1, :1].expand(-1, -1, 1, 8, 8).tanh()
    real = RealClips(lambda: (seen.append(1) or part for part in clips.split(10)), None, (), {})
    networks = FeatureExtractors(fvd=networks["mean"])
    first = Evaluation(real, networks, tokenizer, replace(plain, n_real=25), "plain").scored
    assert first.n == first.kinds["fvd"].n == 25 and len(seen) == 3  # and no clip more is made
    with pytest.raises(ValueError, match="no clips"):
        Evaluation(RealClips(lambda: [], None, (), {}), networks, tokenizer, plain, "plain")


def test_prefixes_are_of_different_videos_first():
    tokenizer = VideoTokenizer.from_pretrained("vidtok-t")
    videos = torch.linspace(-1, 1, 5).view(5, 1, 1, 1, 1).expand(5, 3, 9, 16, 16)
    clips = [torch.cat([video[None], -video[None].clamp(min=-0.9)]) for video in videos]  # two windows each
    convention = replace(get_convention("plain"), windows=2, given_frames=5, n_fake=2, folds=2)
    evaluation = Evaluation(RealClips(lambda: clips, None, (), {}), FeatureExtractors(), tokenizer, convention, "plain")
    found = evaluation.conditions(SimpleNamespace(config=SimpleNamespace(classes=())))[1]
    assert found.shape == (8, 2, 2, 2)  # of the four videos that two folds of two take
    assert torch.equal(found[:4], tokenizer.encode(videos[:4, :, :5]))
    assert torch.equal(found[4:], tokenizer.encode(torch.stack([clip[1, :, :5] for clip in clips[:4]])))


class Brightness(torch.nn.Module):
    """In the place of I3D: the mean color of the first and of the last frame."""

    weight_hash = "0123456789abcdef"

    def __init__(self, weights=None):
        super().__init__()

    def forward(self, video):
        return torch.cat([video[:, :, t].mean((2, 3)) for t in (0, -1)], 1)


def test_limits_are_of_different_videos_first():
    tokenizer = VideoTokenizer.from_pretrained("vidtok-t")
    videos = torch.linspace(-1, 1, 6).view(6, 1, 1, 1, 1).expand(6, 3, 9, 16, 16)
    clips = [torch.cat([video[None], torch.ones_like(video[None])]) for video in videos]  # two windows each
    convention = replace(get_convention("plain"), windows=2, n_fake=6)
    real = RealClips(lambda: [videos], lambda: [(clip, torch.zeros(2)) for clip in clips], (), {})
    limits = Evaluation(real, FeatureExtractors(fvd=Brightness()), tokenizer, convention, "plain").limits()
    assert limits["fvd_floor"] == {"value": pytest.approx(0, abs=1e-6), "n": 6}  # the six videos, no second clip
    decoded = tokenizer.decode(tokenizer.encode(videos))
    passed = score_clips([decoded], {"fvd": Brightness()}, convention)
    there = score_clips([videos], {"fvd": Brightness()}, convention)
    assert limits["fvd_reconstruction"]["value"] == pytest.approx(there.distance("fvd", passed), abs=1e-6)


def test_the_baseline_of_given_frames_repeats_the_last_one():
    tokenizer = VideoTokenizer.from_pretrained("vidtok-t")
    level = torch.linspace(-1, 1, 9).view(1, 1, 9, 1, 1).expand(4, 3, 9, 16, 16)  # frames grow brighter
    videos = level * torch.linspace(0.2, 0.8, 4).view(4, 1, 1, 1, 1)
    convention = replace(get_convention("plain"), given_frames=5, n_fake=3)
    real = RealClips(lambda: [videos], None, (), {})
    networks = FeatureExtractors(fvd=Brightness())
    limits = Evaluation(real, networks, tokenizer, convention, "plain").limits()
    still = torch.cat([videos[:3, :, :5], videos[:3, :, 4:5].expand(-1, -1, 4, -1, -1)], 2)
    frozen = score_clips([tokenizer.decode(tokenizer.encode(still))], {"fvd": Brightness()}, convention)
    there = score_clips([videos], {"fvd": Brightness()}, convention)
    assert limits["fvd_repeated"] == {"value": pytest.approx(there.distance("fvd", frozen), abs=1e-6), "n": 3}
    assert (
        limits.keys() == {"fvd_repeated", "fvd_to_reconstructions_repeated"} and limits["fvd_repeated"]["value"] > 0.5
    )
    plain = replace(convention, given_frames=0)
    assert not Evaluation(real, networks, tokenizer, plain, "plain").limits()


def test_eval_generation_measures_distances_and_draws_neighbors(trained, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("vidtok.eval.generation.extractors.I3D", Brightness)
    png, out = tmp_path / "nearest.png", tmp_path / "result.json"
    command = ["eval", "generation", str(trained / "model"), "digits", "--i3d", "x", "--others", "val", "--steps", "2"]
    command += ["--n-real", "20", "--n-fake", "8", "--folds", "2", "--neighbors", str(png), "--json", str(out)]
    results = []
    for workers in ("0", "2"):
        with monkeypatch.context() as patch:
            patch.setattr(MovingDigits, "__len__", lambda self: 40)
            assert main([*command, "--workers", workers, "--force"]) == 0
        results.append(json.loads(out.read_text()))
    result, by_workers = results
    assert all(by_workers[key] == result[key] for key in ("n_real", "metrics", "neighbors"))
    metrics, near = result["metrics"], result["neighbors"]
    assert result["n_real"] == 20 and metrics["fvd_floor"]["n"] == metrics["fvd_reconstruction"]["n"] == 8
    assert len(metrics["fvd"]["folds"]) == 2 and metrics["fvd"]["mean"] > metrics["fvd_floor"]["value"]
    assert len(metrics["fvd_to_reconstructions"]["folds"]) == 2 and metrics["fvd_precision"]["n"] == 16
    assert metrics["fvd_to_reconstructions_reconstruction"]["value"] < metrics["fvd_to_reconstructions"]["mean"]
    assert near["n_real"] == 40 and len(near["generated"]) == len(near["others"]) == 6
    assert read_video(png).shape[-1] >= 4 * 32 and "distance to the nearest, median" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["tokens", "codes", "pixels"])
def test_features_of_a_head_see_the_generator(kind):
    """Reconstructions of the real clips are a perfect generator on these tokens; a constant clip is a collapsed one."""
    tokenizer = VideoTokenizer.from_pretrained("vidtok-t")
    digits = MovingDigits("train", 5, 32)
    videos = torch.cat([digits[i].video for i in range(24)])
    torch.manual_seed(0)
    head = create_head("linear", kind, 9, (2, 4, 4), channels=None if kind == "pixels" else 16).eval()
    convention = replace(get_convention("plain"), n_fake=12, folds=2)
    others = [(videos[12:], torch.zeros(12, dtype=torch.long))]
    real = RealClips(lambda: videos.split(5), lambda: others, digits.classes, {"clip_size": 32})
    evaluation = Evaluation(real, FeatureExtractors(head=head), tokenizer, convention, "plain")
    assert ("frd" in evaluation.decoded.kinds) == (kind == "pixels")
    assert evaluation.scored.n == 24 and evaluation.limits()["frd_floor"]["n"] == 12
    ids = tokenizer.encode(videos)
    classes = tuple(digits.classes)

    def measured(drawn):
        config = SimpleNamespace(classes=classes, name="x", kind="masked", tokenizer="vidtok-t", weight_hash="")
        calls = iter(drawn.split(12))
        generator = SimpleNamespace(config=config, parameters=lambda: iter(()), weight_hash="")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("vidtok.eval.generation.run.generate_samples", lambda *a, **b: [next(calls)])
            return evaluation.measure(generator)["metrics"]

    perfect, collapsed = measured(ids), measured(ids[:1].expand(24, -1, -1, -1))
    same = "frd_to_reconstructions" if kind == "pixels" else "frd"
    assert perfect[same]["mean"] < collapsed[same]["mean"]
    if kind != "pixels":
        assert perfect["frd_precision"]["folds"] == perfect["frd_recall"]["folds"] == [1.0, 1.0]
    assert collapsed["frd_recall"]["mean"] < 0.2 and collapsed["frd_recall"]["high"] < 0.4


def test_folds_and_neighbors():
    assert over_folds([1.0, 3.0]) == {"mean": 2.0, "deviation": pytest.approx(2**0.5), "folds": [1.0, 3.0]}
    assert over_folds([1.0])["deviation"] is None
    share = shares_over_folds([0.5, 0.25], 8)
    assert share["n"] == 16 and share["mean"] == 0.375 and 0.1 < share["low"] < 0.375 < share["high"] < 0.7
    real = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    nearest = Neighbors(real[[5, 47]] + 1e-3, count=4)
    for part in torch.arange(50).split(7):
        nearest.update(real[part], list(part))
    distances = torch.cdist(real[[5, 47]].double() + 1e-3, real.double()).topk(4, largest=False)
    assert [[int(number) for number in row] for row in nearest.pictures] == distances.indices.tolist()
    assert nearest.pictures[0][0] == 5 and nearest.pictures[1][0] == 47
    torch.testing.assert_close(nearest.distances, distances.values)


@pytest.mark.skipif(not I3D_WEIGHTS.exists(), reason="no i3d_k400.safetensors in $VIDTOK_WEIGHTS")
def test_black_against_white_has_the_reference_fvd():
    """151.39: 30 frames of -1 against 30 of +1, by what `vidtok eval generation` measures with."""
    detectors = load_feature_extractors(str(I3D_WEIGHTS), None, None, None, torch.device("cpu"))
    networks = {"fvd": detectors.fvd}
    black, white = (
        score_clips([torch.full((1, 3, 30, 32, 32), value)], networks, get_convention("plain")) for value in (-1.0, 1.0)
    )
    assert black.distance("fvd", white) == pytest.approx(151.39, abs=0.01)
    assert detectors.names["fvd"].startswith("I3D Kinetics-400 logits, weights ")


def test_i3d_in_bf16_is_near_fp32_and_recorded(monkeypatch):
    class Product(torch.nn.Linear):
        weight_hash = "0123456789abcdef"

        def __init__(self, weights):
            torch.manual_seed(0)
            super().__init__(64, 64, bias=False)

    for name in ("I3D", "fast_i3d"):
        monkeypatch.setattr(f"vidtok.eval.generation.extractors.{name}", Product)
    tokenizer, device = VideoTokenizer.from_pretrained("vidtok-t"), torch.device("cpu")
    x = torch.rand(8, 64)
    exact, fast = (load_feature_extractors("x", None, None, tokenizer, device, name) for name in ("fp32", "bf16"))
    found = fast.fvd(x)
    assert found.dtype == torch.float32 and not torch.equal(found, exact.fvd(x))
    torch.testing.assert_close(found, exact.fvd(x), atol=0.02, rtol=0)
    assert fast.names["fvd"] == exact.names["fvd"] + ", in bf16"
    with pytest.raises(ValueError, match="unknown precision"):
        load_feature_extractors("x", None, None, tokenizer, device, "fp16")
    with pytest.raises(ValueError, match="precision=bf16 is for I3D"):
        load_feature_extractors(None, None, None, tokenizer, device, "bf16")


def test_eval_generation_measures_agreement(trained, tmp_path, capsys):
    tokenizer = VideoTokenizer.from_pretrained("vidtok-t")
    head = make_head(
        HeadConfig("tiny", {"kind": "linear"}, {"kind": "tokens", "patch_merge": 1, "bits": 18}, (3, 4, 4), 9)
    )
    head.record(tokenizer={"name": "vidtok-t", "weight_hash": tokenizer.weight_hash})
    head.save_pretrained(tmp_path / "head")
    out = tmp_path / "result.json"
    arguments = ["eval", "generation", str(trained / "model"), "digits", "--head", str(tmp_path / "head")]
    arguments += ["--n-real", "15", "--n-fake", "10", "--folds", "2", "--others", "val", "--steps", "2"]
    arguments += ["--json", str(out)]
    assert main(arguments) == 0
    result = json.loads(out.read_text())
    assert result["schema"] == "vidtok.eval.generation/1" and result["n_fake"] == 10 and result["folds"] == 2
    assert result["metrics"]["agreement"]["n"] == 20 and result["metrics"]["real_agreement"]["n"] >= 10
    assert result["protocol"]["convention"] == "plain" and "agreement" in result["detector"]
    assert result["n_real"] == 15 and len(result["metrics"]["frd"]["folds"]) == 2
    assert result["metrics"]["frd_precision"]["n"] == 20 and result["metrics"]["frd_recall_floor"]["n"] == 10
    assert not any("reconstruction" in name for name in result["metrics"])  # the head sees tokens
    assert "agreement" in (printed := capsys.readouterr().out) and "frd_recall" in printed
    assert main(["eval", "generation", str(trained / "model"), "digits"]) == 1
    assert "nothing to measure" in capsys.readouterr().err
    for wrong, message in (
        (["--convention", "magvit-k600"], "asked to be: the convention gives frames instead"),
        (["--split", "vall"], "is not 'train' or 'val'"),
    ):
        assert main([*arguments[:-2], *wrong]) == 1
        assert message in capsys.readouterr().err


def test_the_split_of_real_clips_is_the_one_that_is_recorded(tmp_path):
    config = SimpleNamespace(stride=(4, 8, 8), grid=(3, 4, 4), fps=None, classes=())
    clip = MovingDigits("train", 9, 32)[0].video
    for name in ("whole/a", "split/train/a", "split/val/a", "upper/TRAIN/a", "upper/VAL/a"):
        (tmp_path / name).mkdir(parents=True)
        write_video(tmp_path / name / "clip.mp4", clip, 25)

    def split_of(folder, split):
        found = real_clips(str(tmp_path / folder), None, split, None, config, get_convention("plain"))
        return found.about["split"], sum(map(len, found.clips()))

    assert split_of("whole", None) == ("all", 1)
    for folder in ("split", "upper"):
        assert split_of(folder, None) == ("train", 1) and split_of(folder, "val") == ("val", 1)
    with pytest.raises(ValueError, match="no folder train: say which split"):
        real_clips(str(tmp_path / "whole"), None, None, "val", config, get_convention("plain"))
    for folder, split in (("split", "vall"), ("whole", "train")):
        with pytest.raises(ValueError, match=split):
            split_of(folder, split)


def test_real_clips_are_the_same_by_workers(tmp_path):
    """The clips, their order and memory layout; a damaged video is left out."""
    (tmp_path / "a").mkdir()
    for i in range(5):
        write_video(tmp_path / "a" / f"{i}.mp4", MovingDigits("train", 20, 32)[i].video, 25)
    (tmp_path / "a" / "5.mp4").write_bytes(b"no video")
    config = SimpleNamespace(stride=(4, 8, 8), grid=(3, 4, 4), fps=None, classes=())
    convention = replace(get_convention("plain"), random=True, windows=2)
    for workers, source in ((1, str(tmp_path)), (2, str(tmp_path)), (2, "digits")):
        alone, read = (real_clips(source, None, None, None, config, convention, 4, n) for n in (0, workers))
        batches = [list(itertools.islice(real.clips(), 2)) for real in (alone, read)]
        for ours, theirs in zip(*batches, strict=True):
            assert torch.equal(ours, theirs) and ours.stride() == theirs.stride()
        assert sum(map(len, batches[1])) == (8 if source == "digits" else 10)


def test_a_convention_of_other_sizes_says_so():
    k600 = get_convention("magvit-k600")
    assert describe(k600, "magvit-k600", 128)["convention"] == "magvit-k600"
    assert describe(k600, "magvit-k600", 64)["convention"] == "magvit-k600, but of clips of 64 pixels"


def test_a_prefix_is_whole_latent_frames_and_agreement_is_of_classes():
    config = SimpleNamespace(name="some", classes=("a",), tokenizer="tok", needs_video=False)
    plain, k600 = get_convention("plain"), get_convention("magvit-k600")
    stranger = create_head("linear", "tokens", 1, (3, 4, 4))
    stranger.record(classes=["b"])
    wide, fine = SimpleNamespace(stride=(8, 8, 8)), SimpleNamespace(stride=(4, 8, 8))
    check_conditions(k600, config, (), None, fine, {})
    given = SimpleNamespace(**vars(config) | {"needs_video": True}, tasks=("prefix-2",))
    with pytest.warns(UserWarning, match="some was trained on prefix-2 alone: a convention that gives frames"):
        check_conditions(plain, given, ("a",), None, fine, {})
    for convention, head, tokenizer, sampling, message in (
        (k600, None, wide, {}, "5 frames, which aren't whole latent frames of tok"),
        (k600, None, fine, {"guidance": 2}, "guidance needs classes"),
        (k600, "head", fine, {}, "the convention gives frames instead"),
        (plain, stranger, fine, {},
         "knows no class 'a'"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            check_conditions(convention, config, ("a",), head, tokenizer, sampling)


def test_clips_are_encoded_a_few_at_a_time(monkeypatch):
    cfg = compose_config("train_generator", [*SMALL, "data.batch_size=5", "samples=0"])
    seen = []
    built = build_generator_training(cfg)
    task, batch = built["task"], built["batches"][0]
    whole = task.encoded(batch)
    monkeypatch.setattr("vidtok.generator.training.PIXELS_AT_ONCE", 2 * 9 * 32 * 32)
    encode = task.tokenizer.encode_latents
    monkeypatch.setattr(task.tokenizer, "encode_latents", lambda video: seen.append(len(video)) or encode(video))
    torch.testing.assert_close(task.encoded(batch)["latents"], whole["latents"], atol=1e-4, rtol=1e-4)
    assert seen == [2, 2, 1]


def test_a_large_batch_is_not_made_to_learn_the_grid(monkeypatch):
    made = []
    draw = MovingDigits.draw
    monkeypatch.setattr(MovingDigits, "draw", lambda self, *args: made.append(1) or draw(self, *args))
    build_generator_training(compose_config("train_generator", [*SMALL, "data.batch_size=64", "samples=0"]))
    assert len(made) == FIRST_SAMPLES


def test_pictures_of_frame_prediction_go_on_from_held_out_clips():
    for tasks, latents in (({"none": 0, "prefix": 1, "prefix-2": 1}, 1), ({"prefix-2": 1}, 2), ({"prefix-x": 1}, 0)):
        assert Objective(tasks=tasks).given_prefix == latents
    assert Objective(tasks={"prefix-2": 1, "inpainting": 1}).given_prefix == 0
    only = [*SMALL, "objective.tasks={none: 0, prefix-2: 1}", "sampling.steps=1", "samples=3"]
    with pytest.raises(ValueError, match="always given a prefix need"):
        build_generator_training(compose_config("train_generator", only))
    held = ["data.held_out=val", "data.held_out_samples=2"]
    built = build_generator_training(compose_config("train_generator", [*only, *held]))
    task, model, given = built["task"], built["state"].model, []
    assert model.config.tasks == ("prefix-2",) and model.config.needs_video
    generate = model.generate

    def watched(batch, label, prefix, **options):
        given.append(prefix)
        return generate(batch, label, prefix, **options)

    model.generate = watched
    assert task.draw(model).shape[0] == 3
    begin = task.encoded(task.held_out)["ids"][:, :2]
    assert torch.equal(given[0], begin[[0, 1, 0]])


def test_an_unlabeled_clip_agrees_with_nothing():
    class Head:
        config = SimpleNamespace(name="head", classes=["a", "b"], input={"kind": "tokens"})

        def validate_uncropped(self):
            pass

        def __call__(self, ids):
            return F.one_hot(ids[:, 0, 0, 0], 2)

    judge = ClassAgreement(Head(), ["a", "b"], None)
    judge.update(torch.ones(3, 1, 1, 1, dtype=torch.long), torch.tensor([-1, 1, -1]))
    assert judge.agreement()["n"] == 1 and judge.agreement()["value"] == 1
    judge.update(torch.ones(1, 1, 1, 1, dtype=torch.long), torch.tensor([-1]))
    assert judge.n == 1


def test_agreement_goes_by_the_names_of_classes():
    class Head:
        """Sees the class number that is the first id."""

        def __init__(self, kind="tokens"):
            self.config = SimpleNamespace(name="head", classes=["b", "c", "a"], input={"kind": kind})

        def validate_uncropped(self):
            pass

        def __call__(self, ids):
            return F.one_hot(ids[:, 0, 0, 0], 3)

    ids = torch.tensor([2, 0, 1, 1]).view(4, 1, 1, 1)
    decoder = SimpleNamespace(decode=lambda ids: (ids + 1) % 3)
    for kind, share in (("tokens", 0.75), ("pixels", 0.25)):
        judge = ClassAgreement(Head(kind), ["a", "b", "c"], decoder)
        for part in (slice(0, 3), slice(3, 4)):
            judge.update(ids[part], torch.tensor([0, 1, 2, 0])[part])
        found = judge.agreement()
        assert found["value"] == share and found["n"] == 4
        assert found["classes"] == ({"a": 0.5, "b": 1, "c": 1} if kind == "tokens" else {"a": 0.5, "b": 0, "c": 0})
    with pytest.raises(ValueError, match="no class 'd'"):
        ClassAgreement(Head(), ["d"], decoder)
    with pytest.raises(ValueError, match="reads hidden"):
        ClassAgreement(Head("hidden"), ["a"], decoder)


def test_the_comparison_runs_to_a_table_and_goes_on_where_it_was(tmp_path, capsys):
    tokenizer = VideoTokenizer.from_pretrained("vidtok-t")
    head = make_head(
        HeadConfig("tiny", {"kind": "linear"}, {"kind": "tokens", "patch_merge": 1, "bits": 18}, (3, 4, 4), 9)
    )
    head.record(tokenizer={"name": "vidtok-t", "weight_hash": tokenizer.weight_hash})
    head.save_pretrained(tmp_path / "head")
    run = tmp_path / "compare"
    arguments = [
        "eval",
        "generation-compare",
        *SMALL,
        "samples=0",
        "trainer.max_steps=2",
        f"recognizer={tmp_path / 'head'}",
        'training.masked=["optimizer.lr=0.003"]',
    ]
    arguments += [
        "n_fake=4",
        "n_real=20",
        "folds=1",
        "other_split=null",
        "steps={masked: [2], autoregressive: [null], diffusion: [2]}",
    ]
    assert main([*arguments, f"run={run}"]) == 0
    result = json.loads((run / "result.json").read_text())
    kinds = [row["generator"]["kind"] for row in result["rows"]]
    assert kinds == ["masked", "autoregressive", "diffusion"] and result["rows"][1]["steps"] == 48
    sizes = [row["generator"]["parameters"] for row in result["rows"]]
    assert all(result["training"][kind]["samples"] == 4 for kind in kinds) and len(sizes) == 3
    assert {p.name for p in run.glob("*.png")} == {"chart.png", "masked.png", "autoregressive.png", "diffusion.png"}
    page = (run / "page.html").read_text()
    assert page.count("<video") == 3 * 18 and "autoregressive, 48 steps" in page and "of each row, agreement" in page
    table = (run / "table.md").read_text()
    assert table.count("\n") == 7
    assert "split train, 20 real clips, 1 x 4 generated ones of each row, agreement by tiny, weights" in table
    before = {p: p.stat().st_mtime_ns for p in (run / "measured").iterdir()}
    assert len(before) == 4
    rates = [OmegaConf.load(run / kind / "config.yaml").optimizer.lr for kind in kinds]
    assert rates[0] == 0.003 != rates[1] and rates[1] == rates[2]  # a setting of one kind alone
    (run / "measured" / "diffusion-2.json").unlink()
    assert main([*arguments, f"run={run}"]) == 0
    after = {p: p.stat().st_mtime_ns for p in (run / "measured").iterdir()}
    assert before.keys() == after.keys() and sum(before[p] != after[p] for p in before) == 1
    capsys.readouterr()
    for other, message in (
        ("n_fake=5", "filled with another n_fake (4)"),
        ("trainer.max_steps=3", "filled with another trainer"),
        ("convention=magvit", "unknown convention 'magvit'"),
        ("i3d=nothing.safetensors", "no weights at nothing.safetensors; FVD needs"),
        ("recognizer=null", "nothing to measure: give i3d=FILE or recognizer=NAME"),
    ):
        assert main([*arguments, f"run={run}", other]) == 1
        error = capsys.readouterr().err
        assert error.startswith("vidtok: ") and message in error and error.count("\n") == 1
    head.reset_classifier(9)
    head.save_pretrained(tmp_path / "head")  # another judge of the same name
    assert main([*arguments, f"run={run}"]) == 1
    assert "filled with another detectors" in capsys.readouterr().err
    settings = ["settings.masked.temperature=-1", "kinds=[masked]", f"run={tmp_path / 'other'}"]
    assert main([*arguments, *settings]) == 1 and "temperature is at least 0" in capsys.readouterr().err
    for wrong, message in (
        (["data.classes=[]"], "the classes that they are asked to be: masked has none"),
        (["convention=magvit-k600"], "asked to be: the convention gives frames instead"),
        (["settings.masked.temperature=warm"], "temperature is a number, not 'warm'"),
        (["data.classes=[]", "settings.masked.guidance=3"], "guidance needs classes"),
        (["convention=magvit-k600", "settings.masked.guidance=3"], "guidance needs classes, and this convention gives"),
    ):
        own = tmp_path / f"wrong-{len(wrong)}-{len(message)}"
        assert main([*arguments, "kinds=[masked]", f"run={own}", *wrong]) == 1
        assert message in capsys.readouterr().err and not (own / "masked" / "checkpoint.pt").exists()
    for number, (wrong, message) in enumerate((
        (["real=nowhere"], "nowhere"),
        (["other_split=nonsense"], "is not 'train' or 'val'"),
        (["kinds=[masked,foo]"], "unknown kind 'foo'"),
        (["kinds=[masked,diffusion]", "settings.diffusion.solver=foo"], "unknown solver 'foo'"),
        (["n_fake=0"], "n_fake=0 is no number of at least 1"),
        (["folds=0"], "folds=0 is no number of at least 1"),
        (["sample_batch=0"], "sample_batch a number of at least 1"),
        (["steps.masked=4"], "steps.masked is a list of numbers such as [12]"),
        (["steps.masked=[a]"], "steps.masked is a list of numbers such as [12]"),
        (["convention=magvit-ucf"], "the convention scores 16 frames, and clips have 9"),
    )):  # fmt: skip
        own = tmp_path / f"early-{number}"
        assert main([*arguments, "kinds=[masked]", f"run={own}", *wrong]) == 1
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("vidtok: ") and message in error and not own.exists()


def tokenizer_folder(folder, quantizer):
    """Save an untrained tokenizer of 6 bits."""
    config = replace(VideoTokenizer.from_pretrained("vidtok-t").config, name=folder.name, quantizer=quantizer)
    config.net["width"] = 16
    torch.manual_seed(0)
    VideoTokenizer(config).save_pretrained(folder)
    return str(folder)


def test_controls_and_seeds_of_a_comparison(tmp_path, capsys):
    """Quantizers of equal bits under one masked model, factorization off, diffusion on latents; seeds can be added."""
    quantizers = {
        "lfq": {"kind": "lfq", "bits": 6}, "vq": {"kind": "vq", "size": 64, "dim": 6},
        "fsq": {"kind": "fsq", "levels": [8, 8]},
    }  # fmt: skip
    paths = {name: tokenizer_folder(tmp_path / name, quantizer) for name, quantizer in quantizers.items()}
    head = create_head("linear", "pixels", 9, (3, 4, 4))
    head.save_pretrained(tmp_path / "head")
    variants = {name: {"kind": "masked", "training": [f"tokenizer={paths[name]}"]} for name in ("vq", "fsq")}
    variants["whole"] = {"kind": "masked", "training": ["generator.arguments.factors=1"]}
    variants["next"] = {"kind": "autoregressive", "training": ["generator.arguments.factors=1"]}
    variants["learned"] = {"kind": "masked", "training": ["generator.arguments.positions=learned"]}
    run = tmp_path / "compare"
    settings = {
        "tokenizer": paths["lfq"], "data": {"source": "digits", "frames": 9, "size": 32, "batch_size": 2},
        "size": {"width": 32, "depth": 1, "heads": 2}, "trainer": {"workers": 0}, "samples": 0,
        "recognizer": str(tmp_path / "head"), "n_real": 8, "n_fake": 4, "folds": 1, "variants": variants,
        "kinds": ["masked", "diffusion", "vq", "fsq", "whole", "next", "learned"],
        "steps": {"masked": [2], "diffusion": [2], "autoregressive": [None]}, "run": str(run),
    }  # fmt: skip
    masked = create_generator(from_pretrained_config(settings))
    settings["max_flops"] = 2.5 * 2 * training_flops(masked)
    result = compare(**settings, log=lambda line: None)
    assert [row["name"] for row in result["rows"]] == settings["kinds"]
    assert result["training"]["masked"]["steps"] == result["training"]["vq"]["steps"] == 2
    assert result["training"]["masked"]["flops"] == 4 * training_flops(masked)
    hashes = {row["name"]: row["generator"]["tokenizer"]["weight_hash"] for row in result["rows"]}
    assert hashes["masked"] == hashes["diffusion"] == hashes["whole"] and len({*hashes.values()}) == 3
    assert from_pretrained(run / "whole" / "model").embed.sizes == [64, 1]
    assert not {"factors", "positions"} & from_pretrained(run / "masked" / "model").config.arguments.keys()
    assert from_pretrained(run / "learned" / "model").trunk.rotary is None
    assert result["other_limits"].keys() == {"vq", "fsq"} and "frd_reconstruction" in result["other_limits"]["vq"]
    assert all("frd_to_reconstructions" in row["metrics"] for row in result["rows"]) and "over_seeds" not in result
    before = {p: p.stat().st_mtime_ns for p in (run / "measured").iterdir()}

    del settings["max_flops"]
    for wrong, message in (
        ({"seeds": [1, 1]}, "seeds is a list of different numbers"),
        ({"variants": {"masked": {"kind": "masked"}}}, "its name is that of a kind"),
        ({"variants": {"x": {"kind": "mask"}}}, "no kind 'mask'"),
        ({"variants": {"x": {"kin": "masked"}}}, "variants.x is {kind: KIND"),
        ({"kinds": ["masked", "v"]}, "unknown kind 'v'"),
        ({"variants": variants | {"long": {"kind": "masked", "training": ["data.frames=5"]}}, "kinds": ["vq", "long"]},
         "long makes clips of 5 x 32 x 32, and vq of 9 x 32 x 32"),
        ({"max_flops": -1.0}, "max_flops is a number above 0"),
    ):  # fmt: skip
        with pytest.raises((ValueError, UserError), match=re.escape(message)):
            compare(**settings | {"trainer": {"max_steps": 2}, "run": str(tmp_path / "wrong")} | wrong)

    settings |= {"max_flops": 2.5 * 2 * training_flops(masked), "seeds": [0, 1], "kinds": ["masked", "vq"]}
    result = compare(**settings, log=lambda line: None)
    assert [row["run"] for row in result["rows"]] == ["masked", "masked-seed1", "vq", "vq-seed1"]
    assert all(p.stat().st_mtime_ns == time for p, time in before.items())
    first, second = (read_weights(run / name) for name in ("masked", "masked-seed1"))
    assert any(not torch.equal(first[name], second[name]) for name in first)
    average = result["over_seeds"][0]["metrics"]["frd"]
    assert average["seeds"] == [row["metrics"]["frd"]["mean"] for row in result["rows"][:2]]
    assert average["mean"] == pytest.approx(sum(average["seeds"]) / 2) and len(average["folds"]) == 2
    table = (run / "table.md").read_text()
    shown = markdown_table(result | {"limits": result["limits"] | {"frd_repeated": {"value": 7.25, "n": 4}}})
    assert "| last given frame repeated |" in shown and "| 7.25 |" in shown
    assert "| generator | seeds | parameters | trained, s | training FLOPs |" in table and "| masked | 2 |" in table
    assert "reconstructions of those, tokenizer of vq" in table


def from_pretrained_config(settings):
    """The config of the masked generator that these settings of a comparison train."""
    own = {key: settings[key] for key in ("tokenizer", "data", "size", "samples")}
    cfg = compose_config("train_generator", own | {"trainer": {"max_steps": 1}})
    return build_generator_training(cfg)["state"].model.config


def read_weights(run):
    return load_file(run / "model" / "model.safetensors")


def with_variant(result, setting):
    return with_config(result, variants={"whole": {"kind": "masked", "training": [f"generator.arguments.{setting}"]}})


def with_config(result, **settings):
    return {**result, "config": result["config"] | settings}


def renamed(result):
    """The same training under another name, as by seed=1 seeds=[0]."""
    rows = [{**row, "run": f"{row['run']}-seed0"} for row in result["rows"]]
    return {**result, "rows": rows, "training": {f"{name}-seed0": facts for name, facts in result["training"].items()}}


def test_comparisons_of_several_machines_are_merged(capsys, monkeypatch, tmp_path):
    path = tokenizer_folder(tmp_path / "lfq", {"kind": "lfq", "bits": 6})
    create_head("linear", "pixels", 9, (3, 4, 4)).save_pretrained(tmp_path / "head")
    settings = {
        "tokenizer": path, "data": {"source": "digits", "frames": 9, "size": 32, "batch_size": 2},
        "size": {"width": 32, "depth": 1, "heads": 2}, "trainer": {"workers": 0, "max_steps": 1}, "samples": 0,
        "recognizer": str(tmp_path / "head"), "n_real": 8, "n_fake": 4, "folds": 1, "kinds": ["masked"],
        "steps": {"masked": [2]},
    }  # fmt: skip
    calls = {"a": {"seeds": [0]}, "b": {"seeds": [1]}, "both": {"seeds": [0, 1]}, "other": {"seeds": [1], "n_fake": 8}}
    results = {}
    for name, own in calls.items():
        results[name] = compare(**settings | own, run=str(tmp_path / name), log=lambda line: None)
    a, b, both, other = results.values()
    merged = merge_results([a, b])
    assert merged["limits"] == a["limits"] == b["limits"] and merged["training"].keys() == both["training"].keys()
    assert [row["metrics"] for row in merged["rows"]] == [row["metrics"] for row in both["rows"]]
    assert merged["over_seeds"][0]["metrics"] == both["over_seeds"][0]["metrics"] and "verdict" not in merged
    monkeypatch.setattr("sys.argv", ["markdown", *(str(tmp_path / name / "result.json") for name in "ab")])
    markdown.main()
    assert capsys.readouterr().out.strip() == markdown.generation_table(merged)
    uniform = {"kind": "masked", "arguments": a["config"]["generator"]["arguments"] | {"schedule": "uniform"}}
    elsewhere = with_config(b, data=b["config"]["data"] | {"cache": "/scratch"}, real_root="/data", i3d="/i3d")
    assert merge_results([a, elsewhere])["rows"] == merged["rows"]
    for wrong, message in (
        ([a, a], "two of the comparisons trained masked with seed 0: train other seeds or kinds"),
        ([a, renamed(a)], "two of the comparisons trained masked with seed 0"),
        ([a, with_config(b, generator=uniform)], "the same generator.arguments.schedule, and these have cosine and"),
        ([a, with_config(b, data=b["config"]["data"] | {"size": 64})], "the same data.size, and these have 32 and 64"),
        ([], "no comparisons to merge"),
        ([{"schema": "vidtok.eval.generation/1"}], "results of schema 'vidtok.eval.generation-compare/1' are merged"),
        ([a, other], "the same n_fake, and these have 4 and 8"),
        ([a, {key: value for key, value in b.items() if key != "tokenizer"}], "of earlier versions"),
        ([a, {**b, "tokenizer": {"name": "lfq", "weight_hash": "0"}}], "the same tokenizer"),
        ([with_variant(a, "factors=1"), with_variant(b, "factors=2")], "the same variants.whole.training, and these"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            merge_results(wrong)


def test_rows_are_averaged_over_seeds():
    def row(seed, steps, fvd, right):
        share = {"value": right / 8, "low": 0.1, "high": 0.9, "n": 8}
        fvd = {"mean": sum(fvd) / len(fvd), "deviation": 1.0, "folds": fvd}
        metrics = {"fvd": fvd, "agreement": share}
        return {"generator": {"kind": "masked", "parameters": 7}, "metrics": metrics, "steps": steps, "seed": seed,
                "name": "masked", "run": f"masked-{seed}", "seconds_per_clip": seed + 1.0}  # fmt: skip

    rows = [row(0, 4, [10.0, 12.0], 4), row(1, 4, [14.0, 16.0], 8), row(0, 8, [9.0, 9.0], 4)]
    average, single = over_seeds(rows)
    assert single is rows[2] and average["runs"] == ["masked-0", "masked-1"] and average["seconds_per_clip"] == 1.5
    fvd, agreement = average["metrics"]["fvd"], average["metrics"]["agreement"]
    assert (fvd["mean"], fvd["seeds"], fvd["folds"]) == (13, [11, 15], [10, 12, 14, 16])
    assert fvd["deviation"] == pytest.approx(8**0.5)
    assert (agreement["value"], agreement["n"], agreement["seeds"]) == (0.75, 16, [0.5, 1.0])
    assert agreement["low"] == pytest.approx(wilson_interval(12, 16)[0])
    rows[0]["metrics"]["frd"] = fvd  # the other seed was measured by an earlier version
    assert over_seeds(rows)[0]["metrics"].keys() == {"fvd", "agreement"}
    training = {f"masked-{seed}": {"seconds": 10.0 * seed, "samples": 8, "flops": 2e9} for seed in (0, 1)}
    lines = markdown_table({"rows": rows[:2], "training": training, "limits": {}}).splitlines()
    assert lines[2] == "| masked | 2 | 7 | 5 | 2e+09 | 8 | 4 | 1.5 | 13.0 ± 2.8 | 75.0 ± 35.4 |"


def test_a_verdict_needs_folds_that_do_not_touch():
    def row(kind, folds):
        fvd = {"mean": sum(folds) / len(folds), "deviation": None, "folds": folds}
        generator = {"kind": kind, "parameters": 1000}
        return {"generator": generator, "metrics": {"fvd": fvd}, "steps": 1, "seconds_per_clip": 0.5}

    few, other = [10, 11, 12, 12], [13, 14, 20, 20]
    assert verdict([row("masked", few), row("diffusion", other)]).startswith("masked beats diffusion")
    assert verdict([row("masked", [10, 11, 12, 14]), row("diffusion", other)]).startswith("no difference")
    assert verdict([row("masked", few[:3]), row("diffusion", other[:3])]).startswith("3 folds don't tell")
    assert verdict([row("masked", [30, 31, 32, 33]), row("diffusion", other)]).startswith("diffusion beats")
    best = [row("masked", [50, 60, 50, 60]), row("masked", few), row("diffusion", other)]
    assert verdict(best).startswith("masked beats")
    training = {kind: {"seconds": 60.0, "samples": 8} for kind in ("masked", "diffusion")}
    limits = {"fvd_floor": {"value": 1.0, "n": 5}, "fvd_reconstruction": {"value": 2.0, "n": 5}}
    table = markdown_table({"rows": best, "training": training, "limits": limits})
    assert len(table.splitlines()) == 7 and "| masked | 1,000 | 60 | 8 | 1 | 0.5 | 11.2 |  |" in table
    best[1]["metrics"]["frd_recall"] = {"mean": 0.25, "deviation": 0.125, "low": 0.1, "high": 0.5, "n": 8}
    limits |= {"frd_recall_floor": {"value": 0.75, "n": 5}, "frd_recall_reconstruction": {"value": 0.5, "n": 5}}
    lines = markdown_table({"rows": best, "training": training, "limits": limits}).splitlines()
    assert "| FVD | recall (recognizer) | agreement, % |" in lines[0] and "| 11.2 | 0.25 ± 0.12 |  |" in lines[3]
    assert lines[5].endswith("| 1.0 | 0.75 |  |") and lines[6].endswith("| 2.0 | 0.50 |  |")


def test_a_backbone_is_no_judge():
    with pytest.raises(ValueError, match="'clips-tokens' is a backbone, without classes"):
        load_head("clips-tokens", VideoTokenizer.from_pretrained("vidtok-t"), torch.device("cpu"))
