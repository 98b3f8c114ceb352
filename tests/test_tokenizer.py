"""The library contract, over every architecture and quantizer."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from huggingface_hub import HfApi
from safetensors.torch import load_file

import vidtok
from vidtok import streaming
from vidtok.datasets import demo_clip
from vidtok.extraction.model import FeatureModel, Stream, make_settings
from vidtok.tokenizer import EncodeStream, TokenizerConfig, VideoTokenizer

NETS = {
    "patch": {"kind": "patch", "width": 32, "blocks": 2, "decoder_blocks": 2},
    "magvit2": {"kind": "magvit2", "base": 16, "blocks": 1},
}
QUANTIZERS = {
    "lfq": {"kind": "lfq", "bits": 18},
    "residual": {"kind": "lfq", "bits": 18, "levels": 3},
    "fsq": {"kind": "fsq", "levels": [8] * 6},
    "vq": {"kind": "vq", "size": 512, "dim": 8},
}


def build(net="patch", quantizer="lfq") -> VideoTokenizer:
    torch.manual_seed(0)
    tokenizer = VideoTokenizer(TokenizerConfig("test", NETS[net], QUANTIZERS[quantizer])).eval()
    for parameter in tokenizer.parameters():  # so that biases, norms and taps are no identities
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    return tokenizer


@pytest.fixture(params=NETS)
def net(request):
    return request.param


def clip(frames=17, height=32, width=48, batch=1, seed=0):
    return torch.rand(batch, 3, frames, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def assert_same_ids(tokenizer, ids, other, z):
    """Equal but where the latent is within rounding of the threshold."""
    near = z.abs() < 1e-5 * z.abs().max()
    differ = (ids[:, None] >> torch.arange(18).view(1, -1, 1, 1, 1) & 1) != (
        other[:, None] >> torch.arange(18).view(1, -1, 1, 1, 1) & 1
    )
    assert not (differ & ~near).any()


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_shapes_and_round_trip(net, quantizer):
    tokenizer = build(net, quantizer)
    video = clip(batch=2)
    ids = tokenizer.encode(video)
    assert ids.dtype == torch.int64 and ids.shape == (2, 5, 4, 6)
    assert ids.min() >= 0 and ids.max() < 2**tokenizer.bits
    codes = tokenizer.ids_to_codes(ids)
    assert torch.equal(tokenizer.codes_to_ids(codes), ids)
    if "levels" not in QUANTIZERS[quantizer] and quantizer != "vq":
        assert set(codes.unique().tolist()) == {-1.0, 1.0} and codes.shape == (2, 18, 5, 4, 6)
    decoded = tokenizer.decode(ids)
    assert decoded.shape == video.shape and decoded.dtype == torch.float32
    assert decoded.abs().max() <= 1
    z = tokenizer.encode_latents(video)
    assert torch.equal(tokenizer.codes_to_ids(z), ids)
    features = tokenizer.forward_features(video)
    assert features.shape == (2, tokenizer.encoder.width, 5, 4, 6)
    # A batch is its clips, in their order.
    assert torch.allclose(tokenizer.decode(ids.flip(0)), decoded.flip(0), atol=1e-5)
    assert torch.allclose(tokenizer.encode_latents(video[1:]), z[1:], atol=1e-4)


def test_features_are_those_of_their_layer(net):
    tokenizer = build(net)
    encoder, features = tokenizer.encoder, tokenizer.forward_features(clip())
    if encoder.feature_layer is None:  # before the latents
        weight, bias = encoder.head.weight.flatten(1), encoder.head.bias
        z = torch.einsum("bdthw,kd->bkthw", features, weight) + bias.view(1, -1, 1, 1, 1)
        assert torch.allclose(z, tokenizer.encode_latents(clip()), atol=1e-4)
        return
    outputs: list[torch.Tensor] = []
    for block in encoder.blocks:
        block.register_forward_hook(lambda block, args, output: outputs.append(output))
    tokenizer.encode_latents(clip())
    middle = F.layer_norm(outputs[(len(outputs) - 1) // 2], (encoder.width,)).movedim(-1, 1)
    assert torch.allclose(features, middle, atol=1e-4)


def test_the_middle_layer_of_vidtok_t_is_the_richer_one():
    tokenizer = VideoTokenizer.from_pretrained("vidtok-t")
    last: list[torch.Tensor] = []
    tokenizer.encoder.norm.register_forward_hook(lambda norm, args, output: last.append(output.movedim(-1, 1)))
    video = demo_clip()
    tokenizer.encode_latents(video)

    def share(features: torch.Tensor) -> float:  # of the variance, in six directions
        values = torch.linalg.eigvalsh(torch.cov(features.transpose(0, 1).flatten(1)))
        return float(values[-6:].sum() / values.sum())

    assert share(tokenizer.forward_features(video)) < 0.65 and share(last[0]) > 0.9


def test_later_frames_never_change_earlier_latents(net):
    tokenizer = build(net)
    video = clip()
    changed = video.clone()
    changed[:, :, 9:] = -changed[:, :, 9:]
    z, other = tokenizer.encode_latents(video), tokenizer.encode_latents(changed)
    assert torch.equal(z[:, :, :3], other[:, :, :3])
    assert not torch.equal(z[:, :, 3:], other[:, :, 3:])
    ids = tokenizer.encode(video)
    later = ids.clone()
    later[:, 3:] = 0
    assert torch.equal(tokenizer.decode(ids)[:, :, :9], tokenizer.decode(later)[:, :, :9])


def test_an_image_is_the_first_frame_of_a_clip(net):
    tokenizer = build(net)
    video = clip()
    assert torch.equal(tokenizer.encode(video)[:, :1], tokenizer.encode(video[:, :, :1]))
    ids = tokenizer.encode(video)
    assert torch.allclose(tokenizer.decode(ids)[:, :, :1], tokenizer.decode(ids[:, :1]), atol=1e-5)


@pytest.mark.parametrize("frames", range(1, 42, 4))
@pytest.mark.parametrize(("net", "batch"), [("patch", 1), ("patch", 2), ("magvit2", 2)])
def test_chunks_equal_the_whole(net, batch, frames):
    tokenizer = build(net)
    video = clip(frames, 16, 24, batch)
    ids, z = tokenizer.encode(video), tokenizer.encode_latents(video)
    decoded = tokenizer.decode(ids)
    for size in (1, 2, 3, 4, 5, 7, 16, 17, 41):
        streamed = torch.cat(list(tokenizer.stream_encode(video.split(size, 2))), 1)
        assert_same_ids(tokenizer, ids, streamed, z)
    for size in (1, 2, 3, 5, 11):
        streamed = torch.cat(list(tokenizer.stream_decode(ids.split(size, 1))), 2)
        assert streamed.shape == decoded.shape
        assert (streamed - decoded).abs().max() < 1e-4


def test_long_clips_are_cut_inside_and_equal_the_stream(net):
    tokenizer = build(net)
    video = clip(101, 16, 16)
    ids, z = tokenizer.encode(video), tokenizer.encode_latents(video)
    assert ids.shape[1] == 26
    assert_same_ids(tokenizer, ids, torch.cat(list(tokenizer.stream_encode(video.split(13, 2))), 1), z)
    assert tokenizer.decode(ids).shape == video.shape


def test_tokens_are_made_in_full_float32(monkeypatch):
    """On a GPU as on a CPU: cuDNN's own default rounds. And whatever the user has set stays."""
    tokenizer, seen = build("patch"), []
    precise = hasattr(torch.backends.cudnn, "conv")  # else an old torch
    owner, name = (torch.backends.cudnn.conv, "fp32_precision") if precise else (torch.backends.cudnn, "allow_tf32")
    original = VideoTokenizer._latents
    monkeypatch.setattr(VideoTokenizer, "_latents", lambda *args: seen.append(getattr(owner, name)) or original(*args))
    before = getattr(owner, name)
    try:
        for setting in ("ieee", "tf32") if precise else (False, True):
            setattr(owner, name, setting)
            tokenizer.encode(clip(5, 16, 16))
            list(tokenizer.stream_encode([clip(5, 16, 16)]))
            assert getattr(owner, name) == setting
    finally:
        setattr(owner, name, before)
    assert len(seen) == 4 and set(seen) == {"ieee" if precise else False}


