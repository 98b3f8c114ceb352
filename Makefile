.PHONY: demo test slow lint types docs tables tree

demo:
	vidtok demo

test:
	pytest -n 2 --dist loadfile

slow:
	pytest -m slow

lint:
	ruff check .
	ruff format --check .

# The four source folders as the one package that is installed: mypy and mkdocstrings resolve vidtok.heads there.
tree:
	python docs/hooks.py

types: tree
	cd build/src && mypy --config-file ../../pyproject.toml

docs:
	mkdocs build --strict -f docs/mkdocs.yml

# Published tables, from the result files.
tables:
	python -m vidtok.eval.report.markdown --update README.md docs/pages/index.md docs/pages/results.md docs/pages/speed.md
