"""Where a model's files are: in the package, in a folder, or on the Hugging Face hub."""

from pathlib import Path

from huggingface_hub import hf_hub_download

from vidtok.hints import nearest

PRETRAINED = Path(__file__).parent / "pretrained"  # the models that the package ships, one folder each
WEIGHTS, CONFIG = "model.safetensors", "config.json"
PARTS = ("best", "model")  # of a run folder, where its models are


def list_shipped(root: Path = PRETRAINED) -> list[str]:
    """Names of the models below `root`."""
    return sorted(path.parent.name for path in root.glob(f"*/{CONFIG}"))


def find_pretrained(name: str | Path, what: str, root: Path = PRETRAINED, **hub_arguments) -> tuple[Path, Path]:
    """(config file, weight file) of a model.

    Args:
        name: a folder below `root`, any other folder, or a hub id ("owner/name").
        what: "tokenizer" or "head", for the error.
        hub_arguments: of `huggingface_hub.hf_hub_download`.

    Raises:
        ValueError: for a name that is none of these, or a folder that lacks a file.
    """
    if name is None:
        raise ValueError(f"a {what} is needed, by its name or folder, and null is none")
    shipped = list_shipped(root)
    folder = root / str(name) if str(name) in shipped else Path(name)
    if folder.is_dir():
        missing = [file for file in (CONFIG, WEIGHTS) if not (folder / file).is_file()]
        if missing:
            inside = [part for part in PARTS if (folder / part / CONFIG).is_file()]
            hint = f"; did you mean {folder / inside[0]}?" if inside else ""
            raise ValueError(f"{folder} is no {what}: it has no {' and no '.join(missing)}{hint}")
        return folder / CONFIG, folder / WEIGHTS
    if str(name).count("/") != 1 or folder.parent.is_dir():
        # Only what can be no path is asked of the hub, which takes half a minute to give up where it is offline.
        raise ValueError(f"no shipped {what} and no folder {str(name)!r}: {nearest(str(name), shipped)}")
    config, weights = (Path(hf_hub_download(str(name), file, **hub_arguments)) for file in (CONFIG, WEIGHTS))
    return config, weights
