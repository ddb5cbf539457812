from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Array(_message.Message):
    __slots__ = ("dtype", "shape", "data")
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    dtype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    data: bytes
    def __init__(self, dtype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., data: _Optional[bytes] = ...) -> None: ...

class Step(_message.Message):
    __slots__ = ("packet", "command", "blueprint_revision", "mask", "outputs", "report", "registry_additions", "state", "mode", "action", "closed_windows", "explanation")
    class MaskEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Array
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Array, _Mapping]] = ...) -> None: ...
    class OutputsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Array
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Array, _Mapping]] = ...) -> None: ...
    PACKET_FIELD_NUMBER: _ClassVar[int]
    COMMAND_FIELD_NUMBER: _ClassVar[int]
    BLUEPRINT_REVISION_FIELD_NUMBER: _ClassVar[int]
    MASK_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    REGISTRY_ADDITIONS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    CLOSED_WINDOWS_FIELD_NUMBER: _ClassVar[int]
    EXPLANATION_FIELD_NUMBER: _ClassVar[int]
    packet: bytes
    command: bytes
    blueprint_revision: int
    mask: _containers.MessageMap[str, Array]
    outputs: _containers.MessageMap[str, Array]
    report: bytes
    registry_additions: str
    state: str
    mode: str
    action: str
    closed_windows: _containers.RepeatedScalarFieldContainer[bytes]
    explanation: str
    def __init__(self, packet: _Optional[bytes] = ..., command: _Optional[bytes] = ..., blueprint_revision: _Optional[int] = ..., mask: _Optional[_Mapping[str, Array]] = ..., outputs: _Optional[_Mapping[str, Array]] = ..., report: _Optional[bytes] = ..., registry_additions: _Optional[str] = ..., state: _Optional[str] = ..., mode: _Optional[str] = ..., action: _Optional[str] = ..., closed_windows: _Optional[_Iterable[bytes]] = ..., explanation: _Optional[str] = ...) -> None: ...

class Unpublished(_message.Message):
    __slots__ = ("report_id", "sequence", "attempts", "not_before_ns")
    REPORT_ID_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    NOT_BEFORE_NS_FIELD_NUMBER: _ClassVar[int]
    report_id: str
    sequence: int
    attempts: int
    not_before_ns: int
    def __init__(self, report_id: _Optional[str] = ..., sequence: _Optional[int] = ..., attempts: _Optional[int] = ..., not_before_ns: _Optional[int] = ...) -> None: ...

class Policy(_message.Message):
    __slots__ = ("policy_id", "digest", "version")
    POLICY_ID_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    policy_id: str
    digest: str
    version: str
    def __init__(self, policy_id: _Optional[str] = ..., digest: _Optional[str] = ..., version: _Optional[str] = ...) -> None: ...

class Facts(_message.Message):
    __slots__ = ("publishing", "pending", "policies", "newest_report_ns", "settings")
    PUBLISHING_FIELD_NUMBER: _ClassVar[int]
    PENDING_FIELD_NUMBER: _ClassVar[int]
    POLICIES_FIELD_NUMBER: _ClassVar[int]
    NEWEST_REPORT_NS_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    publishing: bool
    pending: _containers.RepeatedCompositeFieldContainer[Unpublished]
    policies: _containers.RepeatedCompositeFieldContainer[Policy]
    newest_report_ns: int
    settings: str
    def __init__(self, publishing: _Optional[bool] = ..., pending: _Optional[_Iterable[_Union[Unpublished, _Mapping]]] = ..., policies: _Optional[_Iterable[_Union[Policy, _Mapping]]] = ..., newest_report_ns: _Optional[int] = ..., settings: _Optional[str] = ...) -> None: ...

class Snapshot(_message.Message):
    __slots__ = ("state", "facts")
    STATE_FIELD_NUMBER: _ClassVar[int]
    FACTS_FIELD_NUMBER: _ClassVar[int]
    state: str
    facts: Facts
    def __init__(self, state: _Optional[str] = ..., facts: _Optional[_Union[Facts, _Mapping]] = ...) -> None: ...

class Restore(_message.Message):
    __slots__ = ("state", "origin", "facts")
    STATE_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    FACTS_FIELD_NUMBER: _ClassVar[int]
    state: str
    origin: str
    facts: Facts
    def __init__(self, state: _Optional[str] = ..., origin: _Optional[str] = ..., facts: _Optional[_Union[Facts, _Mapping]] = ...) -> None: ...

class Operator(_message.Message):
    __slots__ = ("action", "detail", "state")
    ACTION_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    action: str
    detail: str
    state: str
    def __init__(self, action: _Optional[str] = ..., detail: _Optional[str] = ..., state: _Optional[str] = ...) -> None: ...

class Publication(_message.Message):
    __slots__ = ("report_id", "attempts", "not_before_ns")
    REPORT_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    NOT_BEFORE_NS_FIELD_NUMBER: _ClassVar[int]
    report_id: str
    attempts: int
    not_before_ns: int
    def __init__(self, report_id: _Optional[str] = ..., attempts: _Optional[int] = ..., not_before_ns: _Optional[int] = ...) -> None: ...

class PolicyUpdate(_message.Message):
    __slots__ = ("policy", "state")
    POLICY_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    policy: Policy
    state: str
    def __init__(self, policy: _Optional[_Union[Policy, _Mapping]] = ..., state: _Optional[str] = ...) -> None: ...