def test_stream_state_belongs_to_the_stream(net):
    """Two interleaved streams don't disturb each other, and the model holds nothing."""
    tokenizer = build(net)
    before = {name: value.clone() for name, value in tokenizer.state_dict().items()}
    a, b = clip(9, seed=1), clip(9, seed=2)
    streams = [tokenizer.stream_encode(video.split(4, 2)) for video in (a, b)]
    parts = [[], []]
    for pair in zip(*streams, strict=True):
        for part, ids in zip(parts, pair, strict=True):
            part.append(ids)
    for part, video in zip(parts, (a, b), strict=True):
        assert_same_ids(tokenizer, tokenizer.encode(video), torch.cat(part, 1), tokenizer.encode_latents(video))
    assert all(torch.equal(value, before[name]) for name, value in tokenizer.state_dict().items())
    assert not any(isinstance(v, torch.Tensor) for m in tokenizer.modules() for k, v in vars(m).items())


def test_a_stream_that_ends_off_the_grid_says_so_after_its_latents(net):
    stream = build(net).stream_encode(clip(11).split(5, 2))
    latents = 0
    with pytest.raises(ValueError, match=r"ended after 11.*last 2"):
        for ids in stream:
            latents += ids.shape[1]
    assert latents == 3


def test_caches_hold_no_more_than_a_kernel_needs(net):
    tokenizer = build(net)
    stream = EncodeStream(tokenizer._latents, 4)
    sizes = []
    for part in clip(65).split(16, 2):
        list(stream.push(part))
        sizes.append(sum(v.untyped_storage().nbytes() for v in stream.state.values()))
        assert all(v.numel() == 0 or v.shape[1 if net == "patch" else 2] <= 2 for v in stream.state.values())
    assert len(set(sizes)) == 1


