"""The state of a container orchestrator's cluster, the same on every manager. All public names are here.

Begin with a store in one process, without a cluster:

    import warren_raft as wr

    with wr.LocalStore("state") as store:                        # a directory; it is made
        store.create_node(wr.Node(id="node-1", hostname="a"))    # on disk when the call returns
        node = store.get_node("node-1")                          # raises NotFound if there is none
        with store.batch() as batch:                             # all of it or nothing
            batch.create_service(wr.Service(id="svc-1", name="web", replicas=3))
            batch.create_container(wr.Container(id="con-1", service_id="svc-1", node_id=node.id))

A manager of a cluster has the same methods. This one begins a cluster of one; `members` has all managers if there are
more:

    config = wr.Config(
        node_id="m1", data_dir="data/m1", listen="127.0.0.1:7946", members={"m1": "127.0.0.1:7946"}
    )
    with wr.ReplicatedStore(config) as store:
        store.wait_ready(timeout=30)
        store.create_node(wr.Node(id="node-1", hostname="a"))    # on the disks of a majority when the call returns
        store.barrier()                                          # reads after it see every acknowledged write

Further: `help(warren_raft.Reader)` and `help(warren_raft.Writer)` have the reads and writes, `Store` the other methods
of both stores, `Lead` the writes of a program that acts while its manager leads, `Watch` the changes as they happen.
`ReadOnlyStore` reads beside a manager. All errors are under `WarrenError`. docs/python.md lists all names in the order
in which a program needs them, and docs/embedding.md shows how they work together.

No code and no state live here: each name is loaded from its module when it is first used. Invariant: `import
warren_raft` does no I/O and loads none of asyncio, pysyncobj, aiohttp, lmdb, cbor2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .aio.leading import AsyncLead as AsyncLead
    from .aio.store import AsyncStore as AsyncStore
    from .aio.watch import AsyncWatch as AsyncWatch
    from .aio.writing import AsyncBatch as AsyncBatch
    from .alarms import Alarm as Alarm
    from .config import Config as Config
    from .data_dir.description import Description as Description
    from .data_dir.joining import config_from_join as config_from_join
    from .errors import Closed as Closed
    from .errors import Corrupted as Corrupted
    from .errors import InUse as InUse
    from .errors import InvalidConfig as InvalidConfig
    from .errors import InvalidEntity as InvalidEntity
    from .errors import InvariantViolation as InvariantViolation
    from .errors import LeadershipLost as LeadershipLost
    from .errors import Misuse as Misuse
    from .errors import NotFound as NotFound
    from .errors import RefusedForSafety as RefusedForSafety
    from .errors import RevisionConflict as RevisionConflict
    from .errors import SnapshotInvalid as SnapshotInvalid
    from .errors import StorageFull as StorageFull
    from .errors import Unavailable as Unavailable
    from .errors import WarrenError as WarrenError
    from .errors import WatchLost as WatchLost
    from .leadership.lead import Lead as Lead
    from .local.read_only import ReadOnlyStore as ReadOnlyStore
    from .local.store import LocalStore as LocalStore
    from .maintenance import describe as describe
    from .maintenance import inspect as inspect
    from .maintenance import recover as recover
    from .maintenance import verify as verify
    from .manager.store import ReplicatedStore as ReplicatedStore
    from .model.entities import AccessControl as AccessControl
    from .model.entities import Container as Container
    from .model.entities import ContainerState as ContainerState
    from .model.entities import DeployStrategy as DeployStrategy
    from .model.entities import Entity as Entity
    from .model.entities import HeaderManipulation as HeaderManipulation
    from .model.entities import HealthCheck as HealthCheck
    from .model.entities import HealthCheckType as HealthCheckType
    from .model.entities import HealthStatus as HealthStatus
    from .model.entities import Ingress as Ingress
    from .model.entities import IngressBackend as IngressBackend
    from .model.entities import IngressPath as IngressPath
    from .model.entities import IngressRule as IngressRule
    from .model.entities import IngressTLS as IngressTLS
    from .model.entities import Network as Network
    from .model.entities import Node as Node
    from .model.entities import NodeResources as NodeResources
    from .model.entities import NodeRole as NodeRole
    from .model.entities import NodeStatus as NodeStatus
    from .model.entities import PathRewrite as PathRewrite
    from .model.entities import PathType as PathType
    from .model.entities import PortMapping as PortMapping
    from .model.entities import PublishMode as PublishMode
    from .model.entities import RateLimit as RateLimit
    from .model.entities import ResourceRequirements as ResourceRequirements
    from .model.entities import RestartCondition as RestartCondition
    from .model.entities import RestartPolicy as RestartPolicy
    from .model.entities import Secret as Secret
    from .model.entities import Service as Service
    from .model.entities import ServiceMode as ServiceMode
    from .model.entities import TLSCertificate as TLSCertificate
    from .model.entities import UpdateConfig as UpdateConfig
    from .model.entities import Volume as Volume
    from .model.entities import VolumeMount as VolumeMount
    from .model.forms import FrozenMap as FrozenMap
    from .model.json_form import from_json as from_json
    from .model.json_form import to_json as to_json
    from .recovery.restore import Restored as Restored
    from .recovery.restore import restore as restore
    from .results import CertificateStatus as CertificateStatus
    from .results import Fetching as Fetching
    from .results import ForeignRead as ForeignRead
    from .results import MemberAlarm as MemberAlarm
    from .results import MemberStatus as MemberStatus
    from .results import OwnSnapshot as OwnSnapshot
    from .results import Status as Status
    from .results import Verdict as Verdict
    from .snapshots.file import SnapshotInfo as SnapshotInfo
    from .store.events import Event as Event
    from .store.interface import Batch as Batch
    from .store.interface import Reader as Reader
    from .store.interface import View as View
    from .store.interface import Writer as Writer
    from .store.watch import Watch as Watch
    from .store_interface import Store as Store

    __version__: str

# Module -> the public names in it. The imports above list the same names for type checkers and editors;
# tests/unit/test_package.py checks that both lists agree and that no name is missing.
_MODULES: dict[str, tuple[str, ...]] = {
    "aio.leading": ("AsyncLead",),
    "aio.store": ("AsyncStore",),
    "aio.watch": ("AsyncWatch",),
    "aio.writing": ("AsyncBatch",),
    "alarms": ("Alarm",),
    "config": ("Config",),
    "model.entities": (
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
        "InvalidConfig",
        "InvalidEntity",
        "InvariantViolation",
        "LeadershipLost",
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
    "model.forms": ("FrozenMap",),
    "model.json_form": ("from_json", "to_json"),
    "leadership.lead": ("Lead",),
    "local.read_only": ("ReadOnlyStore",),
    "local.store": ("LocalStore",),
    "manager.store": ("ReplicatedStore",),
    "data_dir.description": ("Description",),
    "data_dir.joining": ("config_from_join",),
    "maintenance": ("describe", "inspect", "recover", "verify"),
    "recovery.restore": ("Restored", "restore"),
    "snapshots.file": ("SnapshotInfo",),
    "results": (
        "CertificateStatus",
        "Fetching",
        "ForeignRead",
        "MemberAlarm",
        "MemberStatus",
        "OwnSnapshot",
        "Status",
        "Verdict",
    ),
    "store.events": ("Event",),
    "store.watch": ("Watch",),
    "store.interface": ("Batch", "Reader", "View", "Writer"),
    "store_interface": ("Store",),
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
