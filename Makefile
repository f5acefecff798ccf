PYTHON ?= python3.11
WAREHOUSE ?= demo/warehouse
PORT ?= 5000
DOCS_PORT ?= 8000

# GPU=1 installs TensorFlow for CUDA, GPU=0 for the CPU alone. Unset, it keeps what is installed.
GPU ?= $(if $(wildcard .venv/.installed-gpu),1,0)
DEVICE := $(if $(filter 1,$(GPU)),gpu,cpu)
INSTALLED := .venv/.installed-$(DEVICE)

# Tests and benchmarks start Spark themselves, on the Java and the Python that melanoma-spark uses.
ON_SPARK = JAVA=$$(conf/find-java.sh) && { [ "$$JAVA" = "$(CURDIR)/conf/java" ] || export REAL_JAVA_HOME="$$JAVA"; } && \
  export JAVA_HOME="$(CURDIR)/conf/java" PYSPARK_PYTHON="$(CURDIR)/.venv/bin/python" &&

# The test folders of some tiers; with ONLY=package only those of that package.
FOLDERS = $(if $(ONLY),$(wildcard $(foreach tier,$(1),tests/$(tier)/$(ONLY))),$(addprefix tests/,$(1)))
THERE = $(if $(call FOLDERS,$(1)),,$(error no tests/*/$(ONLY) in the tiers $(1)))
# `make test-full` runs these in a second process: YARN's containers, then the tests that take the most memory.
YARN = tests/systems/test_yarn.py
APART = $(YARN) tests/systems/test_other_backbones.py

.PHONY: help install demo lint test test-full test-yarn coverage mutants bench package docs docs-serve ui clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(INSTALLED) ## install everything into .venv; GPU=1 installs TensorFlow for CUDA

$(INSTALLED): uv.lock setup.py pyproject.toml requirements-uv.txt conf/share-classes.sh
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null || \
	  { echo "no Python 3.11 at $(PYTHON): install python3.11, or name one by PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "$(PYTHON) cannot make a virtual environment: install python3.11-venv" >&2; exit 1; }
	@echo "installing uv into .uv"
	@$(PYTHON) -m venv .uv
	@.uv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-uv.txt
	@echo "installing the packages of uv.lock into .venv; building Horovod, about 5 minutes the first time"
	@extra=$$(conf/find-java.sh --system >/dev/null 2>&1 || echo "--extra java"); \
	  env -u VIRTUAL_ENV -u UV_PROJECT_ENVIRONMENT .uv/bin/uv sync --quiet --frozen --no-python-downloads --python .uv/bin/python \
	  --extra $(DEVICE) --extra horovod --extra hdfs --extra s3 --extra dev $$extra --compile-bytecode
	@conf/share-classes.sh
	@rm -f .venv/.installed-*
	@touch $@

demo: install ## draw lesions and run the whole pipeline on them, in demo/
	@.venv/bin/python -m melanoma_spark.images.synthetic demo/archive
	@.venv/bin/melanoma-spark pipeline --conf conf/demo.yaml

lint: install ## check with ruff, mypy and import-linter
	@echo "== ruff check" && .venv/bin/ruff check .
	@echo "== ruff format" && .venv/bin/ruff format --check .
	@echo "== mypy" && .venv/bin/mypy
	@echo "== import-linter" && .venv/bin/lint-imports --no-logo --no-cache

test: lint ## lint, then the tests to run before each commit; ONLY=scoring: of one package
	$(call THERE,unit model spark line)
	@echo "== pytest" && $(ON_SPARK) .venv/bin/python tests/at_once.py --durations=15 \
	  "$(call FOLDERS,unit model spark)" "$(call FOLDERS,line)"

test-full: install ## tests of faults and systems, and of YARN at the same time; ONLY=archives: of one package
	$(call THERE,faults systems)
	@$(ON_SPARK) .venv/bin/python tests/at_once.py --durations=25 "-mfaults or systems" \
	  "$(call FOLDERS,faults systems) $(addprefix --ignore=,$(APART))" "$(if $(ONLY),,$(APART))"

test-yarn: install ## the pipeline on a YARN of two nodes that the tests start, with HDFS, MLflow and PostgreSQL
	@$(ON_SPARK) .venv/bin/python -m pytest -m yarn -s $(if $(ONLY),-k "$(ONLY)") $(YARN)

coverage: install ## measure branch coverage of all tests but YARN's, executors and ranks included; about an hour
	@rm -rf build/coverage && mkdir -p build/coverage
	@$(ON_SPARK) export COVERAGE_PROCESS_START="$(CURDIR)/pyproject.toml" && \
	  { .venv/bin/python -m coverage run tests/at_once.py -q --durations=40 "$(call FOLDERS,unit model spark faults)" \
	    "$(call FOLDERS,line systems)" || true; } && \
	  .venv/bin/python -m coverage combine -q && .venv/bin/python -m coverage report

mutants: install ## count how many of a fixed sample of mutants the cheap tests kill, by module
	@$(ON_SPARK) PYTHONHASHSEED=0 .venv/bin/python tests/mutants.py

bench: install ## measure how fast featurize and ingest are
	@$(ON_SPARK) .venv/bin/python benchmarks/featurize.py && .venv/bin/python benchmarks/ingest.py

package: install ## pack Python and all packages for YARN's nodes into dist/env.tar.gz
	@conf/pack-environment.sh dist/env.tar.gz

docs: install ## build the documentation site into build/docs; a warning or a broken internal link fails
	@.venv/bin/python -m sphinx -b html -W --keep-going -n -q -d build/doctrees docs build/docs
	@echo "build/docs/index.html"

docs-serve: docs ## serve the site at http://127.0.0.1:8000; DOCS_PORT=... for another port
	@.venv/bin/python -m http.server --bind 127.0.0.1 --directory build/docs $(DOCS_PORT)

ui: install ## start MLflow's UI on demo/warehouse; WAREHOUSE=... and PORT=... for another
	@test -f "$(WAREHOUSE)/mlflow.db" || \
	  { echo "no $(WAREHOUSE)/mlflow.db yet: run \`make demo\`, or name a warehouse by WAREHOUSE=..." >&2; exit 1; }
	@echo "MLflow of $(WAREHOUSE): http://127.0.0.1:$(PORT) (Ctrl-C ends it)"
	@MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false .venv/bin/mlflow ui --backend-store-uri "sqlite:///$(abspath $(WAREHOUSE))/mlflow.db" --port $(PORT)

clean: ## remove the demo and all caches; .venv and .uv stay
	@rm -rf demo build dist docs/api *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis spark-warehouse metastore_db
	@find . -path ./.venv -prune -o -path ./.uv -prune -o -name __pycache__ -type d -print0 | xargs -0 rm -rf
