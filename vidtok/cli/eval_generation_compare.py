"""Masked, autoregressive and diffusion generators of one trunk at equal data and training seconds.

    vidtok eval generation-compare data.features=tokens trainer.max_minutes=12 i3d=FILE recogniser=DIR run=runs/gen
    vidtok eval generation-compare --config ...         # print the resolved config only

Everything is hydra: settings of `vidtok train generator`, for all kinds alike, and kinds, training, steps, settings,
real, n_real, n_fake, folds, i3d, recogniser (see configs/generation_compare.yaml). Diffusion is trained on latents, so
data.features are those of `vidtok extract --features latents`; the language models take the signs. The run folder keeps
every training run and every measurement: the same command again goes on where it was stopped. In the end it holds
result.json (schema vidtok.eval.generation-compare/1), table.md, chart.png, and a picture of samples of each kind.
"""

import argparse
import json
from pathlib import Path

from vidtok.cli import options

# What the content of a run folder depends on: with other values it isn't gone on with.
TRAINED_WITH = {"generator", "size", "data", "optimizer", "trainer", "tokenizer", "objective", "seed"}
MEASURED_WITH = {"convention", "n_real", "n_fake", "folds", "real", "real_root", "real_split", "other_split"}
MEASURED_WITH |= {"i3d", "recogniser", "settings", "seed"}
TRAINED = "trained.json"  # of a kind whose training is over


def configure(parser: argparse.ArgumentParser) -> None:
    options.add_overrides(parser)


def run(args: argparse.Namespace) -> None:
    from omegaconf import OmegaConf

    from vidtok.cli.train import compose_config

    cfg = compose_config("generation_compare", args.overrides)
    if args.config:
        print(OmegaConf.to_yaml(cfg))
        return

    from vidtok.cli.error import UserError
    from vidtok.cli.eval_generation import load_detectors
    from vidtok.cli.jsonfile import write_json
    from vidtok.eval.clip_store import hold_to
    from vidtok.eval.generation import convention
    from vidtok.eval.generation_compare import SCHEMA, caption, draw_chart, markdown_table, verdict
    from vidtok.eval.generation_run import Evaluation, check_conditions, smaller
    from vidtok.eval.real_clips import real_clips
    from vidtok.generator import from_pretrained
    from vidtok.tokenizer import VideoTokenizer
    from vidtok.train.processes import only_process
    from vidtok.train.stop import StopSignal

    plain = OmegaConf.to_container(cfg, resolve=True)
    # What is wrong shall show before hours of training.
    how = smaller(convention(cfg.convention), cfg.n_real, cfg.n_fake, cfg.folds)
    check_kinds(plain)
    device, folder = only_process("eval generation-compare"), Path(cfg.run)
    tokenizer = VideoTokenizer.from_pretrained(cfg.tokenizer, device)
    if not (cfg.i3d or cfg.recogniser):
        raise UserError("nothing to measure: give i3d=FILE or recogniser=NAME")
    detectors = load_detectors(cfg.i3d, None, cfg.recogniser, tokenizer, device)
    for kind in cfg.kinds:
        config = check_kind(kind, args.overrides, folder / kind)
        if config.weight_hash != tokenizer.weight_hash:
            raise ValueError(f"{folder / kind} was trained on tokens of another {cfg.tokenizer}: give another run=")
    real = real_clips(cfg.real, cfg.real_root, cfg.real_split, cfg.other_split, config, how, cfg.sample_batch)
    for kind in cfg.kinds:
        check_conditions(how, config, real.classes, detectors.head, tokenizer, given_settings(cfg, kind))
    check_real(real, how)
    training = {}
    with StopSignal() as stop:
        for kind in cfg.kinds:
            training[kind] = train_kind(kind, args.overrides, folder / kind, tokenizer.weight_hash, stop)
            if stop.asked:
                print("stopped: the same command goes on", flush=True)
                return
    generators = {kind: from_pretrained(folder / kind / "model", device) for kind in cfg.kinds}
    # Not before: what can't be measured holds nothing. Names alone don't do: a file of a name can be a new one.
    facts = {key: value for key, value in plain.items() if key in MEASURED_WITH}
    hold_to(folder, facts | {"detectors": detectors.names, "tokenizer_weights": tokenizer.weight_hash})
    evaluation = None

    def measured(name: str, work) -> dict:
        """What is in the file, or else `work()`, which is then in the file."""
        nonlocal evaluation
        file = folder / "measured" / f"{name}.json"
        if not file.exists():
            if evaluation is None:
                evaluation = Evaluation(real, detectors, tokenizer, how, cfg.convention, cfg.sample_batch)
            write_json(file, work(evaluation))
        return json.loads(file.read_text())

    limits, rows = measured("limits", lambda evaluation: evaluation.limits()), []
    for kind, generator in generators.items():
        own = given_settings(cfg, kind)
        for steps in cfg.steps[kind]:
            number = steps or generator.default_steps
            row = measured(
                f"{kind}-{number}",
                lambda evaluation, generator=generator, steps=steps, own=own: evaluation.measure(
                    generator, cfg.seed, steps=steps, **own
                ),
            )
            rows.append({**row, "steps": number})
            print(f"{kind}, {number} steps: {one_line(row)}", flush=True)
        draw_samples(folder / f"{kind}.png", generator, tokenizer, cfg.seed, own)
    result = {"schema": SCHEMA, "training": training, "limits": limits, "rows": rows}
    result["config"] = plain
    if cfg.i3d:
        result["verdict"] = verdict(rows)
    write_json(folder / "result.json", result)
    table = f"{markdown_table(result)}\n\n{caption(result)}"
    (folder / "table.md").write_text(table + "\n")
    draw_chart(result, folder / "chart.png")
    print(table)
    print(result.get("verdict", ""), f"result: {folder / 'result.json'}, chart: {folder / 'chart.png'}", sep="\n")


