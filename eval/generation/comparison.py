"""Comparison of several kinds of generators at one training budget, with a table, a chart and a verdict."""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path

from omegaconf import OmegaConf

from vidtok.configs.compose import Settings, compose_config, to_dict
from vidtok.datasets import write_video
from vidtok.datasets.frames import frame_rows
from vidtok.errors import nearest
from vidtok.eval.generation.conventions import get_convention, prepare, real_clips
from vidtok.eval.generation.extractors import load_feature_extractors
from vidtok.eval.generation.run import Evaluation, check_conditions, smaller, summary
from vidtok.eval.report import markdown_row, short_seconds
from vidtok.files import write_json
from vidtok.generator import KINDS, from_pretrained
from vidtok.generator.training import build_generator_training
from vidtok.tokenizer import VideoTokenizer
from vidtok.train.loop import train
from vidtok.train.run_folder import RunFolder, check_fingerprint, lasting
from vidtok.train.state import StopSignal, only_process

SCHEMA = "vidtok.eval.generation-compare/1"
FOLDS = 4  # for equal generators, the ranges over 4 folds are disjoint in 2 of 70 cases; those over 3 folds in 2 of 20
COLORS = {"masked": "#3465a4", "autoregressive": "#4e9a06", "diffusion": "#cc0000"}


def compare(*overrides: str, log: Callable[[str], None] = print, **settings) -> dict | None:
    """Train generators of several kinds at one budget, and measure each at several numbers of sampling steps.

        compare(data={"source": "digits"}, trainer={"max_minutes": 12}, i3d="i3d.safetensors", run="runs/generation")

    The run folder (setting `run`) keeps all trained generators and measurements, result.json, table.md, chart.png and
    pictures of samples. The same call resumes a stopped run.

    Args:
        overrides, settings: settings of configs/generation_compare.yaml, as hydra overrides or nested, see
            `vidtok.configs.compose`.
        log: called with each line of progress, and with the table at the end.

    Returns:
        A result of schema "vidtok.eval.generation-compare/1"; None if SIGTERM or Ctrl-C stopped it.

    Raises:
        UserError: an unknown or missing setting.
        ValueError: settings that don't fit each other or the real clips, a run folder of other settings, or several
            processes.
    """
    layers = (overrides, settings)
    cfg = compose_config("generation_compare", *layers)
    plain = to_dict(cfg)
    # Everything that can be wrong is checked before hours of training.
    convention = smaller(get_convention(cfg.convention), cfg.n_real, cfg.n_fake, cfg.folds)
    check_kinds(plain)
    device, folder = only_process("eval generation-compare"), Path(cfg.run)
    tokenizer = VideoTokenizer.from_pretrained(cfg.tokenizer, device)
    if not (cfg.i3d or cfg.recognizer):
        raise ValueError("nothing to measure: give i3d=FILE or recognizer=NAME")
    detectors = load_feature_extractors(cfg.i3d, None, cfg.recognizer, tokenizer, device)
    for kind in cfg.kinds:
        config = check_kind(kind, layers, folder / kind)
        if config.weight_hash != tokenizer.weight_hash:
            raise ValueError(f"{folder / kind} was trained on tokens of another {cfg.tokenizer}: give another run=")
    real = real_clips(cfg.real, cfg.real_root, cfg.real_split, cfg.other_split, config, convention, cfg.sample_batch)
    for kind in cfg.kinds:
        check_conditions(convention, config, real.classes, detectors.head, tokenizer, given_settings(cfg, kind))
    check_real(real, convention)
    training = {}
    with StopSignal() as stop:
        for kind in cfg.kinds:
            training[kind] = train_kind(kind, layers, folder / kind, tokenizer.weight_hash, stop, log)
            if stop.requested:
                log("stopped: the same command goes on")
                return None
    generators = {kind: from_pretrained(folder / kind / "model", device) for kind in cfg.kinds}
    # Written only now, so that a failed call leaves no folder. It includes hashes of the networks, because another file
    # may have the same name.
    facts = {key: value for key, value in plain.items() if key in MEASURED_WITH}
    check_fingerprint(folder, facts | {"detectors": detectors.names, "tokenizer_weights": tokenizer.weight_hash})

    @cache
    def evaluation() -> Evaluation:
        return Evaluation(real, detectors, tokenizer, convention, cfg.convention, cfg.sample_batch)

    def measured(name: str, measure: Callable[[], dict]) -> dict:
        """Return the content of a result file, which is measured and written first if it is missing."""
        file = folder / "measured" / f"{name}.json"
        if not file.exists():
            write_json(file, measure())
        return json.loads(file.read_text())

    limits, rows = measured("limits", lambda: evaluation().limits()), []
    for kind, generator in generators.items():
        own = given_settings(cfg, kind)
        for steps in cfg.steps[kind]:
            number = steps or generator.default_steps
            measure = partial(_measure, evaluation, generator, cfg.seed, steps=steps, **own)
            row = measured(f"{kind}-{number}", measure)
            rows.append({**row, "steps": number})
            log(f"{kind}, {number} steps: {one_line(row)}")
        draw_samples(folder / f"{kind}.png", generator, tokenizer, cfg.seed, own)
    result = {"schema": SCHEMA, "training": training, "limits": limits, "rows": rows, "config": plain}
    if cfg.i3d:
        result["verdict"] = verdict(rows)
    write_json(folder / "result.json", result)
    table = f"{markdown_table(result)}\n\n{caption(result)}"
    (folder / "table.md").write_text(table + "\n")
    draw_chart(result, folder / "chart.png")
    log(table)
    log(f"{result.get('verdict', '')}\nresult: {folder / 'result.json'}, chart: {folder / 'chart.png'}")
    return result


