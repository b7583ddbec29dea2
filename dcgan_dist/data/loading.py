"""From the options to a reader; reports every automatic choice once, with its reason."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from dcgan_dist.config import Config
from dcgan_dist.config.groups import Damaged, DataConfig, ModelConfig
from dcgan_dist.data.corpus import Corpus, expand_shards, open_shards
from dcgan_dist.data.faces import dataset as faces
from dcgan_dist.data.reading.autotune import choose_decode_plan
from dcgan_dist.data.reading.fetch import Fetcher
from dcgan_dist.data.reading.reader import IndexedReader
from dcgan_dist.data.reading.stream import StreamReader, StreamUrls, TarPipeline, is_plain
from dcgan_dist.data.reading.user_pipeline import UserPipeline, folder_warning
from dcgan_dist.data.remote.cache import default_limit
from dcgan_dist.data.remote.client import Remote, RemoteStat, base_name
from dcgan_dist.data.shards.completeness import compare_with_manifests
from dcgan_dist.data.shards.labels import classes_text, find_labels, numbering
from dcgan_dist.data.shards.manifest import Manifest, names_in
from dcgan_dist.data.shards.notes import merge_notes
from dcgan_dist.data.shards.opener import CachePlan, Opener, Shard
from dcgan_dist.data.shards.samples import IGNORED, MemberChoice
from dcgan_dist.data.system.storage import cache_folder
from dcgan_dist.errors import UserError, to_stderr
from dcgan_dist.text import Say, count_text, counted, listed

COLOURS = {1: "grey", 3: "RGB"}
SHARDS_LISTED = 3
FACES_SEED = 0  # the embedded set does not depend on the seed of the run


def open_data(config: Config, say: Say, poll: Callable[[], None] = lambda: None) -> Corpus | StreamUrls:
    """Checks the shards: the corpus for the indexed reader, the names for the stream reader.

    `poll` is called from time to time and may raise. Raises UserError for any bad shard.
    """
    patterns = config.data.shards
    if config.data.pipeline is not None:
        return _open_pipeline(config, say)
    if not patterns:
        say(f"data: no --data.shards given, so the embedded set of {config.data.faces:,} cartoon faces, drawn by code")
        patterns = tuple(map(str, _embedded_set(config, say, poll)))
    opener = make_opener(config.data)
    if config.data.reader == "stream":
        return _open_stream(config.data, patterns, opener, say)
    names = _expand_shards(patterns, opener.remote, say)
    manifest = _compare_with_manifests(patterns, names, opener.remote, say)
    corpus = Corpus(open_shards(names, opener), opener)
    say(f"data: {_what_was_checked(corpus)}")
    _say_replaced(corpus, manifest, say)
    _say_doubled(corpus, say)
    _say_converted(manifest, names, config.model, say)
    for line in unused_lines([*corpus.shards, *corpus.without_images], opener.choice):
        say(f"data: {line}")
    _treat_empty_images(corpus.shards, config.data.damaged, say, "other images of the same shard take their places")
    _say_where(corpus, say)
    named = names_in(manifest, names)
    classes = named or corpus.classes
    if config.data.classes:
        labels = find_labels(config.data.classes, classes)
        corpus = corpus.of_classes(labels)
        say(f"data: {counted(corpus.size, 'image')} of the classes {classes_text(classes, labels)}")
    elif classes:
        say(f"data: classes {classes_text(classes)}{'' if named else numbering(classes)}")
    return corpus


def _open_stream(data: DataConfig, patterns: Sequence[str], opener: Opener, say: Say) -> StreamUrls:
    names = _expand_shards(patterns, Remote(), say)
    _compare_with_manifests(patterns, names, Remote(), say)
    if files := list(filter(is_plain, names)):
        shards = open_shards(files, opener)
        for line in unused_lines(shards, opener.choice):
            say(f"data: {line}")
        _treat_empty_images(shards, data.damaged, say, "left out")
    limits = "a resumed run starts the stream again; only labels that are numbers and beside their image are used"
    if data.resampled:
        limits += "; shards are drawn with replacement, so an epoch is no permutation: some images repeat, others wait"
    if data.damaged == "substitute":
        limits += "; an undecodable image ends the run (--data.damaged substitute needs the indexed reader)"
    say(f"data: {counted(len(names), 'source')} streamed by webdataset; {limits}")
    _say_unused(data, "decode", "workers", say=say)
    return StreamUrls(names)


def _open_pipeline(config: Config, say: Say) -> StreamUrls:
    """The shards for a user's pipeline. Raises UsageError when it cannot be imported."""
    data = config.data
    names = _expand_shards(data.shards, Remote(), say) if data.shards else []
    assert data.pipeline is not None
    UserPipeline(data.pipeline, names, (config.model.image_size, config.model.channels))
    given = f"{counted(len(names), 'shard')}, whose content it checks itself" if names else "no shards"
    limits = "a resumed run starts it again: its position counts images, but their order is the pipeline's own"
    say(f"data: samples of --data.pipeline {data.pipeline}, which is given {given}; {limits}")
    _say_unused(data, "decode", "workers", "prefetch", "damaged", "image_key", "label_key", "allow_cut", say=say)
    if warning := folder_warning():
        say(f"data: {warning}")
    return StreamUrls(names)


