"""One list of image formats for folders, archives, tars and the trainer."""

import io
import zipfile

import numpy as np
import pytest
from PIL import Image
from support.shards import picture, write_tar

from dcgan_dist.data.images.codecs import decode_into
from dcgan_dist.data.images.formats import FORMATS, IMAGE_SUFFIXES, ending_of
from dcgan_dist.data.reading.stream import tar_images
from dcgan_dist.data.shards.foreign import walk
from dcgan_dist.data.shards.index import ShardWriter
from dcgan_dist.data.sources import find_source
from dcgan_dist.text import count_text

MODES = {"MSP": "1", "XBM": "1", "BLP": "P"}
READ_ONLY = ("CUR", "DCX", "PSD", "SUN", "XPM")  # Pillow does not write them


def files():
    """One of every suffix whose format Pillow writes; the pixels that Pillow reads of it."""
    for name, suffixes in FORMATS.items():
        for suffix in suffixes if name not in READ_ONLY else ():
            image = picture(1, 128 if name == "ICNS" else 32).convert(MODES.get(name, "RGB"))
            image = image.convert("F") if suffix == "pfm" else image
            file = io.BytesIO()
            image.save(file, name)
            yield suffix, file.getvalue()


FILES = dict(files())


def test_the_list_is_fixed_and_pillows():
    """The choice among the images of one sample must not change, for an index depends on it."""
    Image.init()
    assert IMAGE_SUFFIXES[:6] == ("jpg", "jpeg", "png", "webp", "ppm", "pgm")
    assert len(set(IMAGE_SUFFIXES)) == len(IMAGE_SUFFIXES)
    registered = Image.registered_extensions()
    named = {suffix: name for name, suffixes in FORMATS.items() for suffix in suffixes if suffix != "mpo"}
    assert {suffix: registered[f".{suffix}"] for suffix in named} == named


def test_every_source_takes_every_format(tmp_path):
    names = {f"{number:02}.{suffix.upper() if number % 2 else suffix}" for number, suffix in enumerate(FILES)}
    (tmp_path / "in").mkdir()
    content = dict(zip(sorted(names), FILES.values(), strict=True))
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        for name, data in content.items():
            (tmp_path / "in" / name).write_bytes(data)
            archive.writestr(name, data)
    tar = write_tar(tmp_path / "in.tar", content.items())
    for source in "in", "in.zip":
        assert {item.name for item in find_source(str(tmp_path / source)).items().images} == names
    wanted = [name.lower() for name in content]
    assert [item.name.partition("#")[0] for item in find_source(str(tar)).items().images] == wanted
    assert [where.rpartition(" ")[2] for *_, where in tar_images(str(tar))] == wanted
    with ShardWriter(tmp_path / "ours.tar") as shard:
        for suffix, data in FILES.items():
            shard.add(suffix, suffix, data)
    assert len(walk(tar)) == len(FILES)


@pytest.mark.parametrize("suffix", FILES)
def test_the_trainer_decodes_every_format(suffix):
    out = np.zeros((32, 32, 3), np.uint8)
    decode_into(FILES[suffix], suffix, out, "x")
    wanted = np.asarray(picture(1)).astype(int)
    if suffix in ("msp", "xbm", "pfm", "blp"):  # of two colours; grey; of a palette
        wanted = wanted @ [0.299, 0.587, 0.114]
        assert np.corrcoef(out.mean(axis=2).ravel(), wanted.ravel())[0, 1] > 0.3
    else:
        assert np.abs(out - wanted).mean() < 12


@pytest.mark.parametrize(
    ("name", "ending"),
    [("a.TXT", ".txt"), ("x/.a.jpg", "hidden"), ("x.y/README", "without ending"), ("a.tar.gz", ".gz")],
)
def test_what_is_passed_over_is_counted_by_its_ending(name, ending):
    assert ending_of(name) == ending


def test_many_extensions_are_counted_in_one_line():
    assert count_text({".txt": 2, ".json": 1_200}, "file") == "1,202 files (1,200 .json, 2 .txt)"
    assert count_text({f".{n}": 1 for n in range(10)}, "file").endswith("1 .7 and 2 others)") is False
    assert count_text({f".{n}": 1 for n in range(10)}, "file").endswith("1 .7, 2 others)")
