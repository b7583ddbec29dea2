import ast
import importlib
import inspect
import pkgutil
import subprocess
import sys
from dataclasses import FrozenInstanceError, fields, is_dataclass, replace
from typing import Literal, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

import dcgan_dist
from dcgan_dist.config import Config, OptionGroup, flatten
from dcgan_dist.config.checks import ConfigError, ranges
from dcgan_dist.config.groups import DataConfig, LossConfig, ModelConfig, OptimizerConfig
from dcgan_dist.config.run_groups import DivergenceConfig, ResumeConfig, WandbConfig

# names of an option that its dictionary leaves to something else
ELSEWHERE = {"PRECISIONS": {"auto"}, "FRAME": {"none"}, "LENS": {"none"}}


def registries():
    """Every dictionary of the package that is annotated as dict[SomeLiteral, ...]."""
    for module in pkgutil.walk_packages(dcgan_dist.__path__, "dcgan_dist."):
        names = vars(importlib.import_module(module.name))
        for name, hint in get_type_hints(importlib.import_module(module.name)).items():
            if get_origin(hint) is dict and get_origin(get_args(hint)[0]) is Literal:
                yield name, get_args(get_args(hint)[0]), names[name]


def test_every_dictionary_has_an_entry_for_every_name_of_its_option():
    found = {name: (set(allowed), set(registry)) for name, allowed, registry in registries()}
    assert found.keys() >= {
        "AUGMENTATIONS", "DECAYS", "LATENTS", "LOSSES", "NORMS", "OUTPUTS", "PRECISIONS", "RANGES", "SYNCHRONISATIONS"
    }  # fmt: skip
    for name, (allowed, registered) in found.items():
        assert registered == allowed - ELSEWHERE.get(name, set()), name


def dataclasses_of(config):
    yield type(config)
    for item in fields(config):
        if is_dataclass(getattr(config, item.name)):
            yield from dataclasses_of(getattr(config, item.name))


@pytest.mark.parametrize("group", [group for group in dataclasses_of(Config()) if group is not Config])
def test_every_option_has_a_docstring(group):
    (tree,) = ast.parse(inspect.getsource(group)).body
    assert isinstance(tree, ast.ClassDef)
    docstrings = {}
    for statement, after in zip(tree.body, [*tree.body[1:], None], strict=True):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            text = after.value if isinstance(after, ast.Expr) else None
            docstrings[statement.target.id] = text.value if isinstance(text, ast.Constant) else ""
    assert set(docstrings) == {item.name for item in fields(group)}
    assert not [name for name, text in docstrings.items() if not str(text).endswith(".")]


def test_every_class_of_options_is_frozen_and_keyword_only():
    groups = list(dataclasses_of(Config()))
    assert len(groups) == 14
    for group in groups:
        assert all(item.kw_only for item in fields(group))
        with pytest.raises(FrozenInstanceError):
            setattr(group(), fields(group)[0].name, None)


def option_classes(base=OptionGroup):
    """Those of the training and of every command."""
    for module in pkgutil.walk_packages(dcgan_dist.__path__, "dcgan_dist."):
        importlib.import_module(module.name)
    for kind in base.__subclasses__():
        yield kind
        yield from option_classes(kind)


NEEDED = {"SampleOptions": {"source": "x"}, "ShardOptions": {"source": "x", "out": "y", "size": 8}}
NEEDED |= {
    "Packing": {"size": 8},
    "VerifyOptions": {"shards": ("x",)},
    "InspectOptions": {"shards": ("x",)},
    "WatchOptions": {"run": "x"},
}
NEEDED |= {"WandbOptions": {"action": "sync", "runs": ("x",)}}
NUMBERS = [
    (kind, name)
    for kind in dict.fromkeys(option_classes())
    if kind.__module__.startswith("dcgan_dist.")
    for name, hint in get_type_hints(kind).items()
    if {int, float} & {hint, *get_args(hint)} and get_origin(hint) is not Literal
]


BAD = (float("nan"), float("inf"), float("-inf"))


@pytest.mark.parametrize(("kind", "name"), NUMBERS, ids=[f"{kind.__name__}.{name}" for kind, name in NUMBERS])
def test_every_number_has_limits_and_is_refused_outside_of_them_by_its_flag(kind, name):
    limits = ranges(kind)[name]
    least, most = [value for value in vars(limits).values() if value is not None]
    assert float("-inf") < least < most < float("inf")
    ends = [*[least] * (limits.above is not None), *[most] * (limits.below is not None)]
    for value in (least - 1, most * 2 + 1, *ends, *BAD):
        with pytest.raises(ConfigError) as error:
            kind(**NEEDED.get(kind.__name__, {}) | {name: value})
        assert str(error.value).startswith(f"--{kind.prefix}{name} {value}: must be "), value
        assert error.value.exit_code == 2


def test_the_numbers_are_those_of_the_training_and_of_the_commands():
    assert len(NUMBERS) >= 65
    assert {"Config", "DataConfig", "ShardOptions", "SampleOptions"} <= {k.__name__ for k, _ in NUMBERS}


