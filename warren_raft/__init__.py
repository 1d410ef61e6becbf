"""The public face of warren_raft: names only, each loaded from its module when it is first used.

No code and no state live here. Invariant: `import warren_raft` does no I/O and loads none of
asyncio, pysyncobj, aiohttp, lmdb, cbor2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .alarms import Alarm as Alarm
    from .config import Config as Config
    from .describing import Description as Description
    from .entities import AccessControl as AccessControl
    from .entities import Container as Container
    from .entities import ContainerState as ContainerState
    from .entities import DeployStrategy as DeployStrategy
    from .entities import Entity as Entity
    from .entities import HeaderManipulation as HeaderManipulation
    from .entities import HealthCheck as HealthCheck
    from .entities import HealthCheckType as HealthCheckType
    from .entities import HealthStatus as HealthStatus
    from .entities import Ingress as Ingress
    from .entities import IngressBackend as IngressBackend
    from .entities import IngressPath as IngressPath
    from .entities import IngressRule as IngressRule
    from .entities import IngressTLS as IngressTLS
    from .entities import Network as Network
    from .entities import Node as Node
    from .entities import NodeResources as NodeResources
    from .entities import NodeRole as NodeRole
    from .entities import NodeStatus as NodeStatus
    from .entities import PathRewrite as PathRewrite
    from .entities import PathType as PathType
    from .entities import PortMapping as PortMapping
    from .entities import PublishMode as PublishMode
    from .entities import RateLimit as RateLimit
    from .entities import ResourceRequirements as ResourceRequirements
    from .entities import RestartCondition as RestartCondition
    from .entities import RestartPolicy as RestartPolicy
    from .entities import Secret as Secret
    from .entities import Service as Service
    from .entities import ServiceMode as ServiceMode
    from .entities import TLSCertificate as TLSCertificate
    from .entities import UpdateConfig as UpdateConfig
    from .entities import Volume as Volume
    from .entities import VolumeMount as VolumeMount
    from .errors import Closed as Closed
    from .errors import Corrupted as Corrupted
    from .errors import InUse as InUse
    from .errors import InvalidEntity as InvalidEntity
    from .errors import InvariantViolation as InvariantViolation
    from .errors import Misuse as Misuse
    from .errors import NotFound as NotFound
    from .errors import RefusedForSafety as RefusedForSafety
    from .errors import RevisionConflict as RevisionConflict
    from .errors import SnapshotInvalid as SnapshotInvalid
    from .errors import StorageFull as StorageFull
    from .errors import Unavailable as Unavailable
    from .errors import WarrenError as WarrenError
    from .errors import WatchLost as WatchLost
    from .forms import FrozenMap as FrozenMap
    from .local import LocalStore as LocalStore
    from .local import ReadOnlyStore as ReadOnlyStore
    from .maintenance import describe as describe
    from .maintenance import inspect as inspect
    from .maintenance import recover as recover
    from .maintenance import verify as verify
    from .manager import ReplicatedStore as ReplicatedStore
    from .restoring import Restored as Restored
    from .restoring import restore as restore
    from .results import CertificateStatus as CertificateStatus
    from .results import Fetching as Fetching
    from .results import MemberAlarm as MemberAlarm
    from .results import MemberStatus as MemberStatus
    from .results import OwnSnapshot as OwnSnapshot
    from .results import Status as Status
    from .results import Verdict as Verdict
    from .snapshots.file import SnapshotInfo as SnapshotInfo
    from .store.interface import Batch as Batch
    from .store.interface import Reader as Reader
    from .store.interface import Store as Store
    from .store.interface import View as View
    from .store.interface import Writer as Writer

    __version__: str

# Module -> the public names in it. The imports above list the same names for type checkers and editors;
# tests/unit/test_package.py checks that both lists agree and that no name is missing.
_MODULES: dict[str, tuple[str, ...]] = {
    "alarms": ("Alarm",),
    "config": ("Config",),
    "entities": (
        "AccessControl",
        "Container",
        "ContainerState",
        "DeployStrategy",
        "Entity",
        "HeaderManipulation",
        "HealthCheck",
        "HealthCheckType",
        "HealthStatus",
        "Ingress",
        "IngressBackend",
        "IngressPath",
        "IngressRule",
        "IngressTLS",
        "Network",
        "Node",
        "NodeResources",
        "NodeRole",
        "NodeStatus",
        "PathRewrite",
        "PathType",
        "PortMapping",
        "PublishMode",
        "RateLimit",
        "ResourceRequirements",
        "RestartCondition",
        "RestartPolicy",
        "Secret",
        "Service",
        "ServiceMode",
        "TLSCertificate",
        "UpdateConfig",
        "Volume",
        "VolumeMount",
    ),
    "errors": (
        "Closed",
        "Corrupted",
        "InUse",
        "InvalidEntity",
        "InvariantViolation",
        "Misuse",
        "NotFound",
        "RefusedForSafety",
        "RevisionConflict",
        "SnapshotInvalid",
        "StorageFull",
        "Unavailable",
        "WarrenError",
        "WatchLost",
    ),
    "forms": ("FrozenMap",),
    "local": ("LocalStore", "ReadOnlyStore"),
    "manager": ("ReplicatedStore",),
    "describing": ("Description",),
    "maintenance": ("describe", "inspect", "recover", "verify"),
    "restoring": ("Restored", "restore"),
    "snapshots.file": ("SnapshotInfo",),
    "results": (
        "CertificateStatus",
        "Fetching",
        "MemberAlarm",
        "MemberStatus",
        "OwnSnapshot",
        "Status",
        "Verdict",
    ),
    "store.interface": ("Batch", "Reader", "Store", "View", "Writer"),
}
_HOME: dict[str, str] = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [*sorted(_HOME), "__version__"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("warren-raft")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value  # so that the next use does not call this function
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
