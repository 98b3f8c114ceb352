"""Speed of masked decoding and of autoregressive sampling, with and without a key-value cache, on one transformer."""

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
    """Time sampling from untrained generators; the weights don't affect the speed.

    Args:
        device: device of the generators.
        batches: batch sizes to measure.
        runs: number of rounds, each with one masked and one cached batch. Uncached sampling takes minutes. It is
            therefore timed only once, at the first batch size, together with one more masked batch.
        grid: (t, h, w) of the tokens.
        trunk: width, depth and heads of the transformer, the same for all generators; None, `TRUNK`.

    Yields:
        One row per batch size: {"batch", "tokens", "steps", "masked" and "cached" (seconds, see `summary`),
        "over_cached" (time of cached over masked sampling, see `ratio`), "trunk"}. The first row also has "uncached"
        and "over_uncached".
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
        works["masked"]()  # warm-up
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
    """Format a row of `bench_generation` as a line of text."""
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
