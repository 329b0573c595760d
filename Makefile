.PHONY: setup quickstart check test fast wheel results pin clean

setup:        ## install everything into .venv
	pip install -q uv && uv sync -q --all-extras

quickstart:   ## train on handwritten digits, draw, read, report
	uv run -q transfusion quickstart

check:        ## format, lint, types
	uv run -q --all-extras ruff format --check .
	uv run -q --all-extras ruff check .
	uv run -q --all-extras pyright

test:         ## all tests
	uv run -q --all-extras pytest -n logical --dist worksteal

fast:         ## without the slow tests, for editors
	uv run -q --all-extras pytest -n logical --dist worksteal -m "not slow"

wheel:        ## dist/transfusion_kit-*.whl
	uv build -q --wheel

results:      ## tables of docs/records, in docs/results.md and README.md
	uv run -q transfusion results docs/records --out docs/results.md --readme README.md

pin:          ## pin every dependency to today's versions, in pyproject.toml
	pip install -q uv && python3 .ci/pin

clean:
	rm -rf runs quickstart generated dist .pytest_cache .ruff_cache
