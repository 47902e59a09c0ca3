#!/bin/sh
# shellcheck disable=SC1091,SC2034,SC2154 # what lib.sh sets and reads
#
# ipfw and the daemons of NATF_ROLES, "en" and "router", with their configuration from vagrant/hosts.
set -eu
. "$NATF_SOURCE/vagrant/provision/lib.sh"

# An ordinary home router of FreeBSD: it forwards, and natd translates on the outer interface.
be_a_router() {
    set_rc gateway_enable YES
    [ "$(sysctl -n net.inet.ip.forwarding)" = 1 ] || sysctl net.inet.ip.forwarding=1
    set_rc natd_enable YES
    set_rc natd_interface wan
    set_rc natd_flags -deny_incoming
    put /usr/local/etc/natf.act <"$files/natf.act"
}

let_ipfw_accept
# A segment joined by the network card's driver is too large for a divert socket to write back.
set_sysctl net.inet.tcp.tso 0

coscripts=
for role in $NATF_ROLES; do
    coscripts="$coscripts${coscripts:+ }/usr/local/etc/rc.d/natf_$role"
    set_rc "natf_${role}_enable" YES
    [ "$role" != router ] || be_a_router
done
set_rc firewall_enable YES
set_rc firewall_type open
set_rc firewall_coscripts "$coscripts"

put /usr/local/etc/natf.toml <"$files/natf.toml"

serve ipfw
for role in $NATF_ROLES; do
    serve "natf_$role"
done
