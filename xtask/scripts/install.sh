#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Installs what db.sh and cluster.sh need, where it is missing, on Debian 12:
#   - MariaDB 10.11, server and client, from Debian's packages (as root or through sudo; no system service is set up);
#   - Galera in the same way; of the package that holds its scripts for copying a server's data, and that would set up a
#     service, only these scripts, into FOLDER/galera;
#   - nginx with its JavaScript module, HAProxy and Prometheus, in the same way, for the tests of deploy/; their services are
#     switched off;
#   - Chromium with its driver and a font, in the same way, for the tests of the operator's page;
#   - protoc, zip and unzip, which make and read the export files in the tests of the national backend;
#   - MySQL 9.7, server, client and router, from Debian's unstable suite, unpacked with all its libraries into a private FOLDER.
#     The system's own packages stay as they are. The folder is the cache: a second run returns at once.
#
#   install.sh FOLDER      (the account that runs the server must be able to read it: not below /root)
set -euo pipefail

PATH=$PATH:/usr/sbin
prefix=$1
part=$prefix.part
mkdir -p "$(dirname "$prefix")"
exec 9>"$prefix.lock"
flock 9 # two runs at once: the second one waits and finds everything there

root=()
if [ "$(id -u)" != 0 ]; then root=(sudo); fi
if ! { command -v mariadbd && command -v mariadb && command -v mariadb-install-db && command -v mariadb-dump && command -v openssl; } >/dev/null; then
  "${root[@]}" apt-get -qq update
  "${root[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get -qq install -y --no-install-recommends mariadb-server-core mariadb-client-core mariadb-client openssl >/dev/null
fi

tried=()
for package in nginx libnginx-mod-http-js haproxy prometheus protobuf-compiler unzip zip galera-4 rsync iproute2; do
  dpkg-query --show --showformat '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || tried+=("$package")
done
if [ ${#tried[@]} -gt 0 ]; then
  "${root[@]}" apt-get -qq update
  "${root[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get -qq install -y --no-install-recommends "${tried[@]}" >/dev/null
  # These packages switch services on: off again, but never one that was there before.
  if [ -d /run/systemd/system ]; then
    for service in nginx haproxy prometheus; do
      case " ${tried[*]} " in *" $service "*) "${root[@]}" systemctl --quiet disable --now "$service" ;; esac
    done
  fi
fi

if ! { command -v chromium && command -v chromedriver; } >/dev/null; then
  "${root[@]}" apt-get -qq update
  "${root[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get -qq install -y --no-install-recommends chromium chromium-driver fonts-dejavu-core >/dev/null
fi

if [ -x "$prefix/galera/wsrep_sst_rsync" ] && [ -x "$prefix/bin/mysqlrouter" ]; then exit 0; fi
rm -rf "$part" "$prefix"
mkdir -p "$part"/apt/{lists/partial,cache/archives/partial,etc/{parts,preferences.d,trusted.gpg.d}} "$part/root" "$part/bin"

# Without an installed package apt would bring every dependency. Perl is only wanted by helper scripts: 10 MB less.
printf '%s\n' 'Package: perl' 'Status: install ok installed' "Architecture: $(dpkg --print-architecture)" \
  'Multi-Arch: allowed' 'Version: 99' 'Maintainer: none' 'Description: stub' '' >"$part/apt/status"

# The mirror that this machine already uses.
mirror() {
  # shellcheck disable=SC2016 # apt-get fills it in
  apt-get indextargets --format '$(REPO_URI)' 'Origin: Debian' 'Created-By: Packages' | grep -v security | sort -u | sed -n 1p
}
debian=$(mirror)
if [ -z "$debian" ]; then
  "${root[@]}" apt-get -qq update
  debian=$(mirror)
fi
# Of this package only the scripts: `apt-get install` would set up a service.
(
  cd "$part/apt"
  get() { apt-get -qq download -o APT::Sandbox::User= mariadb-server; }
  get 2>/dev/null || { "${root[@]}" apt-get -qq update && get; }
  dpkg-deb -x mariadb-server_*.deb server
  mkdir "$part/galera"
  cp server/usr/bin/wsrep_sst_{common,rsync} "$part/galera/"
)

echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $debian sid main" >"$part/apt/etc/sources.list"
# A mirror that lags serves an index past its date; the signature is still checked, and these servers hold test data only.
cat >"$part/apt/conf" <<CONF
Dir::Etc "$part/apt/etc"; Dir::Etc::sourcelist "$part/apt/etc/sources.list"; Dir::Etc::sourceparts "-";
Dir::Etc::parts "$part/apt/etc/parts"; Dir::State "$part/apt"; Dir::State::lists "$part/apt/lists";
Dir::State::status "$part/apt/status"; Dir::Cache "$part/apt/cache"; APT::Install-Recommends "false";
Acquire::Check-Valid-Until "false";
APT::Sandbox::User ""; Acquire::Languages "none"; Acquire::Retries "3"; Acquire::GzipIndexes "true"; Debug::NoLocking "true";
CONF
export APT_CONFIG=$part/apt/conf
apt-get -qq update
apt-get -qq -y --download-only install mysql-server-core mysql-client-core mysql-router >/dev/null
for deb in "$part"/apt/cache/archives/*.deb; do dpkg-deb -x "$deb" "$part/root"; done
version=$(dpkg-deb -f "$part"/apt/cache/archives/mysql-server-core_*.deb Version)
case $version in 9.7.*) ;; *) echo "warning: Debian's unstable suite moved on to MySQL $version" >&2 ;; esac
rm -rf "$part/apt" "$part"/root/usr/share/{doc,man,locale,perl*} "$part/root/usr/lib/debug"

# Wrappers: the unpacked loader and libraries, not the system's older ones.
libraries=$(cd "$part/root" && ls -d usr/lib/*-linux-gnu)
loader=$(cd "$part/root" && find usr -type f -name 'ld-linux-*.so.*' | sed -n 1p)
for program in usr/sbin/mysqld usr/bin/{mysql,mysqldump,mysqlrouter,mysqlrouter_keyring}; do
  wrapper=$part/bin/$(basename "$program")
  cat >"$wrapper" <<WRAPPER
#!/bin/sh
R=\$(dirname "\$(dirname "\$(readlink -f "\$0")")")/root
export OPENSSL_MODULES=\$R/$libraries/ossl-modules GCONV_PATH=\$R/$libraries/gconv
exec "\$R/$loader" --library-path "\$R/$libraries:\$R/usr/lib/mysql-router" --argv0 "\$R/$program" "\$R/$program" "\$@"
WRAPPER
  chmod 755 "$wrapper"
done
mv "$part" "$prefix"
