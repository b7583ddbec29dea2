"""Memory and load of the GPU of each rank, on every machine; W&B itself measures only that of the main rank."""

import torch

from dcgan_dist.parallel.world import World
from dcgan_dist.run.dashboard import NAMED
from dcgan_dist.text import Say

MEMORY, LOAD = "gpu/memory_percent", "gpu/utilization_percent"


class GpuReport:
    """Asks the driver once per report, without waiting for the GPU."""

    def __init__(self, world: World, say: Say) -> None:
        self._world, self._say = world, say
        self._loads = True  # until the driver does not count it

    def values(self) -> dict[str, float]:
        """In percent: most memory taken since the start and least load, over the ranks; and of each of the first 16.

        All ranks call it together. Empty on CPUs. The load is that of the last second or less, as NVIDIA's driver
        counts it; without the package nvidia-ml-py it is left out.
        """
        world = self._world
        if world.device.type != "cuda":
            return {}
        total = torch.cuda.mem_get_info(world.device)[1]
        table = torch.zeros(world.size, 2, dtype=torch.float64, device=world.device)
        taken = 100 * torch.cuda.max_memory_reserved(world.device) / total
        table[world.rank] = table.new_tensor([taken, self._load()])
        memory, load = world.sum_(table).T.tolist()
        values = {MEMORY: max(memory)} | _of_ranks(MEMORY, memory)
        if min(load) >= 0:
            values |= {LOAD: min(load)} | _of_ranks(LOAD, load)
        return values

    def _load(self) -> float:
        if not self._loads:
            return -1.0
        try:
            return float(torch.cuda.utilization(self._world.device))
        except Exception as error:  # no package, no right to ask, a device that does not count
            self._loads = False
            what = str(error).partition("\n")[0]
            self._say(f"the load of the GPUs is not in the reports: {what} (pip install nvidia-ml-py)")
            return -1.0


def _of_ranks(name: str, values: list[float]) -> dict[str, float]:
    return {f"{name}/rank_{rank}": value for rank, value in enumerate(values[:NAMED])}
