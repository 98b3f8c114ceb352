"""Description of tokenizers, heads, generators, features, videos and compressed videos: `describe`."""

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from vidtok.errors import UserError, nearest
from vidtok.inputs import is_virtual, walk_files
from vidtok.remote import as_address, as_text


def describe(thing: str | Path) -> dict[str, object]:
    """Describe a tokenizer, a head, a generator, a folder or file of features, a video, or a compressed video (.vtk).

    Args:
        thing: shipped name, hub id, folder or file.

    Returns:
        Properties by name, to be printed: {"tokenizer": "vidtok-t", "codebook": "18 bits ...", ...}. The first key is
        the kind of `thing`. For a tokenizer with a model card, "model card" is the path and the tables of the card.
        Text read from files is not escaped: print it with `vidtok.names.printable`.

    Raises:
        UserError: the file doesn't exist, or there is no model of that name.
        ValueError: `thing` is none of these.
    """
    from vidtok.extraction.containers import SUFFIXES, is_shard
    from vidtok.extraction.output import SETTINGS_FILE

    path = Path(thing)
    if as_address(path) is not None:
        return video_info(path)
    if not path.exists() and path.suffix and not is_virtual(path):
        raise UserError(f"{path}: no such file")
    if (path / SETTINGS_FILE).is_file() or is_shard(path):
        return folder_info(path)
    if not path.is_file() and not is_virtual(path):
        return model_info(str(thing))
    if path.suffix.lower() == ".vtk":
        return compressed_info(path)
    return features_info(path) if path.suffix.lower() == SUFFIXES["npz"] else video_info(path)


def model_info(name: str) -> dict[str, object]:
    """Describe a tokenizer, a head or a generator, by the schema of its config."""
    from vidtok.generator import list_shipped_generators
    from vidtok.heads import list_shipped_heads
    from vidtok.heads.head import SCHEMA as HEAD
    from vidtok.hub import CONFIG, HUB_ID, list_shipped

    shipped = [*list_shipped(), *list_shipped_heads(), *list_shipped_generators()]
    if name not in shipped and not Path(name).is_dir() and not HUB_ID.fullmatch(name):
        raise UserError(f"no shipped model and no file or folder {name!r}: {nearest(name, shipped)}")
    schema = ""
    with suppress(OSError, ValueError, AttributeError):  # the loader reports a missing folder or an invalid config
        schema = str(json.loads((Path(name) / CONFIG).read_text()).get("schema"))
    if schema == HEAD or name in list_shipped_heads():
        return head_info(name)
    if schema.startswith("vidtok.generator/") or name in list_shipped_generators():
        return generator_info(name)
    return tokenizer_info(name)


def head_info(name: str) -> dict[str, object]:
    """Describe a trained head."""
    from vidtok.heads import Head

    head = Head.from_pretrained(name)
    config = head.config
    return {
        "head": config.name,
        "weights": head.weight_hash,
        "parameters": _millions(head),
        "net": _spec(config.net),
        "input": f"{_spec(config.input)}, grid {' x '.join(map(str, config.grid))}",
        "tokenizer": _tokenizer(config.tokenizer) if config.tokenizer else "none",
        "clips": _spec(config.protocol) if config.protocol else "not known",
        "classes": _classes(config.classes) if config.classes else config.num_classes or "none: a backbone",
        "license": config.license,
    }


def generator_info(name: str) -> dict[str, object]:
    """Describe a generator."""
    from vidtok.generator import from_pretrained

    generator = from_pretrained(name)
    config = generator.config
    return {
        "generator": f"{config.name}, {config.kind}",
        "weights": generator.weight_hash,
        "parameters": _millions(generator),
        "trunk": f"{config.depth} layers, {config.width} wide, {config.heads} heads",
        "tokenizer": _tokenizer({"name": config.tokenizer, "weight_hash": config.weight_hash}),
        "tokens": f"{' x '.join(map(str, config.grid))} of {config.bits} bits",
        "classes": _classes(config.classes) if config.classes else "none",
        "trained on": ", ".join(config.tasks).replace("none", "whole clips") or "not recorded",
        "license": config.license,
    }


