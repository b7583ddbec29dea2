"""Counters of the readers of all ranks, for the reports, and the damaged images that they found."""

import torch

from dcgan_dist.data.reading.reader import IndexedReader
from dcgan_dist.data.reading.stream import StreamReader
from dcgan_dist.parallel.world import World
from dcgan_dist.run.console import Console


class ReadingReport:
    """Counts from one report to the next, over all ranks, which call it together."""

    def __init__(self, reader: IndexedReader | StreamReader, world: World, console: Console) -> None:
        self._reader, self._world, self._console = reader, world, console
        self._last: dict[str, float] = {}  # of all ranks' readers, at the last report
        self._reported: set[int] = set()  # numbers of the damaged images that were reported

    def values(self) -> dict[str, float]:
        """Of all ranks' readers since the last report, and this attempt's number of substituted positions."""
        self.report_damages()
        now = vars(self._reader.counters)
        counts = torch.tensor(list(now.values()), dtype=torch.float64, device=self._world.device)
        total = dict(zip(now, self._world.sum_(counts).tolist(), strict=True))
        new = {name: value - self._last.get(name, 0.0) for name, value in total.items()}
        self._last = total
        values = {"data/substituted": total["substituted"]}
        if new["images"]:
            values["data/bytes_per_image"] = new["bytes"] / new["images"]
        remote = new["from_cache"] + new["from_remote"]
        return values | ({"data/cache_percent": 100 * new["from_cache"] / remote} if remote else {})

    def report_damages(self) -> None:
        """Prints one line for each damaged image that any rank found."""
        known = dict(self._reader.damages)  # a copy: the reader continues
        new = {sample: problem for sample, problem in known.items() if sample not in self._reported}
        if self._world.maximum(len(new)) == (0,):
            return
        found = {sample: problem for each in self._world.gather(new) for sample, problem in each.items()}
        for sample in sorted(found.keys() - self._reported):
            self._console.say(f"data: image {sample:,} is damaged, and another is used: {found[sample]}")
        self._reported |= found.keys()
