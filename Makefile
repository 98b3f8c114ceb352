.PHONY: demo test slow lint

demo:
	vidtok demo

test:
	pytest

slow:
	pytest -m slow

lint:
	ruff check .
