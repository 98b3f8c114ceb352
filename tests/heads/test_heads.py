"""One contract, every head, every input."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from timm.models import group_parameters
from timm.optim import create_optimizer_v2
from torch import nn

from vidtok.heads import HEADS, INPUTS, Head, create_head, list_heads

GRID = (3, 4, 6)  # t, h, w
OTHER = (5, 2, 4)
SMALL = ["vivit-micro", "vivit-micro-factorized", "vivit-micro-motion", "attentive", "attentive-4", "linear", "mlp"]


def example(kind: str, grid=GRID, batch: int = 2):
    t, h, w = grid
    if kind in ("tokens", "codes"):
        return torch.randint(0, 2**18, (batch, t, h, w))
    if kind == "pixels":
        return torch.rand(batch, 3, 1 + 4 * (t - 1), 8 * h, 8 * w) * 2 - 1
    if kind == "embedding":
        return torch.randn(batch, t * h * w, 32)
    return torch.randn(batch, 32, t, h, w)


def make(name: str, kind: str = "tokens", **arguments) -> Head:
    torch.manual_seed(0)
    grid = (GRID[0] * GRID[1] * GRID[2], 1, 1) if kind == "embedding" else GRID
    small = {"dim": 32} if name in ("linear", "mlp") else {"dim": 32, "heads": 4}
    arguments = {"input": kind, "num_classes": 7, "grid": grid, "channels": 32, **small, **arguments}
    return create_head(name, **arguments).eval()


@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("name", SMALL)
def test_contract(name, kind):
    head, x = make(name, kind), example(kind)
    f = head.forward_features(x)
    assert f.ndim == 3 and f.shape[0] == 2 and f.shape[2] == head.num_features
    assert head.pool(f).shape == (2, head.num_features)
    assert head.forward_head(f, pre_logits=True).shape == (2, head.num_features)
    logits = head.forward_head(f)
    assert logits.shape == (2, 7) and torch.equal(logits, head(x)) and logits.isfinite().all()
    assert torch.equal(head.get_classifier()(head.forward_head(f, pre_logits=True)), logits)
    assert not torch.allclose(logits[0], logits[1])  # it looks at its input

    head.reset_classifier(4)
    assert head(x).shape == (2, 4) and head.num_classes == head.config.num_classes == 4
    head.reset_classifier(0)
    assert torch.equal(head(x), head.forward_head(head.forward_features(x), pre_logits=True))


@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("name", SMALL)
def test_every_parameter_learns(name, kind):
    head = make(name, kind).train()
    head(example(kind)).square().sum().backward()
    for parameter_name, parameter in head.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), parameter_name
        # A vector of an id that isn't there gets none, nor do keys and values a bias alone.
        assert parameter.grad.any() or parameter_name.startswith("embed."), parameter_name


def test_a_single_frame_gives_every_parameter_a_gradient():
    """DDP waits for all of them, also for those that embed the other frames."""
    head = make("vivit-micro", "pixels").train()
    head(example("pixels", (1, 4, 6))).square().sum().backward()
    assert all(parameter.grad is not None for parameter in head.parameters())


@pytest.mark.parametrize("kind", ["tokens", "codes", "hidden", "pixels"])
@pytest.mark.parametrize("name", SMALL)
def test_other_grids(name, kind):
    head = make(name, kind)
    assert head(example(kind, OTHER)).shape == (2, 7)
    assert head(example(kind, (1, 2, 2))).shape == (2, 7)


def _seeded(name, kind):
    torch.manual_seed(0)
    return make(name, kind, patch_merge=2)


@pytest.mark.parametrize("name", SMALL)
def test_arms_differ_only_in_their_embedding(name):
    if name in ("linear", "mlp", "attentive", "attentive-4"):
        kinds = ["tokens", "pixels"]  # features and codes have widths of their own here
    else:
        kinds = ["tokens", "codes", "latents", "hidden", "pixels"]
    shapes = [
        {n: p.shape for n, p in make(name, kind, patch_merge=2).named_parameters() if not n.startswith("embed.")}
        for kind in kinds
    ]
    assert all(other == shapes[0] for other in shapes)
    if name.startswith("vivit"):  # and with one seed they begin alike
        first, *others = [_seeded(name, kind).state_dict() for kind in kinds]
        shared = [key for key in first if not key.startswith("embed.")]
        assert all(torch.equal(first[key], other[key]) for other in others for key in shared)
    features = [make(name, kind, patch_merge=2).forward_features(example(kind)) for kind in kinds]
    assert all(f.shape == features[0].shape for f in features)


@pytest.mark.parametrize("kind", ["tokens", "codes", "hidden", "pixels"])
def test_merge_quarters_the_sequence(kind):
    assert make("vivit-micro", kind).forward_features(example(kind)).shape[1] == 72
    head = make("vivit-micro", kind, patch_merge=2)
    assert head.forward_features(example(kind)).shape[1] == 18
    with pytest.raises(ValueError, match="multiples of"):
        head(example(kind, (3, 4, 5)))


def test_merged_cells_are_neighbors():
    head = make("vivit-micro", "hidden", patch_merge=2)
    x = example("hidden")
    moved = x.clone()
    moved[:, :, 1, 2:4, 4:6] += 1
    changed = (head.embed(x) != head.embed(moved)).any(-1)[0]
    assert changed.nonzero().tolist() == [[1, 1, 2]]


def test_tubelets_are_the_cells_of_the_tokenizer():
    embed = make("vivit-micro", "pixels").embed
    video = example("pixels")
    for t, (first, last) in enumerate([(0, 1), (1, 5), (5, 9)]):  # the first frame apart, then fours
        moved = video.clone()
        moved[:, :, first:last, 8:16, 16:24] *= 0.5
        assert (embed(video) != embed(moved)).any(-1)[0].nonzero().tolist() == [[t, 1, 2]]


def test_ids_are_read_as_signs():
    ids = torch.tensor([3 + 512 * 5]).view(1, 1, 1, 1)
    signs = torch.tensor([1.0 if ids.item() >> bit & 1 else -1.0 for bit in range(18)])
    assert torch.equal(make("linear", "codes").embed(ids).flatten(), signs)
    tokens = make("vivit-micro", "tokens").embed
    torch.testing.assert_close(tokens(ids).flatten(), tokens.linear(signs))  # at first the MLP gives 0
    nn.init.ones_(tokens.mlp.fc2.weight)
    torch.testing.assert_close(tokens(ids).flatten(), tokens.linear(signs) + tokens.mlp(signs))


@pytest.mark.parametrize("bits", [1, 15, 15.965784284662087])  # the last is FSQ's 64,000
def test_other_codebooks(bits):
    size = round(2**bits)
    head = make("vivit-micro", bits=bits)
    assert head(torch.tensor([0, size - 1]).view(1, 1, 1, 2)).isfinite().all()
    with pytest.raises(ValueError, match=rf"0 \.\. {size - 1}"):
        head(torch.full((1, 1, 1, 1), size))


def test_the_transformer_sees_time():
    """Mean-pooled heads can't tell a clip from its reverse; the transformer and the attentive probe can."""
    ids = example("tokens")
    for name in SMALL:
        head = make(name)
        same = torch.allclose(head(ids), head(ids.flip(1)), atol=1e-5)
        assert same == (name in ("linear", "mlp"))


