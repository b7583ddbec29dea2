"""The data sets of torchvision by name."""

import ast
import difflib
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from dcgan_dist.config.values import SWITCH
from dcgan_dist.data.shards.labels import is_number, label_text, renumber
from dcgan_dist.data.sources.base import Images, Item, Items, Load, Loaded, Source
from dcgan_dist.errors import UsageError, UserError

TORCHVISION = "torchvision:"


@dataclass(frozen=True)
class TorchvisionSource(Source):
    """A data set of torchvision.datasets by its class name, with constructor options such as ("split", "unlabeled")."""

    name: str
    options: tuple[tuple[str, str], ...]
    root: Path
    download: bool

    def items(self) -> Items:
        """All images of the data set, downloaded first where that is asked for."""
        data_set = self._opened(self.download)
        count = len(data_set)
        if not count:
            raise UsageError(f"{TORCHVISION}{self.name}: no images in it")
        width = len(str(count - 1))
        images = Images(f"{number:0{width}}" for number in range(count))
        _, classes = renumber(_class_names(data_set))
        problem = ""
        with suppress(Exception):  # that of a damaged image is raised when it is packed
            _, problem = _number(_sample(data_set, 0)[1])
        line = f"labels: none, for those of the data set are no numbers of classes ({problem})"
        return Items(images, {}, classes, (line,) * bool(problem))

    def where(self, item: Item) -> str:
        """The data set with its options, and the number in it."""
        options = "?" * bool(self.options) + "&".join(f"{name}={value}" for name, value in self.options)
        return f"{TORCHVISION}{self.name}{options}[{int(item.name)}]"

    def _opened(self, download: bool) -> Any:
        make = _data_set_class(self.name)
        known = inspect.signature(make).parameters
        arguments = {name: value for name, value in (("root", self.root), ("download", download)) if name in known}
        try:
            data_set = make(**arguments, **{name: _value(name, text, known) for name, text in self.options})
            len(data_set)  # only now is an error raised by a class that is no data set
        except Exception as error:  # whatever its options and damaged files raise
            if download and isinstance(error, OSError):
                problem = f"could not be downloaded to {self.root} ({error})"
                remedy = "check the connection, or put its files there by hand and leave --download out"
                raise UserError(f"{TORCHVISION}{self.name} {problem}; {remedy}") from error
            missing = isinstance(error, RuntimeError) and not download
            hint = "; --download fetches it, --root names another place" if missing else ""
            problem = " ".join(str(error).split()) or type(error).__name__
            raise UsageError(f"{TORCHVISION}{self.name} in {self.root}: {problem}{hint}") from error
        return data_set

    @contextmanager
    def open(self) -> Iterator[Load]:
        """A function that asks the data set for one image."""
        data_set = self._opened(download=False)  # items has downloaded; processes must not unpack over one another
        labels, _ = renumber(_class_names(data_set))

        def load(item: Item) -> Loaded:
            try:
                image, label = _sample(data_set, int(item.name))
                if isinstance(image, Image.Image):
                    image.load()
            except Exception as error:  # whatever its files and decoders raise
                raise UserError(f"{self.where(item)}: cannot be read ({error})") from error
            if not isinstance(image, Image.Image):
                raise UsageError(f"{TORCHVISION}{self.name}: yields {type(image).__name__}, not images")
            number, _ = _number(label)
            return image, None if number is None else labels.get(number, number)

        yield load


def _number(label: Any) -> tuple[int | None, str]:
    """The label that a data set gives, if it is a number, and '' or why it is none."""
    with suppress(AttributeError, ValueError, RuntimeError):
        label = label.item()  # of an array or tensor with one value
    text, problem = label_text(label)
    return (int(text), "") if is_number(text) else (None, problem or (text and "a text"))


def _sample(data_set: Any, number: int) -> tuple[Any, Any]:
    sample = data_set[number]
    return sample[:2] if isinstance(sample, tuple) and len(sample) > 1 else (sample, None)


def _class_names(data_set: Any) -> list[str]:
    """Those of ImageNet are tuples of words for the same thing."""
    names = getattr(data_set, "classes", ())
    return [", ".join(map(str, name)) if isinstance(name, tuple) else str(name) for name in names]


def _data_set_class(name: str) -> Callable[..., Any]:
    import torchvision.datasets  # takes seconds, and only this source needs it

    names = {known.lower(): known for known in torchvision.datasets.__all__}
    if name not in names.values():
        similar = [names[close] for close in difflib.get_close_matches(name.lower(), names)]
        hint = f"did you mean {' or '.join(similar)}?" if similar else f"it has {', '.join(sorted(names.values()))}"
        raise UsageError(f"{TORCHVISION}{name}: torchvision has no such data set; {hint}")
    return getattr(torchvision.datasets, name)


def _value(name: str, text: str, known: Mapping[str, inspect.Parameter]) -> Any:
    if name in known and isinstance(known[name].default, bool):  # to which any text but '' would be true
        if text.lower() not in SWITCH:
            raise ValueError(f"{name}={text}: is a switch; give true or false")
        return SWITCH[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