def _measure(evaluation: Callable[[], Evaluation], *arguments, **sampling) -> dict:
    return evaluation().measure(*arguments, **sampling)


def best_rows(rows: Sequence[Mapping]) -> dict[str, Mapping]:
    """Return the row of each kind with the lowest FVD, or with the highest agreement if FVD wasn't measured."""

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
    """Return the lowest and the highest FVD of the folds."""
    folds = row["metrics"]["fvd"]["folds"]
    return min(folds), max(folds)


def verdict(rows: Sequence[Mapping]) -> str:
    """Return a sentence on whether masked beats diffusion.

    One is better than the other if their FVD ranges over at least `FOLDS` folds don't overlap. Each kind was trained
    once and is represented by its best number of steps, which favors the kind that was measured at more numbers.
    """
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
    """Return a table with a row for each kind and number of steps, and rows for the limits."""
    head = ["generator", "parameters", "trained, s", "samples seen", "steps", "s per clip", "FVD", "agreement, %"]
    lines = [markdown_row(head), markdown_row(["---"] * len(head))]
    for row in result["rows"]:
        own = result["training"][row["generator"]["kind"]]
        cells = [row["generator"]["kind"], f"{row['generator']['parameters']:,}", f"{own['seconds']:.0f}"]
        cells += [f"{own['samples']:,}", f"{row['steps']}", short_seconds(row["seconds_per_clip"])]
        lines.append(markdown_row([*cells, _fvd(row["metrics"].get("fvd")), _share(row["metrics"].get("agreement"))]))
    limits = result["limits"]
    for name, title in (("fvd_floor", "other real clips"), ("fvd_reconstruction", "reconstructions of those")):
        if name in limits:
            share = _share(limits.get("real_agreement")) if name == "fvd_floor" else ""
            lines.append(markdown_row([title, "", "", "", "", "", f"{limits[name]['value']:.1f}", share]))
    return "\n".join(lines)


def guidance_table(results: Sequence[Mapping]) -> str:
    """Return a table of results with different guidance, a row per result and a column per kind: FVD and agreement at
    the number of steps with the best FVD."""
    kinds = list(dict.fromkeys(row["generator"]["kind"] for result in results for row in result["rows"]))
    lines = [markdown_row(["guidance", *kinds]), markdown_row(["---"] * (1 + len(kinds)))]
    for result in results:
        best, settings = best_rows(result["rows"]), result["config"]["settings"]
        guidances = dict.fromkeys(settings[kind]["guidance"] or 1 for kind in best)
        cells = [", ".join(f"{guidance:g}" for guidance in guidances)]
        for row in (best.get(kind) for kind in kinds):
            parts = [] if row is None else [_fvd(row["metrics"].get("fvd")), _share(row["metrics"].get("agreement"))]
            cells.append(", ".join(filter(None, parts)))
        lines.append(markdown_row(cells))
    return "\n".join(lines)


