"""The promise: a collector gives every metric of docs/metrics.md that means something for its store, with right values.

Alert rules and dashboard name only metrics that exist. Nothing is registered or loaded before a program asks for it.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.parser import text_string_to_metric_families

import warren_raft as wr
from tests.cluster.harness import free_ports
from warren_raft.metrics import Collector
from warren_raft.metrics.families import ALIASES, FAMILIES
from warren_raft.store import levels
from warren_raft.store.counts import TIMED_EVERY
from warren_raft.support.counting import SLOW_BOUNDS, Durations

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "metrics.md"
RULES = ROOT / "contrib" / "prometheus-rules.yml"
DASHBOARD = ROOT / "contrib" / "grafana-dashboard.json"
SEED = {
    "storage_read_duration",
    "storage_write_duration",
    "storage_operations_total",
    "storage_errors_total",
    "storage_db_size_bytes",
    "storage_db_open",
    "storage_tx_duration",
    "storage_nodes_total",
    "storage_services_total",
    "storage_tasks_total",
    "storage_secrets_total",
}
"""The names that Warren's operators know."""
needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed (Debian: apt-get install prometheus)"
)


class Scrape:
    """What a store answers to one scrape."""

    def __init__(self, store: wr.Reader, *, legacy_names: bool = False) -> None:
        registry = CollectorRegistry()
        registry.register(Collector(store, legacy_names=legacy_names))
        self.text = generate_latest(registry).decode()
        openmetrics.generate_latest(registry)  # the other format takes the same
        self._values = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(self.text)
            for sample in family.samples
        }

    def __call__(self, name: str, /, **labels: str) -> float | None:
        return self._values.get((name, frozenset(labels.items())))

    @property
    def names(self) -> set[str]:
        return {line.split()[2] for line in self.text.splitlines() if line.startswith("# TYPE")}


@pytest.fixture(scope="module")
def manager(tmp_path_factory: pytest.TempPathFactory) -> Iterator[wr.ReplicatedStore]:
    (port,) = free_ports(1)
    address = f"127.0.0.1:{port}"
    directory = tmp_path_factory.mktemp("metrics")
    config = wr.Config(
        node_id="m1",
        data_dir=directory / "m1",
        listen=address,
        members={"m1": address},
        admin=False,
        backup_dir=directory / "backups",
        backup_command=["true"],
    )
    with wr.ReplicatedStore(config) as store:
        store.wait_ready()
        yield store


@pytest.fixture
def local(tmp_path: Path) -> Iterator[wr.LocalStore]:
    with wr.LocalStore(tmp_path / "local") as store:
        yield store


# ---- names


def rows(heading: str) -> list[list[str]]:
    part = PAGE.read_text().split(heading, 1)[1].split("\n## ", 1)[0]
    lines = [line for line in part.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def test_the_page_and_the_code_agree() -> None:
    wanted = [
        [f"`{each.name}`", each.type, ", ".join(f"`{label}`" for label in each.labels), each.help] for each in FAMILIES
    ]
    found = rows("## All metrics")
    assert [row[:4] for row in found] == wanted
    assert all(row[4] for row in found), "each has an advice"
    old = [
        [f"`{each.name}`", f"`{each.of}`", ", ".join(f'`{label}="{value}"`' for label, value in each.only)]
        for each in ALIASES
    ]
    assert rows("## The names of Warren") == old


def test_names_follow_the_conventions() -> None:
    kept = {"warren_raft_peers_total"}  # Warren's own name, which its dashboards have
    for family in FAMILIES:
        assert family.name.startswith("warren_")
        assert (family.type == "counter") == family.name.endswith("_total") or family.name in kept
        assert family.type != "histogram" or family.name.endswith("_seconds")
        assert family.help.endswith(".")
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)
    assert {alias.name for alias in ALIASES} >= SEED


def named_in(expression: str) -> set[str]:
    """The metrics in an expression of Prometheus."""
    histograms = {family.name for family in FAMILIES if family.type == "histogram"}
    found = set()
    for name in re.findall(r"\bwarren_\w+", expression):
        base = re.sub(r"_(bucket|count|sum)$", "", name)
        found.add(base if base in histograms else name)
    return found


