"""Compressed video: tokens of a tokenizer, entropy-coded, in one file that can be streamed, sought and salvaged."""

from vidtok.codec.container import CodecError, Header
from vidtok.codec.decode import decompress
from vidtok.codec.encode import CompressionStats, compress

__all__ = ["CodecError", "CompressionStats", "Header", "compress", "decompress"]
