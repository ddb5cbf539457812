"""`tamiyo-jax journal`, on journals that real controllers wrote."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import pytest
from commands import dump_journal, invoke
from making import SECRET, Clock, make_config, make_packet, make_seed, open_tamiyo, story
from redis_server import RedisServer

from tamiyo_jax.bus import FIELD_REPORTS, MemoryBus, RedisBus, ReportReader
from tamiyo_jax.contracts import Priority, Secret, SeedStage
from tamiyo_jax.controller import TamiyoState, state_to_json
from tamiyo_jax.errors import PublishError, UnknownBlueprintError
from tamiyo_jax.journal import Journal, RecordType, read_journal
from tamiyo_jax.policy import Action, init_params


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of eight steps, one failure and one intervention, opened twice."""
    with open_tamiyo(tmp_path) as tamiyo:
        for packet in story(8):
            tamiyo.step(packet)
    with open_tamiyo(tmp_path) as tamiyo:
        tamiyo.set_conservative(True, "maintenance")
        with pytest.raises(UnknownBlueprintError):
            tamiyo.step(make_packet(8, blueprint_id="nowhere"))
    return tmp_path


def segments(directory: Path) -> list[Path]:
    return sorted((directory / "journal").iterdir())


def flip(path: Path, quote: bytes) -> int:
    """Damage the first byte of a quotation; returns its offset."""
    data = bytearray(path.read_bytes())
    offset = data.index(quote)
    data[offset] ^= 0xFF
    path.write_bytes(bytes(data))
    return offset


def test_a_sound_journal_verifies(run: Path) -> None:
    result = invoke("journal", "verify", str(run))
    assert result.exit_code == 0
    found = read_journal(run)
    expected = f"{len(found.records)} records up to sequence {found.last_sequence}"
    assert f"{expected}: 0 corrupt, 0 torn" in result.stdout


def test_damage_is_named_by_segment_offset_length_and_sequences(run: Path) -> None:
    (hurt, *_) = segments(run)
    offset = flip(hurt, b"packet-3")
    result = invoke("journal", "verify", str(run))
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    scar = next(line for line in lines if hurt.name in line)
    start = int(scar.split("offset ")[1].split()[0])
    length = int(scar.split("length ")[1].split()[0])
    assert start <= offset < start + length
    lost = next(step["sequence"] for step in dumped_before(run, "packet-2")) + 1
    assert any(f"sequences {lost}..{lost}" in line for line in lines)

    as_json = invoke("journal", "verify", str(run), "--json")
    assert as_json.exit_code == 1
    (damage, hole) = json.loads(as_json.stdout)["corrupt"]
    assert (damage["segment"], damage["offset"], damage["length"]) == (hurt.name, start, length)
    assert hole["sequences"] == f"{lost}..{lost}"


def dumped_before(directory: Path, packet_id: str) -> list[dict[str, Any]]:
    """The step of a packet, out of a journal that is damaged elsewhere."""
    return [
        step
        for step in dump_journal(directory, "--type", "step")
        if step["packet"] and step["packet"]["packet_id"] == packet_id
    ]


def test_an_incomplete_record_at_the_end_is_torn_and_no_failure(run: Path) -> None:
    last = segments(run)[-1]
    data = last.read_bytes()
    begun = data[data.rindex(b"\xf5\xc1\xf8\xfe") : -5]  # a frame whose write did not complete
    last.write_bytes(data + begun)
    result = invoke("journal", "verify", str(run), "--json")
    assert result.exit_code == 0
    answer = json.loads(result.stdout)
    assert answer["corrupt"] == []
    assert answer["torn"][0]["segment"] == last.name


def test_an_undecodable_payload_is_corrupt_although_its_checksums_hold(run: Path) -> None:
    journal, _ = Journal.open(run)
    journal.start(b"\xff\xff\xff")
    journal.close()
    result = invoke("journal", "verify", str(run))
    assert result.exit_code == 1
    assert "not a Snapshot" in result.stdout
    assert "unreadable" in invoke("journal", "dump", str(run), "--last", "1").stdout


