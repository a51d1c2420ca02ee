# make demo   detect objects in a picture with the model that ships in the package
# make test   the test suite, in under ten minutes on two cores; make test-processors, a part of it as three processors
# make examples   the scripts of examples/ that do not train for long, with their scores
# Each makes its own virtual environment first; the second run of either finds it made.

PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
PIP = $(VENV)/bin/python -m pip --disable-pip-version-check install -qq --constraint constraints.txt

# Two workers on two cores: more threads in each would only fight. Nothing that runs here needs the network.
RUN = OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
PYTEST = $(RUN) $(VENV)/bin/python -m pytest -n $(WORKERS) --dist loadfile

# How oneDNN and torch are told to be a lesser processor; nothing in it: as this one is.
AS_AVX2 = ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2
AS_SSE41 = ONEDNN_MAX_CPU_ISA=SSE41 ATEN_CPU_CAPABILITY=default

.PHONY: demo test test-processors test-slow test-common test-page test-oldest first-hour reliability coverage mutants \
	contact-sheet docs docs-test docs-figures notebooks examples bench types lint format wheel clean
.DEFAULT_GOAL := demo

demo: $(VENV)/.installed
	HF_HUB_OFFLINE=1 $(VENV)/bin/detr-hf demo --out demo_boxes.png

test: $(VENV)/.installed-dev
	$(PYTEST) -m "not slow"

# The tests that depend on the processor, as three of them. The processor's own run is last: its lines say what it lacks.
test-processors: $(VENV)/.installed-dev
	$(AS_AVX2) $(PYTEST) -m "processor and not slow"
	$(AS_SSE41) $(PYTEST) -m "processor and not slow"
	$(PYTEST) -m "processor and not slow"

test-slow: $(VENV)/.installed-dev
	$(PYTEST) -m slow

# transformers' own common tests, from its source distribution (PyPI), on our models and processors.
test-common: $(VENV)/.installed-dev
	$(RUN) $(VENV)/bin/python tests/transformers_common/run.py

# The page of `detr-hf app` in a real browser, with an environment on top of that of development: gradio asks for another
# Pillow. Screenshots are in out/page; TESTS="-k threshold" for some.
PAGE_VENV ?= .venv-page
test-page: $(PAGE_VENV)/.installed
	@command -v chromium-headless-shell >/dev/null || { echo "It needs a browser: apt-get install -y \
	--no-install-recommends chromium-headless-shell fonts-wqy-microhei"; exit 1; }
	$(RUN) $(PAGE_VENV)/bin/python -m pytest -s tests/app $(TESTS)

# A newcomer's first hour from a wheel in empty environments, with what they take; JOURNEYS="detect deploy" for some,
# PATIENCE=5 on a machine that does other things too.
PATIENCE ?= 1
first-hour: $(VENV)/bin/python
	$(VENV)/bin/python tests/first_hour/run.py $(JOURNEYS) --patience $(PATIENCE)

# Every kind of picture on 16 photographs, to be looked at: PHOTOGRAPHS=folder of a COCO panoptic set, else drawn ones.
contact-sheet: $(VENV)/.installed-dev
	$(VENV)/bin/python -m pip install -qq playwright
	$(RUN) $(VENV)/bin/python -m docs.contact_sheet $(PHOTOGRAPHS)

# The documentation as a site in build/site; any complaint is an error.
docs: $(VENV)/.installed-docs
	$(RUN) $(VENV)/bin/python docs/build_site.py

# Every block of every page, run on small stand-ins, with the page's environment and what the recipes take; then the site in
# a browser, which an apt line brings. PAGES=docs/hub.md for some.
PAGES ?= README.md README.zh-CN.md docs
docs-test: docs $(PAGE_VENV)/.installed-docs
	$(RUN) $(PAGE_VENV)/bin/python -m pytest -q -p tests.pages.blocks --timeout 900 $(PAGES)
	$(RUN) $(VENV)/bin/python tests/pages/browse.py

# Every figure of the documentation, drawn from what a model computes.
docs-figures: $(VENV)/.installed-docs
	$(RUN) $(VENV)/bin/python -m docs.draw_figures

# The notebooks run anew, from their scripts, in minutes.
notebooks: $(VENV)/.installed-docs
	$(RUN) $(VENV)/bin/python examples/notebooks/run.py

