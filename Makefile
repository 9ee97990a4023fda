# make demo   set up and do the whole job on phantom data
# make test   set up and run the tests
# make lint   format, lint, the order of imports, the types of the public API
# make foregut   a whole paper, small and from scratch, on the demo's data; its tables beside ours
# make best DATA=FOLDER   the best recipe that was measured: three seeds together, submissions of tracks 1 and 2
#                         (WEIGHTS=FILE where `entrep weights fetch mobilenetv2` cannot be)
# make figures   the pictures of the README, from the demo's phantom data
# make bench   ours beside its peers, some minutes; JSON in runs/bench
# All share .venv and install only what is not there yet.

PYTHON ?= python3
VENV ?= .venv
DEMO ?= runs/demo
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed

.PHONY: demo test lint foregut best figures bench clean

demo: $(INSTALLED)
	rm -rf $(DEMO)
	$(BIN)/entrep demo $(DEMO)

test: $(INSTALLED)
	# One thread a worker: two that share the cores by threads are slower than one after the other.
	# Bytecode is kept even where the environment says no: else each of the many processes compiles all of it.
	OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n logical --maxprocesses 8 --dist worksteal

lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/mypy

foregut: $(INSTALLED)
	test -d $(DEMO)/data || $(BIN)/entrep synth $(DEMO)/data --images 700 --test-images 210
	ENTREP_RUNS=$(DEMO)/runs $(BIN)/entrep reproduce foregut --recipe foregut-tiny --data $(DEMO)/data --split queries

# In a folder of its own: a split that is there already stays. What is trained already is not trained again.
best: export ENTREP_RUNS = runs/best
best: WEIGHTS ?= mobilenetv2
best: $(INSTALLED)
	test -n "$(DATA)" || { echo "say make best DATA=FOLDER"; exit 2; }
	$(BIN)/entrep split --data "$(DATA)" --ratios 90/10/0
	for seed in 0 1 2; do \
	  test -f runs/best/best-$$seed/run.json || \
	  $(BIN)/entrep train --recipe best --weights "$(WEIGHTS)" --seed $$seed --name best-$$seed || exit 1; \
	done
	$(BIN)/entrep ensemble best-0 best-1 best-2 --weights equal --name together --overwrite
	for track in 1 2; do $(BIN)/entrep predict --run together --track $$track --tta --data "$(DATA)" || exit 1; done
	# The contest keeps the truth of its test images to itself; where a folder has it, it is scored.
	if find -L "$(DATA)" -maxdepth 5 -name truth_cls.json | grep -q .; then \
	  $(BIN)/entrep evaluate --run together --split queries --tta; fi

figures: $(INSTALLED)
	test -d $(DEMO)/runs/clip-lora || $(BIN)/entrep demo $(DEMO)
	$(BIN)/python docs/figures.py $(DEMO)

# Small sizes, every question once; benchmarks/README.md has the full sizes and their figures. Growth takes longest and is left out.
bench: $(INSTALLED)
	mkdir -p runs/bench
	for question in scores search embedding training attention; do \
	  $(BIN)/python benchmarks/$$question.py --out runs/bench/$$question.json || exit 1; \
	done
	@echo "runs/bench/*.json; figures at full size, and how to repeat them: benchmarks/README.md"

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "entrep needs Python 3.11 or newer: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	# torch first and alone: its exact version keeps the CPU build where one is at hand.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $(INSTALLED)

clean:
	rm -rf $(VENV) $(DEMO)
