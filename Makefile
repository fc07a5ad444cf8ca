# On a fresh Debian 12 (root, or a user with sudo) each of these is the only command to type.
#   make test    everything needed is installed, then all tests run (ARGS=tests/unit for some)
#   make check   linters, types, architecture
#   make lab     tests with real hosts: systemd, libvirtd, two networks (LAB=tests/lab/test_nodes.py for some)
#   make lab-up  such hosts to play with; lab-shell HOST=n1, lab-do DO='power-off n1', lab-down
#   make demo    a cluster on this machine, its failures and what Chime does (KEEP=1 leaves it running)
#   make down    end what `make demo KEEP=1` left running
#   make bench   measurements into build/bench.json (BENCH='--only recovery' for some)
#   make sim     random runs of the real cores in a simulated world (SEEDS=n FIRST=k, SCENARIO=file, STORY=seed)
#   make sim-mutants  deliberate defects in the cores, each of which the simulator must find
#   make model   the protocol of ownership: every state of a formal model, and defects that it must find
#   make coverage  lines and branches of core/ and wire/ that no unit test, scenario or simulated run reaches
#   make install    Chime on this machine as services (PREFIX=/opt/chime DESTDIR= PARTS="server agent"; docs/install.md)
#   make uninstall  take it off again; state and configuration stay (PURGE=1: they go too)
#   make lock    renew the pinned versions and hashes of what Chime is installed with (KEEP=1: hashes and additions only)
#   make clean   remove everything made here
SHELL := /bin/bash
ARGS := tests --ignore=tests/lab
LAB := tests/lab
PY := .venv/bin/python
# Hosts of the tests are namespaces, so they need root; files made here stay the caller's.
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo -E env PYTHONDONTWRITEBYTECODE=1 PATH="$$PATH")
OWN = status=$$?; [ "$$(id -u)" = 0 ] || sudo chown -R "$$(id -u):$$(id -g)" build; exit $$status

.PHONY: help test check coverage demo down bench sim sim-mutants model clean system venv install uninstall lock \
	lab lab-up lab-down lab-shell lab-do

help:
	@sed -n '/^#   make/s/^# //p' Makefile

system:
	@contrib/bootstrap.sh system
	@mkdir -p build

venv:
	@if ! contrib/bootstrap.sh 2>/dev/null; then contrib/bootstrap.sh system; fi

test: system
	@$(SUDO) $(PY) -m pytest -q -ra -p no:cacheprovider $(ARGS); $(OWN)

lab: system
	@$(SUDO) $(PY) -m pytest -q -ra --durations=60 -p no:cacheprovider $(LAB); $(OWN)

lab-up: system
	@$(SUDO) $(PY) -m tests.lab up; $(OWN)

lab-down:
	@[ ! -x $(PY) ] || $(SUDO) $(PY) -m tests.lab down

lab-shell:
	@$(SUDO) $(PY) -m tests.lab shell $(or $(HOST),srv) $(CMD)

lab-do:
	@$(SUDO) $(PY) -m tests.lab $(DO)

check: venv
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/lint-imports --no-logo

demo: system
	@$(SUDO) $(PY) -m contrib.demo.demo $(if $(KEEP),--keep); $(OWN)

down:
	@[ ! -x $(PY) ] || $(SUDO) $(PY) -m tests.hosts down

bench:
	@contrib/bootstrap.sh bench
	@mkdir -p build
	@$(SUDO) $(PY) -m tests.bench $(BENCH); $(OWN)

SIM := $(PY) -m tests.sim
sim: venv
	@$(if $(SCENARIO),$(SIM) scenario $(SCENARIO),$(if $(STORY),$(SIM) story $(STORY),\
	$(SIM) $(if $(SEEDS),--seeds $(SEEDS)) $(if $(FIRST),--first $(FIRST))))

sim-mutants: venv
	@$(PY) -m tests.sim.mutants

model: system
	@$(PY) tests/model/run.py

# Parts of the wire are nothing without sockets: their tests are not in tests/unit, and need no root.
coverage: venv
	@rm -rf build/coverage; mkdir -p build/coverage
	@$(PY) -m coverage run -m tests.sim --seeds 100 --first 1 --processes 1 & sim=$$!; \
	$(PY) -m coverage run -m pytest -q -p no:cacheprovider tests/unit tests/sim tests/integration/test_{client,notify}.py; \
	tests=$$?; wait $$sim && exit $$tests
	@$(PY) -m coverage combine -q
	@$(PY) -m coverage report; status=$$?; \
	echo "coverage: $$($(PY) -m coverage report --format=total) % of lines and branches"; exit $$status

install uninstall:
	@PREFIX='$(PREFIX)' DESTDIR='$(DESTDIR)' PARTS='$(PARTS)' PYTHON='$(PYTHON)' PURGE='$(PURGE)' contrib/install.sh $@

lock:
	@$(if $(PYTHON),PYTHON='$(PYTHON)') KEEP='$(KEEP)' contrib/lock.sh

clean:
	@[ ! -x $(PY) ] || $(SUDO) $(PY) -m tests.hosts sweep
	@[ ! -x $(PY) ] || $(SUDO) $(PY) -m tests.lab sweep
	rm -rf build .venv *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
