"""`tamiyo-jax journal`: the log of a run directory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from tamiyo_jax.cli.compaction import compact_directory
from tamiyo_jax.cli.config import ConfigFile
from tamiyo_jax.cli.directory import journal_home
from tamiyo_jax.cli.output import Json, print_json, print_lines, problems
from tamiyo_jax.cli.records import as_json, as_text
from tamiyo_jax.config import TamiyoConfig
from tamiyo_jax.runtime.assembly import resolve_secrets
from tamiyo_jax.runtime.redis_bus import RedisBus
from tamiyo_jax.runtime.republishing import dropped_reports, republish
from tamiyo_jax.storage import (
    Conflict,
    Damage,
    Hole,
    RecordType,
    Recovered,
    Scar,
    Unreadable,
    read_entries,
    read_journal,
)

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="The log of a run directory.")

_TYPES = ", ".join(one.name.lower() for one in RecordType)


def _record_type(name: str) -> RecordType:
    try:
        return RecordType[name.upper()]
    except KeyError as error:
        raise typer.BadParameter(f"{name!r} is no type of record; there are {_TYPES}") from error


Directory = Annotated[
    Path,
    typer.Argument(
        metavar="DIR",
        exists=True,
        file_okay=False,
        callback=journal_home,
        help="A run directory; its journal is in it, or in its directory tamiyo.",
    ),
]


@app.command()
def verify(directory: Directory, as_json_: Json = False) -> None:
    """Read every byte and name all damage; exit status 1 if anything is corrupt.

    What a crash is expected to leave at the end of a journal is torn, not corrupt. Nothing is
    changed: opening the directory is what repairs it.

    Example: tamiyo-jax journal verify run
    """
    found = read_journal(directory)
    corrupt = [_described(one) for one in found.corrupt]
    corrupt += [
        {"sequences": _range(entry.record.sequence), "reason": entry.content.reason}
        for entry in read_entries(found)
        if isinstance(entry.content, Unreadable)
    ]
    torn = [_described(one) for one in found.torn]
    if as_json_:
        print_json(
            {
                "corrupt": corrupt,
                "torn": torn,
                "records": len(found.records),
                "last_sequence": found.last_sequence,
                "synced": found.synced,
            }
        )
    else:
        for kind, damages in (("corrupt", corrupt), ("torn", torn)):
            for damage in damages:
                facts = "  ".join(f"{name} {value}" for name, value in damage.items())
                print_lines(f"{kind:<8} {facts}")
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
    as_json_: Annotated[
        bool, typer.Option("--json", help="One JSON object per line, for a program to read.")
    ] = False,
) -> None:
    """Print the records of a journal: packets, commands, reports and all.

    Example: tamiyo-jax journal dump run --type step --last 3
    """
    found = read_journal(directory)
    wanted = types or list(RecordType)
    records = tuple(record for record in found.records if record.type in wanted)
    chosen = replace(found, records=records if last is None else records[-last:])
    for entry in read_entries(chosen):
        if as_json_:
            print_json(as_json(entry), indent=None)
        else:
            print_lines(*as_text(entry))
    _warn_of_damage(found)


@app.command()
def compact(directory: Directory, config: ConfigFile = None, as_json_: Json = False) -> None:
    """Go on in a new segment, and remove those that are older than storage.retention_hours.

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
            help="The variable that holds the secret; security.secret_env unless given.",
        ),
    ] = None,
    as_json_: Json = False,
) -> None:
    """Send the reports again that were dropped because their bus was away for too long.

    The journal is read, never written: a controller may be using it, and every call sends all
    of them. Consumers know a report by its id. Exit status 1 if the bus refuses one; those
    before it are sent.

    Example: tamiyo-jax journal republish run --bus redis://localhost
    """
    found = read_journal(directory)
    security = {} if secret_env is None else {"secret_env": secret_env}
    secret, *_ = resolve_secrets(TamiyoConfig.load(security=security), None)
    opened = RedisBus(bus)
    _warn_of_damage(found)
    dropped = dropped_reports(read_entries(found))
    sent: list[str] = []
    try:
        for report_id in republish(dropped.reports, opened, secret):
            sent.append(report_id)
    finally:
        unsent = [one.report_id for one in dropped.reports[len(sent) :]]
        if as_json_:
            print_json({"sent": sent, "unsent": unsent, "lost": dropped.lost})
        else:
            print_lines(*(f"sent {report_id}" for report_id in sent))
            print_lines(*(f"lost {report_id}" for report_id in dropped.lost))
            print_lines(f"{len(sent)} sent, {len(unsent)} not sent, {len(dropped.lost)} lost")
        opened.close()


def _size(directory: Path) -> tuple[int, int]:
    """Number of segments and their bytes."""
    sizes = [path.stat().st_size for path in (directory / "journal").iterdir()]
    return len(sizes), sum(sizes)


def _warn_of_damage(found: Recovered) -> None:
    if found.corrupt:
        problems.print(f"[yellow]{len(found.corrupt)} places are corrupt; see journal verify")


def _described(damage: Damage) -> dict[str, object]:
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
