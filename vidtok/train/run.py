"""Train a model by its settings: compose the config, build what it names, run the loop."""

from collections.abc import Callable, Collection

from omegaconf import DictConfig, OmegaConf

from vidtok.configs.compose import compose_config, given_keys
from vidtok.errors import UserError
from vidtok.generator import Generator
from vidtok.generator.training import build_generator_training, check_generator
from vidtok.heads import Head
from vidtok.tokenizer import VideoTokenizer
from vidtok.train.loop import train
from vidtok.train.pretraining import build_pretraining, check_pretraining
from vidtok.train.prior import PriorNetwork, build_prior_training, check_prior
from vidtok.train.run_folder import RunFolder
from vidtok.train.state import StopSignal, is_lost_peer, join_processes
from vidtok.train.tokenizer import build_tokenizer_training, tokenizer_of

Log = Callable[[str], None]
STARTS = ("branch", "init", "inflate", "grow")  # settings that say what the weights start as


def train_tokenizer(*overrides: str, log: Log = print, **settings) -> VideoTokenizer:
    """Train a tokenizer.

        train_tokenizer(data={"root": "videos"}, trainer={"max_minutes": 60}, run="runs/first")
        train_tokenizer("experiment=vidtok-t", data={"root": "videos"})

    The run folder (setting `run`) holds the resolved config, checkpoints, the model, TensorBoard scalars and pictures;
    the same call again resumes from its checkpoint.

    Args:
        overrides, settings: of configs/train_tokenizer.yaml, as hydra overrides or nested, see
            `vidtok.configs.compose`.
        log: called with each line of progress, in the main process only.

    Returns:
        The tokenizer with averaged weights, in evaluation mode, as in the folder model/ of the run.

    Raises:
        UserError: for an unknown or missing setting, and for settings that contradict each other.
        ValueError: for settings that don't fit the data or the checkpoint.
        FloatingPointError: where the loss or a gradient isn't finite.
    """
    cfg = compose_config("train_tokenizer", overrides, settings)
    validate_start(cfg, given_keys(overrides, settings))
    arguments = build_tokenizer_training(cfg)
    if cfg.branch:
        schedule = arguments["schedule"]
        lengths = {"steps": schedule.max_steps, "minutes": schedule.max_minutes}
        length = " or ".join(f"{number} {unit}" for unit, number in lengths.items() if number is not None)
        note = f"branch of {cfg.branch} from step {schedule.start_step}: the learning rate decays over {length}"
        return tokenizer_of(_run(cfg, arguments, log, note))
    return tokenizer_of(_run(cfg, arguments, log))


def train_generator(*overrides: str, log: Log = print, **settings) -> Generator:
    """Train a generator of token ids or latents.

        train_generator(generator="diffusion", data={"features": "latents"}, trainer={"max_steps": 1000})

    Args, run folder and errors as for `train_tokenizer`, with the settings of configs/train_generator.yaml.

    Returns:
        The generator with averaged weights, in evaluation mode, as in the folder model/ of the run.
    """
    cfg = compose_config("train_generator", overrides, settings)
    arguments = build_generator_training(cfg)
    check_generator(cfg, arguments["state"].model.config)
    return _run(cfg, arguments, log)


def pretrain(*overrides: str, log: Log = print, **settings) -> Head:
    """Pretrain a video transformer by masked prediction of token ids, without labels; see `vidtok.train.pretraining`.

        pretrain(data={"features": "ids"}, trainer={"max_minutes": 60}, run="runs/backbone")

    `finetune(init="runs/backbone/model")` starts from it. Args, run folder and errors as for `train_tokenizer`, with
    the settings of configs/train_pretrain.yaml.

    Returns:
        The backbone with averaged weights, a head without classes in evaluation mode, as in the folder model/ of the
        run.
    """
    cfg = compose_config("train_pretrain", overrides, settings)
    arguments = build_pretraining(cfg)
    check_pretraining(cfg, arguments["task"], arguments["batches"])
    return _run(cfg, arguments, log).backbone


def train_prior(*overrides: str, log: Log = print, **settings) -> PriorNetwork:
    """Train the prior of a tokenizer, the network of `vidtok compress --entropy prior`; see `vidtok.train.prior`.

        train_prior(tokenizer="vidtok-t", data={"source": "videos"}, trainer={"max_minutes": 60}, run="runs/prior")

    Args, run folder and errors as for `train_tokenizer`, with the settings of configs/train_prior.yaml.

    Returns:
        The network with averaged weights. The folder model/ of the run has them as integers in prior.safetensors, which
        `vidtok.compress(prior=)` takes.
    """
    cfg = compose_config("train_prior", overrides, settings)
    arguments = build_prior_training(cfg)
    check_prior(cfg, arguments["task"].tokenizer)
    return _run(cfg, arguments, log)


def _run(cfg: DictConfig, arguments: dict, log: Log, note: str | None = None):
    """Run the loop. arguments: of `vidtok.train.loop.train`; note: a first line of progress."""
    processes = join_processes()
    log = processes.on_local_main_process(log)
    folder = RunFolder(cfg.run)
    if note:
        log(note)
    text = OmegaConf.to_yaml(cfg, resolve=True)
    try:
        with StopSignal() as stop:
            model = train(**arguments, run=folder, stop=stop, config_yaml=text, log=log)
    except RuntimeError as error:
        if processes.num_processes == 1 or not is_lost_peer(error):
            raise
        raise UserError(
            f"process {processes.process_index} can't reach the others, of which one has ended (its own message or the "
            f"launcher's says why): the same command goes on from the last checkpoint in {folder.path}"
        ) from error
    log(f"model: {folder.path / 'model'}")
    processes.destroy_process_group()
    return model


def validate_start(cfg: DictConfig, given: Collection[str]) -> None:
    """Raise UserError for settings that contradict what the weights start as. given: the keys that the user gave.

    A start that the user gives replaces that of an experiment, in `cfg`.
    """
    own_model = any(key.split(".")[0] in ("model", "quantizer") for key in given)
    starts = [key for key in STARTS if cfg.get(key) and key in given]
    if len(starts) > 1:
        raise UserError(f"give one of {'= and '.join(starts)}=: each says what the weights start as")
    if starts:
        for key in STARTS:
            cfg[key] = cfg[key] if key in starts else None
    for key in ("init", "branch"):
        if cfg.get(key) and own_model:
            raise UserError(f"{key} brings its own model: give either {key}=, or model= and quantizer=")
    if not cfg.get("branch"):
        return
    if "trainer.shape" in given and cfg.trainer.shape != "decay":
        raise UserError("the learning rate of a branch decays: leave out trainer.shape=")
    if "run" not in given:
        raise UserError("a branch needs a folder of its own: give run=DIR")