@pytest.mark.parametrize(
    ("kind", "message", "values"),
    [
        (LossConfig, "--loss.label_smoothing 0.5: must be less than 0.5", {"label_smoothing": 0.5}),
        (LossConfig, "--loss.r1_gamma inf: must be at most 1,000,000,000.0", {"r1_gamma": float("inf")}),
        (OptimizerConfig, "--optimizer.beta1 1.0: must be less than 1", {"beta1": 1.0}),
        (OptimizerConfig, "--optimizer.g_clip 0.0: must be more than 0", {"g_clip": 0.0}),
        (OptimizerConfig, "--optimizer.d_clip nan: must be more than 0", {"d_clip": float("nan")}),
        (DivergenceConfig, "--divergence.lr_factor 1.5: must be at most 1", {"lr_factor": 1.5}),
        (Config, "--images 0: must be at least 1", {"images": 0}),
    ],
)
def test_what_the_limits_say(kind, message, values):
    with pytest.raises(ConfigError) as error:
        kind(**values)
    assert str(error.value) == message


LAYER, PENALTY = ModelConfig(d_norm="layer"), LossConfig(name="wasserstein", gp_weight=10.0)
PIPE = ("pipe:cat a.tar",)
CONTRADICTIONS = [
    (Config(loss=LossConfig(name="hinge", label_smoothing=0.1)), ["--loss.label_smoothing", "--loss.name hinge"]),
    (Config(loss=LossConfig(r1_gamma=1.0)), ["--loss.r1_gamma with --model.d_norm batch", "layer or none"]),
    (Config(loss=LossConfig(gp_weight=1.0)), ["--loss.gp_weight with --model.d_norm batch"]),
    (
        Config(loss=LossConfig(gp_weight=1.0, r1_gamma=1.0)),
        ["--loss.r1_gamma and --loss.gp_weight with --model.d_norm batch"],
    ),
    (Config(augment=("color", "cutout", "color")), ["--augment color cutout color: names color twice"]),
    (Config(trackers=("aim,wandb", "aim")), ["--trackers aim wandb aim: names aim twice"]),
    (
        Config(trackers=("aim",), wandb=WandbConfig(mode="offline")),
        ["--wandb.mode offline has no effect without wandb in --trackers"],
    ),
    (Config(loss=LossConfig(name="wasserstein")), ["--loss.name wasserstein", "--loss.gp_weight 10"]),
    (Config(batch_size=10, accumulate=4), ["--batch_size 10", "1 rank x --accumulate 4", "nearest that does is 8"]),
    (Config(batch_size=10, world_size=4), ["--batch_size 10", "4 ranks x --accumulate 1", "nearest that does is 8"]),
    (Config(data=DataConfig(shards=PIPE, allow_pipe=True)), ["pipe:cat ...", "add --data.reader stream"]),
    (Config(data=DataConfig(shards=PIPE, reader="stream")), ["pipe:cat ...", "--data.allow_pipe allows it"]),
    *(
        (
            Config(resume=ResumeConfig(allow_changes=("seed", unknown))),
            [f"--resume.allow_changes {unknown}: there is no"],
        )
        for unknown in ("batch", "optimizr", "optimizer.g", "")
    ),
]


@pytest.mark.parametrize(("config", "quotes"), CONTRADICTIONS)
def test_options_that_contradict_each_other_are_refused_by_their_flags(config, quotes):
    with pytest.raises(ConfigError) as error:
        config.check()
    assert "\n" not in str(error.value)
    for quote in quotes:
        assert quote in str(error.value)


@pytest.mark.parametrize(
    "config",
    [
        Config(),
        Config(loss=PENALTY, model=LAYER),
        Config(loss=LossConfig(r1_gamma=1.0), model=replace(LAYER, d_norm="none")),
        Config(loss=LossConfig(name="wasserstein"), model=ModelConfig(spectral_norm=True)),
        Config(loss=LossConfig(name="minimax", label_smoothing=0.1)),
        Config(batch_size=24, accumulate=3, world_size=4),
        Config(data=DataConfig(shards=PIPE, reader="stream", allow_pipe=True)),
    ],
)
def test_options_that_agree_pass(config):
    assert config.check() is config


@given(st.integers(1, 5_000), st.integers(1, 64), st.integers(1, 8))
def test_ranks_share_a_batch_evenly_or_hear_of_the_nearest_that_they_do(batch, world, accumulate):
    config = Config(batch_size=batch, accumulate=accumulate)
    parts = world * accumulate
    if batch % parts == 0:
        assert config.per_rank(world) * parts == batch
        return
    with pytest.raises(ConfigError, match="the nearest that does is ") as error:
        config.per_rank(world)
    nearest = int(str(error.value).rsplit(" ", 1)[1])
    assert nearest % parts == 0
    assert nearest > 0
    others = [parts * n for n in range(1, batch // parts + 3)]
    assert abs(nearest - batch) == min(abs(other - batch) for other in others)


def test_flat_names_are_the_options():
    flat = flatten(Config())
    assert flat["model.image_size"] == 64
    assert flat["seed"] == 0
    assert list(flat)[:3] == ["run_dir", "images", "batch_size"]
    assert not any(is_dataclass(value) for value in flat.values())


def test_the_schema_is_the_standard_library_alone():
    """Tools that read a configuration, and `dcgan-dist --help`, must not wait seconds for torch."""
    code = (
        "import sys, dcgan_dist.config; from dcgan_dist.__main__ import main; "
        "main(['--help']); sys.exit(' '.join(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    modules = {name.partition(".")[0] for name in result.stderr.split()}
    assert "dcgan_dist" in modules
    assert not modules & {"torch", "numpy", "tyro", "yaml", "accelerate", "wandb", "PIL"}
