"""Composed configs: nested settings, hydra overrides, and what --config prints."""

from pathlib import Path

import pytest

from vidtok.cli.main import main
from vidtok.configs.compose import compose_config, given_keys, list_options
from vidtok.errors import UserError


def test_nested_settings_are_the_overrides_of_hydra():
    overrides = ["data.source=x/y.csv", "head=linear", "optimizer.lr=0.1", "data.scale=[0.5,1]"]
    overrides += ["head_options={head_drop: 0.1}", "trainer.max_steps=3"]
    nested = {
        "head": "linear",
        "optimizer": {"lr": 0.1},
        "data": {"source": Path("x/y.csv"), "scale": (0.5, 1)},
        "head_options": {"head_drop": 0.1},
        "trainer": {"max_steps": 3},
    }
    assert compose_config("finetune", overrides) == compose_config("finetune", nested)


def test_a_later_layer_of_settings_overrides_an_earlier_one():
    layers = (["optimizer.lr=1"], {"data": {"source": "x"}, "optimizer": {"lr": 2.0}}, ["optimizer.lr=3", "head=mlp"])
    assert compose_config("finetune", *layers[:2]).optimizer.lr == 2
    cfg = compose_config("finetune", *layers)
    assert cfg.optimizer.lr == 3 and cfg.head.kind == "mlp"
    assert given_keys(*layers[:2]) == {"optimizer.lr", "data", "data.source", "optimizer"}
    with pytest.raises(UserError, match="sets nothing: want KEY=VALUE"):
        compose_config("finetune", {"data": {"source": "x"}}, ["optimizer.lr"])


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"data": {"sorce": "x"}}, "unknown key 'data.sorce': did you mean 'data.source'"),
        ({"dta": {"source": "x"}}, "unknown key 'dta': did you mean 'data'"),
        ({"head": "linaer"}, "unknown head 'linaer': did you mean 'linear'"),
        ({"head": "linear"}, "data.source is needed: give data.source=VALUE"),
        ({"data": {"source": "x"}, "optimizer": {"lr": "fast"}}, "optimizer.lr is a number, such as 0.001, and not"),
        ({"data": {"source": "x"}, "optimizer": 3}, "optimizer is a mapping, such as"),
    ],
)
def test_wrong_nested_settings_name_the_nearest_legal_one(settings, message):
    with pytest.raises(UserError, match=message):
        compose_config("finetune", settings)


@pytest.mark.parametrize(
    "command, words",
    [
        ("train tokenizer", ["root: ???", "# model: ", "vidtok-t-r", "# quantizer: fsq, ", "# data: digits, folder\n"]),
        ("train tokenizer", ["# experiment: digits, imagenet-16x", "# loss: magvit2, "]),
        ("train generator", ["# size: base", "# generator: autoregressive", "# experiment: generator/imagenet-256"]),
        ("eval finetune", ["source: ???", "# head: attentive, ", "# recipe: k400-attentive"]),
        ("eval compare", ["source: ???", "# head: attentive, ", "arms:"]),
        ("eval generation-compare", ["# size: base", "kinds:"]),
    ],
)
def test_config_needs_no_data_and_lists_what_the_groups_offer(capsys, command, words):
    assert main([*command.split(), "--config"]) == 0
    out = capsys.readouterr().out
    assert all(word in out for word in words), out
    assert main([*command.split(), "--config", "trainer.max_step=1"]) == 1
    assert "did you mean 'trainer.max_steps'" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("name", ["train_tokenizer", "train_generator", "finetune"])
def test_every_listed_option_composes(name):
    for group, options in list_options(name).items():
        for option in options:
            compose_config(name, [f"{group}={option}"], complete=False)


def test_evaluations_and_trainings_are_functions():
    import vidtok
    from vidtok.train.run import train_generator, train_tokenizer

    packages = vidtok.eval.reconstruction, vidtok.eval.recognition, vidtok.eval.generation
    functions = [getattr(package, name) for package in packages for name in package.__all__]
    assert len(functions) == 9 and all(map(callable, [*functions, train_tokenizer, train_generator]))
    assert not hasattr(vidtok.eval.recognition, "prob")
