"""vidtok: video as discrete tokens.

Names load on first use, so that `vidtok --help` doesn't wait for torch.
"""

from importlib import import_module

__version__ = "0.2.0.dev0"

_HOME = {
    "VideoTokenizer": "vidtok.tokenizer",
    "create_tokenizer": "vidtok.tokenizer",
    "list_tokenizers": "vidtok.tokenizer",
    "create_head": "vidtok.heads",
    "list_heads": "vidtok.heads",
    "create_generator": "vidtok.generator",
    "extract": "vidtok.extraction.run",
    "Recognizer": "vidtok.eval.recognition.recognizer",
    "compress": "vidtok.codec",
    "decompress": "vidtok.codec",
    "TokenDataset": "vidtok.extraction",
    "TokenBatches": "vidtok.extraction",
    "read_video": "vidtok.datasets",
    "write_video": "vidtok.datasets",
    "heads": "vidtok.heads",
    "datasets": "vidtok.datasets",
    "eval": "vidtok.eval",
    "generator": "vidtok.generator",
    "train": "vidtok.train",
}

__all__ = [*_HOME, "__version__"]


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'vidtok' has no attribute {name!r}")
    module = import_module(_HOME[name])
    return module if module.__name__ == f"vidtok.{name}" else getattr(module, name)


def __dir__():
    return sorted(__all__)
