# shellcheck shell=sh disable=SC2034 # for those who source it
#
# Sourced by the provisioning scripts. POSIX sh and FreeBSD's base system.
#
# Every step may run again at any time: it looks first, and changes only what is not as wanted. `changed` is not empty
# once something was. NATF_ROOT is empty but in tests: the directory that stands for /.
root=${NATF_ROOT:-}
files=$NATF_SOURCE/vagrant/hosts/$NATF_HOST
changed=

say() {
    printf '%s: %s\n' "$NATF_HOST" "$*"
}

fail() {
    say "$*" >&2
    exit 1
}

# set_rc NAME VALUE: in /etc/rc.conf.
set_rc() {
    [ "$(sysrc -in "$1")" = "$2" ] && return
    sysrc "$1=$2"
    changed=yes
}

# put FILE: make it what standard input says.
put() {
    mkdir -p "$root${1%/*}"
    cat >"$root$1.new"
    if cmp -s "$root$1.new" "$root$1"; then
        rm "$root$1.new"
        return
    fi
    # Written into, not replaced: it keeps its owner and mode.
    cat "$root$1.new" >"$root$1"
    rm "$root$1.new"
    say "wrote $1"
    changed=yes
}

# put_line FILE LINE: append it unless it is there.
put_line() {
    mkdir -p "$root${1%/*}"
    grep -qFx -e "$2" "$root$1" 2>/dev/null && return
    printf '%s\n' "$2" >>"$root$1"
    say "$1: $2"
    changed=yes
}

# set_sysctl NAME VALUE: now and after a boot.
set_sysctl() {
    put_line /etc/sysctl.conf "$1=$2"
    [ "$(sysctl -n "$1")" = "$2" ] || sysctl "$1=$2"
}

# serve SERVICE: running, and started anew if anything was changed.
serve() {
    if [ -n "$changed" ]; then
        service "$1" restart
    else
        service "$1" status >/dev/null || service "$1" start
    fi
}

# Loaded without this, ipfw drops everything until it has rules, the ssh we come by included.
let_ipfw_accept() {
    accept=net.inet.ip.fw.default_to_accept
    put_line /boot/loader.conf "$accept=\"1\""
    [ "$(kenv -q "$accept")" = 1 ] || kenv "$accept=1"
}

# The address of the gateway; nothing if there is none.
default_gateway() {
    route -n get -inet default 2>/dev/null | awk '$1 == "gateway:" { print $2 }'
}

# set_default_route ADDRESS: or none, if that is empty.
set_default_route() {
    [ "$(default_gateway)" = "$1" ] && return
    route -nq delete -inet default || true
    [ -z "$1" ] || route -nq add -inet default "$1"
    say "default route: ${1:-none}"
}
