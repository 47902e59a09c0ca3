# POSIX make: GNU make and FreeBSD's read it alike. All logic is in tools/.
#
#   make test    style, types and tests
#   make demo    the whole story on one machine
#   make lint    style and types only
#   make bench   natf bench into build/bench; make bench-peers: installs first what people use instead, to measure it too
#   make clean   remove what the others made
#
#   make install, make deinstall   FreeBSD: rc.d scripts, manual pages, configuration below $DESTDIR$PREFIX (/usr/local)
#
# These make .venv and install what is missing. NATF_NO_INSTALL=1 forbids that: the python3 on PATH (or
# $PYTHON) is used as it is.

.POSIX:
.PHONY: all test demo lint bench bench-peers clean install deinstall

all: test

test:
	@sh tools/bootstrap test sh tools/check lint test

lint:
	@sh tools/bootstrap test sh tools/check lint

demo:
	@sh tools/bootstrap demo sh tools/check demo

bench:
	@sh tools/bootstrap bench sh tools/check bench

bench-peers:
	@sh tools/bootstrap bench-peers sh tools/check bench

clean:
	rm -rf .venv build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache natf_bsd.egg-info
	find natf_bsd tests -name __pycache__ -exec rm -rf {} +

install deinstall:
	@DESTDIR="$(DESTDIR)" PREFIX="$(PREFIX)" sh tools/install $@
