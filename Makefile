# Two commands: `make demo` and `make test`. Each installs what it needs into .venv, once.
PYTHON ?= python3
BIN := .venv/bin
DEMO := runs/miniature

.PHONY: demo test drill aot bench clean

demo: .venv/runtime
	$(BIN)/python -m bluelm_jax.recipe --config=configs/recipes/miniature.py --workdir=$(DEMO)
	$(BIN)/python -m bluelm_jax.evaluate --config=configs/recipes/miniature.py --workdir=$(DEMO)

test: .venv/dev
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

# Two processes killed at random moments, one that hangs, stages that change their number of processes, a trained model beside transformers; some fifteen minutes.
drill: .venv/dev
	$(BIN)/python -m pytest -s tests/drills

# Compiles every kernel and production layout for chips that are not here; an hour on two cores.
aot: .venv/aot
	$(BIN)/python -m tests.aot.report

bench: .venv/dev
	$(BIN)/python -m tests.bench.train_step
	$(BIN)/python -m tests.bench.attention_cpu
	$(BIN)/python -m tests.bench.pipeline
	$(BIN)/python -m tests.bench.packing
	$(BIN)/python -m tests.bench.images

.venv/runtime: requirements.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -e .
	touch $@

.venv/dev: .venv/runtime
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	touch $@

.venv/aot: .venv/dev
	$(BIN)/python -m pip install --quiet -e '.[aot]'
	touch $@

clean:
	rm -rf .venv runs
