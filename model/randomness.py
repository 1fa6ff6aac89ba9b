"""Counter-based random numbers: everything drawn is a pure function of (seed, purpose, index), on
any number of ranks.

Only Philox's raw bits are used, as its definition fixes them; numpy's distributions and
permutations may change between releases.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray


def raw_bits(seed: int, purpose: str, start: int, count: int, per_item: int) -> NDArray[np.uint64]:
    """Return uniform 64-bit words of the items start .. start+count-1, (count, per_item).

    Item i's words depend on (seed, purpose, i, per_item) alone, and any item is reached in O(1).
    """
    digest = hashlib.blake2b(f"{seed}/{purpose}".encode(), digest_size=16).digest()
    blocks = -(-per_item // 4)  # Philox 4x64 makes four words for each value of its counter
    generator = np.random.Philox(key=int.from_bytes(digest, "little"), counter=start * blocks)
    return generator.random_raw(count * blocks * 4).reshape(count, blocks * 4)[:, :per_item]


def uniforms(seed: int, purpose: str, start: int, count: int, per_item: int) -> NDArray[np.float64]:
    """Return numbers strictly inside (0, 1), (count, per_item), made of `raw_bits`."""
    bits = raw_bits(seed, purpose, start, count, per_item) >> np.uint64(11)
    return (bits.astype(np.float64) + 0.5) * 2.0**-53


def orders(seed: int, purpose: str, start: int, count: int, length: int) -> NDArray[np.int64]:
    """Return an independent uniform permutation of range(length) for each item, (count, length)."""
    index_bits = np.uint64(max(1, length - 1).bit_length())
    keys = raw_bits(seed, purpose, start, count, length) >> index_bits << index_bits | np.arange(
        length, dtype=np.uint64
    )
    keys.sort(axis=1)  # no two are equal, so any sort gives this order, and a plain one is fastest
    return (keys & ((np.uint64(1) << index_bits) - np.uint64(1))).astype(np.int64)
