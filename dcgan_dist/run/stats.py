"""Means of the step's scalars, accumulated on the device: no synchronisation, and one all-reduce per report."""

from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor

AllReduce = Callable[[Tensor], Tensor]  # the sum over all ranks of a tensor of the same shape on each


class Stats:
    """Count, sum and sum of squares, in float64, of named scalars.

    The names must be the same on all ranks in `reduce` and `fold`: a rank without values of one adds an empty tensor.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._device = torch.device(device)
        self._table: dict[str, Tensor] = {}  # name -> (count, sum, sum of squares)
        # values of one shape go through the same few kernels: (device, *names) -> count and (names, 2) sums
        self._recent: dict[tuple[torch.device | str, ...], tuple[int, Tensor]] = {}
        self.newest: dict[str, Tensor | float] = {}  # what was added last of each name, as it was added

    def _zeros(self) -> Tensor:
        return torch.zeros(3, dtype=torch.float64, device=self._device)

    def add(self, values: Mapping[str, Tensor | float]) -> None:
        """Adds every element of every value; tensors of any shape and type, on any device, without synchronisation."""
        self.newest |= values
        alike: dict[tuple[torch.Size, torch.dtype, torch.device], dict[str, Tensor]] = {}
        for name, value in values.items():
            tensor = value.detach() if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
            alike.setdefault((tensor.shape, tensor.dtype, tensor.device), {})[name] = tensor
        for (shape, _, device), group in alike.items():
            block = torch.stack(list(group.values())).double().reshape(len(group), shape.numel())
            sums = torch.stack((block.sum(1), block.square().sum(1)), dim=1)
            count, before = self._recent.get((device, *group), (0, None))
            self._recent[(device, *group)] = count + shape.numel(), sums if before is None else before + sums

    def _rows(self) -> tuple[list[str], Tensor]:
        for (_, *names), (count, sums) in self._recent.items():
            moved = sums.to(self._device)
            rows = torch.cat((torch.full_like(moved[:, :1], count), moved), dim=1)
            for name, row in zip(names, rows, strict=True):
                self._table[str(name)] = self._table.get(str(name), self._zeros()) + row
        self._recent.clear()
        names = sorted(self._table)
        rows = [self._table[name] for name in names]
        return names, torch.stack(rows) if rows else torch.zeros(0, 3, dtype=torch.float64, device=self._device)

    def reduce(self, all_reduce: AllReduce, std: Collection[str] = ()) -> dict[str, float]:
        """Means over all ranks since the last report, the same on every rank; resets the sums.

        One all-reduce of a (names, 3) tensor, rows in sorted order. A name in `std` also gives NAME_std, the population
        standard deviation; names without values are left out.
        """
        names, rows = self._rows()
        totals = dict(zip(names, all_reduce(rows).tolist(), strict=True))
        self._table = {name: self._zeros() for name in names}
        means = {name: total / count for name, (count, total, _) in totals.items() if count}
        for name in means.keys() & set(std):
            count, _, squares = totals[name]
            # rounding can make the difference of two equal numbers negative
            means[f"{name}_std"] = max(squares / count - means[name] ** 2, 0.0) ** 0.5
        return means

    def has_values(self) -> bool:
        """Whether this rank has values since the last report."""
        return bool(self._rows()[1][:, 0].any())

    def fold(self, all_reduce: AllReduce, main: bool) -> None:
        """Moves the sums of all ranks to the main one, so that its `state_dict` is that of the job."""
        names, rows = self._rows()
        totals = all_reduce(rows)
        self._table = {name: row if main else self._zeros() for name, row in zip(names, totals, strict=True)}

    def state_dict(self) -> dict[str, Tensor]:
        """Name -> (count, sum, sum of squares), float64, on the CPU, of this rank."""
        names, rows = self._rows()
        return dict(zip(names, rows.cpu().unbind(), strict=True))

    def load_state_dict(self, state: Mapping[str, Tensor], main: bool) -> None:
        """Loads a folded state, which every rank has: all take its names, the main rank its numbers."""
        self._recent.clear()
        self._table = {name: row.to(self._zeros()) if main else self._zeros() for name, row in state.items()}
