"""Flags shared by several commands, loading of their tokenizer, and tables of names and values on stdout."""

import argparse
from collections.abc import Mapping

from vidtok.names import printable


def add_model(parser: argparse.ArgumentParser, default: str | None = "vidtok-t", custom: bool = False) -> None:
    kinds = "name, folder, hub id or module:Class of your own" if custom else "name, folder or hub id"
    help = f"tokenizer: {kinds} (default: {default or 'that of the file'})"
    parser.add_argument("--model", default=default, metavar="NAME", help=help)
    parser.add_argument("--device", default="auto", help="device: auto (cuda if available), cpu, cuda, cuda:1, ...")


def add_precision(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--precision", default="fp32", help="precision of the networks: fp32 (default) or bf16")


def add_output(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("-o", "--output", required=True, metavar="OUT", help=what)
    parser.add_argument("--force", action="store_true", help="overwrite existing files")


def add_reading(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--size", type=positive(int), metavar="PIXELS", help="short side to resize to, in pixels (default: native)")
    add("--fps", type=positive(float), help="frame rate to resample to (default: native)")
    add("--max-frames", type=positive(int), metavar="N", help="maximum number of frames per video (default: all)")
    help = "damaged videos: raise, the video fails (default); keep, its damaged frames are left out"
    add("--on-error", choices=["raise", "keep"], default="raise", help=help)
    add_reader(parser)


def add_frame_folders(parser: argparse.ArgumentParser) -> None:
    help = "read each folder of numbered images as one video with this frame rate"
    parser.add_argument("--frame-folders", type=positive(float), metavar="FPS", help=help)


class ReaderOption(argparse.Action):
    """Action that joins the reader and its options, in any order, to a name such as "pyav+deinterlace+sar"."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        name, *options = namespace.reader.split("+")
        if option_string == "--reader":
            name = values
        elif values != "ignore":
            options.append(self.const)
        namespace.reader = "+".join([name, *options])


def add_reader(parser: argparse.ArgumentParser) -> None:
    option: dict = {"dest": "reader", "action": ReaderOption, "default": argparse.SUPPRESS}
    add = parser.add_argument
    add("--reader", **option | {"default": "auto"}, help="reader: auto (default), pyav, decord or torchcodec")
    add("--deinterlace", nargs=0, const="deinterlace", **option, help="deinterlace interlaced frames")
    add("--sar", choices=["ignore", "apply"], const="sar", **option, help="apply: scale to square pixels")
    add("--tone-map", nargs=0, const="tonemap", **option, help=argparse.SUPPRESS)  # hidden; the reader rejects it


def add_tile(parser: argparse.ArgumentParser) -> None:
    help = "side of spatial tiles, for frames too large for memory (default: no tiles)"
    parser.add_argument("--tile", type=positive(int), metavar="PIXELS", help=help)


def positive(kind: type):
    """Return an argparse type that parses a number above 0."""

    def parse(text: str):
        value = kind(text)
        if not value > 0:
            raise argparse.ArgumentTypeError(f"{text} is not above 0")
        return value

    parse.__name__ = kind.__name__
    return parse


def load_tokenizer(args: argparse.Namespace):
    """Load the `VideoTokenizer` that --model, --device, --precision and --tile describe, for inference."""
    from vidtok.extraction import model

    return model.load_tokenizer(args.model, args.device, args.precision, getattr(args, "tile", None))


def print_rows(rows: Mapping[str, object]) -> None:
    """Print each row as a line `name  value`, with aligned values. Control characters in values are escaped."""
    width = max(map(len, rows)) + 2
    for name, value in rows.items():
        print(f"{name:<{width}}{printable(str(value))}")


def add_running(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--batch", type=positive(int), help="number of videos per batch (default: 1 on a CPU, 8 on a GPU)")
    add("--workers", type=int, metavar="N", help="decoding processes; 0, none (default: by videos and CPUs)")
    add("--threads", type=positive(int), metavar="N", help="CPU threads of the model (default: torch's)")
    help = "seconds after which a decoder without output is stopped (default: %(default)s)"
    add("--time-limit", type=positive(float), default=60, metavar="S", help=help)
    add("--log-json", action="store_true", help="write progress and failures as JSON lines to stderr")


def add_source(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--root", metavar="DIR", help="folder of the videos (default: that of the annotation file)")
    add("--path-column", metavar="NAME", help="csv column of the video paths (default: detected)")
    add("--label-column", metavar="NAME", help="csv column of the labels (default: detected)")
    add("--split-column", metavar="NAME", help="csv column of the splits (default: detected)")
    add("--task", metavar="NAME", help="motion task to make from the videos: camera, arrow, speed, ... or all")
    add_frame_folders(parser)
    add("--checked", metavar="FILE", help="table of vidtok check, whose bad videos are left out")
    add_reader(parser)
