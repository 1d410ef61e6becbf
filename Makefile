# The commands of a contributor. CONTRIBUTING.md explains them; each target calls a script that also runs by itself.
.PHONY: help test fast lint format sim bench docs docs-site package

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

fast: ## unit and model tests without the slow ones: the loop while you work
	scripts/fast.sh

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