def test_the_directory_above_the_journal_s_is_a_run_directory_too(tmp_path: Path) -> None:
    inner = tmp_path / "tamiyo"
    with open_tamiyo(inner) as tamiyo:
        for packet in story(2):
            tamiyo.step(packet)
    for command in (("verify",), ("dump", "--json"), ("verify", "--json")):
        outer = invoke("journal", *command, str(tmp_path))
        assert outer.exit_code == 0, outer.stderr
        assert outer == invoke("journal", *command, str(inner))
    assert invoke("journal", "compact", str(tmp_path)).exit_code == 0


def test_a_missing_journal_is_named_with_the_places_searched(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    with contextlib.chdir(tmp_path):
        result = invoke("journal", "verify", "x")
    assert result.exit_code == 2
    said = " ".join(result.stderr.replace("│", " ").split())
    assert "there is neither x/journal nor x/tamiyo/journal" in said


def test_verifying_and_dumping_change_nothing(run: Path) -> None:
    flip(segments(run)[0], b"packet-3")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    invoke("journal", "verify", str(run))
    invoke("journal", "dump", str(run))
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_dump_holds_packets_commands_and_reports_as_they_were(tmp_path: Path) -> None:
    seeds = (make_seed("s0", SeedStage.GERMINATED, metrics={"alpha": 0.5}),)
    with open_tamiyo(tmp_path) as tamiyo:
        decision = tamiyo.step(make_packet(3, seeds=seeds))
    assert decision.command is not None
    (step,) = dump_journal(tmp_path, "--type", "step")
    assert step["sequence"] == decision.ticket.sequence
    assert step["action"] == "ADVANCE"
    assert step["packet"]["packet_id"] == "packet-3"
    assert step["packet"]["seeds"][0]["stage"] == "GERMINATED"
    assert step["packet"]["seeds"][0]["metrics"] == {"alpha": 0.5}
    assert step["command"]["annotations"] == decision.command.annotations
    assert step["command"]["payload"]["operation"] == "START_TRAINING"
    assert step["report"]["report_id"] == decision.report_id
    assert step["report"]["outcome"] == "SUCCESS"
    assert step["mask"]["actions"][int(Action.WAIT)] is True
    assert len(step["outputs"]["policy_logits"]) == 32
    assert step["state"]["steps"] == 1


def test_numbers_that_json_cannot_represent_are_strings(tmp_path: Path) -> None:
    with open_tamiyo(tmp_path) as tamiyo:
        tamiyo.step(make_packet(validation_loss=math.nan, training_loss=-math.inf))
    (step,) = dump_journal(tmp_path, "--type", "step")
    assert step["packet"]["validation_loss"] == "NaN"
    assert step["packet"]["training_loss"] == "-Infinity"
    text = invoke("journal", "dump", str(tmp_path), "--json").stdout
    json.loads(text.splitlines()[-1], parse_constant=pytest.fail)


def test_every_record_has_its_line_in_order(run: Path) -> None:
    records = read_journal(run).records
    lines = dump_journal(run)
    assert [(line["sequence"], line["type"]) for line in lines] == [
        (record.sequence, record.type.name) for record in records
    ]
    assert {line["type"] for line in lines} >= {"SNAPSHOT", "STEP", "OPERATOR"}
    operator = next(line for line in lines if line["type"] == "OPERATOR")
    assert (operator["action"], operator["detail"]) == ("conservative_on", "maintenance")


def test_type_and_last_narrow_a_dump(run: Path) -> None:
    steps = dump_journal(run, "--type", "step")
    assert {line["type"] for line in steps} == {"STEP"}
    assert dump_journal(run, "--type", "step", "--last", "2") == steps[-2:]
    both = dump_journal(run, "--type", "operator", "--type", "SNAPSHOT")
    assert {line["type"] for line in both} == {"OPERATOR", "SNAPSHOT"}


def test_a_text_dump_shows_all_parts_of_a_step(run: Path) -> None:
    result = invoke("journal", "dump", str(run), "--type", "step")
    assert result.exit_code == 0
    printed = result.stdout
    for fact in ("2023-11-14 22:13:20", "packet-4", "s0 GERMINATED", "START_TRAINING s0"):
        assert fact in printed
    assert "  signed" in printed
    assert "FAILED" in printed
    assert "UnknownBlueprintError: " in printed


def test_a_damaged_journal_is_dumped_as_far_as_it_reads_and_says_so(run: Path) -> None:
    count = len(dump_journal(run))
    flip(segments(run)[0], b"packet-3")
    result = invoke("journal", "dump", str(run), "--json")
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) == count - 1
    assert "corrupt" in result.stderr


