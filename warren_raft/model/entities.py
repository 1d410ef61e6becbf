"""The parts of a cluster's state: the entities, their enumerations, and `validate`.

Not here: the forms of fields (forms.py), the check of a value (validation.py), the bytes of an entity (each format).
Invariant: only `id` has no default, `revision` comes last, and fields are only ever appended before it.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final, TypeVar, cast

from warren_raft.errors import InvalidEntity
from warren_raft.model.forms import EMPTY_MAP, INTEGER_MIN, within
from warren_raft.model.forms import FrozenMap as FrozenMap
from warren_raft.model.validation import Refused, normalised

NO_DURATION: Final = timedelta(0)


class NodeRole(StrEnum):
    """The purpose of a node."""

    MANAGER = "manager"
    WORKER = "worker"
    HYBRID = "hybrid"


class NodeStatus(StrEnum):
    """Whether a node takes work."""

    READY = "ready"
    DOWN = "down"
    DRAINING = "draining"
    UNKNOWN = "unknown"


class ServiceMode(StrEnum):
    """How many containers a service has: a number of replicas, or one a node."""

    REPLICATED = "replicated"
    GLOBAL = "global"


class DeployStrategy(StrEnum):
    """How an update of a service reaches its containers."""

    ROLLING = "rolling"
    BLUE_GREEN = "blue-green"
    CANARY = "canary"


class PublishMode(StrEnum):
    """The place where a port is published: on the container's own host, or on every host."""

    HOST = "host"
    INGRESS = "ingress"


class HealthCheckType(StrEnum):
    """The way in which a container's health is checked."""

    HTTP = "http"
    TCP = "tcp"
    EXEC = "exec"


class RestartCondition(StrEnum):
    """When a container that ended is started again."""

    NEVER = "never"
    ON_FAILURE = "on-failure"
    ALWAYS = "always"


class ContainerState(StrEnum):
    """The state of a container in its life, wanted or actual."""

    PENDING = "pending"
    RUNNING = "running"
    FAILED = "failed"
    COMPLETE = "complete"
    SHUTDOWN = "shutdown"


class PathType(StrEnum):
    """How the path of an ingress rule is compared."""

    PREFIX = "Prefix"
    EXACT = "Exact"


def _indexed(default: object = dataclasses.MISSING) -> Any:
    """A field by which the store looks up entities: its values are keys of an index, at most KEY_MAX_BYTES long."""
    return field(default=default, metadata={"indexed": True})


def _concealed(default: object = b"") -> Any:
    """A field that holds, or often holds, secrets. It must not appear in logs and tracebacks."""
    return field(default=default, repr=False)


def _percent() -> Any:
    return within(0, 100)


def _port() -> Any:
    """A port; 0 if it is not set."""
    return within(0, 65_535)


