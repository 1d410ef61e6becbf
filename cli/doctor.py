"""`warren-raft doctor`: one file for a bug report, with all that a maintainer asks for first.

Lives here: the sections of the running manager, the file, the summary. Not here: the other sections
(doctor_sections.py). Invariant: nothing but the named file is written, and an existing file is never replaced. A
section that fails or hangs is a sentence under "problems", and the others are still made. No entity, key or
environment is in the file.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

import click

from warren_raft.admin.client import AdminClient
from warren_raft.disk.outputs import is_stdout
from warren_raft.disk.paths import missing_data
from warren_raft.errors import WarrenError
from warren_raft.manager.self_report import versions

from . import doctor_sections as sections
from .common import (
    BadFile,
    PathType,
    WarrenCommand,
    data_dir,
    print_json,
    require_stdout,
    unchecked_data_dir,
    wants_json,
)
from .deadlines import NoAnswer, NoThread, within
from .explain import duration
from .os_errors import OUTPUT_LOST, sentence
from .readings import histograms_in, quantile_of
from .settings import no_options
from .status import size_shown
from .tables import one_line, print_text, say

FORMAT: Final = 1
"""Of the file. A section is only added."""
QUANTILES: Final = (0.5, 0.99, 1.0)
SECTION_SECONDS: Final = 15.0
"""A section has this much time, since a disk or a network share may hang: more than a manager has for its answer
(admin/client.py, QUICK_ANSWER_SECONDS)."""
WRITE_SECONDS: Final = 60.0
"""The time for the file: a FIFO may have to wait for its reader."""


class UncheckedPath(PathType):
    """The name of a file, which is not looked at yet, because its disk may hang."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value

    def check(self, value: Any) -> None:
        super().convert(value, None, click.get_current_context())


CONFIG_FILE: Final = UncheckedPath(exists=True, dir_okay=False)


@click.command("doctor", cls=WarrenCommand)
@click.argument("file", metavar="[FILE]", required=False)
@click.option(
    "--config",
    "config_file",
    type=CONFIG_FILE,
    metavar="FILE",
    help="The file of settings of the manager: the report shows which setting comes from where.",
)
def doctor(file: str | None, config_file: str | None) -> None:
    """Write one file for a bug report.

    It has the status of the members, the settings and their sources, versions, disk and file system, times of syncs,
    slow writes, alarms, the last log lines of the manager, and the names and sizes of the files in the data directory.
    It has no entities, no keys and no environment. It is text (JSON): read it before you send it. Without FILE its name
    is made of the manager and the time; - is stdout. An existing file is never replaced.

    It works whether or not the manager runs, and if the directory is damaged. It changes nothing.

    \b
    Example: warren-raft doctor --data-dir data/m1
    """
    directory, answers = _directory()
    _check(config_file)
    if file == "-":
        require_stdout()
    report = collected(directory, config_file, answers=answers)
    text = json.dumps(report, indent=2, ensure_ascii=True) + "\n"
    if file == "-":
        click.echo(text, nl=False)
        return
    name = file or _name(report)
    try:
        is_shown = within(WRITE_SECONDS, name, lambda: _written_to_stdout(name, text))
    except NoThread:
        raise
    except NoAnswer as error:
        raise NoAnswer(f"{error}: name a FILE on another disk, or - for stdout") from None
    if is_shown:
        return
    if wants_json():
        print_json({"file": name, "bytes": len(text.encode()), "problems": report["problems"]})
    else:
        _print_summary(name, text, report)


def _directory() -> tuple[str, bool]:
    """The named data directory, and whether its disk answers. Raises UsageError or BadFile if it is none."""
    named = unchecked_data_dir()
    try:
        if within(SECTION_SECONDS, named, lambda: os.path.isdir(data_dir())):
            return named, True
    except NoAnswer:
        return named, False
    raise BadFile(f"there is no directory {named}: name a manager's data directory with --data-dir")


