"""Compare two versions of vidtok on this machine: does a change leave every result as it was?

    python tests/golden.py HEAD                             # the working tree against its own commit
    python tests/golden.py COMMIT --only 'train*'           # some of the jobs, and those that they need
    python tests/golden.py COMMIT --tolerance 'tokens*=1e-5' --tolerance '* settings=inf'
    python tests/golden.py --list

Every job runs twice, as `vidtok ...` in a process of its own: once with COMMIT (checked out into a temporary git
worktree) and once with the working tree. What the two write is compared field by field; no numbers are stored. An item
is what one job writes of one kind: losses, weights, records, result, settings, pictures, videos. Items named
"old files: ..." compare COMMIT with the working tree run on the files that COMMIT wrote. The exit status is 1 where an
item differs by more than its tolerance (default: 0, identical to the bit), or a job fails.

Both versions are driven from outside: by the command line, and by the public names in `golden_run.encode_clips`. When
the interface changes, edit the tables: COMMANDS (how a command is spelled), RENAMED (fields of files) and IGNORED.

Everything runs on the CPU with one thread. The weights of I3D, Inception and LPIPS are random, from a fixed seed.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
    "PYTHONHASHSEED": "0", "HF_HUB_OFFLINE": "1", "MPLBACKEND": "Agg", "COLUMNS": "120",
}  # fmt: skip
SHARED = Path(os.environ.get("VIDTOK_SHARED", ROOT.parent / "shared"))


# ---------------------------------------------------------------- what changes with the interface


@dataclass(frozen=True)
class Spelling:
    """How some versions spell a command.

    Attributes:
        command: the words after `vidtok`.
        renames: an argument, or its beginning, as JOBS writes it -> as those versions take it.
        check: arguments of `vidtok` that exit with 0 in those versions (default: the command's --help).
        shows: text that the output of `check` contains in those versions.
    """

    command: str
    renames: dict[str, str] = field(default_factory=dict)
    check: str | None = None
    shows: str = ""


# Per command as JOBS calls it: its spellings, newest first; a version gets the first one whose check passes, and the
# last one without a check. JOBS is in the spelling of the oldest version that is to be compared.
COMMANDS: dict[str, tuple[Spelling, ...]] = {
    "demo": (Spelling("demo"),),
    "encode": (Spelling("encode"),),
    "decode": (Spelling("decode"),),
    "reconstruct": (Spelling("reconstruct"),),
    "extract": (Spelling("extract"),),
    "recognize": (Spelling("recognize"),),
    "check": (Spelling("check"),),
    "generate": (Spelling("generate"),),
    "train tokenizer": (
        Spelling(
            "train tokenizer",
            {"discriminator.multipliers=": "discriminator.channel_multipliers="},
            "train tokenizer --config data=digits discriminator.channel_multipliers=[2]",
        ),
        Spelling("train tokenizer"),
    ),
    "train generator": (Spelling("train generator"),),
    "eval reconstruction": (Spelling("eval reconstruction"),),
    "eval agreement": (Spelling("eval agreement"),),
    "eval probe": (Spelling("eval probe"),),
    "eval recognition": (Spelling("eval recognition"),),
    "eval finetune": (Spelling("eval finetune"),),
    # A renamed flag, and a renamed setting, would be:
    # "encode": (Spelling("encode", {"--max-frames": "--frames"}, shows="--frames"), Spelling("encode"))
    # "eval compare": (Spelling("eval compare", {"arms=": "inputs="}, "eval compare --config data.source=x inputs=[x]"),
    #     Spelling("eval compare"))
    "eval compare": (Spelling("eval compare"),),
    "eval generation": (Spelling("eval generation"),),
    "eval generation-compare": (
        Spelling(
            "eval generation-compare",
            {"recogniser=": "recognizer="},
            "eval generation-compare --config data=digits recognizer=x",
        ),
        Spelling("eval generation-compare"),
    ),
}

# Old to new: (regular expression, replacement), applied to the fields of both versions. A field is "file:key.key", such
# as "train-masked/checkpoint.pt:model.trunk.0.weight"; "values" are texts in JSON and YAML.
RENAMED: dict[str, list[tuple[str, str]]] = {
    "fields": [
        (r"part-[0-9a-f]{12}", "part"),  # shards are named at random
        (r"\bhalve_time\b", "temporal_downsample"),
        (r"\blabel_drop\b", "class_dropout_prob"),
        (r"\bmerge\b", "patch_merge"),
        (r"\bjoined\b", "concat_segments"),
        (r"data\.cells\b", "data.grid_crop"),
        (r"\brecogniser\b", "recognizer"),
        (r"\bneighbours\b", "neighbors"),
        (r"\btrivial_psnr\b", "block_mean_psnr"),
        (r"\bdepends_on\.json\b", "fingerprint.json"),
        (r"\bmultipliers\b", "channel_multipliers"),
        (r"\benter\b", "proj_in"),
        (r"\bleave\b", "proj_out"),
        (r"\bsharpness\b", "qk_scale"),
    ],
    "values": [(r"\bcentre crop\b", "center crop"), (r"\bmean colour\b", "mean color")],
}

# Keys (parts of a field between dots) that say where, when and how fast, in any file.
IGNORED = re.compile(
    r"git|date|versions|device|threads|wall_time_s|seconds|seconds_per_clip|clips_per_second|trained_per_second"
)
# What two runs of one version may differ by, as --tolerance takes it; libx264's assembler isn't reproducible.
TOLERANCES = ("* videos=64",)
# Files that hold little else, or where it can't be told apart: charts show speed.
SKIPPED_FILES = ("*/run.json", "*chart*")


# ---------------------------------------------------------------- jobs


@dataclass(frozen=True)
class Job:
    """One command. It runs in a folder of its version, beside the folders ../clips, ../labeled, ../demo and
    ../weights, and writes into the folder that is called like it.

    Attributes:
        command: a key of COMMANDS, or a function of `golden_run`, which is given the job's folder.
        needs: jobs whose files it reads. module: without which it is skipped.
        reread: whether the working tree also runs it on COMMIT's files.
        stdout: compare what it prints, too (lines of JSON).
    """

    name: str
    command: str
    arguments: str = ""
    needs: tuple[str, ...] = ()
    module: str | None = None
    reread: bool = False
    stdout: bool = False


TRAINER = "trainer.max_steps=20 trainer.warmup_steps=5 trainer.log_seconds=0 trainer.save_seconds=100000 "
TRAINER += "trainer.workers=0"
SMALL_NET = "model.net.width=32 model.net.blocks=1 model.net.decoder_blocks=1"
TOKENIZER = f"{TRAINER} data.frames=5 data.crop=32 data.batch_size=2 data.image_batch_size=4 validation.root=digits "
TOKENIZER += "validation.clips=2 validation.frames=5 validation.size=32 discriminator.base=8 "
TOKENIZER += "discriminator.multipliers=[2,4]"
SIZE = "data.frames=9 data.size=32 data.batch_size=4 size.width=32 size.depth=1 size.heads=2"
GENERATOR = f"{TRAINER} {SIZE} data.source=digits"
SAMPLES = "samples=2 sampling.steps=2"
HEAD = f"{TRAINER} data.source=digits data.size=32 data.protocol=9x1x1x1 data.train_clips=90 data.val_clips=45 "
HEAD += "data.batch_size=8"
TINY_HEAD = "head=vivit-micro 'head_options={dim: 16, depth: 1, heads: 2}'"
SHORT = "--size 64 --max-frames 17 --workers 0"
LABELED = "../labeled --class-folders"

JOBS = (
    Job("demo", "demo", "-o demo"),
    Job("tokens", "encode_clips"),
    # Tokenizers: adversary and LPIPS; adversary from step 10, logits, accumulation; files; another quantizer; init.
    Job("train-magvit2", "train tokenizer", f"{TOKENIZER} run=train-magvit2 data=digits model=magvit2-s "
        "model.net.base=8 model.net.blocks=1 loss=magvit2 lpips.net=alex lpips.weights=../weights/alex.safetensors"),
    Job("train-residual", "train tokenizer", f"{TOKENIZER} run=train-residual data=digits model=vidtok-t-r {SMALL_NET} "
        "loss=starter loss.adversarial=0.1 loss.adversarial_start=10 loss.perceptual=0.1 perceptual=logits "
        "logits.net=test_resnet logits.weights=../weights/test_resnet.safetensors optimizer=muon trainer.accumulate=2 "
        "trainer.checkpoint_activations=true"),
    Job("train-fsq", "train tokenizer", f"{TOKENIZER} run=train-fsq data.root=../clips data.size=40 {SMALL_NET} "
        "quantizer=fsq"),
    Job("train-vq", "train tokenizer", f"{TOKENIZER} run=train-vq data=digits {SMALL_NET} quantizer=vq "
        "quantizer.size=64"),
    Job("train-init", "train tokenizer", f"{TOKENIZER} run=train-init data=digits init=train-fsq/model",
        needs=("train-fsq",), reread=True),
    # Extraction: every container, feature and way of cutting clips; the pool of decoders.
    Job("extract-npz", "extract", f"{LABELED} -o extract-npz {SHORT}"),
    Job("extract-clips", "extract", f"{LABELED} -o extract-clips --clips dense:2 --frames 9 --stride 2 "
        "--crop three --size 32 --fps 10 --workers 0 --batch 2"),
    Job("extract-parquet", "extract", f"{LABELED} -o extract-parquet --container parquet --features codes "
        "--clips windows:64 --frames 9 --size 32 --workers 1", module="pyarrow"),
    Job("extract-pooled", "extract", f"../clips -o extract-pooled --features hidden --pool mean {SHORT}"),
    Job("extract-webdataset", "extract", f"{LABELED} -o extract-webdataset --container webdataset --features "
        f"latents --dtype float16 --model vidtok-t-r --batch 2 {SHORT}"),
    Job("extract-embedding", "extract", "../clips -o extract-embedding --features embedding --head digits-tokens "
        "--clips uniform:1 --frames 17 --size 64 --crop three --workers 0"),
    Job("encode", "encode", "../clips/clip-0.mp4 -o encode/clip.npz --tile 64 --precision bf16 --max-frames 9"),
    Job("decode", "decode", "extract-npz -o decode", needs=("extract-npz",), reread=True),
    Job("decode-gif", "decode", "extract-npz/val/one/clip-4.npz -o decode-gif/clip.gif", needs=("extract-npz",)),
    Job("reconstruct", "reconstruct", "../clips -o reconstruct --side-by-side --size 64 --max-frames 10"),
    Job("check", "check", "../labeled -o check/table.csv --workers 1"),
    # Generators, and what they draw.
    Job("train-masked", "train generator", f"{GENERATOR} {SAMPLES} run=train-masked data.held_out=val "
        "data.held_out_samples=4 objective.tasks.prefix=1 objective.tasks.inpainting=1"),
    Job("train-autoregressive", "train generator", f"{GENERATOR} run=train-autoregressive "
        "generator=autoregressive samples=2 sampling.top_k=50"),
    Job("train-diffusion", "train generator", f"{GENERATOR} {SAMPLES} run=train-diffusion generator=diffusion"),
    Job("train-features", "train generator", f"{TRAINER} {SIZE} run=train-features data.features=extract-clips "
        "samples=0", needs=("extract-clips",), reread=True),
    Job("generate-masked", "generate", "train-masked/model -o generate-masked --number 3 --steps 3 --guidance 2 "
        "--frames 17 --tokens", needs=("train-masked",), reread=True),
    Job("generate-prefix", "generate", "train-masked/model -o generate-prefix --steps 2 --free --tokens "
        "--prefix ../clips/clip-0.mp4", needs=("train-masked",)),
    Job("generate-picture", "generate", "train-masked/model -o generate-picture/all.png --number 2 --steps 2",
        needs=("train-masked",)),
    Job("generate-autoregressive", "generate", "train-autoregressive/model -o generate-autoregressive --number 2 "
        "--top-k 100 --top-p 0.9 --tokens", needs=("train-autoregressive",), reread=True),
    Job("generate-diffusion", "generate", "train-diffusion/model -o generate-diffusion --number 2 --steps 4 --solver "
        "dpm --tokens", needs=("train-diffusion",), reread=True),
    # Heads and evaluations.
    Job("finetune-tokens", "eval finetune", f"{HEAD} run=finetune-tokens input=tokens {TINY_HEAD} data.select=0.2 "
        "trainer.save_steps=10"),
    Job("finetune-pixels", "eval finetune", f"{HEAD} run=finetune-pixels input=pixels {TINY_HEAD} task.mixup=0.5 "
        "task.cutmix=0.5 data.select=0 data.in_memory=true"),
    Job("finetune-attentive", "eval finetune", f"{HEAD} run=finetune-attentive input=hidden head=attentive "
        "data.in_memory=true data.train_views=2 optimizer=muon-head data.select=0.2"),
    Job("recognition-shipped", "eval recognition", "digits-tokens digits --clips 18 "
        "--json recognition-shipped/result.json"),
    Job("recognition", "eval recognition", "finetune-tokens/best digits --clips 45 --json recognition/result.json",
        needs=("finetune-tokens",), reread=True),
    Job("recognize", "recognize", "../clips --head digits-tokens --json", stdout=True),
    Job("probe", "eval probe", "digits --size 32 --protocol 9x1x1x1 --train-clips 45 --test-clips 27 "
        "--input hidden,codes,frames --backbone test_resnet --backbone-weights ../weights/test_resnet.safetensors "
        "--json probe/result.json"),
    Job("probe-knn", "eval probe", "digits --size 32 --protocol 9x1x1x1 --train-clips 90 --test-clips 45 --pool time "
        "--input latents --classifier knn --json probe-knn/result.json"),
    Job("probe-features", "eval probe", "--features extract-clips --input codes --classifier knn --protocol 9x2x2x3 "
        "--split val --size 32 --fps 10 --json probe-features/result.json", needs=("extract-clips",), reread=True),
    Job("compare", "eval compare", f"{HEAD} run=compare arms=[tokens,pixels,recon] seeds=[0] {TINY_HEAD} "
        "page.clips=2"),
    Job("reconstruction", "eval reconstruction", "../labeled/train --frames 9 --size 64 --lpips-alex "
        "../weights/alex.safetensors --i3d ../weights/i3d.safetensors --json reconstruction/result.json"),
    Job("agreement", "eval agreement", "../labeled/val --frames 9 --size 64 --i3d ../weights/i3d.safetensors "
        "--model vidtok-t --model vidtok-t-r --json agreement/result.json"),
    Job("generation", "eval generation", "train-masked/model digits --head finetune-tokens/best --n-real 4 --n-fake 4 "
        "--folds 2 --others val --steps 2 --i3d ../weights/i3d.safetensors --json generation/result.json",
        needs=("train-masked", "finetune-tokens")),
    Job("generation-fid", "eval generation", "train-masked/model digits --n-real 3 --n-fake 3 --folds 1 --steps 2 "
        "--fid ../weights/inception.safetensors --json generation-fid/result.json", needs=("train-masked",)),
    Job("generation-compare", "eval generation-compare", f"{GENERATOR} samples=2 run=generation-compare n_real=10 "
        "n_fake=6 folds=2 steps.masked=[2,4] steps.autoregressive=[null] steps.diffusion=[2] sample_batch=6 "
        "recogniser=finetune-tokens/best", needs=("finetune-tokens",)),
)  # fmt: skip


# ---------------------------------------------------------------- the command


def choose_jobs(pattern: str | None) -> tuple[list[Job], set[str]]:
    """(the jobs to run, with those that they need; names of those to compare)."""
    wanted = {job.name for job in JOBS if pattern is None or fnmatch(job.name, pattern) or pattern in job.name}
    needed = set(wanted)
    for job in reversed(JOBS):
        if job.name in needed:
            needed |= set(job.needs)
    return [job for job in JOBS if job.name in needed], wanted


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit", nargs="?", metavar="COMMIT", help="version to compare the working tree with")
    parser.add_argument("--only", metavar="PATTERN", help="jobs by name: a glob pattern, or a part of the name")
    parser.add_argument("--tolerance", action="append", default=[], metavar="ITEM=VALUE", help="ITEM: a glob pattern")
    parser.add_argument(
        "--keep", metavar="DIR", help="new folder for all files, which is kept (default: a temporary one)"
    )
    parser.add_argument("--list", action="store_true", help="print the names of the jobs and exit")
    args = parser.parse_args()
    jobs, wanted = choose_jobs(args.only)
    if args.list:
        print("\n".join(job.name for job in jobs if job.name in wanted))
        return 0
    if args.commit is None or not wanted:
        parser.error("give a COMMIT" if wanted else f"no job is called {args.only!r}: see --list")
    if any(os.environ.get(key) != value for key, value in ENVIRONMENT.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ENVIRONMENT})
    if args.keep:
        Path(args.keep).mkdir(parents=True)
    work = Path(args.keep or tempfile.mkdtemp(prefix="golden-")).resolve()
    try:
        return compare_versions(args.commit, jobs, wanted, args.tolerance, work)
    finally:
        subprocess.run(["git", "-C", str(ROOT), "worktree", "remove", "--force", str(work / "checkout")])
        if not args.keep:
            shutil.rmtree(work)


def compare_versions(commit: str, jobs: list[Job], wanted: set[str], tolerances: list[str], work: Path) -> int:
    """Run everything in the folder `work` and print the table. Returns the exit status."""
    # After the environment is set: they import torch.
    from golden_files import Rules, compare_job, print_rows, read_job
    from golden_run import Version, copy_packages, cpu_seconds, preload, run_jobs, run_on_files_of, write_inputs

    start, rules = time.perf_counter(), Rules(RENAMED, IGNORED, SKIPPED_FILES)
    checkout, clips = work / "checkout", SHARED / "data" / "video-val.tar"
    subprocess.run(["git", "-C", str(ROOT), "worktree", "add", "--quiet", "--detach", checkout, commit], check=True)
    old, new = (Version(name, work / "sites" / name, work / name, COMMANDS) for name in ("commit", "worktree"))
    for version, source in ((old, checkout), (new, ROOT)):
        copy_packages(source, version.site)
        version.folder.mkdir()
    preload()
    write_inputs(work, old, clips)
    reasons = run_jobs(jobs, [old, new])
    again = [job for job in jobs if job.reread and job.name in wanted and job.name not in reasons]
    mixed, mixed_reasons = run_on_files_of(old, new, again)

    rows = []
    for version, prefix, listed, why in (
        (new, "", [job for job in jobs if job.name in wanted], reasons),
        (mixed, "old files: ", again, mixed_reasons),
    ):
        for job in listed:
            if job.name in why:
                rows.append((prefix + job.name, why[job.name], "", why[job.name].startswith("FAILED")))
                continue
            sides = [read_job(folder, job.name, job.stdout, rules) for folder in (old.folder, version.folder)]
            rows += compare_job(prefix + job.name, *sides, [*TOLERANCES, *tolerances])
    print_rows(rows)
    bad = sum(row[3] for row in rows)
    source = clips if clips.exists() else "rendered"
    print(f"{len(rows)} items, {bad or 'none'} of them different or failed; clips: {source}")
    print(f"{time.perf_counter() - start:.0f} s, {cpu_seconds():.0f} s of CPU time")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
