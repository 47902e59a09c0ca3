#!/bin/sh
# This checkout, as `make install` and pip put it: the package for Python, the scripts of rc.d/ for rc(8).
set -eu
# shellcheck source=vagrant/provision/lib.sh
. "$NATF_SOURCE/vagrant/provision/lib.sh"

cd "$NATF_SOURCE"

contents() {
    find natf_bsd rc.d setup.cfg pyproject.toml -type f ! -name '*.pyc' | sort | xargs cksum | cksum
}

# Only a changed checkout is installed.
put /var/db/natf-checkout <<END
$(contents)
END
[ -n "$changed" ] || exit 0

# No package is fetched: packages.sh has installed what setup.cfg names. The variable is for a pip that otherwise leaves
# the system's Python alone.
env PIP_BREAK_SYSTEM_PACKAGES=1 PIP_ROOT_USER_ACTION=ignore "$NATF_PYTHON" -m pip install --quiet \
    --no-index --no-deps --no-build-isolation --force-reinstall . || {
    rm "$root/var/db/natf-checkout"
    fail "pip could not install $NATF_SOURCE"
}
mkdir -p "$root/usr/local/etc/rc.d"
for script in rc.d/*; do
    install -m 555 "$script" "$root/usr/local/etc/$script"
done

# What runs has the old one in memory. On a new machine nothing does: the next steps start it.
for script in "$root"/usr/local/etc/rc.d/natf_*; do
    ! service "${script##*/}" status >/dev/null 2>&1 || service "${script##*/}" restart
done
