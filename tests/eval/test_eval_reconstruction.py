import json
from collections import Counter

import pytest
import torch

from vidtok.datasets import MovingDigits, write_video
from vidtok.eval import (
    block_mean_baseline,
    clip_protocol,
    evaluate_reconstruction,
    format_table,
    psnr,
    validation_clips,
)
from vidtok.eval.reconstruction import evaluate as evaluate_files
from vidtok.eval.reconstruction.run import SCHEMA, digit_clips

PROTOCOL = clip_protocol("synthetic", split="val", frames=5, size=16)


class GrayTokenizer:
    """One of 256 gray levels per cell of a 4x8x8 grid; refuses clips that are entirely white."""

    stride, bits = (4, 8, 8), 8

    def encode(self, video):
        if (video == 1).flatten(1).all(1).any():
            raise ValueError("white clip")
        cells = block_mean_baseline(video).mean(1)[:, ::4, 4::8, 4::8]
        return ((cells + 1) * 127.5).round().long()

    def decode(self, ids):
        gray = (ids / 127.5 - 1).repeat_interleave(8, 2).repeat_interleave(8, 3)
        video = torch.cat([gray[:, :1], gray[:, 1:].repeat_interleave(4, 1)], 1)
        return video[:, None].expand(-1, 3, -1, -1, -1)


def clips(n: int, frames: int = 5):
    generator = torch.Generator().manual_seed(0)
    return [(f"clip{i}", torch.rand(1, 3, frames, 16, 16, generator=generator) * 1.6 - 0.8) for i in range(n)]


def evaluate(videos, **options):
    return evaluate_reconstruction(GrayTokenizer(), videos, name="gray", protocol=PROTOCOL, **options)


def test_result_schema():
    result = evaluate(clips(3), weight_hash="abc")
    assert result["schema"] == SCHEMA
    assert set(result) == {
        "schema", "tokenizer", "protocol", "n_total", "n_used", "n_failed", "failures", "metrics", "codebook", "clips",
        "provenance", "wall_time_s",
    }  # fmt: skip
    assert result["tokenizer"] == {"name": "gray", "weight_hash": "abc", "stride": [4, 8, 8], "bits": 8}
    blocks = {"block_ratio", "block_phases"}
    assert set(result["metrics"]) == {"psnr", "block_mean_psnr", "psnr_gain", "ssim", "bits_per_pixel"} | blocks
    assert all(set(summary) == {"mean", "stderr", "n"} for summary in result["metrics"].values())
    assert {"source", "split", "frames", "size", "crop", "fps", "psnr", "ssim"} | blocks <= set(result["protocol"])
    assert {"git", "versions", "device"} <= set(result["provenance"])
    assert result["codebook"]["tokens"] == 3 * 2 * 2 * 2
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_means_and_standard_errors_are_over_clips():
    videos = clips(4)
    result = evaluate(videos)
    tokenizer = GrayTokenizer()
    values = torch.cat([psnr(x, tokenizer.decode(tokenizer.encode(x))) for _, x in videos])
    baseline = torch.cat([psnr(x, block_mean_baseline(x)) for _, x in videos])
    metrics = result["metrics"]
    assert metrics["psnr"]["mean"] == pytest.approx(values.mean().item())
    assert metrics["psnr"]["stderr"] == pytest.approx(values.std().item() / 2)
    assert metrics["block_mean_psnr"]["mean"] == pytest.approx(baseline.mean().item())
    assert metrics["psnr_gain"]["stderr"] == pytest.approx((values - baseline).std().item() / 2)
    assert metrics["bits_per_pixel"]["mean"] == 8 * 2 * 4 / (5 * 16 * 16)
    assert [row["name"] for row in result["clips"]] == ["clip0", "clip1", "clip2", "clip3"]


def test_one_clip_has_no_standard_error():
    assert evaluate(clips(1))["metrics"]["psnr"]["stderr"] is None


@pytest.mark.parametrize("batch_size", [2, 3, 16])
def test_batches_change_nothing(batch_size):
    videos = clips(5) + [(f"long{i}", x) for i, (_, x) in enumerate(clips(2, frames=9))]
    one, many = evaluate(videos), evaluate(videos, batch_size=batch_size)
    assert one["codebook"] == many["codebook"]
    for metric, summary in one["metrics"].items():
        assert many["metrics"][metric] == pytest.approx(summary)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_failing_clips_are_counted_and_not_replaced(batch_size):
    good = clips(3)
    videos = [
        *good[:1],
        ("white", torch.ones(1, 3, 5, 16, 16)),
        ("unreadable", OSError("broken")),
        *good[1:],
        ("odd", torch.zeros(1, 3, 4, 16, 16)),
        ("range", torch.full((1, 3, 5, 16, 16), 200.0)),
        ("two", torch.zeros(2, 3, 5, 16, 16)),
    ]
    result = evaluate(videos, batch_size=batch_size)
    assert (result["n_total"], result["n_used"], result["n_failed"]) == (8, 3, 5)
    reasons = {failure["name"]: failure["reason"] for failure in result["failures"]}
    assert reasons["white"] == "ValueError: white clip"
    assert reasons["unreadable"] == "OSError: broken"
    assert set(reasons) == {"white", "unreadable", "odd", "range", "two"}
    assert result["metrics"] == evaluate(good)["metrics"]
    assert result["codebook"] == evaluate(good)["codebook"]