def expressions_of(dashboard: Any) -> Iterator[str]:
    for panel in dashboard["panels"]:
        yield from (target["expr"] for target in panel.get("targets", ()))
    yield from (each["query"]["query"] for each in dashboard["templating"]["list"] if each["type"] == "query")


def test_rules_and_dashboard_name_only_metrics_that_exist() -> None:
    known = {family.name for family in FAMILIES}
    in_rules = named_in(" ".join(re.findall(r"expr: (.*)", RULES.read_text())))
    assert len(in_rules) > 15
    assert in_rules <= known
    in_dashboard = named_in(" ".join(expressions_of(json.loads(DASHBOARD.read_text()))))
    assert len(in_dashboard) > 30
    assert in_dashboard <= known


def panels_of(kind: str) -> list[Any]:
    return [panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] == kind]


def test_the_numbers_of_the_dashboard_are_of_now() -> None:
    """With a query over the time range, Grafana shows the last value in it: "no alarm", hours after every manager
    died."""
    stats = panels_of("stat")
    assert len(stats) == 6
    for panel in stats:
        assert all(target["instant"] for target in panel["targets"]), panel["title"]
        defaults = panel["fieldConfig"]["defaults"]
        assert defaults["noValue"], panel["title"]
        assert " or vector(0)" not in panel["targets"][0]["expr"], panel["title"]
        is_coloured = panel["options"]["colorMode"] != "none"
        assert is_coloured == bool(defaults.keys() & {"thresholds", "mappings"}), panel["title"]
    assert sum(panel["options"]["colorMode"] == "value" for panel in stats) >= 5


def test_the_panels_of_the_dashboard_fit_its_grid() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        taken = set(product(range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])))
        assert not taken & cells, panel["title"]
        assert place["x"] + place["w"] <= 24, panel["title"]
        cells |= taken
    assert len(cells) == 24 * (1 + max(y for _, y in cells))  # no gap
    for panel in panels_of("timeseries"):
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert all(target["legendFormat"] for target in panel["targets"]), panel["title"]


def promtool(*arguments: str, given: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["promtool", *arguments], input=given, capture_output=True, text=True, timeout=60, check=False
    )


@needs_promtool
def test_promtool_accepts_the_rules_and_what_a_manager_answers(manager: wr.ReplicatedStore) -> None:
    done = promtool("check", "rules", str(RULES))
    assert done.returncode == 0, done.stdout + done.stderr
    done = promtool("check", "metrics", given=Scrape(manager).text)
    faults = [line for line in done.stderr.splitlines() if "warren_raft_peers_total" not in line]
    assert faults == []


@needs_promtool
def test_promtool_reads_the_expressions_of_the_dashboard(tmp_path: Path) -> None:
    targets = [target for panel in panels_of("stat") + panels_of("timeseries") for target in panel["targets"]]
    given = [
        {"record": "x", "expr": target["expr"].replace("$__rate_interval", "1m"), "labels": {"n": f"{number}"}}
        for number, target in enumerate(targets)
    ]
    assert len(given) > 30
    rules = tmp_path / "rules.json"  # JSON is YAML too
    rules.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": given}]}))
    ran = promtool("check", "rules", str(rules))
    assert ran.returncode == 0, ran.stderr


