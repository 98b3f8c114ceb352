"""Train a recognition head end to end, choose its checkpoint on a part of the training clips, and test it once.

    vidtok eval finetune data.source=digits data.size=64 data.protocol=17x1x1x1 trainer.max_steps=2000
    vidtok eval finetune data.source=grid.csv data.label_column=command input=codes trainer.max_minutes=30
    vidtok eval finetune recipe=k400-vivit-b-tokens data.source=train.csv data.root=DIR data.val_source=val.csv
    vidtok eval finetune --config recipe=ssv2-attentive        # print the resolved config only

Everything is hydra: key=value, group=name. The run folder (run=DIR) holds the resolved config, checkpoints, model/ (the
last head), best/ (the chosen one), TensorBoard scalars and, in the end, result.json (schema vidtok.recognition/1); the
same command again goes on from its checkpoint. `vidtok eval recognition DIR/best ...` tests the head elsewhere.
"""

import argparse
import time

from vidtok.cli import common


def configure(parser: argparse.ArgumentParser) -> None:
    common.add_overrides(parser)


def run(args: argparse.Namespace) -> int | None:
    from omegaconf import OmegaConf

    from vidtok.configs.compose import compose_config

    cfg = compose_config("finetune", args.overrides)
    if args.config:
        print(OmegaConf.to_yaml(cfg))
        return None

    from vidtok.eval.recognition.clips import build_clip_sources
    from vidtok.eval.recognition.data import build_head_data
    from vidtok.eval.recognition.finetuning import build_recognition_training, check_finetuning, chosen_head
    from vidtok.eval.recognition.protocol import build_protocol
    from vidtok.eval.recognition.results import data_record, recognition_result, result_entry
    from vidtok.eval.report.table import format_table
    from vidtok.files import write_json
    from vidtok.tokenizer import VideoTokenizer
    from vidtok.train.distributed import join_processes
    from vidtok.train.loop import StopSignal, train
    from vidtok.train.run_folder import RunFolder

    start = time.perf_counter()
    processes = join_processes()
    tokenizer = VideoTokenizer.from_pretrained(cfg.tokenizer, processes.device)
    head_data = build_head_data(cfg, tokenizer)
    arguments = build_recognition_training(cfg, head_data, tokenizer)
    check_finetuning(cfg, tokenizer)  # not before: a command that failed holds nothing
    folder = RunFolder(cfg.run)

    def log(line: str) -> None:
        processes.print(line, flush=True)

    with StopSignal() as stop:
        head = train(**arguments, run=folder, stop=stop, config_yaml=OmegaConf.to_yaml(cfg, resolve=True), log=log)
    status = 0
    if stop.requested:
        log("stopped before the test: the same command goes on")
    elif processes.is_main_process:
        state = arguments["state"]
        head, facts = chosen_head(head, folder.path)
        facts |= {"seed": cfg.seed, "steps": state.step, "seconds": state.seconds}
        predictions = head_data.test(head)
        shuffled = None if head_data.shuffled is None else [head_data.shuffled(head)]
        result = recognition_result(
            "finetune",
            [result_entry(cfg.name, cfg.input, [(facts, predictions)], None, shuffled)],
            {cfg.name: [predictions]},
            data=data_record(
                build_clip_sources(cfg)[0],
                {"train": cfg.data.train_split, "test": cfg.data.val_split},
                head_data.classes,
                head_data.train_failures,
            ),
            train_labels=head_data.train.labels,
            protocol=build_protocol(cfg).record(),
            tokenizer=None if cfg.input == "pixels" else tokenizer,
            config=OmegaConf.to_container(OmegaConf.load(folder.path / "config.yaml")),  # that it was trained with
            wall_time_s=time.perf_counter() - start,
            device=str(processes.device),
        )
        write_json(folder.path / "result.json", result)
        log(f"{format_table(result)}\nresult: {folder.path / 'result.json'}")
        status = 1 if result["n_failed"] else 0
    processes.wait_for_everyone()
    processes.destroy_process_group()
    return status