def _check(config_file: str | None) -> None:
    """Raises UsageError if there is no such file. A disk that hangs is no error here: the section says so."""
    if config_file is not None:
        with suppress(NoAnswer):
            within(SECTION_SECONDS, config_file, lambda: CONFIG_FILE.check(config_file))


def collected(directory: str, config_file: str | None, *, answers: bool = True) -> dict[str, Any]:
    """All sections. Raises nothing: a section that fails or hangs is in `problems`.

    `answers`: the disk of the directory does. If not, the directory of a stopped manager is not read.
    """
    report: dict[str, Any] = {
        "format": FORMAT,
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "data_dir": directory,
        "problems": {},
    }

    def add(
        name: str,
        make: Callable[[], Any],
        *,
        of: str = directory,
        seconds: float = SECTION_SECONDS,
        told: Callable[[str], str] = lambda _of: "",
    ) -> bool:
        """`told`: makes a clause for a thing that hangs."""
        try:
            report[name] = within(seconds, of, partial(_made, make))
        except (NoThread, _Problem) as error:
            report["problems"][name] = str(error)
        except NoAnswer as error:
            report["problems"][name] = f"{error}{told(of)}"
        return name in report

    def add_disk(name: str, path: str) -> None:
        add(name, lambda: sections.disk(path), of=path, told=sections.mount_told)

    asked = AdminClient(directory)
    add("command_versions", versions, of="the host")
    if add("status", asked.status):
        add("explain", asked.explain)
        add("manager", asked.self_report)
        add("metrics", lambda: _metrics(asked.page("/metrics")))
        add("times", lambda: _times(asked.page("/metrics")))
    has_data = "status" in report or not answers or not _is_empty(directory)
    if not has_data:
        report["problems"]["directory"] = report["problems"]["status"]
    elif "status" not in report and answers:
        add("directory", lambda: sections.stopped_directory(directory), seconds=sections.DESCRIBE_SECONDS + 5)
    if not has_data and config_file is None:
        report["problems"]["next_start"] = report["problems"]["status"]
    else:
        add("next_start", lambda: sections.next_start(no_options(config_file)), of=config_file or directory)
    add_disk("disk", directory)
    settings = report["manager"]["config"] if "manager" in report else report.get("next_start", {})
    backup_dir = settings.get("backup_dir", {}).get("value")
    if backup_dir is not None:
        add_disk("backup_disk", backup_dir)
    add("files", lambda: sections.files(directory))
    add("host", sections.host, of="the host")
    return report


def _is_empty(directory: str) -> bool:
    """Whether no manager can have run on the directory. False if its disk does not answer."""
    try:
        return within(SECTION_SECONDS, directory, lambda: missing_data(directory)) is not None
    except NoAnswer:
        return False


class _Problem(Exception):
    """A section that could not be made. The text is its line under "problems"."""


def _made(make: Callable[[], Any]) -> Any:
    """The section. Raises _Problem: its text may need another look at the disk."""
    try:
        return make()
    except Exception as error:  # noqa: BLE001 - it is in the report, and the other sections are made
        raise _Problem(_problem(error)) from None


def _problem(error: Exception) -> str:
    """One line. The words of an error that nobody expected may have a part of an entity: then only its class."""
    if isinstance(error, WarrenError | click.ClickException | sections.DescribeFailed):
        return one_line(error.format_message() if isinstance(error, click.ClickException) else str(error))
    return one_line(sentence(error)) if isinstance(error, OSError) else type(error).__name__


def _metrics(page: str | None) -> list[str]:
    """The samples of /metrics, without the empty buckets."""
    lines = [] if page is None else page.splitlines()
    return [line for line in lines if not line.startswith("#") and not (line.endswith(" 0.0") and "_bucket{" in line)]


