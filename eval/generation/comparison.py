"""Generators of several kinds at one budget: a table, a chart, and whether one is better than another."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from vidtok.eval.report.table import short_seconds

SCHEMA = "vidtok.eval.generation-compare/1"
FOLDS = 4  # ranges of as many folds of two equal generators lie apart in 2 of 70 cases; of 3 folds, in 2 of 20
COLORS = {"masked": "#3465a4", "autoregressive": "#4e9a06", "diffusion": "#cc0000"}


def best_rows(rows: Sequence[Mapping]) -> dict[str, Mapping]:
    """Of each kind the row with the lowest FVD, or where it wasn't measured, with the highest agreement."""

    def rank(row: Mapping) -> float:
        metrics = row["metrics"]
        return metrics["fvd"]["mean"] if "fvd" in metrics else -metrics["agreement"]["value"]

    best: dict[str, Mapping] = {}
    for row in rows:
        kind = row["generator"]["kind"]
        if kind not in best or rank(row) < rank(best[kind]):
            best[kind] = row
    return best


def fvd_range(row: Mapping) -> tuple[float, float]:
    """Lowest and highest FVD of the folds."""
    folds = row["metrics"]["fvd"]["folds"]
    return min(folds), max(folds)


def verdict(rows: Sequence[Mapping]) -> str:
    """Whether masked beats diffusion: only where the ranges over `FOLDS` folds or more don't touch. Each is of one
    training, at the number of steps that is best here, which favours the kind with more of them."""
    best = best_rows(rows)
    if not {"masked", "diffusion"} <= best.keys() or "fvd" not in best["masked"]["metrics"]:
        return "masked and diffusion were not both measured by FVD"
    ours, theirs = fvd_range(best["masked"]), fvd_range(best["diffusion"])
    words = f"masked {ours[0]:.1f} to {ours[1]:.1f}, diffusion {theirs[0]:.1f} to {theirs[1]:.1f} (FVD, over folds)"
    if (folds := len(best["masked"]["metrics"]["fvd"]["folds"])) < FOLDS:
        return f"{folds} folds don't tell which is better, {FOLDS} might: {words}"
    if ours[1] < theirs[0]:
        return f"masked beats diffusion: {words}"
    return f"{'diffusion beats masked' if theirs[1] < ours[0] else 'no difference beyond the folds'}: {words}"


def markdown_table(result: Mapping) -> str:
    """A row for each kind and number of steps, and what bounds them."""
    head = ["generator", "parameters", "trained, s", "samples seen", "steps", "s per clip", "FVD", "agreement, %"]
    lines = [_row(head), _row(["---"] * len(head))]
    for row in result["rows"]:
        own = result["training"][row["generator"]["kind"]]
        cells = [row["generator"]["kind"], f"{row['generator']['parameters']:,}", f"{own['seconds']:.0f}"]
        cells += [f"{own['samples']:,}", f"{row['steps']}", short_seconds(row["seconds_per_clip"])]
        lines.append(_row([*cells, _fvd(row["metrics"].get("fvd")), _share(row["metrics"].get("agreement"))]))
    limits = result["limits"]
    for name, title in (("fvd_floor", "other real clips"), ("fvd_reconstruction", "reconstructions of those")):
        if name in limits:
            share = _share(limits.get("real_agreement")) if name == "fvd_floor" else ""
            lines.append(_row([title, "", "", "", "", "", f"{limits[name]['value']:.1f}", share]))
    return "\n".join(lines)


def guidance_table(results: Sequence[Mapping]) -> str:
    """Of several results that differ in their guidance: a row for each, a column for each kind, FVD and agreement at
    the number of steps that is best by FVD."""
    kinds = list(dict.fromkeys(row["generator"]["kind"] for result in results for row in result["rows"]))
    lines = [_row(["guidance", *kinds]), _row(["---"] * (1 + len(kinds)))]
    for result in results:
        best, settings = best_rows(result["rows"]), result["config"]["settings"]
        guidances = dict.fromkeys(settings[kind]["guidance"] or 1 for kind in best)
        cells = [", ".join(f"{guidance:g}" for guidance in guidances)]
        for row in (best.get(kind) for kind in kinds):
            parts = [] if row is None else [_fvd(row["metrics"].get("fvd")), _share(row["metrics"].get("agreement"))]
            cells.append(", ".join(filter(None, parts)))
        lines.append(_row(cells))
    return "\n".join(lines)


