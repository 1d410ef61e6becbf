# The commands of a contributor. CONTRIBUTING.md explains them; each target calls a script that also runs by itself.
.PHONY: help test fast lint format sim bench docs docs-site package

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

# Their files are in memory if there is room: they sync thousands of small files. The full run has them on the disk.
# A TMPDIR of the caller stays. Tests execute scripts that they write, which a file system may forbid (noexec).
in_memory = $(if $(TMPDIR),,$(shell ! grep -qs '^[^ ]* /dev/shm .*[ ,]noexec' /proc/mounts && [ "$$(df --output=avail /dev/shm 2>/dev/null | tail -n 1)" -gt 2000000 ] 2>/dev/null && echo TMPDIR=/dev/shm))

# For a part of the time these tests wait for a process: one more at a time than there are processors.
fast: ## unit and model tests without the slow ones: the loop while you work
	$(in_memory) scripts/test.sh -q -n $$(($$(nproc) + 1)) --dist worksteal -m "not slow" --hypothesis-profile quick tests/unit tests/model

test: ## all tests
	scripts/test.sh

lint: ## lint, format and types, as CI checks them
	scripts/lint.sh

format: ## let ruff format and mend what it can
	scripts/lint.sh --fix

sim: ## a thousand seeds of the simulation: SEEDS=0:1000 JOBS=2
	scripts/simulate.sh --seeds $(or $(SEEDS),0:1000) --jobs $(or $(JOBS),2)

bench: ## all figures beside etcd, LMDB and the disk: a quarter of an hour
	scripts/bench.sh all

docs: ## the tests of README and docs
	scripts/test.sh -q -m docs

package: ## the sdist and the wheel, in dist/
	scripts/package.sh dist

docs-site: ## the documentation as a site, in site/
	scripts/docs.sh
