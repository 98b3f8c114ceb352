"""Models of other strides than 4 x 8 x 8: every one through the same tokenizer, streams, tiles, rates and files."""

import math
import re

import pytest
import torch

import vidtok
from vidtok.cli.main import main
from vidtok.datasets import ClipFolder, demo_clip, read_video, write_video
from vidtok.eval import bits_per_pixel, block_mean_baseline, clip_protocol, evaluate_reconstruction, validation_clips
from vidtok.streaming import (
    cut_chunks,
    decode_tiles,
    encode_tiles,
    pad_chunks,
    stream_decode,
    stream_encode,
    tile_cells,
)
from vidtok.tokenizer import TokenizerConfig, VideoTokenizer

NETS = {
    "image": {
        "kind": "magvit2",
        "base": 4,
        "channel_multipliers": [1, 2, 2, 2, 4],
        "temporal_downsample": [False] * 4,
        "depth": 1,
    },
    "frames": {
        "kind": "magvit2",
        "base": 4,
        "channel_multipliers": [1, 2, 2, 2, 4],
        "temporal_downsample": [False] * 4,
    },
    "video": {
        "kind": "magvit2",
        "base": 4,
        "channel_multipliers": [1, 2, 2, 2, 4],
        "temporal_downsample": [False, False, True, True],
    },
    "early": {"kind": "magvit2", "base": 4, "channel_multipliers": [1, 2, 2], "temporal_downsample": [True, False]},
    "long": {
        "kind": "magvit2",
        "base": 4,
        "channel_multipliers": [1, 2, 2, 2],
        "temporal_downsample": [True, True, True],
    },
    "patch": {"kind": "patch", "width": 16, "blocks": 1, "decoder_blocks": 1, "patch": [4, 16, 16]},
    "still patch": {"kind": "patch", "width": 16, "blocks": 1, "decoder_blocks": 1, "patch": [1, 16, 8]},
}
STRIDES = {
    "image": (1, 16, 16),
    "frames": (1, 16, 16),
    "video": (4, 16, 16),
    "early": (2, 4, 4),
    "long": (8, 8, 8),
    "patch": (4, 16, 16),
    "still patch": (1, 16, 8),
}


def build(name: str) -> VideoTokenizer:
    torch.manual_seed(0)
    net = NETS[name] | ({"blocks": 1} if NETS[name]["kind"] == "magvit2" else {})
    tokenizer = VideoTokenizer(TokenizerConfig(name, net, {"kind": "lfq", "bits": 18})).eval()
    for parameter in tokenizer.parameters():  # so that biases, norms and taps are no identities
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    return tokenizer


@pytest.fixture(params=NETS)
def name(request):
    return request.param


def clip(latents, stride, cells=(2, 3), seed=0):
    shape = (1, 3, 1 + stride[0] * (latents - 1), cells[0] * stride[1], cells[1] * stride[2])
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_the_stride_is_the_nets(name):
    tokenizer = build(name)
    assert tokenizer.stride == tokenizer.decoder.stride == STRIDES[name]
    video = clip(3, tokenizer.stride)
    ids = tokenizer.encode(video)
    assert ids.shape == (1, 3, 2, 3)
    assert tokenizer.decode(ids).shape == video.shape
    assert tokenizer.forward_features(video).shape == (1, tokenizer.encoder.width, 3, 2, 3)
    assert tokenizer(video)[0].shape == video.shape


def test_later_frames_never_change_earlier_latents(name):
    tokenizer = build(name)
    video = clip(4, tokenizer.stride)
    frames = 1 + tokenizer.stride[0]
    changed = video.clone()
    changed[:, :, frames:] = -changed[:, :, frames:]
    z, other = tokenizer.encode_latents(video), tokenizer.encode_latents(changed)
    assert torch.equal(z[:, :, :2], other[:, :, :2]) and not torch.equal(z[:, :, 2:], other[:, :, 2:])
    ids = tokenizer.encode(video)
    later = ids.clone()
    later[:, 2:] = 0
    assert torch.equal(tokenizer.decode(ids)[:, :, :frames], tokenizer.decode(later)[:, :, :frames])