@pytest.mark.parametrize(
    ("video", "words"),
    [
        (torch.zeros(3, 17, 32, 32), "[B, 3, T, H, W]"),
        (torch.zeros(1, 1, 17, 32, 32), "[B, 3, T, H, W]"),
        (torch.zeros(1, 3, 16, 32, 32), "1 + 4k frames, not 16: cut it to 13 or pad it to 17"),
        (torch.zeros(1, 3, 17, 33, 32), "multiples of 8, not 33 x 32"),
        (torch.zeros(1, 3, 17, 32, 32, dtype=torch.uint8), "torch.uint8"),
        (torch.full((1, 3, 17, 32, 32), 1.2), "[-1, 1]"),
        (torch.full((1, 3, 17, 32, 32), float("nan")), "[-1, 1]"),
        (torch.zeros(1, 3, 0, 32, 32), "[B, 3, T, H, W]"),
    ],
)
def test_illegal_videos_say_what_is_legal(video, words):
    with pytest.raises(ValueError) as error:
        build().encode(video)
    assert words in str(error.value)


def test_small_overshoot_is_tolerated():
    build().encode(torch.full((1, 3, 1, 32, 32), 1.05))


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        (torch.zeros(5, 4, 4, dtype=torch.int64), "[B, t, h, w]"),
        (torch.zeros(1, 5, 4, 4), "integers"),
        (torch.full((1, 5, 4, 4), 2**18), "0 .. 262143"),
        (torch.full((1, 5, 4, 4), -1), "0 .. 262143"),
    ],
)
def test_illegal_ids_say_what_is_legal(ids, words):
    with pytest.raises(ValueError) as error:
        build().decode(ids)
    assert words in str(error.value)