# All but those that train for long; each prints its score.
EXAMPLES = quickstart attention export_and_run from_transformers custom_backbone lora predict_ray
examples: $(VENV)/.installed-examples
	@for name in $(EXAMPLES); do echo "== $$name"; \
		$(RUN) $(VENV)/bin/python examples/$$name.py --output runs/$$name || exit 1; done

# What must not break: fuzz, kills, full disks, long runs, the catalogue of bad inputs; PARTS="pictures kill-json" for some,
# SCALE=0.1 for a tenth of the cases.
SCALE ?= 1
MINUTES ?= 600
reliability: $(VENV)/.installed-dev
	$(RUN) $(VENV)/bin/python -m tests.reliability.run $(PARTS) --scale $(SCALE) --minutes $(MINUTES)

# Lines and branches of detr_hf that the tests run, room by room; ROOMS="model cli" for some.
coverage: $(VENV)/.installed-dev
	$(RUN) $(VENV)/bin/python -m tests.reliability.covered $(ROOMS)

# cosmic-ray's changes of the code that numbers hang on, each of which a test must notice; a sample with a fixed seed.
# MODULES="matcher loss" for some.
mutants: $(VENV)/.installed-dev
	$(RUN) $(VENV)/bin/python -m tests.reliability.mutants $(MODULES)

# The core of the suite with the oldest versions that pyproject.toml names, in an environment of its own.
test-oldest: $(VENV)/bin/python
	$(RUN) $(VENV)/bin/python tests/reliability/oldest.py --venv $(VENV)-oldest

bench: $(VENV)/.installed-dev
	HF_HUB_OFFLINE=1 $(VENV)/bin/python -m benchmarks forward
	HF_HUB_OFFLINE=1 $(VENV)/bin/python -m benchmarks forward --padded
	HF_HUB_OFFLINE=1 $(VENV)/bin/python -m benchmarks train-step
	HF_HUB_OFFLINE=1 $(VENV)/bin/python -m benchmarks criterion
	HF_HUB_OFFLINE=1 $(VENV)/bin/python -m benchmarks preprocess
	HF_HUB_OFFLINE=1 $(VENV)/bin/python -m benchmarks drawing
	HF_HUB_OFFLINE=1 $(VENV)/bin/python -m benchmarks start
	HF_HUB_OFFLINE=1 $(VENV)/bin/python -m benchmarks padding

# mypy on the modules that hold public names, and on a user's code (tests/typed_use.py); settings in pyproject.toml. And
# whether what is installed goes together.
types: $(VENV)/.installed-dev
	$(VENV)/bin/python -m pip check
	$(VENV)/bin/mypy $$($(VENV)/bin/python -m tests.public_types)

lint: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

format: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

wheel: $(VENV)/.installed
	$(VENV)/bin/python -m pip wheel --quiet --no-deps --wheel-dir dist .
	@ls -l dist

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "Setting up $(VENV): torch and its companions take a few minutes the first time."
	$(PIP) --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "Setting up $(VENV) for development: torch and its companions take a few minutes the first time."
	$(PIP) --editable ".[dev]"
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-docs: $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "Setting up $(VENV) for the documentation: torch and its companions take a few minutes the first time."
	$(PIP) --editable ".[docs]"
	@touch $@ $(VENV)/.installed

$(PAGE_VENV)/.installed: $(VENV)/.installed-dev
	$(PYTHON) -m venv $(PAGE_VENV)
	$(VENV)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" \
		> "$$($(PAGE_VENV)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/development.pth"
	$(PAGE_VENV)/bin/python -m pip --disable-pip-version-check install -qq --constraint constraints.txt \
		--editable ".[app]" playwright
	@touch $@

$(PAGE_VENV)/.installed-docs: $(PAGE_VENV)/.installed $(VENV)/.installed-docs
	$(PAGE_VENV)/bin/python -m pip --disable-pip-version-check install -qq peft tensorboard trackers trackio
	@touch $@

$(VENV)/.installed-examples: $(VENV)/.installed-dev
	$(PIP) "ray[data]"
	@touch $@

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache contact_sheet $(VENV) $(PAGE_VENV) demo_boxes.png
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