def _say_unused(data: DataConfig, *names: str, say: Say) -> None:
    unused = [f"--data.{name}" for name in names if getattr(data, name) != getattr(DataConfig, name)]
    if unused:
        say(f"data: not used by --data.{'pipeline' if data.pipeline else 'reader stream'}: {', '.join(unused)}")


def _expand_shards(patterns: Sequence[str], remote: Remote, say: Say) -> list[str]:
    passed = Counter[str]()
    names = expand_shards(patterns, remote, passed)
    if passed:
        say(f"data: skipped beside the shards: {count_text(passed, 'other file')}")
    return names


def _compare_with_manifests(patterns: Sequence[str], names: Sequence[str], remote: Remote, say: Say) -> Manifest | None:
    """The manifest beside all shards, if any. Raises UserError when a shard is missing that it names."""
    found = compare_with_manifests(patterns, names, remote).require()
    for line in found.notes:
        say(f"data: {line}")
    return found.manifest


def _say_replaced(corpus: Corpus, manifest: Manifest | None, say: Say) -> None:
    """Warns about shards whose content is not that in the manifest."""
    entries = {} if manifest is None else {entry.name: int(entry.fingerprint, 16) for entry in manifest.shards}
    pairs = [(shard.name, entries.get(base_name(shard.name)), shard.fingerprint) for shard in corpus.shards]
    if other := [base_name(name) for name, named, found in pairs if named not in (None, found)]:
        what = f"{listed(other, SHARDS_LISTED)}: not what manifest.json describes"
        say(f"data: WARNING: {what}; write the set again, or remove the manifest")


def _say_doubled(corpus: Corpus, say: Say) -> None:
    """Warns about shards with the same images under two names, which would be shown twice in each epoch."""
    first: dict[int, str] = {}
    pairs = [(first.setdefault(shard.fingerprint, shard.name), shard.name) for shard in corpus.shards]
    if doubled := [f"{name} and {other}" for name, other in pairs if name != other]:
        say(f"data: WARNING: {listed(doubled, 1)} hold the same images, so each is used twice; name only one of them")


def _say_converted(manifest: Manifest | None, names: Sequence[str], model: ModelConfig, say: Say) -> None:
    """Reports images that are resized or converted, which only a manifest knows at the start."""
    if manifest is None or not manifest.covers(names):
        return
    size, sizes = f"{model.image_size}x{model.image_size}", manifest.stored_sizes
    other = sum(sizes.values()) - sizes.get(size, 0)
    if other:
        most, be = max(sizes, key=sizes.__getitem__), "is" if other == 1 else "are"
        which = f"{other:,} of {manifest.samples:,} images {be} not {size} (most: {most})"
        say(f"data: {which}; each is cropped to its central square and scaled whenever it is read")
    if manifest.channels != model.channels:
        have, want = (COLOURS[channels] for channels in (manifest.channels, model.channels))
        say(f"data: the images of the set are {have}; they are read as {want} (--model.channels {model.channels})")


def unused_lines(shards: Sequence[Shard], choice: MemberChoice) -> list[str]:
    """Lines about what is not used of tars of other programs."""
    ignored = [IGNORED] * (choice.for_tars and not any(shard.notes.foreign for shard in shards))
    empty = [shard.name for shard in shards if not shard.count]
    what = f"{len(empty):,} of {len(shards):,} shards hold no image: {listed(empty, SHARDS_LISTED)}"
    return ignored + [what] * bool(empty) + merge_notes(shard.notes for shard in shards).lines()


def _what_was_checked(corpus: Corpus) -> str:
    """Number of images and shards, and what was checked of them."""
    count, ours = len(corpus.shards), sum(shard.checked for shard in corpus.shards)
    text = f"{counted(corpus.size, 'image')} in {counted(count, 'shard')}"
    if ours == count:
        return f"{text}; all indexes are intact, and each image is checked when it is first read"
    some = f"{count - ours:,} of them " if ours else ""
    return f"{text}; {some}made by other programs, without checksums: only their tar headers were checked"