def test_a_stream_keeps_its_shape():
    tokenizer = build()
    with pytest.raises(ValueError, match="in one stream"):
        list(tokenizer.stream_encode([clip(5, 32, 32), clip(4, 32, 40)]))
    ids = tokenizer.encode(clip(9, 32, 32))
    with pytest.raises(ValueError, match="in one stream"):
        list(tokenizer.stream_decode([ids[:, :2], ids[:, 2:, :3]]))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.uint16, torch.uint32])
def test_ids_of_any_integer_type_decode(dtype):
    tokenizer = build()
    ids = torch.arange(5 * 4 * 4).view(1, 5, 4, 4)
    assert torch.equal(tokenizer.decode(ids.to(dtype)), tokenizer.decode(ids))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_clips_of_any_float_type_pass(net, precision, dtype):
    tokenizer = build(net).set_precision(precision)
    video = clip(5).to(dtype)
    assert tokenizer.encode(video).dtype == torch.int64
    assert tokenizer.forward_features(video).dtype == tokenizer.encode_latents(video).dtype == torch.float32


def test_bf16_latents_are_float32_and_nearly_the_same(net):
    tokenizer = build(net)
    z = tokenizer.encode_latents(clip())
    low = tokenizer.set_precision("bf16").encode_latents(clip())
    assert low.dtype == torch.float32
    assert ((z > 0) == (low > 0)).float().mean() > 0.95


def test_save_and_load(tmp_path, net):
    tokenizer = build(net)
    tokenizer.save_pretrained(tmp_path / "model")
    loaded = VideoTokenizer.from_pretrained(tmp_path / "model")
    assert loaded.config == tokenizer.config and not loaded.training
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, tokenizer.state_dict()[name])
    assert len(loaded.weight_hash) == 16
    assert VideoTokenizer.from_pretrained(tmp_path / "model", precision="bf16").weight_hash == loaded.weight_hash


def test_half_precision_is_an_explicit_export(tmp_path):
    tokenizer = build()
    tokenizer.save_pretrained(tmp_path, dtype=torch.float16)
    assert {t.dtype for t in load_file(tmp_path / "model.safetensors").values()} == {torch.float16}
    loaded, before = VideoTokenizer.from_pretrained(tmp_path), tokenizer.state_dict()
    for name, value in loaded.state_dict().items():
        assert value.dtype == before[name].dtype == torch.float32
        assert torch.equal(value, before[name].half().float())
    with torch.no_grad():
        next(tokenizer.parameters())[0] = 1e5
    with pytest.raises(ValueError, match=r"too large for torch.float16: export in torch.bfloat16 or torch.float32"):
        tokenizer.save_pretrained(tmp_path, dtype=torch.float16)
    with pytest.raises(ValueError, match=r"exported in torch.float16, .*, not in torch.int8"):
        tokenizer.save_pretrained(tmp_path, dtype=torch.int8)
    tokenizer.save_pretrained(tmp_path)
    assert torch.equal(next(VideoTokenizer.from_pretrained(tmp_path).parameters()), next(tokenizer.parameters()))


def test_bf16_weights_are_saved_as_they_are(tmp_path):
    tokenizer = build().set_precision("bf16")
    tokenizer.save_pretrained(tmp_path)
    assert load_file(tmp_path / "model.safetensors")["encoder.embed.weight"].dtype == torch.bfloat16
    again = VideoTokenizer.from_pretrained(tmp_path, precision="bf16")
    assert torch.equal(again.encode(clip()), tokenizer.encode(clip()))


