"""Comparison of several kinds of generators at one training budget, with a table, a chart and a verdict.

Result schema "vidtok.eval.generation-compare/1":

    schema        that string
    training      name of each training run -> {seconds, steps, samples, flops} (flops: see `training_flops`)
    rows          results of schema "vidtok.eval.generation/1", with steps, name (kind, or name of a variant), seed (of
                  the training) and run (name of the training run)
    over_seeds    with several seeds: the same averaged, see `vidtok.eval.generation.report.over_seeds`
    limits        floor and reconstructions, see that schema; other_limits: the same of variants with other tokenizers
    tokenizer     {name, weight_hash} of the setting tokenizer
    config        all settings
    verdict       a sentence, if FVD was measured

Results of earlier versions lack flops, name, seed, run, over_seeds, other_limits and tokenizer.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from vidtok.configs.compose import Settings, compose_config, to_dict
from vidtok.datasets import write_video
from vidtok.datasets.frames import frame_rows
from vidtok.errors import nearest
from vidtok.eval.generation.conventions import get_convention, prepare, real_clips
from vidtok.eval.generation.extractors import load_feature_extractors, predict_classes
from vidtok.eval.generation.report import (
    SampleClip,
    best_rows,
    caption,
    draw_chart,
    markdown_table,
    over_seeds,
    table_rows,
    verdict,
    write_samples_page,
)
from vidtok.eval.generation.run import Evaluation, check_conditions, smaller, summary
from vidtok.eval.report import short_seconds
from vidtok.files import write_json
from vidtok.generator import KINDS, GeneratorConfig, from_pretrained
from vidtok.generator.training import build_generator_training, generator_settings, training_flops
from vidtok.heads import Head
from vidtok.tokenizer import VideoTokenizer
from vidtok.train.loop import train
from vidtok.train.run_folder import RunFolder, check_fingerprint, lasting
from vidtok.train.state import StopSignal, only_process

SCHEMA = "vidtok.eval.generation-compare/1"


@dataclass(frozen=True)
class TrainingRun:
    """One model of a comparison: a kind or variant, trained with one seed.

    Attributes:
        name: name of the model in tables: its kind, or that of a variant.
        kind: kind of generator.
        seed: seed of the training and of the sampling.
        folder: folder of the training run, in that of the comparison.
        cfg: settings of the training.
    """

    name: str
    kind: str
    seed: int
    folder: Path
    cfg: DictConfig

    @property
    def label(self) -> str:
        """Name of the run: that of its folder."""
        return self.folder.name


def compare(*overrides: str, log: Callable[[str], None] = print, **settings) -> dict | None:
    """Train generators of several kinds at one budget, and measure each at several numbers of sampling steps.

        compare(data={"source": "digits"}, trainer={"max_minutes": 12}, i3d="i3d.safetensors", run="runs/generation")

    The run folder (setting `run`) keeps all trained generators and measurements, result.json, table.md, chart.png,
    pictures of samples, and page.html with all of it and playable clips. The same call resumes a stopped run. More
    seeds, kinds and variants can be added to it.

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
    if not (cfg.i3d or cfg.recognizer):
        raise ValueError("nothing to measure: give i3d=FILE or recognizer=NAME")
    tokenizer = VideoTokenizer.from_pretrained(cfg.tokenizer, device)
    detectors = load_feature_extractors(cfg.i3d, None, cfg.recognizer, tokenizer, device, cfg.precision)
    runs = training_runs(plain, layers, folder)
    tokenizers = {cfg.tokenizer: tokenizer}
    for name in {run.cfg.tokenizer: None for run in runs}:
        tokenizers.setdefault(name, VideoTokenizer.from_pretrained(name, device))
        if detectors.head is not None:
            detectors.head.check_tokenizer(tokenizers[name].config.name, tokenizers[name].weight_hash)
    configs = [check_run(run, cfg, tokenizers[run.cfg.tokenizer]) for run in runs]
    real = real_clips(
        cfg.real, cfg.real_root, cfg.real_split, cfg.other_split, configs[0], convention, cfg.sample_batch, cfg.workers
    )
    for run, config in zip(runs, configs, strict=True):
        if (clips := clips_of(config)) != clips_of(configs[0]):
            raise ValueError(f"{run.name} makes clips of {clips}, and {runs[0].name} of {clips_of(configs[0])}")
        own = given_settings(cfg, run.kind)
        check_conditions(convention, config, real.classes, detectors.head, tokenizers[run.cfg.tokenizer], own)
    check_real(real, convention)
    training = {}
    with StopSignal() as stop:
        for run in runs:
            training[run.label] = train_run(run, tokenizers[run.cfg.tokenizer].weight_hash, stop, log)
            if stop.requested:
                log("stopped: the same command goes on")
                return None
    # Written only now, so that a failed call leaves no folder. It includes hashes of the networks, because another file
    # may have the same name.
    facts = {key: value for key, value in plain.items() if key in MEASURED_WITH}
    check_fingerprint(folder, facts | {"detectors": detectors.names, "tokenizer_weights": tokenizer.weight_hash})

    @cache
    def evaluation(name: str) -> Evaluation:
        return Evaluation(real, detectors, tokenizers[name], convention, cfg.convention, cfg.sample_batch)

    def measured(name: str, measure: Callable[[], dict]) -> dict:
        """Return the content of a result file, which is measured and written first if it is missing."""
        file = folder / "measured" / f"{name}.json"
        if not file.exists():
            write_json(file, measure())
        return json.loads(file.read_text())

    def limits_of(name: str) -> dict:
        own = tokenizers[name].weight_hash
        file = "limits" if own == tokenizer.weight_hash else f"limits-{own}"
        return measured(file, lambda: evaluation(name).limits())

    rows = []
    for run in runs:
        generator, own = from_pretrained(run.folder / "model", device), given_settings(cfg, run.kind)
        for steps in cfg.steps[run.kind]:
            number = steps or generator.default_steps
            measure = partial(_measure, evaluation, run.cfg.tokenizer, generator, run.seed, steps=steps, **own)
            row = measured(f"{run.label}-{number}", measure)
            rows.append({**row, "steps": number, "name": run.name, "seed": run.seed, "run": run.label})
            log(f"{run.label}, {number} steps: {one_line(row)}")
        draw_samples(folder / f"{run.label}.png", generator, tokenizers[run.cfg.tokenizer], run.seed, own)
    result = {"schema": SCHEMA, "training": training, "limits": limits_of(cfg.tokenizer), "rows": rows, "config": plain}
    result["tokenizer"] = {"name": tokenizer.config.name, "weight_hash": tokenizer.weight_hash}
    others = {run.name: run.cfg.tokenizer for run in runs if run.cfg.tokenizer != cfg.tokenizer}
    if others:
        result["other_limits"] = {name: limits_of(own) for name, own in others.items()}
    result |= _conclusions(rows)
    write_json(folder / "result.json", result)
    table = f"{markdown_table(result)}\n\n{caption(result)}"
    (folder / "table.md").write_text(table + "\n")
    draw_chart(result, folder / "chart.png")
    sections = {}
    for name, best in best_rows(rows).items():
        run = next(run for run in runs if run.name == name)
        model = from_pretrained(run.folder / "model", device)
        own = given_settings(cfg, run.kind) | {"steps": best["steps"]}
        shown = page_clips(model, tokenizers[run.cfg.tokenizer], detectors.head, run, own)
        sections[f"{run.label}, {best['steps']} steps"] = shown
    write_comparison_page(folder / "page.html", result, sections, folder / "chart.png", configs[0].fps or 25)
    log(table)
    log(f"{result.get('verdict', '')}\nresult: {folder / 'result.json'}, page: {folder / 'page.html'}")
    return result


