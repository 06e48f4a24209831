"""A bounded memory of graphs: the few used last are kept, and one is made when it is first asked for."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class Recent(Generic[T]):
    """The `limit` things used last, each made when it is first asked for."""

    def __init__(self, limit: int):
        self.limit, self.kept = limit, OrderedDict[Hashable, T]()

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """What is kept under the key. A failure to make it leaves what is kept as it was."""
        if key not in self.kept:
            made = make()
            while len(self.kept) >= self.limit:
                self.kept.popitem(last=False)
            self.kept[key] = made
        self.kept.move_to_end(key)
        return self.kept[key]
