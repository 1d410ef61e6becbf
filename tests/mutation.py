"""Changes one small thing of the product at a time, and looks whether a test notices: `scripts/mutation.sh`.

The changes are cosmic-ray's. A seed draws the places, and one change for each. First the unit tests that run the
changed line try it, the fastest first. If no test fails and the simulator runs the line, some of its seeds try it. One
run of each with coverage shows the lines that they run. It works in a copy of the project (scripts/mutation.sh).
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import difflib
import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names
from coverage import CoverageData

AREAS = {
    "raft": ("warren_raft/raft/**/*.py", 0.5),
    "fsm": ("warren_raft/fsm/*.py", 0.15),
    "snapshots": ("warren_raft/snapshots/*.py", 0.2),
    "generations": ("warren_raft/store/generations.py", 0.15),
}
"""Name, files, share of the sample."""

UNIT_TESTS = ("tests/unit", "tests/model")
MEMORY_BYTES = 4 << 30
"""The memory limit: a change may make an endless loop that collects values."""

BY_UNIT, BY_SIMULATION, SURVIVED = "killed by a unit test", "killed by the simulator", "survived"

NEEDS_ARGUMENTS = {"core/VariableInserter", "core/VariableReplacer"}
SAME_THING = re.compile(r"core/ReplaceComparisonOperator_(Eq_Is|Is_Eq|NotEq_IsNot|IsNot_NotEq)\Z")
"""For None, small numbers and enumerations `==` and `is` are the same, so such mutants show nothing."""


@dataclass(frozen=True)
class Mutant:
    area: str
    module: str
    operator: str
    occurrence: int
    line: int


@dataclass
class Outcome:
    mutant: Mutant
    outcome: str
    by: str
    tests: int
    seconds: float
    diff: str


@dataclass
class Measured:
    """The lines that each test runs, and its time; the lines that the simulator runs, and its time."""

    tests: dict[str, dict[int, set[str]]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    simulated: dict[str, set[int]] = field(default_factory=dict)
    simulation_seconds: float = 0.0
    test_seconds: float = 15.0


# Drawing


def places(area: str, module: str, source: str) -> list[list[Mutant]]:
    """The mutants of a module; the mutants of one place and kind (such as another comparison) are together."""
    found: dict[tuple[object, str], list[Mutant]] = defaultdict(list)
    nodes = list(ast_nodes(get_ast(source)))
    for name in sorted(set(operator_names()) - NEEDS_ARGUMENTS):
        if SAME_THING.match(name):
            continue
        operator, kind, occurrence = get_operator(name)(), name.split("_")[0], 0
        for node in nodes:
            for start, end in operator.mutation_positions(node):
                found[(start, end), kind].append(Mutant(area, module, name, occurrence, start[0]))
                occurrence += 1
    return [found[key] for key in sorted(found, key=repr)]


def without_annotations(source: str) -> str | None:
    """The code of a module in a form that can be compared; None: it does not compile."""
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return None
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            node.returns = None
        elif isinstance(node, ast.arg):
            node.annotation = None
        elif isinstance(node, ast.AnnAssign):
            node.annotation = ast.Constant(None)
    return ast.dump(tree)


def changed(source: str, mutant: Mutant) -> str | None:
    """The module with the change; None: the change has no effect, or the result is not Python."""
    try:
        code = mutate_code(source, get_operator(mutant.operator)(), mutant.occurrence)
    except AttributeError:  # cosmic-ray 8.7 cannot replace an exception with a dot in its name
        return None
    if code is None or without_annotations(code) in (None, without_annotations(source)):
        return None
    return code


def draw(tree: Path, count: int, seed: int) -> Iterator[Mutant]:
    for area, (pattern, share) in AREAS.items():
        chance = random.Random(f"{seed} {area}")
        sources = {str(path.relative_to(tree)): path.read_text() for path in sorted(tree.glob(pattern))}
        all_places = [place for module, source in sources.items() for place in places(area, module, source)]
        chance.shuffle(all_places)
        wanted = round(count * share)
        for place in all_places:
            if wanted == 0:
                break
            chance.shuffle(place)
            mutant = next((each for each in place if changed(sources[each.module], each) is not None), None)
            if mutant is not None:
                wanted -= 1
                yield mutant


# Measuring


def run(tree: Path, command: list[str], timeout: float | None = None) -> tuple[int | None, str]:
    """Run a command. Returns its exit code (None: it did not end in time) and its output."""
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=tree,
        env=os.environ | {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES)),
    )
    try:
        output = process.communicate(timeout=timeout)[0]
        return process.returncode, output
    except subprocess.TimeoutExpired:
        return None, ""
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # also the processes that a test left behind
        process.wait()


def pytest(*arguments: str) -> list[str]:
    return ["-m", "pytest", "-q", "-p", "no:cacheprovider", "--basetemp=.mutation/pytest", *arguments]


def measure(tree: Path, seeds: str) -> Measured:
    """Measure the tests and the simulator, once for a copy."""
    directory = tree / ".mutation"
    directory.mkdir(exist_ok=True)
    log, lines, simulated = directory / "unit.log", directory / "lines", directory / "simulated"
    if not log.exists():
        contexts = ("--cov=warren_raft", "--cov-context=test", "--cov-report=", "-vv", "--durations=0")
        code, output = run(tree, pytest(*contexts, *UNIT_TESTS))
        if code != 0:
            sys.exit(f"mutation: the unit tests fail without any change:\n{output[-2000:]}")
        (tree / ".coverage").rename(lines)
        log.write_text(output)
    if not simulated.exists():
        code, output = run(
            tree, ["-m", "coverage", "run", f"--data-file={simulated}", "-m", "tests.simulation", "--seeds", seeds]
        )
        if code != 0:
            sys.exit(f"mutation: the simulator fails without any change:\n{output[-2000:]}")
    begin = time.monotonic()
    run(tree, ["-m", "tests.simulation", "--seeds", seeds])
    measured = Measured(simulation_seconds=time.monotonic() - begin)
    for seconds, test in re.findall(r"^([0-9.]+)s (?:setup|call|teardown) +(\S.*)$", log.read_text(), re.MULTILINE):
        measured.seconds[test] = measured.seconds.get(test, 0.0) + float(seconds)
    covered = CoverageData(str(lines))
    covered.read()
    for path in covered.measured_files():
        of_line = measured.tests.setdefault(str(Path(path).relative_to(tree)), {})
        for line, names in covered.contexts_by_lineno(path).items():
            of_line[line] = {name.rpartition("|")[0] for name in names} - {""}
    reached = CoverageData(str(simulated))
    reached.read()
    for path in reached.measured_files():
        if Path(path).is_relative_to(tree / "warren_raft"):
            measured.simulated[str(Path(path).relative_to(tree))] = set(reached.lines(path) or ())
    return measured


def statement(source: str, line: int) -> tuple[range, bool]:
    """The lines of the innermost statement around a line, without its body; and whether an import alone runs it."""
    best, at_import = range(line, line + 1), True
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if not isinstance(node, ast.stmt) or not node.lineno <= line <= (node.end_lineno or node.lineno):
            continue
        body = getattr(node, "body", None)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            at_import = line < node.body[0].lineno
        end = node.end_lineno or node.lineno
        head = range(
            node.lineno, body[0].lineno if isinstance(body, list) and body[0].lineno > node.lineno else end + 1
        )
        if line in head:
            best = head
    return best, at_import


def tests_for(measured: Measured, source: str, mutant: Mutant) -> list[str]:
    """The tests for a mutant, the fastest first, until they take `test_seconds`. If only a child process of a test runs
    the line, there is no test."""
    of_line = measured.tests.get(mutant.module, {})
    lines, at_import = statement(source, mutant.line)
    names = set().union(*(of_line.get(line, set()) for line in lines))
    if at_import:  # a constant, a default value: any test of the module may use it
        names = set().union(*of_line.values())
    chosen, total = [], 0.0
    for name in sorted(names, key=lambda name: (measured.seconds.get(name, 1.0), name)):
        total += measured.seconds.get(name, 1.0)
        if total > measured.test_seconds and chosen:
            break
        chosen.append(name)
    return chosen


# Trying


def attempt(tree: Path, mutant: Mutant, measured: Measured, seeds: str) -> Outcome:
    path = tree / mutant.module
    source, times = path.read_text(), path.stat()
    code = changed(source, mutant)
    assert code is not None
    diff = "\n".join(list(difflib.unified_diff(source.splitlines(), code.splitlines(), lineterm="", n=2))[2:])
    names = tests_for(measured, source, mutant)
    begin = time.monotonic()
    path.write_text(code)
    try:
        outcome, by = judge(tree, mutant, measured, names, seeds, source)
    finally:
        path.write_text(source)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # the times that the cached bytecode expects
    return Outcome(mutant, outcome, by, len(names), round(time.monotonic() - begin, 1), diff)


def judge(tree: Path, mutant: Mutant, measured: Measured, names: list[str], seeds: str, source: str) -> tuple[str, str]:
    if names:
        (tree / ".mutation" / "tests").write_text("\n".join(names))
        expected = sum(measured.seconds.get(name, 1.0) for name in names)
        code, output = run(tree, pytest("-x", "--tb=no", "@.mutation/tests"), timeout=30 + 4 * expected)
        if code != 0:
            failed = re.search(r"^(?:FAILED|ERROR) (.*)$", output, re.MULTILINE)
            return BY_UNIT, failed[1] if failed else "no end" if code is None else output[-300:]
    lines, at_import = statement(source, mutant.line)
    reached = measured.simulated.get(mutant.module, set())
    if not (reached if at_import else reached & set(lines)):
        return SURVIVED, "the simulator does not run this line" if names else "no test runs this line"
    code, output = run(tree, ["-m", "tests.simulation", "--seeds", seeds], timeout=30 + 4 * measured.simulation_seconds)
    if code == 0:
        return SURVIVED, ""
    failed = re.search(r"^seed .*$", output, re.MULTILINE)
    return BY_SIMULATION, failed[0] if failed else "no end" if code is None else output[-300:]


# Reports


def load(results: Path) -> dict[Mutant, Outcome]:
    """The last outcome of each mutant."""
    known: dict[Mutant, Outcome] = {}
    for line in results.read_text().splitlines() if results.exists() else ():
        record = json.loads(line)
        mutant = Mutant(**record.pop("mutant"))
        known[mutant] = Outcome(mutant, **record)
    return known


def report(known: dict[Mutant, Outcome]) -> None:
    for one in known.values():
        if one.outcome == SURVIVED:
            where = f"{one.mutant.module}:{one.mutant.line}"
            print(f"\n{where} {one.mutant.operator} ({one.tests} tests) {one.by}\n{one.diff}")
    print(f"\n{'area':12} {'mutants':>8} {'unit':>8} {'simulator':>10} {'survived':>9} {'score':>7}")
    for area in (*AREAS, "all"):
        outcomes = [one.outcome for one in known.values() if area in (one.mutant.area, "all")]
        if outcomes:
            unit, simulation, left = (outcomes.count(each) for each in (BY_UNIT, BY_SIMULATION, SURVIVED))
            score = (unit + simulation) / len(outcomes)
            print(f"{area:12} {len(outcomes):8} {unit:8} {simulation:10} {left:9} {score:7.1%}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/mutation.sh", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tree", type=Path, required=True, help="the copy to work in; given by scripts/mutation.sh")
    parser.add_argument("--mutants", type=int, default=300, help="how many to draw")
    parser.add_argument("--seed", type=int, default=1, help="of the draw")
    parser.add_argument("--test-seconds", type=float, default=15, help="of unit tests for each mutant, as measured")
    parser.add_argument("--simulate", default="0:20", help="seeds of the simulator, FIRST:END")
    parser.add_argument("--results", type=Path, help="JSON lines; those that it holds already are not tried again")
    parser.add_argument("--again", type=Path, help="results; their survivors are tried once more; goes on in this file")
    arguments = parser.parse_args()
    tree = arguments.tree.resolve()
    if (tree / ".git").exists():
        parser.error(f"{tree} is no copy: its files would be changed. Type: scripts/mutation.sh")
    results = arguments.again or arguments.results or tree / ".mutation" / "results"
    known = load(results)
    measured = measure(tree, arguments.simulate)
    measured.test_seconds = arguments.test_seconds
    if arguments.again:
        to_try = [mutant for mutant, one in known.items() if one.outcome == SURVIVED]
    else:
        to_try = [mutant for mutant in draw(tree, arguments.mutants, arguments.seed) if mutant not in known]
        random.Random(arguments.seed).shuffle(to_try)  # so that an interrupted run has tried all areas
    for number, mutant in enumerate(to_try, 1):
        one = known[mutant] = attempt(tree, mutant, measured, arguments.simulate)
        print(
            f"{number}/{len(to_try)} {one.seconds:5.1f} s {mutant.module}:{mutant.line} {one.outcome} {one.by}",
            flush=True,
        )
        with results.open("a") as file:
            file.write(json.dumps(asdict(one)) + "\n")
    report(known)
    return 0


if __name__ == "__main__":
    sys.exit(main())
