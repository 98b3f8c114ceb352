"""The settings of a run, and the file that holds a folder to them."""

from vidtok.extract.record import FEATURES, Settings, id_type
from vidtok.hints import nearest
from vidtok.quantize import LFQ

FLOATS = ("float32", "float16")


def make_settings(
    tokenizer, feature: str = "ids", precision: str = "fp32", dtype: str = "float32", **asked
) -> Settings:
    """The settings for features of a tokenizer.

    Args:
        tokenizer: a `VideoTokenizer`. feature: one of `FEATURES`. precision: the one it was loaded with.
        dtype: "float32" or "float16", how floats are stored.
        asked: pool, head, resize, crop, resample, max_frames, sampler, tile: see `Settings`.

    Raises:
        ValueError: for settings that don't fit each other.
    """
    if feature not in FEATURES:
        raise ValueError(f"unknown feature {feature!r}: {nearest(feature, FEATURES)}")
    if dtype not in FLOATS:
        raise ValueError(f"floats are stored as {' or '.join(FLOATS)}, not {dtype!r}")
    if asked.get("pool") is not None and feature not in ("hidden", "latents"):
        raise ValueError(f"{feature} can't be pooled: hidden and latents can")
    if feature == "ids":
        dtype = id_type(tokenizer.bits).name
    elif feature == "codes" and isinstance(tokenizer.quantizer, LFQ):
        dtype = "int8"  # signs
    return Settings(
        feature=feature,
        model=tokenizer.config.name,
        weight_hash=tokenizer.weight_hash,
        precision=precision,
        bits=tokenizer.bits,
        stride=tuple(tokenizer.stride),
        dtype=dtype,
        **asked,
    )