def test_correlation_finds_the_place_that_a_cell_came_from():
    """Of clips that move by (1, -2) cells from one time to the next."""
    head = make("vivit-micro-motion", grid=(3, 8, 8))
    seen = []
    head.correlation.mlp.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    ids = torch.randint(0, 2**18, (2, 1, 20, 20), generator=torch.Generator().manual_seed(0))
    head(torch.cat([ids[..., 6 - t : 14 - t, 6 + 2 * t : 14 + 2 * t] for t in range(3)], 1))
    similarities = seen[0].unflatten(-1, (25, -1))  # places x projections
    assert not similarities[:, 0].any() and similarities.abs().max() < 1.001
    best = similarities[:, 1:, 1:, :-2].mean(-1).argmax(-1)  # the others came from outside
    assert (best == (2 - 1) * 5 + (2 + 2)).all()


def test_factorized_is_one_time_at_first():
    head = make("vivit-micro-factorized")
    assert head.forward_features(example("tokens")).shape[1] == GRID[0]


def test_vivit_base_has_the_size_of_the_paper():
    """Arnab et al. 2021, table 2: the factorized encoder of ViViT-B/16x2 has 115.1 M parameters."""
    with torch.device("meta"):
        head = create_head("vivit-base-factorized", "pixels", 400, (8, 14, 14), stride=(2, 16, 16))
    count = sum(p.numel() for p in head.parameters()) / 1e6
    first_frame = sum(p.numel() for p in head.embed.first.parameters()) / 1e6  # the paper has none apart
    assert count - first_frame == pytest.approx(115.1, abs=0.2)


