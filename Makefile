# Everything starts here:  make quickstart   and   make test
#
#   VENV=DIR      environment to use (default .venv). One that exists and was not made here is
#                 used with the torch it has; what is missing is added to it.
#   TORCH=2.10.0   another torch than the tested one, for a driver that needs it.
#   CPU=1         torch without CUDA, from PyTorch's own index (CPU_INDEX): 3 GB less.
#   ARGS='-k op'  arguments of pytest (default: two workers).
#   PYTHON=...    interpreter that makes the environment (default python3).

PYTHON ?= python3
VENV ?= .venv
TORCH ?=
CPU ?=
CPU_INDEX ?= https://download.pytorch.org/whl/cpu
WORK_DIR ?= work_dirs/quickstart
ARGS ?= -n 2 --dist loadfile

PY := $(VENV)/bin/python
STAMP := $(VENV)/.coc_mm-torch-$(or $(TORCH),tested)$(if $(CPU),-cpu)
TASKS := classification detection segmentation

export MPLBACKEND ?= Agg
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help install quickstart $(TASKS:%=quickstart-%) demo points docs test lint format wheel clean
.DEFAULT_GOAL := help

help:
	@echo 'make quickstart       train and test a classifier, a detector and a segmentor on real digits'
	@echo 'make quickstart-TASK  one of them: $(TASKS)'
	@echo 'make demo             show clusters in the browser (DEMO_ARGS="--port 8000")'
	@echo 'make points           train PointMLP with context clusters on synthetic clouds'
	@echo 'make test             lint, check types and run the tests'
	@echo 'make docs             build the site in docs/_build/html'
	@echo 'make install          only install, into VENV=$(VENV)'
	@echo 'make format           format the code'
	@echo 'make wheel            build dist/*.whl'
	@echo 'make clean            remove builds and caches (not the environment, not your runs)'

$(PY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo 'coc_mm needs Python 3.11 or later: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11' >&2; exit 2; }
	@[ ! -e $(VENV) ] || { echo '$(VENV) exists but is no environment: name another, VENV=DIR' >&2; exit 2; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo 'This Python cannot make environments. On Debian: apt-get install python3-venv' >&2; exit 2; }
	@touch $(VENV)/.coc_mm-made

# The tested pins, less torch and what torch pins where another one is wanted or already there.
$(STAMP): setup.cfg setup.py pyproject.toml constraints.txt | $(PY)
	@echo '== installing into $(VENV), a few minutes the first time'
	@if [ -z '$(TORCH)' ] && [ -f $(VENV)/.coc_mm-made ]; then cp constraints.txt $(VENV)/.coc_mm-constraints; \
	  else grep -viE '^(torch|torchvision|triton|sympy|fsspec|setuptools)==' constraints.txt > $(VENV)/.coc_mm-constraints; fi
	@if [ -n '$(TORCH)' ]; then echo 'torch==$(TORCH)' >> $(VENV)/.coc_mm-constraints; fi
	@# A torch that is there stays. The index has little but torch, what else it needs follows.
	@[ -z '$(CPU)' ] || $(PY) -c 'import torch' 2>/dev/null || \
	  $(PY) -m pip install --quiet --progress-bar off -c $(VENV)/.coc_mm-constraints --no-deps \
	  --index-url $(CPU_INDEX) torch torchvision || \
	  { echo 'no torch from $(CPU_INDEX); another index: CPU_INDEX=URL' >&2; exit 2; }
	$(PY) -m pip install --quiet --progress-bar off -c $(VENV)/.coc_mm-constraints -e '.[all,dev]' || \
	  { echo 'pip failed; the same command without --quiet says which packages do not agree' >&2; exit 2; }
	@# The stack asks for OpenCV twice; without a display library only the headless one loads.
	@$(PY) -c 'import cv2' 2>/dev/null || $(PY) -m pip install --quiet --force-reinstall --no-deps \
	  "$$(grep -i '^opencv-python-headless==' constraints.txt)"
	@rm -f $(VENV)/.coc_mm-torch-*
	@touch $@

install: $(STAMP)

quickstart: $(STAMP)
	$(PY) tools/quickstart.py --work-dir $(WORK_DIR)

$(TASKS:%=quickstart-%): quickstart-%: $(STAMP)
	$(PY) tools/quickstart.py $* --work-dir $(WORK_DIR)

demo: $(STAMP)
	$(PY) projects/gradio_demo/app.py $(DEMO_ARGS)

points: $(STAMP)
	$(PY) tools/train.py projects/point_cloud/configs/pointmlp-coc_quick_solids.py

docs: $(STAMP)
	$(PY) -m pip install --quiet -c $(VENV)/.coc_mm-constraints -e '.[docs]'
	$(PY) -m sphinx -W --keep-going -b html -c docs . docs/_build/html

lint: $(STAMP)
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy coc_mm

format: $(STAMP)
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

# One thread per worker: the tests are many small problems.
test: export OMP_NUM_THREADS ?= 1
test: lint
	@command -v chromium > /dev/null || echo 'browser tests are skipped; to run them: apt-get install chromium'
	$(PY) -m pytest $(ARGS)

wheel: $(STAMP)
	$(PY) -m build --wheel

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis .coverage*
	find coc_mm configs tools tests -name __pycache__ -type d -prune -exec rm -rf {} +
