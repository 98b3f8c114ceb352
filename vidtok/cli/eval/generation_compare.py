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

from vidtok.cli import common


def configure(parser: argparse.ArgumentParser) -> None:
    common.add_overrides(parser)


def run(args: argparse.Namespace) -> None:
    from omegaconf import OmegaConf

    from vidtok.configs.compose import compose_config
    from vidtok.eval.generation.comparison import (
        MEASURED_WITH,
        check_kind,
        check_kinds,
        check_real,
        draw_samples,
        given_settings,
        one_line,
        train_kind,
    )

    cfg = compose_config("generation_compare", args.overrides)
    if args.config:
        print(OmegaConf.to_yaml(cfg))
        return

    from vidtok.errors import UserError
    from vidtok.eval.generation.comparison import SCHEMA, caption, draw_chart, markdown_table, verdict
    from vidtok.eval.generation.conventions import get_convention, real_clips
    from vidtok.eval.generation.run import Evaluation, check_conditions, load_feature_extractors, smaller
    from vidtok.files import write_json
    from vidtok.generator import from_pretrained
    from vidtok.tokenizer import VideoTokenizer
    from vidtok.train.distributed import only_process
    from vidtok.train.loop import StopSignal
    from vidtok.train.run_folder import check_fingerprint

    plain = OmegaConf.to_container(cfg, resolve=True)
    # What is wrong shall show before hours of training.
    convention = smaller(get_convention(cfg.convention), cfg.n_real, cfg.n_fake, cfg.folds)
    check_kinds(plain)
    device, folder = only_process("eval generation-compare"), Path(cfg.run)
    tokenizer = VideoTokenizer.from_pretrained(cfg.tokenizer, device)
    if not (cfg.i3d or cfg.recogniser):
        raise UserError("nothing to measure: give i3d=FILE or recogniser=NAME")
    detectors = load_feature_extractors(cfg.i3d, None, cfg.recogniser, tokenizer, device)
    for kind in cfg.kinds:
        config = check_kind(kind, args.overrides, folder / kind)
        if config.weight_hash != tokenizer.weight_hash:
            raise ValueError(f"{folder / kind} was trained on tokens of another {cfg.tokenizer}: give another run=")
    real = real_clips(cfg.real, cfg.real_root, cfg.real_split, cfg.other_split, config, convention, cfg.sample_batch)
    for kind in cfg.kinds:
        check_conditions(convention, config, real.classes, detectors.head, tokenizer, given_settings(cfg, kind))
    check_real(real, convention)
    training = {}
    with StopSignal() as stop:
        for kind in cfg.kinds:
            training[kind] = train_kind(kind, args.overrides, folder / kind, tokenizer.weight_hash, stop)
            if stop.requested:
                print("stopped: the same command goes on", flush=True)
                return
    generators = {kind: from_pretrained(folder / kind / "model", device) for kind in cfg.kinds}
    # Not before: what can't be measured holds nothing. Names alone don't do: a file of a name can be a new one.
    facts = {key: value for key, value in plain.items() if key in MEASURED_WITH}
    check_fingerprint(folder, facts | {"detectors": detectors.names, "tokenizer_weights": tokenizer.weight_hash})
    evaluation = None

    def measured(name: str, work) -> dict:
        """What is in the file, or else `work()`, which is then in the file."""
        nonlocal evaluation
        file = folder / "measured" / f"{name}.json"
        if not file.exists():
            if evaluation is None:
                evaluation = Evaluation(real, detectors, tokenizer, convention, cfg.convention, cfg.sample_batch)
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
