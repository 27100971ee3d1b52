# The README's two commands are `make quickstart` and `make test`. Everything lives in .venv; a second call installs nothing.
#
#   make quickstart   set up, train the embedded model on generated data, ask it something it never saw
#   make test         set up, then format check, lint, types, import contracts and all tests
#   make test-llamafactory   set up the real LLaMA-Factory (5 GB) and run the tests that train with it
#   make fuzz         fuzz what reads files of others, SECONDS_EACH=60 per target (docs/security.md)
#   make lint types   the checks alone            make format   rewrite the files in the house format
#   make kill-matrix  kill a training at each change it makes to the file system, and compare the end (Linux, half an hour)
#   make faults       the same for loss of power, a full disk, I/O errors, and recoveries that are killed
#   make ranks        stop or kill one of two processes at random instants (Linux)
#   make signals      200 signals at random instants
#   make combinations resume 24 kinds of training at each of their checkpoints
#   make mutants      break the modules that nothing may slip past, and see whether their tests notice
#   make golden       compare the first losses of each preset with those that were written down
#   make soak         faults at random instants for SOAK minutes (60)
#
#   PYTHON=/path/to/python3.12   another interpreter      PROMPT="…"   another question for the quickstart

VENV   ?= .venv
SOAK   ?= 60
PROMPT ?= Set the floor lamp in the kitchen to 40 percent
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt

.PHONY: clean combinations faults format fuzz golden install install-test kill-matrix lint mutants quickstart ranks signals soak test test-llamafactory types

quickstart: install
	$(BIN)/llamafarm train --strategy quickstart --overwrite
	$(BIN)/llamafarm generate --model output/quickstart --prompt "$(PROMPT)"

test: lint types
	$(BIN)/python -m pytest -n 2 --dist loadfile

# The install takes gigabytes and minutes, and each test starts a process that loads for many seconds: too much for each
# change. LLAMAFACTORY_HOME keeps it between calls.
LLAMAFACTORY_HOME ?= $(CURDIR)/.llamafactory
test-llamafactory: install-test
	LLAMAFARM_HOME=$(LLAMAFACTORY_HOME) $(BIN)/llamafarm backends setup llamafactory
	LLAMAFARM_HOME=$(LLAMAFACTORY_HOME) $(BIN)/llamafarm backends setup llamafactory-ppo
	LLAMAFARM_HOME=$(LLAMAFACTORY_HOME) $(BIN)/llamafarm backends check llamafactory --parity
	LLAMAFACTORY_HOME=$(LLAMAFACTORY_HOME) $(BIN)/python -m pytest tests/llamafactory

lint: install-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports

types: install-test
	$(BIN)/mypy

format: install-test
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

kill-matrix: install-test
	$(BIN)/python tests/reliability/kill_matrix.py

faults: install-test
	for fault in recovery power order full io; do $(BIN)/python tests/reliability/kill_matrix.py --fault $$fault || exit 1; done

ranks: install-test
	$(BIN)/python tests/reliability/ranks.py

combinations: install-test
	$(BIN)/python tests/reliability/combinations.py

mutants: install-test
	$(BIN)/python tests/reliability/mutants.py

golden: install-test
	$(BIN)/python tests/reliability/golden.py

signals: install-test
	$(BIN)/python tests/reliability/signals.py

soak: install-test
	$(BIN)/python tests/reliability/soak.py --minutes $(SOAK)

install: $(VENV)/installed
install-test: $(VENV)/installed-test

# The stamps are what makes a second call quick; the tests' installation contains the plain one.
$(VENV)/installed: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e .
	@touch $@

$(VENV)/installed-test: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e '.[test,qlora]'
	@touch $@ $(VENV)/installed

# A virtual environment that could not be finished (Debian without python3-venv) must not look like a good one.
$(BIN)/python:
	@for python in $(PYTHON) python3 python3.14 python3.13 python3.12 python3.11; do \
	  if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    echo "Creating $(VENV) with $$($$python --version)"; \
	    $$python -m venv $(VENV) && exit 0; rm -rf $(VENV); exit 1; \
	  fi; \
	done; \
	echo 'LlamaFarm needs Python 3.11 or newer: install one, or name it: make PYTHON=/path/to/python3.11' >&2; exit 1

# Coverage-guided fuzzing of the front doors; atheris is fetched for it alone.
SECONDS_EACH ?= 60
fuzz: install-test
	$(PIP) --no-deps atheris
	cd tests/security && for target in strategy rows csv gzip model_config adapter_config template manifest checkpoint plugin; do \
	  $(abspath $(BIN))/python fuzz.py $$target -max_total_time=$(SECONDS_EACH) || exit 1; \
	done

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
