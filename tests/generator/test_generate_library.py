"""`vidtok.generator.generate` and `generate_files`: from a trained generator to clips."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import vidtok
from vidtok.errors import UserError
from vidtok.extraction import read_npz
from vidtok.generator import GeneratorConfig, create_generator, generate, generate_files
from vidtok.generator.run import known_tokens, plan_mask, read_around


@pytest.fixture(scope="module")
def settings(tokenizer_path, tmp_path_factory):
    """Of a generator that was never trained: model, tokenizer, device, steps."""
    tokenizer = vidtok.VideoTokenizer.from_pretrained(tokenizer_path)
    torch.manual_seed(0)
    generator = create_generator(
        GeneratorConfig(
            "tiny", "masked", "tiny", tokenizer.weight_hash, round(tokenizer.bits), (2, 2, 3), tokenizer.stride,
            classes=("left", "right up"), width=16, depth=1, heads=2,
        )
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("generator")
    generator.save_pretrained(folder)
    return {"model": str(folder), "tokenizer": tokenizer_path, "device": "cpu", "steps": 2}


def test_clips_in_memory(settings):
    clips = generate(number=3, seed=1, batch=2, **settings)
    assert len(clips) == 3 and clips.names == ["left-0000", "right_up-0001", "left-0002"] and clips.fps == 25
    first = list(clips)
    assert [clip.name for clip in first] == clips.names
    assert [clip.label for clip in first] == ["left", "right up", "left"]
    assert all(clip.ids.shape == (2, 2, 3) and clip.video.shape == (3, 5, 16, 24) for clip in first)
    tokenizer = vidtok.VideoTokenizer.from_pretrained(settings["tokenizer"])
    assert torch.equal(tokenizer.decode(first[0].ids[None])[0], first[0].video)
    # A clip depends on the seed and its number alone.
    again = list(generate(number=3, seed=1, batch=1, **settings))
    assert all(torch.equal(a.ids, b.ids) for a, b in zip(first, again, strict=True))
    assert [clip.label for clip in generate(labels=1, **settings)] == ["right up"]
    assert [clip.label for clip in generate(free=True, number=1, **settings)] == [None]


def test_clips_that_go_on_from_a_video(settings, tmp_path):
    vidtok.write_video(tmp_path / "a.mp4", vidtok.datasets.demo_clip(5, 64)[..., :16, :24], 25)
    (clip,) = generate(prefix=tmp_path / "a.mp4", prefix_frames=1, free=True, **settings)
    tokenizer = vidtok.VideoTokenizer.from_pretrained(settings["tokenizer"])
    given = vidtok.read_video(tmp_path / "a.mp4", size=None)[:, :, :1]
    assert torch.equal(clip.ids[:1], tokenizer.encode(given)[0])
    vidtok.write_video(tmp_path / "slow.mp4", vidtok.datasets.demo_clip(5, 64)[..., :16, :24], 10)
    assert generate(prefix=tmp_path / "slow.mp4", prefix_frames=1, **settings).fps == 10
    assert generate(prefix=tmp_path / "slow.mp4", prefix_frames=1, fps=5, **settings).fps == 5


def test_clips_from_nothing_of_a_model_that_was_trained_to_go_on(settings, tmp_path, recwarn):
    config = vidtok.generator.from_pretrained(settings["model"]).config
    for name, tasks in (("given", ("prefix-1", "inpainting")), ("any", ("none", "prefix"))):
        create_generator(replace(config, tasks=tasks)).save_pretrained(tmp_path / name)
        assert vidtok.generator.from_pretrained(tmp_path / name).config.tasks == tasks
    vidtok.write_video(tmp_path / "a.mp4", vidtok.datasets.demo_clip(5, 64)[..., :16, :24], 25)
    generate(**settings | {"model": str(tmp_path / "given")}, prefix=tmp_path / "a.mp4", prefix_frames=1)
    for model in (settings["model"], tmp_path / "any"):
        generate(**settings | {"model": str(model)})
    assert not [each for each in recwarn.list if "trained on" in str(each.message)]
    with pytest.warns(UserWarning, match="tiny was trained on prefix-1, inpainting alone: give a video"):
        generate(**settings | {"model": str(tmp_path / "given")})


def test_a_wrong_head_fails_before_clips_are_sampled(settings, tmp_path):
    seen = []
    with pytest.raises(ValueError, match="no-such-head"):
        generate_files(
            output=tmp_path / "x.html", head="no-such-head", report=lambda *_: seen.append(1), number=1, **settings
        )
    assert not seen and not [*tmp_path.iterdir()]


@pytest.fixture
def clip_of_5(tmp_path):
    vidtok.write_video(tmp_path / "a.mp4", vidtok.datasets.demo_clip(5, 64)[..., :16, :24], 25)
    return tmp_path / "a.mp4"


@pytest.mark.parametrize(
    "task, mask, kept",
    [
        ("interpolate", "1:3", [[[1, 1, 1], [1, 1, 1]], [[0, 0, 0], [0, 0, 0]]]),
        ("inpaint", "0:8,8:17", [[[1, 0, 0], [1, 1, 1]]] * 2),
        ("outpaint", ":,8:16", [[[0, 1, 0], [0, 1, 0]]] * 2),
    ],
)
def test_what_is_kept_of_a_video_has_seen_nothing_of_the_rest(settings, clip_of_5, monkeypatch, task, mask, kept):
    config = vidtok.generator.from_pretrained(settings["model"]).config
    kept = torch.tensor(kept, dtype=torch.bool)
    anew_THW = plan_mask(task, mask, config)
    assert torch.equal(known_tokens(anew_THW, config.stride), kept)
    (clip,) = generate(task=task, video=clip_of_5, mask=mask, free=True, **settings)
    tokenizer = vidtok.VideoTokenizer.from_pretrained(settings["tokenizer"])
    ids = read_around([clip_of_5], anew_THW, tokenizer, config)
    assert torch.equal(clip.ids[kept], ids[0][kept])
    changed = vidtok.read_video(clip_of_5, size=None)
    changed[:, :, anew_THW] = 0.7
    monkeypatch.setattr("vidtok.generator.run.read_video", lambda *_: changed)
    assert torch.equal(read_around([clip_of_5], anew_THW, tokenizer, config), ids)


@pytest.fixture(scope="module")
def longer(settings, tmp_path_factory):
    """Settings of a generator of three latent frames, whose windows slide, and a clip of 21 frames."""
    config = vidtok.generator.from_pretrained(settings["model"]).config
    folder = tmp_path_factory.mktemp("longer")
    create_generator(replace(config, grid=(3, 2, 3))).save_pretrained(folder)
    vidtok.write_video(folder / "a.mp4", vidtok.datasets.demo_clip(21, 64)[..., :16, :24], 25)
    return settings | {"model": str(folder), "video": folder / "a.mp4", "free": True}


@pytest.mark.parametrize("task, mask", [("inpaint", "0:8,8:17"), ("outpaint", ":,8:16"), ("interpolate", "9:17")])
def test_tasks_slide_over_longer_videos(longer, task, mask):
    (clip,) = generate(task=task, mask=mask, frames=21, **longer)
    config = vidtok.generator.from_pretrained(longer["model"]).config
    anew_THW = plan_mask(task, mask, config, 21)
    kept = known_tokens(anew_THW, config.stride)
    tokenizer = vidtok.VideoTokenizer.from_pretrained(longer["tokenizer"])
    ids = read_around([longer["video"]], anew_THW, tokenizer, config)
    assert clip.ids.shape == (6, 2, 3) and clip.video.shape == (3, 21, 16, 24)
    assert torch.equal(clip.ids[kept], ids[0][kept]) and not torch.equal(clip.ids[~kept], ids[0][~kept])


def test_a_prefix_may_be_longer_than_a_window(longer):
    (clip,) = generate(task="predict", prefix_frames=13, frames=21, **longer)
    tokenizer = vidtok.VideoTokenizer.from_pretrained(longer["tokenizer"])
    given = vidtok.read_video(longer["video"], size=None)[:, :, :13]
    assert clip.ids.shape == (6, 2, 3) and torch.equal(clip.ids[:4], tokenizer.encode(given)[0])


def test_autoregressive_generators_fill_no_mask(settings, tmp_path):
    config = vidtok.generator.from_pretrained(settings["model"]).config
    create_generator(replace(config, kind="autoregressive")).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="--task inpaint needs a masked or diffusion generator"):
        generate(task="inpaint", video="a.mp4", **settings | {"model": str(tmp_path), "steps": None})


def test_a_mask_is_an_image_of_the_clip(settings, clip_of_5, tmp_path):
    image = torch.full((1, 3, 1, 16, 24), -1.0)
    image[..., :8] = 1.0
    vidtok.write_video(tmp_path / "mask.png", image, 1)
    config = vidtok.generator.from_pretrained(settings["model"]).config
    expected = plan_mask("inpaint", ":,0:8", config)
    assert torch.equal(plan_mask("inpaint", str(tmp_path / "mask.png"), config), expected)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"task": "inpant", "video": "a.mp4"}, "unknown task 'inpant': did you mean 'inpaint'"),
        ({"task": "inpaint"}, "--task inpaint needs a video"),
        ({"video": "a.mp4"}, "--video is kept by --task"),
        ({"task": "inpaint", "prefix": "a.mp4"}, "--prefix goes on by --task predict"),
        ({"task": "predict", "video": "a.mp4", "mask": "0:1"}, "--mask is of --task interpolate"),
        ({"task": "inpaint", "video": "a.mp4", "mask": "none.png"}, "--mask 'none.png' is no image and no range"),
        ({"task": "inpaint", "video": "a.mp4", "mask": "0:20,0:8"}, "--mask 0:20,0:8: want a range within 0:16 rows"),
        ({"task": "interpolate", "video": "a.mp4", "mask": "3:2"}, "want a range within 0:5 frames"),
        ({"task": "inpaint", "video": "a.mp4", "mask": torch.ones(3, 3)}, r"a mask is bool \[5, 16, 24\]"),
        ({"task": "inpaint", "video": "a.mp4"}, "leaves nothing to keep, as a token has 4 x 8 x 8 pixels"),
        ({"task": "predict", "video": "a.mp4", "prefix_frames": 5}, "--prefix-frames 5 leaves nothing .* at most 1"),
    ],
)
def test_tasks_that_are_not_possible(settings, wrong, message):
    with pytest.raises(UserError, match=message):
        generate(free=True, **wrong, **settings)


def test_clips_in_files(settings, tmp_path):
    done = []
    report = lambda count, number: done.append((count, number))  # noqa: E731
    clips = generate_files(output=tmp_path / "new", labels=["left"], number=2, tokens=True, report=report, **settings)
    assert done == [(0, 2), (1, 2), (2, 2)]
    names = sorted(file.name for file in (tmp_path / "new").iterdir())
    assert names == ["left-0000.mp4", "left-0000.npz", "left-0001.mp4", "left-0001.npz"]
    record = read_npz(tmp_path / "new/left-0001.npz")[0]
    assert record.label == "left" and np.array_equal(record.features, list(clips)[1].ids.numpy())
    with pytest.raises(UserError, match=r"left-0000\.mp4 exists"):
        generate_files(output=tmp_path / "new", labels=["left"], **settings)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"labels": "up"}, "no class 'up'"),
        ({"labels": "left", "free": True}, "not both"),
        ({"frames": 8}, "1 \\+ 4k frames, not 8"),
        ({"frames": 1}, "a model of 2 latent frames makes at least so many"),
        ({"top_k": 3}, "masked sampling has no 'top_k'"),
    ],
)
def test_wrong_settings_are_told_before_the_sampling(settings, wrong, message):
    with pytest.raises((UserError, ValueError), match=message):
        generate(**settings, **wrong)
