"""The settings of a run, and the file that holds a folder to them."""

import json
import os
from dataclasses import asdict
from pathlib import Path

from vidtok.extract.claims import Claims
from vidtok.extract.open import SUFFIXES, check_container
from vidtok.extract.record import FEATURES, SCHEMA, Settings, differences, id_type, parse_description, settings_of
from vidtok.hints import nearest
from vidtok.quantize import LFQ

FLOATS = ("float32", "float16")
FILE = "settings.json"
LOCK = f"\0{FILE}"  # no video's id


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
    if asked.get("pool") not in (None, "mean"):
        raise ValueError(f"features are pooled by 'mean', not {asked['pool']!r}")
    if asked.get("pool") is not None and feature not in ("hidden", "latents"):
        raise ValueError(f"{feature} can't be pooled: hidden and latents can")
    if (feature == "embedding") != (asked.get("head") is not None):
        raise ValueError("embedding is what a trained head makes: it needs a head, and nothing else does")
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


def hold_folder(folder: Path, settings: Settings, container: str, claims: Claims) -> None:
    """Writes the settings of a new folder, or compares them with those it was begun with.

    Raises:
        ValueError: that names what differs; or where the folder holds features that nobody knows the settings of.
    """
    check_container(container)
    path, suffix = folder / FILE, SUFFIXES[container]
    ours = {"schema": SCHEMA, "container": container, **asdict(settings)}
    claims.wait(LOCK)
    try:
        if not path.exists():
            if (file := next(folder.rglob(f"[!.]*{suffix}"), None)) is not None:
                raise ValueError(f"{file} is there, but {path} isn't, which says what it is of: give another folder")
            part = path.with_name(f".{FILE}.part")
            part.write_text(json.dumps(ours, indent=2) + "\n")
            os.replace(part, path)
            return
    finally:
        claims.release(LOCK)
    theirs_container, theirs = read_settings(path)
    if theirs_container != container:
        raise ValueError(f"{folder} holds {theirs_container}, not {container}: give another folder")
    if other := differences(settings, theirs):
        raise ValueError(f"{folder} holds features of other settings: {other}. Give another folder")


def read_settings(path: Path) -> tuple[str, Settings]:
    """(container, settings) of a folder's settings.json. Raises ValueError where it is none."""
    try:
        description = parse_description(path.read_text())
        return description["container"], settings_of(description)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not the settings of extracted features ({error})") from error
