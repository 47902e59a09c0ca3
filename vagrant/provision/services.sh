#!/bin/sh
# shellcheck disable=SC1091,SC2034,SC2154 # what lib.sh sets and reads
#
# The servers of NATF_SERVICES, "KIND:NAME:PORT" each: http and udp-echo by rc.d/natf_lab, ftp by the base system.
set -eu
. "$NATF_SOURCE/vagrant/provision/lib.sh"

ftp() {
    if [ ! -x "$root/usr/libexec/ftpd" ]; then
        say 'the base system has no ftpd: no FTP here'
        return
    fi
    set_rc ftpd_enable YES
    pw user show ftp >/dev/null 2>&1 || pw user add ftp -d /var/ftp -s /usr/sbin/nologin -c 'anonymous FTP'
    put /var/ftp/hello <<END
This is $NATF_HOST's file.
END
    serve ftpd
}

ours=
for service in $NATF_SERVICES; do
    case $service in
    ftp:*) ftp ;;
    *) ours="$ours${ours:+ }$service" ;;
    esac
done

changed=
mkdir -p "$root/usr/local/etc/rc.d"
put /usr/local/etc/rc.d/natf_lab <"$NATF_SOURCE/vagrant/provision/natf_lab"
chmod 555 "$root/usr/local/etc/rc.d/natf_lab"
set_rc natf_lab_enable YES
set_rc natf_lab_python "$NATF_PYTHON"
set_rc natf_lab_services "$ours"
serve natf_lab