def test_pushes_what_it_saves(monkeypatch):
    seen = {}

    def upload_folder(self, *, folder_path, **_):
        folder = Path(folder_path)
        seen.update({file.name: file.read_bytes() for file in folder.iterdir()})
        return "url"

    monkeypatch.setattr(HfApi, "create_repo", lambda self, repo_id, **_: SimpleNamespace(repo_id=repo_id))
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    tokenizer = build()
    assert tokenizer.push_to_hub("owner/model", dtype=torch.float16) == "url"
    assert seen.keys() == {"config.json", "model.safetensors", "README.md"}
    assert b"from_pretrained" in seen["README.md"]
    assert len(seen["model.safetensors"]) < 2.5 * sum(p.numel() for p in tokenizer.parameters())


def edit_in_place(tokenizer):
    with torch.no_grad():
        next(tokenizer.parameters())[0].add_(1)


def edit_data(tokenizer):
    next(tokenizer.parameters()).data.mul_(2)


def edit_by_a_fused_optimizer(tokenizer):
    """Whose steps torch's version counters don't count."""
    optimizer = torch.optim.Adam(tokenizer.parameters(), fused=True)
    for parameter in tokenizer.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()


@pytest.mark.parametrize("edit", [edit_in_place, edit_data, edit_by_a_fused_optimizer])
def test_the_hash_is_that_of_the_weights(tmp_path, edit):
    build().save_pretrained(tmp_path)
    loaded = VideoTokenizer.from_pretrained(tmp_path)
    of_file = loaded.weight_hash
    assert of_file == hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest()[:16]
    before = {name: tensor.clone() for name, tensor in loaded.state_dict().items()}
    assert loaded.train().eval().weight_hash == of_file
    edit(loaded)
    assert loaded.weight_hash != of_file
    loaded.load_state_dict(before)
    assert loaded.weight_hash == of_file


def test_the_hash_knows_rounded_weights(tmp_path):
    build().save_pretrained(tmp_path)
    loaded = VideoTokenizer.from_pretrained(tmp_path)
    of_file = loaded.weight_hash
    assert loaded.set_precision("bf16").weight_hash == of_file
    assert loaded.set_precision("fp32").weight_hash != of_file
    own = build()
    assert own.weight_hash == build().weight_hash != build().bfloat16().weight_hash


def test_loading_errors_name_what_is_there(tmp_path):
    with pytest.raises(ValueError, match=r"no config.json and no model.safetensors"):
        VideoTokenizer.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no shipped tokenizer"):
        VideoTokenizer.from_pretrained("vidtok-x")
    build().save_pretrained(tmp_path / "model")
    config = (tmp_path / "model" / "config.json").read_text()
    (tmp_path / "model" / "config.json").write_text(config.replace('"width": 32', '"width": 64'))
    with pytest.raises(ValueError, match=r"don't fit their config: \S+ is \[32"):
        VideoTokenizer.from_pretrained(tmp_path / "model")
    for old, new, words in [
        ('"name"', '"title"', "title"),
        ('"kind": "lfq"', '"kind": "lfk"', "unknown quantizer 'lfk': did you mean 'lfq'"),
        ('"kind": "lfq", ', "", "kind"),
        ('"bits"', '"bitz"', "bitz"),
        ("tokenizer/1", "tokenizer/9", "reads 'vidtok.tokenizer/1'"),
        ("{", "", "config.json is no tokenizer's config"),
    ]:
        text = json.dumps(json.loads(config)).replace(old, new, 1)
        (tmp_path / "model" / "config.json").write_text(text)
        with pytest.raises(ValueError, match=words):
            VideoTokenizer.from_pretrained(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text(config)
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match="can't be read"):
        VideoTokenizer.from_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match=r"unknown precision 'fp31': did you mean 'fp32'"):
        build().set_precision("fp31")


def fp32_convolutions() -> str | bool:
    convolutions = torch.backends.cudnn
    return convolutions.conv.fp32_precision if hasattr(convolutions, "conv") else not convolutions.allow_tf32


