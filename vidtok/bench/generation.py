"""Speed of masked decoding and of autoregressive sampling, with and without a key-value cache, on one transformer."""

import copy
from collections.abc import Iterator
from functools import partial
from typing import cast

import torch

from vidtok.bench.timing import ratio, summary, time_together
from vidtok.generator import GeneratorConfig, create_generator
from vidtok.generator.autoregressive import AutoregressiveGenerator
from vidtok.generator.decoding import Decoder

GRID = (5, 16, 16)  # 1280 tokens, of 17 x 128 x 128
STEPS = 12
TRUNK = {"width": 256, "depth": 6, "heads": 4}


def bench_generation(
    device: torch.device,
    batches: tuple[int, ...] = (1, 8),
    runs: int = 3,
    grid: tuple[int, int, int] = GRID,
    trunk: dict | None = None,
    uncached: bool = True,
    compiled: bool = False,
) -> Iterator[dict]:
    """Time sampling from untrained generators; the weights don't affect the speed.

    Args:
        device: device of the generators.
        batches: batch sizes to measure.
        runs: number of rounds, each with one masked and one cached batch, and one with the cache but without buffers
            (`vidtok.generator.decoding.Decoder`). Uncached sampling takes minutes. It is therefore timed only once, at
            the first batch size, together with one more masked batch.
        grid: (t, h, w) of the tokens.
        trunk: width, depth and heads of the transformer, the same for all generators; None, `TRUNK`.
        uncached: whether to time uncached sampling.
        compiled: whether to time cached sampling with `Generator.compile` too, in the same rounds.

    Yields:
        One row per batch size: {"batch", "tokens", "steps", "masked", "cached" and "unbuffered" (seconds, see
        `summary`), "over_cached" (time of cached over masked sampling, see `ratio`), "over_unbuffered" (time of
        unbuffered over cached sampling), "trunk"}. The first row also has "uncached" and "over_uncached". With
        `compiled`, every row has "compiled" and "over_compiled" (time of cached over compiled sampling).
    """
    trunk = trunk or TRUNK
    masked, autoregressive = (
        create_generator(GeneratorConfig(kind, kind, "none", "none", 18, grid, **trunk)).eval().to(device)
        for kind in ("masked", "autoregressive")
    )
    unbuffered = cast(AutoregressiveGenerator, copy.copy(autoregressive))
    unbuffered.decoder = Decoder
    fast = copy.deepcopy(autoregressive)
    if compiled:
        fast.compile()
    for batch in batches:
        works = {
            "masked": partial(masked.generate, batch, steps=STEPS),
            "cached": partial(autoregressive.generate, batch),
            "unbuffered": partial(unbuffered.generate, batch),
        }
        works["masked"]()  # warm-up
        if compiled:
            works["compiled"] = partial(fast.generate, batch)
            fast.generate(batch, prefix=torch.zeros(1, grid[0] - 1, *grid[1:], dtype=torch.long))  # compiles the step
        seconds = time_together(works, device, runs, warmup=0)
        row = {
            "batch": batch,
            "tokens": masked.tokens,
            "steps": STEPS,
            "trunk": trunk,
            **{name: summary(times) for name, times in seconds.items()},
            "over_cached": ratio(seconds["cached"], seconds["masked"]),
            "over_unbuffered": ratio(seconds["unbuffered"], seconds["cached"]),
        }
        if compiled:
            row["over_compiled"] = ratio(seconds["cached"], seconds["compiled"])
        if uncached and batch == batches[0]:
            works = {"masked": works["masked"], "uncached": partial(autoregressive.generate, batch, cached=False)}
            once = time_together(works, device, 1, warmup=0)
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
    if "unbuffered" in row:
        ms = [1e3 * row[kind]["median_s"] / row["tokens"] for kind in ("cached", "unbuffered")]
        times = row["over_unbuffered"]["median"]
        line += f", {ms[0]:.2f} ms a token, {times:.2f} times as fast as without buffers ({ms[1]:.2f} ms)"
    if "over_compiled" in row:
        ms, found = 1e3 * row["compiled"]["median_s"] / row["tokens"], row["over_compiled"]
        times = "{median:.2f} ({lowest:.2f} .. {highest:.2f})".format(**found)
        line += f"; compiled {ms:.2f} ms, {times} times as fast as with buffers"
    if "uncached" not in row:
        return line
    return f"{line}; without cache {seconds(row['uncached'])} ({row['over_uncached']['median']:.1f} x)"


def seconds(times: dict) -> str:
    from vidtok.eval.report import short_seconds

    return f"{short_seconds(times['median_s'])} s"
