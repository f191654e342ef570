# `make` shows the verbs. Every verb sets up first; a second set-up costs nothing.
PYTHON ?= python3
PY := .venv/bin/python
# Tests side by side; auto: as many as the machine carries. A selection (ARGS) is played one test after another.
WORKERS ?= $(if $(ARGS),0,auto)
# Which test belongs to which verb is said in hack/verbs.py alone.
PLAY = exec $(PY) -m pytest -n $(WORKERS) --verb=$@ $(ARGS)
# Programs that are built before the tests that need them. With LEAVE_OUT those tests decide whether one is missed.
BUILD = $(if $(LEAVE_OUT),-)@exec $(PY) -m hack.$(1) >build/programs.txt
# Contract of the API server, CRDs, rollouts, and all of the chart's admission policies.
ON_ANOTHER_MINOR = tests/integration/test_rollout.py tests/kube/test_contract_cluster.py tests/api/test_crd_cluster.py $(ADMISSION) \
  tests/api/test_policy_table.py tests/integration/test_repair_mps.py::test_a_token_of_the_operator_may_set_that_one_value_and_change_nothing_else
ADMISSION = tests/chart/test_admission.py tests/chart/test_admission_configmaps.py tests/chart/test_admission_nodes.py \
  tests/chart/test_admission_operator.py tests/chart/test_effects.py \
  tests/chart/test_midchange.py tests/chart/test_platform_admission.py tests/chart/test_rollback.py tests/chart/test_uninstall.py tests/integration/test_isolation.py
# Hundreds of processes import our modules: compile them once.
unexport PYTHONDONTWRITEBYTECODE
# `exec` replaces the shell with pytest, so that whoever ends make ends the tests too.
.DEFAULT_GOAL := help
.PHONY: help setup demo test test-cluster test-hack test-long test-all test-random test-crash test-faults test-nvidia test-nvidia-old test-kubernetes test-gpu e2e verify gen fmt lock docs cluster cluster-down run bench report mutants images release clean

help: ## show these verbs
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {gsub(/\$$\$$/, "$$"); printf "  make %-15s %s\n", $$1, $$2}' Makefile

setup: ## make .venv from requirements-dev.lock (PYTHON=python3.12 takes another interpreter)
	@$(PYTHON) hack/setup.py

demo: setup ## play the main job; DRIVER=cluster: on a real control plane
	@$(PY) -m hack.demo

test: setup ## rungs 0 and 1 of the test ladder, Python only; ARGS="tests/planning -k drain" selects
	@$(PLAY)

test-cluster: setup ## rung 2, a real control plane, and what else Go or a C compiler builds; without kills and faults
	$(call BUILD,cluster.toolchain controlplane kwok helm helm3 kind actionlint charttools krewtools olmtools)
	@$(PLAY)

test-hack: setup ## the tests of hack/, Python only
	@$(PLAY)

test-long: setup ## the long tests of rungs 0 and 1: kill -9 at every write of every scenario, a metered day
	@$(PLAY)

test-all: ## every test that this machine can play, verb by verb; LEAVE_OUT="rung4" leaves out what it cannot
	@$(MAKE) --no-print-directory --keep-going test test-hack test-long test-cluster test-crash test-nvidia test-nvidia-old e2e test-faults

test-random: setup ## 10,000 examples of the random world and 10,000 of the record (about an hour of CPU); ARGS="-k seed-7"
	@exec env PROPERTIES=long $(PY) -m pytest -n auto tests/planning/test_invariants.py tests/planning/test_record.py tests/cli/test_no_command_harms.py $(ARGS)

mutants: setup ## plant a seeded sample of mistakes and name those that no test notices; COUNT=12 SEED=1 ONLY=planning/drain TESTS_OF=COMMIT
	@$(PY) -m hack.mutation --count $(or $(COUNT),12) --seed $(or $(SEED),1) --only "$(ONLY)" --tests-of "$(TESTS_OF)"

verify: setup ## format, lint, types, imports, generated files, and the tests of form: pages, tables, chart (a minute)
	@$(PY) -m hack.verify

gen: setup ## write CRDs, the chart's copies and docs/reference
	@$(PY) -m hack.generate

fmt: setup ## format, and fix what ruff can fix
	@$(PY) -m ruff check --quiet --fix-only . && $(PY) -m ruff format --quiet .

lock: setup ## write requirements*.lock anew from pyproject.toml
	@$(PY) -m hack.lock

docs: setup ## docs/ as a site in build/site; a broken link fails
	@$(PY) -m hack.docs

cluster: setup ## control plane with simulated nodes; NODES=8, DRIVER=kind; use: eval "$$(make -s cluster)"
	@$(PY) -m hack.cluster up

cluster-down: setup ## stop what `make cluster` started
	@$(PY) -m hack.cluster down

run: setup ## the operator against $$KUBECONFIG, under the shipped RBAC
	@$(PY) -m hack.run

bench: setup ## one table of costs, and build/bench.json
	@$(PY) -m hack.bench