def _revision() -> Any:
    """The revision of the entity's last change: set by reads, ignored by writes and by `==`."""
    return field(default=0, compare=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeResources:
    """The resources of a node and the allocated part of them: CPU in cores, memory and disk in bytes.

    `cpu_allocated` may be very slightly below 0, because callers add and subtract fractions of a core.
    """

    cpu_cores: int = 0
    memory_bytes: int = 0
    disk_bytes: int = 0
    cpu_allocated: float = within(-1e-6, default=0.0)
    memory_allocated: int = 0
    disk_allocated: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    """A machine of the cluster."""

    id: str = _indexed()
    role: NodeRole | str = ""
    address: str = ""
    overlay_ip: str = ""
    hostname: str = ""
    labels: Mapping[str, str] = EMPTY_MAP
    resources: NodeResources | None = None
    status: NodeStatus | str = ""
    last_heartbeat: datetime | None = None
    created_at: datetime | None = None
    revision: int = _revision()


@dataclass(frozen=True, kw_only=True, slots=True)
class UpdateConfig:
    """How a service is updated. Weights, steps and the threshold are percentages."""

    parallelism: int = 0
    delay: timedelta = NO_DURATION
    failure_action: str = ""
    max_surge: int = 0
    max_unavailable: int = 0
    health_check_grace_period: timedelta = NO_DURATION
    canary_weight: int = _percent()
    canary_steps: tuple[int, ...] = within(0, 100, default=())
    canary_stability_window: timedelta = NO_DURATION
    blue_green_grace_period: timedelta = NO_DURATION
    auto_rollback_enabled: bool = False
    failure_threshold_percent: int = _percent()


@dataclass(frozen=True, kw_only=True, slots=True)
class PortMapping:
    """A port of a container and the place where it can be reached."""

    name: str = ""
    container_port: int = _port()
    host_port: int = _port()
    protocol: str = ""
    publish_mode: PublishMode | str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class VolumeMount:
    """A volume (by name) and the path at which containers see it."""

    source: str = ""
    target: str = ""
    read_only: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class HealthCheck:
    """How health is checked: `endpoint` for http and tcp, `command` for exec."""

    type: HealthCheckType | str = ""
    endpoint: str = ""
    command: tuple[str, ...] = ()
    interval: timedelta = NO_DURATION
    timeout: timedelta = NO_DURATION
    retries: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class HealthStatus:
    """The result of the last health check."""

    healthy: bool = False
    message: str = ""
    checked_at: datetime | None = None
    consecutive_failures: int = 0
    consecutive_successes: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class RestartPolicy:
    """When, how often and after which pause a container is started again."""

    condition: RestartCondition | str = ""
    max_attempts: int = 0
    delay: timedelta = NO_DURATION


@dataclass(frozen=True, kw_only=True, slots=True)
class ResourceRequirements:
    """The limits of a container and its reserved resources. CPU in cores, memory in bytes."""

    cpu_limit: float = 0.0
    memory_limit: int = 0
    cpu_reservation: float = 0.0
    memory_reservation: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Service:
    """A workload that a user wants to run. `stop_timeout` is a whole number of seconds, as in Warren."""

    id: str = _indexed()
    name: str = _indexed("")
    image: str = ""
    replicas: int = 0
    mode: ServiceMode | str = ""
    deploy_strategy: DeployStrategy | str = ""
    update_config: UpdateConfig | None = None
    env: tuple[str, ...] = _concealed(())
    ports: tuple[PortMapping, ...] = ()
    networks: tuple[str, ...] = ()
    secrets: tuple[str, ...] = ()
    volumes: tuple[VolumeMount, ...] = ()
    labels: Mapping[str, str] = EMPTY_MAP
    health_check: HealthCheck | None = None
    restart_policy: RestartPolicy | None = None
    resources: ResourceRequirements | None = None
    stop_timeout: int = 0
    created_at: datetime | None = None
    updated_at: datetime | None = None
    revision: int = _revision()


@dataclass(frozen=True, kw_only=True, slots=True)
class Container:
    """One running instance of a service. `stop_timeout` is a whole number of seconds, as in Warren.

    `exit_code` may be negative: Go reports -1 for a process that was ended by a signal.
    """

    id: str = _indexed()
    service_id: str = _indexed("")
    service_name: str = ""
    node_id: str = _indexed("")
    container_id: str = ""
    desired_state: ContainerState | str = ""
    actual_state: ContainerState | str = ""
    image: str = ""
    env: tuple[str, ...] = _concealed(())
    ports: tuple[PortMapping, ...] = ()
    mounts: tuple[VolumeMount, ...] = ()
    secrets: tuple[str, ...] = ()
    health_check: HealthCheck | None = None
    health_status: HealthStatus | None = None
    restart_policy: RestartPolicy | None = None
    resources: ResourceRequirements | None = None
    stop_timeout: int = 0
    created_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    exit_code: int = within(INTEGER_MIN)
    error: str = ""
    revision: int = _revision()


@dataclass(frozen=True, kw_only=True, slots=True)
class Secret:
    """Sensitive data. The caller encrypts it before it calls the store."""

    id: str = _indexed()
    name: str = _indexed("")
    data: bytes = _concealed()
    created_at: datetime | None = None
    updated_at: datetime | None = None
    revision: int = _revision()


@dataclass(frozen=True, kw_only=True, slots=True)
class Volume:
    """Storage that outlives containers."""

    id: str = _indexed()
    name: str = _indexed("")
    driver: str = ""
    node_id: str = ""
    mount_path: str = ""
    options: Mapping[str, str] = _concealed(EMPTY_MAP)
    created_at: datetime | None = None
    revision: int = _revision()


@dataclass(frozen=True, kw_only=True, slots=True)
class Network:
    """An overlay network."""

    id: str = _indexed()
    name: str = ""
    subnet: str = ""
    gateway: str = ""
    driver: str = ""
    revision: int = _revision()


@dataclass(frozen=True, kw_only=True, slots=True)
class IngressBackend:
    """The service, by name, that receives a request."""

    service_name: str = ""
    port: int = _port()


@dataclass(frozen=True, kw_only=True, slots=True)
class PathRewrite:
    """How a request's path is changed on its way to the backend."""

    strip_prefix: str = ""
    replace_path: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class HeaderManipulation:
    """How a request's headers are changed on its way to the backend."""

    add: Mapping[str, str] = EMPTY_MAP
    set: Mapping[str, str] = EMPTY_MAP
    remove: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class RateLimit:
    """How many requests are allowed."""

    requests_per_second: float = 0.0
    burst: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class AccessControl:
    """Which addresses (or networks, as CIDR) are allowed."""

    allowed_ips: tuple[str, ...] = ()
    denied_ips: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class IngressPath:
    """A path, and the handling of requests to it."""

    path: str = ""
    path_type: PathType | str = ""
    backend: IngressBackend | None = None
    rewrite: PathRewrite | None = None
    headers: HeaderManipulation | None = None
    rate_limit: RateLimit | None = None
    access_control: AccessControl | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class IngressRule:
    """A host and its paths."""

    host: str = ""
    paths: tuple[IngressPath, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class IngressTLS:
    """How an ingress is served over TLS."""

    enabled: bool = False
    secret_name: str = ""
    hosts: tuple[str, ...] = ()
    auto_tls: bool = False
    email: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ingress:
    """How requests from outside reach services."""

    id: str = _indexed()
    name: str = _indexed("")
    rules: tuple[IngressRule, ...] = ()
    tls: IngressTLS | None = None
    labels: Mapping[str, str] = EMPTY_MAP
    created_at: datetime | None = None
    updated_at: datetime | None = None
    revision: int = _revision()


@dataclass(frozen=True, kw_only=True, slots=True)
class TLSCertificate:
    """A certificate for hosts (`*.example.com` is a wildcard). The key is encrypted by the caller."""

    id: str = _indexed()
    name: str = _indexed("")
    hosts: tuple[str, ...] = _indexed(())
    cert_pem: bytes = b""
    key_pem: bytes = _concealed()
    issuer: str = ""
    not_before: datetime | None = None
    not_after: datetime | None = None
    auto_renew: bool = False
    labels: Mapping[str, str] = EMPTY_MAP
    created_at: datetime | None = None
    updated_at: datetime | None = None
    revision: int = _revision()


Entity = Node | Service | Container | Secret | Volume | Network | Ingress | TLSCertificate
EntityT = TypeVar("EntityT", bound=Entity)

ENTITY_CLASSES: Final[Mapping[str, type[Entity]]] = types.MappingProxyType(
    {
        "node": Node,
        "service": Service,
        "container": Container,
        "secret": Secret,
        "volume": Volume,
        "network": Network,
        "ingress": Ingress,
        "certificate": TLSCertificate,
    }
)
"""The class of each kind, by the kind's name. (The CA is a kind too, but plain bytes.)"""

_KIND_NAMES: Final[dict[type, str]] = {cls: name for name, cls in ENTITY_CLASSES.items()}


def kind_name(cls: type) -> str:
    """The name of the kind with this class. Raises InvalidEntity if there is none."""
    try:
        return _KIND_NAMES[cls]
    except KeyError:
        raise InvalidEntity("entity", f"{cls.__name__} is not the class of an entity") from None


def validate(entity: EntityT) -> EntityT:
    """The entity in the form in which it is stored: the same object if it already has this form, else a normalised
    copy.

    These values are converted: list to tuple, mapping to FrozenMap, int to float where a float is declared, aware times
    to UTC, Go's zero time to None, a subclass of str to str (a member of the field's enumeration stays). `revision` is
    neither checked nor changed.

    Raises InvalidEntity, with the dotted path of the field (`rules[0].paths[1].path_type`), for: a wrong type (a bool
    is not an int), an empty id, an id or indexed field over KEY_MAX_BYTES, an unknown member of an enumeration (""
    means not set), a naive time, text without a UTF-8 form, a number that is not finite or does not fit, and an
    impossible number: a count, a size or a duration below 0, a port above 65535, a percentage above 100. Thread-safe.
    """
    kind = kind_name(type(entity))
    try:
        return cast(EntityT, normalised(entity))
    except Refused as refused:
        identity = entity.id if isinstance(entity.id, str) else None
        raise InvalidEntity(kind, refused.reason, id=identity, field=refused.path) from None