ALERTS = """
rule_files: [{rules}]
evaluation_interval: 1m
tests:
  - interval: 1m
    input_series:
      - {{series: 'warren_raft_has_leader{{job="a",instance="m1"}}', values: '1x5 0x10'}}
      - {{series: 'warren_raft_has_leader{{job="a",instance="m2"}}', values: '0x20'}}
      - {{series: 'warren_raft_has_leader{{job="b",instance="m1"}}', values: '1x20'}}
      - {{series: 'warren_store_open{{job="a",instance="m1"}}', values: '1x20'}}
      - {{series: 'warren_store_open{{job="a",instance="m2"}}', values: '1x20'}}
      - {{series: 'warren_raft_peers_total{{job="a",instance="m1"}}', values: '3x20'}}
      - {{series: 'up{{job="warren",instance="m1"}}', values: '1x5 0x20'}}
      - {{series: 'up{{job="warren",instance="m2"}}', values: '1x5 0x20'}}
      - {{series: 'up{{job="other-warren",instance="m1"}}', values: '0x20'}}
      - {{series: 'up{{job="other-warren",instance="m2"}}', values: '1x20'}}
    alert_rule_test:
      - {{eval_time: 4m, alertname: WarrenNoLeader, exp_alerts: []}}
      - eval_time: 9m
        alertname: WarrenNoLeader
        exp_alerts:
          - exp_labels: {{job: a, severity: critical}}
            exp_annotations:
              summary: "a: no manager knows a leader, so no write is acknowledged"
              action: >-
                Start the managers that are stopped, or mend the network. docs/recovery.md if a majority is lost.
      - {{eval_time: 4m, alertname: WarrenManagersAllDown, exp_alerts: []}}
      - eval_time: 9m
        alertname: WarrenManagersAllDown
        exp_alerts:
          - exp_labels: {{job: warren, severity: critical}}
            exp_annotations:
              summary: "warren: no manager answers"
              action: >-
                Start the managers, or mend the network between them and Prometheus. docs/recovery.md if a majority is
                lost.
      - eval_time: 9m
        alertname: WarrenManagerDown
        exp_alerts:
          - exp_labels: {{job: a, severity: warning}}
            exp_annotations:
              summary: "a: 2 managers answer, fewer than the cluster has members"
              action: Start the manager that is missing. warren-raft status names it.
"""


@needs_promtool
def test_the_alerts_fire_for_their_own_cluster(tmp_path: Path) -> None:
    cases = tmp_path / "cases.yml"
    cases.write_text(ALERTS.format(rules=RULES))
    done = promtool("test", "rules", str(cases))
    assert done.returncode == 0, done.stdout + done.stderr


# ---- values


def test_every_read_is_counted_and_one_in_64_is_timed(local: wr.LocalStore) -> None:
    local.create_service(wr.Service(id="s-1", name="web"))

    def read(_: int) -> None:
        for _ in range(1_000):
            local.get_service("s-1")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(read, range(4)))
    with local.read() as view:
        for _ in range(96):
            view.get_service("s-1")
    for _ in range(200):
        local.get_service_by_name("web")
        local.list_services()
    with pytest.raises(wr.NotFound):
        local.get_service("s-2")
    with pytest.raises(wr.NotFound):
        local.get_service_by_name("nothing")
    scrape = Scrape(local)
    for op, done, failed in (("get", 4_096, 1), ("find", 200, 1), ("list", 200, 0)):
        labels = {"op": op, "kind": "service"}
        assert scrape("warren_store_operations_total", **labels, result="ok") == done
        assert (scrape("warren_store_operations_total", **labels, result="error") or 0) == failed
        assert (scrape("warren_store_errors_total", **labels, reason="NotFound") or 0) == failed
        timed = scrape("warren_store_read_duration_seconds_count", **labels)
        assert timed is not None
        assert abs(timed - (done + failed) / TIMED_EVERY) <= 4, "threads may count between two steps of another"
        assert (scrape("warren_store_read_duration_seconds_sum", **labels) or 0) > 0


@pytest.mark.parametrize("which", ["manager", "local"])
def test_every_write_is_counted_with_its_time_or_its_error(which: str, request: pytest.FixtureRequest) -> None:
    store: wr.Store = request.getfixturevalue(which)
    for number in range(3):
        store.create_secret(wr.Secret(id=f"x-{number}", name="x", data=b"1"))
    store.delete_secret("x-1")
    with pytest.raises(wr.RevisionConflict):
        store.create_secret(wr.Secret(id="x-0", name="x", data=b"2"), if_revision=77)
    with store.batch() as batch:
        batch.create_volume(wr.Volume(id="v-1"))
        batch.create_network(wr.Network(id="w-1"))
    with store.batch(wait=False) as later:
        later.create_volume(wr.Volume(id="v-2"))
        later.create_volume(wr.Volume(id="v-3"))
    assert later.future is not None
    later.future.result(10)
    store.create_volume(wr.Volume(id="v-4"))  # counted after the writes before it
    scrape = Scrape(store)
    assert scrape("warren_store_operations_total", op="put", kind="secret", result="ok") == 3
    assert scrape("warren_store_write_duration_seconds_count", op="put", kind="secret") == 3
    assert scrape("warren_store_operations_total", op="delete", kind="secret", result="ok") == 1
    assert scrape("warren_store_errors_total", op="put", kind="secret", reason="RevisionConflict") == 1
    assert scrape("warren_store_operations_total", op="batch", kind="any", result="ok") == 1
    assert scrape("warren_store_operations_total", op="batch", kind="volume", result="ok") == 1
    assert scrape("warren_store_objects", kind="volume") == 4
    assert (scrape("warren_store_commit_duration_seconds_count") or 0) > 3
    assert (scrape("warren_store_db_in_use_bytes") or 0) > 0