@pytest.mark.parametrize("latents", [1, 2, 5, 19])
def test_chunks_equal_the_whole(name, latents):
    """Longer than a pass through the network (16 latents), in chunks that fit the grid and chunks that don't."""
    tokenizer = build(name)
    video = clip(latents, tokenizer.stride)
    z = tokenizer._latents(video, None)  # one pass, uncut
    ids = tokenizer.quantizer.codes_to_ids(z)
    decoded = tokenizer._reconstruct(tokenizer.ids_to_codes(ids), None).clamp(-1, 1)
    sure = z.abs() > 1e-5 * z.abs().max()
    for size in (1, 3, 16, 17, video.shape[2]):
        streamed = torch.cat(list(tokenizer.stream_encode(video.split(size, 2))), 1)
        assert streamed.shape == ids.shape
        differ = tokenizer.ids_to_codes(streamed) != tokenizer.ids_to_codes(ids)
        assert not (differ & sure).any()
    assert torch.allclose(tokenizer.encode_latents(video), z, atol=1e-4)
    for size in (1, 2, 16, latents):
        streamed = torch.cat(list(tokenizer.stream_decode(ids.split(size, 1))), 2)
        assert streamed.shape == video.shape
        assert (streamed - decoded).abs().max() < 1e-4
    assert torch.allclose(tokenizer.decode(ids), decoded, atol=1e-4)


def test_an_image_tokenizer_sees_each_frame_alone():
    tokenizer = build("image")
    video = clip(3, tokenizer.stride)
    z = torch.cat([tokenizer.encode_latents(frame) for frame in video.split(1, 2)], 2)
    assert torch.allclose(tokenizer.encode_latents(video), z, atol=1e-5)
    ids = tokenizer.encode(video)
    frames = torch.cat([tokenizer.decode(part) for part in ids.split(1, 1)], 2)
    assert torch.allclose(tokenizer.decode(ids), frames, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("video", (6, 32, 48), "1 + 4k frames, not 6: cut it to 5 or pad it to 9"),
        ("early", (4, 32, 48), "1 + 2k frames, not 4: cut it to 3 or pad it to 5"),
        ("video", (5, 40, 48), "multiples of 16, not 40 x 48: crop to 32 x 48"),
        ("image", (2, 8, 48), "multiples of 16, not 8 x 48: pad to 16 x 48"),
        ("still patch", (2, 40, 44), "multiples of 16 and 8, not 40 x 44: crop to 32 x 40"),
    ],
)
def test_errors_say_what_this_model_takes(name, shape, words):
    with pytest.raises(ValueError) as error:
        build(name).encode(torch.zeros(1, 3, *shape))
    assert words in str(error.value)


def test_the_tile_that_is_advised_is_legal():
    net = NETS["still patch"] | {"patch": [1, 48, 32]}
    tokenizer = VideoTokenizer(TokenizerConfig("wide", net, {"kind": "lfq", "bits": 18}))
    for side in (2**17, 2**24):
        with pytest.raises(MemoryError) as error:
            tokenizer.encode(torch.zeros(1).expand(1, 3, 1, 48 * side, 32 * side))
        tile = int(re.search(r"tile=(\d+)", str(error.value))[1])
        assert tile_cells(tile, tokenizer.stride[1:])


def test_a_stream_off_the_grid_names_the_models_lengths():
    with pytest.raises(ValueError, match=r"1 \+ 8k frames; this one ended after 12, so that its last 3"):
        list(build("long").stream_encode([torch.zeros(1, 3, 12, 16, 16)]))


@pytest.mark.parametrize(
    ("net", "words"),
    [
        ({"channel_multipliers": [1, 2]}, "2 channel_multipliers need 1 values of temporal_downsample, not 3"),
        ({"depth": 1}, "depth is 3, or 1 if temporal_downsample is false everywhere, not 1"),
        ({"depth": 2}, "not 2"),
    ],
)
def test_nets_that_dont_fit_together_are_refused(net, words):
    with pytest.raises(ValueError, match=words):
        VideoTokenizer(TokenizerConfig("x", {"kind": "magvit2", "base": 4, **net}, {"kind": "lfq", "bits": 18}))
    with pytest.raises(ValueError, match="patch is frames, rows and columns"):
        VideoTokenizer(TokenizerConfig("x", {"kind": "patch", "patch": [4, 8]}, {"kind": "lfq", "bits": 18}))


