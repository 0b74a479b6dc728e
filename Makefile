# make lab        install everything into .venv, copy the chapters to my/ (once; they are yours), and
#                 open JupyterLab on the first; ARGS="--no-browser --port 8890" hands options on to it
# make test       unit tests, then every notebook
# make test-unit  unit tests alone
# make ladder     base -> SFT -> reward model -> PPO -> PPO-ptx -> DPO, and the table that compares
# make build      rebuild everything in data/ from nothing
# make notebooks  run the notebooks and store what they show; ARGS=05 runs one
# make handouts   build/handouts: the same copies, to give away
# make slides     build/slides: the notebooks as lectures, in a folder that needs no network
# make site       build/site: the notebooks as a book with search, for a browser
# make lint       style checks
#
# PYTHON=python3.12 chooses another Python (3.10 or newer) to make .venv with; VENV=folder another
# place for it. On Linux the plain torch brings CUDA along; without an NVIDIA GPU, a far smaller one:
#   make lab TORCH_INDEX=https://download.pytorch.org/whl/cpu

NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 10))
PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11 python3.10; do \
	if $$python -c "$(NEW_ENOUGH)" 2>/dev/null; then echo $$python; break; fi; done)
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
TORCH_INDEX ?=
TORCH := $(shell sed -n 's/^\(torch==[^ ;]*\).*/\1/p' constraints.txt)
NOTEBOOKS := $(sort $(wildcard notebooks/*.ipynb))
ARGS ?=

# The printed address opens the first chapter too; the settings ask the network for no news.
LAB := --LabApp.default_url=/lab/tree/my/$(notdir $(firstword $(NOTEBOOKS))) \
	--LabApp.app_settings_dir="$(CURDIR)/notebooks/.lab"
# Jupyter refuses to run as root, which is who one is in a container.
LAB += $(if $(filter 0,$(shell id -u)),--allow-root)

.PHONY: help install lab test test-unit test-notebooks ladder build notebooks handouts slides site \
	lint constraints

help:
	@sed -n 's/^# \{0,1\}//p;/^$$/q' Makefile

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c "$(NEW_ENOUGH)" || \
		{ echo "no Python 3.10 or newer found: install one, or say make PYTHON=/path/to/python"; exit 1; }
	@# Where Debian's python3-venv is missing, a first try leaves a Python without pip behind.
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV): once, and it takes some minutes."
	$(BIN)/python -m pip install $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$(TORCH)"
	$(BIN)/python -m pip install -c constraints.txt -e ".[notebooks,test]"
	@touch $@

lab: $(INSTALLED)
	$(BIN)/python -m rlhf_edu notebooks copies
	$(BIN)/jupyter lab $(LAB) $(ARGS)

test: test-unit test-notebooks

test-unit: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

test-notebooks: $(INSTALLED) | test-unit
ifeq ($(NOTEBOOKS),)
	@echo "no notebooks to test yet"
else
	$(BIN)/python -m pytest --nbval notebooks
endif

ladder: $(INSTALLED)
	$(BIN)/python -m rlhf_edu ladder $(ARGS)

build: $(INSTALLED)
	$(BIN)/python -m rlhf_edu build $(ARGS)

notebooks: $(INSTALLED)
	$(BIN)/python -m rlhf_edu notebooks execute $(ARGS)

handouts slides site: $(INSTALLED)
	$(BIN)/python -m rlhf_edu notebooks $@ $(ARGS)

# What only a lecturer needs is installed when it is first asked for.
slides: $(INSTALLED)-lecture
site: $(INSTALLED)-site
$(INSTALLED)-%: $(INSTALLED)
	$(BIN)/python -m pip install -c constraints.txt -e ".[$*]"
	@touch $@

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# CUDA's own packages and the local part of a version (+cpu) differ from machine to machine.
constraints: $(INSTALLED)
	{ sed -n '/^#/p' constraints.txt; $(BIN)/python -m pip freeze --exclude-editable \
		| grep -v -i -e '^nvidia' -e '^cuda' -e '^triton' -e '^setuptools' -e '^wheel' \
		| sed -e 's/+[a-z0-9.]*$$//' -e '/^torch==/!s/$$/ ; python_full_version >= "3.11.5"/'; \
	} > constraints.tmp
	mv constraints.tmp constraints.txt