def test_a_manager_has_the_metrics_of_consensus(manager: wr.ReplicatedStore) -> None:
    manager.create_node(wr.Node(id="n-1", role="worker", status="ready"))
    manager.create_container(wr.Container(id="c-1", actual_state="failed"))
    manager.heartbeat("n-1")
    with manager.watch():
        scrape = Scrape(manager)
    status = manager.status()
    assert scrape("warren_raft_is_leader") == scrape("warren_raft_has_leader") == scrape("warren_raft_ready") == 1
    assert scrape("warren_raft_term") == status.term
    assert scrape("warren_raft_level") == status.level == scrape("warren_raft_level_max") == levels.NEWEST
    assert scrape("warren_raft_leader_changes_total") == 1
    assert scrape("warren_raft_applied_index") == scrape("warren_raft_log_index")
    assert scrape("warren_raft_peers_total") == 1
    assert (scrape("warren_raft_sync_duration_seconds_count") or 0) > 2
    assert (scrape("warren_raft_apply_duration_seconds_count") or 0) > 2
    assert (scrape("warren_raft_commit_duration_seconds_count") or 0) > 2
    assert scrape("warren_nodes", role="worker", status="ready") == 1
    assert scrape("warren_containers", state="failed") == 1
    assert scrape("warren_watch_active") == 1
    assert scrape("warren_heartbeats_total") == 1
    assert scrape("warren_store_no_space") == scrape("warren_store_digest_mismatch") == 0
    assert scrape("warren_certificate_expiry_timestamp_seconds") == status.certificate.not_after.timestamp()  # type: ignore[union-attr]


def test_alarms_are_counted_by_name(manager: wr.ReplicatedStore) -> None:
    for subject in ("m2", "m3"):
        manager._parts.alarms.raise_alarm("member-away", "it is away", subject=subject)
    try:
        assert Scrape(manager)("warren_alarms", name="member-away", severity="warning") == 2
    finally:
        for subject in ("m2", "m3"):
            manager._parts.alarms.clear_alarm("member-away", subject)
    assert Scrape(manager)("warren_alarms", name="member-away", severity="warning") is None


def test_a_manager_has_every_metric_and_the_page_tells_which_may_be_missing(manager: wr.ReplicatedStore) -> None:
    manager._parts.backups.look()  # type: ignore[union-attr]
    manager._parts.backups.watch()  # type: ignore[union-attr]
    manager._parts.after_backup.look(threading.Event())  # type: ignore[union-attr]
    job = manager._parts.opened.keeper.take(quorum=True)
    manager._parts.opened.keeper.took(job(), set())
    scrape = Scrape(manager)
    declared = {line.split()[2] for line in scrape.text.splitlines() if line.startswith("# TYPE")}
    assert declared == {family.name for family in FAMILIES}
    assert scrape("warren_backups_total", result="ok") is not None
    assert (scrape("warren_backup_commands_total", result="ok") or 0) >= 1
    assert scrape("warren_backup_commands_total", result="error") == 0
    assert (scrape("warren_backup_unsaved_limit_seconds"), scrape("warren_backup_unsaved_seconds")) != (None, None)
    assert (scrape("warren_backup_last_success_timestamp_seconds") or 0) > 1e9
    assert scrape("warren_snapshot_last_index") == manager.status().snapshot.index  # type: ignore[union-attr]
    assert scrape("warren_snapshot_save_duration_seconds_count") == 1


