"""Flags that several verbs share, the tokenizer they ask for, and small tables on stdout."""

import argparse
from collections.abc import Mapping

from vidtok.names import printable


def add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", default="vidtok-t", metavar="NAME", help="shipped name, folder or hub id (%(default)s)"
    )
    parser.add_argument("--device", default="auto", help="auto (cuda if there is one), cpu, cuda, cuda:1, ...")


def add_precision(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--precision", default="fp32", help="of the networks: fp32 (default) or bf16")


def add_output(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("-o", "--output", required=True, metavar="OUT", help=what)
    parser.add_argument("--force", action="store_true", help="overwrite what exists")


def add_reading(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--size", type=positive(int), metavar="PIXELS", help="resize the short side (default: native)")
    parser.add_argument("--fps", type=positive(float), help="resample by time (default: native)")
    parser.add_argument("--max-frames", type=positive(int), metavar="N", help="stop after N frames")
    help = "a damaged video fails (raise, default), or is kept without its damaged frames"
    parser.add_argument("--on-error", choices=["raise", "keep"], default="raise", help=help)
    add_reader(parser)


def add_frame_folders(parser: argparse.ArgumentParser) -> None:
    help = "a folder of numbered images is a video of this frame rate (default: images are no videos)"
    parser.add_argument("--frame-folders", type=positive(float), metavar="FPS", help=help)


class ReaderOption(argparse.Action):
    """Put the reader and its options together, in whatever order they are given: "pyav+deinterlace+sar"."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        name, *options = namespace.reader.split("+")
        if option_string == "--reader":
            name = values
        elif values != "ignore":
            options.append(self.const)
        namespace.reader = "+".join([name, *options])


def add_reader(parser: argparse.ArgumentParser) -> None:
    option: dict = {"dest": "reader", "action": ReaderOption, "default": argparse.SUPPRESS}
    parser.add_argument("--reader", **option | {"default": "auto"}, help="auto (default), pyav, decord, torchcodec")
    parser.add_argument("--deinterlace", nargs=0, const="deinterlace", **option, help="of interlaced frames (bwdif)")
    parser.add_argument("--sar", choices=["ignore", "apply"], const="sar", **option, help="apply: make pixels square")
    parser.add_argument("--tone-map", nargs=0, const="tonemap", **option, help=argparse.SUPPRESS)  # refused by name


def add_tile(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tile", type=positive(int), metavar="PIXELS", help="spatial tiles, for frames that don't fit")


def positive(kind: type):
    """An argparse type: `kind` above 0."""

    def parse(text: str):
        value = kind(text)
        if not value > 0:
            raise argparse.ArgumentTypeError(f"{text} is not above 0")
        return value

    parse.__name__ = kind.__name__
    return parse


def load_tokenizer(args: argparse.Namespace):
    """The `VideoTokenizer` of --model, --device and --precision, ready for inference."""
    from vidtok.extraction import model

    return model.load_tokenizer(args.model, args.device, args.precision, getattr(args, "tile", None))


def print_rows(rows: Mapping[str, object]) -> None:
    """Print one `name  value` line each, values aligned. Values come out of files: control characters are escaped."""
    width = max(map(len, rows)) + 2
    for name, value in rows.items():
        print(f"{name:<{width}}{printable(str(value))}")


def add_running(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batch", type=positive(int), help="streams per pass (default: 1 on a CPU, 8 on a GPU)")
    parser.add_argument(
        "--workers", type=int, metavar="N", help="decode processes (default: by videos and CPUs); 0: none"
    )
    parser.add_argument("--threads", type=positive(int), metavar="N", help="of the model on a CPU (default: torch's)")
    parser.add_argument(
        "--time-limit",
        type=positive(float),
        default=60,
        metavar="S",
        help="for a decoder that gives nothing (%(default)s s)",
    )
    parser.add_argument("--log-json", action="store_true", help="progress and failures as JSON lines on stderr")


def add_source(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--root", metavar="DIR", help="of the videos (default: the folder of the annotations)")
    parser.add_argument("--path-column", metavar="NAME", help="of the csv, where it has no usual name")
    parser.add_argument("--label-column", metavar="NAME", help="likewise")
    parser.add_argument("--split-column", metavar="NAME", help="likewise")
    parser.add_argument(
        "--task", metavar="NAME", help="make clips of this motion task (camera, ..., all) of the videos"
    )
    add_frame_folders(parser)
    parser.add_argument("--checked", metavar="FILE", help="table of vidtok check: leave out what is not ok in it")
    add_reader(parser)