def check_kinds(plain: dict) -> None:
    """Raises ValueError for an unknown kind, or numbers of steps or samples that are none."""
    from vidtok.generator import KINDS
    from vidtok.hints import nearest

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


def check_real(real, how) -> None:
    """Raises ValueError where there are no real clips, or none that the `Convention` how can score."""
    from vidtok.eval.generation import prepare

    first = next(iter(real.clips()), None)
    if first is None or (real.others is not None and next(iter(real.others()), None) is None):
        raise ValueError(f"{real.about['source']}: no real clip can be read")
    prepare(first, how)


def config_of(kind: str, overrides: list[str], own: Path):
    """Of the training of one kind, in the folder `own`."""
    from vidtok.cli.train import compose_config

    compared = compose_config("generation_compare", overrides)
    given = [f"generator={kind}", f"run={own}", f"name={kind}", *compared.training[kind]]
    return compose_config("generation_compare", [*overrides, *given])


def check_kind(kind: str, overrides: list[str], own: Path):
    """The `GeneratorConfig` of one kind. Raises ValueError where it can't be trained, or can't sample as asked."""
    from vidtok.builders import build_generator_training
    from vidtok.generator import from_pretrained

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

    from vidtok.builders import build_generator_training, lasting
    from vidtok.eval.clip_store import hold_to
    from vidtok.train.folder import RunFolder
    from vidtok.train.loop import train

    cfg = config_of(kind, overrides, own)
    plain = OmegaConf.to_container(cfg, resolve=True)
    facts = {key: value for key, value in plain.items() if key in TRAINED_WITH}
    hold_to(own, facts | {"trainer": lasting(plain["trainer"]), "tokenizer_weights": weights})
    file = own / TRAINED
    if not file.exists():
        arguments = build_generator_training(cfg)
        text = OmegaConf.to_yaml(cfg, resolve=True)
        train(**arguments, run=RunFolder(own), stop=stop, config_yaml=text, say=lambda line: print(line, flush=True))
        state = arguments["state"]
        facts = {"seconds": state.seconds, "steps": state.step, "samples": state.step * cfg.data.batch_size}
        if stop.asked:
            return facts
        file.write_text(json.dumps(facts) + "\n")
    return json.loads(file.read_text())


def given_settings(cfg, kind: str) -> dict:
    return {name: value for name, value in cfg.settings[kind].items() if value is not None}


def draw_samples(path: Path, generator, tokenizer, seed: int, settings: dict) -> None:
    """A sample of each class, or nine, in rows of frames."""
    from vidtok.datasets import write_video
    from vidtok.generator.pictures import frame_rows

    number = min(len(generator.config.classes), 12) or 9
    label = list(range(number)) if generator.config.classes else None
    ids = generator.generate(number, label, seed=seed, **settings)
    write_video(path, frame_rows(tokenizer.decode(ids).cpu())[:, None], 1)


def one_line(row: dict) -> str:
    from vidtok.eval.generation_run import summary
    from vidtok.eval.table import short_seconds

    metrics = ", ".join(f"{name} {value}" for name, value in summary(row["metrics"]).items())
    return f"{metrics}, {short_seconds(row['seconds_per_clip'])} s per clip"