def test_compacting_keeps_the_state_and_lets_go_of_what_is_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(time.time_ns() - 48 * 3_600_000_000_000)
    config = make_config(storage={"retention_hours": 1_000.0})
    for start in range(0, 9, 3):
        with open_tamiyo(tmp_path, config=config, clock=clock) as tamiyo:
            for packet in story(9)[start : start + 3]:
                tamiyo.step(packet)
            expected: TamiyoState[Any] = tamiyo.state
    before = len(segments(tmp_path))
    monkeypatch.setenv("TAMIYO__STORAGE__RETENTION_HOURS", "24")
    for _ in range(2):  # the first begins the segment that the second may keep alone
        result = invoke("journal", "compact", str(tmp_path), "--json")
        assert result.exit_code == 0, result.stderr
    answer = json.loads(result.stdout)
    assert answer["segments"][1] == len(segments(tmp_path)) < before
    assert answer["bytes"][1] == sum(path.stat().st_size for path in segments(tmp_path))
    assert dump_journal(tmp_path, "--type", "step") == []
    with open_tamiyo(tmp_path, config=config, clock=clock) as tamiyo:
        assert state_to_json(tamiyo.state) == state_to_json(expected)


def test_compacting_keeps_what_is_young_enough(tmp_path: Path) -> None:
    with open_tamiyo(tmp_path, clock=time.time_ns) as tamiyo:
        tamiyo.step(make_packet())
    assert invoke("journal", "compact", str(tmp_path)).exit_code == 0
    assert len(dump_journal(tmp_path, "--type", "step")) == 1


def test_compacting_keeps_the_state_of_any_policy_bit_for_bit(tmp_path: Path) -> None:
    config = make_config()
    params = init_params(config.policy, jax.random.key(0))
    arguments: dict[str, Any] = {"config": config, "policy": "graph", "params": params}
    arguments["clock"] = time.time_ns
    with open_tamiyo(tmp_path, **arguments) as tamiyo:
        for packet in story(3):
            tamiyo.step(packet)
        expected = state_to_json(tamiyo.state)
    assert invoke("journal", "compact", str(tmp_path)).exit_code == 0
    with open_tamiyo(tmp_path, **arguments) as tamiyo:
        assert state_to_json(tamiyo.state) == expected


def test_a_directory_in_use_is_not_compacted(tmp_path: Path) -> None:
    with open_tamiyo(tmp_path) as tamiyo:
        tamiyo.step(make_packet())
        result = invoke("journal", "compact", str(tmp_path))
    assert result.exit_code == 1
    assert "DirectoryLockedError" in result.stderr


# Durable at once, so that what is damaged later is known to have been on disk.
DROP_AT_ONCE = make_config(publishing={"max_retries": 0}, storage={"durability": "always"})


