"""What `import vidtok` gives, and who may import whom."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import vidtok
from vidtok.errors import UserError
from vidtok.info import describe

ROOT = Path(vidtok.__file__).parents[1]
FUNCTIONS = {
    "VideoTokenizer", "create_tokenizer", "list_tokenizers", "create_head", "list_heads", "create_generator", "extract",
    "Recognizer", "compress", "decompress", "TokenDataset", "TokenBatches", "read_video", "write_video",
}  # fmt: skip
PACKAGES = {"heads", "datasets", "eval", "generator", "train"}


def test_exports():
    assert set(vidtok.__all__) == {*FUNCTIONS, *PACKAGES, "__version__"}
    for name in FUNCTIONS:
        assert getattr(vidtok, name).__name__ == name
    for name in PACKAGES:
        assert getattr(vidtok, name).__name__ == f"vidtok.{name}"
    assert callable(vidtok.generator.generate) and callable(vidtok.datasets.check)
    with pytest.raises(AttributeError, match="encoder"):
        _ = vidtok.encoder
    with pytest.raises(AttributeError, match="generat"):
        _ = vidtok.generator.generat


def test_import_is_quick():
    code = "import sys, vidtok; assert not {'torch', 'av', 'pandas'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_only_the_command_line_imports_the_command_line():
    for path in ROOT.rglob("*.py"):
        below = path.relative_to(ROOT).parts
        if below[0] not in ("vidtok", "heads", "datasets", "eval") or below[1] in ("cli", "__main__.py"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.startswith("vidtok.cli") for name in names), path


def test_commands_are_short():
    for path in (ROOT / "vidtok/cli").glob("*.py"):
        assert len(path.read_text().splitlines()) < 120, path


def test_describe(tmp_path):
    rows = describe("vidtok-t")
    assert rows["tokenizer"] == "vidtok-t" and rows["codebook"] == "18 bits (262144 codes)"
    assert "| " in rows["model card"]
    assert next(iter(describe("digits-tokens"))) == "head"
    vidtok.write_video(tmp_path / "a.mp4", vidtok.datasets.demo_clip(5, 64), 25)
    assert describe(tmp_path / "a.mp4")["size"] == "64 x 64"
    with pytest.raises(UserError, match="no such file"):
        describe(tmp_path / "b.mp4")