@pytest.mark.parametrize("name", ["patch", "still patch", "image", "long"])
def test_tiles_keep_the_grid(name):
    tokenizer = build(name)
    s_t, s_h, s_w = tokenizer.stride
    still = torch.linspace(-1, 1, 13 * s_w).expand(1, 3, 1 + s_t, 11 * s_h, 13 * s_w)
    tile = (4 * s_h, 5 * s_w)
    ids = tokenizer.encode(still, tile=tile)
    assert ids.shape == (1, 2, 11, 13)
    assert tokenizer.decode(ids, tile=tile).shape == still.shape
    # Where a tile is the whole frame, nothing changes.
    assert torch.equal(tokenizer.decode(ids, tile=(11 * s_h, 13 * s_w)), tokenizer.decode(ids))
    with pytest.raises(ValueError, match=f"multiples of {s_h} and at least {4 * s_h}"):
        tokenizer.encode(still, tile=4 * s_h + 1)


@pytest.mark.parametrize("cell", [(8, 8), (16, 16), (16, 8)])
def test_tiles_put_every_cell_into_its_place(cell):
    """With a codec that sees no further than a cell, tiles and the whole are the same."""
    ids = torch.arange(2 * 11 * 13.0).view(1, 2, 11, 13)
    enlarge = lambda part: part[:, None].repeat_interleave(cell[0], 3).repeat_interleave(cell[1], 4)  # noqa: E731
    tile = (4 * cell[0], 5 * cell[1])
    assert torch.allclose(decode_tiles(enlarge, ids, tile, cell), enlarge(ids))
    shrink = lambda part: part[..., :: cell[0], :: cell[1]]  # noqa: E731
    assert torch.equal(encode_tiles(shrink, enlarge(ids), tile, cell)[:, 0], ids)


@pytest.mark.parametrize("name", ["image", "video", "patch"])
@pytest.mark.parametrize("tile", [None, 64])
def test_videos_of_any_size_and_length_stream_in_tiles(name, tile):
    """As the commands do it: padded, streamed tile by tile, cut back."""
    tokenizer = build(name)
    video = torch.rand(1, 3, 23, 70, 90, generator=torch.Generator().manual_seed(0)) * 2 - 1
    padded = torch.cat(list(pad_chunks(video.split(7, 2), tokenizer.stride)), 2)
    assert padded.shape[3:] == (80, 96) and (padded.shape[2] - 1) % tokenizer.stride[0] == 0
    assert torch.equal(padded[:, :, :23, :70, :90], video)
    ids = torch.cat(list(stream_encode(tokenizer, pad_chunks(video.split(7, 2), tokenizer.stride), tile)), 1)
    assert ids.shape == (1, math.ceil(22 / tokenizer.stride[0]) + 1, 5, 6)
    whole = tokenizer.encode(padded, tile=tile)
    assert (ids == whole).float().mean() > 0.99
    decoded = torch.cat(list(cut_chunks(stream_decode(tokenizer, ids.split(3, 1), tile), 23, (70, 90))), 2)
    assert decoded.shape == video.shape
    assert (decoded - tokenizer.decode(ids, tile=tile)[:, :, :23, :70, :90]).abs().max() < 1e-4


def test_rates_and_the_block_mean_baseline_follow_the_stride(name):
    stride = STRIDES[name]
    video = clip(3, stride)
    tokens = 3 * 2 * 3
    assert bits_per_pixel(18, stride, *video.shape[2:]) == pytest.approx(18 * tokens / video[0, 0].numel())
    # A clip that is constant in every cell of the grid is not changed.
    cells = torch.rand(1, 3, 3, 1, 1).repeat_interleave(stride[0], 2)[:, :, stride[0] - 1 :]
    flat = cells.expand(video.shape)
    assert torch.allclose(block_mean_baseline(flat, stride), flat, atol=1e-5)


