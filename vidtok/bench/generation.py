"""Masked decoding against autoregressive sampling, with and without a cache, of one trunk."""

from collections.abc import Iterator
from functools import partial

import torch

from vidtok.bench.timing import ratio, summary, time_together
from vidtok.generator import GeneratorConfig, create_generator

GRID = (5, 16, 16)  # 1280 tokens, of 17 x 128 x 128
STEPS = 12
TRUNK = {"width": 256, "depth": 6, "heads": 4}


def bench_generation(
    device: torch.device,
    batches: tuple[int, ...] = (1, 8),
    runs: int = 3,
    grid: tuple[int, int, int] = GRID,
    trunk: dict | None = None,
) -> Iterator[dict]:
    """Seconds for a batch of samples of untrained generators: what sampling costs doesn't depend on the weights.

    Args:
        batches: samples at a time.
        runs: rounds, in each of which masked and cached sampling take their turn. Uncached sampling takes minutes, and
            so it is timed once, of the first batch alone, beside another masked one.
        grid: (t, h, w); trunk: width, depth and heads, the same for all three.

    Yields:
        {"batch", "tokens", "steps", "masked", "cached" (seconds, see `summary`), "over_cached" (how many times as long
        as masked sampling, see `ratio`), "trunk"} of each batch; of the first also "uncached" and "over_uncached".
    """
    trunk = trunk or TRUNK
    masked, autoregressive = (
        create_generator(GeneratorConfig(kind, kind, "none", "none", 18, grid, **trunk)).eval().to(device)
        for kind in ("masked", "autoregressive")
    )
    for batch in batches:
        works = {
            "masked": partial(masked.generate, batch, steps=STEPS),
            "cached": partial(autoregressive.generate, batch),
        }
        works["masked"]()  # what is made on first use
        seconds = time_together(works, device, runs, warmup=0)
        row = {
            "batch": batch,
            "tokens": masked.tokens,
            "steps": STEPS,
            "trunk": trunk,
            **{name: summary(times) for name, times in seconds.items()},
            "over_cached": ratio(seconds["cached"], seconds["masked"]),
        }
        if batch == batches[0]:
            uncached = {"uncached": partial(autoregressive.generate, batch, cached=False)}
            once = time_together({"masked": works["masked"], **uncached}, device, 1, warmup=0)
            row |= {"uncached": summary(once["uncached"]), "over_uncached": ratio(once["uncached"], once["masked"])}
        yield row


def describe(row: dict) -> str:
    trunk = row["trunk"]
    line = (
        f"batch {row['batch']}, {row['tokens']} tokens, {trunk['depth']} layers x {trunk['width']}: masked, "
        f"{row['steps']} steps {seconds(row['masked'])}; autoregressive with cache {seconds(row['cached'])} "
        f"({row['over_cached']['median']:.1f} x)"
    )
    if "uncached" not in row:
        return line
    return f"{line}, without {seconds(row['uncached'])} ({row['over_uncached']['median']:.1f} x)"


def seconds(times: dict) -> str:
    from vidtok.eval.report import short_seconds

    return f"{short_seconds(times['median_s'])} s"