@pytest.mark.parametrize("name", sorted(set(list_heads()) - set(SMALL)))
def test_every_config_makes_a_head(name):
    with torch.device("meta"):
        head = create_head(name, num_classes=400)
    assert head.num_features == head.head.in_features


def test_dropout_and_depth_only_in_training():
    head = make("vivit-micro", drop=0.1, attn_drop=0.1, drop_path=0.3, head_drop=0.1)
    ids = example("tokens")
    assert torch.equal(head(ids), head(ids))
    head.train()
    assert not torch.equal(head(ids), head(ids))


def test_layer_decay_and_weight_decay():
    head = make("vivit-micro")
    optimizer = create_optimizer_v2(head, opt="adamw", lr=1.0, weight_decay=0.1, layer_decay=0.5)
    settings = {
        id(p): (group["lr_scale"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]
    }
    of = {name: settings[id(p)] for name, p in head.named_parameters()}
    assert of["head.weight"] == (1.0, 0.1) and of["norm.weight"] == (1.0, 0.0)
    assert of["blocks.3.mlp.fc1.weight"] == (0.5, 0.1) and of["blocks.0.mlp.fc1.weight"] == (0.0625, 0.1)
    assert of["embed.linear.weight"] == (0.03125, 0.1) and of["position.axes.0"] == (0.03125, 0.0)


@pytest.mark.parametrize("name", SMALL)
def test_layers_are_sorted_by_depth(name):
    layers = group_parameters(make(name), make(name).group_matcher(), reverse=True)
    blocks = [layer for parameter, layer in layers.items() if parameter.startswith("blocks.")]
    assert {layers[parameter] for parameter in layers if parameter.startswith(("embed.", "position."))} == {0}
    assert layers["head.weight"] == max(layers.values()) == max(blocks, default=0) + 1
    if "space_norm.weight" in layers:  # between the spatial and the temporal blocks
        assert layers["space_norm.weight"] == layers["blocks.2.norm1.weight"] == layers["blocks.3.norm1.weight"] - 1


# ------------------------------------------------------------ wrong input


@pytest.mark.parametrize(
    ("kind", "x", "message"),
    [
        ("tokens", torch.zeros(2, 3, 4, 6), "integers"),
        ("tokens", torch.zeros(3, 4, 6, dtype=torch.long), r"\[B, t, h, w\]"),
        ("codes", torch.full((1, 1, 2, 2), 2**18), "0 .. 262143"),
        ("hidden", torch.zeros(2, 16, 3, 4, 6), "32"),
        ("hidden", torch.zeros(2, 32, 3, 4, 6, dtype=torch.long), "float"),
        ("pixels", torch.zeros(2, 3, 8, 32, 32), "1 \\+ 4k frames"),
        ("pixels", torch.zeros(2, 3, 9, 30, 32), "multiples of 8"),
        ("pixels", torch.full((2, 3, 9, 32, 32), 255.0), r"\[-1, 1\]"),
    ],
)
def test_wrong_input_is_one_clear_line(kind, x, message):
    with pytest.raises(ValueError, match=message) as error:
        make("vivit-micro", kind)(x)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "vivit-mikro"}, "did you mean 'vivit-micro'"),
        ({"input": "token"}, "did you mean 'tokens'"),
        ({"input": "hidden"}, "channels"),
        ({"input": "codes", "bits": 15.97}, "no"),
        ({"grid": (3, 5, 4), "patch_merge": 2}, "multiples of 2"),
        ({"patch_merge": 0}, "patch_merge"),
        ({"depht": 3}, "depht"),
        ({"dim": 66}, "dim=66 doesn't divide into heads=4"),
        ({"heads": 0}, "heads=0"),
        ({"correlation": -1}, "correlation=-1: give its radius in cells"),
        (
            {"name": "attentive", "input": "codes", "dim": 100},
            "neither the width 18 of the input nor dim=100 divides into heads=16",
        ),
    ],
)
def test_wrong_arguments_are_one_clear_line(arguments, message):
    with pytest.raises(ValueError, match=message):
        create_head(**{"name": "vivit-micro", "num_classes": 7, "grid": GRID, **arguments})


