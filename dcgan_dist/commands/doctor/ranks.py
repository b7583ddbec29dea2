"""What the ranks say of themselves, judged."""

from dcgan_dist.commands.doctor.case import Case
from dcgan_dist.commands.doctor.finding import Finding, conclude, fail, warn
from dcgan_dist.commands.doctor.spawn import RanksError
from dcgan_dist.commands.doctor.talk import ITERATIONS, Talk
from dcgan_dist.config import SyncBatchNorm

EQUAL = 1e-10  # in float64, of a tensor's norm
SLOW = 0.2  # seconds that adding up the gradients may take
LATE = 0.02  # seconds that the smallest message may take
NETWORK = "name the network by GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME, and let no firewall stand between the ranks"


def check_ranks(case: Case) -> Finding:
    """Adds up numbers over ranks: how soon, and how many a second."""
    try:
        return judge_ranks(case.talk, case.networks.gradients)
    except RanksError as error:
        return fail(str(error), NETWORK)


def judge_ranks(facts: Talk, gradients: int) -> Finding:
    """`gradients`: bytes that are added up in an iteration."""
    seconds = gradients / facts.rate
    found = f"{named(facts)}: {facts.latency * 1e6:,.0f} us to add up a number, {facts.rate / 1e9:.2f} GB/s; "
    found += f"the gradients of an iteration take {seconds * 1e3:,.1f} ms"
    late = warn("the ranks answer late", f"let nothing else run on their CPU cores; {NETWORK}")
    slow = warn("adding up the gradients is slow", f"{NETWORK}; or fewer ranks, or a larger --batch_size")
    return conclude(found, late if facts.latency > LATE else None, slow if seconds > SLOW else None)


def check_equality(case: Case) -> Finding:
    """The same training in float64 on one rank and on several: the same weights?"""
    try:
        return judge_equality(case.talk, case.config.sync_batchnorm)
    except RanksError as error:
        return fail(f"not known, for the ranks failed: {error}", "mend what the line ranks says")


def judge_equality(facts: Talk, sync_batchnorm: SyncBatchNorm) -> Finding:
    """What is promised is promised for shared statistics; without them every number of ranks is another training."""
    found = f"{named(facts)}, {ITERATIONS} iterations in float64: {facts.deviation:.0e} from the weights of one rank"
    if not facts.deviation <= EQUAL:
        advice = "do not train on several ranks with this torch and these drivers; report this line with the versions"
        return fail(f"several ranks do not train what one trains (worst: {facts.tensor}); {found}", advice)
    few = {"none": "ranks", "node": "nodes"}.get(sync_batchnorm)
    another = f"--sync_batchnorm {sync_batchnorm}: with another number of {few} the training is another"
    local = warn(another, "--sync_batchnorm global, unless you mean it")
    return conclude(found, local if few else None)


def named(facts: Talk) -> str:
    """The ranks in words."""
    return f"{facts.ranks} ranks on {'GPUs (NCCL)' if facts.device == 'cuda' else 'the CPU (gloo)'}"
