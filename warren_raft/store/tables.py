"""The single declaration of each kind: its number, its names, its entity class and its secondary indexes.

Only data and look-ups live here. Commands, migration, verification, metrics and the command line all use this table.
Invariant: numbers, buckets and index names are on disk and on the wire. None of them is ever changed or used again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final, Generic, TypeVar

from warren_raft.model import entities
from warren_raft.model.forms import KEY_MAX_BYTES

ID_MAX_BYTES: Final = KEY_MAX_BYTES
"""The longest id and the longest indexed value, which is the longest key LMDB takes. Longer values are not indexed."""

CA_ID: Final = "ca"
"""The id of the one CA record. Warren uses the same key."""

E = TypeVar("E")


@dataclass(frozen=True, slots=True)
class Index:
    """A secondary index: from the value of `field` to the ids of the entities that have it.

    `many`: the field is a sequence, and each item is indexed. `folded`: ASCII letters are compared without case (host
    names). Other letters are compared as they are, because their lower case depends on the Python version. A change of
    meaning needs a new name: an existing index is never rebuilt, but a new index is built at the next open.
    """

    name: str
    field: str
    many: bool = False
    folded: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Kind(Generic[E]):
    """Everything about one kind of entity. Compared and hashed by identity.

    `number` is the kind's name on the wire, `bucket` its sub-database (Warren's bucket). `entity` is the class that
    reads return; None means plain bytes (the CA). `updatable` says whether the store has an update operation for the
    kind.
    """

    number: int
    name: str
    plural: str
    bucket: str
    entity: type[E] | None
    indexes: tuple[Index, ...] = ()
    updatable: bool = True
    tallied: tuple[tuple[str, type[StrEnum]], ...] = ()
    """Text fields, with their usual values: the entities are counted by these values (fsm/tallies.py)."""

    def __str__(self) -> str:
        return self.name


SERVICE_BY_NAME: Final = Index("service.name", "name")
CONTAINER_BY_SERVICE: Final = Index("container.service", "service_id")
CONTAINER_BY_NODE: Final = Index("container.node", "node_id")
SECRET_BY_NAME: Final = Index("secret.name", "name")
VOLUME_BY_NAME: Final = Index("volume.name", "name")
INGRESS_BY_NAME: Final = Index("ingress.name", "name")
CERTIFICATE_BY_NAME: Final = Index("certificate.name", "name")
CERTIFICATE_BY_HOST: Final = Index("certificate.host", "hosts", many=True, folded=True)

NODE: Final = Kind(
    1,
    "node",
    "nodes",
    "nodes",
    entities.Node,
    tallied=(("role", entities.NodeRole), ("status", entities.NodeStatus)),
)
SERVICE: Final = Kind(2, "service", "services", "services", entities.Service, (SERVICE_BY_NAME,))
CONTAINER: Final = Kind(
    3,
    "container",
    "containers",
    "containers",
    entities.Container,
    (CONTAINER_BY_SERVICE, CONTAINER_BY_NODE),
    tallied=(("actual_state", entities.ContainerState),),
)
SECRET: Final = Kind(4, "secret", "secrets", "secrets", entities.Secret, (SECRET_BY_NAME,), updatable=False)
VOLUME: Final = Kind(5, "volume", "volumes", "volumes", entities.Volume, (VOLUME_BY_NAME,), updatable=False)
NETWORK: Final = Kind(6, "network", "networks", "networks", entities.Network, updatable=False)
INGRESS: Final = Kind(7, "ingress", "ingresses", "ingresses", entities.Ingress, (INGRESS_BY_NAME,))
CERTIFICATE: Final = Kind(
    8,
    "certificate",
    "certificates",
    "tls_certificates",
    entities.TLSCertificate,
    (CERTIFICATE_BY_NAME, CERTIFICATE_BY_HOST),
)
CA: Final[Kind[bytes]] = Kind(9, "ca", "ca", "ca", None)

KINDS: Final[tuple[Kind[Any], ...]] = (
    NODE, SERVICE, CONTAINER, SECRET, VOLUME, NETWORK, INGRESS, CERTIFICATE, CA,
)  # fmt: skip
"""Every kind, in the order of the numbers."""

INDEXES: Final[tuple[Index, ...]] = tuple(index for kind in KINDS for index in kind.indexes)

BY_NUMBER: Final[Mapping[int, Kind[Any]]] = MappingProxyType({kind.number: kind for kind in KINDS})
BY_BUCKET: Final[Mapping[str, Kind[Any]]] = MappingProxyType({kind.bucket: kind for kind in KINDS})
BY_NAME: Final[Mapping[str, Kind[Any]]] = MappingProxyType(
    {name: kind for kind in KINDS for name in (kind.plural, kind.name)}
)
"""The kinds by name and by plural; the command line takes both."""