def test_evaluation_takes_the_models_lengths(tmp_path):
    write_video(tmp_path / "a.mp4", demo_clip(frames=12, size=64), fps=30)
    tokenizer = build("early")
    clips = validation_clips([tmp_path / "a.mp4"], 11, 36, stride=tokenizer.stride)
    result = evaluate_reconstruction(tokenizer, clips, name="early", protocol=clip_protocol("x", None, 11, 36))
    assert result["n_used"] == 1 and result["tokenizer"]["stride"] == [2, 4, 4]
    with pytest.raises(ValueError, match="1, 3, 5, "):
        validation_clips([], 10, 36, stride=tokenizer.stride)
    with pytest.raises(ValueError, match="multiple of 4 pixels"):
        validation_clips([], 11, 34, stride=tokenizer.stride)


def test_reading_and_training_batches_fit_the_stride(tmp_path):
    write_video(tmp_path / "a.mp4", demo_clip(frames=12, size=72), fps=30)
    assert read_video(tmp_path / "a.mp4", size=None, stride=(8, 16, 16)).shape == (1, 3, 9, 64, 64)
    assert read_video(tmp_path / "a.mp4", size=None, stride=(1, 4, 4)).shape == (1, 3, 12, 72, 72)
    assert ClipFolder(tmp_path, frames=12, crop=48, batch_size=1, stride=(1, 16, 16))[0].shape == (1, 3, 12, 48, 48)
    with pytest.raises(ValueError, match="frames=17 is not 1\\+6k"):
        ClipFolder(tmp_path, frames=17, stride=(6, 8, 8))
    with pytest.raises(ValueError, match="crop=40 is not a multiple of 16"):
        ClipFolder(tmp_path, crop=40, stride=(4, 16, 16))


def test_info_says_what_a_model_takes(tmp_path, capsys):
    for name, cell, length, size in [
        ("image", "1 frame x 16 x 16", "any number", "multiples of 16"),
        ("still patch", "1 frame x 16 x 8", "any number", "multiples of 16 and 8"),
        ("long", "8 frames x 8 x 8; the first frame has tokens of its own", "1 + 8k", "multiples of 8"),
    ]:
        build(name).save_pretrained(tmp_path / name)
        assert main(["info", str(tmp_path / name)]) == 0
        rows = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines() if "  " in line)
        rows = {key.strip(): value.strip() for key, value in rows.items()}
        assert (rows["pixels per token"], rows["frames of a clip"], rows["height and width"]) == (cell, length, size)


def test_a_clip_through_a_saved_model_of_another_stride(tmp_path):
    """encode, decode and reconstruct pad to its grid and cut back."""
    build("long").save_pretrained(tmp_path / "model")
    write_video(tmp_path / "clip.mp4", demo_clip(frames=14, size=44), fps=30)
    model = ["--model", str(tmp_path / "model"), "--device", "cpu"]
    assert main(["encode", str(tmp_path / "clip.mp4"), "-o", str(tmp_path / "clip.npz"), *model]) == 0
    assert main(["decode", str(tmp_path / "clip.npz"), "-o", str(tmp_path / "again.mkv"), *model]) == 0
    assert read_video(tmp_path / "again.mkv", size=None, stride=(1, 1, 1)).shape == (1, 3, 14, 44, 44)


def test_the_papers_models_by_name():
    with torch.device("meta"):
        models = {name: vidtok.create_tokenizer(name) for name in vidtok.list_tokenizers() if "magvit2" in name}
    strides = {name: model.stride for name, model in models.items()}
    assert strides == {
        "magvit2": (4, 8, 8),
        "magvit2-s": (4, 8, 8),
        "magvit2-image-8": (1, 8, 8),
        "magvit2-image-16": (1, 16, 16),
        "magvit2-image-32": (1, 32, 32),
    }
    for model in models.values():
        assert model.bits == 18
    # 256 and 512 pixels are 16 x 16 tokens.
    assert 256 // strides["magvit2-image-16"][1] == 512 // strides["magvit2-image-32"][1] == 16
