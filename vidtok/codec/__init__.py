"""Compressed video: entropy-coded tokens in one file, which supports streaming, seeking and salvaging."""

from importlib import import_module

# name -> its module, imported on first use, because reading tokens (`vidtok.TokenDataset`) needs no network
_HOME = {
    "CodecError": "container",
    "CompressionStats": "encode",
    "Header": "header",
    "compress": "encode",
    "decompress": "decode",
}

__all__ = ["CodecError", "CompressionStats", "Header", "compress", "decompress"]


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
