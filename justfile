# `just` lists the recipes. Each is a plain command: nothing here is needed to build or test vitq.

# List the recipes.
default:
    @just --list

# Build the release binary, target/release/vitq.
build:
    cargo build --locked --release

# All Rust tests (no Python needed); arguments go to cargo test.
test *ARGS:
    cargo test --locked {{ARGS}}

# What CI checks without running anything: formatting, clippy, licences.
lint:
    cargo fmt --check
    cargo clippy --locked --all-targets -- -D warnings
    cargo deny --offline check --hide-inclusion-graph bans licenses sources

# Format the Rust sources.
fmt:
    cargo fmt

# Known vulnerabilities in dependencies (fetches the RustSec database).
advisories:
    cargo deny check advisories

# Criterion benchmarks; arguments go to criterion (a filter, --save-baseline NAME, ...).
bench *ARGS:
    cargo bench --locked --bench '*' -- {{ARGS}}

# The Python interop suite, in its own virtual environment; arguments go to pytest.
interop *ARGS: build
    VITQ="{{justfile_directory()}}/target/release/vitq" tests/interop/run.sh {{ARGS}}

# Run the tests and review changed snapshots one by one (needs cargo-insta).
snapshots:
    cargo insta test --review

# The README's first command.
demo: build
    target/release/vitq compile models/digits/vit_digits.onnx --calib models/digits/calib --preprocess inception --crop-pct 1 -o target/vit_digits.int8.onnx

# Train and export the small models again (minutes; a virtual environment in models/digits/.venv).
models:
    python3 -m venv models/digits/.venv
    models/digits/.venv/bin/python -m pip install --quiet --requirement models/digits/requirements.txt
    models/digits/.venv/bin/python models/digits/train.py --arch vit
    models/digits/.venv/bin/python models/digits/train.py --arch cnn

# Fuzz one target for a minute (needs cargo-fuzz and a nightly toolchain).
fuzz TARGET SECONDS="60":
    cargo fuzz run {{TARGET}} -- -max_total_time={{SECONDS}}

# The API documentation, private items included.
doc:
    cargo doc --locked --no-deps --document-private-items

# Everything CI runs.
ci:
    .ci/run
