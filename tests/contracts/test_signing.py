from __future__ import annotations

import copy
import dataclasses
import json
import pickle
from pathlib import Path

import message_strategies as strategies
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tamiyo_jax.config import SecurityConfig, TamiyoConfig
from tamiyo_jax.contracts import (
    AdaptationCommand,
    CommandType,
    NonceLedger,
    PolicyUpdate,
    Secret,
    Verifier,
    decode_command,
    decode_policy_update,
    encode_command,
    encode_policy_update,
    sign,
    sign_bytes,
    sign_update,
    signature_of,
    verify,
    verify_bytes,
    verify_update,
)
from tamiyo_jax.errors import (
    ConfigurationError,
    MissingSecretError,
    ReplayError,
    SignatureError,
    StaleMessageError,
    TamiyoError,
)

SECOND = 1_000_000_000
NOW = 1_700_000_000 * SECOND
SECRET = Secret("a secret of enough bytes")
OTHER = Secret(b"another secret of enough bytes")
CONFIG = SecurityConfig()
LEDGER = NonceLedger(started_ns=NOW - 3600 * SECOND)
COMMAND = AdaptationCommand(
    "c-1", CommandType.PAUSE, NOW, 5, annotations={"risk_reason": "loss_spike"}
)


def check(command: AdaptationCommand, now: int = NOW, ledger: NonceLedger = LEDGER) -> NonceLedger:
    return verify(command, [SECRET], now, ledger, CONFIG)


def signed(**changes: object) -> AdaptationCommand:
    return sign(dataclasses.replace(COMMAND, **changes), SECRET)


@pytest.fixture
def golden_command(golden: Path) -> tuple[bytes, Secret]:
    secret = json.loads((golden / "leyline.json").read_text())["secret"]
    return (golden / "leyline_command_signed.bin").read_bytes(), Secret(secret)


def test_the_golden_command_verifies(golden_command: tuple[bytes, Secret]) -> None:
    data, secret = golden_command
    command = decode_command(data)
    assert signature_of(command, secret) == command.annotations["signature"]
    assert sign(command, secret) == command
    ledger = verify(command, [secret], command.issued_at_ns, NonceLedger(0), CONFIG)
    assert list(ledger.accepted) == [command.command_id]


def test_no_flipped_bit_of_the_golden_command_verifies(
    golden_command: tuple[bytes, Secret],
) -> None:
    data, secret = golden_command
    issued = decode_command(data).issued_at_ns
    for position in range(len(data)):
        for bit in range(8):
            changed = bytearray(data)
            changed[position] ^= 1 << bit
            with pytest.raises(TamiyoError):
                verify(decode_command(bytes(changed)), [secret], issued, NonceLedger(0), CONFIG)


def test_no_byte_can_be_left_out_of_the_golden_command(
    golden_command: tuple[bytes, Secret],
) -> None:
    data, secret = golden_command
    issued = decode_command(data).issued_at_ns
    for position in range(len(data)):
        changed = data[:position] + data[position + 1 :]
        with pytest.raises(TamiyoError):
            verify(decode_command(changed), [secret], issued, NonceLedger(0), CONFIG)


@given(command=strategies.commands)
def test_a_signature_survives_the_wire(command: AdaptationCommand) -> None:
    sent = encode_command(sign(command, SECRET))
    arrived = decode_command(sent)
    assert signature_of(arrived, SECRET) == arrived.annotations["signature"]
    assert signature_of(arrived, OTHER) != arrived.annotations["signature"]


def test_signing_twice_is_signing_once() -> None:
    assert sign(signed(), SECRET) == signed()
    assert sign(sign(COMMAND, OTHER), SECRET) == signed()


def test_a_previous_secret_verifies_while_it_is_listed() -> None:
    old = sign(COMMAND, OTHER)
    assert verify(old, [SECRET, OTHER], NOW, LEDGER, CONFIG).accepted == {"c-1": NOW}
    for secrets in ([SECRET], []):
        with pytest.raises(SignatureError):
            verify(old, secrets, NOW, LEDGER, CONFIG)


@pytest.mark.parametrize("signature", ["", "é", "\ud800", "AAAA"])
def test_a_missing_or_foreign_signature_is_refused(signature: str) -> None:
    forged = dataclasses.replace(COMMAND, annotations={"signature": signature})
    with pytest.raises(SignatureError):
        check(forged)
    with pytest.raises(SignatureError, match="unsigned"):
        check(COMMAND)


def test_a_changed_annotation_breaks_the_signature() -> None:
    command = signed()
    annotations = {**command.annotations, "risk_reason": "none"}
    with pytest.raises(SignatureError):
        check(dataclasses.replace(command, annotations=annotations))


def test_a_command_is_accepted_once() -> None:
    ledger = check(signed())
    with pytest.raises(ReplayError, match="c-1"):
        check(signed(), NOW + SECOND, ledger)
    assert list(check(signed(command_id="c-2"), NOW, ledger).accepted) == ["c-1", "c-2"]
    assert LEDGER.accepted == {}


@pytest.mark.parametrize(
    ("changes", "error", "word"),
    [
        ({"command_id": ""}, ReplayError, "command_id"),
        ({"issued_at_ns": None}, StaleMessageError, "issued_at"),
        ({"issued_at_ns": NOW + 5 * SECOND + 1}, StaleMessageError, "future"),
        ({"issued_at_ns": NOW - 60 * SECOND - 1}, StaleMessageError, "limit"),
        ({"issued_at_ns": NOW - 7200 * SECOND}, StaleMessageError, "limit"),
    ],
)
def test_a_command_without_id_or_outside_its_time_is_refused(
    changes: dict[str, object], error: type[TamiyoError], word: str
) -> None:
    with pytest.raises(error, match=word):
        check(signed(**changes))


