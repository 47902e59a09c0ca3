#!/bin/sh
# shellcheck disable=SC1091,SC2034,SC2154 # what lib.sh sets and reads
#
# This checkout: the package for Python by pip, everything for rc(8) by `make install`.
set -eu
. "$NATF_SOURCE/vagrant/provision/lib.sh"

cd "$NATF_SOURCE"

contents() {
    find natf_bsd rc.d etc docs tools Makefile setup.cfg pyproject.toml -type f ! -name '*.pyc' | sort | xargs cksum | cksum
}

installed=/var/db/natf-checkout
wanted=$(contents)
[ "$(cat "$root$installed" 2>/dev/null)" != "$wanted" ] || exit 0

# No package is fetched: packages.sh has installed what setup.cfg names. The variable is for a pip that otherwise leaves
# the system's Python alone.
env PIP_BREAK_SYSTEM_PACKAGES=1 PIP_ROOT_USER_ACTION=ignore "$NATF_PYTHON" -m pip install --quiet \
    --no-index --no-deps --no-build-isolation --force-reinstall . ||
    fail "pip could not install $NATF_SOURCE"
make -s install DESTDIR="$root" PREFIX=/usr/local
put $installed <<END
$wanted
END

# What runs has the old one in memory. On a new machine nothing does: the next steps start it.
for script in "$root"/usr/local/etc/rc.d/natf_*; do
    ! service "${script##*/}" status >/dev/null 2>&1 || service "${script##*/}" restart
done
