"""Padding and tiled streams against the library's whole clips."""

import weakref

import pytest
import torch

from vidtok import streaming
from vidtok.extraction.videos import Echo, chunk_ids, decode_chunks, encode_chunks
from vidtok.streaming import coded_size, cut_chunks, pad_chunks
from vidtok.tokenizer import TokenizerConfig, VideoTokenizer

STRIDE = (4, 8, 8)


@pytest.fixture(scope="module")
def tokenizer():
    torch.manual_seed(0)
    net = {"kind": "patch", "width": 32, "blocks": 2, "decoder_blocks": 2}
    return VideoTokenizer(TokenizerConfig("test", net, {"kind": "lfq", "bits": 18})).eval()


def clip(frames, height=16, width=24):
    return torch.rand(1, 3, frames, height, width, generator=torch.Generator().manual_seed(frames)) * 2 - 1


@pytest.mark.parametrize("frames", [1, 2, 4, 5, 16, 17, 18, 33, 40])
@pytest.mark.parametrize("chunk", [1, 3, 16, 50])
def test_padding_repeats_edges_and_the_last_frame(frames, chunk):
    video = clip(frames, 13, 24)
    parts = list(pad_chunks(video.split(chunk, 2), STRIDE))
    assert parts[0].shape[2] % 4 == 1 and all(p.shape[2] % 4 == 0 for p in parts[1:])
    padded = torch.cat(parts, 2)
    assert padded.shape[2] == 1 + -(-(frames - 1) // 4) * 4 and coded_size((13, 24), STRIDE) == padded.shape[3:]
    assert torch.equal(padded[:, :, :frames, :13], video)
    assert torch.equal(padded[:, :, frames:], padded[:, :, frames - 1 : frames].expand_as(padded[:, :, frames:]))
    assert torch.equal(padded[..., 13:, :], padded[..., 12:13, :].expand_as(padded[..., 13:, :]))
    assert torch.equal(torch.cat(list(cut_chunks(parts, frames, (13, 24))), 2), video)


def test_nothing_is_padded_to_something():
    assert list(pad_chunks([], STRIDE)) == []


def test_chunks_are_bounded():
    assert max(part.shape[2] for part in pad_chunks([clip(100)], STRIDE)) == 17


@pytest.mark.parametrize("tile", [None, 32])
def test_streams_equal_the_library(tokenizer, tile):
    video = clip(38, 60, 83)
    padded = torch.cat(list(pad_chunks([video], STRIDE)), 2)
    ids = torch.cat(list(encode_chunks(tokenizer, video.split(7, 2), tile)), 1)
    expected = tokenizer.encode(padded, tile=tile)
    assert ids.shape == expected.shape == (1, 11, 8, 11)
    assert (ids == expected).float().mean() > 0.999  # a latent within rounding of zero may differ
    decoded = torch.cat(list(streaming.stream_decode(tokenizer, chunk_ids(expected[0].numpy()), tile)), 2)
    assert torch.allclose(decoded, tokenizer.decode(expected, tile=tile), atol=1e-4)


def test_echo_gives_back_what_went_through():
    video = clip(20)
    echo = Echo(video.split(6, 2))
    assert torch.equal(torch.cat(list(echo), 2), video)
    assert torch.equal(torch.cat([echo.take(1), echo.take(16), echo.take(16)], 2), video)


@pytest.mark.parametrize("tile", [None, 32])
def test_only_a_few_chunks_are_alive(tokenizer, tile):
    born = []

    def chunks():
        for _ in range(20):
            chunk = clip(16, 40, 40)
            born.append(weakref.ref(chunk.untyped_storage()))
            assert sum(storage() is not None for storage in born) <= 3
            yield chunk

    echo = Echo(chunks())
    for video in decode_chunks(tokenizer, encode_chunks(tokenizer, echo, tile), tile):
        echo.take(video.shape[2])
    assert len(born) == 20