@pytest.mark.parametrize("offset", [5 * SECOND, -60 * SECOND])
def test_the_limits_of_age_are_within_them(offset: int) -> None:
    assert "c-1" in check(signed(issued_at_ns=NOW + offset)).accepted


def test_checks_come_in_their_order() -> None:
    accepted = check(signed())
    # Each command also fails at every check that comes later.
    empty = {"command_id": "", "issued_at_ns": None}
    with pytest.raises(SignatureError):
        check(dataclasses.replace(COMMAND, **empty))
    with pytest.raises(ReplayError, match="empty"):
        check(signed(**empty))
    with pytest.raises(ReplayError, match="before"):
        check(signed(issued_at_ns=None), ledger=accepted)
    with pytest.raises(StaleMessageError, match="no issued_at"):
        check(signed(issued_at_ns=None))


def test_a_restart_opens_no_replay_window() -> None:
    fresh = signed(issued_at_ns=NOW - SECOND)
    with pytest.raises(StaleMessageError, match="started"):
        check(fresh, NOW, NonceLedger(started_ns=NOW))


def test_an_id_is_remembered_for_the_window_and_then_forgotten() -> None:
    ledger = check(signed())
    at_the_end, after = (NOW + 300 * SECOND, NOW + 300 * SECOND + 1)
    with pytest.raises(ReplayError):
        check(signed(issued_at_ns=at_the_end), at_the_end, ledger)
    later = check(signed(command_id="c-2", issued_at_ns=after), after, ledger)
    assert list(later.accepted) == ["c-2"]


def test_a_clock_that_runs_backwards_forgets_nothing() -> None:
    ledger = check(signed())
    earlier = NOW - 30 * SECOND
    ledger = check(signed(command_id="c-2", issued_at_ns=earlier), earlier, ledger)
    with pytest.raises(ReplayError):
        check(signed(), NOW, ledger)


def test_a_full_ledger_refuses_and_never_forgets_early() -> None:
    small = SecurityConfig(nonce_capacity=2)
    ledger = LEDGER
    for name in ("a", "b"):
        ledger = verify(signed(command_id=name), [SECRET], NOW, ledger, small)
    with pytest.raises(ReplayError, match="capacity"):
        verify(signed(command_id="c"), [SECRET], NOW, ledger, small)
    later = NOW + 301 * SECOND
    fresh = signed(command_id="c", issued_at_ns=later)
    assert list(verify(fresh, [SECRET], later, ledger, small).accepted) == ["c"]


@given(offsets=st.lists(st.integers(0, 400), min_size=1, max_size=30))
def test_whatever_the_times_no_command_passes_twice(offsets: list[int]) -> None:
    ledger, now = LEDGER, NOW
    passed = []
    for index, offset in enumerate(offsets):
        now += offset * SECOND
        command = signed(command_id=f"c-{index}", issued_at_ns=now)
        ledger = check(command, now, ledger)
        passed.append(command)
        for earlier in passed:
            with pytest.raises((ReplayError, StaleMessageError)):
                check(earlier, now, ledger)


def test_a_window_shorter_than_the_age_limit_is_refused() -> None:
    with pytest.raises(ValueError, match="nonce_window_s"):
        SecurityConfig(nonce_window_s=64.0)
    with pytest.raises(ConfigurationError, match="nonce_window_s"):
        TamiyoConfig.load(security={"nonce_window_s": 10.0})


def test_a_verifier_gives_the_next_verifier_and_stays_as_it_is() -> None:
    first = Verifier((SECRET,), LEDGER, CONFIG)
    second = first.verify(signed(), now_ns=NOW)
    assert first.ledger == LEDGER
    with pytest.raises(ReplayError):
        second.verify(signed(), now_ns=NOW)


def test_a_secret_is_hidden_from_repr_and_pickle() -> None:
    secret = Secret("hunter2 hunter2 hunter2")
    for shown in (
        repr(secret),
        str(secret),
        f"{secret}",
        repr(Verifier((secret,), LEDGER, CONFIG)),
    ):
        assert "hunter2" not in shown
    for copier in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="not pickled"):
            copier(secret)


def test_a_short_secret_is_refused_where_strength_is_asked_for() -> None:
    Secret(b"x" * 16).check_strength()
    with pytest.raises(MissingSecretError, match="16"):
        Secret(b"x" * 15).check_strength()


@given(data=st.binary(max_size=40), position=st.integers(0), bit=st.integers(0, 7))
def test_signed_bytes_verify_until_they_change(data: bytes, position: int, bit: int) -> None:
    signature = sign_bytes(data, SECRET)
    verify_bytes(data, signature, [OTHER, SECRET])
    changed = bytearray(data + b"\0")
    changed[position % len(changed)] ^= 1 << bit
    with pytest.raises(SignatureError):
        verify_bytes(bytes(changed), signature, [OTHER, SECRET])


def test_a_policy_update_verifies_after_the_wire_until_it_changes() -> None:
    update = sign_update(PolicyUpdate("p", "run", NOW, "v2", b"weights", "digest"), SECRET)
    arrived = decode_policy_update(encode_policy_update(update))
    verify_update(arrived, [SECRET])
    assert sign_update(arrived, SECRET) == update
    for changes in ({"payload": b"Weights"}, {"policy_version": "v3"}, {"signature": ""}):
        with pytest.raises(SignatureError):
            verify_update(dataclasses.replace(arrived, **changes), [SECRET])
