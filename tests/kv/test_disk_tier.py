"""The disk tier: what is there comes back as it was, whatever was torn, flipped, restarted or deleted meanwhile."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_tier import BLOCK, LAYOUT, PAGES, fill, holds, name
from xxhash import xxh3_64_intdigest

from baton.core.errors import ConfigError
from baton.core.layout import KvLayout
from baton.kv.memory import PoolMemory
from baton.kv.tier.disk import DiskTier
from baton.kv.tier.host import Leaving
from baton.kv.tier.segment import HEADER_BYTES, RECORD_HEADER_BYTES, NotASegment, Segment

RECORD = RECORD_HEADER_BYTES + BLOCK
PAGE = 5


@pytest.fixture
def pool():
    memory = PoolMemory.create(LAYOUT, PAGES)
    yield memory
    memory.close()


def leaving(number: int) -> Leaving:
    """A block with the content that `holds` looks for."""
    body = b"".join(bytes([number % 251, layer]) * (LAYOUT.page_bytes // 2) for layer in range(LAYOUT.layers))
    return Leaving(name(number), memoryview(body), xxh3_64_intdigest(body))


def tier(pool: PoolMemory, folder: Path, blocks: int = 100) -> DiskTier:
    """A tier with room for about so many blocks, as an agent has it after its start."""
    made = DiskTier(pool, folder, blocks * (RECORD + HEADER_BYTES))
    list(made.recover())
    return made


def store(disk: DiskTier, *numbers: int) -> None:
    disk.store([leaving(number) for number in numbers])


def comes_back(disk: DiskTier, pool: PoolMemory, number: int) -> bool:
    """Whether the block is there; fails when what comes is not what was stored."""
    fill(pool, PAGE, 250)
    if not disk.load([(name(number), PAGE)]):
        assert holds(pool, PAGE, 250), "nothing was written into the pool"
        return False
    assert holds(pool, PAGE, number)
    return True


BATCHES = st.lists(st.lists(st.integers(0, 30), min_size=1, max_size=5, unique=True), max_size=30)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(room=st.integers(1, 40), batches=BATCHES, restarts=st.sets(st.integers(0, 30), max_size=3))
def test_what_it_says_is_there_comes_back(
    tmp_path_factory: pytest.TempPathFactory, room: int, batches: list[list[int]], restarts: set[int]
) -> None:
    folder = tmp_path_factory.mktemp("tier")
    pool = PoolMemory.create(LAYOUT, PAGES)
    disk, here = tier(pool, folder, room), set()
    for at, batch in enumerate(batches):
        if at in restarts:
            disk.close()
            disk = DiskTier(pool, folder, room * (RECORD + HEADER_BYTES))
            assert {block for blocks in disk.recover() for block in blocks} == here
        result = disk.store([leaving(number) for number in batch])
        assert set(result.stored) <= {name(number) for number in batch} and not set(result.stored) & set(result.dropped)
        here = (here | set(result.stored)) - set(result.dropped)
        sizes = [path.stat().st_size for path in folder.glob("*.kvseg")]
        assert disk.size_bytes == sum(sizes) <= room * (RECORD + HEADER_BYTES)
        assert name(batch[-1]) in here, "the newest block is kept"
    assert {name(number) for number in range(31) if comes_back(disk, pool, number)} == here
    assert len(disk) == len(here)
    disk.close()
    pool.close()


def test_the_oldest_go_first_and_those_that_come_again_stay(pool, tmp_path):
    disk = tier(pool, tmp_path, blocks=32)
    for number in range(100):
        store(disk, number, *([777] if number % 7 == 0 else []))
        assert comes_back(disk, pool, 777)
    kept = [number for number in range(100) if comes_back(disk, pool, number)]
    assert kept == list(range(100 - len(kept), 100)) and 24 <= len(kept) <= 31


def test_a_torn_tail_is_cut_wherever_it_tears(pool, tmp_path):
    disk = tier(pool, tmp_path)
    store(disk, 1, 2, 3)
    disk.close()
    (path,) = tmp_path.glob("*.kvseg")
    whole = path.read_bytes()
    assert len(whole) == HEADER_BYTES + 3 * RECORD
    for size in range(HEADER_BYTES, len(whole), 7):
        path.write_bytes(whole[:size])
        disk = tier(pool, tmp_path)
        records = (size - HEADER_BYTES) // RECORD
        assert len(disk) == records and path.stat().st_size == HEADER_BYTES + records * RECORD
        store(disk, 9)
        assert [comes_back(disk, pool, number) for number in (1, 2, 3, 9)] == [records >= 1, records >= 2, False, True]
        disk.close()


def test_no_flipped_bit_is_served(pool, tmp_path):
    disk = tier(pool, tmp_path)
    store(disk, 1, 2, 3)
    disk.close()
    (path,) = tmp_path.glob("*.kvseg")
    whole, choose = path.read_bytes(), random.Random(1)
    for _ in range(150):
        at = choose.randrange(HEADER_BYTES, len(whole))
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << choose.randrange(8)]) + whole[at + 1 :])
        disk = tier(pool, tmp_path)
        hit, in_header = (at - HEADER_BYTES) // RECORD, (at - HEADER_BYTES) % RECORD < RECORD_HEADER_BYTES
        came = [comes_back(disk, pool, number) for number in (1, 2, 3)]
        assert came == [n < hit or (n > hit and not in_header) for n in range(3)]
        assert not comes_back(disk, pool, hit + 1), "it is forgotten"
        store(disk, hit + 1)
        assert comes_back(disk, pool, hit + 1)
        disk.close()


def test_a_record_that_lies_elsewhere_is_none(pool, tmp_path):
    """A file system that loses a write may show an older record of the same block, or one of another place."""
    disk = tier(pool, tmp_path)
    store(disk, 1, 2)
    disk.close()
    (path,) = tmp_path.glob("*.kvseg")
    whole = path.read_bytes()
    first, second = whole[HEADER_BYTES : HEADER_BYTES + RECORD], whole[HEADER_BYTES + RECORD :]
    path.write_bytes(whole[:HEADER_BYTES] + second + first)
    assert len(tier(pool, tmp_path)) == 0


def test_bytes_that_change_under_it_are_not_served(pool, tmp_path):
    disk = tier(pool, tmp_path)
    store(disk, 1, 2)
    (path,) = tmp_path.glob("*.kvseg")
    with path.open("r+b") as file:
        file.seek(HEADER_BYTES + RECORD_HEADER_BYTES + 3)
        file.write(b"!")
    fill(pool, 7, 250)
    assert disk.load([(name(1), 6), (name(2), 7)]) == 0 and holds(pool, 7, 250)
    os.truncate(path, HEADER_BYTES + RECORD + 1)
    assert not comes_back(disk, pool, 2)
    disk.close()


def test_files_of_another_layout_or_of_nobody_go(pool, tmp_path):
    disk = tier(pool, tmp_path)
    store(disk, 1)
    disk.close()
    wider = KvLayout("tiny", "float16", layers=3, page_size=4, kv_heads=1, head_dim=4)
    other_pool = PoolMemory.create(wider, PAGES)
    (tmp_path / "0000000000x7.kvseg").write_bytes(b"")
    (tmp_path / "readme.txt").write_text("not ours")
    other = tier(other_pool, tmp_path)
    assert len(other) == 0 and {path.name for path in tmp_path.iterdir()} == {"lock", "readme.txt"}
    other.close()
    other_pool.close()


def test_a_smaller_tier_drops_the_oldest_when_it_starts(pool, tmp_path):
    disk = tier(pool, tmp_path, blocks=64)
    store(disk, *range(40))
    disk.close()
    disk = tier(pool, tmp_path, blocks=10)
    kept = [number for number in range(40) if comes_back(disk, pool, number)]
    assert kept and kept == list(range(40 - len(kept), 40)) and disk.size_bytes <= 10 * (RECORD + HEADER_BYTES)
    disk.close()


def test_a_folder_has_one_user(pool, tmp_path):
    disk = tier(pool, tmp_path)
    with pytest.raises(ConfigError, match="another agent"):
        tier(pool, tmp_path)
    disk.close()
    disk.close()
    tier(pool, tmp_path).close()
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be used"):
        tier(pool, tmp_path / "file")
    with pytest.raises(ConfigError, match="holds nothing"):
        DiskTier(pool, tmp_path, BLOCK)


def test_only_the_owner_reads_what_prompts_have_left(pool, tmp_path):
    disk = tier(pool, tmp_path / "new")
    store(disk, 1)
    assert {oct(path.stat().st_mode & 0o777) for path in (tmp_path / "new").iterdir()} == {"0o600"}
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700
    disk.close()


def test_a_full_disk_is_an_error_that_leaves_no_half_record(pool, tmp_path, monkeypatch):
    """The kernel takes part of a record, then nothing more."""
    disk = tier(pool, tmp_path)
    store(disk, 1)
    pwritev, room = os.pwritev, [RECORD // 2]

    def full(fd: int, parts: list[memoryview], offset: int) -> int:
        taken = memoryview(b"".join(parts))[: room[0]]
        room[0] -= len(taken)
        if not taken:
            raise OSError(28, "No space left on device")
        return pwritev(fd, [taken], offset)

    monkeypatch.setattr(os, "pwritev", full)
    with pytest.raises(OSError, match="No space"):
        store(disk, 2)
    assert name(2) not in disk
    monkeypatch.undo()
    disk.close()
    again = tier(pool, tmp_path)
    assert comes_back(again, pool, 1) and not comes_back(again, pool, 2)
    again.close()


def test_writes_that_the_kernel_takes_piece_by_piece_are_whole(pool, tmp_path, monkeypatch):
    pwritev, preadv = os.pwritev, os.preadv
    monkeypatch.setattr(os, "pwritev", lambda fd, parts, at: pwritev(fd, [memoryview(b"".join(parts))[:13]], at))
    monkeypatch.setattr(os, "preadv", lambda fd, parts, at: preadv(fd, [parts[0][:11]], at))
    disk = tier(pool, tmp_path)
    store(disk, 1, 2)
    assert comes_back(disk, pool, 1) and comes_back(disk, pool, 2)
    disk.close()


def test_a_segment_of_another_version_is_refused(tmp_path):
    Segment.create(tmp_path / "s", "abc", 64).close()
    with pytest.raises(NotASegment, match="layout"):
        Segment.open(tmp_path / "s", "abc", 65)
    data = bytearray((tmp_path / "s").read_bytes())
    data[8] += 1
    (tmp_path / "s").write_bytes(data)
    with pytest.raises(NotASegment, match="version"):
        Segment.open(tmp_path / "s", "abc", 64)
