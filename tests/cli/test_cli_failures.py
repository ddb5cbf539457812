"""Whatever a command meets, it says so in a single line on stderr, with status 1 or 2."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path
from zlib import crc32

import pytest
from commands import invoke
from making import make_blueprint, make_packet, open_tamiyo

from tamiyo_jax.cli._output import escape_controls
from tamiyo_jax.config import PolicyConfig
from tamiyo_jax.contracts import blueprint_to_json
from tamiyo_jax.policy import export_params, init_params

SPARSE_BYTES = 30 * 2**30
ODD_ID = "grow\x1b[31m\u202edrawkcab\nsecond line"


def run_command(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    """`tamiyo-jax` in a process of its own, which may take 60 s and 4 GiB."""
    command = ["prlimit", "--data=4294967296", sys.executable, "-m", "tamiyo_jax", *arguments]
    environment = {**os.environ, **dict(options.pop("environment", {}))}  # type: ignore[call-overload]
    arguments_of_run: dict[str, object] = {"capture_output": True, "stdin": subprocess.DEVNULL}
    return subprocess.run(
        command,
        text=True,
        errors="surrogateescape",
        timeout=60,
        check=False,
        env=environment,
        **(arguments_of_run | options),  # type: ignore[arg-type]
    )


def assert_one_line(exit_code: int, stderr: str) -> str:
    assert exit_code in (1, 2), stderr
    lines = stderr.splitlines()
    assert len(lines) == 1, stderr
    assert "Traceback" not in stderr
    return lines[0]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    directory = tmp_path / "run"
    with open_tamiyo(directory) as tamiyo:
        for step in range(3):
            tamiyo.step(make_packet(step))
    return directory


def odd_files(tmp_path: Path) -> dict[str, Path]:
    """Paths that are not what a command hopes for."""
    (tmp_path / "directory").mkdir()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "binary").write_bytes(b"\xff\x00\xfe" * 99)
    (tmp_path / "empty").touch()
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(SPARSE_BYTES)
    (tmp_path / "plain").mkdir()
    kinds = ("directory", "fifo", "dangling", "binary", "empty", "sparse")
    return {kind: tmp_path / kind for kind in kinds} | {
        "missing": tmp_path / "missing",
        "below a file": tmp_path / "empty" / "below",
        "device": Path("/dev/zero"),
    }


FILE_COMMANDS = [
    ("blueprint", "validate", "{}"),
    ("blueprint", "put", "{}", "--library", "{plain}/b.db"),
    ("blueprint", "list", "--library", "{}"),
    ("blueprint", "get", "host", "--library", "{}"),
    ("config", "show", "--file", "{}"),
    ("import-torch", "{}"),
    ("journal", "verify", "{}"),
    ("journal", "dump", "{}"),
    ("journal", "compact", "{}"),
    ("replay", "{}"),
    ("replay", "{}", "--what-if"),
    ("replay", "{plain}", "--what-if", "--params", "{}"),
    ("conformance", "{}"),
    ("report", "{}"),
    ("status", "{}"),
    ("watch", "{}"),
    ("demo", "--resume", "--directory", "{}"),
]
READERS = [("blueprint", "put", "{}", "--library", "{plain}/b.db"), ("import-torch", "{}")]


@pytest.mark.parametrize("command", FILE_COMMANDS, ids=" ".join)
def test_a_path_that_is_not_what_it_should_be_is_explained_in_one_line(
    command: tuple[str, ...], tmp_path: Path
) -> None:
    for kind, path in odd_files(tmp_path).items():
        if kind == "empty" and command[:2] == ("config", "show"):
            continue  # an empty file is valid TOML
        if kind == "empty" and command[:2] in (("blueprint", "list"), ("blueprint", "get")):
            continue  # and a new SQLite database
        arguments = [part.format(path, plain=tmp_path / "plain") for part in command]
        result = invoke(*arguments)
        assert result.exit_code in (1, 2), (kind, result)
        if command[:2] == ("blueprint", "validate") and result.exit_code == 1:
            assert len(result.stdout.splitlines()) == 1, (kind, result)  # the answer, not an error
        else:
            line = assert_one_line(result.exit_code, result.stderr)
            if kind == "sparse" and command in READERS:
                assert str(SPARSE_BYTES) in line, line


@pytest.mark.parametrize("kind", ["fifo", "sparse", "dangling", "directory"])
@pytest.mark.parametrize("command", ["verify", "dump"])
def test_a_segment_that_is_no_regular_file_is_refused_in_bounded_time_and_memory(
    kind: str, command: str, run: Path, tmp_path: Path
) -> None:
    (segment,) = (run / "journal").glob("*.wal")
    (run / "journal" / segment.name.replace("0", "9", 1)).symlink_to(odd_files(tmp_path)[kind])
    result = run_command("journal", command, str(run))
    line = assert_one_line(result.returncode, result.stderr)
    if kind == "sparse":  # refused for its size, and not where memory ran out
        assert str(SPARSE_BYTES) in line


def test_files_of_file_managers_beside_the_segments_are_ignored(run: Path) -> None:
    (segment,) = (run / "journal").glob("*.wal")
    (run / "journal" / f"._{segment.name}").write_bytes(b"\x00\x05\x16\x07Mac OS X")
    assert invoke("journal", "verify", str(run)).exit_code == 0


def test_a_segment_full_of_forged_headers_is_read_in_bounded_time(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (segment,) = (run / "journal").glob("*.wal")
    salt = bytes.fromhex(segment.stem.split("-")[1])
    size = 2 * 2**20
    header = struct.Struct("<IBBHQQI")
    magic = int.from_bytes(b"\xf5\xc1\xf8\xfe", "little")
    forged = bytearray(segment.read_bytes())
    while len(forged) < size:  # 52,000 headers, each claiming the rest of the file as its payload
        fields = header.pack(magic, 1, 1, 0, 99, 0, max(0, size - len(forged) - 64))
        forged += fields + struct.pack("<I", crc32(fields, crc32(salt)))
    segment.write_bytes(forged + bytes(128))
    checked = 0

    def count(data: bytes, seed: int = 0) -> int:
        nonlocal checked
        checked += len(data)
        assert checked < 200 * size, "every header has its whole payload checked"
        return crc32(data, seed)

    monkeypatch.setattr("tamiyo_jax.journal._frames.crc32", count)
    result = invoke("journal", "verify", str(run))
    assert result.exit_code in (0, 1)
    assert "records up to sequence" in result.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("config", "show"),
        ("config", "show", "--json"),
        ("journal", "dump", "{run}"),
        ("--version",),
    ],
    ids=" ".join,
)
def test_a_full_disk_behind_the_output_is_one_line(arguments: tuple[str, ...], run: Path) -> None:
    with Path("/dev/full").open("w") as full:
        result = run_command(
            *(argument.format(run=run) for argument in arguments),
            capture_output=False,
            stdout=full,
            stderr=subprocess.PIPE,
        )
    assert "No space left" in assert_one_line(result.returncode, result.stderr)


def test_a_reader_that_ends_early_is_no_error_message(run: Path) -> None:
    result = run_command(
        "journal",
        "dump",
        str(run),
        capture_output=False,
        stdout=closed_pipe(),
        stderr=subprocess.PIPE,
    )
    assert result.stderr == ""
    assert result.returncode == 1


def closed_pipe() -> int:
    reading, writing = os.pipe()
    os.close(reading)
    return writing


@pytest.mark.slow
def test_an_ascii_terminal_gets_escapes_and_no_traceback(tmp_path: Path) -> None:
    library = tmp_path / "b.db"
    file = tmp_path / "größe.json"
    file.write_text(blueprint_to_json(make_blueprint("größe←π", name="名前")), encoding="utf-8")
    ascii_only = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONUTF8": "0"}
    put = ("blueprint", "put", str(file), "--library", str(library))
    for arguments in (put, ("blueprint", "list", "--library", str(library))):
        result = run_command(*arguments, environment=ascii_only)
        assert result.returncode == 0, result.stderr
        assert "\\xf6" in result.stdout
    missing = run_command(
        "blueprint", "get", "π", "--library", str(library), environment=ascii_only
    )
    assert_one_line(missing.returncode, missing.stderr)


def test_ids_are_escaped_on_output_and_never_cut(tmp_path: Path) -> None:
    library = str(tmp_path / "b.db")
    file = tmp_path / "odd.json"
    long_id = ODD_ID + "x" * 150
    file.write_text(blueprint_to_json(make_blueprint(long_id)))
    results = [
        invoke("blueprint", "put", str(file), "--library", library),
        invoke("blueprint", "list", "--library", library),
        invoke("blueprint", "get", long_id + "?", "--library", library),
        invoke("blueprint", "validate", str(tmp_path / "odd.json")),
    ]
    for result in results:
        for stream in (result.stdout, result.stderr):
            assert "\x1b" not in stream
            assert "\u202e" not in stream
    assert escape_controls(long_id) in results[0].stdout
    assert escape_controls(long_id) in results[1].stdout
    assert len(results[2].stderr.splitlines()) == 1


def test_misuse_is_one_line_that_names_the_mistake() -> None:
    for arguments in (("dance",), ("journal", "dance"), ("demo", "--steps", "many"), ("replay",)):
        assert "--help" in assert_one_line(*invoke(*arguments)[::2])


def test_the_version_is_printed_and_json_is_shown_as_a_flag() -> None:
    assert invoke("--version").stdout.startswith("tamiyo-jax ")
    for command in (("config", "show"), ("journal", "dump"), ("status",)):
        (line,) = (
            line for line in invoke(*command, "--help").stdout.splitlines() if "--json" in line
        )
        assert "bool" not in line.lower()


def test_parameters_of_other_widths_are_refused_in_a_short_line_and_a_preset_fits_them(
    run: Path, tmp_path: Path
) -> None:
    import jax

    file = tmp_path / "small.safetensors"
    export_params(init_params(PolicyConfig.small(), jax.random.key(0)), file)
    library = tmp_path / "b.db"
    blueprint = tmp_path / "host.json"
    blueprint.write_text(blueprint_to_json(make_blueprint("host")))
    invoke("blueprint", "put", str(blueprint), "--library", str(library))
    question = ["replay", str(run), "--what-if", "--policy", "graph", "--params", str(file)]
    question += ["--library", str(library)]
    refused = invoke(*question)
    line = assert_one_line(refused.exit_code, refused.stderr)
    assert len(line.replace(str(file), "")) < 300
    assert "--policy-preset small" in line
    assert invoke(*question, "--policy-preset", "small").stderr.count("CheckpointMismatch") == 0


@pytest.mark.parametrize("variable", ["TAMIYO_RISK__LOSS_SPIKE", "TAMIYO_RISK_LOSS_SPIKE"])
def test_a_variable_with_an_underscore_too_few_is_named_as_a_mistake(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "0.2")
    result = invoke("config", "show")
    line = assert_one_line(result.exit_code, result.stderr)
    assert variable in line
    assert "TAMIYO__RISK__LOSS_SPIKE" in line


# A shell starts what runs in the background with SIGINT ignored, and children inherit it.
_WITH_SIGINT = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.argv[1], sys.argv[1:])
"""


@pytest.mark.slow
def test_ctrl_c_says_how_to_continue_and_a_resumed_run_keeps_its_steps(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    command = [sys.executable, "-m", "tamiyo_jax", "demo", "--directory", str(directory)]
    child = subprocess.Popen(
        [sys.executable, "-c", _WITH_SIGINT, *command, "--steps", "660"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    first = child.stdout.readline()
    assert "20 epochs" in first  # before the first epoch
    assert str(directory) in first
    until = time.monotonic() + 300
    while not list((directory / "checkpoints").glob("epoch-00001?")):
        assert time.monotonic() < until
        assert child.poll() is None
        time.sleep(0.1)
    child.send_signal(signal.SIGINT)
    try:
        _, stderr = child.communicate(timeout=120)
    finally:
        child.kill()
    assert "--resume" in assert_one_line(child.returncode, stderr)
    resumed = run_command_slowly([*command, "--resume", "--json"])
    assert resumed.returncode == 0, resumed.stderr
    assert len(json.loads(resumed.stdout)["grown"]["rows"]) == 20


def run_command_slowly(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
