#!/bin/sh
# shellcheck disable=SC1091,SC2034,SC2154 # what lib.sh sets and reads
#
# Interfaces named and addressed as in the lab, default route and name server inside it. Vagrant's own interface, by
# which its ssh comes in from a neighbour on the same network, needs neither and stays as it is.
set -eu
. "$NATF_SOURCE/vagrant/provision/lib.sh"

# Between virtual machines checksums may stay unfinished and segments joined, which no divert socket can use.
offload='-rxcsum -txcsum -tso -lro'

# interface_of MAC: em1, vtnet1 or what else the box calls it.
interface_of() {
    for interface in $(ifconfig -l ether); do
        if ifconfig "$interface" | grep -qi "ether $1"; then
            printf '%s\n' "$interface"
            return
        fi
    done
    fail "no interface has the address $1 of machines.json, only: $(ifconfig -l ether)"
}

has_address() {
    ifconfig "$1" | grep -q "inet $2 "
}

# link NAME MAC ADDRESS/LENGTH...
link() {
    name=$1
    interface=$(interface_of "$2")
    shift 2
    set_rc "ifconfig_$name" "inet $1 $offload"
    number=0
    for address; do
        [ "$address" = "$1" ] && continue
        set_rc "ifconfig_${name}_alias$number" "inet $address"
        number=$((number + 1))
    done
    if [ "$interface" != "$name" ]; then
        set_rc "ifconfig_${interface}_name" "$name"
        ifconfig "$interface" name "$name"
    fi
    for address; do
        # Its exit status is that of whatever it did last: what counts is the address.
        has_address "$name" "${address%/*}" || service netif restart "$name" || true
        has_address "$name" "${address%/*}" || fail "$name did not get the address $address"
        put_line /etc/hosts "${address%/*} $NATF_HOST"
    done
}

links=$(printf '%s\n' "$NATF_LINKS" | tr ';' '\n' | tr ',' ' ')
while read -r name _ mac addresses; do
    # shellcheck disable=SC2086 # a word each
    link "$name" "$mac" $addresses </dev/null
done <<END
$links
END

set_rc hostname "$NATF_HOST"
[ "$(hostname)" = "$NATF_HOST" ] || hostname "$NATF_HOST"

# dhclient-script(8) reads this before it acts: at no renewal does it bring back the world's route or name server.
put /etc/dhclient-enter-hooks <<END
new_routers= new_static_routes= new_classless_routes=
new_domain_name= new_domain_search= new_domain_name_servers=
END
put /etc/resolvconf.conf <<END
resolvconf="NO"
END
put /etc/resolv.conf <<END
nameserver $NATF_NAMESERVER
options timeout:2 attempts:2
END

set_rc defaultrouter "${NATF_GATEWAY:-NO}"
set_default_route "$NATF_GATEWAY"
