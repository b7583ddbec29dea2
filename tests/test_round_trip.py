"""Any configuration, written as a run writes it and read back."""

import dataclasses
import typing
from pathlib import Path

import yaml
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from dcgan_dist import cli
from dcgan_dist.config import Config, Range
from dcgan_dist.config.groups import Augmentation

WORDS = st.text(st.characters(categories=("L", "N", "P", "S", "Zs"), codec="utf-8"), min_size=1).filter(
    lambda text: (
        not text.startswith(("-", "~")) and text.strip() and text.lower() not in ("none", "null")
    )  # the spelling of nothing
)


PLAIN: dict[object, st.SearchStrategy] = {
    bool: st.booleans(),
    str: WORDS,
    Path: WORDS.map(Path),
}
# kept from contradicting each other
AGREEING: dict[str, st.SearchStrategy] = {
    "d_norm": st.sampled_from(["layer", "none"]),
    "label_smoothing": st.just(0.0),
    "accumulate": st.just(1),
    "augment": st.lists(st.sampled_from(typing.get_args(Augmentation)), unique=True).map(tuple),
    "allow_changes": st.lists(st.sampled_from(list(cli.KINDS))).map(tuple),
    "trackers": st.lists(st.sampled_from(["tensorboard", "aim"]), unique=True).map(lambda names: ("wandb", *names)),
    "world_size": st.just(None),
    "reader": st.just("indexed"),
    "resampled": st.just(False),
    "quiet": st.just(False),
    "pipeline": st.none(),
    "classes": st.lists(st.integers(0, 999).map(str)).map(tuple),
    "shards": st.lists(WORDS.map(lambda word: f"./{word}")).map(tuple),
}


def within(limits: Range, kind: type) -> st.SearchStrategy:
    """The numbers that an option takes."""
    least, most = (value for value in vars(limits).values() if value is not None)
    above, below = limits.above is not None, limits.below is not None
    if kind is float:
        return st.floats(least, most, exclude_min=above, exclude_max=below)
    return st.integers(int(least), int(most) - below)


def values_of(name: str, hint: object) -> st.SearchStrategy:
    """Any legal value of an option of that name and type."""
    if name in AGREEING:
        return AGREEING[name]
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return options_of(hint)
    if hint in PLAIN:
        return PLAIN[hint]
    inner = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Annotated:
        return within(inner[-1], inner[0])
    if typing.get_origin(hint) is typing.Literal:
        return st.sampled_from(inner)
    if typing.get_origin(hint) is tuple:
        return st.lists(values_of("", inner[0])).map(tuple)
    return st.none() | values_of("", *(kind for kind in inner if kind is not type(None)))


def options_of(group: type) -> st.SearchStrategy:
    hints = typing.get_type_hints(group, include_extras=True)
    return st.builds(group, **{item.name: values_of(item.name, hints[item.name]) for item in dataclasses.fields(group)})


@settings(max_examples=25, phases=[Phase.generate])  # to make an example smaller takes minutes
@given(options_of(Config))
def test_what_is_written_is_read_back(tmp_path_factory, config):
    path = tmp_path_factory.mktemp("round") / "config.yaml"
    path.write_text(cli.dump(config, reveal=True), encoding="utf-8")
    assert cli.load(["--config", str(path)]) == config


def test_the_file_of_a_run_names_every_option():
    tree = yaml.safe_load(cli.dump(Config()))
    assert tree["optimizer"]["g_lr"] == 2e-4
    assert tree["resume"] == {"source": "auto", "allow_changes": []}
    assert list(tree) == [item.name for item in dataclasses.fields(Config)]
