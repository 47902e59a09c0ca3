#!/bin/sh
# shellcheck disable=SC1091,SC2034,SC2154 # what lib.sh sets and reads
#
# What comes from pkg. The only step that needs the world: for as long as it installs, the default route and the name
# server are those that DHCP gave on Vagrant's own interface. network.sh, which is next, leads back into the lab.
set -eu
. "$NATF_SOURCE/vagrant/provision/lib.sh"

# lease OPTION: the newest value that dhclient got.
lease() {
    cat "$root"/var/db/dhclient.leases.* 2>/dev/null |
        sed -n "s/^ *option $1 \([0-9.]*\).*;.*/\1/p" | tail -n 1
}

into_the_world() {
    gateway=$(lease routers)
    server=$(lease domain-name-servers)
    # Without a lease the box has a static way out, which nobody has changed yet.
    [ -z "$gateway" ] || set_default_route "$gateway"
    [ -z "$server" ] || printf 'nameserver %s\n' "$server" | put /etc/resolv.conf
}

missing() {
    for package in $NATF_PACKAGES; do
        # pkg -N: whether pkg itself is installed yet; its stand-in in the base system would ask.
        { pkg -N && pkg info -e "$package"; } >/dev/null 2>&1 || printf '%s ' "$package"
    done
}

packages=$(missing)
if [ -n "$packages" ]; then
    into_the_world
    say "installing $packages"
    # shellcheck disable=SC2086 # a word each
    env ASSUME_ALWAYS_YES=yes pkg install -y $packages
fi
