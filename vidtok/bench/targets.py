"""What the benchmark is meant to show, and whether a result shows it."""

from collections.abc import Callable

# What, the goal, whether the value is to be at least (+1) or at most (-1) that, and where the value is in a result.
TARGETS: tuple[tuple[str, float, int, Callable[[dict], float]], ...] = (
    ("encode, times as fast as magvit2-pytorch's", 100, +1, lambda r: r["encode_peer"]["ratio"]["median"]),
    ("LFQ loss, times as fast as vector-quantize-pytorch's", 300, +1, lambda r: r["loss"]["ratio"]["median"]),
    ("magvit2 encode in bf16, times as fast as naive", 2, +1, lambda r: r["magvit2_ratio"]["median"]),
    ("encode, share of the convolution rate, fp32", 0.5, +1, lambda r: _share(r, "fp32")),
    ("encode, share of the convolution rate, bf16", 0.5, +1, lambda r: _share(r, "bf16")),
    ("LFQ loss of 1280 tokens, ms", 40, -1, lambda r: 1e3 * r["loss"]["rows"][0]["median_s"]),
    ("LFQ loss of 1280 tokens, MB", 100, -1, lambda r: r["loss"]["rows"][0]["peak_mb"]),
)


def _share(result: dict, precision: str) -> float:
    """Of the first clip size, one clip at a time."""
    wanted = {"what": "encode", "precision": precision, "layout": "channels-last", "compiled": False}
    return next(row for row in result["tokenizer"] if wanted.items() <= row.items())["share_of_conv"]


def check_targets(result: dict) -> list[dict]:
    """{"what", "target", "at_least" (else at most), "value", "met"} of each target that the result has a value for."""
    rows = []
    for what, target, sign, value_of in TARGETS:
        try:
            value = value_of(result)
        except (KeyError, TypeError):  # another kind was run, or the peer is absent
            continue
        if value is not None:
            met = sign * value >= sign * target
            rows.append({"what": what, "target": target, "at_least": sign > 0, "value": value, "met": met})
    return rows
