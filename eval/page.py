"""A self-contained page of a comparison: table, charts, and clips that play."""

import base64
import html
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from vidtok.datasets import write_video

from .inputs import to_float
from .recognition import format_table

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em; color: #222 }
pre { background: #f4f4f4; padding: 1em; overflow-x: auto; font-size: 13px }
img { max-width: 100%; margin: .5em 0 }
.clips { display: flex; flex-wrap: wrap; gap: 1em }
figure { margin: 0; width: 330px }
video { width: 100%; image-rendering: pixelated; background: #000 }
figcaption { font-size: 13px }
.right { color: #1a7f37 } .wrong { color: #b42318 }
"""


def write_page(
    path: Path, result: Mapping, charts: Mapping[str, Path], clips: Sequence[tuple[dict, Tensor]], fps: float
):
    """path: of the html file. clips: (row of the result's `clips`, float or uint8 [3,T,H,2W], original beside
    reconstruction), shown with what each arm's first seed took them for."""
    name = result["results"][0]["name"]
    parts = [
        "<!doctype html><meta charset='utf-8'>",
        f"<title>{html.escape(_title(result))}</title><style>{_STYLE}</style>",
        f"<h1>{html.escape(_title(result))}</h1>",
        f"<pre>{html.escape(format_table(result))}</pre>",
        *(f"<img alt='{key}' src='data:image/png;base64,{_encoded(file)}'>" for key, file in charts.items()),
        "<h2>Clips</h2><p>Left the original, right what the tokens keep of it. Green or red: whether",
        f"{html.escape(name)} was right. Every arm is named with what its first seed took the clip for.</p>",
        "<div class='clips'>",
    ]
    for row, video in clips:
        right = row["predicted"][name][0] == row["label"]
        took = "; ".join(f"{arm}: {seeds[0]}" for arm, seeds in row["predicted"].items())
        parts.append(
            f"<figure><video controls loop muted autoplay playsinline src='data:video/mp4;base64,{_movie(video, fps)}'>"
            f"</video><figcaption class='{'right' if right else 'wrong'}'><b>{html.escape(row['label'])}</b><br>"
            f"{html.escape(took)}<br>{html.escape(row['id'])}</figcaption></figure>"
        )
    provenance = f"{result['schema']}, git {result['provenance']['git']}, {result['provenance']['date']}"
    parts.append(f"</div><p><small>{html.escape(provenance)}</small></p>")
    path.write_text("\n".join(parts) + "\n")


def choose_clips(result: Mapping, count: int) -> list[int]:
    """Places of clips for the page: by turns one that the first entry's first seed got right and one that it got wrong,
    of as many classes as there are."""
    name, rows = result["results"][0]["name"], result["clips"]
    sides: tuple[list[int], list[int]] = ([], [])
    seen: dict[tuple[bool, str], int] = {}
    order = []
    for place, row in enumerate(rows):
        right = row["predicted"][name][0] == row["label"]
        key = (right, row["label"])
        order.append((seen.get(key, 0), place, right))
        seen[key] = seen.get(key, 0) + 1
    for _, place, right in sorted(order):
        sides[0 if right else 1].append(place)
    half = max(count // 2, count - len(sides[1]))
    chosen = sides[0][:half]
    return chosen + sides[1][: count - len(chosen)]


def beside(original_3THW: Tensor, reconstructed_3THW: Tensor) -> Tensor:
    """uint8 or float clips, the one left of the other: float [3,T,H,2W]."""
    return torch.cat([to_float(original_3THW), to_float(reconstructed_3THW)], dim=-1)


def _title(result: Mapping) -> str:
    return f"{Path(result['data']['source']).stem}: {result['kind']}, {result['protocol']['name']}"


def _encoded(file: Path) -> str:
    return base64.b64encode(file.read_bytes()).decode()


def _movie(video_3THW: Tensor, fps: float) -> str:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "clip.mp4"
        write_video(file, to_float(video_3THW)[None], fps)
        return _encoded(file)
