"""The shipped models keep what their cards promise. Real clips come from $VIDTOK_SHARED (default ../shared)."""

import json
import os
import tarfile
from pathlib import Path

import pytest
import torch

import vidtok
from vidtok.datasets import VideoError, demo_clip
from vidtok.eval import block_mean_baseline, psnr
from vidtok.heads import create_head
from vidtok.hub import FORMER_WEIGHTS, PRETRAINED, hash_file

SHIPPED = ["vidtok-t", "vidtok-t-r"]
CLIPS = Path(os.environ.get("VIDTOK_SHARED", Path(__file__).parent.parent.parent / "shared")) / "data" / "video-val.tar"


@pytest.fixture(scope="module")
def real_clips(tmp_path_factory):
    if not CLIPS.exists():
        pytest.skip("needs the shared clips ($VIDTOK_SHARED)")
    file = tmp_path_factory.mktemp("real") / "clip.mp4"
    clips = []
    with tarfile.open(CLIPS) as tar:
        for member in sorted((m for m in tar if m.name.endswith(".mp4")), key=lambda m: m.name)[::10]:
            file.write_bytes(tar.extractfile(member).read())
            try:
                clip = vidtok.read_video(file, size=(128, 128), max_frames=17)
            except VideoError:
                continue
            if clip.shape[2] == 17:
                clips.append(clip)
    return clips


@pytest.mark.parametrize("name", SHIPPED)
def test_it_loads_and_is_what_was_evaluated(name):
    tokenizer = vidtok.VideoTokenizer.from_pretrained(name)
    result = json.loads((PRETRAINED / name / "evaluation.json").read_text())
    assert tokenizer.weight_hash == result["tokenizer"]["weight_hash"]
    assert (tokenizer.stride, tokenizer.bits, tokenizer.config.name) == ((4, 8, 8), 18, name)
    assert sum(p.numel() for p in tokenizer.parameters()) <= 8e6
    assert (PRETRAINED / name / "model.safetensors").stat().st_size < 20e6
    assert result["metrics"]["psnr_gain"]["mean"] >= 3 and result["codebook"]["entropy_bits"] >= 13
    clip = demo_clip(frames=17)
    assert psnr(tokenizer.decode(tokenizer.encode(clip)), clip).item() > 26


@pytest.mark.parametrize("name", SHIPPED)
def test_it_beats_the_block_mean_baseline_on_real_clips(name, real_clips):
    tokenizer = vidtok.VideoTokenizer.from_pretrained(name)
    gains = [
        psnr(tokenizer.decode(tokenizer.encode(clip)), clip) - psnr(block_mean_baseline(clip), clip)
        for clip in real_clips
    ]
    assert len(gains) >= 10 and torch.cat(gains).mean() > 2.5


@pytest.mark.parametrize("name", SHIPPED)
def test_bf16_keeps_98_percent_of_the_bits_of_real_clips(name, real_clips):
    fp32, bf16 = (vidtok.VideoTokenizer.from_pretrained(name, precision=p) for p in ("fp32", "bf16"))
    same = [
        (fp32.ids_to_codes(fp32.encode(clip)) == bf16.ids_to_codes(bf16.encode(clip))).float().mean()
        for clip in real_clips
    ]
    assert torch.stack(same).mean() > 0.98


def test_what_depends_on_former_weights_is_told_their_release():
    assert not FORMER_WEIGHTS.keys() & {hash_file(file) for file in PRETRAINED.glob("*/model.safetensors")}
    former, release = next(iter(FORMER_WEIGHTS.items()))
    head = create_head("vivit-micro", num_classes=2)
    head.record(tokenizer={"name": "vidtok-t", "weight_hash": former})
    with pytest.raises(ValueError, match=f"'vidtok-t' \\(weights {former} of vidtok {release}\\), not of"):
        head.check_tokenizer("vidtok-t", "0123456789abcdef")
