# `make` lists the targets. Each sets up what it needs; CI (.ci/run) calls the same ones.
PYTHON ?= python3
PADDLE ?= 3.3.1
VENV := .venv
VENV26 := .venv-paddle26
JOBS ?= 3
PYTEST := -m pytest -n $(JOBS) --dist worksteal
SEED ?= 11
GATES = $(wildcard tests/model/test_gate_*.py)
NUMERIC = $(addprefix tests/model/test_,net_gates.py net_sparse.py training.py embeddings.py) $(GATES)
FUZZ ?= 1000
KILLS ?= 20
MNIST ?=
TORCH_PYTHON ?=
PADDLEREC ?=
TABLES ?=
BENCH = $(VENV)/bin/python benchmarks/bench.py --torch-python '$(TORCH_PYTHON)' --paddlerec '$(PADDLEREC)'
export GLOG_minloglevel ?= 2

help:  ## this list
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

env: $(VENV)/ready  ## the environment, in .venv

kernels: env  ## compile the kernels for training on a CPU (hyper_parameters.kernels); needs a C++ compiler
	$(VENV)/bin/python -m dselect_k_model.kernels

train: env  ## train on the sample data, then evaluate every epoch
	$(VENV)/bin/python tools/trainer.py -m config.yaml
	$(VENV)/bin/python tools/infer.py -m config.yaml

train-census: env  ## the same on examples/census, a table, in both graphs
	$(VENV)/bin/python tools/trainer.py -m examples/census/config.yaml
	$(VENV)/bin/python tools/infer.py -m examples/census/config.yaml
	$(VENV)/bin/python tools/static_trainer.py -m examples/census/config.yaml
	$(VENV)/bin/python tools/static_infer.py -m examples/census/config.yaml

bigdata: env  ## download MNIST (or MNIST=FOLDER), make the full set, train on it, evaluate every epoch
	$(VENV)/bin/python data/make_multi_mnist.py $(if $(MNIST),--mnist '$(MNIST)',--download) --out data/full
	$(VENV)/bin/python tools/static_trainer.py -m config_bigdata.yaml
	$(VENV)/bin/python tools/static_infer.py -m config_bigdata.yaml

predict: env  ## run the model in data/model on the sample: predictions.csv, and predictions.png to look at
	$(VENV)/bin/python tools/predict.py -m config.yaml -o runner.export_path=data/model
	$(VENV)/bin/python data/show.py data/test --predictions predictions.csv --out predictions.png

notebook: $(VENV)/notebook  ## run notebook.ipynb from top to bottom, and keep what it shows in it
	$(VENV)/bin/jupyter execute --inplace notebook.ipynb

test: env  ## the tests
	$(VENV)/bin/python $(PYTEST)

test-bench: env  ## the tests of the benchmarks: their tables, at tiny sizes
	$(VENV)/bin/python -m pytest tests/benchmarks/test_bench.py -m bench

test-legacy: env  ## the package's own tests in the legacy program mode, which PaddleRec's tools set
	FLAGS_enable_pir_api=0 $(VENV)/bin/python $(PYTEST) \
		$(addprefix tests/model/test_,net_gates.py net_sparse.py net_layers.py graphs.py training.py build.py gates.py) \
		$(GATES) tests/tools/test_tools.py tests/engine/test_export.py

test-arithmetic: env  ## the numeric tests with other kernels of MKL and oneDNN, two threads, and another seed
	MKL_CBWR=COMPATIBLE ONEDNN_MAX_CPU_ISA=AVX2 DNNL_MAX_CPU_ISA=AVX2 OMP_NUM_THREADS=2 \
		$(VENV)/bin/python $(PYTEST) --seed $(SEED) $(NUMERIC)

test-paddle26: $(VENV26)/ready  ## the tests on paddlepaddle 2.6.2, in an environment of its own
	$(VENV26)/bin/python $(PYTEST)
	$(VENV26)/bin/python -m pytest tests/benchmarks/test_bench.py -m bench

test-notebook: $(VENV)/notebook  ## run notebook.ipynb from top to bottom
	$(VENV)/bin/jupyter execute notebook.ipynb

test-onnx: $(VENV)/onnx $(VENV26)/onnx  ## the tests of ONNX on both releases, where paddle2onnx has builds
	$(VENV)/bin/python -m pytest tests/engine/test_export.py -k onnx
	$(VENV26)/bin/python -m pytest tests/engine/test_export.py -k onnx

stress: env  ## faults, kills and hostile files at length, some fifteen minutes; the faults need strace
	$(VENV)/bin/python tests/stress/fuzz_data.py --files $(FUZZ)
	$(VENV)/bin/python tests/stress/fuzz_files.py --files $(FUZZ)
	$(VENV)/bin/python tests/stress/save_faults.py --resume-every 10
	$(VENV)/bin/python tests/stress/kill_resume.py --trials $(KILLS)
	$(VENV)/bin/python tests/stress/kill_one_of_several.py --kills $(KILLS)

check: env  ## lint, format, types, and who may import whom
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/clang-format --dry-run -Werror $(wildcard dselect_k_model/kernels/*.cc dselect_k_model/kernels/*.h)
	$(VENV)/bin/mypy
	PYTHONPATH=tools:. $(VENV)/bin/lint-imports

bench: kernels  ## the benchmarks, half an hour; TORCH_PYTHON: interpreter with PyTorch; PADDLEREC: its folder; TABLES: some
	$(BENCH) $(TABLES)

results: kernels  ## the benchmarks (TABLES: some) into benchmarks/RESULTS.txt, docs/speed.md and the READMEs; on an idle machine
	$(BENCH) $(TABLES) > benchmarks/RESULTS.new
	$(VENV)/bin/python benchmarks/report.py benchmarks/RESULTS.new
	rm benchmarks/RESULTS.new

pages: env  ## the tables and pictures of the experiments' committed results and logs, into the pages
	$(VENV)/bin/python experiments/pages.py

clean:  ## remove the environments and what training wrote
	rm -rf $(VENV) $(VENV26) dselect_k_model/kernels/build output output_bigdata output_census output_census_full exported predictions.csv predictions.png .pytest_cache .ruff_cache .mypy_cache .import_linter_cache

$(VENV)/ready: pyproject.toml Makefile
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet 'paddlepaddle==$(PADDLE)' '.[test]'
	$(VENV)/bin/python -m dselect_k_model.kernels || true
	touch $@

$(VENV26)/ready: pyproject.toml Makefile
	$(PYTHON) -m venv $(VENV26)
	$(VENV26)/bin/python -m pip install --quiet 'paddlepaddle==2.6.2' 'numpy<2' 'pyarrow<22' 'setuptools<81' '.[test]'
	touch $@

$(VENV)/notebook: $(VENV)/ready
	$(VENV)/bin/python -m pip install --quiet '.[notebook]'
	touch $@

$(VENV)/onnx: $(VENV)/ready
	$(VENV)/bin/python -m pip install --quiet 'paddle2onnx==2.1.0' '.[onnx]'
	touch $@

$(VENV26)/onnx: $(VENV26)/ready
	$(VENV26)/bin/python -m pip install --quiet 'paddle2onnx==1.3.1' 'numpy<2' '.[onnx]'
	touch $@

.PHONY: help env kernels train train-census bigdata predict notebook test test-arithmetic test-legacy test-paddle26 test-notebook test-onnx stress check bench results pages clean