def caption(result: Mapping) -> str:
    """By what the numbers of the table were measured, in a line."""
    row = result["rows"][0]
    protocol = row["protocol"]
    words = [f"{protocol['convention']} convention", f"real clips of {protocol['source']}, split {protocol['split']}"]
    if row["n_real"]:
        words.append(f"{row['n_real']} real clips")
    words.append(f"{row['folds']} x {row['n_fake']} generated ones of each row")
    return ", ".join([*words, *(f"{name} by {text}" for name, text in row["detector"].items())]) + "."


def draw_chart(result: Mapping, path: Path) -> None:
    """FVD (or the agreement) against sampling steps and against seconds for a clip; bars span the folds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    scored = "fvd" in result["rows"][0]["metrics"]
    assert scored or "agreement" in result["rows"][0]["metrics"], "there is nothing to draw"
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True)
    for kind in dict.fromkeys(row["generator"]["kind"] for row in result["rows"]):
        rows = sorted(
            (row for row in result["rows"] if row["generator"]["kind"] == kind), key=lambda row: row["seconds_per_clip"]
        )
        for place, x in zip(axes, ("steps", "seconds_per_clip"), strict=True):
            metric = [row["metrics"]["fvd" if scored else "agreement"] for row in rows]
            y = [value["mean"] if scored else 100 * value["value"] for value in metric]
            if scored:
                ends = [fvd_range(row) for row in rows]
            else:
                ends = [(100 * value["low"], 100 * value["high"]) for value in metric]
            error = [[a - low for a, (low, _) in zip(y, ends, strict=True)]]
            error.append([high - a for a, (_, high) in zip(y, ends, strict=True)])
            color = COLORS.get(kind)
            place.errorbar([row[x] for row in rows], y, error, fmt="o-", color=color, label=kind, capsize=3)
    for name, style in (("fvd_floor", "--"), ("fvd_reconstruction", ":")):
        if scored and name in result["limits"]:
            for place in axes:
                label = name.removeprefix("fvd_")
                place.axhline(result["limits"][name]["value"], ls=style, lw=1, color="#888a85", label=label)
    axes[0].set_xlabel("sampling steps")
    axes[1].set_xlabel("seconds per clip")
    axes[0].set_ylabel("FVD, bars span the folds" if scored else "agreement, % (95 %)")
    for place in axes:
        place.set_xscale("log")
        if scored:
            place.set_yscale("log")
        for axis in (place.xaxis, place.yaxis)[: 1 + scored]:
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_formatter(NullFormatter())
    axes[1].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _fvd(metric: Mapping | None) -> str:
    if metric is None:
        return ""
    return f"{metric['mean']:.1f}" + ("" if metric["deviation"] is None else f" ± {metric['deviation']:.1f}")


def _share(metric: Mapping | None) -> str:
    if metric is None:
        return ""
    return f"{100 * metric['value']:.1f} ({100 * metric['low']:.0f} to {100 * metric['high']:.0f})"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


# What the content of a run folder depends on: with other values it isn't gone on with.
TRAINED_WITH = {"generator", "size", "data", "optimizer", "trainer", "tokenizer", "objective", "seed"}
MEASURED_WITH = {"convention", "n_real", "n_fake", "folds", "real", "real_root", "real_split", "other_split"}
MEASURED_WITH |= {"i3d", "recogniser", "settings", "seed"}
TRAINED = "trained.json"  # of a kind whose training is over


def check_kinds(plain: dict) -> None:
    """Raises ValueError for an unknown kind, or numbers of steps or samples that are none."""
    from vidtok.errors import nearest
    from vidtok.generator import KINDS

    def is_count(value) -> bool:
        return isinstance(value, int) and value >= 1

    for kind in plain["kinds"]:
        if kind not in KINDS:
            raise ValueError(f"kinds={plain['kinds']}: unknown kind {kind!r}: {nearest(kind, KINDS)}")
        steps = plain["steps"][kind]
        if not isinstance(steps, list) or not all(value is None or is_count(value) for value in steps):
            raise ValueError(f"steps.{kind} is a list of numbers such as [12], or [null] for its own, not {steps}")
    if not plain["kinds"] or not is_count(plain["sample_batch"]):
        raise ValueError("kinds needs one kind at least, and sample_batch a number of at least 1")


def check_real(real, convention) -> None:
    """Raises ValueError where there are no real clips, or none that the `Convention` how can score."""
    from vidtok.eval.generation.conventions import prepare

    first = next(iter(real.clips()), None)
    if first is None or (real.others is not None and next(iter(real.others()), None) is None):
        raise ValueError(f"{real.about['source']}: no real clip can be read")
    prepare(first, convention)


def config_of(kind: str, overrides: list[str], own: Path):
    """Of the training of one kind, in the folder `own`."""
    from vidtok.configs.compose import compose_config

    compared = compose_config("generation_compare", overrides)
    given = [f"generator={kind}", f"run={own}", f"name={kind}", *compared.training[kind]]
    return compose_config("generation_compare", [*overrides, *given])


def check_kind(kind: str, overrides: list[str], own: Path):
    """The `GeneratorConfig` of one kind. Raises ValueError where it can't be trained, or can't sample as asked."""
    from vidtok.generator import from_pretrained
    from vidtok.generator.training import build_generator_training

    cfg = config_of(kind, overrides, own)
    trained = (own / TRAINED).exists()
    model = from_pretrained(own / "model") if trained else build_generator_training(cfg)["state"].model
    for steps in cfg.steps[kind]:
        model.check_sampling(steps, **given_settings(cfg, kind))
    return model.config


def train_kind(kind: str, overrides: list[str], own: Path, weights: str, stop) -> dict:
    """Trains one kind until the budget is spent, or finds that it is; seconds, steps and samples of its training.

    weights: hash of the tokenizer's.
    """
    from omegaconf import OmegaConf

    from vidtok.generator.training import build_generator_training
    from vidtok.train.loop import train
    from vidtok.train.run_folder import RunFolder, check_fingerprint, lasting

    cfg = config_of(kind, overrides, own)
    plain = OmegaConf.to_container(cfg, resolve=True)
    facts = {key: value for key, value in plain.items() if key in TRAINED_WITH}
    check_fingerprint(own, facts | {"trainer": lasting(plain["trainer"]), "tokenizer_weights": weights})
    file = own / TRAINED
    if not file.exists():
        arguments = build_generator_training(cfg)
        text = OmegaConf.to_yaml(cfg, resolve=True)
        train(**arguments, run=RunFolder(own), stop=stop, config_yaml=text, log=lambda line: print(line, flush=True))
        state = arguments["state"]
        facts = {"seconds": state.seconds, "steps": state.step, "samples": state.step * cfg.data.batch_size}
        if stop.requested:
            return facts
        file.write_text(json.dumps(facts) + "\n")
    return json.loads(file.read_text())


def given_settings(cfg, kind: str) -> dict:
    return {name: value for name, value in cfg.settings[kind].items() if value is not None}


def draw_samples(path: Path, generator, tokenizer, seed: int, settings: dict) -> None:
    """A sample of each class, or nine, in rows of frames."""
    from vidtok.datasets import write_video
    from vidtok.datasets.frames import frame_rows

    number = min(len(generator.config.classes), 12) or 9
    label = list(range(number)) if generator.config.classes else None
    ids = generator.generate(number, label, seed=seed, **settings)
    write_video(path, frame_rows(tokenizer.decode(ids).cpu())[:, None], 1)


def one_line(row: dict) -> str:
    from vidtok.eval.generation.run import summary

    metrics = ", ".join(f"{name} {value}" for name, value in summary(row["metrics"]).items())
    return f"{metrics}, {short_seconds(row['seconds_per_clip'])} s per clip"
