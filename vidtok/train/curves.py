"""Plots of the TensorBoard scalars of training runs.

    python -m vidtok.train.curves RUN... -o curves.png

Every panel has one line per run. Panels without scalars in any run are left out.
"""

import argparse
import math
from pathlib import Path

BIT = math.log(2)  # nats

# {panel: {scalar: (label, factor)}}
PANELS: dict[str, dict[str, tuple[str, float]]] = {
    "reconstruction, mean squared error": {"reconstruction": ("", 1)},
    "validation, PSNR in dB": {"validation_psnr": ("", 1)},
    "validation, gradients at block edges": {"validation_block_ratio": ("", 1)},
    "perceptual distance": {"perceptual": ("", 1)},
    "Gram distance": {"gram": ("", 1)},
    "bits: codebook entropy over, token entropy below": {
        "entropy_codebook": ("codebook", 1 / BIT),
        "entropy_per_sample": ("token", 1 / BIT),
    },
    "codes used by a batch, bits": {"usage_bits": ("", 1)},
    "commitment": {"commitment": ("", 1)},
    "gradient norm": {"gradient_norm": ("model", 1), "critic_norm": ("discriminator", 1)},
    "adversarial losses": {"adversarial": ("model", 1), "discriminator": ("discriminator", 1)},
    "discriminator accuracy": {"discriminator_accuracy": ("", 1)},
}
STYLES = ("-", "--", ":", "-.")
LOGARITHMIC = ("reconstruction, mean squared error", "gradient norm")


def read_scalars(run: str | Path) -> dict[str, tuple[list[int], list[float]]]:
    """Read the scalars of a run folder -> {name: (steps, values)}. Raises ValueError if it has none."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = Path(run) / "scalars"
    if not folder.is_dir():
        raise ValueError(f"{run} is no run folder: it has no scalars/")
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    scalars = {}
    for name in events.Tags()["scalars"]:
        # A resumed run may have written some steps twice; the last value is used.
        by_step = {event.step: event.value for event in events.Scalars(name)}
        scalars[name] = (sorted(by_step), [by_step[step] for step in sorted(by_step)])
    return scalars


def smooth(values: list[float], count: int = 40) -> list[float]:
    """Smooth a curve by a running mean over 1 / `count` of its length."""
    window = max(1, len(values) // count)
    means = []
    for i in range(len(values)):
        part = values[max(0, i - window + 1) : i + 1]
        means.append(sum(part) / len(part))
    return means


def present(scalars: dict[str, tuple[str, float]], names: list[str]) -> dict[str, tuple[str, float]]:
    """Select the scalars of a panel that are in `names`, including name_<size> of validation at several sizes."""
    found = {name: style for name, style in scalars.items() if name in names}
    for base in scalars:
        sizes = [name.removeprefix(f"{base}_") for name in names if name.startswith(f"{base}_")]
        found |= {f"{base}_{size}": (f"{size} px", 1) for size in sizes if size.isdecimal()}
    return found


def draw_curves(runs: dict[str, dict], path: str | Path) -> None:
    """Draw the curves of runs to a picture.

    Args:
        runs: {name to show: result of `read_scalars`}.
        path: file of the picture.

    Raises:
        ValueError: no panel has a curve.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    names = sorted({name for run in runs.values() for name in run}, key=lambda name: (len(name), name))
    panels = {title: present(scalars, names) for title, scalars in PANELS.items()}
    panels = {title: scalars for title, scalars in panels.items() if scalars}
    if not panels:
        raise ValueError(f"no curves in {', '.join(runs)}")
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(4 * columns, 2.6 * rows), squeeze=False, layout="constrained")
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    for axis, (title, scalars) in zip(axes.flat, panels.items(), strict=False):
        for i, (run, found) in enumerate(runs.items()):
            for (name, (label, multiple)), style in zip(scalars.items(), STYLES, strict=False):
                if name in found:
                    steps, values = found[name]
                    values = [value * multiple for value in smooth(values)]
                    text = " ".join(filter(None, [run if len(runs) > 1 else "", label]))
                    marker = "." if len(steps) == 1 else None
                    axis.plot(steps, values, style, marker=marker, color=f"C{i}", linewidth=1.2, label=text or None)
        axis.set_title(title, fontsize=9)
        if title in LOGARITHMIC:
            axis.set_yscale("log")
        axis.tick_params(labelsize=7, which="both")
        axis.grid(alpha=0.3)
        if axis.get_legend_handles_labels()[1]:
            axis.legend(fontsize=7)
    figure.supxlabel("step", fontsize=9)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folder")
    parser.add_argument("-o", "--output", default="curves.png", help="file of the picture (%(default)s)")
    args = parser.parse_args()
    try:
        draw_curves({Path(run).resolve().name: read_scalars(run) for run in args.runs}, args.output)
    except (ValueError, OSError) as error:
        raise SystemExit(f"vidtok: {error}") from None


if __name__ == "__main__":
    main()
