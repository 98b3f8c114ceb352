"""`vidtok.generator.generate` and `generate_files`: from a trained generator to clips."""

import numpy as np
import pytest
import torch

import vidtok
from vidtok.errors import UserError
from vidtok.extraction import read_npz
from vidtok.generator import GeneratorConfig, create_generator, generate, generate_files


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
        ({"top_k": 3}, "masked sampling has no 'top_k'"),
    ],
)
def test_wrong_settings_are_told_before_the_sampling(settings, wrong, message):
    with pytest.raises((UserError, ValueError), match=message):
        generate(**settings, **wrong)
