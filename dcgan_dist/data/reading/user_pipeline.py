"""A pipeline of the user's own (`--data.pipeline MODULE:FUNCTION`): imported, called, and its samples checked.

FUNCTION(shards, *, image_size, channels, seed, rank, world_size) returns an iterable of (uint8 image, label).
"""

import atexit
import importlib
import inspect
import operator
import os
import sys
import tempfile
from collections.abc import Callable, Generator, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dcgan_dist.data.reading.stream import DecodedImage, EncodedImage, Sample
from dcgan_dist.data.shards.index import NO_LABEL
from dcgan_dist.data.system.workers import kill_children
from dcgan_dist.errors import UsageError, UserError

CALL = "FUNCTION(shards, *, image_size, channels, seed, rank, world_size)"
# bytes: a socket of multiprocessing, which passes tensors
LONGEST_FOLDER = 107 - len("/pymp-12345678/listener-12345678")
Make = Callable[..., Iterable[Any]]


class UserPipeline:
    """The samples of a user's function, for the stream reader."""

    threaded = False

    def __init__(self, target: str, shards: Sequence[str], shape: tuple[int, int]) -> None:
        """`target`: MODULE:FUNCTION. `shape`: height (and width), channels.

        Raises UsageError when it cannot be imported or called.
        """
        self.name = f"--data.pipeline {target}"
        self._shards, self._shape, self._make = list(shards), shape, _imported(target, self.name)
        atexit.register(kill_children)  # DataLoader workers that hang

    def samples(self, seed: int, rank: int, world_size: int) -> Generator[Sample, None, None]:
        """See Pipeline. Raises UserError for a sample of another form, and for what the user's code raises."""
        size, channels = self._shape
        facts = {"image_size": size, "channels": channels, "seed": seed, "rank": rank, "world_size": world_size}
        try:
            for number, sample in enumerate(self._make(list(self._shards), **facts)):
                yield _checked(sample, f"{self.name}: sample {number}", size, channels)
        except UserError:
            raise
        except Exception as error:
            lines = str(error).strip().splitlines() or [""]  # DataLoader quotes a traceback
            problem = f"{type(error).__name__}: {lines[-1][:200]}"
            raise UserError(f"{self.name} failed ({problem}); --debug shows where") from error


def folder_warning() -> str | None:
    """Why DataLoader workers may hang: they pass tensors by sockets in the folder for temporary files."""
    folder = os.fsencode(tempfile.gettempdir())
    if len(folder) <= LONGEST_FOLDER:
        return None
    problem = f"has more than {LONGEST_FOLDER} characters, so DataLoader workers may hang"
    return f"WARNING: {os.fsdecode(folder)}: {problem}; set TMPDIR to a folder with a shorter path"


def _imported(target: str, name: str) -> Make:
    module, _, function = target.partition(":")
    if str(Path.cwd()) not in sys.path:  # an installed command has its own folder there in place of this one
        sys.path.append(str(Path.cwd()))
    try:
        make = operator.attrgetter(function)(importlib.import_module(module))
        inspect.signature(make).bind([], image_size=64, channels=3, seed=0, rank=0, world_size=1)
    except ImportError as error:
        raise UsageError(f"{name}: cannot be imported ({error}); name a module that Python finds from here") from error
    except AttributeError as error:
        raise UsageError(f"{name}: {error}") from error
    except TypeError as error:
        raise UsageError(f"{name}: must be a function that is called as {CALL} ({error})") from error
    except Exception as error:
        raise UsageError(f"{name}: fails when it is imported ({type(error).__name__}: {error})") from error
    return make


def _checked(sample: Any, where: str, size: int, channels: int) -> Sample:
    if isinstance(sample, EncodedImage):  # of read_tars
        return sample
    if not (isinstance(sample, tuple | list) and len(sample) == 2):
        kind = f"a dict of {', '.join(sample)}" if isinstance(sample, dict) else f"a {type(sample).__name__}"
        raise UserError(f"{where} is {kind}; give (image, label) tuples, as .to_tuple('jpg;png', 'cls') does")
    image, label = np.asarray(sample[0]), sample[1]
    if image.dtype != np.uint8:
        raise UserError(f"{where}: the image is {image.dtype}; give uint8, 0 to 255, as .decode('rgb8') does")
    if image.ndim == 2:
        image = image[..., None]
    if image.shape == (channels, size, size):
        image = image.transpose(1, 2, 0)
    if image.shape != (size, size, channels):
        shapes = f"({size}, {size}, {channels}) or ({channels}, {size}, {size}), one image, without .batched()"
        raise UserError(f"{where}: the image has the shape {image.shape}; give {shapes}")
    try:
        label = operator.index(label)
    except TypeError:
        label = None
    if label is None or not NO_LABEL <= label < 2**63:
        raise UserError(f"{where}: the label is {sample[1]!r:.80}; give an integer from 0, or {NO_LABEL} for none")
    return DecodedImage(image, label)
