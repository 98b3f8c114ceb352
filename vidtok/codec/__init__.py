"""Compressed video: tokens of a tokenizer, entropy-coded, in one file that can be streamed, sought and salvaged."""

from vidtok.codec.codec import CompressionStats, compress, decompress
from vidtok.codec.container import CodecError, Header

__all__ = ["CodecError", "CompressionStats", "Header", "compress", "decompress"]
