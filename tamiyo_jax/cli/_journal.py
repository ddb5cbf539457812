"""`tamiyo-jax journal`: the log of a run directory."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from datetime import UTC, datetime
from itertools import dropwhile
from pathlib import Path
from typing import Annotated

import typer

from tamiyo_jax.bus import RedisBus, dropped_reports, republish
from tamiyo_jax.cli._compaction import compact_directory
from tamiyo_jax.cli._config import ConfigFile
from tamiyo_jax.cli._directory import find_journal_home
from tamiyo_jax.cli._output import Json, print_json, print_lines, problems
from tamiyo_jax.cli._records import as_json, as_text
from tamiyo_jax.config import TamiyoConfig
from tamiyo_jax.journal import Conflict, Damage, Hole, RecordType, Recovered, Scar, read_journal
from tamiyo_jax.service import resolve_secrets
from tamiyo_jax.storage import Entry, StepRecord, Unreadable, read_entries

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="The log of a run directory.")

_TIMES = ["%Y-%m-%d", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M:%S"]
_TYPES = ", ".join(record_type.name.lower() for record_type in RecordType)


def _record_type(name: str) -> RecordType:
    try:
        return RecordType[name.upper()]
    except KeyError as error:
        raise typer.BadParameter(
            f"{name!r} is not a type of record; the types are {_TYPES}"
        ) from error


Directory = Annotated[
    Path,
    typer.Argument(
        metavar="DIR",
        exists=True,
        file_okay=False,
        callback=find_journal_home,
        help="A run directory; its journal is in it, or in its directory tamiyo.",
    ),
]


@app.command()
def verify(directory: Directory, as_json_: Json = False) -> None:
    """Read every byte and name all damage; exit status 1 if anything is corrupt.

    An incomplete record at the end, as a crash leaves it, is torn, not corrupt. Nothing is
    changed: opening the directory repairs it.

    Example: tamiyo-jax journal verify run
    """
    found = read_journal(directory)
    corrupt = [_describe(damage) for damage in found.corrupt]
    corrupt += [
        {"sequences": _range(entry.record.sequence), "reason": entry.content.reason}
        for entry in read_entries(found)
        if isinstance(entry.content, Unreadable)
    ]
    torn = [_describe(damage) for damage in found.torn]
    removed = found.records[0].sequence - 1 if found.records else 0
    if as_json_:
        print_json(
            {
                "corrupt": corrupt,
                "torn": torn,
                "records": len(found.records),
                "removed": removed,
                "last_sequence": found.last_sequence,
                "synced": found.synced,
            }
        )
    else:
        for kind, damages in (("corrupt", corrupt), ("torn", torn)):
            for damage in damages:
                facts = "  ".join(f"{name} {value}" for name, value in damage.items())
                print_lines(f"{kind:<8} {facts}")
        if removed:
            print_lines(f"removed  sequences 1..{removed}  reason retention")
        print_lines(
            f"{len(found.records)} records up to sequence {found.last_sequence}: "
            f"{len(corrupt)} corrupt, {len(torn)} torn"
        )
    if corrupt:
        raise typer.Exit(1)


@app.command()
def dump(
    directory: Directory,
    types: Annotated[
        list[RecordType] | None,
        typer.Option(
            "--type",
            parser=_record_type,
            metavar="TYPE",
            help=f"Only records of this type; may be given again. One of {_TYPES}.",
        ),
    ] = None,
    last: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Only the last N of them.")
    ] = None,
    acted: Annotated[
        bool, typer.Option("--acted", help="Only steps that did something, or failed.")
    ] = False,
    reason: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="Only steps whose reason contains this."),
    ] = None,
    since: Annotated[
        datetime | None,
        typer.Option(
            formats=_TIMES, metavar="TIME", help="Only what came from then on; UTC, ISO 8601."
        ),
    ] = None,
    as_json_: Annotated[
        bool,
        typer.Option("--json", metavar="", help="One JSON object per line, for a program to read."),
    ] = False,
) -> None:
    """Print the records of a journal: packets, commands, reports and all.

    Example: tamiyo-jax journal dump run --acted --reason loss --last 3
    """
    found = read_journal(directory)
    wanted = types or list(RecordType)
    records = tuple(record for record in found.records if record.type in wanted)
    picks = acted or reason is not None or since is not None
    if last is not None and not picks:
        records = records[-last:]  # no need to decode the others
    entries = read_entries(replace(found, records=records))
    if since is not None:
        since_ns = round(since.replace(tzinfo=UTC).timestamp() * 1e9)
        entries = dropwhile(lambda entry: not _issued_since(entry, since_ns), entries)
    if acted or reason is not None:
        entries = (entry for entry in entries if _is_step(entry, acted, reason or ""))
    for entry in entries if last is None else deque(entries, last):
        if as_json_:
            print_json(as_json(entry), indent=None)
        else:
            print_lines(*as_text(entry))
    _warn_of_damage(found)


@app.command()
def compact(directory: Directory, config: ConfigFile = None, as_json_: Json = False) -> None:
    """Start a new segment, and remove old ones by storage.retention_hours and retention_bytes.

    Reports that wait for their bus are kept however old they are. The directory must not be in
    use; corrupt bytes move to quarantine as at every opening.

    Example: tamiyo-jax journal compact run
    """
    storage = TamiyoConfig.load(config).storage
    found = read_journal(directory)
    if not found.records:
        raise typer.BadParameter(f"the journal of {directory} is empty")
    sizes = [_size(directory)]
    compact_directory(directory, storage, found)
    sizes.append(_size(directory))
    (segments, size), (segments_left, size_left) = sizes
    if as_json_:
        print_json({"segments": [segments, segments_left], "bytes": [size, size_left]})
    else:
        print_lines(f"{segments} segments, {size} bytes -> {segments_left}, {size_left} bytes")


@app.command("republish")
def republish_dropped(
    directory: Directory,
    bus: Annotated[str, typer.Option(metavar="URL", help="The bus: redis://host.")],
    secret_env: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The variable that holds the secret; security.secret_env by default.",
        ),
    ] = None,
    as_json_: Json = False,
) -> None:
    """Publish again the reports that were dropped because their bus was unreachable.

    The journal is only read: a controller may be using it, and every call sends all of them.
    Consumers recognise a report by its id. Exit status 1 if the bus refuses a report; earlier
    reports are sent.

    Example: tamiyo-jax journal republish run --bus redis://localhost
    """
    found = read_journal(directory)
    config = (
        TamiyoConfig.load()
        if secret_env is None
        else TamiyoConfig.load(security={"secret_env": secret_env})
    )
    secret, *_ = resolve_secrets(config, None)
    opened = RedisBus(bus)
    _warn_of_damage(found)
    dropped = dropped_reports(read_entries(found))
    sent: list[str] = []
    try:
        for report_id in republish(dropped.reports, opened, secret):
            sent.append(report_id)
    finally:
        unsent = [report.report_id for report in dropped.reports[len(sent) :]]
        if as_json_:
            print_json({"sent": sent, "unsent": unsent, "lost": dropped.lost})
        else:
            print_lines(*(f"sent {report_id}" for report_id in sent))
            print_lines(*(f"lost {report_id}" for report_id in dropped.lost))
            print_lines(f"{len(sent)} sent, {len(unsent)} not sent, {len(dropped.lost)} lost")
        opened.close()


def _issued_since(entry: Entry, since_ns: int) -> bool:
    step = entry.content
    return isinstance(step, StepRecord) and (step.report.issued_at_ns or 0) >= since_ns


def _is_step(entry: Entry, acted: bool, reason: str) -> bool:
    """Whether a record is a step that gives this reason, and did something if it has to."""
    step = entry.content
    if not isinstance(step, StepRecord) or reason not in step.report.notes:
        return False
    return not acted or step.action != "WAIT"


def _size(directory: Path) -> tuple[int, int]:
    """Count the segments and their bytes."""
    sizes = [path.stat().st_size for path in (directory / "journal").iterdir()]
    return len(sizes), sum(sizes)


def _warn_of_damage(found: Recovered) -> None:
    if found.corrupt:
        problems.print(f"[yellow]{len(found.corrupt)} places are corrupt; see journal verify")


def _describe(damage: Damage) -> dict[str, object]:
    match damage:
        case Scar(segment, offset, length, reason):
            return {
                "segment": segment,
                "offset": offset,
                "length": length,
                "reason": reason.value,
            }
        case Hole(first, last):
            return {"sequences": _range(first, last), "reason": "missing"}
        case Conflict(sequence, segments):
            return {
                "sequences": _range(sequence),
                "reason": "different records in " + ", ".join(segments),
            }


def _range(first: int, last: int | None = None) -> str:
    return f"{first}..{first if last is None else last}"