class BusOfTheFirst(MemoryBus):
    """Accepts a report and is unreachable afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.taken = 0

    def publish(self, topic: str, payload: bytes, priority: Priority) -> None:
        if self.taken:
            raise PublishError("the bus is away; start it", topic=topic)
        super().publish(topic, payload, priority)
        self.taken += 1


def step_and_publish(directory: Path, steps: int, **arguments: Any) -> list[str]:
    """Ids of the reports of a run whose bus takes the first of them and no other."""
    bus = BusOfTheFirst()
    with open_tamiyo(directory, config=DROP_AT_ONCE, bus=bus, **arguments) as tamiyo:
        reports = [tamiyo.step(make_packet(step)).report_id for step in range(steps)]
        tamiyo.publish()
    return reports


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def received(redis: RedisServer) -> Iterator[Callable[[], list[str]]]:
    """Ids of the genuine reports that came over the bus since the last call."""
    bus = RedisBus(redis.url)
    seen: list[str] = []

    def receive() -> list[str]:
        seen.clear()
        reader = ReportReader(
            lambda report: seen.append(report.report_id),
            secrets=[Secret(SECRET)],
            refuse=pytest.fail,
        )
        bus.consume(FIELD_REPORTS, "analysis", reader)
        return list(seen)

    receive()
    yield receive
    bus.close()


@pytest.fixture
def secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAMIYO_SECRET", SECRET.decode())


@pytest.mark.usefixtures("secret")
def test_reports_that_were_dropped_are_sent_again_signed_and_the_journal_stays_as_it_is(
    tmp_path: Path, redis: RedisServer, received: Callable[[], list[str]]
) -> None:
    _, *dropped = step_and_publish(tmp_path, 4)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    result = invoke("journal", "republish", str(tmp_path), "--bus", redis.url)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "3 sent, 0 not sent, 0 lost"
    assert received() == dropped
    again = invoke("journal", "republish", str(tmp_path), "--bus", redis.url, "--json")
    assert json.loads(again.stdout) == {"sent": dropped, "unsent": [], "lost": []}
    assert received() == dropped
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_running_controller_is_not_disturbed_and_the_secret_may_have_another_name(
    tmp_path: Path,
    redis: RedisServer,
    received: Callable[[], list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ANOTHER_SECRET", SECRET.decode())
    call = ("journal", "republish", str(tmp_path), "--bus", redis.url)
    with open_tamiyo(tmp_path, config=DROP_AT_ONCE, bus=BusOfTheFirst()) as tamiyo:
        reports = [tamiyo.step(make_packet(step)).report_id for step in range(3)]
        tamiyo.publish()
        result = invoke(*call, "--secret-env", "ANOTHER_SECRET", "--json")
        assert result.exit_code == 0, result.stderr
        reports.append(tamiyo.step(make_packet(3)).report_id)
    assert json.loads(result.stdout)["sent"] == received() == reports[1:3]


@pytest.mark.usefixtures("secret")
def test_a_bus_that_refuses_is_exit_status_one_and_what_was_sent_is_printed(tmp_path: Path) -> None:
    _, *dropped = step_and_publish(tmp_path / "run", 3)
    (tmp_path / "redis").mkdir()
    with RedisServer(tmp_path / "redis") as server:
        url = server.url
    call = ("journal", "republish", str(tmp_path / "run"), "--bus", url)
    result = invoke(*call, "--json")
    assert result.exit_code == 1
    assert "PublishError" in result.stderr
    assert json.loads(result.stdout) == {"sent": [], "unsent": dropped, "lost": []}
    assert "0 sent, 2 not sent" in invoke(*call).stdout


@pytest.mark.usefixtures("secret")
def test_dropped_reports_that_the_journal_lost_are_named(
    tmp_path: Path, redis: RedisServer, received: Callable[[], list[str]]
) -> None:
    _, second, third = step_and_publish(tmp_path, 3)
    flip(segments(tmp_path)[0], b"packet-1")
    result = invoke("journal", "republish", str(tmp_path), "--bus", redis.url, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout) == {"sent": [third], "unsent": [], "lost": [second]}
    assert "corrupt" in result.stderr
    assert received() == [third]


def test_without_a_secret_nothing_is_sent(
    tmp_path: Path, redis: RedisServer, received: Callable[[], list[str]]
) -> None:
    step_and_publish(tmp_path, 3)
    call = ("journal", "republish", str(tmp_path), "--bus", redis.url)
    result = invoke(*call, "--secret-env", "A_VARIABLE_THAT_IS_NOT_SET")
    assert result.exit_code == 1
    assert "MissingSecretError" in result.stderr
    assert "A_VARIABLE_THAT_IS_NOT_SET" in result.stderr
    assert received() == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("journal",),
        ("journal", "verify"),
        ("journal", "verify", "/nowhere"),
        ("journal", "dump", "{empty}"),
        ("journal", "compact", "{empty}"),
        ("journal", "republish", "{run}"),
        ("journal", "republish", "{empty}", "--bus", "redis://127.0.0.1:1"),
        ("journal", "dump", "{run}", "--type", "dance"),
        ("journal", "dump", "{run}", "--last", "0"),
    ],
)
def test_misuse_has_exit_status_two(
    arguments: tuple[str, ...], run: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    empty = tmp_path_factory.mktemp("empty")
    assert invoke(*(argument.format(run=run, empty=empty) for argument in arguments)).exit_code == 2


def test_every_type_of_record_can_be_asked_for() -> None:
    printed = " ".join(invoke("journal", "dump", "--help").stdout.replace("│", " ").split())
    for record_type in RecordType:
        assert record_type.name.lower() in printed
