"""The trainer: `dcgan-dist launch [OPTIONS]`. `train` is the algorithm; `main` reads the options."""

import gc
import sys
from collections.abc import Sequence
from dataclasses import replace

from dcgan_dist.run import signals

if __name__ == "__main__":
    signals.listen()  # first: imports take seconds, in which a signal would end the process

from dcgan_dist import cli
from dcgan_dist.parallel import variables

if __name__ == "__main__":
    cli.check(sys.argv[1:], rank=variables.rank())  # before torch is imported

from dcgan_dist.config import Config
from dcgan_dist.data.loading import open_data
from dcgan_dist.data.reading.stream import StreamUrls
from dcgan_dist.errors import run_and_report, tracebacks_wanted
from dcgan_dist.gan.step import probe, training_step
from dcgan_dist.parallel.precision import arithmetic
from dcgan_dist.parallel.shutdown import leave
from dcgan_dist.parallel.watchdog import report_if_lost, stop_watching
from dcgan_dist.parallel.world import World, launch
from dcgan_dist.run import resume
from dcgan_dist.run.folder import RunFolder
from dcgan_dist.run.lease import Lease
from dcgan_dist.run.memory import require_memory
from dcgan_dist.run.plan import layers_text, split_text
from dcgan_dist.run.session import Session
from dcgan_dist.run.start import open_session
from dcgan_dist.run.trackers import check_trackers

DONE, STOPPED = 0, 75  # EX_TEMPFAIL: run the same command again


def train(session: Session) -> bool:
    """Trains until the configured number of images, or until a stop is agreed; returns whether the run is complete.

    Each iteration uses one global batch: D learns to tell real from fake, then G learns from the updated D.
    """
    config, state, engine, clock = session.config, session.state, session.engine, session.clock
    inputs = session.inputs()
    while True:
        requests = session.agreed()
        session.check_health(any(requests))
        done = session.finished()
        if session.due(config.log.every):
            session.report()
        if session.due(config.log.samples_every) or (done and state.images > session.first):
            session.sample()
        if session.due(config.checkpoint.every) or done or any(requests):
            session.save()
        if done or requests.stop:
            break

        with clock.section("data", on_device=True):
            real, noise = next(inputs)
        session.stats.add(training_step(config, state, engine, real, noise))
        if session.due(config.log.every):
            session.stats.add(probe(config, state, engine, real, noise))
        clock.tick()
        session.console.progress(state.images)
    return done


def run(config: Config, lines: Sequence[str] = ()) -> int:
    """One attempt of a run; returns the exit code. `lines`: what other tools' settings changed in the options."""
    check_trackers(config.trackers)
    world = launch(config, signals.asked())
    if config.dry_run:
        _dry_run(config, world, lines)
        return DONE
    chosen = arithmetic(config.precision, world.device)
    config = replace(config, precision=chosen.name)  # `auto` must not change between two attempts
    try:
        session = open_session(config, cli.dump(config, reveal=True), world, chosen, lines)
    except signals.StoppedError:
        return DONE if signals.codes_are_crashes() else STOPPED
    try:
        code = DONE if train(session) else STOPPED
        session.finish(code, STOPPED)
    except BaseException as error:
        report_if_lost(error)  # first: the rest may take longer than a launcher waits
        session.abandon(error)
        raise
    # other launchers treat any other code as a crash, and end the other ranks; RUN/PREEMPTED records the stop
    return DONE if signals.codes_are_crashes() else code


def _dry_run(config: Config, world: World, notes: Sequence[str]) -> None:
    """Prints what a run would do on `config.world_size` ranks."""
    signals.take().restore_handlers()
    ranks = config.world_size or world.size
    lines = [*notes, cli.dump(config), layers_text(config), split_text(config, ranks)]
    if config.data.secret:
        lines.append("data.shards: shown without user, password and query of URLs, and arguments of commands")
    chosen = arithmetic(config.precision, world.device)
    lines.append(f"{chosen.name} on {world.device.type}: {chosen.reason}")
    require_memory(config, chosen, world, lines.append)
    folder = RunFolder(config.run_dir)
    folder.check()
    folder.probe()
    Lease(folder.root).refuse_other()
    embedded = not (config.data.shards or config.data.pipeline)
    data = StreamUrls() if embedded else open_data(config, lines.append)
    if embedded:
        lines.append(f"data: the embedded set of {config.data.faces:,} cartoon faces, made when the run starts")
    resume.find(replace(config, precision=chosen.name), folder, data, lines.append)
    if world.main:
        sys.stdout.write("\n".join(lines) + "\n")


def main(argv: Sequence[str] | None = None) -> int:
    """The command; `argv` in place of the command line. Exit code 0: done, 1: failed, 2: wrong usage, 75: stopped."""
    rank = variables.rank()
    options = sys.argv[1:] if argv is None else argv

    try:
        return run_and_report(
            lambda: run(*cli.load_lines(options, quiet=rank != 0)), rank=rank, given=options, output_counts=False
        )
    except RuntimeError as error:
        if report_if_lost(error) and not tracebacks_wanted():
            return 1
        raise
    finally:
        stop_watching()


if __name__ == "__main__":
    gc.freeze()  # else garbage collection of all imported modules takes 0.1 s during training
    leave(main())
