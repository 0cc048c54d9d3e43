"""Bytes of the tensors that are alive on this process, counted as operators make them.

Page: training/memory. What they should be: `llmbook.costs.memory`, `llmbook.costs.zero`.
Left out: the allocator's rounding and fragmentation, which a CPU process does not show.
"""

from __future__ import annotations

from functools import partial
from typing import Any
from weakref import ref

from torch import Tensor, UntypedStorage
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Bytes of the storages that operators made inside the `with` block and that still live.

    A storage counts once, however many tensors view it, at the size that it has when it is asked;
    one that was made before the block never counts. It sees operators of autograd's backward pass,
    of optimizers and of FSDP.

    >>> import torch
    >>> with LiveBytes() as live:
    ...     halves = torch.zeros(8).split(4)
    >>> live.now, live.peak
    (32, 32)
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.born: dict[int, ref[UntypedStorage]] = {}  # by id, forgotten as the storage dies
        self.peak = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else the first operator imports torch's compiler, which takes seconds

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        new = [storage for storage in storages(result) if id(storage) not in self.born]
        if new:
            older = {id(storage) for storage in storages((args, kwargs))}  # made before the block
            for storage in new:
                if id(storage) not in older:
                    self.born[id(storage)] = ref(storage, partial(self.forget, id(storage)))
            self.peak = max(self.peak, self.now)
        return result

    def forget(self, key: int, _: ref[UntypedStorage]) -> None:
        """A storage has died; its id may come again."""
        self.born.pop(key, None)

    @property
    def now(self) -> int:
        """Bytes alive at this moment."""
        living = [reference() for reference in self.born.values()]
        return sum([storage.nbytes() for storage in living if storage is not None])


def storages(tree: Any) -> list[UntypedStorage]:
    """The storages of all tensors in nested containers; of a DTensor, that of its local part."""
    if type(tree) is Tensor:  # the common case
        return [tree.untyped_storage()]
    found: list[UntypedStorage] = []
    for leaf in tree_leaves(tree):
        if is_traceable_wrapper_subclass(leaf):
            names, _ = leaf.__tensor_flatten__()
            found += storages([getattr(leaf, name) for name in names])
        elif isinstance(leaf, Tensor):
            found.append(leaf.untyped_storage())
    return found


def storage_bytes(tree: Any) -> int:
    """Bytes of the distinct storages behind all tensors in nested containers.

    >>> import torch
    >>> whole = torch.zeros(6)
    >>> storage_bytes([whole, whole[:2], torch.zeros(1)])
    28
    """
    return sum(
        storage.nbytes()
        for storage in {id(storage): storage for storage in storages(tree)}.values()
    )
