# Thin on purpose: the `gateway` command does the work.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do command -v $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
# PyTorch's CPU builds, so that a laptop does not download CUDA; plain torch is the fallback.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
PIP := $(BIN)/python -m pip --disable-pip-version-check install --no-input -c constraints.txt

.PHONY: help demo dev serve check test contract-llamacpp prove prove-reviews prove-teeth chaos chaos-teeth bench bench-peers audit lock focus-validate lint clean prerequisites
help:            ## What there is to type
	@grep -E '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

demo: $(BIN)/.demo ## Start everything here, send a dozen messages, show what happened (DEMO_EXIT=1: then end)
	$(BIN)/gateway demo $(if $(DEMO_EXIT),--exit)

dev: $(BIN)/.demo ## Start everything here and stay up
	$(BIN)/gateway dev

serve: $(BIN)/.demo ## Serve with the stores that GATEWAY_DATABASE_URL and GATEWAY_REDIS_URL name
	$(BIN)/gateway serve

check: $(BIN)/.demo ## Check tasks, prompts and models
	$(BIN)/gateway check

test: $(BIN)/.test lint ## Lint, types, import contracts, tests on real servers
	$(BIN)/python -m pytest -n 2 --dist loadfile

contract-llamacpp: $(BIN)/.test ## The chat door over llama.cpp's server (LLAMACPP_PYTHON, LLAMACPP_MODEL)
	$(BIN)/python -m pytest tests/contracts/test_llamacpp.py

prove: $(BIN)/.test ## Prove the promises about money over real processes (up to 10 minutes)
	PYTHONPATH=tests $(BIN)/python -m prove

prove-reviews: $(BIN)/.test ## Prove that no held message is lost or settled twice: 5,000 items, 100 deaths (10 to 15 minutes)
	PYTHONPATH=tests $(BIN)/python -m prove people

prove-teeth: $(BIN)/.test ## Prove that the proofs can fail: every seeded defect must be caught
	PYTHONPATH=tests $(BIN)/python -m prove teeth

focus-validate:  ## Run the FinOps Foundation's validator on an export: make focus-validate FILE=october.csv
	$(PYTHON) -m venv .venv-focus
	.venv-focus/bin/python -m pip --disable-pip-version-check install --no-input focus-validator==1.0.0 'multimethod<2'
	# It finds its list of currencies only from the folder that it is installed in.
	cd .venv-focus/lib/python3*/site-packages && $(CURDIR)/.venv-focus/bin/focus-validator \
		--data-file $(abspath $(FILE)) --column-namespace x_ --validate-version 1.0

chaos: $(BIN)/.test ## Break everything under load, on real processes (Linux, up to 10 minutes)
	PYTHONPATH=tests $(BIN)/python -m chaos

chaos-teeth: $(BIN)/.test ## Prove that chaos can turn red: every seeded defect must be caught
	PYTHONPATH=tests $(BIN)/python -m chaos teeth

bench: $(BIN)/.test ## How fast one core is, and where its time goes (Linux, two cores, up to 8 minutes)
	PYTHONPATH=tests $(BIN)/python -m bench

bench-peers: $(BIN)/.test ## The same beside LiteLLM's proxy (in an environment of its own)
	$(PYTHON) -m venv .venv-litellm
	.venv-litellm/bin/python -m pip --disable-pip-version-check install --no-input -q 'litellm[proxy]==1.106.2'
	PYTHONPATH=tests $(BIN)/python -m bench --peers .venv-litellm/bin/python

audit: $(BIN)/.venv ## Ask PyPI's advisories about every pinned version (in an environment of its own)
	$(PYTHON) -m venv $(VENV)/audit
	$(VENV)/audit/bin/python -m pip --disable-pip-version-check install --no-input -q pip-audit
	$(VENV)/audit/bin/pip-audit -r constraints.txt --no-deps --disable-pip --strict

lock: $(BIN)/.venv ## Write requirements.lock anew: what constraints.txt pins, with the hashes of every platform's files
	$(PYTHON) -m venv $(VENV)/lock
	$(VENV)/lock/bin/python -m pip --disable-pip-version-check install --no-input -q uv
	echo 'torch; python_version < "3"' > $(VENV)/lock/without-torch.txt
	$(VENV)/lock/bin/uv pip compile -q pyproject.toml requirements.in --extra local --extra reports -c constraints.txt \
		--override $(VENV)/lock/without-torch.txt --no-emit-package torch --universal --python-version 3.11 \
		--generate-hashes --no-annotate --custom-compile-command 'make lock' -o requirements.lock

lint: $(BIN)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:           ## Remove the environment and the demo's state
	rm -rf $(VENV) .venv-litellm .demo .gateway

prerequisites:
	@sh -c 'test -n "$(PYTHON)" || { echo "Python 3.11 to 3.13 is needed: install it, or run make PYTHON=/path/to/python3.11"; exit 1; }'
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 13) else "Python 3.11 to 3.13 is needed, this is %d.%d: make PYTHON=/path/to/python3.11" % v)'
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "Python lacks venv: apt install python3-venv, or your system's like"; exit 1; }
	@$(PYTHON) -c 'import platform as p, sys; ok = (p.system(), p.machine()) in {("Linux", "x86_64"), ("Linux", "aarch64"), ("Darwin", "arm64")}; sys.exit(None if ok else "Linux on x86_64 or aarch64, or macOS on arm64, is needed; this is %s on %s" % (p.system(), p.machine()))'

$(BIN)/.venv: | prerequisites
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(BIN)/.torch: $(BIN)/.venv
	$(PIP) --retries 0 --timeout 10 --index-url $(TORCH_INDEX) torch==2.13.0 || $(PIP) torch==2.13.0
	@touch $@

$(BIN)/.demo: $(BIN)/.torch pyproject.toml constraints.txt
	$(PIP) -e '.[local]'
	@touch $@

$(BIN)/.test: $(BIN)/.torch pyproject.toml constraints.txt
	$(PIP) -e '.[test]'
	@touch $@ $(BIN)/.demo
