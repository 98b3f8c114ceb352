.PHONY: demo test slow lint

demo:
	vidtok demo

test:
	pytest -n 2 --dist loadfile

slow:
	pytest -m slow

lint:
	ruff check .
