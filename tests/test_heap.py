"""What is in use is told apart from what the allocators keep."""

from __future__ import annotations

import ctypes

from tests.heap import heap

MIB = 1024


def test_what_is_asked_for_is_in_use_and_what_is_given_back_is_not() -> None:
    before = heap()
    there = [bytes(4096) for _ in range(4 * MIB)]
    while_there = heap()
    del there
    after = heap()

    assert 16 * MIB <= while_there.in_use_kib - before.in_use_kib < 18 * MIB
    assert abs(after.in_use_kib - before.in_use_kib) < MIB


def test_what_is_small_is_counted_in_the_arenas_of_python() -> None:
    before = heap()
    there = [bytes(200) for _ in range(40 * MIB)]
    after = heap()

    assert 8 * MIB <= after.small_kib - before.small_kib < 12 * MIB
    assert after.in_use_kib - before.in_use_kib >= after.small_kib - before.small_kib
    assert after.arenas_kib >= after.small_kib
    del there


def test_what_lies_below_something_that_lives_is_kept_though_nobody_uses_it() -> None:
    malloc, free = ctypes.CDLL(None).malloc, ctypes.CDLL(None).free
    malloc.restype, malloc.argtypes, free.restype, free.argtypes = (
        ctypes.c_void_p,
        [ctypes.c_size_t],
        None,
        [ctypes.c_void_p],
    )
    blocks = [malloc(3000) for _ in range(6000)]
    last = malloc(3000)  # above them: the heap ends here
    there = heap()
    for block in blocks[::2]:
        free(block)
    after = heap()
    for block in [*blocks[1::2], last]:
        free(block)

    assert there.in_use_kib - after.in_use_kib > 8 * MIB
    assert there.malloc_kib - after.malloc_kib < MIB
