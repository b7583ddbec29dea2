"""The run's folder: whether this run may have it, and what an earlier life left in it."""

from dataclasses import replace

from dcgan_dist.commands.doctor.case import Case
from dcgan_dist.commands.doctor.finding import Finding, conclude, fail, warn
from dcgan_dist.data.reading.stream import Sources
from dcgan_dist.errors import UserError
from dcgan_dist.run import checkpoint, resume
from dcgan_dist.run.folder import RunFolder
from dcgan_dist.run.lease import Lease


def check_run_dir(case: Case) -> Finding:
    """Looks as a life does that begins, and takes nothing. Raises UserError where that life would."""
    folder = RunFolder(case.config.run_dir)
    folder.check()
    lease = Lease(folder.root, lambda _: None)
    owner = lease.other()
    if owner is not None:
        return fail(f"{folder.root}: another job is training here ({owner})", lease.way_out)
    said: list[str] = []
    config = replace(case.config, precision=case.arithmetic.name)
    try:
        data = case.data or Sources()  # the embedded set is not drawn for this: see below
    except UserError:
        data = Sources()  # see the line shards
    found = resume.find(config, folder, data, said.append)
    if found is not None and not (config.data.shards or "data.shards" in config.resume.allow_changes):
        trained = checkpoint.load_state(found)
        if trained["config"].get("data.shards"):
            raise resume.other_data(found, trained, config.data.faces)
    state = "is new" if not folder.root.exists() else "holds no checkpoint yet"
    if found is not None:
        inside = found.parent.resolve() == folder.checkpoints.resolve()
        state = f"goes on from checkpoint {found.name if inside else found} ({config.resume.source})"
    damaged = sum(line.startswith("WARNING") for line in said)
    few = f"{damaged} newer checkpoint{'s are' if damaged > 1 else ' is'} damaged"
    stop = f"remove {folder.stop}, unless the run is to stop"
    return conclude(
        f"{folder.root} {state}",
        warn(few, "they are left out, unless you restore them from a copy") if damaged else None,
        warn("the file STOP is there, and stops the run at once", stop) if folder.asks_to_stop() else None,
    )
