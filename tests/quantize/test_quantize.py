"""Bit order, exact ids, the entropy terms against their definition, and their cost."""

import math
import os
import socket
import subprocess
import sys

import pytest
import torch
import torch.multiprocessing as mp

from vidtok.quantize import FSQ, LFQ, VQ, lfq_entropy


def naive_entropy(z_NK, temperature):
    """The definition: a softmax over all 2^K sign vectors."""
    bits = z_NK.shape[1]
    codes = (torch.arange(2**bits)[:, None] >> torch.arange(bits) & 1).to(z_NK) * 2 - 1
    log_p = torch.log_softmax(2 * z_NK @ codes.T / temperature, 1)
    mean = log_p.exp().mean(0)
    return -(log_p.exp() * log_p).sum(1).mean(), -(mean * mean.clamp_min(1e-300).log()).sum()


@pytest.mark.parametrize("bits", [1, 2, 3, 7, 10])
@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_entropy_equals_the_softmax_over_all_codes(bits, temperature):
    z = torch.randn(50, bits, dtype=torch.float64, generator=torch.Generator().manual_seed(bits)).requires_grad_()
    expected = naive_entropy(z, temperature)
    expected_grad = torch.autograd.grad(expected[0] - 0.7 * expected[1], z)[0]
    got = lfq_entropy(z, temperature)
    assert got[0].item() == pytest.approx(expected[0].item(), abs=1e-4)
    assert got[1].item() == pytest.approx(expected[1].item(), abs=1e-4)
    grad = torch.autograd.grad(got[0] - 0.7 * got[1], z)[0]
    assert torch.allclose(grad, expected_grad, atol=1e-4)


def test_entropy_takes_latent_grids():
    z = torch.randn(2, 6, 3, 4, 5)
    flat = z.movedim(1, -1).reshape(-1, 6)
    assert torch.allclose(torch.stack(lfq_entropy(z, 1.0)), torch.stack(lfq_entropy(flat, 1.0)), atol=1e-5)


def test_groups_bound_the_codebook_entropy_from_above():
    z = torch.randn(40, 10, generator=torch.Generator().manual_seed(0))
    z[:, 5:] = z[:, :5]  # the two groups depend on each other, so that the bound is not tight
    exact, bound = lfq_entropy(z, 0.1)[1], lfq_entropy(z, 0.1, groups=2)[1]
    assert bound > exact + 0.5
    halves = [naive_entropy(part.double(), 0.1)[1].item() for part in z.chunk(2, 1)]
    assert bound.item() == pytest.approx(sum(halves), abs=1e-4)


def test_entropy_extremes():
    sure = torch.full((100, 18), 50.0)
    per_sample, codebook = lfq_entropy(sure, 0.01)
    assert per_sample.item() == 0 and abs(codebook.item()) < 1e-5
    unsure = torch.zeros(100, 18, requires_grad=True)
    per_sample, codebook = lfq_entropy(unsure, 1.0)
    assert per_sample.item() == pytest.approx(18 * math.log(2), rel=1e-5)
    assert codebook.item() == pytest.approx(18 * math.log(2), rel=1e-5)
    (per_sample - codebook).backward()
    assert unsure.grad.isfinite().all()


def test_entropy_gradient_is_finite_where_codes_underflow():
    z = (torch.randn(64, 18) * 1000).requires_grad_()
    per_sample, codebook = lfq_entropy(z, 0.01)
    (per_sample - codebook).backward()
    assert z.grad.isfinite().all()