def caption(result: Mapping) -> str:
    """Describe in one line how the numbers of the table were measured."""
    row = result["rows"][0]
    protocol = row["protocol"]
    words = [f"{protocol['convention']} convention", f"real clips of {protocol['source']}, split {protocol['split']}"]
    if row["n_real"]:
        words.append(f"{row['n_real']} real clips")
    words.append(f"{row['folds']} x {row['n_fake']} generated ones of each row")
    return ", ".join([*words, *(f"{name} by {text}" for name, text in row["detector"].items())]) + "."


def draw_chart(result: Mapping, path: Path) -> None:
    """Plot FVD (or agreement) against sampling steps and against seconds per clip; bars span the folds."""
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


# Settings that the content of a run folder depends on. A run with other values isn't resumed.
TRAINED_WITH = {"generator", "size", "data", "optimizer", "trainer", "tokenizer", "objective", "seed"}
MEASURED_WITH = {"convention", "n_real", "n_fake", "folds", "real", "real_root", "real_split", "other_split"}
MEASURED_WITH |= {"i3d", "recognizer", "settings", "seed"}
TRAINED = "trained.json"  # file that marks a finished training


def check_kinds(plain: dict) -> None:
    """Raise ValueError for an unknown kind, or illegal numbers of steps or samples."""

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
    """Raise ValueError if there are no real clips, or none that the convention can score."""
    first = next(iter(real.clips()), None)
    if first is None or (real.others is not None and next(iter(real.others()), None) is None):
        raise ValueError(f"{real.about['source']}: no real clip can be read")
    prepare(first, convention)


def config_of(kind: str, layers: Sequence[Settings], own: Path):
    """Compose the training config of one kind, with the run folder `own`."""
    training = compose_config("generation_compare", *layers).training[kind]
    return compose_config("generation_compare", *layers, {"generator": kind, "run": own, "name": kind}, training)


def check_kind(kind: str, layers: Sequence[Settings], own: Path):
    """Return the `GeneratorConfig` of one kind. Raises ValueError if its training or sampling settings are illegal."""
    cfg = config_of(kind, layers, own)
    trained = (own / TRAINED).exists()
    model = from_pretrained(own / "model") if trained else build_generator_training(cfg)["state"].model
    for steps in cfg.steps[kind]:
        model.check_sampling(steps, **given_settings(cfg, kind))
    return model.config


def train_kind(
    kind: str, layers: Sequence[Settings], own: Path, weights: str, stop: StopSignal, log: Callable[[str], None]
) -> dict:
    """Train one kind until its budget is spent; return the seconds, steps and samples of its training.

    own: its run folder; if that holds a finished training, nothing is done. weights: hash of the tokenizer's weights.
    """
    cfg = config_of(kind, layers, own)
    plain = to_dict(cfg)
    facts = {key: value for key, value in plain.items() if key in TRAINED_WITH}
    check_fingerprint(own, facts | {"trainer": lasting(plain["trainer"]), "tokenizer_weights": weights})
    file = own / TRAINED
    if not file.exists():
        arguments = build_generator_training(cfg)
        text = OmegaConf.to_yaml(cfg, resolve=True)
        train(**arguments, run=RunFolder(own), stop=stop, config_yaml=text, log=log)
        state = arguments["state"]
        facts = {"seconds": state.seconds, "steps": state.step, "samples": state.step * cfg.data.batch_size}
        if stop.requested:
            return facts
        file.write_text(json.dumps(facts) + "\n")
    return json.loads(file.read_text())


def given_settings(cfg, kind: str) -> dict:
    return {name: value for name, value in cfg.settings[kind].items() if value is not None}


def draw_samples(path: Path, generator, tokenizer, seed: int, settings: dict) -> None:
    """Draw a sample of each class, or nine without classes, as rows of frames."""
    number = min(len(generator.config.classes), 12) or 9
    label = list(range(number)) if generator.config.classes else None
    ids = generator.generate(number, label, seed=seed, **settings)
    write_video(path, frame_rows(tokenizer.decode(ids).cpu())[:, None], 1)


def one_line(row: dict) -> str:
    metrics = ", ".join(f"{name} {value}" for name, value in summary(row["metrics"]).items())
    return f"{metrics}, {short_seconds(row['seconds_per_clip'])} s per clip"