def merge_results(results: Sequence[Mapping]) -> dict:
    """Merge comparisons that were run on several machines: equal settings, other seeds, kinds or variants.

    Their times are of their machines: equal budgets are those of `max_flops`.

    Args:
        results: results of schema "vidtok.eval.generation-compare/1". `limits` and `config` are taken from the first.

    Returns:
        A result of that schema.

    Raises:
        ValueError: no results or others than comparisons, other settings, networks or tokenizers, or a training run
            that two of them have.
    """
    if not results:
        raise ValueError("there are no comparisons to merge")
    first = _equal_facts(results[0])
    variants: dict[str, dict] = {}
    training: dict[str, dict] = {}
    rows: list[Mapping] = []
    other_limits: dict[str, dict] = {}
    for result in results:
        _check_equal("", first, _equal_facts(result))
        for name, variant in (result["config"]["variants"] or {}).items():
            _check_equal(f"variants.{name}", variants.setdefault(name, variant), variant)
        trained = {(row["name"], row["seed"]): row["run"] for row in result["rows"]}
        if both := sorted({(row["name"], row["seed"]) for row in rows} & trained.keys()):
            name, seed = both[0]
            raise ValueError(f"two of the comparisons trained {name} with seed {seed}: train other seeds or kinds")
        if both := sorted(training.keys() & result["training"].keys()):
            raise ValueError(f"two of the comparisons call a run {both[0]}: give the same seed= and other seeds=")
        training |= result["training"]
        rows += result["rows"]
        other_limits |= result.get("other_limits", {})
    merged = {**results[0], "training": training, "rows": rows}
    if other_limits:
        merged["other_limits"] = other_limits
    return merged | _conclusions(rows)


