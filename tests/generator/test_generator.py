"""Generators: one contract for three kinds, their sampling, masks and schedules, and clips longer than the grid."""

import math
import shutil
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.utils import counters

from vidtok.configs.compose import compose_config, to_dict
from vidtok.generator import KINDS, Generator, GeneratorConfig, Objective, create_generator, from_pretrained, masks
from vidtok.generator.decoding import BufferedDecoder, Decoder, fastest_decoder
from vidtok.generator.long import generate_long
from vidtok.generator.sampling import (
    PerSampleRNG,
    guidance_scale,
    mask_ratio,
    pick,
    pick_by_share,
    sample_rngs,
    top_k_top_p_filter,
)
from vidtok.generator.training import generator_settings
from vidtok.generator.transformer import Cache, Rotary, TokenEmbedding, attention
from vidtok.quantize import LFQ
from vidtok.quantize.lfq import combine_ids, factorize_ids, ids_to_signs, signs_to_ids
from vidtok.train.state import make_ema

GRID = (4, 2, 3)
CONFIG = GeneratorConfig(
    "test", "masked", "vidtok-t", "0" * 16, 18, GRID, classes=("left", "right"), width=48, depth=2, heads=2
)
TASKS = {"none": 1.0, "prefix": 1.0, "prefix-2": 1.0, "interpolation": 1.0, "inpainting": 1.0, "outpainting": 1.0}


