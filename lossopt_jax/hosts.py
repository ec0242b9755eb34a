"""Several processes as one: JAX's devices of all of them, and every decision taken alike.

All processes run the same Python, and whoever does something that the others do not leaves them waiting. So what a process knows for
itself (a clock, a folder, free memory) is asked of process 0, and what lies on the devices of all is gathered before it is looked at. Of
one process alone these functions are as if they were not there.
"""

import functools
import pickle
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, Sharding
from jax.sharding import PartitionSpec as P

from ._types import PyTree

Answer = TypeVar("Answer")
LETTER = 1024  # bytes of a message's first part: of most, the whole


def from_first(ask: Callable[[], Answer]) -> Answer:
    """What `ask` answers in process 0, in all processes; what it raises there is raised in all."""
    if jax.process_count() == 1:
        return ask()
    answer: tuple[bool, Any] = False, None
    if jax.process_index() == 0:
        try:
            answer = True, ask()
        except Exception as error:
            answer = False, error
    ok, found = pickle.loads(_told_by_first(_pickled(answer)))
    if ok:
        return found
    raise answer[1] or found  # process 0's own keeps its traceback


def put(tree: PyTree, sharding: Sharding) -> PyTree:
    """Arrays that every process has the whole of, laid over the devices of all; what lies there already stays."""
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)

    def one(leaf: Any) -> jax.Array:
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            return leaf
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(one(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf))
        array = np.asarray(leaf)
        array = array.astype(jax.dtypes.canonicalize_dtype(array.dtype))
        # Not `device_put`, which asks all processes whether they have the same: some milliseconds an array.
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(one, tree)


def pull(tree: PyTree) -> PyTree:
    """Arrays on devices, whosever they are, as NumPy arrays in every process."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable]
    if leaves:
        tree = jax.tree.map(lambda leaf: leaf.addressable_data(0), _gathered(leaves[0].sharding.mesh)(tree))  # type: ignore[attr-defined]
    return jax.tree.map(np.asarray, tree)


def here(tree: PyTree) -> PyTree:
    """Arrays such as a sweep's states, random keys among them, where this process alone can look at any part of them."""

    def one(leaf: Any) -> Any:
        if leaf.is_fully_addressable:
            return leaf
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(pull(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf))
        return pull(leaf)  # one at a time: on its way each device has a whole copy

    return jax.tree.map(one, tree)


def check_alike(what: Mapping[str, str]) -> None:
    """ValueError in all processes where one has something else than process 0. what: name -> a value or its hash."""
    if jax.process_count() == 1:
        return
    from hashlib import sha256

    from jax.experimental.multihost_utils import process_allgather

    mine = np.stack([np.frombuffer(sha256(value.encode()).digest(), np.uint8) for value in what.values()])
    all_of_them = np.asarray(process_allgather(mine))
    differ = (all_of_them != all_of_them[0]).any(2)
    if differ.any():
        names = [name for name, other in zip(what, differ.any(0), strict=True) if other]
        which = ", ".join(map(str, np.flatnonzero(differ.any(1))))
        raise ValueError(f"not all processes have the same {', '.join(names)}: process {which} differs from process 0")


@functools.lru_cache
def _gathered(mesh: Mesh) -> Callable[[PyTree], PyTree]:
    return jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, P()))


def _pickled(answer: tuple[bool, Any]) -> bytes:
    try:
        content = pickle.dumps(answer)
        pickle.loads(content)
        return content
    except Exception:  # an exception of a class that asks for more than its message
        if answer[0]:
            raise
        kind = OSError if isinstance(answer[1], OSError) else ValueError
        return pickle.dumps((False, kind(str(answer[1]))))


def _told_by_first(content: bytes) -> bytes:
    """Process 0's bytes, in all processes. Lengths are padded to few, since each is a compiled program."""
    from jax.experimental.multihost_utils import broadcast_one_to_all

    head = len(content).to_bytes(8, "little") + content[: LETTER - 8]
    head = bytes(broadcast_one_to_all(np.frombuffer(head.ljust(LETTER, b"\0"), np.uint8)))
    length = int.from_bytes(head[:8], "little")
    parts, done = [head[8:]], LETTER - 8
    while done < length:
        size = min(2**24, max(LETTER, 1 << (length - done - 1).bit_length()))
        part = content[done : done + size].ljust(size, b"\0") if jax.process_index() == 0 else bytes(size)
        parts.append(bytes(broadcast_one_to_all(np.frombuffer(part, np.uint8))))
        done += size
    return b"".join(parts)[:length]
