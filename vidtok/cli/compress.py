"""Compress a video to one file of entropy-coded tokens.

    vidtok compress clip.mp4 -o clip.vtk
    vidtok compress clip.mp4 -o clip.vtk --size 128 --fps 15     # smaller: fewer pixels, fewer frames
    vidtok compress clip.mp4 -o clip.vtk --quality 50            # smaller: drops the bits that matter least
    vidtok compress clip.mp4 -o clip.vtk --bpp 0.03              # best quality within this number of bits per pixel
    vidtok compress clip.mp4 -o clip.vtk --entropy prior         # smaller and slower: a network predicts the tokens
    vidtok compress clip.mp4 -o clip.vtk --entropy raw           # packed bits; does not need the package constriction
    vidtok compress clip.mp4 -o clip.vtk --audio                 # copies the audio

Memory use doesn't depend on the length of the video. `vidtok decompress` restores the number, size and timestamps of
the frames exactly; their pixels are the reconstruction of the tokenizer. The file is written chunk by chunk. If the run
is killed, `vidtok decompress --salvage` decodes the complete chunks. The format is described in
vidtok/codec/container.py; `vidtok info FILE.vtk` describes a file.

--audio copies the first audio track without reencoding, to the end of the file, and `vidtok decompress` writes the same
packets. Bits per pixel don't count it.

Below quality 100, a bit of a token keeps its value from the latent before where the latent is close to zero, so that
its sign matters least. Bits that don't change cost almost nothing.
"""

import argparse

from vidtok.cli import common


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("video", metavar="IN", help="video to compress")
    common.add_output(parser, "file to write (.vtk), also s3://...")
    common.add_model(parser)
    common.add_precision(parser)
    common.add_reading(parser)
    common.add_tile(parser)
    parser.add_argument("--entropy", default="adaptive", help="entropy model: adaptive (default), prior or raw")
    parser.add_argument(
        "--prior", metavar="FILE", help="weights of the entropy model prior (default: the shipped ones)"
    )
    parser.add_argument("--audio", action="store_true", help="copy the first audio track unchanged")
    rate = parser.add_mutually_exclusive_group()
    rate.add_argument(
        "--quality", type=float, default=100, metavar="Q",
        help="quality, above 0 to 100 (default), which keeps all tokens; less drops the bits that matter least",
    )  # fmt: skip
    rate.add_argument(
        "--bpp", type=common.positive(float), metavar="BITS",
        help="maximum bits per pixel of the file; each chunk gets the best quality that fits",
    )  # fmt: skip
    parser.add_argument(
        "--chunk-latents",
        type=common.positive(int),
        default=64,
        metavar="N",
        help="latent frames per chunk (default: %(default)s); larger chunks compress better, smaller ones seek faster",
    )


def run(args: argparse.Namespace) -> None:
    from vidtok.cli.progress import Progress
    from vidtok.codec import compress

    with Progress(None, "frames") as bar:
        stats = compress(**vars(args), progress=bar.advance)
    print(f"compressed {stats}")
