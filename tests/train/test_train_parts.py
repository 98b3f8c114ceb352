"""A batch taken in parts, by one process or several, comes out as the whole."""

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vidtok.cli.main import main
from vidtok.datasets import DigitClips, MovingDigits
from vidtok.generator.training import ClipBatches
from vidtok.train.loop import samples, shard_of

TINY = ["data=digits", "data.crop=32", "data.frames=5", "data.batch_size=8", "data.image_batch_size=8"]
TINY += ["model.net.width=16", "model.net.blocks=1", "model.net.decoder_blocks=1", "loss=magvit2", "loss.perceptual=0"]
TINY += [
    "discriminator.base=4",
    "discriminator.channel_multipliers=[2,2]",
    "trainer.log_seconds=0",
    "trainer.max_steps=4",
]


def run(folder, *overrides):
    """What a run of four steps leaves: (checkpoint, scalars by name)."""
    assert main(["train", "tokenizer", f"run={folder}", *TINY, *overrides]) == 0
    events = EventAccumulator(str(folder / "scalars")).Reload()
    scalars = {name: [e.value for e in events.Scalars(name)] for name in events.Tags()["scalars"]}
    return torch.load(folder / "checkpoint.pt", weights_only=True), scalars


def test_parts_of_nested_batches():
    batch = {"x": torch.arange(6), "more": (torch.arange(12).view(6, 2), torch.zeros(6))}
    part = shard_of(batch, (1, 3))
    assert samples(batch) == 6 and samples(part) == 2
    assert part["x"].tolist() == [2, 3] and part["more"][0].tolist() == [[4, 5], [6, 7]]
    with pytest.raises(ValueError, match="a batch of 6 doesn't divide into 4 equal parts"):
        shard_of(batch, (0, 4))


def test_parts_of_digits_are_slices():
    digits = DigitClips(frames=5, crop=16, batch_size=4)
    for number in (0, 9):  # videos, images
        parts = [next(digits.loader(start=number, shard=(i, 2))) for i in range(2)]
        assert torch.equal(torch.cat(parts), digits[number])
    for batch, number in zip(digits.loader(start=8, workers=2), (8, 9, 10), strict=False):
        assert torch.equal(batch, digits[number])
    with pytest.raises(ValueError, match="a batch of 4 doesn't divide into 3 equal parts"):
        digits.loader(shard=(0, 3))


@pytest.mark.parametrize("fraction, images", [(0.1, [9]), (0.5, [1, 3, 5, 7, 9]), (0.0, []), (1.0, [*range(10)])])
def test_image_fraction_of_digits(fraction, images):
    batches = DigitClips(frames=5, crop=16, batch_size=1, image_fraction=fraction)
    assert [i for i in range(10) if batches[i].shape[2] == 1] == images


def test_parts_of_labeled_clips_are_slices():
    batches = ClipBatches(MovingDigits("train", 5, 16), batch_size=4)
    whole, parts = batches[3], [next(batches.loader(start=3, shard=(i, 2))) for i in range(2)]
    for name, value in whole.items():
        assert torch.equal(torch.cat([part[name] for part in parts]), value)


def test_accumulated_gradients_are_those_of_the_batch(tmp_path):
    """All terms but LFQ's entropy are means over clips, and FSQ has none."""
    whole, scalars = run(tmp_path / "whole", "quantizer=fsq")
    parts, scalars_of_parts = run(tmp_path / "parts", "quantizer=fsq", "trainer.accumulate=4")
    for part in ("model", "critic"):
        for name, value in whole[part].items():
            assert torch.allclose(value, parts[part][name], atol=1e-5), name
    for name in ("reconstruction", "gradient_norm", "adversarial", "discriminator", "r1", "lecam", "critic_norm"):
        assert scalars_of_parts[name] == pytest.approx(scalars[name], rel=2e-3, abs=1e-7), name


def test_checkpointed_activations_change_nothing(tmp_path):
    plain, _ = run(tmp_path / "plain", "trainer.max_steps=2")
    saved, _ = run(tmp_path / "saved", "trainer.max_steps=2", "trainer.checkpoint_activations=true")
    assert all(torch.equal(value, saved["model"][name]) for name, value in plain["model"].items())


def test_the_codebook_entropy_is_that_of_a_part(tmp_path):
    """The mean over parts, each of which shows fewer codes than the batch: the documented difference."""
    _, whole = run(tmp_path / "whole")
    _, parts = run(tmp_path / "parts", "trainer.accumulate=4")
    assert parts["entropy_per_sample"][0] == pytest.approx(whole["entropy_per_sample"][0], rel=1e-4)
    assert parts["entropy_codebook"][0] < whole["entropy_codebook"][0]
