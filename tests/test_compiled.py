"""Models inside others, wrapped, cast, copied and compiled."""

import copy
import pickle

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch._dynamo.utils import counters

from vidtok import VideoTokenizer, create_head, create_tokenizer
from vidtok.generator import GeneratorConfig, create_generator
from vidtok.heads import Head


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A saved tokenizer, small and untrained."""
    torch.manual_seed(0)
    tokenizer = create_tokenizer("vidtok-t")
    config = copy.deepcopy(tokenizer.config)
    config.net.update(width=16, blocks=1, decoder_blocks=1)
    path = tmp_path_factory.mktemp("models") / "small"
    VideoTokenizer(config).save_pretrained(path)
    return path


@pytest.fixture
def tokenizer(folder):
    return VideoTokenizer.from_pretrained(folder)


def make_head() -> Head:
    torch.manual_seed(0)
    return create_head("vivit-tiny", num_classes=3, grid=(2, 4, 4), depth=2, dim=24).eval()


def make_generator(kind: str):
    torch.manual_seed(0)
    config = GeneratorConfig("tiny", kind, "small", "0" * 16, 18, (2, 2, 2), width=24, depth=1, heads=2)
    return create_generator(config).eval()


def clip() -> torch.Tensor:
    return torch.linspace(-1, 1, 3 * 5 * 32 * 32).view(1, 3, 5, 32, 32)


def count_compiled(function):
    """(result, number of frames that torch.compile saw)."""
    torch._dynamo.reset()
    counters.clear()
    result = function()
    return result, counters["frames"].get("total", 0)


# -------------------------------------------------------------------- hash


class Model(nn.Module):
    """A tokenizer inside a larger model."""

    def __init__(self, tokenizer):
        super().__init__()
        self.tokenizer, self.body = tokenizer.requires_grad_(False), nn.Linear(2, 2)


@pytest.mark.parametrize("wrap", [Model, lambda t: Model(nn.Sequential(t)), lambda t: nn.DataParallel(Model(t))])
def test_a_tokenizer_inside_a_model_keeps_its_hash(tokenizer, wrap):
    of_file, model = tokenizer.weight_hash, wrap(tokenizer)
    model.train()
    assert tokenizer.weight_hash == of_file
    model.eval().requires_grad_(True).to(memory_format=torch.channels_last).share_memory()
    model.load_state_dict(copy.deepcopy(model.state_dict()))
    assert tokenizer.weight_hash == of_file
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        (inside,) = [module for module in again.modules() if isinstance(module, VideoTokenizer)]
        assert inside.weight_hash == of_file


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_cast_of_the_model_around_it_keeps_the_hash(tokenizer, dtype):
    of_file, model = tokenizer.weight_hash, Model(tokenizer)
    model.to(dtype)
    assert tokenizer.dtype == dtype and tokenizer.weight_hash == of_file
    assert copy.deepcopy(model).tokenizer.weight_hash == of_file
    model.float()
    rounded = dtype != torch.float64
    assert (tokenizer.weight_hash != of_file) == rounded


def test_what_is_cast_without_loss_is_the_same_on_the_way_back():
    tokenizer = VideoTokenizer.from_pretrained("vidtok-t")  # its file holds half precision
    of_file = tokenizer.weight_hash
    assert tokenizer.half().weight_hash == of_file
    assert tokenizer.float().weight_hash == of_file
    head = Head.from_pretrained("digits-tokens")
    head.check_tokenizer("vidtok-t", tokenizer.bfloat16().weight_hash)


def test_edited_weights_lose_the_hash_in_any_dtype(tokenizer):
    of_file = tokenizer.weight_hash
    tokenizer.bfloat16()
    with torch.no_grad():
        next(tokenizer.parameters()).mul_(2)
    edited = tokenizer.weight_hash
    assert edited != of_file
    tokenizer.to(torch.float16)
    assert tokenizer.weight_hash not in (of_file, edited)


def test_loaded_in_bf16_is_rounded_in_fp32(folder, tokenizer):
    low = VideoTokenizer.from_pretrained(folder, precision="bf16")
    assert low.weight_hash == tokenizer.weight_hash
    assert low.float().weight_hash != tokenizer.weight_hash


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_around_it_changes_no_ids(tokenizer, dtype):
    expected = tokenizer.encode_latents(clip()), tokenizer.forward_features(clip())
    ids = tokenizer.encode(clip())
    frames = tokenizer.decode(ids)
    with torch.autocast("cpu", dtype):
        latents, features = tokenizer.encode_latents(clip()), tokenizer.forward_features(clip())
        assert torch.equal(tokenizer.encode(clip()), ids) and torch.equal(tokenizer.decode(ids), frames)
    assert torch.equal(latents, expected[0]) and torch.equal(features, expected[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("kind", ["masked", "autoregressive", "diffusion"])
def test_generators_run_in_any_precision(kind, dtype):
    options = {} if kind == "autoregressive" else {"steps": 2}
    assert make_generator(kind).to(dtype).generate(1, **options).shape == (1, 2, 2, 2)


# ------------------------------------------------------------ wrapped parts


def compile_parts(tokenizer):
    tokenizer.encoder = torch.compile(tokenizer.encoder, backend="eager")
    tokenizer.decoder = torch.compile(tokenizer.decoder, backend="eager")
    return tokenizer


def data_parallel(tokenizer):
    tokenizer.encoder = nn.DataParallel(tokenizer.encoder)
    return tokenizer


@pytest.mark.parametrize("wrap", [compile_parts, data_parallel, lambda t: torch.compile(t, backend="eager")])
@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_wrapped_parts_are_saved_under_their_own_names(tokenizer, tmp_path, wrap, dtype):
    of_file, video = tokenizer.weight_hash, clip()
    names, ids = set(tokenizer.state_dict()), tokenizer.encode(video)
    wrapped = wrap(tokenizer)
    assert wrapped.weight_hash == of_file
    wrapped.save_pretrained(tmp_path, dtype=dtype)
    assert set(load_file(tmp_path / "model.safetensors")) == names
    again = VideoTokenizer.from_pretrained(tmp_path)
    if dtype is None:
        assert torch.equal(again.encode(video), ids)


@pytest.mark.parametrize("wrap", [compile_parts, data_parallel, lambda t: torch.compile(t, backend="eager")])
def test_states_load_into_wrapped_models_and_back(folder, tokenizer, wrap):
    plain = {name: tensor.clone() for name, tensor in tokenizer.state_dict().items()}
    wrapped = wrap(VideoTokenizer.from_pretrained(folder))
    tokenizer.load_state_dict(wrapped.state_dict())
    with torch.no_grad():
        for parameter in wrapped.parameters():
            parameter.zero_()
    assert wrapped.weight_hash != tokenizer.weight_hash
    getattr(wrapped, "_orig_mod", wrapped).load_state_dict(plain)
    assert wrapped.weight_hash == tokenizer.weight_hash
    with pytest.raises(RuntimeError, match=r"Unexpected key\(s\) in state_dict: \"x.y\""):
        tokenizer.load_state_dict(plain | {"x.y": torch.zeros(1)})


def test_files_with_names_of_wrappers_load(tokenizer, tmp_path):
    from safetensors.torch import save_file

    tokenizer.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    save_file({f"_orig_mod.{k}".replace("encoder.", "encoder._orig_mod."): v for k, v in load_file(file).items()}, file)
    again = VideoTokenizer.from_pretrained(tmp_path)
    assert torch.equal(again.encode(clip()), tokenizer.encode(clip()))


def test_a_wrapped_head_and_generator_are_saved_under_their_own_names(tmp_path):
    head, generator = make_head(), make_generator("masked")
    names = set(head.state_dict()), set(generator.state_dict())
    head.blocks[0] = torch.compile(head.blocks[0], backend="eager")
    generator.trunk = torch.compile(generator.trunk, backend="eager")
    for model, own, kind in ((head, names[0], "head"), (generator, names[1], "generator")):
        model.save_pretrained(tmp_path / kind)
        assert set(load_file(tmp_path / kind / "model.safetensors")) == own
        type(model).from_pretrained(tmp_path / kind)


# ----------------------------------------------------------------- compiled


def in_place(model):
    model.compile(backend="eager")
    return model


def by_function(model):
    return torch.compile(model, backend="eager")


@pytest.mark.parametrize("compiled", [by_function, in_place, compile_parts])
@pytest.mark.parametrize("method", ["encode", "encode_latents", "forward_features", "decode", "stream"])
def test_a_compiled_tokenizer_runs_compiled(tokenizer, compiled, method):
    def run(model):
        if method == "decode":
            return model.decode(ids)
        if method == "stream":
            return torch.cat(list(model.stream_encode(clip().split(2, 2))), 1)
        return getattr(model, method)(clip())

    ids = tokenizer.encode(clip())
    expected, eager = count_compiled(lambda: run(tokenizer))
    assert eager == 0
    model = compiled(tokenizer)
    result, frames = count_compiled(lambda: run(model))
    assert frames > 0
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=0)
    assert torch.equal(copy.deepcopy(tokenizer).encode(clip()), ids)


@pytest.mark.parametrize("compiled", [by_function, in_place])
def test_a_compiled_head_runs_compiled(compiled):
    head, ids = make_head(), torch.arange(32).view(1, 2, 4, 4)
    expected = head(ids)
    model = compiled(head)
    result, frames = count_compiled(lambda: model.forward_head(model.forward_features(ids)))
    assert frames > 0
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("compiled", [by_function, in_place])
@pytest.mark.parametrize("kind", ["masked", "autoregressive", "diffusion"])
def test_a_compiled_generator_runs_compiled(compiled, kind):
    generator = make_generator(kind)
    options = {} if kind == "autoregressive" else {"steps": 2}
    expected = generator.generate(1, **options)
    model = compiled(generator)
    result, frames = count_compiled(lambda: model.generate(1, **options))
    assert frames > 0 and torch.equal(result, expected)


def test_a_compiled_tokenizer_stays_compiled_in_another_precision(tokenizer):
    compiled = torch.compile(tokenizer, backend="eager")
    assert compiled.set_precision("bf16") is compiled and tokenizer.dtype == torch.bfloat16
    result, frames = count_compiled(lambda: compiled.eval().encode(clip()))
    assert frames > 0 and result.shape == (1, 2, 4, 4)


def test_disabled_is_not_compiled(tokenizer):
    _, frames = count_compiled(lambda: torch.compiler.disable(tokenizer).encode(clip()))
    assert frames == 0


def test_a_compiled_tokenizer_is_pickled_eager(tokenizer):
    torch.compile(tokenizer, backend="eager").encode(clip())
    again = pickle.loads(pickle.dumps(tokenizer))
    assert torch.equal(again.encode(clip()), tokenizer.encode(clip()))