def _times(page: str | None) -> dict[str, dict[str, float | None]]:
    """Since the start of the manager: the median, p99 and longest time of a write, a sync of the log, and applying."""
    if page is None:
        return {}
    found = {}
    for stage, histogram in histograms_in(page).items():
        none = [(bound, 0.0) for bound, _ in histogram]
        p50, p99, longest = (quantile_of(none, histogram, quantile) for quantile in QUANTILES)
        found[stage] = {"p50_seconds": p50, "p99_seconds": p99, "longest_up_to_seconds": longest}
    return found


# The file ------------------------------------------------------------------------------------------------------------


def _name(report: Mapping[str, Any]) -> str:
    node_id = report.get("status", report.get("directory", {})).get("node_id", "manager")
    return f"warren-doctor-{node_id}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}.json"


def _written_to_stdout(name: str, text: str) -> bool:
    """Write the file. Returns whether it is stdout."""
    from warren_raft.disk.files import OS_FILES
    from warren_raft.snapshots.saving import new_file

    with new_file(name) as part:
        made = OS_FILES.make_file(part, private=True)
        try:
            made.write(0, text.encode())
            made.sync()
        except OSError as error:
            if error.errno not in OUTPUT_LOST:
                raise OSError(error.errno, error.strerror, name) from error
            advice = "name a FILE on another disk, or - for stdout"
            raise OSError(error.errno, f"{error.strerror}: {advice}", name) from error
        finally:
            made.close()
    return is_stdout(name)


# The summary ---------------------------------------------------------------------------------------------------------


def _print_summary(name: str, text: str, report: Mapping[str, Any]) -> None:
    say(f"wrote {name} ({size_shown(len(text.encode()))}): no entities, keys or environment are in it")
    click.echo()
    for lead, told in _findings(report):
        print_text(f"{lead}: {one_line(told)}", indent=len(lead) + 2)


def _findings(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    found = []
    status = report.get("status")
    if status is not None:
        verdict = status["verdict"]
        found.append((verdict["state"], verdict["text"]))
        found += [("alarm", f"{alarm['name']}: {alarm['text']}") for alarm in status["alarms"]]
    times = report.get("times", {}).get("sync")
    if times and times["p99_seconds"] is not None:
        longest = duration(times["longest_up_to_seconds"])
        found.append(("syncs", f"99 of 100 took at most {duration(times['p99_seconds'])}, the longest up to {longest}"))
    slow = report.get("explain", {}).get("slow")
    if slow:
        found.append(("slow writes", f"{len(slow)}; the newest: {slow[0]['why']}"))
    found += [("not in the file", told) for told in _lacking(report["problems"])]
    for name in ("disk", "backup_disk"):
        problem = report.get(name, {}).get("mount_problem")
        if problem is not None:
            found.append((name, problem))
    found.append(("log", _log_advice(report)))
    if status is not None:
        others = [member["id"] for member in status["members"] if member["id"] != status["node_id"]]
        if others:
            found.append(("others", f"for a fault of the cluster, run doctor for {', '.join(others)} too"))
    return found


def _lacking(problems: Mapping[str, str]) -> list[str]:
    """The sections that could not be made, and why. A reason that is the same for several, or a part of another, is
    told once."""
    sections_of: dict[str, list[str]] = {}
    for section, why in problems.items():
        told = max((text for text in problems.values() if why in text), key=len)
        sections_of.setdefault(told, []).append(section)
    return [f"{', '.join(names)}: {told}" for told, names in sections_of.items()]


def _log_advice(report: Mapping[str, Any]) -> str:
    told = report.get("manager")
    if told is None:
        is_stopped = report["problems"].get("status", "").startswith("no manager is running")
        why = "the manager does not run" if is_stopped else "the manager did not answer"
        return f"{why}, so its log is not in the file: add the lines that `serve` wrote to stderr"
    place = told["process"]["log_goes_to"]
    lines = f"the file has the last {len(told['log_lines'])} lines of this manager"
    if place == "the journal of systemd":
        return f"{lines}; older ones: journalctl -u UNIT -n 2000 --no-pager > log.txt"
    return f"{lines}; its stderr, where older lines may be, goes to {place}"
