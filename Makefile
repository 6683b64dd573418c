# Two commands matter: `make demo` shows the main job, `make test` runs everything.

CARGO ?= cargo

.PHONY: demo test test-packaging bench check clients docs

## Build, then show every door at work on this machine, and a provider of its own that throttles, fails and recovers.
demo:
	$(CARGO) run --release --quiet -- demo

## Keep the demo up, with curl lines to try.
stay:
	$(CARGO) run --release --quiet -- demo --stay

## Everything: unit and integration tests, those that need the machine for themselves one by one, then real clients, with the program that the tests have built (installs their packages by name where missing).
test:
	$(CARGO) test --locked
	$(CARGO) test --locked --test it -- --ignored --test-threads=1
	tests/clients/run.sh

## Image, charts, rules, dashboard and the unit of systemd; with the program as it is released. Installs its tools by name where it may.
test-packaging:
	$(CARGO) build --locked --release
	OUTGATE=$${CARGO_TARGET_DIR:-$(CURDIR)/target}/release/outgate tests/packaging/run.sh

## Format, lints and documents, as CI does before the tests.
check:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --no-deps --document-private-items
	@if command -v cargo-deny >/dev/null; then \
	  $(CARGO) deny --locked check --hide-inclusion-graph bans licenses sources; \
	else \
	  echo "SKIP cargo-deny is not installed (cargo install cargo-deny --locked): licences and sources of dependencies are not checked"; \
	fi

## Figures: CPU, latency, memory, start-up, against a bare pass-through.
bench:
	$(CARGO) bench --bench proxy

## Rewrite what is generated: docs/configuration.md and the snapshots of tests.
generate:
	INSTA_UPDATE=always OUTGATE_GENERATE=1 $(CARGO) test --locked
