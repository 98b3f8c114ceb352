"""Prior: exact integers, the same everywhere; files name it, and another one never gives wrong frames."""

import hashlib
import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from test_codec import clip, packed
from test_codec_container import damage
from test_codec_entropy import moving, noise

import vidtok
from vidtok.cli.main import main
from vidtok.codec import CodecError, prior
from vidtok.codec.container import ContainerReader
from vidtok.codec.entropy import entropy_model
from vidtok.codec.prior import (
    FILE,
    LARGEST,
    NAT,
    Layer,
    Prior,
    PriorState,
    find_prior,
    first_history,
    load_prior,
    next_history,
)
from vidtok.errors import UserError
from vidtok.hub import PRETRAINED
from vidtok.quantize.lfq import unpack_bits
from vidtok.tokenizer import VideoTokenizer
from vidtok.train.prior import PriorNetwork, PriorTask, quantize_activations
from vidtok.train.run import train_prior

BITS = 18


def make_network(bits: int = BITS, weight_hash: str = "0" * 16, seed: int = 7919) -> PriorNetwork:
    """Weights by exact arithmetic, the same with every version of torch."""
    network = PriorNetwork({"model": "tiny", "weight_hash": weight_hash}, bits, channels=8, blocks=1, hidden=4)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            value = (torch.arange(weight.numel()) * seed % 201 - 100).double() / (400 if "stem" in name else 100)
            weight.copy_(value.view(weight.shape))
    return network


def make_prior(folder: Path, **options) -> Path:
    make_network(**options).save_pretrained(folder)
    return folder / FILE


@pytest.fixture(scope="module")
def tokenizer(tokenizer_path) -> VideoTokenizer:
    return VideoTokenizer.from_pretrained(tokenizer_path)


@pytest.fixture(scope="module")
def file(tokenizer, tmp_path_factory) -> Path:
    return make_prior(tmp_path_factory.mktemp("prior"), weight_hash=tokenizer.weight_hash)


def test_the_integers_are_those_of_the_network_that_was_trained(tmp_path):
    network, ids = make_network(bits=5), torch.from_numpy(noise(4, 7, 9, bits=5))
    ids[2] = ids[1]
    state = PriorState(Prior(make_prior(tmp_path, bits=5)), 5, (7, 9))
    signs = unpack_bits(ids[None], 5).int() * 2 - 1
    history = first_history(signs[:, :, 0])
    checker = (np.arange(7)[:, None] + np.arange(9)) % 2
    spread = []
    for latent in signs.unbind(2):
        odds = (network(history, latent)[0].detach() * NAT + 0.5).floor().numpy()
        planes = (latent[0].numpy() > 0).astype(np.uint8)
        for plane in range(5):
            known = planes.copy()
            known[plane + 1 :] = 1
            known[plane][checker == 1] = 1  # isn't known yet
            for color in (0, 1):
                assert (state.odds(plane, color, known) == odds[plane][checker == color]).all()
        spread.append(odds)
        history = next_history(history, latent)
        state.next(planes)
    assert np.std(spread) > 30


@pytest.mark.parametrize(("bits", "levels"), [(18, 1), (18, 3), (1, 1)])
def test_round_trip(bits, levels, tmp_path):
    model = entropy_model("prior", Prior(make_prior(tmp_path, bits=bits)))
    for shape in [(1, 1, 1), (3, 1, 5), (4, 5, 3), (2, 4, 4)]:
        ids = noise(*shape, bits=bits)
        data = model.encode(ids, bits, levels)
        decoded = model.decode(data, shape, bits, levels)
        assert decoded.dtype == np.int64 and (decoded == ids).all()
        assert len(data) <= 2 * ids.size * bits + 64
        for other in (data + bytes([255] * 8), data[:-1], data[:3]):
            with pytest.raises(ValueError, match="tokens"):
                model.decode(other, shape, bits, levels)


CODE = """
import sys, numpy as np
from pathlib import Path
from vidtok.codec.entropy import entropy_model
from vidtok.codec.prior import Prior
model = entropy_model("prior", Prior(Path(sys.argv[1])))
ids = np.load(sys.argv[2])
data = Path(sys.argv[3]).read_bytes()
assert (model.decode(data, ids.shape, 18, 3) == ids).all() and model.encode(ids, 18, 3) == data
"""