# --------------------------------------------------------- saved and loaded


def recorded(name: str, kind: str) -> Head:
    head = make(name, kind)
    head.record(
        classes=[f"class {i}" for i in range(7)],
        tokenizer={"name": "vidtok-t", "weight_hash": "0123456789abcdef"},
        protocol={"frames": 9, "size": 48, "fps": 25.0, "clips": 1, "crops": 1},
    )
    return head


def test_heads_with_tables_of_ids_are_refused(tmp_path):
    make("vivit-micro").save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file({"embed.low.weight": torch.zeros(512, 32), **tensors}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="is of an earlier version, with tables of ids: train it anew"):
        Head.from_pretrained(tmp_path)


def test_a_new_last_layer_is_another_checkpoint():
    head = Head.from_pretrained("digits-tokens")
    before = head.weight_hash
    assert head.train().eval().weight_hash == before
    head.reset_classifier(4)
    assert head.weight_hash != before


@pytest.mark.parametrize("kind", ["tokens", "hidden", "pixels"])
@pytest.mark.parametrize("name", SMALL)
def test_saved_and_loaded(name, kind, tmp_path):
    head, x = recorded(name, kind), example(kind)
    head.save_pretrained(tmp_path)
    again = Head.from_pretrained(tmp_path)
    assert again.weight_hash == head.weight_hash
    assert type(again) is type(head) and not again.training and again.config == head.config
    torch.testing.assert_close(again(x), head(x))
    values = json.loads((tmp_path / "config.json").read_text())
    assert values["schema"] == "vidtok.head/1" and values["classes"][2] == "class 2"


def test_tokens_of_another_tokenizer_are_refused():
    head = recorded("vivit-micro", "tokens")
    head.check_tokenizer("vidtok-t", "0123456789abcdef")
    with pytest.raises(ValueError, match=r"reads tokens of tokenizer 'vidtok-t' .*, not of 'mine' \(weights ffff\)"):
        head.check_tokenizer("mine", "ffff")


def test_hidden_features_of_another_layer_are_refused():
    head = recorded("attentive", "hidden")  # as of 0.1.0, without a layer
    head.check_tokenizer("vidtok-t", "0123456789abcdef")
    with pytest.raises(ValueError, match="reads hidden features of the last layer, not of the middle layer: train it"):
        head.check_tokenizer("vidtok-t", "0123456789abcdef", "middle")
    make("vivit-micro", "pixels").check_tokenizer("mine", "ffff")


def test_class_names_match_the_classes():
    with pytest.raises(ValueError, match="3 class names for num_classes=7"):
        make("linear").record(classes=["a", "b", "c"])
    head = recorded("linear", "tokens")
    head.reset_classifier(3)
    assert head.config.classes is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": "vidtok.tokenizer/1"}, "schema is 'vidtok.tokenizer/1'"),
        ({"net": {"kind": "transformr"}}, "did you mean 'transformer'"),
        ({"net": {"kind": "transformer", "dim": 64, "heads": 4, "depth": 4}}, "don't fit their config"),
        ({"classes": ["a"]}, "1 class names"),
        ({"input": {}}, "kind"),
    ],
)
def test_folders_that_hold_no_such_head(change, message, tmp_path):
    recorded("vivit-micro", "tokens").save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        Head.from_pretrained(tmp_path)


def test_names_that_are_no_head(tmp_path):
    with pytest.raises(ValueError, match="no shipped head and no folder 'nothing'"):
        Head.from_pretrained("nothing")
    with pytest.raises(ValueError, match=r"is no head: it has no config.json and no model.safetensors"):
        Head.from_pretrained(tmp_path)


def test_every_kind_is_tested():
    assert {type(make(name)) for name in SMALL} == set(HEADS.values())


def test_heads_in_bf16_on_a_cpu_are_those_in_fp32():
    """Attention is taken apart there, see `VideoTransformer`; in fp32 it is fused."""
    head = create_head("vivit-micro", "codes", 3, (2, 4, 4)).eval()
    ids = torch.randint(2**18, (2, 2, 4, 4))
    with torch.no_grad():
        wanted = head(ids)
        assert all(block.attn.fused_attn for block in head.blocks)
        with torch.autocast("cpu", torch.bfloat16):
            logits = head(ids)
    assert not any(block.attn.fused_attn for block in head.blocks)
    assert torch.allclose(logits.float(), wanted, atol=0.05)
