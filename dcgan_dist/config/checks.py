"""How an option is refused: in one line that quotes the flag."""

from dcgan_dist.errors import UsageError


class ConfigError(UsageError, ValueError):
    """Options that are out of range or contradict each other; the message quotes the flags."""


def check(ok: bool, message: str) -> None:
    """Raises ConfigError with this message unless `ok`."""
    if not ok:
        raise ConfigError(message)


def check_range(prefix: str, config: object, below: float = float("inf"), **least: float) -> None:
    """Raises ConfigError when a field is less than given, or not less than `below`; None is never out of range."""
    for name, low in least.items():
        value = getattr(config, name)
        check(value is None or value >= low, f"--{prefix}{name} {value}: must be at least {low}")
        check(value is None or value < below, f"--{prefix}{name} {value}: must be less than {below}")
