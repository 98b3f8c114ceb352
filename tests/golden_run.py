"""Run the jobs of `golden.py` with a version of vidtok, each in a forked process that imports a folder's packages."""

import atexit
import os
import re
import runpy
import shlex
import shutil
import signal
import sys
import tarfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

TIME_LIMIT = 900  # seconds a job
# Imported once, before the processes are forked: imports would take most of the time.
PRELOADED = (
    "accelerate", "av", "diffusers", "huggingface_hub", "hydra", "matplotlib.pyplot", "omegaconf", "pandas", "rich",
    "safetensors.torch", "sklearn.datasets", "sklearn.linear_model", "sklearn.model_selection", "timm", "timm.optim",
    "torch.utils.tensorboard", "torchmetrics", "torchvision",
)  # fmt: skip


@dataclass
class Version:
    """A version of vidtok.

    Attributes:
        site: the folder that it is imported from. folder: where its commands run.
        commands: COMMANDS of `golden.py`.
    """

    name: str
    site: Path
    folder: Path
    commands: Mapping[str, Sequence]
    spellings: dict[str, object] = field(default_factory=dict)

    def arguments(self, job) -> list[str]:
        """Those of `vidtok` for a job."""
        if job.command not in self.spellings:
            *newer, oldest = self.commands[job.command]
            self.spellings[job.command] = next((spelling for spelling in newer if self.takes(spelling)), oldest)
        spelling, arguments = self.spellings[job.command], []
        for argument in shlex.split(job.arguments):
            old = next((old for old in spelling.renames if argument.startswith(old)), "")
            arguments.append(spelling.renames.get(old, "") + argument[len(old) :])
        return [*spelling.command.split(), *arguments]

    def takes(self, spelling) -> bool:
        arguments = shlex.split(spelling.check or f"{spelling.command} --help")
        log = self.folder / "logs" / "takes"
        return self.fork(lambda: run_vidtok(arguments), log) and spelling.shows in log.with_suffix(".out").read_text()

    def run(self, job) -> bool:
        """Whether the job succeeds; what it prints is in logs/."""
        log = self.folder / "logs" / job.name
        (self.folder / job.name).mkdir()
        if job.command not in self.commands:
            return self.fork(lambda: globals()[job.command](Path(job.name)), log)
        arguments = self.arguments(job)
        return self.fork(lambda: run_vidtok(arguments), log)

    def fork(self, work: Callable[[], None], log: Path) -> bool:
        """Whether `work` succeeds in a process of its own that imports this version."""
        log.parent.mkdir(parents=True, exist_ok=True)
        sys.stdout.flush()
        if pid := os.fork():
            return os.waitpid(pid, 0)[1] == 0
        status = 1
        try:
            signal.alarm(TIME_LIMIT)
            for number, suffix in ((1, ".out"), (2, ".err")):
                os.dup2(os.open(f"{log}{suffix}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            os.chdir(self.folder)
            sys.path[0] = str(self.site)
            import vidtok

            assert vidtok.__file__.startswith(str(self.site)), vidtok.__file__
            work()
            status = 0
        except SystemExit as error:
            status = error.code or 0
        except BaseException:
            traceback.print_exc()
        finally:
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status if isinstance(status, int) else 1)


def preload() -> None:
    """Import what vidtok imports, once for all processes."""
    torch.set_num_threads(1)
    for module in PRELOADED:
        import_module(module)


def run_vidtok(arguments: list[str]) -> None:
    """`python -m vidtok ARGUMENTS`."""
    sys.argv = ["vidtok", *arguments]
    runpy.run_module("vidtok", run_name="__main__", alter_sys=True)


def copy_packages(checkout: Path, site: Path) -> None:
    """The packages of a checkout as an installation would lay them out, by its pyproject.toml."""
    text = (checkout / "pyproject.toml").read_text()
    section = re.search(r"^\[tool\.setuptools\.package-dir\]\n((?:[^\[\n].*\n|\n)*)", text, re.MULTILINE)
    folders = dict(re.findall(r'^"?([\w.]+)"? *= *"([^"]+)"', section[1], re.MULTILINE)) if section else {}
    for package, folder in sorted((folders or {"vidtok": "vidtok"}).items()):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(checkout / folder, site / package.replace(".", "/"), ignore=ignore, dirs_exist_ok=True)


def write_inputs(work: Path, version: Version, tar_file: Path) -> None:
    """Six clips (of `tar_file`, or rendered where there is none), some of them in class folders, and weights."""
    clips, log = work / "clips", work / "logs" / "inputs"
    clips.mkdir()
    made = version.fork(lambda: run_vidtok(["demo", "-o", str(work / "demo")]), log)
    if tar_file.exists():
        with tarfile.open(tar_file) as tar:
            members = sorted((m for m in tar if m.name.endswith(".mp4")), key=lambda member: member.name)
            for i, member in enumerate(members[:: len(members) // 6][:6]):
                (clips / f"clip-{i}.mp4").write_bytes(tar.extractfile(member).read())
    else:
        made = made and version.fork(lambda: render_clips(clips), log)
    if not made:
        raise SystemExit(log.with_suffix(".err").read_text())
    for i, path in enumerate(sorted(clips.iterdir())):
        place = work / "labeled" / ("val" if i > 3 else "train") / ("one", "two")[i % 2] / path.name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place)
    write_weights(work / "weights")


def render_clips(folder: Path) -> None:
    from vidtok import write_video
    from vidtok.datasets import MovingDigits

    digits = MovingDigits("val", frames=41, size=128)
    for i in range(6):
        write_video(folder / f"clip-{i}.mp4", digits[10 * i].video, 25)


def write_weights(folder: Path) -> None:
    """Random weights in the files that users bring."""
    import timm
    from safetensors.torch import save_file
    from torchvision.models import Inception3

    folder.mkdir()
    torch.manual_seed(0)
    save_file(timm.create_model("test_resnet").state_dict(), folder / "test_resnet.safetensors")
    inception = Inception3(aux_logits=False, init_weights=False)
    save_file(inception.state_dict(), folder / "inception.safetensors")
    alex = {0: (64, 3, 11, 11), 3: (192, 64, 5, 5), 6: (384, 192, 3, 3), 8: (256, 384, 3, 3), 10: (256, 256, 3, 3)}
    save_file(random_layers({f"features.{i}": shape for i, shape in alex.items()}), folder / "alex.safetensors")
    i3d = {"Conv3d_1a_7x7": (64, 3, 7, 7, 7), "Conv3d_2b_1x1": (64, 64, 1, 1, 1), "Conv3d_2c_3x3": (192, 64, 3, 3, 3)}
    blocks = {
        "3b": (192, 64, 96, 128, 16, 32, 32), "3c": (256, 128, 128, 192, 32, 96, 64),
        "4b": (480, 192, 96, 208, 16, 48, 64), "4c": (512, 160, 112, 224, 24, 64, 64),
        "4d": (512, 128, 128, 256, 24, 64, 64), "4e": (512, 112, 144, 288, 32, 64, 64),
        "4f": (528, 256, 160, 320, 32, 128, 128), "5b": (832, 256, 160, 320, 32, 128, 128),
        "5c": (832, 384, 192, 384, 48, 128, 128),
    }  # fmt: skip
    for name, (x, b0, b1a, b1b, b2a, b2b, b3b) in blocks.items():
        shapes = {"b0": (b0, x, 1), "b1a": (b1a, x, 1), "b1b": (b1b, b1a, 3)}
        shapes |= {"b2a": (b2a, x, 1), "b2b": (b2b, b2a, 3), "b3b": (b3b, x, 1)}
        i3d |= {f"Mixed_{name}.{branch}": (o, i, k, k, k) for branch, (o, i, k) in shapes.items()}
    save_file(random_layers(i3d | {"logits": (400, 1024, 1, 1, 1)}), folder / "i3d.safetensors")


def random_layers(shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    layers = {f"{name}.bias": torch.zeros(shape[0]) for name, shape in shapes.items()}
    return layers | {f"{name}.weight": torch.nn.init.kaiming_normal_(torch.empty(s)) for name, s in shapes.items()}


def encode_clips(folder: Path) -> None:
    """Ids, latents and reconstructions by the public names."""
    import vidtok

    clips = {"demo": "../demo/original.mp4"} | {path.stem: str(path) for path in sorted(Path("../clips").glob("*.mp4"))}
    for model in ("vidtok-t", "vidtok-t-r"):
        tokenizer, found = vidtok.VideoTokenizer.from_pretrained(model), {}
        for name, path in clips.items():
            video = vidtok.read_video(path, size=128 if name == "demo" else 96, max_frames=33 if name == "demo" else 17)
            ids = tokenizer.encode(video)
            found |= {f"{name}.video": video, f"{name}.ids": ids, f"{name}.reconstruction": tokenizer.decode(ids)}
            found[f"{name}.latents"] = tokenizer.encode_latents(video)
        found["tiled.ids"] = ids = tokenizer.encode(video, tile=64)
        found["tiled.reconstruction"] = tokenizer.decode(ids, tile=64)
        np.savez(folder / f"{model}.npz", **{name: value.numpy() for name, value in found.items()})


def run_jobs(jobs: Sequence, versions: Sequence[Version]) -> dict[str, str]:
    """Run every job with every version, and say why a job has no results: its name -> "FAILED ..." or "skipped ..."."""
    reasons: dict[str, str] = {}
    for job in jobs:
        if job.module is not None and find_spec(job.module) is None:
            reasons[job.name] = f"skipped: no {job.module}"
        elif lacking := [name for name in job.needs if name in reasons]:
            reasons[job.name] = f"{'skipped' if reasons[lacking[0]].startswith('skipped') else 'FAILED'}: {lacking[0]}"
        else:
            start = cpu_seconds()
            failed = [version.name for version in versions if not version.run(job)]
            print(f"{job.name}: {cpu_seconds() - start:.1f} s", file=sys.stderr, flush=True)
            if failed:
                reasons[job.name] = f"FAILED in {' and '.join(failed)}"
                for version in versions:
                    text = (version.folder / "logs" / f"{job.name}.err").read_text().strip()
                    print(f"  {version.name}: {text[-1500:]}", file=sys.stderr)
    return reasons


def run_on_files_of(old: Version, new: Version, jobs: Sequence) -> tuple[Version, dict[str, str]]:
    """Run jobs of the new version in a copy of the old one's folder, without their own results, and as `run_jobs`."""
    mixed = replace(new, name=f"{new.name} on files of {old.name}", folder=new.folder.with_name("mixed"))
    shutil.copytree(old.folder, mixed.folder)
    for job in jobs:
        shutil.rmtree(mixed.folder / job.name)
    return mixed, run_jobs([replace(job, needs=()) for job in jobs], [mixed])


def cpu_seconds() -> float:
    """Of this process and those that it has waited for."""
    return sum(os.times()[:4])