def test_the_old_names_give_the_same_values_only_if_they_are_asked_for(manager: wr.ReplicatedStore) -> None:
    manager.create_node(wr.Node(id="n-1", role="worker", status="ready"))
    scrape = Scrape(manager, legacy_names=True)
    assert scrape.names >= SEED
    assert scrape("storage_nodes_total") == scrape("warren_store_objects", kind="node") == 1
    assert scrape("warren_nodes_total", role="worker", status="ready") == 1
    assert scrape("storage_db_open") == 1
    assert scrape("storage_operations_total", op="put", kind="node", result="ok") == scrape(
        "warren_store_operations_total", op="put", kind="node", result="ok"
    )
    assert not Scrape(manager).names & {alias.name for alias in ALIASES}


def test_a_store_beside_another_process_has_its_reads_and_its_state(tmp_path: Path) -> None:
    program = (
        "import sys, warren_raft as wr\n"
        "with wr.LocalStore(sys.argv[1]) as store:\n"
        "    store.create_node(wr.Node(id='n-1', role='hybrid', status='down'))\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "d")], check=True)
    with wr.ReadOnlyStore(tmp_path / "d") as store:
        store.get_node("n-1")
        scrape = Scrape(store)
    assert scrape("warren_store_operations_total", op="get", kind="node", result="ok") == 1
    assert scrape("warren_nodes", role="hybrid", status="down") == 1
    assert not any(name.startswith("warren_raft_") for name in scrape.names)
    assert Scrape(store)("warren_store_open") == 0


def test_a_closed_store_says_so(tmp_path: Path) -> None:
    with wr.LocalStore(tmp_path) as store:
        store.create_node(wr.Node(id="n-1"))
    scrape = Scrape(store)
    assert scrape("warren_store_open") == 0
    assert scrape("warren_store_operations_total", op="put", kind="node", result="ok") == 1
    assert scrape("warren_store_objects", kind="node") is None


def test_two_stores_in_one_process_have_a_registry_each(tmp_path: Path) -> None:
    with wr.LocalStore(tmp_path / "a") as one, wr.LocalStore(tmp_path / "b") as other:
        one.create_node(wr.Node(id="n-1"))
        assert Scrape(one)("warren_store_objects", kind="node") == 1
        assert Scrape(other)("warren_store_objects", kind="node") == 0
        registry = CollectorRegistry()
        registry.register(Collector(one))
        with pytest.raises(ValueError, match="Duplicated"):
            registry.register(Collector(other))


def test_a_store_loads_no_prometheus_and_registers_nothing() -> None:
    program = (
        "import sys, warren_raft, warren_raft.metrics\n"
        "warren_raft.LocalStore, warren_raft.ReplicatedStore\n"
        "assert 'prometheus_client' not in sys.modules\n"
        "before = set(sys.modules)\n"
        "from prometheus_client import REGISTRY\n"
        "names = set(REGISTRY._names_to_collectors)\n"
        "warren_raft.metrics.Collector\n"
        "assert set(REGISTRY._names_to_collectors) == names\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.slow
def test_a_manager_with_its_pages_loads_no_prometheus_before_the_first_scrape(tmp_path: Path) -> None:
    first, second = (f"127.0.0.1:{port}" for port in free_ports(2))
    program = (
        "import sys, urllib.request, warren_raft as wr\n"
        f"config = wr.Config(node_id='m1', data_dir={str(tmp_path / 'm1')!r}, listen={first!r},"
        f" members={{'m1': {first!r}}}, metrics_listen={second!r})\n"
        "with wr.ReplicatedStore(config) as store:\n"
        f"    urllib.request.urlopen('http://{second}/livez').read()\n"
        "    assert 'prometheus_client' not in sys.modules\n"
        f"    assert b'warren_store_open 1' in urllib.request.urlopen('http://{second}/metrics').read()\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_histogram_counts_each_duration_once_and_takes_over_an_earlier_one() -> None:
    durations, earlier = Durations(), Durations()
    for seconds in (0.0, SLOW_BOUNDS[0], SLOW_BOUNDS[0] * 1.01, 1e9):
        durations.note(seconds)
    assert durations.counts[:2] == [2, 1]
    assert durations.counts[-1] == 1
    earlier.note(0.5)
    durations.take_over(earlier)
    assert durations.cumulated()[-1] == 5
    assert durations.cumulated() == sorted(durations.cumulated())
