# make demo    the main study on MNIST-1D, results under results/bias_variance/
# make test    every test
# make test-quick   the tests of the package alone, in two or three minutes
# make test-oldest   those with the oldest libraries that pyproject.toml allows, in .venv-oldest
# make lint    ruff and mypy
# make docs    the documentation site, docs/_build/html/index.html; its tutorial is run
# make pages   every page of docs/results from its study, for days; what is finished under results/ is not computed again
# Each makes .venv first, from Python 3.11 or newer and the pinned packages of constraints.txt, and makes it anew when
# those or pyproject.toml change. Another interpreter: make PYTHON=/path/to/python3.12 test

PYTHON ?= python3
WORKERS ?= 2
VENV := .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.installed

OLDEST := .venv-oldest

.PHONY: demo docs test test-quick test-oldest lint pages

demo: $(STAMP)
	$(RUN) -m studies.bias_variance

# One thread a worker: two test processes with two threads each on two cores take turns instead of computing.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n $(WORKERS)

# The tests beside the code that they test, but the slow ones, without those of studies, pages and packaging.
test-quick: $(STAMP)
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n $(WORKERS) -m "not slow" tests/unit tests/test_imports.py tests/test_constants.py

test-oldest: $(OLDEST)/.installed
	OMP_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest -n $(WORKERS) -m "not slow" tests/unit

lint: $(STAMP)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy fganalysis theory studies

docs: $(STAMP)
	OMP_NUM_THREADS=1 $(RUN) -m sphinx -q --fail-on-warning --keep-going -b html docs docs/_build/html

# The studies behind the pages of docs/results, those that take times last and one after the other.
pages: $(STAMP)
	set -e; for study in facts ren_variance calibration "calibration --part progress" mutants averaging tangents equilibrium \
		finite_difference binary progress subspaces zeroth_order sketches \
		architectures fdfa "fdfa --network conv" guess_target "guess_target --part resnet" "wang2025 --full"; \
		do $(RUN) -m studies.$$study --workers $(WORKERS) --page docs/results; done
	set -e; for study in step_cost throughput "throughput --network gpt" "throughput --network resnet" \
		"throughput --by-law" "throughput --scaling" "throughput --monitor"; do $(RUN) -m studies.$$study --page docs/results; done

# The constraints are essential: unpinned, torch brings the newest build and gigabytes beside it. The build backend is
# installed first, so that it is the pinned one and building the project needs no environment of its own. vit-pytorch,
# whose models the tests take, comes without its dependencies: the tests need einops, and nothing of torchvision.
$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) not found: name a Python 3.11 or newer, make PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "fganalysis needs Python 3.11 or newer, $(PYTHON) is older: make PYTHON=/path/to/python3"; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	$(RUN) -m pip install --disable-pip-version-check --constraint constraints.txt hatchling editables
	$(RUN) -m pip install --disable-pip-version-check --constraint constraints.txt --no-build-isolation --editable '.[test,docs]'
	$(RUN) -m pip install --disable-pip-version-check --constraint constraints.txt --no-deps vit-pytorch
	touch $(STAMP)

# Without transformers and others whose networks the tests take: they ask for newer libraries, and their tests are skipped.
$(OLDEST)/.installed: pyproject.toml constraints.txt tests/oldest.py
	$(PYTHON) -m venv --clear $(OLDEST)
	$(OLDEST)/bin/python -m pip install --disable-pip-version-check --constraint constraints.txt packaging
	$(OLDEST)/bin/python tests/oldest.py > $(OLDEST)/constraints.txt
	$(OLDEST)/bin/python -m pip install --disable-pip-version-check --constraint $(OLDEST)/constraints.txt hatchling editables
	$(OLDEST)/bin/python -m pip install --disable-pip-version-check --constraint $(OLDEST)/constraints.txt --no-build-isolation \
		--editable . pytest pytest-xdist hypothesis scikit-learn dask distributed zarr
	touch $(OLDEST)/.installed
