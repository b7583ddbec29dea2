"""`dcgan-dist bench WHAT ...`: picks the measurement."""

from collections.abc import Callable
from importlib import import_module

from dcgan_dist.errors import UsageError, debug_last


def main(argv: list[str]) -> int:
    """Runs the measurement that the first argument names. Raises UsageError and UserError."""
    argv = debug_last(argv)
    if argv and argv[0] in ("-h", "--help"):
        lines = [f"  {name:<10} {about}" for name, (_, about) in BENCHES.items()]
        print("\n".join(["usage: dcgan-dist bench WHAT [OPTIONS]", "", *lines]))
        print("\ndcgan-dist bench WHAT --help tells more")
        return 0
    if not argv or argv[0] not in BENCHES:
        problem = f"does not know '{argv[0]}'" if argv else "needs a name"
        raise UsageError(f"dcgan-dist bench {problem}; there is {', '.join(BENCHES)}")
    bench: Callable[[list[str]], int] = import_module(BENCHES[argv[0]][0]).main
    return bench(argv[1:])


# name -> module with main(argv) -> exit code, and what it measures; imported only when asked for
BENCHES: dict[str, tuple[str, str]] = {
    "loader": ("dcgan_dist.commands.bench.loader", "loading and training apart: which of them limits this machine"),
}
