"""What clips show, as a trained head sees it.

    vidtok recognize clip.mp4 --head digits-tokens           # a shipped head, a folder or a hub id
    vidtok recognize videos/ tokens/*.npz --head runs/mine/best --json

Every video is cut and seen as the head was trained: frames, rate, size, crops; the probabilities of several views are
averaged. Heads on tokens bring their tokenizer: the one recorded with them, or --model. Files of `vidtok encode` are
taken as they are, if they hold clips of that length and size by that tokenizer. A file that fails is named and the run
goes on.
"""

import argparse
import json
import sys
from pathlib import Path

from vidtok.cli import options


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("inputs", nargs="+", metavar="IN", help="videos or token files, folders of them, glob patterns")
    parser.add_argument("--head", required=True, metavar="NAME", help="shipped name, folder or hub id")
    parser.add_argument("--top", type=options.positive(int), default=5, metavar="K", help="labels shown (%(default)s)")
    parser.add_argument("--json", action="store_true", help="a line of JSON for each file instead of a table")
    parser.add_argument("--model", metavar="NAME", help="tokenizer (default: by the name recorded with the head)")
    parser.add_argument("--device", default="auto", help="auto (cuda if there is one), cpu, cuda, cuda:1, ...")


def run(args: argparse.Namespace) -> int:
    from vidtok.cli.inputs import find_files
    from vidtok.cli.main import is_expected, one_line
    from vidtok.datasets.container import VIDEO_SUFFIXES

    files = [file for file, _ in find_files(args.inputs, (*VIDEO_SUFFIXES, ".npz"))]
    recognizer = Recognizer(args.head, args.model, args.device)
    failed = 0
    for file in files:
        try:
            probabilities, views = recognizer.file(file)
        except Exception as error:
            if not is_expected(error):
                raise
            failed += 1
            text = one_line(error)
            print(f"vidtok: {text if str(file) in text else f'{file}: {text}'}", file=sys.stderr)
            continue
        top = recognizer.top(probabilities, args.top)
        if args.json:
            labels = [{"label": label, "probability": round(p, 6)} for label, p in top]
            print(json.dumps({"path": str(file), "views": views, "labels": labels}), flush=True)
        else:
            print(*[f"{file}  {p:6.1%}  {label}" for label, p in top], sep="\n", flush=True)
    return 1 if failed else 0


class Recognizer:
    """A head, and the tokenizer that its input comes from.

    Args:
        head: name or folder of the head. model: of its tokenizer; None, by the recorded name. device: of both.

    Attributes:
        head: the `Head`. protocol: how it sees a video. encoder: what stands between the two, an `InputEncoder`.

    Raises ValueError for a head that isn't there or doesn't say what it was trained on, and for another tokenizer.
    """

    def __init__(self, head: str, model: str | None, device: str):
        from vidtok.cli.eval_recognition import load_head

        self.head, self.encoder, self.protocol = load_head(head, model, device)

    def file(self, path: Path):
        """(probabilities [classes], number of views they are averaged over) of a video or a token file."""
        if path.suffix.lower() == ".npz":
            x = self._tokens(path)
            return self._average(x), len(x)
        from vidtok.datasets import LabelledVideos

        videos = LabelledVideos(
            [str(path)], [path.name], [-1], [], sampler=self.protocol.sampler(), transform=self.protocol.transform()
        )
        return self.video(videos[0].video), self.protocol.views

    def video(self, video_V3THW):
        """Probabilities [classes] of the views of one video, float [V, 3, T, H, W] in [-1, 1]."""
        from vidtok.eval.inputs import join_segments

        views = join_segments(video_V3THW[None], self.encoder.joined)[0]
        return self._average(self.encoder(views.to(self.head.device)))

    def top(self, probabilities, count: int) -> list[tuple[str, float]]:
        """(label, probability) of the most probable classes."""
        values, indices = probabilities.topk(min(count, len(probabilities)))
        classes = self.head.config.classes
        return [(classes[i], p) for i, p in zip(indices.tolist(), values.tolist(), strict=True)]

    def _tokens(self, path: Path):
        import numpy as np
        import torch

        from vidtok.extract import read_npz

        records = read_npz(path)
        meta, kind = records[0].meta, self.encoder.kind
        wanted = "ids" if kind in ("tokens", "codes") else kind
        if meta.feature != wanted:
            raise ValueError(f"it holds {meta.feature}, and head {self.head.config.name!r} reads {kind}")
        if self.encoder.joined > 1:
            raise ValueError(f"head {self.head.config.name!r} sees {self.encoder.joined} clips at once: give the video")
        self.head.check_tokenizer(meta.model, meta.weight_hash)
        side = self.protocol.size
        if meta.frames != self.protocol.frames or meta.size != (side, side):
            given = f"{meta.frames} frames of {meta.size[0]} x {meta.size[1]}"
            raise ValueError(f"it holds {given}, and the head sees clips of {self.protocol.frames} of {side} x {side}")
        features = np.stack([record.features for record in records])
        x = torch.from_numpy(features.astype(np.int64 if wanted == "ids" else np.float32))
        return self.encoder.cropped(x.to(self.head.device))

    def _average(self, x):
        import torch

        with torch.no_grad():
            return self.head(x).softmax(1).mean(0).cpu()