def _treat_empty_images(shards: Sequence[Shard], damaged: Damaged, say: Say, becomes: str) -> None:
    """Handles image files of 0 bytes, which are known at the start. Raises UserError unless damage is substituted."""
    empty = [shard.empty for shard in shards if shard.empty]
    if not empty:
        return
    text = "; ".join(empty[:SHARDS_LISTED])
    if (more := len(empty) - SHARDS_LISTED) > 0:
        text += f"; and in {counted(more, 'more shard')}"
    if damaged == "raise":
        raise UserError(f"{text}; leave such images out (dcgan-dist shard --skip_bad), or --data.damaged substitute")
    say(f"data: WARNING: {text}; {becomes}")


def choice_of(data: DataConfig) -> MemberChoice:
    """How tars of other programs are read."""
    return MemberChoice(data.image_key, data.label_key, data.allow_cut, skip_bad=data.damaged == "substitute")


def make_opener(data: DataConfig) -> Opener:
    """How shards are opened; the cache's folder is created with its first entry."""
    remote, choice = Remote(timeout=data.timeout, retries=data.retries), choice_of(data)
    if data.cache_bytes == 0:
        return Opener(remote, choice=choice)
    folder = data.cache or cache_folder() / "shards"
    limit = default_limit(folder) if data.cache_bytes is None else data.cache_bytes
    return Opener(remote, CachePlan(folder, limit), choice)


def _say_where(corpus: Corpus, say: Say) -> None:
    """Reports how remote and compressed shards will be read. Raises UserError when the cache is too small."""
    shards = [shard for shard in corpus.shards if shard.source is not None]
    plan = corpus.opener.plan
    if not shards:
        return
    total = sum(shard.source.size if isinstance(shard.source, RemoteStat) else shard.unpacked_size for shard in shards)
    cached_only = sum(shard.unpacked_size for shard in shards if shard.needs_cache)
    which = f"data: {counted(len(shards), 'remote or compressed shard')}, {total / 1e9:,.1f} GB"
    if plan is None:
        say(f"{which}: no cache (--data.cache_bytes 0), so images are read one by one")
    elif cached_only > plan.limit:
        problem = f"the compressed shards take {cached_only:,} bytes, but the cache {plan.folder} holds {plan.limit:,}"
        raise UserError(f"{problem}; allow more --data.cache_bytes, or pack them again by dcgan-dist shard")
    elif total <= plan.limit:
        say(f"{which}: fetched once into {plan.folder}, which may hold {plan.limit / 1e9:,.1f} GB")
    else:
        part = f"{plan.limit / total:.0%} of them fit into the {plan.limit / 1e9:,.1f} GB of {plan.folder}"
        say(f"{which}: {part}, the rest is read by range requests; a larger --data.cache_bytes is faster")


def _embedded_set(config: Config, say: Say, poll: Callable[[], None]) -> list[Path]:
    folder = cache_folder() / "faces"
    announce = iter([f"data: drawing them, once, into {folder} .."])

    def progress(_done: int, _total: int) -> None:
        for line in announce:
            say(line)
        poll()

    size, channels, count = config.model.image_size, config.model.channels, config.data.faces
    return faces.ensure(folder, size=size, channels=channels, count=count, seed=FACES_SEED, progress=progress)


def make_reader(
    config: Config, data: Corpus | StreamUrls, *, local_ranks: int, pinned: bool, say: Say, first: bool = True
) -> IndexedReader | StreamReader:
    """The reader of one rank, of which this node has `local_ranks`; `data`: as of open_data.

    `pinned`: its batches go to a GPU. `say` prints what was chosen. `first`: whether this is the first rank of its
    node; only this rank reports errors of the shared cache.
    """
    shape, options = (config.model.image_size, config.model.channels), config.data
    if not isinstance(data, Corpus):
        if options.pipeline is None:
            pipeline = TarPipeline(data, choice_of(options), resampled=options.resampled)
        else:
            pipeline = UserPipeline(options.pipeline, data, shape)
        return StreamReader(pipeline, shape=shape, seed=config.seed, prefetch=options.prefetch, pinned=pinned)
    fetcher = Fetcher(data, shape, options.damaged, options.most_damaged)
    plan = choose_decode_plan(config, data, local_ranks=local_ranks, on_gpu=pinned, say=say)
    return IndexedReader(fetcher, seed=config.seed, plan=plan, say=to_stderr if first else lambda _: None)