def test_bytes_are_the_same_in_every_process_with_any_number_of_threads(tmp_path):
    path, ids = make_prior(tmp_path), moving(6, 24, 25)
    data = entropy_model("prior", Prior(path)).encode(ids, 18, 3)
    assert hashlib.sha256(data).hexdigest()[:16] == "2d21da2c50c3240c"
    np.save(tmp_path / "ids.npy", ids)
    (tmp_path / "data").write_bytes(data)
    names = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
    threads = "2" if os.environ.get(names[0], os.environ.get(names[1])) == "1" else "1"  # another number than here
    command = [sys.executable, "-c", CODE, path, tmp_path / "ids.npy", tmp_path / "data"]
    subprocess.run(command, check=True, env=os.environ | dict.fromkeys(names, threads))


def test_chunks_are_independent_and_parts_are_those_of_the_whole(tokenizer, file):
    video = clip(61)
    data = packed(video, tokenizer, entropy="prior", prior=file, chunk_latents=4)
    header = ContainerReader(io.BytesIO(data)).header
    assert (header.entropy, header.prior) == ("prior", load_prior(file).hash)
    whole = vidtok.decompress(io.BytesIO(data), model=tokenizer, prior=file)
    torch.testing.assert_close(whole, tokenizer.decode(tokenizer.encode(video)))
    part = vidtok.decompress(io.BytesIO(data), model=tokenizer, prior=file, start=1.9)
    torch.testing.assert_close(part, whole[:, :, 57:], atol=1e-5, rtol=0)
    damaged = bytearray(data)
    damaged[ContainerReader(io.BytesIO(data)).entries[1].offset + 50] ^= 1
    with pytest.raises(CodecError, match="chunk 1 of 4 is damaged"):
        vidtok.decompress(io.BytesIO(bytes(damaged)), model=tokenizer, prior=file)
    one = packed(video, tokenizer, entropy="prior", prior=file)
    torch.testing.assert_close(vidtok.decompress(io.BytesIO(one), model=tokenizer, prior=file), whole)


def test_quality_and_bits_per_pixel(tokenizer, file):
    video = clip(29, 32, 32)
    stats = [
        vidtok.compress(video, io.BytesIO(), model=tokenizer, entropy="prior", prior=file, **rate)
        for rate in ({}, {"quality": 20}, {"bpp": 0.2})
    ]
    assert stats[1].bytes < stats[0].bytes and 8 * stats[2].bytes <= 0.2 * stats[2].pixels


def test_other_probabilities_than_the_encoder_s_are_noticed(tokenizer, file, monkeypatch):
    """Were sums rounded on a machine, its probabilities could differ by one step."""
    data = packed(clip(29), tokenizer, entropy="prior", prior=file)
    right = Layer.round

    def wrong(self, sums, lowest):
        x = right(self, sums, lowest)
        return x + (np.arange(x.size).reshape(x.shape) == 5)

    monkeypatch.setattr(Layer, "round", wrong)
    with pytest.raises(CodecError, match="chunk 0 of 1 is damaged") as error:
        vidtok.decompress(io.BytesIO(data), model=tokenizer, prior=file)
    assert "\n" not in str(error.value)


def test_a_wrong_network_never_gives_other_tokens(tmp_path):
    ids = moving(5, 6, 7)
    data = entropy_model("prior", Prior(make_prior(tmp_path / "a"))).encode(ids, 18, 1)
    for seed in range(7920, 7935):
        other = entropy_model("prior", Prior(make_prior(tmp_path / "b", seed=seed)))
        with pytest.raises(ValueError, match="tokens"):
            other.decode(data, ids.shape, 18, 1)
    with pytest.raises(ValueError, match="the checksum of its tokens differs: the prior computed other probabilities"):
        entropy_model("prior", Prior(tmp_path / "a" / FILE)).decode(b"1234" + data[4:], ids.shape, 18, 1)


