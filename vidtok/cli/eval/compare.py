"""The same head on the same clips with the same budget, reading tokens, codes, latents, hidden features, pixels or
reconstructions: what of an action is left in the tokens?

    vidtok eval compare data.source=digits data.size=64 data.protocol=17x1x1x1 run=runs/compare-digits
    vidtok eval compare data.source=grid.csv data.label_column=command arms=[tokens,pixels,recon] seeds=[0,1,2]
    vidtok eval compare --config data.source=grid.csv         # print the resolved config only

Everything is hydra; settings are those of `vidtok eval finetune`, and arms, seeds, reference. With pixels among the
arms their heads are tested on reconstructions, too (the MAGVIT-v2 paper's protocol). The run folder (run=DIR) keeps
every clip, encoding and head: the same command again goes on where it was stopped. In the end it holds result.json
(schema vidtok.recognition/1), page.html with charts and playable clips, and charts/.
"""

import argparse
import time
from pathlib import Path

from vidtok.cli import common


def configure(parser: argparse.ArgumentParser) -> None:
    common.add_overrides(parser)


def run(args: argparse.Namespace) -> int | None:
    from omegaconf import OmegaConf

    from vidtok.configs.compose import compose_config
    from vidtok.eval.recognition.comparison import validate_settings
    from vidtok.eval.report.page import write_report

    cfg = compose_config("compare", args.overrides)
    if args.config:
        print(OmegaConf.to_yaml(cfg))
        return None
    validate_settings(cfg, args.overrides)

    from vidtok.eval.recognition.clips import build_clip_sources
    from vidtok.eval.recognition.comparison import build_comparison, costs
    from vidtok.eval.recognition.finetuning import build_recognition_training, chosen_head
    from vidtok.eval.recognition.protocol import build_protocol
    from vidtok.eval.recognition.results import data_record, recognition_result
    from vidtok.eval.report.table import format_table
    from vidtok.files import write_json
    from vidtok.tokenizer import VideoTokenizer
    from vidtok.train.distributed import only_process
    from vidtok.train.loop import StopSignal, train
    from vidtok.train.run_folder import RunFolder

    start = time.perf_counter()
    device = only_process("eval compare")
    tokenizer = VideoTokenizer.from_pretrained(cfg.tokenizer, device)
    comparison = build_comparison(cfg, tokenizer)
    folder = Path(cfg.run)

    def fit(head_data, arm: str, seed: int, own: Path):
        settings = OmegaConf.merge(cfg, {"input": arm, "seed": seed})
        arguments = build_recognition_training(settings, head_data, tokenizer)
        text = OmegaConf.to_yaml(settings, resolve=True)
        head = train(**arguments, run=RunFolder(own), stop=stop, config_yaml=text, log=log)
        if stop.requested:
            return None
        head, facts = chosen_head(head, own)
        state = arguments["state"]
        return head, {**facts, "seed": seed, "steps": state.step, "seconds": state.seconds}

    def log(line: str) -> None:
        print(line, flush=True)

    with StopSignal() as stop:
        if not comparison.run(fit, folder, log):
            log("stopped: the same command goes on")
            return 0
    entries, predictions, comparisons = comparison.results(folder, cfg.reference)
    source, test_source = build_clip_sources(cfg)
    protocol = build_protocol(cfg)
    tokens = comparison.encoded("tokens", "test")
    result = recognition_result(
        "compare",
        entries,
        predictions,
        data=data_record(
            source,
            {"train": cfg.data.train_split, "test": cfg.data.val_split},
            comparison.train.classes,
            comparison.train.failures,
        ),
        train_labels=comparison.train.labels,
        protocol=protocol.record(),
        tokenizer=tokenizer,
        config=OmegaConf.to_container(cfg, resolve=True),
        wall_time_s=time.perf_counter() - start,
        device=str(device),
        comparisons=comparisons,
        costs=costs(
            comparison.test,
            test_source.open(cfg.data.val_split, protocol),
            comparison.store,
            "tokens-test",
            tokenizer.bits,
            tokens[0, 0].numel(),
            entries,
            cfg.data.batch_size,
        ),
    )
    write_json(folder / "result.json", result)
    write_report(result, comparison, tokenizer, tokens, cfg.page.clips, cfg.page.fps, folder)
    log(f"{format_table(result)}\nresult: {folder / 'result.json'}, page: {folder / 'page.html'}")
    return 1 if result["n_failed"] else 0
