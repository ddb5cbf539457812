"""What is torn, what is corrupt, what has to be written afresh."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tamiyo_jax.errors import PersistenceError
from tamiyo_jax.journal import Conflict, Hole, Record, RecordType, Recovered, Scar, decode_repair
from tamiyo_jax.journal._recovery import encode_repair, merge, plan_rewrites
from tamiyo_jax.journal._scanning import Gap, GapReason, Scan, Segment, encode_segment, scan

SALT = b"saltsalt"


def step(sequence: int, synced: int = 0, payload: bytes = b"") -> Record:
    return Record(sequence, synced, RecordType.STEP, payload)


def snapshot(sequence: int, synced: int = 0) -> Record:
    return Record(sequence, synced, RecordType.SNAPSHOT, b"state")


def segment(base: int, records: list[Record], *gaps: Gap, name: str = "") -> Segment:
    found = scan(encode_segment(SALT, base, records), SALT, base)
    return Segment(name or f"segment-{base}", base, Scan(found.records, gaps))


def numbers(recovered: Recovered) -> list[int]:
    return [record.sequence for record in recovered.records]


def test_an_empty_directory_is_a_clean_log_that_begins_at_one() -> None:
    found = merge([])
    assert (tuple(found.records), found.last_sequence, found.clean) == ((), 0, True)
    assert plan_rewrites([], found) == ()


def test_the_state_begins_at_the_latest_snapshot_or_restore() -> None:
    restore = Record(4, 0, RecordType.RESTORE, b"taken over")
    found = merge([segment(1, [snapshot(1), step(2)]), segment(3, [snapshot(3), restore, step(5)])])
    assert tuple(found.replay) == (restore, step(5))
    assert numbers(found) == [1, 2, 3, 4, 5]
    assert found.clean


def test_a_record_is_found_by_its_sequence() -> None:
    found = merge([segment(1, [snapshot(1), step(2)]), segment(5, [snapshot(5)])])
    assert [found.find(sequence) for sequence in (0, 2, 3, 5, 6)] == [
        None,
        step(2),
        None,
        snapshot(5),
        None,
    ]


def test_records_without_a_state_to_begin_from_are_refused() -> None:
    with pytest.raises(PersistenceError, match="SNAPSHOT"):
        merge([segment(1, [step(2), step(3)])])


def test_identical_records_in_two_segments_are_one() -> None:
    old = segment(1, [snapshot(1), step(2, synced=1)])
    new = segment(1, [snapshot(1), step(2, synced=0)], name="rewritten")
    found = merge([old, new])
    assert numbers(found) == [1, 2]
    assert found.clean


def test_two_different_records_with_one_sequence_are_corruption_and_neither_is_believed() -> None:
    first = segment(1, [snapshot(1), step(2), step(3, payload=b"a")])
    second = segment(3, [step(3, payload=b"b"), snapshot(4)])
    found = merge([first, second])
    assert numbers(found) == [1, 2, 4]
    assert Conflict(3, ("segment-1", "segment-3")) in found.corrupt
    assert found.missing == (Hole(3, 3),)


def test_a_disputed_last_sequence_is_not_handed_out_again() -> None:
    first = segment(1, [snapshot(1), step(2, payload=b"a")])
    second = segment(1, [snapshot(1), step(2, payload=b"b")], name="other")
    assert merge([first, second]).last_sequence == 2


@pytest.mark.parametrize(("synced", "torn"), [(4, True), (5, False)])
def test_bad_bytes_are_torn_only_above_the_highest_synced(synced: int, torn: bool) -> None:
    gap = Gap(100, 10, GapReason.DAMAGED, after=4)
    records = [snapshot(1), step(2), step(3), step(4), step(6), step(7, synced)]
    found = merge([segment(1, records, gap)])
    losses = (Scar("segment-1", 100, 10, GapReason.DAMAGED), Hole(5, 5))
    assert (found.torn, found.corrupt) == ((losses, ()) if torn else ((), losses))
    assert found.missing == (Hole(5, 5),)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (Scar("s.wal", 100, 10, GapReason.DAMAGED), ("10 bytes", "offset 100", "s.wal", "damaged")),
        (Hole(5, 5), ("record 5 is missing",)),
        (Hole(5, 7), ("records 5 to 7 are missing",)),
        (Conflict(3, ("a.wal", "b.wal")), ("record 3", "a.wal and b.wal")),
    ],
)
def test_damage_says_what_and_where_it_is(
    damage: Scar | Hole | Conflict, said: tuple[str, ...]
) -> None:
    assert all(words in str(damage) for words in said)


TAILS = pytest.mark.parametrize("reason", [GapReason.SHORT, GapReason.ZEROS])


@TAILS
def test_a_bad_end_of_the_log_is_torn(reason: GapReason) -> None:
    older = segment(1, [snapshot(1), step(2)])
    last = segment(3, [snapshot(3, synced=2), step(4, synced=3)], Gap(100, 10, reason, after=4))
    found = merge([older, last])
    assert found.torn == (Scar("segment-3", 100, 10, reason),)
    assert found.corrupt == ()


@TAILS
def test_a_bad_end_of_an_older_segment_is_torn_if_it_cost_nothing(reason: GapReason) -> None:
    older = segment(1, [snapshot(1), step(2)], Gap(100, 10, reason, after=2))
    found = merge([older, segment(3, [snapshot(3, synced=2), step(4, synced=3)])])
    assert found.torn == (Scar("segment-1", 100, 10, reason),)
    assert found.corrupt == ()


@TAILS
def test_a_bad_end_of_an_older_segment_that_cost_synced_records_is_corrupt(
    reason: GapReason,
) -> None:
    older = segment(1, [snapshot(1), step(2)], Gap(100, 10, reason, after=2))
    segments = [older, segment(5, [snapshot(5, synced=4), step(6, synced=5)])]
    found = merge(segments)
    assert found.torn == ()
    assert found.corrupt == (Scar("segment-1", 100, 10, reason), Hole(3, 4))
    assert plan_rewrites(segments, found)[0].quarantined == ("segment-1",)


def test_a_hole_without_a_scar_is_reported() -> None:
    found = merge([segment(1, [snapshot(1), step(4, synced=3)])])
    assert found.corrupt == (Hole(2, 3),)
    assert not found.clean


def test_a_lost_segment_between_two_others_is_a_hole() -> None:
    found = merge([segment(1, [snapshot(1)]), segment(9, [snapshot(9, synced=8)])])
    assert found.corrupt == (Hole(2, 8),)


def test_segments_removed_from_the_front_are_no_hole() -> None:
    assert merge([segment(50, [snapshot(50, synced=49), step(51)])]).clean


def test_sequences_below_a_base_are_not_handed_out_again() -> None:
    found = merge([segment(1, [snapshot(1)]), segment(9, [])])
    assert found.last_sequence == 8
    assert found.missing == (Hole(2, 8),)


def test_a_repair_record_accounts_for_its_holes_for_good() -> None:
    repair = Record(6, 5, RecordType.REPAIR, encode_repair([Hole(2, 3)]))
    found = merge([segment(1, [snapshot(1), step(4), snapshot(5, 4), repair, step(7, 6)])])
    assert found.clean
    assert found.missing == ()


def test_a_repair_record_that_is_none_is_refused() -> None:
    with pytest.raises(PersistenceError, match="REPAIR"):
        decode_repair(b"seven b")


def test_the_last_segment_is_always_rewritten_and_sound_earlier_ones_never() -> None:
    segments = [segment(1, [snapshot(1), step(2)]), segment(3, [snapshot(3), step(4)])]
    (rewrite,) = plan_rewrites(segments, merge(segments))
    assert (rewrite.base, tuple(rewrite.records)) == (3, (snapshot(3), step(4)))
    assert (rewrite.obsolete, rewrite.quarantined) == (("segment-3",), ())


def test_a_corrupt_segment_is_rewritten_and_kept_in_quarantine() -> None:
    bad = segment(1, [snapshot(1), step(3)], Gap(90, 9, GapReason.DAMAGED, after=1))
    segments = [bad, segment(4, [snapshot(4, synced=3)])]
    rewrites = plan_rewrites(segments, merge(segments))
    assert [rewrite.base for rewrite in rewrites] == [1, 4]
    assert tuple(rewrites[0].records) == (snapshot(1), step(3))
    assert rewrites[0].quarantined == ("segment-1",)


def test_a_rewrite_that_a_crash_interrupted_is_finished_by_the_next_one() -> None:
    old = segment(1, [snapshot(1), step(2)], name="old")
    new = segment(1, [snapshot(1), step(2)], name="new")
    segments = [old, new, segment(3, [snapshot(3)])]
    rewrites = plan_rewrites(segments, merge(segments))
    assert tuple(rewrites[0].records) == (snapshot(1), step(2))
    assert rewrites[0].obsolete == ("old", "new")


@given(st.sets(st.integers(2, 40)), st.integers(0, 40), st.integers(1, 40))
def test_every_sequence_is_either_there_or_in_exactly_one_hole(
    lost: set[int], synced: int, cut: int
) -> None:
    present = [s for s in range(1, 42) if s not in lost]
    records = [snapshot(1)] + [step(s, min(synced, s - 1)) for s in present[1:]]
    parts = [[r for r in records if r.sequence <= cut], [r for r in records if r.sequence > cut]]
    found = merge([segment(1, parts[0]), segment(cut + 1, parts[1])])
    holes = [s for hole in found.missing for s in range(hole.first, hole.last + 1)]
    assert sorted(numbers(found) + holes) == list(range(1, 42))
    assert set(found.torn) | set(found.corrupt) == set(found.missing)
    assert all(hole.first > found.synced for hole in found.torn if isinstance(hole, Hole))