def tokenizer_info(name: str) -> dict[str, object]:
    """Describe a tokenizer."""
    from vidtok.checks import legal_length, legal_size
    from vidtok.hub import PRETRAINED
    from vidtok.tokenizer import VideoTokenizer

    tokenizer = VideoTokenizer.from_pretrained(name)
    config = tokenizer.config
    rows: dict[str, object] = {
        "tokenizer": config.name,
        "weights": tokenizer.weight_hash,
        "parameters": f"encoder {_millions(tokenizer.encoder)}, decoder {_millions(tokenizer.decoder)}",
        "codebook": f"{tokenizer.bits:g} bits ({round(2**tokenizer.bits)} codes)",
        "pixels per token": _cell(*tokenizer.stride),
        "frames of a clip": legal_length(tokenizer.stride),
        "height and width": legal_size(tokenizer.stride),
        "net": _spec(config.net),
        "quantizer": _spec(config.quantizer),
        "preprocessing": _spec(config.preprocessing),
        "license": config.license,
    }
    card = (PRETRAINED / name if (PRETRAINED / name).is_dir() else Path(name)) / "README.md"
    if card.is_file():
        rows["model card"] = "\n".join([str(card), *(x for x in card.read_text().splitlines() if x.startswith("|"))])
    return rows


def folder_info(path: Path) -> dict[str, object]:
    """Describe a folder or shard of features: settings, number of videos, labels and splits."""
    from collections import Counter
    from dataclasses import asdict

    from vidtok.extraction import open_reader

    reader = open_reader(path)
    entries, settings = reader.entries, reader.settings
    labels = Counter(entry.label for entry in entries if entry.label is not None)
    splits = Counter(entry.split for entry in entries if entry.split is not None)
    files = [path] if path.is_file() else [Path(file) for file in walk_files(path, ("",))]
    return {
        "features": f"{settings.feature} in {path} ({sum(file.stat().st_size for file in files)} bytes)",
        "videos": f"{len({entry.id for entry in entries})}, {len(entries)} records",
        "labels": f"{len(labels)} classes" if labels else "none",
        "splits": ", ".join(f"{count} {name}" for name, count in splits.items()) or "none",
        **{name: value for name, value in asdict(settings).items() if name != "feature" and value is not None},
    }


def features_info(path: Path) -> dict[str, object]:
    """Describe a file of features (.npz)."""
    from vidtok.extraction import read_npz

    records = read_npz(path)
    record, meta = records[0], records[0].meta
    kind = meta.feature + (f", {meta.pool} over the grid" if meta.pool else "")
    rows: dict[str, object] = {
        "features": f"{kind} ({path}, {path.stat().st_size} bytes)",
        "tokenizer": f"{meta.model}, weights {meta.weight_hash}, {meta.precision}",
        "video": f"{meta.source or record.id}: {_size(meta.native_size)}, {meta.native_fps:g} frames/s "
        f"(read by {meta.reader})",
        "label": f"{record.label} (split {record.split})",
        "clips": "the whole video" if meta.clips is None else f"{meta.clips} by {meta.sampler}",
        "coded frames": f"{meta.frames} of {_size(meta.size)} at {meta.fps:g} frames/s",
        "duration": f"{record.timestamps[-1] + 1 / meta.fps - record.timestamps[0]:.3f} s",
        "resized to": "native" if meta.resize is None else f"short side {meta.resize}",
        "crop": "whole frames" if meta.crop is None else meta.crop,
        "tiles": "whole frames" if meta.tile is None else f"{meta.tile} pixels",
        "array": f"{record.features.dtype} {list(record.features.shape)}"
        + (f", {meta.bytes_per_token:g} bytes per token before compression" if meta.bytes_per_token else ""),
    }
    if record.label is None:
        del rows["label"]
    return rows | (_token_rows(records) if meta.feature == "ids" else {})


def _token_rows(records: list) -> dict[str, str]:
    import math

    import numpy as np
    from torch import from_numpy

    from vidtok.eval import CodebookUsage

    meta, ids = records[0].meta, np.stack([record.features for record in records]).astype(np.int64)
    usage = CodebookUsage(round(2**meta.bits))
    usage.update(from_numpy(ids))
    bits = meta.bits * records[0].features.size
    pixels = meta.frames * math.prod(meta.size)
    return {
        "tokens": " x ".join(map(str, ids.shape[1:])) + f" = {ids[0].size}, frames padded to {_size(meta.coded_size)}",
        "rate": f"{bits / pixels:.4f} bits per pixel, {bits * meta.fps / meta.frames / 1000:.1f} kbit/s",
        "codes used": f"{usage.distinct} of {usage.size}",
        "entropy": f"{usage.entropy_bits:.2f} bits (at most {math.log2(ids.size):.2f} for so few tokens)",
    }