def _conclusions(rows: Sequence[Mapping]) -> dict:
    """Return over_seeds, if there are several, and verdict, if FVD was measured, of a result."""
    found: dict = {}
    if len({row["seed"] for row in rows}) > 1:
        found["over_seeds"] = over_seeds(rows)
    if "fvd" in rows[0]["metrics"]:
        found["verdict"] = verdict(rows)
    return found


def _equal_facts(result: Mapping) -> dict:
    """Return what merged results have in common: name -> value."""
    if result.get("schema") != SCHEMA:
        raise ValueError(f"results of schema {SCHEMA!r} are merged, not of {result.get('schema')!r}")
    if "tokenizer" not in result:
        raise ValueError("comparisons of earlier versions don't hold their tokenizer, and can't be merged")
    config = result["config"]
    keys = (TRAINED_WITH | MEASURED_WITH | {"training"}) - OF_ONE_MACHINE
    facts = {key: config[key] for key in sorted(keys)}
    facts["data"] = {key: value for key, value in config["data"].items() if key not in ("cache", "root")}
    facts |= {"generator": generator_settings(config), "trainer": lasting(config["trainer"])}
    return facts | {"tokenizer": result["tokenizer"], "detector": result["rows"][0]["detector"]}


def _check_equal(name: str, ours, theirs) -> None:
    """Raise ValueError for two different values, with the name of the first key that differs."""
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        for key in sorted(ours.keys() | theirs.keys()):
            _check_equal(f"{name}.{key}".lstrip("."), ours.get(key), theirs.get(key))
    elif ours != theirs:
        raise ValueError(f"merged comparisons have the same {name}, and these have {ours} and {theirs}")


def _measure(evaluation: Callable[[str], Evaluation], tokenizer: str, *arguments, **sampling) -> dict:
    return evaluation(tokenizer).measure(*arguments, **sampling)


# Settings that the content of a run folder depends on. A run with other values isn't resumed.
TRAINED_WITH = {"size", "data", "optimizer", "tokenizer", "objective", "seed", "max_flops"}
MEASURED_WITH = {"convention", "n_real", "n_fake", "folds", "real", "real_root", "real_split", "other_split"}
MEASURED_WITH |= {"i3d", "recognizer", "settings", "seed"}
# Merged results may differ in these: paths, and the seed. Hashes of the networks are compared.
OF_ONE_MACHINE = {"tokenizer", "i3d", "recognizer", "real_root", "seed"}
TRAINED = "trained.json"  # file that marks a finished training


def check_kinds(plain: dict) -> None:
    """Raise ValueError for an unknown kind, an illegal variant, or illegal numbers of steps, samples or seeds."""

    def is_count(value) -> bool:
        return isinstance(value, int) and value >= 1

    variants = plain["variants"] or {}
    for name, variant in variants.items():
        if not isinstance(variant, dict) or not {"kind"} <= variant.keys() <= {"kind", "training"}:
            raise ValueError(f"variants.{name} is {{kind: KIND, training: [KEY=VALUE, ...]}}, not {variant}")
        if name in KINDS or variant["kind"] not in KINDS:
            wrong = "its name is that of a kind" if name in KINDS else f"no kind {variant['kind']!r}"
            raise ValueError(f"variants.{name}: {wrong}; kinds are {', '.join(KINDS)}")
    names = (*KINDS, *variants)
    for kind in plain["kinds"]:
        if kind not in names:
            raise ValueError(f"kinds={plain['kinds']}: unknown kind {kind!r}: {nearest(kind, names)}")
        steps = plain["steps"][variants[kind]["kind"] if kind in variants else kind]
        if not isinstance(steps, list) or not all(value is None or is_count(value) for value in steps):
            raise ValueError(f"steps.{kind} is a list of numbers such as [12], or [null] for its own, not {steps}")
    if not plain["kinds"] or not is_count(plain["sample_batch"]):
        raise ValueError("kinds needs one kind at least, and sample_batch a number of at least 1")
    seeds = plain["seeds"]
    if seeds is not None and (not isinstance(seeds, list) or not seeds or len({*map(str, seeds)}) < len(seeds)):
        raise ValueError(f"seeds is a list of different numbers such as [0,1,2], not {seeds}")


def check_real(real, convention) -> None:
    """Raise ValueError if there are no real clips, or none that the convention can score."""
    first = next(iter(real.clips()), None)
    if first is None or (real.others is not None and next(iter(real.others()), None) is None):
        raise ValueError(f"{real.about['source']}: no real clip can be read")
    prepare(first, convention)