def test_a_prior_that_is_not_at_hand(tokenizer, file, tmp_path, monkeypatch):
    data = packed(clip(5), tokenizer, entropy="prior", prior=file)
    with pytest.raises(UserError, match=r"by the prior .* of 'tiny' with weights .*which isn't shipped: give"):
        vidtok.decompress(io.BytesIO(data), model=tokenizer)
    with pytest.raises(UserError, match=r"no prior is shipped for 'tiny' .*--entropy adaptive"):
        packed(clip(5), tokenizer, entropy="prior")
    other = make_prior(tmp_path / "other", weight_hash=tokenizer.weight_hash, seed=7907)
    with pytest.raises(ValueError, match="compressed the video: give that one"):
        vidtok.decompress(io.BytesIO(data), model=tokenizer, prior=other)
    with pytest.raises(ValueError, match="is the prior of 'tiny' with weights 0000000000000000, not of"):
        packed(clip(5), tokenizer, entropy="prior", prior=make_prior(tmp_path / "foreign"))
    with pytest.raises(UserError, match="no such file"):
        packed(clip(5), tokenizer, entropy="prior", prior=tmp_path / "none")
    with pytest.raises(ValueError, match="a prior is for entropy='prior'"):
        packed(clip(5), tokenizer, prior=file)
    shipped = tmp_path / "shipped" / "tiny"
    shipped.mkdir(parents=True)
    (shipped / FILE).write_bytes(file.read_bytes())
    monkeypatch.setattr(prior, "PRETRAINED", tmp_path / "shipped")
    assert packed(clip(5), tokenizer, entropy="prior") == data


def test_archives_are_datasets(tokenizer, file, tmp_path, monkeypatch):
    (tmp_path / "archive").mkdir()
    (tmp_path / "archive" / "a.vtk").write_bytes(packed(clip(29), tokenizer, entropy="prior", prior=file))
    with pytest.raises(UserError, match="isn't shipped"):
        vidtok.TokenDataset(tmp_path / "archive")[0]
    monkeypatch.setattr(prior, "PRETRAINED", file.parent.parent)
    ids = vidtok.TokenDataset(tmp_path / "archive")[0]["features"]
    assert torch.equal(ids, tokenizer.encode(clip(29))[0])


def test_commands(tokenizer, tokenizer_path, file, tmp_path, capsys):
    source, coded = tmp_path / "in.mp4", tmp_path / "x.vtk"
    vidtok.write_video(source, clip(9), 25)
    options = ["--model", tokenizer_path, "--prior", str(file)]
    assert main(["compress", str(source), "-o", str(coded), "--entropy", "prior", *options]) == 0
    assert main(["info", str(coded)]) == 0
    assert f"prior, weights {load_prior(file).hash}" in capsys.readouterr().out
    assert main(["decompress", str(coded), "-o", str(tmp_path / "out.mp4"), *options]) == 0
    capsys.readouterr()
    assert main(["decompress", str(coded), "-o", str(tmp_path / "o.mp4"), "--model", tokenizer_path]) == 1
    error = capsys.readouterr().err
    assert "--prior" in error and error.count("\n") == 1 and not (tmp_path / "o.mp4").exists()


def test_files_that_are_no_prior(tmp_path):
    path = make_prior(tmp_path)
    data, tensors = path.read_bytes(), load_file(path)
    for other in (b"", data[:100], data[:-1], b"x" * 5000, data.replace(b"vidtok.prior/2", b"vidtok.prior/9")):
        path.write_bytes(other)
        with pytest.raises(ValueError, match="holds no prior") as error:
            Prior(path)
        assert "\n" not in str(error.value)
    about = {"schema": prior.SCHEMA, "model": "tiny", "weight_hash": "0", "bits": "18"}
    for name, value in [("stem.bias", 2**24), ("stem.shift", 0), ("planes.3.1.shift", 30)]:
        save_file(tensors | {name: np.full_like(tensors[name], value, np.int32)}, path, about)
        with pytest.raises(ValueError, match="sums could exceed 24 bits"):
            Prior(path)
    save_file({name: tensor for name, tensor in tensors.items() if name != "planes.3.1.weight"}, path, about)
    with pytest.raises(ValueError, match="holds no prior"):
        Prior(path)


def test_tokens_that_a_prior_is_not_for(tmp_path):
    network = Prior(make_prior(tmp_path))
    with pytest.raises(ValueError, match="tokens of 18 bits, not 6"):
        PriorState(network, 6, (4, 4))
    with pytest.raises(ValueError, match="at most 262144 tokens"):
        PriorState(network, 18, (513, 512))
    with pytest.raises(ValueError, match="needs a prior"):
        entropy_model("prior")