@pytest.mark.parametrize("dim", [6, 32])
def test_rotary_turns_pairs_by_the_angles_of_their_axis(dim):
    """As trained weights know it: pairs (i, i + dim/2), split among the axes with the rest on the first."""
    pairs = dim // 2
    counts = pairs - 2 * (pairs // 3), pairs // 3, pairs // 3
    rates = torch.cat([(1 / 8) ** (torch.arange(n) / max(n - 1, 1)) for n in counts])
    axis = torch.arange(3).repeat_interleave(torch.tensor(counts))
    places = torch.cartesian_prod(*(torch.arange(n) for n in GRID)).float()
    turn = torch.polar(torch.ones(24, pairs), places[:, axis] * rates)
    x = torch.randn(2, 3, 24, dim, generator=torch.Generator().manual_seed(0))
    left, right = x.chunk(2, -1)
    turned = torch.complex(left, right) * turn
    expected = torch.cat([turned.real, turned.imag], -1)
    rotary = Rotary(GRID, dim)
    torch.testing.assert_close(rotary(x), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(rotary(x[:, :, 5:9], 5), expected[:, :, 5:9], atol=1e-5, rtol=0)


def make(kind: str, seed: int = 0, **changes):
    """A generator with weights that matter: those that begin at zero are drawn, too."""
    torch.manual_seed(seed)
    generator = create_generator(replace(CONFIG, kind=kind, **changes))
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return generator.eval()


def batch_of(size: int) -> dict:
    draw = torch.Generator().manual_seed(size)
    latents = torch.randn(size, 18, *GRID, generator=draw)
    return {
        "latents": latents,
        "ids": LFQ(18).codes_to_ids(latents),
        "label": torch.arange(size) % 3 - 1,
        "seed": torch.arange(size),
    }


@pytest.mark.parametrize("bits", [13, 18])
def test_halves_and_signs_are_exact(bits):
    ids = torch.randint(0, 2**bits, (2, 50), generator=torch.Generator().manual_seed(0))
    low, high = factorize_ids(ids, bits)
    assert low.max() < 2 ** math.ceil(bits / 2) and high.max() < 2 ** (bits // 2)
    assert torch.equal(combine_ids(low, high, bits), ids)
    signs = ids_to_signs(ids, bits)
    assert torch.equal(signs_to_ids(signs), ids)
    assert torch.equal(LFQ(bits).codes_to_ids(signs.mT[..., None, None])[..., 0, 0], ids)


@pytest.mark.parametrize("kind", KINDS)
def test_the_papers_size_has_307_million_parameters(kind):
    with torch.device("meta"):
        generator = create_generator(
            replace(CONFIG, kind=kind, grid=(5, 16, 16), width=1024, depth=24, heads=16, classes=("class",) * 101)
        )
    parameters = sum(parameter.numel() for parameter in generator.parameters())
    assert abs(parameters / 307e6 - 1) < 0.02


@pytest.mark.parametrize("kind", KINDS)
def test_training_reaches_every_parameter_and_a_sample_is_its_own(kind):
    generator, objective = make(kind).train(), Objective(tasks=TASKS)
    batch = batch_of(6)
    terms = generator(batch, objective)
    terms["loss"].backward()
    without = [name for name, parameter in generator.named_parameters() if parameter.grad is None]
    assert not without
    # The loss of a batch is the mean of those of its halves: it doesn't matter which process trains on which sample.
    halves = [{name: value[part] for name, value in batch.items()} for part in (slice(0, 3), slice(3, 6))]
    assert terms["loss"].item() == pytest.approx(sum(generator(half, objective)["loss"].item() for half in halves) / 2)


@pytest.mark.parametrize("kind", ["masked", "autoregressive"])
def test_tokens_without_factorization(kind):
    """One factor: logits of all 2^bits values, and the loss of a token is their cross-entropy alone."""
    generator = create_generator(replace(CONFIG, kind=kind, bits=6, arguments={"factors": 1})).train()
    generator.trunk.modulation.bias.data.normal_()
    ids = torch.randint(0, 64, (4, *GRID), generator=torch.Generator().manual_seed(0))
    batch = {"ids": ids, "label": torch.tensor([0, 1, 0, 1]), "seed": torch.arange(4)}
    terms = generator(batch, Objective(0.0, 0.0))
    assert generator.heads.low_logits(torch.zeros(1, 1, 48)).shape == (1, 1, 64)
    assert terms["loss"] > 0 and terms["bits"].item() == pytest.approx(6, abs=1)
    if kind == "autoregressive":  # every token is scored: nats against bits
        assert terms["bits"].item() == pytest.approx(terms["loss"].item() / math.log(2), rel=1e-5)
    terms["loss"].backward()
    assert all(parameter.grad is not None for parameter in generator.parameters())
    drawn = generator.generate(3, 1, seed=1, guidance=1.5)
    assert drawn.min() >= 0 and drawn.max() < 64 and len(drawn.unique()) > 5
    low, high = factorize_ids(ids, 6, 1)
    assert torch.equal(low, ids) and not high.any() and torch.equal(combine_ids(low, high, 6, 1), ids)
    with pytest.raises(ValueError, match="1 or 2 factors, not 3"):
        create_generator(replace(CONFIG, kind=kind, arguments={"factors": 3}))
    with pytest.raises(ValueError, match="factors"):
        create_generator(replace(CONFIG, kind="diffusion", arguments={"factors": 1}))


@pytest.mark.parametrize("kind", KINDS)
def test_an_overfitted_generator_gives_its_clip_back(kind):
    generator = make(kind, depth=1).train()
    batch = {name: value[:1].expand(8, *value.shape[1:]) for name, value in batch_of(1).items()} | {
        "seed": torch.arange(8)
    }
    if kind == "diffusion":
        batch["latents"] = batch["latents"].sign()  # so that no sign hangs by a thread
    optimizer = torch.optim.AdamW(generator.parameters(), 3e-3, weight_decay=0.0)
    for step in range(250):
        loss = generator(batch | {"seed": torch.arange(8) + 8 * step}, Objective(0.0, 0.0))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    # Without rare draws, behind which an autoregressive model has never been.
    ids = generator.generate(2, seed=3, **({} if kind == "diffusion" else {"temperature": 0.5}))
    signs, wanted = ids_to_signs(ids.flatten(1), 18), ids_to_signs(batch["ids"][:2].flatten(1), 18)
    assert (signs == wanted).float().mean() > 0.9


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_depends_on_its_seed_and_number_alone(kind):
    generator = make(kind)
    settings = {"steps": None if kind == "autoregressive" else 3, "guidance": 1.5, "seed": 7}
    together = generator.generate(3, ["left", "right", "left"], **settings)
    alone = [generator.generate(1, label, first=i, **settings) for i, label in enumerate(("left", "right", "left"))]
    assert torch.equal(together, torch.cat(alone))
    assert together.shape == (3, *GRID) and together.dtype == torch.int64
    assert not torch.equal(together[0], together[2])
    assert not torch.equal(together, generator.generate(3, ["left", "right", "left"], **settings | {"seed": 8}))


@pytest.mark.parametrize("kind", KINDS)
def test_a_prefix_stays_and_is_looked_at(kind):
    generator = make(kind)
    prefix = batch_of(2)["ids"][:, :2]
    steps = None if kind == "autoregressive" else 4
    ids = generator.generate(2, prefix=prefix, steps=steps)
    assert torch.equal(ids[:, :2], prefix)
    assert not torch.equal(generator.generate(2, prefix=prefix.flip(0), steps=steps)[:, 2:], ids[:, 2:])


@pytest.mark.parametrize("kind", ["masked", "diffusion"])
@pytest.mark.parametrize(
    "mask",
    [masks.interpolation(GRID), masks.inpainting(GRID, 0, 1, 1, 2), masks.outpainting(GRID, 0, 1, 1, 2)],
    ids=["interpolation", "inpainting", "outpainting"],
)
def test_known_tokens_stay_whatever_the_mask(kind, mask):
    known = batch_of(1)["ids"]
    ids = make(kind).generate(2, known=(known, mask), steps=3)
    assert torch.equal(ids[:, mask], known[:, mask].expand(2, -1))
    assert (ids[:, ~mask] != 0).any()


def test_masks_are_what_they_say():
    assert masks.prefix(GRID, 2)[:, 0, 0].tolist() == [True, True, False, False]
    assert masks.interpolation(GRID, 1, 2)[:, 0, 0].tolist() == [True, False, True, True]
    box = masks.inpainting(GRID, 1, 0, 1, 2)
    assert (~box).sum() == 4 * 2 and not box[:, 1, :2].any()
    assert torch.equal(masks.outpainting(GRID, 1, 0, 1, 2), ~box)
    rng = PerSampleRNG(torch.arange(200))
    for task in TASKS:
        masks.check_task(task, GRID)
        drawn = masks.draw_masks(task, GRID, rng)
        assert drawn.shape == (200, *GRID)
        for mask in drawn:
            assert not mask.all() and mask.any() == (task != "none")
        assert (len(drawn.unique(dim=0)) > 1) == (task not in ("none", "prefix-2"))
    assert (masks.draw_masks("prefix-2", GRID, rng).flatten(1).sum(1) == 2 * 6).all()
    for wrong in (
        lambda: masks.prefix(GRID, 4),
        lambda: masks.interpolation(GRID, 2, 2),
        lambda: masks.inpainting(GRID, 0, 2, 2, 2),
        lambda: masks.check_task("prefx", GRID),
        lambda: masks.check_task("prefix", (1, 4, 4)),
        lambda: masks.check_task("prefix-4", GRID),
    ):
        with pytest.raises(ValueError):
            wrong()


def test_schedules():
    assert [mask_ratio("cosine", u) for u in (0, 2 / 3, 1)] == pytest.approx([1, 0.5, 0])
    assert [mask_ratio("uniform", u) for u in (0, 0.25, 1)] == [1, 0.75, 0]
    assert [guidance_scale(name, 3.0, 0.5) for name in ("constant", "linear", "cosine")] == pytest.approx([3, 2, 2])
    assert guidance_scale("cosine", 3.0, 1.0) == pytest.approx(3.0)
    with pytest.raises(ValueError, match="did you mean 'cosine'"):
        mask_ratio("cosin", 0.5)


def test_masked_decoding_keeps_what_it_has_decided():
    generator = make("masked")
    seen = []
    predict = generator.predict

    def watched(ids_BN, masked_BN, *rest):
        seen.append((ids_BN.clone(), masked_BN.clone()))
        return predict(ids_BN, masked_BN, *rest)

    generator.predict = watched
    final = generator.generate(2, steps=5).flatten(1)
    counts = [int(masked[0].sum()) for _, masked in seen]
    N = math.prod(GRID)
    assert counts == [N] + [int(mask_ratio("cosine", step / 5) * N) for step in range(1, 5)]
    for (before, hidden), (after, still) in zip(seen, [*seen[1:], (final, None)], strict=True):
        assert torch.equal(before[~hidden], after[~hidden])
        assert still is None or (still <= hidden).all()


def test_learned_positions_tell_masked_tokens_apart():
    """By rotary positions alone, which turn queries and keys only, all tokens of a fully masked grid look alike."""
    generator = make("masked")
    ids, masked = torch.zeros(1, generator.tokens, dtype=torch.long), torch.ones(1, generator.tokens, dtype=torch.bool)
    condition = generator.label_embed(torch.tensor([0]))
    with torch.no_grad():
        assert generator.features(ids, masked, condition).std(1).mean() > 0.1
        for parameter in generator.trunk.positions:
            parameter.zero_()
        torch.testing.assert_close(
            generator.features(ids, masked, condition).std(1), torch.zeros(1, 48), atol=1e-5, rtol=0
        )


@pytest.mark.parametrize("positions", ["learned", "rotary"])
@pytest.mark.parametrize("kind", KINDS)
def test_one_kind_of_positions_is_enough_to_train_and_sample(kind, positions):
    generator = make(kind, arguments={"positions": positions})
    assert (generator.trunk.rotary is None) == (positions == "learned")
    assert any("trunk.positions" in name for name in generator.state_dict()) == (positions == "learned")
    generator(batch_of(2), Objective(tasks=TASKS))["loss"].backward()
    assert all(parameter.grad is not None for parameter in generator.parameters())
    drawn = generator.generate(2, 1, seed=1)
    if kind == "autoregressive":
        assert torch.equal(generator.generate(2, 1, seed=1, cached=False), drawn)
        generator.decoder = Decoder
        assert torch.equal(generator.generate(2, 1, seed=1), drawn)
    with pytest.raises(ValueError, match="unknown positions 'rotari': did you mean 'rotary'"):
        make(kind, arguments={"positions": "rotari"})
    given = [f"generator={kind}", f"generator.arguments.positions={positions}"]
    recorded, before = (
        generator_settings(to_dict(compose_config("train_generator", given[:count])))["arguments"] for count in (2, 1)
    )
    assert recorded == before | {"positions": positions} and "positions" not in before  # as in earlier versions


def test_a_causal_trunk_sees_no_later_token():
    generator = make("autoregressive")
    ids = batch_of(1)["ids"].flatten(1)
    other = ids.clone()
    other[:, 10] ^= 5
    condition = generator.label_embed(torch.tensor([0]))
    features = [generator.trunk(generator.embed_before(x[:, :-1]), condition) for x in (ids, other)]
    same = (features[0] == features[1]).all(-1)[0]
    assert same[:11].all() and not same[11:].any()


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_the_cache_changes_nothing(guidance):
    generator = make("autoregressive")
    prefix = batch_of(2)["ids"][:, :1]
    settings = {"prefix": prefix, "guidance": guidance, "label": ["left", "right"], "top_p": 0.9}
    assert torch.equal(generator.generate(2, **settings), generator.generate(2, cached=False, **settings))
    ids = batch_of(2)["ids"].flatten(1)
    embedded, condition = generator.embed_before(ids[:, :-1]), generator.label_embed(torch.tensor([0, 1]))
    whole = generator.trunk(embedded, condition)
    cache = Cache(generator.trunk, condition)
    parts = [generator.trunk(embedded[:, :5], condition, cache)]
    parts += [generator.trunk(embedded[:, n : n + 1], condition, cache) for n in range(5, embedded.shape[1])]
    assert torch.allclose(torch.cat(parts, 1), whole, atol=1e-5)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("batch", [1, 3])
def test_the_buffered_decoder_gives_the_features_of_the_whole(batch, threads, monkeypatch):
    """After a prefix, token by token; also where weights are prefetched in parts and under autocast."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr("vidtok.generator.decoding.PREFETCH_BYTES", 20 * 48 * 4)  # 20 rows of a matrix
    generator = make("autoregressive")
    ids = batch_of(batch)["ids"].flatten(1)
    with torch.no_grad():
        generator.trunk.blocks[1].qkv.weight[:48] *= 1e-3  # queries as small as the epsilon of their norm
        embedded, condition = generator.embed_before(ids[:, :-1]), generator.label_embed(torch.arange(batch) % 2)
        whole = generator.trunk(embedded, condition)
        decoder = BufferedDecoder(generator.trunk, condition)
        parts = [decoder.prefill(embedded[:, :5])]
        with torch.autocast("cpu", torch.bfloat16):
            parts += [decoder.step(embedded[:, n]) for n in range(5, embedded.shape[1])]
        assert torch.allclose(torch.stack(parts, 1), whole[:, 4:], atol=1e-5)
    assert len(decoder.layers[0].qkv.parts) == (8 if threads == 1 else 1)


def test_decoders_draw_the_same_tokens():
    generator = make("autoregressive")
    settings = {"label": ["left", "right"], "guidance": 2.0, "seed": 3}
    assert fastest_decoder(generator.trunk) is BufferedDecoder
    ids = generator.generate(2, **settings)
    generator.decoder = Decoder
    assert torch.equal(generator.generate(2, **settings), ids)
    assert not ids.is_inference()  # usable in training
    generator.compile()  # a compiled trunk also takes its steps compiled
    assert fastest_decoder(generator.trunk) is Decoder


@pytest.mark.parametrize(
    "positions, settings",
    [("both", {"guidance": 2.0, "guidance_schedule": "linear"}), ("learned", {"top_k": 40, "top_p": 0.9})],
)
def test_a_step_is_compiled_once_for_all_tokens(positions, settings, monkeypatch):
    """Whatever the length of the prefix, over several lengths of attention, and in the next clip."""
    monkeypatch.setattr("vidtok.generator.decoding.STATIC_LENGTH", 8)
    generator = make("autoregressive", arguments={"positions": positions})
    settings = settings | {"label": ["left", "right"], "seed": 3}
    prefix = batch_of(2)["ids"][:, :1]
    expected = generator.generate(2, **settings), generator.generate(2, prefix=prefix, **settings)
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    generator.next_token.compile(backend=backend)
    assert torch.equal(generator.generate(2, **settings), expected[0])
    assert torch.equal(generator.generate(2, prefix=prefix, **settings), expected[1])
    assert len(graphs) == 1
    assert torch.equal(generator.generate(2, **settings, cached=False), expected[0]) and len(graphs) == 1


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
@pytest.mark.parametrize("batch", [1, 12])  # few rows, and more than `FEW_ROWS`
def test_the_compiled_step_draws_the_same_tokens(batch):
    generator = make("autoregressive")
    settings = {"label": "left", "guidance": 1.0 if batch == 1 else 2.0, "seed": 3}
    expected = generator.generate(batch, **settings)
    torch._dynamo.reset()
    counters.clear()
    generator.next_token.compile()
    assert torch.equal(generator.generate(batch, **settings), expected)
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_the_compiled_step_on_a_gpu_draws_the_tokens_of_the_plain_one(mode):
    generator = make("autoregressive").cuda()
    settings = {"label": ["left", "right"], "guidance": 2.0}
    expected = [generator.generate(2, seed=seed, **settings) for seed in (3, 4)]
    torch._dynamo.reset()
    counters.clear()
    generator.next_token.compile(mode=mode)
    for seed, ids in zip((3, 4), expected, strict=True):
        assert torch.equal(generator.generate(2, seed=seed, **settings), ids)
    assert counters["stats"]["unique_graphs"] == 1 and not counters["inductor"]["cudagraph_skips"]


def test_top_k_and_top_p_keep_the_likeliest():
    logits = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05]))[[2, 0, 3, 1]].expand(1, 1, 4)
    assert top_k_top_p_filter(logits, top_k=2).isfinite()[0, 0].tolist() == [False, True, False, True]
    assert top_k_top_p_filter(logits, top_p=0.6).isfinite()[0, 0].tolist() == [False, True, False, True]
    assert top_k_top_p_filter(logits, top_p=0.5).isfinite()[0, 0].tolist() == [False, True, False, False]
    assert torch.equal(top_k_top_p_filter(logits), logits)


def test_random_numbers_belong_to_samples():
    seeds = torch.tensor([0, 1, 2, -5, 2**62])
    together, alone = PerSampleRNG(seeds), PerSampleRNG(seeds[1:2])
    for make in ("uniform", "normal", "gumbel"):
        assert torch.equal(getattr(together, make)(3, 4)[1:2], getattr(alone, make)(3, 4))
    # SplitMix64's own first numbers of seed 1234567, by the published algorithm, whose seed we hash first.
    state, mask = 1234567, (1 << 64) - 1

    def following(x):
        x = ((x ^ x >> 30) * 0xBF58476D1CE4E5B9) & mask
        x = ((x ^ x >> 27) * 0x94D049BB133111EB) & mask
        return x ^ x >> 31

    start = following(state)
    wanted = [(following(start + i * 0x9E3779B97F4A7C15 & mask) >> 41) + 0.5 for i in range(1, 6)]
    assert (PerSampleRNG(torch.tensor([state])).uniform(5)[0].double() * 2**23).tolist() == wanted


def test_random_numbers_are_uniform_normal_and_whole():
    rng = PerSampleRNG(torch.arange(1000))
    uniform, normal = rng.uniform(500).double(), rng.normal(500).double()
    assert uniform.min() > 0 and uniform.max() < 1
    shares = torch.histc(uniform.float(), 50, 0, 1) / uniform.numel()
    assert (shares - 0.02).abs().max() < 0.0012  # six standard errors
    assert abs(normal.mean()) < 0.006 and abs(normal.var() - 1) < 0.01 and abs((normal**4).mean() - 3) < 0.07
    # Neighbors, in one sample and of neighboring seeds, have nothing to do with each other.
    for a, b in ((uniform[:, 1:], uniform[:, :-1]), (uniform[1:], uniform[:-1])):
        assert abs(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1]) < 0.009
    assert rng.whole(2, 4).unique().tolist() == [2, 3, 4]
    high = torch.tensor([1, 3]).repeat(500)
    assert (rng.whole(1, high) <= high).all()
    share = torch.bincount(rng.choice([1.0, 0.0, 3.0]), minlength=3) / 1000
    assert share.tolist() == pytest.approx([0.25, 0, 0.75], abs=0.08)


def test_tasks_and_weights_that_are_none_are_refused():
    generator = make("masked")
    with pytest.raises(ValueError, match="prefix"):
        generator(batch_of(2), Objective(tasks={"prefx": 1.0}))
    for weight in (math.inf, math.nan, -1.0, 0.0):
        with pytest.raises(ValueError, match="weights of at least 0"):
            Objective(tasks={"none": weight})
    assert PerSampleRNG(torch.arange(5)).choice([1e-50]).tolist() == [0] * 5


def test_what_has_no_weight_is_never_picked():
    weights = torch.tensor([0.0, 0.3, 0.0, 0.7, 0.0]).expand(3, 5)
    ends = torch.tensor([2.0**-24, 0.5, 1 - 2.0**-24])
    assert pick_by_share(weights, ends).tolist() == [1, 3, 3]


def test_tokens_are_drawn_from_the_softmax():
    logits = torch.tensor([0.2, 0.5, 0.3]).log().expand(1, 20_000, 3)
    rng = sample_rngs(0, 0, 1, torch.device("cpu"))
    uniform = rng.uniform(20_000)
    shares = F.one_hot(pick(logits, uniform), 3).double().mean((0, 1))
    assert shares.tolist() == pytest.approx([0.2, 0.5, 0.3], abs=0.015)
    cold = F.one_hot(pick(logits, uniform, temperature=0.5), 3).double().mean((0, 1))
    assert cold.tolist() == pytest.approx([0.04 / 0.38, 0.25 / 0.38, 0.09 / 0.38], abs=0.015)
    assert (pick(logits, uniform, temperature=0) == 1).all()
    flat = torch.zeros(1, 20_000, 512)
    assert torch.equal(pick(flat.bfloat16(), uniform), pick(flat, uniform))


@pytest.mark.parametrize("kind", KINDS)
def test_longer_clips_begin_as_short_ones_and_go_on(kind):
    generator = make(kind)
    settings = {"label": "left", "seed": 5, "steps": None if kind == "autoregressive" else 2}
    ids = generate_long(generator, 2, 9, overlap=2, **settings)
    assert ids.shape == (2, 9, *GRID[1:])
    assert torch.equal(ids[:, :4], generator.generate(2, **settings))
    # The second window: the first latent frame and the last two, then one that is new.
    given = torch.cat([ids[:, :1], ids[:, 2:4]], 1)
    second = generator.generate(2, prefix=given, **settings | {"seed": 5 + 1_000_003})
    assert torch.equal(ids[:, 4:5], second[:, 3:])
    with pytest.raises(ValueError, match="overlap"):
        generate_long(generator, 1, 9, overlap=3)


@pytest.mark.parametrize("kind", ["masked", "diffusion"])
def test_longer_clips_keep_known_tokens(kind):
    generator = make(kind)
    ids = torch.randint(0, 2**18, (2, 9, *GRID[1:]), generator=torch.Generator().manual_seed(0))
    mask = torch.rand(ids.shape[1:], generator=torch.Generator().manual_seed(1)) < 0.5
    mask[4:7] = True  # a window's own latent frames, with an overlap of 1 and 2
    settings = {"label": "left", "steps": 2, "known": (ids, mask)}
    for overlap in (1, 2):
        longer = generate_long(generator, 2, 9, overlap, **settings)
        assert longer.shape == ids.shape and torch.equal(longer[:, mask], ids[:, mask])
        assert not torch.equal(longer[:, ~mask], ids[:, ~mask])
        first = generator.generate(2, "left", steps=2, known=(ids[:, :4], mask[:4]))
        assert torch.equal(longer[:, :4], first)


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded(kind, tmp_path):
    generator = make(kind)
    generator.save_pretrained(tmp_path)
    loaded = from_pretrained(tmp_path)
    assert loaded.config == generator.config and not loaded.training
    assert all(torch.equal(value, generator.state_dict()[name]) for name, value in loaded.state_dict().items())
    assert type(Generator.from_pretrained(tmp_path)) is type(generator)
    generator.save_pretrained(tmp_path, dtype=torch.float16)
    half = {name: value.half().float() for name, value in generator.state_dict().items()}
    assert all(torch.equal(value, half[name]) for name, value in from_pretrained(tmp_path).state_dict().items())
    with pytest.raises(ValueError, match="has no config"):
        from_pretrained(tmp_path / "..")


def test_guidance_moves_away_from_no_class():
    generator = make("masked")
    with torch.no_grad():
        ids = torch.zeros(1, math.prod(GRID), dtype=torch.long)
        hidden = torch.ones_like(ids, dtype=torch.bool)
        label = torch.tensor([0])
        logits = [
            generator.heads.low_logits(generator.features(ids, hidden, generator.label_embed(number)))
            for number in (label, torch.tensor([2]))
        ]
        wanted = (logits[1] + 3 * (logits[0] - logits[1])).argmax(-1)
        found, _ = generator.predict(ids, hidden, label, PerSampleRNG(torch.tensor([0])), 3.0, 0)
    assert torch.equal(factorize_ids(found, 18)[0], wanted)


def test_wrong_wishes_are_one_clear_line():
    generator = make("masked")
    wrong = [
        ({"label": "up"}, "no class 'up': test knows 0 .. 1: left, right"),
        ({"label": 2}, "no class 2"),
        ({"label": ["left"]}, "1 labels for a batch of 2"),
        ({"guidance": 2.0}, "guidance needs a label"),
        ({"steps": 0}, "steps is at least 1, not 0"),
        ({"temperature": -1.0}, "temperature is at least 0"),
        ({"choice_temperature": math.nan}, "choice_temperature is at least 0"),
        ({"guidance": math.inf, "label": 0}, "guidance is at least 0"),
        ({"schedule": "cosin"}, "did you mean 'cosine'"),
        ({"guidance_schedule": "x"}, "unknown guidance schedule 'x'"),
        ({"prefix": torch.zeros(2, 4, 2, 3, dtype=torch.long)}, "0 to 3 latent frames"),
        ({"prefix": torch.zeros(2, 1, 3, 3, dtype=torch.long)}, "a prefix is"),
        ({"prefix": torch.full((1, 1, 2, 3), 2**18)}, "token ids lie in"),
        ({"top_k": 3}, "masked sampling has no 'top_k'"),
    ]
    for arguments, message in wrong:
        with pytest.raises(ValueError, match=message):
            generator.generate(2, **arguments)
    autoregressive, diffusion = make("autoregressive"), make("diffusion")
    for generator, arguments, message in (
        (autoregressive, {"steps": 3}, "one step for each of its 24 tokens, not 3"),
        (autoregressive, {"top_k": 0}, "top_k is at least 1"),
        (autoregressive, {"top_p": 0.0}, "top_p is above 0"),
        (diffusion, {"solver": "dmp"}, "did you mean 'dpm'"),
        (diffusion, {"steps": 1001}, "at most the 1000 steps"),
    ):
        with pytest.raises(ValueError, match=message):
            generator.check_sampling(**arguments)
    with pytest.raises(ValueError, match="prefix"):
        make("autoregressive").generate(1, known=(batch_of(1)["ids"], masks.interpolation(GRID)))
    with pytest.raises(ValueError, match="unknown generator"):
        create_generator(replace(CONFIG, kind="mask"))
    with pytest.raises(ValueError, match="masked generator"):
        create_generator(replace(CONFIG, arguments={"betas": "linear"}))


def test_token_tables_begin_linear_in_the_bits():
    embedding = TokenEmbedding(18, 64)
    for table in (embedding.low.weight, embedding.high.weight):
        assert torch.linalg.matrix_rank(table.detach()) == 9 and len(table) == 2**9


@pytest.mark.parametrize("causal", [False, True])
def test_plain_attention_is_the_fused_one(causal):
    q, k, v = torch.randn(3, 2, 4, 10, 16).bfloat16().unbind()
    wanted = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), is_causal=causal)
    assert torch.allclose(attention(q, k, v, causal, 0.0).float(), wanted, atol=0.03)
    assert torch.equal(attention(q.float(), k.float(), v.float(), causal, 0.0), wanted)


def test_tied_tables_are_averaged_once():
    generator = make("masked")
    ema = make_ema(generator, 0.5)
    before = ema.module.embed.low.weight.clone()
    with torch.no_grad():
        generator.embed.low.weight += 1
    ema.update(generator, 1000)
    assert ema.module.heads.embedding.low.weight is ema.module.embed.low.weight
    assert torch.allclose(ema.module.embed.low.weight, before + 0.5, atol=1e-5)


def test_a_samples_own_beginning_leads_to_its_end():
    generator = make("autoregressive")
    ids = generator.generate(2, "left", seed=4)
    assert torch.equal(generator.generate(2, "left", ids[:, :2], seed=4), ids)