def test_entropy_is_float32_under_autocast():
    z = torch.randn(64, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = lfq_entropy(z, 1.0)
    assert all(torch.equal(a, b) for a, b in zip(got, lfq_entropy(z, 1.0), strict=True))


def test_too_many_bits_need_groups():
    with pytest.raises(ValueError, match="groups="):
        lfq_entropy(torch.randn(4, 36))
    assert lfq_entropy(torch.randn(4, 36), groups=2)[1].isfinite()
    with pytest.raises(ValueError, match="don't divide"):
        lfq_entropy(torch.randn(4, 18), groups=4)


MEASURE = """
import resource, torch
from vidtok.quantize import lfq_entropy
z = torch.randn(1280, 4, requires_grad=True)
a, b = lfq_entropy(z); (a - b).backward()  # everything is loaded
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
z = torch.randn(1280, 18, requires_grad=True)
a, b = lfq_entropy(z); (a - b).backward()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_entropy_memory_at_18_bits():
    """The softmax over 2^18 codes would take 1280 x 2^18 floats, 1.3 GB."""
    out = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True)
    assert int(out.stdout) < 100_000  # KB


def _rank(rank, world, port, z, counts, folder):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    lfq_entropy(torch.randn(3, 8))  # asked before the group exists: must not switch the reduction off
    torch.distributed.init_process_group("gloo", rank=rank, world_size=world)
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(8, 8))
    with torch.no_grad():
        model.module.weight.copy_(torch.eye(8) * 0.5)
        model.module.bias.zero_()
    start = sum(counts[:rank])
    per_sample, codebook = lfq_entropy(model(z[start : start + counts[rank]]), 0.3)
    (per_sample - codebook).backward()
    result = {"per_sample": per_sample, "codebook": codebook, "grad": model.module.weight.grad}
    torch.save({name: value.detach() for name, value in result.items()}, folder / f"{rank}.pt")
    torch.distributed.barrier()
    os._exit(0)  # gloo's threads may abort an interpreter that takes its time to end


@pytest.mark.parametrize("counts", [(20, 12), (5, 9, 2, 16)])
def test_ranks_equal_one_process_with_all_tokens(counts, tmp_path):
    """Values and DDP-averaged gradients, with unequal token counts."""
    z = torch.randn(sum(counts), 8, generator=torch.Generator().manual_seed(1))
    linear = torch.nn.Linear(8, 8)
    with torch.no_grad():
        linear.weight.copy_(torch.eye(8) * 0.5)
        linear.bias.zero_()
    per_sample, codebook = lfq_entropy(linear(z), 0.3)
    (per_sample - codebook).backward()
    context = mp.get_context("spawn")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    workers = [
        context.Process(target=_rank, args=(r, len(counts), port, z, counts, tmp_path)) for r in range(len(counts))
    ]
    for worker in workers:
        worker.start()
    for rank, worker in enumerate(workers):
        worker.join(120)
        assert worker.exitcode == 0
        result = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert result["per_sample"].item() == pytest.approx(per_sample.item(), abs=1e-5)
        assert result["codebook"].item() == pytest.approx(codebook.item(), abs=1e-5)
        assert torch.allclose(result["grad"], linear.weight.grad, atol=1e-5)


def grid(*channels):
    return torch.tensor(channels, dtype=torch.float32).view(1, -1, 1, 1, 1)


def test_golden_ids_fix_the_bit_order():
    """Channel 0 is the lowest bit; 0 counts as -1."""
    lfq = LFQ(4)
    for z, expected in [((1, -1, -1, -1), 1), ((-1, 1, -1, -1), 2), ((-1, -1, -1, 1), 8), ((0.1, 0, 7, -2), 5)]:
        assert lfq.codes_to_ids(lfq.quantize(grid(*z))).item() == expected
    assert lfq.ids_to_codes(torch.full((1, 1, 1, 1), 6)).flatten().tolist() == [-1, 1, 1, -1]
    assert LFQ(18).codes_to_ids(grid(*[1] * 18)).item() == 2**18 - 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("bits", [1, 18, 36, 60])
def test_ids_are_exact_in_every_dtype(bits, dtype):
    lfq = LFQ(bits, groups=max(1, bits // 18))
    ids = torch.randint(0, 2**bits, (2, 3, 4, 5), generator=torch.Generator().manual_seed(bits))
    ids[0, 0, 0, 0], ids[0, 0, 0, 1] = 2**bits - 1, 0
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(lfq.codes_to_ids(lfq.ids_to_codes(ids).to(dtype)), ids)


@pytest.mark.parametrize("quantizer", [FSQ(), VQ(64, 5), LFQ(18), LFQ(18, levels=3)])
def test_the_same_latents_are_the_same_tokens_under_autocast(quantizer):
    x = torch.randn(1, quantizer.in_channels, 2, 8, 8, generator=torch.Generator().manual_seed(0))

    def ids():
        return quantizer.codes_to_ids(quantizer.quantize(quantizer.latents(x)))

    expected = ids()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(ids(), expected)


def test_gradient_passes_straight_through_the_sign():
    z = torch.randn(1, 18, 1, 2, 2, requires_grad=True)
    codes = LFQ(18).quantize(z)
    assert set(codes.unique().tolist()) == {-1.0, 1.0}
    upstream = torch.randn_like(codes)
    codes.backward(upstream)
    assert torch.equal(z.grad, upstream)


def test_residual_signs_are_a_binary_expansion():
    """sum_l 2^-(l+1) sign_l comes within 2^-levels of tanh of the channel; one level is LFQ itself."""
    residual = LFQ(12, levels=4)
    x = torch.randn(2, 3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    z = residual.latents(x)
    assert z.shape[1] == 12
    signs = residual.quantize(z).view(2, 4, 3, 1, 4, 4)
    value = sum(signs[:, level] / 2 ** (level + 1) for level in range(4))
    assert (value - x.tanh()).abs().max() <= 2**-4 + 1e-6
    assert torch.equal(LFQ(18).latents(x), x)


def test_signs_are_held_while_the_latent_is_near_zero():
    z = torch.tensor([0.5, -0.1, -0.3, 0.1, 0.3]).view(1, 1, -1, 1, 1)
    assert LFQ(1).hold(z, 0).flatten().tolist() == [1, -1, -1, 1, 1]
    assert LFQ(1).hold(z, 0.2).flatten().tolist() == [1, 1, -1, -1, 1]
    assert LFQ(1).hold(z, 9).flatten().tolist() == [1] * 5


def test_later_levels_are_held_first_and_make_up_for_earlier_ones():
    lfq = LFQ(2, levels=2)
    x = torch.randn(2, 1, 6, 3, 3, generator=torch.Generator().manual_seed(0))
    z = lfq.latents(x)
    assert (lfq.hold(z[:, :1], 0) == lfq.quantize(z)).all()
    z = torch.tensor([0.6, 0.4, -0.1]).view(1, 1, -1, 1, 1)  # 2 z - sign: 0.2, -0.2; and -1.2 where +1 is held
    assert lfq.hold(z, 0.15)[0, :, :, 0, 0].tolist() == [[1, 1, 1], [1, 1, -1]]


def test_residual_gradient_reaches_the_encoder_with_the_weight_of_its_level():
    x = torch.full((1, 1, 1, 1, 1), 0.3, requires_grad=True)
    residual = LFQ(3, levels=3)
    for level, share in enumerate((1, 1 / 2, 1 / 4)):
        (grad,) = torch.autograd.grad(residual.quantize(residual.latents(x))[0, level].sum(), x)
        assert grad.item() == pytest.approx(share * (1 - math.tanh(0.3) ** 2), rel=1e-5)


def test_commitment_is_the_mean_square_distance_to_the_sign():
    z = grid(0.5, -2.0)
    lfq = LFQ(2)
    losses = lfq.losses(z, lfq.quantize(z))
    assert losses["commitment"].item() == pytest.approx((0.5**2 + 1.0**2) / 2)
    per_sample, codebook = lfq_entropy(z)
    assert losses["entropy"].item() == pytest.approx((per_sample - codebook).item())


@pytest.mark.parametrize("levels", [(2,) * 18, (8,) * 6, (7, 5, 5, 3), (8, 8, 8, 5, 5, 5)])
def test_fsq_ids_and_codes(levels):
    fsq = FSQ(levels)
    size = math.prod(levels)
    assert fsq.bits == pytest.approx(math.log2(size))
    ids = torch.randint(0, size, (1, 2, 8, 8), generator=torch.Generator().manual_seed(0))
    codes = fsq.ids_to_codes(ids)
    assert torch.equal(fsq.codes_to_ids(codes), ids)
    assert torch.allclose(fsq.quantize(codes), codes, atol=1e-6)
    for channel, n in enumerate(levels):
        values = codes[:, channel].unique()
        assert len(values) <= n and values.abs().max() <= 1


def test_fsq_golden():
    """Channel 0 counts fastest."""
    fsq = FSQ((4, 3))
    assert fsq.codes_to_ids(grid(-1, -1)).item() == 0
    assert fsq.codes_to_ids(grid(1, -1)).item() == 3
    assert fsq.codes_to_ids(grid(-1, 0)).item() == 4
    assert fsq.codes_to_ids(grid(1, 1)).item() == 11


def test_vq_takes_the_nearest_entry():
    torch.manual_seed(0)
    vq = VQ(64, 5)
    z = torch.randn(2, 5, 2, 3, 3)
    ids = vq.codes_to_ids(z)
    distances = torch.cdist(z.movedim(1, -1).reshape(-1, 5), vq.codebook.detach())
    assert torch.equal(ids.flatten(), distances.argmin(1))
    assert torch.equal(vq.codes_to_ids(vq.ids_to_codes(ids)), ids)
    z.requires_grad_()
    losses = vq.losses(z, vq.quantize(z))
    (z_grad,) = torch.autograd.grad(losses["commitment"], z)
    (entry_grad,) = torch.autograd.grad(losses["codebook"], vq.codebook)
    assert z_grad.abs().sum() > 0 and entry_grad.abs().sum() > 0
    assert losses["commitment"].item() == pytest.approx(losses["codebook"].item())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: LFQ(61), "1 to 60 bits"),
        (lambda: LFQ(18, levels=4), "levels"),
        (lambda: FSQ((1, 8)), "2 or more"),
        (lambda: VQ(1), "2 or more"),
    ],
)
def test_illegal_arguments(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_encoding_never_computes_the_entropy(monkeypatch):
    from test_tokenizer import build, clip

    def never(*_):
        raise AssertionError("the entropy is a training loss")

    monkeypatch.setattr("vidtok.quantize.lfq.lfq_entropy", never)
    tokenizer = build()
    tokenizer.decode(tokenizer.encode(clip()))