@pytest.mark.parametrize("path", sorted(PRETRAINED.glob(f"*/{FILE}")), ids=lambda path: path.parent.name)
def test_a_shipped_prior_is_of_its_tokenizer(path):
    tokenizer = VideoTokenizer.from_pretrained(path.parent.name)
    network = Prior(path)
    assert path.stat().st_size < 1 << 20
    assert network.weight_hash == tokenizer.weight_hash, f"train it again, see docs/pages/codec.md, or delete {path}"
    found = find_prior(tokenizer.config.name, tokenizer.weight_hash)
    assert found.hash == network.hash and network.model == tokenizer.config.name
    video = vidtok.datasets.demo_clip()[:, :, :17]
    data, other = (packed(video, tokenizer, entropy=entropy) for entropy in ("prior", "adaptive"))
    ids = tokenizer.encode(video)
    torch.testing.assert_close(vidtok.decompress(io.BytesIO(data)), tokenizer.decode(ids))
    assert len(data) < len(other)


def test_what_is_known_is_learned():
    """Bits that are copies of others cost little after a short training, others about one bit."""
    torch.manual_seed(0)
    network = PriorNetwork({}, 4, channels=8, blocks=1, hidden=8)
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    low = torch.randint(2, (8, 3, 8, 8), generator=torch.Generator().manual_seed(1))
    ids = low + 2 * low + 4 * low.roll(1, 3)  # plane 2 is of the left neighbor, plane 3 is 0
    tokenizer = type("Bits", (), {"bits": 4})()
    task = PriorTask(tokenizer, frames=2)
    for step in range(150):
        optimizer.zero_grad()
        task.terms(network, {"ids": ids}, step)[0].backward()
        optimizer.step()
    assert task.terms(network, {"ids": ids}, 0)[1]["bits"] < 1.5


def test_units_at_a_bound_come_back():
    """Only rectified units may stay at 0: gradients that lead back inside the range pass, and no others."""
    x = torch.tensor([9.0, 9.0, 1.0, -9.0, -9.0, 1e-9]).requires_grad_()
    back = torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0, 1.0])
    for lowest, kept in [(-LARGEST, [1, 0, 1, 0, -1, 1]), (0, [1, 0, 1, 0, 0, 1])]:
        (grad,) = torch.autograd.grad(quantize_activations(x, lowest), x, back)
        assert grad.tolist() == kept
    network = make_network()
    with torch.no_grad():
        network.stem.bias.fill_(100.0)  # all its sums are far above the range
    noise_ids = torch.from_numpy(noise(2, 8, 8, bits=BITS))
    signs = unpack_bits(noise_ids[None], BITS)[0].transpose(0, 1).int() * 2 - 1
    history = next_history(first_history(signs), signs)
    (network(history, signs.flip(0)) * signs).sum().backward()
    assert (network.stem.bias.grad != 0).any()


def test_training_leaves_a_prior(tokenizer, tokenizer_path, tmp_path):
    data = {
        "source": "digits",
        "split": "train",
        "frames": 9,
        "size": 32,
        "batch_size": 4,
        "held_out": "val",
        "held_out_samples": 2,
    }
    lines: list[str] = []
    settings = {"tokenizer": tokenizer_path, "data": data, "network": {"channels": 8, "blocks": 1, "hidden": 4}}
    settings |= {"trainer": {"max_steps": 2, "workers": 0}, "run": tmp_path / "run", "log": lines.append}
    network = train_prior(**settings)
    assert not network.training and any("held out: bits per token" in line for line in lines)
    path = tmp_path / "run" / "model" / FILE
    assert Prior(path).weight_hash == tokenizer.weight_hash
    video = clip(13)
    coded = packed(video, tokenizer, entropy="prior", prior=path)
    decoded = vidtok.decompress(io.BytesIO(coded), model=tokenizer, prior=path)
    torch.testing.assert_close(decoded, tokenizer.decode(tokenizer.encode(video)))
    with pytest.raises(ValueError, match="another network"):
        train_prior(**settings | {"network": {"channels": 9, "blocks": 1, "hidden": 4}})
    assert main(["train", "prior", "--config"]) == 0


def fuzz(cases: int, file: Path, tokenizer: VideoTokenizer) -> None:
    """Damage behind the container's checksums: what the entropy model itself sees."""
    model, ids = entropy_model("prior", load_prior(file)), moving(3, 4, 5)
    whole, generator = model.encode(ids, 18, 1), np.random.default_rng(1)
    for _ in range(cases):
        try:
            assert (model.decode(damage(whole, generator), ids.shape, 18, 1) == ids).all()
        except ValueError as error:
            assert "\n" not in str(error)


def test_damage_is_never_taken_for_tokens(tokenizer, file):
    fuzz(100, file, tokenizer)


@pytest.mark.slow
def test_damage_is_never_taken_for_tokens_2000_times(tokenizer, file):
    fuzz(2_000, file, tokenizer)