@pytest.mark.parametrize("feature", ["ids", "hidden"])
@pytest.mark.parametrize("tile", [None, 32])
def test_no_path_to_features_uses_tf32(monkeypatch, feature, tile):
    """On a GPU the ids on disk were not those of `encode`: extraction ran the encoder without the guard."""
    tokenizer, seen = build("patch"), []
    name = "forward_features" if feature == "hidden" else "forward"
    run = getattr(tokenizer.encoder, name)
    monkeypatch.setattr(tokenizer.encoder, name, lambda *args: seen.append(fp32_convolutions()) or run(*args))
    settings = make_settings(tokenizer, feature, tile=tile)
    video, stream = clip(5, 32, 64), Stream()
    FeatureModel(tokenizer, settings).push([stream], [video])
    (features,) = stream.parts
    extracted = len(seen)
    if feature == "ids":
        assert torch.equal(torch.from_numpy(features)[None].long(), tokenizer.encode(video, tile))
        list(streaming.stream_encode(tokenizer, [video], tile))
    else:
        assert torch.equal(torch.from_numpy(features)[None], tokenizer.forward_features(video, tile))
    assert 0 < extracted < len(seen) and {*map(str, seen)} <= {"ieee", "True"}


def test_tiles_nearly_equal_the_whole():
    """For vidtok-t's network; the group norms of magvit2 see one tile at a time, which random weights make large."""
    tokenizer = build("patch")
    video = clip(5, 96, 128)
    ids, tiled = tokenizer.encode(video), tokenizer.encode(video, tile=64)
    same_bits = ((ids ^ tiled)[..., None] >> torch.arange(18) & 1 == 0).float().mean()
    assert tiled.shape == ids.shape and same_bits > 0.95
    whole, blended = tokenizer.decode(ids), tokenizer.decode(ids, tile=(64, 128))
    assert blended.shape == whole.shape
    assert (whole - blended).abs().mean() < 0.05
    assert torch.equal(tokenizer.encode(video, tile=128), ids)
    with pytest.raises(ValueError, match="multiples of 8"):
        tokenizer.encode(video, tile=60)


def test_tiles_keep_the_grid(net):
    """A video of uneven size in uneven tiles: every cell is written, in its place."""
    tokenizer = build(net)
    still = torch.linspace(-1, 1, 104).view(1, 1, 1, 1, 104).expand(1, 3, 1, 88, 104)
    assert tokenizer.encode(still, tile=(32, 40)).shape == (1, 1, 11, 13)
    assert tokenizer.decode(tokenizer.encode(still), tile=(32, 40)).shape == still.shape


def test_frames_too_large_name_the_memory(net):
    video = torch.zeros(1).expand(1, 3, 17, 2**17, 2**17)
    with pytest.raises(MemoryError, match=r"GiB.*tile="):
        build(net).encode(video)


def test_submodules_load_on_first_use():
    code = "import vidtok; print(vidtok.generator.KINDS, vidtok.train.__name__, *dir(vidtok))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    assert "masked" in out.stdout and "vidtok.train" in out.stdout and " generator " in out.stdout


def test_configs_by_name():
    names = vidtok.list_tokenizers()
    assert {"magvit2", "magvit2-s", "vidtok-t"} <= set(names)
    with torch.device("meta"):
        sizes = {name: vidtok.create_tokenizer(name) for name in names}
    millions = lambda module: sum(p.numel() for p in module.parameters()) / 1e6  # noqa: E731
    assert millions(sizes["magvit2"].encoder) == pytest.approx(144.9, rel=0.005)
    assert millions(sizes["magvit2"].decoder) == pytest.approx(225.7, rel=0.005)
    assert millions(sizes["vidtok-t"]) <= 8
    assert sizes["magvit2"].stride == (4, 8, 8) and sizes["magvit2"].bits == 18
    with pytest.raises(ValueError, match=r"unknown tokenizer 'magvit3': did you mean 'magvit2"):
        vidtok.create_tokenizer("magvit3")
    assert vidtok.create_tokenizer("vidtok-t", quantizer="fsq").quantizer.levels == (8,) * 6