def test_a_batch_too_large_for_memory_is_taken_clip_by_clip():
    class Small(GrayTokenizer):
        def encode(self, video):
            if len(video) > 1:
                raise MemoryError("one at a time")
            return super().encode(video)

    result = evaluate_reconstruction(Small(), clips(4), name="small", protocol=PROTOCOL, batch_size=4)
    assert result["n_used"] == 4 and result["metrics"] == evaluate(clips(4))["metrics"]


def test_no_usable_clip_is_an_error():
    with pytest.raises(ValueError, match="none was given"):
        evaluate([])
    with pytest.raises(ValueError, match="bad: OSError: broken"):
        evaluate([("bad", OSError("broken"))])
    with pytest.raises(ValueError, match="batch_size"):
        evaluate(clips(1), batch_size=0)


def test_without_a_grid_there_are_no_block_edges():
    class Frames(GrayTokenizer):
        stride = (4, 1, 1)

    result = evaluate_reconstruction(Frames(), clips(1), name="frames", protocol=PROTOCOL)
    assert not {"block_ratio", "block_phases"} & ({*result["metrics"]} | {*result["protocol"]})


def test_networks_add_their_metrics():
    class Distance:
        net = "alex"

        def for_video(self, x, y):
            return (x - y).abs().mean((1, 2, 3, 4))

    def features(video):
        return video.mean((1, 2)).flatten(1)[:, :1].expand(-1, 400)

    result = evaluate(clips(3), lpips={"lpips_alex": Distance()}, fvd=features)
    assert result["metrics"]["lpips_alex"]["mean"] > 0
    assert result["metrics"]["rfvd"]["n"] == 3
    assert result["metrics"]["rfvd"]["mean"] > 0
    assert result["protocol"]["lpips_alex"] == "v0.1, alex; mean over frames and clips"


def test_each_file_of_weights_is_that_of_its_network(tokenizer_path, tmp_path, monkeypatch):
    files = {"vgg": "vgg16.safetensors", "alex": "alexnet.safetensors"}

    class Network:
        def __init__(self, net, weights):
            assert weights == files[net]
            self.net = net

        def to(self, device):
            return self

        def for_video(self, x, y):
            return torch.full((len(x),), float(len(self.net)))

    monkeypatch.setattr("vidtok.eval.reconstruction.run.LPIPS", Network)
    write_video(tmp_path / "clip.mp4", torch.zeros(1, 3, 9, 32, 32), 30)
    settings = {"model": tokenizer_path, "frames": 9, "size": 32}
    both = evaluate_files(str(tmp_path), lpips=files["vgg"], lpips_alex=files["alex"], **settings)
    assert (both["metrics"]["lpips"]["mean"], both["metrics"]["lpips_alex"]["mean"]) == (3, 4)
    assert [both["protocol"][name][:10] for name in ("lpips", "lpips_alex")] == ["v0.1, vgg;", "v0.1, alex"]
    one = evaluate_files(str(tmp_path), lpips_alex=files["alex"], **settings)
    assert "lpips" not in one["metrics"] and "lpips_alex" in one["metrics"]


def test_table_shows_the_numbers():
    table = format_table(evaluate([*clips(2), ("gone.mp4", OSError("broken"))]))
    assert "2 of 3 clips used, 1 failed" in table
    assert "gone.mp4: OSError: broken" in table
    assert "psnr_gain" in table and "+-" in table and "of 8 bits" in table


def test_validation_clips_yield_failures_too(tmp_path):
    datasets = pytest.importorskip("vidtok.datasets")
    good, short = tmp_path / "good.mp4", tmp_path / "short.mp4"
    datasets.write_video(good, torch.zeros(1, 3, 21, 64, 96), 30)
    datasets.write_video(short, torch.zeros(1, 3, 5, 64, 96), 30)
    (tmp_path / "text.mp4").write_text("not a video")
    found = dict(validation_clips([good, short, tmp_path / "text.mp4", tmp_path / "none.mp4"], frames=17, size=32))
    assert found[str(good)].shape == (1, 3, 17, 32, 32)
    assert "fewer than 17 frames" in str(found[str(short)])
    assert all(isinstance(found[str(tmp_path / name)], Exception) for name in ("text.mp4", "none.mp4"))
    with pytest.raises(ValueError, match="1, 5, 9"):
        validation_clips([], frames=16)


def test_digits_are_rendered_and_held_out(tokenizer_path):
    result = evaluate_files("digits", model=tokenizer_path, frames=9, size=16, clips=3)
    protocol = result["protocol"]
    assert (protocol["split"], protocol["crop"], protocol["fps"]) == ("val", "rendered", 25)
    assert protocol["clips"] == "3 of 3231 clips of all motions in turn, evenly spread" and result["n_used"] == 3
    assert [clip["name"] for clip in result["clips"]] == ["0004/left", "0599/right", "1199/up"]
    digits = MovingDigits("val", 1, 16)
    for count in (9, 100, 360, 719, 1078, 3231):
        names = [name for name, _ in digit_clips(digits, count)]
        motions = Counter(name.split("/")[1] for name in names)
        assert len({*names}) == count and max(motions.values()) - min(motions.values()) <= (count % 9 > 0)
    train = evaluate_files("digits", model=tokenizer_path, frames=9, size=16, clips=1, split="train")
    assert train["protocol"]["split"] == "train" and train["clips"][0]["name"] == "0000/left"
    for wrong, message in (({"fps": 30}, "digits have 25 frames/s"), ({"split": "test"}, "split='test'"),
                           ({"size": 36}, "multiple of 8 pixels")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            evaluate_files("digits", model=tokenizer_path, clips=1, **wrong)