def training_runs(plain: dict, layers: Sequence[Settings], folder: Path) -> list[TrainingRun]:
    """List the training runs of a comparison: every kind and variant with every seed.

    The folder of a run is named after its kind or variant, and unless it is that of the setting `seed` after its seed.
    """
    runs = []
    for name in plain["kinds"]:
        variant = (plain["variants"] or {}).get(name, {"kind": name})
        kind = variant["kind"]
        for seed in plain["seeds"] or [plain["seed"]]:
            own = folder / (name if seed == plain["seed"] else f"{name}-seed{seed}")
            more = {"generator": kind, "run": own, "name": name, "seed": seed}
            training = (plain["training"][kind], variant.get("training") or [])
            cfg = compose_config("generation_compare", *layers, more, *training)
            runs.append(TrainingRun(name, kind, seed, own, cfg))
    return runs


def check_run(run: TrainingRun, cfg: DictConfig, tokenizer: VideoTokenizer) -> GeneratorConfig:
    """Return the config of a run's generator.

    Raises:
        ValueError: its training or sampling settings are illegal, or its folder is of another tokenizer.
    """
    trained = (run.folder / TRAINED).exists()
    model = from_pretrained(run.folder / "model") if trained else build_generator_training(run.cfg)["state"].model
    for steps in cfg.steps[run.kind]:
        model.check_sampling(steps, **given_settings(cfg, run.kind))
    if model.config.weight_hash != tokenizer.weight_hash:
        raise ValueError(f"{run.folder} was trained on tokens of another {run.cfg.tokenizer}: give another run=")
    return model.config


def clips_of(config: GeneratorConfig) -> str:
    """Describe the size of a generator's clips."""
    (t, h, w), (s_t, s_h, s_w) = config.grid, config.stride
    return f"{1 + s_t * (t - 1)} x {s_h * h} x {s_w * w}"


def train_run(run: TrainingRun, weights: str, stop: StopSignal, log: Callable[[str], None]) -> dict:
    """Train a model until its budget is spent; return the seconds, steps, samples and FLOPs of its training.

    Nothing is done if its folder holds a finished training. weights: hash of the tokenizer's weights.
    """
    plain = to_dict(run.cfg)
    facts = {key: value for key, value in plain.items() if key in TRAINED_WITH and value is not None}
    facts |= {"generator": generator_settings(plain), "trainer": lasting(plain["trainer"])}
    check_fingerprint(run.folder, facts | {"tokenizer_weights": weights})
    file = run.folder / TRAINED
    if not file.exists():
        arguments = build_generator_training(run.cfg)
        text = OmegaConf.to_yaml(run.cfg, resolve=True)
        train(**arguments, run=RunFolder(run.folder), stop=stop, config_yaml=text, log=log)
        state, size = arguments["state"], run.cfg.data.batch_size
        facts = {"seconds": state.seconds, "steps": state.step, "samples": state.step * size}
        facts["flops"] = facts["samples"] * training_flops(state.model)
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


def page_clips(
    generator, tokenizer: VideoTokenizer, head: Head | None, run: TrainingRun, settings: dict
) -> list[SampleClip]:
    """Generate the clips of a run for the page: two of each class, at most 18 clips, or nine without classes."""
    classes = generator.config.classes
    number = min(2 * len(classes), 18) or 9
    label = [i % len(classes) for i in range(number)] if classes else None
    ids = generator.generate(number, label, seed=run.seed, **settings)
    video = tokenizer.decode(ids)
    seen: Sequence[str | None] = [None] * number
    if head is not None:
        seen = predict_classes(head, ids, video, classes)
    return [
        SampleClip(f"{run.label}-{i:04d}", video[i].cpu(), None if label is None else classes[label[i]], seen[i])
        for i in range(number)
    ]


def write_comparison_page(path: Path, result: dict, sections: dict, chart: Path, fps: float) -> None:
    """Write the page of a comparison: verdict, table, chart, and clips of each model at its best number of steps."""
    row = result["rows"][0]
    sentence = result.get("verdict")
    said = [f"{sentence[0].upper()}{sentence[1:]}."] if sentence else []
    names = ", ".join(dict.fromkeys(row["name"] for row in result["rows"]))
    title = f"Generators of {Path(row['protocol']['source']).stem}: {names}"
    charts = {"Quality against sampling steps and against seconds per clip": chart}
    lines = [*said, caption(result)]
    write_samples_page(path, title, lines, sections, fps, SCHEMA, row["provenance"], table_rows(result), charts)


def one_line(row: dict) -> str:
    metrics = ", ".join(f"{name} {value}" for name, value in summary(row["metrics"]).items())
    return f"{metrics}, {short_seconds(row['seconds_per_clip'])} s per clip"