def video_info(path: Path) -> dict[str, object]:
    """Describe a video by its header and the times of its packets."""
    from vidtok.datasets import probe_video
    from vidtok.datasets.container import read_timeline

    info, timeline = probe_video(path), read_timeline(path)
    rows: dict[str, object] = {
        "video": as_text(path),
        "size": _size((info.height, info.width)),
        "frames": "not in the header" if info.num_frames is None else f"{info.num_frames} (as the header says)",
        "rate": f"{info.fps:g} frames/s",
        "duration": "not in the header" if info.duration is None else f"{info.duration:.3f} s",
        "codec": f"{info.codec}, {info.pixel_format}",
        **info.traits,
    }
    if timeline.has_breaks:
        rows["clock"] = "restarts or jumps; its times are made continuous"
    return rows


def compressed_info(path: Path) -> dict[str, object]:
    """Describe a compressed video (.vtk): size, frames, bit rate, model and source."""
    import math
    from fractions import Fraction

    from vidtok.codec.container import ContainerReader

    with path.open("rb") as file:
        reader = ContainerReader(file, str(path))
        header, number = reader.header, max(reader.entries)
        last = reader.read(number)
    frames, latents = (sum(getattr(entry, key) for entry in reader.entries.values()) for key in ("frames", "latents"))
    whole, tokens = path.stat().st_size, latents * math.prod(header.grid)
    size = whole - reader.audio_bytes
    raw = -(-tokens * header.bits // 8)
    duration = float(last.ticks[-1] * Fraction(*header.time_base)) + 1 / header.fps
    source = [f"{name} {value}" for name, value in header.source.items() if name not in ("name", "size", "audio")]
    audio = ", ".join(f"{name} {value}" for name, value in header.source.get("audio", {}).items())
    return {
        "compressed video": f"{path} ({whole} bytes)",
        "tokenizer": f"{header.model}, weights {header.weight_hash}, {header.precision}",
        "source": f"{header.source.get('name', 'a tensor')}: {', '.join(source) or 'nothing stated'}",
        "frames": f"{frames} of {_size(header.size)} at {header.fps:g} frames/s",
        "duration": f"{duration:.3f} s, in ticks of {header.time_base[0]}/{header.time_base[1]} s",
        "audio": f"{audio}, {reader.audio_bytes} bytes" if reader.audio_bytes else "none",
        "tokens": f"{latents} x {_size(header.grid)} = {tokens} of {header.bits} bits",
        "tiles": "whole frames" if header.tile is None else f"{header.tile} pixels",
        "chunks": f"{len(reader.entries)} of up to {header.chunk_latents} latents",
        "entropy model": header.entropy + ("" if header.prior is None else f", weights {header.prior}"),
        "rate": f"{8 * size / frames / math.prod(header.size):.4f} bits per pixel, {size / duration / 125:.1f} kbit/s"
        + " (without audio)" * bool(reader.audio_bytes),
        "saved": f"{1 - size / raw:.1%} of {raw} bytes of packed tokens",
    }


def _millions(net) -> str:
    return f"{sum(p.numel() for p in net.parameters()) / 1e6:.2f} M"


def _tokenizer(record: dict) -> str:
    return f"{record['name']}, weights {record['weight_hash']}"


def _classes(names: Sequence[str]) -> str:
    more = f", and {len(names) - 12} more" if len(names) > 12 else ""
    return f"{len(names)}: {', '.join(names[:12])}{more}"


def _cell(frames: int, height: int, width: int) -> str:
    if frames == 1:
        return f"1 frame x {height} x {width}"
    return f"{frames} frames x {height} x {width}; the first frame has tokens of its own"


def _spec(spec: dict) -> str:
    return ", ".join(f"{key} {value}" for key, value in spec.items())


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"