test-crash: setup ## kill -9 at every write on rung 2; FULL=1: every scenario there (an hour)
	$(call BUILD,cluster.toolchain)
	@$(if $(FULL),export CRASH=full;) $(PLAY)

# Where many processes want the cores, each works until it waits (SCHED_BATCH, sched(7)): half the switches, a quarter more runs.
BATCH := $(shell command -v chrt >/dev/null && chrt --batch 0 true 2>/dev/null && echo chrt --batch 0)

# Of `make test-faults FULL=`.
DEPTH = $(if $(filter-out 1 2 3,$(FULL))$(word 2,$(FULL)),$(error FULL=$(FULL) is neither FULL=1 (each fault once per sort of write) nor FULL=2 (in each scenario) nor FULL=3 (at both writes, at one object and at everything)),$(FULL))

test-faults: setup $(if $(FULL),build/faults/points) ## the fault matrix on rung 2: a sample; SEED=1 RUNS=100 that one, FULL=1 each fault once per sort of write, FULL=2 in each scenario, FULL=3 at both ends; it goes on where it was ended
	$(call BUILD,cluster.toolchain)
	@trap : INT; trap 'kill $$!' TERM; $(if $(FULL),FAULTS=full FAULTS_DEPTH=$(DEPTH)) $(if $(SEED),FAULTS_SEED=$(SEED)) $(if $(RUNS),FAULTS_RUNS=$(RUNS)) $(BATCH) $(PY) -m pytest -n $$($(PY) -m tests.faults.cases $(if $(FULL),--full)) --verb=$@ tests/integration $(ARGS) & wait $$!; status=$$?; \
	  while kill -0 $$! 2>/dev/null; do wait $$!; status=$$?; done; $(PY) -m tests.faults.cases build/faults/$(if $(FULL),full $(DEPTH),sample); exit $$status

build/faults/points: setup # never made, so that FULL= always asks; records what has not been recorded yet
	$(call BUILD,cluster.toolchain)
	@exec env -u CI FAULTS=points $(BATCH) $(PY) -m pytest -q -n $$($(PY) -m tests.faults.cases --full) -m faults tests/integration/test_faults.py $(ARGS)
	@exec $(PY) -m tests.faults.points build/faults/full $(DEPTH)

test-gpu: setup ## rung 5: the agent's read-only checks on a real GPU
	@exec $(PY) -m pytest --verb=$@ $(ARGS)

test-nvidia: setup ## rung 3: NVIDIA's own programs on the simulated libnvidia-ml
	$(call BUILD,cluster.toolchain)
	$(call BUILD,nvidia.build)
	@exec $(PY) -m pytest --verb=$@ $(ARGS)

test-kubernetes: setup ## contract, CRDs, admission and rollouts on another minor of Kubernetes: VERSION=1.30
	$(call BUILD,cluster.toolchain kwok helm)
	@KUBEBUILDER_ASSETS=$$($(PY) -m hack.cluster.minors $(VERSION)) && export KUBEBUILDER_ASSETS && exec $(PY) -m pytest --verb=test-cluster $(or $(ARGS),$(ON_ANOTHER_MINOR))

test-nvidia-old: export MIG_PARTED = v0.13.1
test-nvidia-old: setup ## the tests of mig-parted and mig-manager of rung 3, with an older release of both
	$(call BUILD,cluster.toolchain)
	$(call BUILD,nvidia.build)
	@exec $(PY) -m pytest --verb=test-nvidia $(or $(ARGS),$(wildcard tests/nvidia/test_mig_*.py) tests/nvidia/test_layouts.py tests/nvidia/test_foreign_files.py tests/nvidia/test_whole_wait.py)

report: setup ## measure what users may expect, and write it into docs/explanation/performance.md; ONLY=idle,roll NODES=5000
	@$(if $(NODES),NODES=$(NODES)) $(PY) -m hack.figures $(if $(ONLY),--only $(ONLY))

images: setup ## the image, under build/images; ARCH="amd64 arm64", IMAGE=, ADVISORIES=
	@$(PY) -m hack.images $(foreach arch,$(ARCH),--arch $(arch)) \
	  $(if $(IMAGE),--image $(IMAGE)) $(if $(ADVISORIES),--advisories $(ADVISORIES))

release: setup ## prepare VERSION=0.1.0 under build/release; REGISTRY=registry.example/team, SOURCE=https://HOST/TEAM/NAME
	@$(PY) -m hack.release prepare $(VERSION) $(if $(REGISTRY),--registry $(REGISTRY)) $(if $(SOURCE),--source $(SOURCE))

e2e: setup ## rung 4: real kubelets and containerd here (root), our chart on them; DRIVER=kind: in that cluster
ifeq ($(DRIVER),kind)
	@$(PY) -m hack.kindtrial
else
	$(call BUILD,realnode.needs)
	$(call BUILD,cluster.toolchain controlplane helm kubelet containerd krewtools releasetools)
	$(call BUILD,nvidia.build)
	@exec $(PY) -m pytest --verb=$@ $(or $(ARGS),tests/e2e)
endif

clean: ## remove what the verbs above made in this checkout
	@rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
