#!/bin/sh
# shellcheck disable=SC1091,SC2034,SC2154 # what lib.sh sets and reads
#
# The name server: nsd(8) with one zone in which home routers are registered in the three ways of the paper's table 3.
# And 203.0.113.81, one of this machine's addresses, is a router that answers no echo request.
set -eu
. "$NATF_SOURCE/vagrant/provision/lib.sh"

set_rc nsd_enable YES
put /usr/local/etc/nsd/nsd.conf <"$files/nsd.conf"
put /usr/local/etc/nsd/example.net.zone <"$files/example.net.zone"
serve nsd

changed=
let_ipfw_accept
put /usr/local/etc/silent.ipfw <"$files/silent.ipfw"
set_rc firewall_type /usr/local/etc/silent.ipfw
set_rc firewall_enable YES
serve ipfw
