"""Write a self-contained page of a comparison: table, charts, and playable clips.

The page is one file without scripts or external resources: it can be mailed, and opened on a phone.
"""

import base64
import tempfile
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import torch
from torch import Tensor

from vidtok.datasets import write_video
from vidtok.eval.report import table_parts
from vidtok.eval.report.charts import draw_charts

_STYLE = """
:root { color-scheme: light dark; --right: #1a7f37; --wrong: #b42318; --line: #d0d0d0 }
@media (prefers-color-scheme: dark) { :root { --right: #57c878; --wrong: #ff8a80; --line: #555 } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 1em auto; padding: 0 1em;
  overflow-wrap: anywhere }
.scroll { overflow-x: auto }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; overflow-wrap: normal }
th, td { padding: .2em .6em; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line) }
th:first-child { text-align: left; white-space: normal; position: sticky; left: 0; background: Canvas }
.row { display: flex; flex-wrap: wrap; gap: 1em; align-items: start }
figure { margin: 0; max-width: 100% }
figcaption { font-size: 13px }
img { max-width: 100% }
.chart { width: 530px } .clip { width: 330px }
.sides { display: grid; grid-template-columns: 1fr 1fr; font-size: 12px; text-align: center }
video { width: 100%; image-rendering: pixelated; background: #000 }
ul { margin: 0; padding: 0; list-style: none }
.right { color: var(--right) } .wrong { color: var(--wrong) }
"""

# what each of `vidtok.eval.report.charts.draw_charts` shows; the numbers are in the table above them
_CHARTS = {
    "accuracy": "Top-1 accuracy with its 95 % interval, and the same heads on shuffled frames",
    "ratio": "Top-1 accuracy divided by that of the reference, with its 95 % interval",
    "cost": "What a clip costs: bytes, and clips read per second",
    "confusion": "Confusion matrix of the first row of the table, all seeds",
}


def write_page(
    path: Path, result: Mapping, charts: Mapping[str, Path], clips: Sequence[tuple[dict, Tensor]], fps: float
):
    """Write the page. path: of the html file. clips: (row of the result's `clips`, float or uint8 [3,T,H,2W], original
    beside reconstruction), shown with the prediction of each arm's first seed."""
    name, title = result["results"][0]["name"], escape(_title(result))
    above, table, below = table_parts(result)
    parts = [
        "<!doctype html><html lang='en'><meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width, initial-scale=1'><link rel='icon' href='data:,'>",
        f"<title>{title}</title><style>{_STYLE}</style><h1>{title}</h1>",
        f"<p>{_lines(above)}</p>{_table(table)}<p>{_lines(below)}</p>",
        "<h2>Charts</h2><div class='row'>",
        *(_chart(_CHARTS[key], file) for key, file in charts.items()),
        "</div><h2>Clips</h2><p>Left the original, right what the tokens keep of it; below, what the first seed of",
        "each arm took the clip for, with ✓ where that is right and ✗ where it is wrong.</p>",
    ]
    for right, heading in ((True, f"What {name} got right"), (False, f"What {name} got wrong")):
        if chosen := [(row, video) for row, video in clips if _is_right(row, name) == right]:
            parts.append(f"<h3>{escape(heading)}</h3><div class='row'>")
            parts += [_clip(row, video, fps) for row, video in chosen]
            parts.append("</div>")
    provenance = f"{result['schema']}, git {result['provenance']['git']}, {result['provenance']['date']}"
    parts.append(f"<p><small>{escape(provenance)}</small></p></html>")
    path.write_text("\n".join(parts) + "\n", encoding="utf-8")


def choose_clips(result: Mapping, count: int) -> list[int]:
    """Choose clips for the page: in turn one that the first entry's first seed got right and one that it got wrong, of
    as many classes as possible."""
    name, rows = result["results"][0]["name"], result["clips"]
    sides: tuple[list[int], list[int]] = ([], [])
    seen: dict[tuple[bool, str], int] = {}
    order = []
    for place, row in enumerate(rows):
        right = _is_right(row, name)
        key = (right, row["label"])
        order.append((seen.get(key, 0), place, right))
        seen[key] = seen.get(key, 0) + 1
    for _, place, right in sorted(order):
        sides[0 if right else 1].append(place)
    half = max(count // 2, count - len(sides[1]))
    chosen = sides[0][:half]
    return chosen + sides[1][: count - len(chosen)]


def _is_right(row: Mapping, name: str) -> bool:
    """Return whether the first seed of that entry was right."""
    return row["predicted"][name][0] == row["label"]


def _title(result: Mapping) -> str:
    return f"{Path(result['data']['source']).stem}: {result['kind']}, {result['protocol']['name']}"


def _lines(lines: Sequence[str]) -> str:
    return "<br>\n".join(map(escape, lines))


def _table(rows: Sequence[Sequence[str]]) -> str:
    """The first row and the first column are headers. Where it is too wide, it scrolls by touch and by keyboard."""
    head = "".join(f"<th scope='col'>{escape(cell)}</th>" for cell in rows[0])
    body = [
        f"<tr><th scope='row'>{escape(row[0])}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in row[1:])}</tr>"
        for row in rows[1:]
    ]
    box = "<div class='scroll' tabindex='0' role='region' aria-label='Accuracies, percent'>"
    return "\n".join([f"{box}<table><tr>{head}</tr>", *body, "</table></div>"])


def _chart(what: str, file: Path) -> str:
    text, source = escape(what), f"data:image/png;base64,{_encoded(file)}"
    return f"<figure class='chart'><img alt='{text}' src='{source}'><figcaption>{text}</figcaption></figure>"


def _clip(row: Mapping, video: Tensor, fps: float) -> str:
    label = escape(row["label"])
    marks = {True: "class='right'>✓", False: "class='wrong'>✗"}
    took = "".join(f"<li {marks[_is_right(row, a)]} {escape(f'{a}: {s[0]}')}</li>" for a, s in row["predicted"].items())
    return (
        "<figure class='clip'><div class='sides'><span>original</span><span>reconstruction</span></div>"
        f"<video controls loop muted autoplay playsinline aria-label='{label}: original, reconstruction' "
        f"src='data:video/mp4;base64,{_movie(video, fps)}'></video>"
        f"<figcaption><b>{label}</b><ul>{took}</ul>{escape(row['id'])}</figcaption></figure>"
    )


def _encoded(file: Path) -> str:
    return base64.b64encode(file.read_bytes()).decode()


def _movie(video_3THW: Tensor, fps: float) -> str:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "clip.mp4"
        write_video(file, video_3THW[None], fps)
        return _encoded(file)


def write_report(
    result: Mapping, folder: Path, shown: Sequence[int], original_n3THW: Tensor, decoded_n3THW: Tensor, fps: float
) -> None:
    """Write page.html and charts/ of a comparison.

    Args:
        shown: numbers of the n clips to play, see `choose_clips`.
        original_n3THW, decoded_n3THW: these clips and their reconstructions, uint8, played at `fps` frames per second.
    """
    pairs = torch.cat([original_n3THW, decoded_n3THW], dim=-1)
    clips = [(result["clips"][i], pair) for i, pair in zip(shown, pairs, strict=True)]
    write_page(folder / "page.html", result, draw_charts(result, folder / "charts"), clips, fps)
