#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# A private, throw-away database server on 127.0.0.1 with TLS, run by an unprivileged account. Durable like a real one:
# what was committed survives kill9.
#
#   db.sh create mariadb|mysql DIR PORT [OPTION…]   make a server, start it, print its version;
#                                                   DIR must not exist, its parent must
#   db.sh start DIR                                 start it again, on the same port, with the same options
#   db.sh stop DIR | kill9 DIR                      shut it down cleanly | kill it; both return when it is gone
#   db.sh sql DIR [CLIENT OPTION…]                  a client as the database's root (over the socket)
#   db.sh reap PARENT                               wait for end of input, then kill every server in PARENT/* and delete PARENT
#
# DIR/ca.pem is the authority to trust. The account app (password app-secret, TLS only) may do everything in databases
# whose names begin with efgs_ and nothing elsewhere. MySQL is taken from $EFGS_TEST_MYSQL_PREFIX.
set -euo pipefail

PATH=$PATH:/usr/sbin # an ordinary account of Debian has no servers on its path

runas=()
if [ "$(id -u)" = 0 ]; then
  runas=(setpriv --reuid=nobody --regid="$(id -g nobody)" --clear-groups -- env HOME=/nonexistent)
fi

# Starting holds a shared lock on the parent folder and reaping an exclusive one, so a server that is just starting is
# never overlooked. The server itself must not inherit the lock: descriptor 9 is closed where a server starts.
lock() { exec 9>"$2/lock" && flock "$1" 9; }

# The pid file may be stale and its number taken by another process: ask for the data folder too.
alive() { grep -qszxF -- "--datadir=$1/data" "/proc/$(cat "$1/server.pid" 2>/dev/null || echo none)/cmdline"; }

# A killed process that nobody has waited for yet counts as gone once its last thread, and with it its files, are gone.
running() { # PID
  local status
  status=$(cat "/proc/$1/status" 2>/dev/null) || return 1
  [[ $status != *$'\nState:\tZ'* || $status != *$'\nThreads:\t1\n'* ]]
}

kill_and_wait() { # signal, DIR
  local pid
  if ! alive "$2"; then return; fi
  pid=$(cat "$2/server.pid")
  kill -s "$1" "$pid"
  while running "$pid"; do sleep .02; done
}

client() { # DIR, options…
  local dir=$1 program=mariadb
  shift
  if [ "$(cat "$dir/kind")" = mysql ]; then program=$EFGS_TEST_MYSQL_PREFIX/bin/mysql; fi
  "$program" --no-defaults -uroot -S "$dir/s.sock" "$@"
}

# rustls wants an authority and a leaf with SANs; what the servers make for themselves has neither.
certificates() { # DIR
  local ec=(-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes)
  openssl req -x509 "${ec[@]}" -days 30 -subj /CN=test-ca -addext basicConstraints=critical,CA:TRUE \
    -keyout "$1/ca.key" -out "$1/ca.pem"
  openssl req "${ec[@]}" -subj /CN=localhost -keyout "$1/key.pem" -out "$1/csr.pem"
  openssl x509 -req -in "$1/csr.pem" -CA "$1/ca.pem" -CAkey "$1/ca.key" -CAcreateserial -days 30 -out "$1/cert.pem" \
    -extfile <(printf 'subjectAltName=DNS:localhost,IP:127.0.0.1\nbasicConstraints=CA:FALSE')
}

server_command() { # DIR: sets the array server
  local dir=$1 options
  mapfile -t options <"$dir/options"
  server=(--no-defaults --datadir="$dir/data" --tmpdir="$dir/tmp" --socket="$dir/s.sock" --pid-file="$dir/pid"
    --log-error="$dir/err.log" --bind-address=127.0.0.1 --port="$(cat "$dir/port")"
    --ssl-ca="$dir/ca.pem" --ssl-cert="$dir/cert.pem" --ssl-key="$dir/key.pem"
    --character-set-server=utf8mb4 --performance-schema=OFF --max-connections=500
    --innodb-buffer-pool-size=256M --innodb-flush-log-at-trx-commit=1)
  if [ "$(cat "$dir/kind")" = mysql ]; then
    local usr=$EFGS_TEST_MYSQL_PREFIX/root/usr
    server=("$EFGS_TEST_MYSQL_PREFIX/bin/mysqld" "${server[@]}" --basedir="$usr" --plugin-dir="$usr/lib/mysql/plugin"
      --lc-messages-dir="$usr/share/mysql" --mysqlx=OFF --secure-file-priv= --innodb-redo-log-capacity=128M)
  else
    server=(mariadbd "${server[@]}" --basedir=/usr --innodb-log-file-size=128M)
  fi
  server+=("${options[@]}")
}

start() { # DIR; the lock is held
  local dir=$1 server
  if alive "$dir"; then return; fi
  server_command "$dir"
  rm -f "$dir/pid" "$dir/s.sock" "$dir/s.sock.lock" # MySQL takes a killed predecessor for running while it is a zombie
  "${runas[@]}" setsid "${server[@]}" 9>&- </dev/null >"$dir/out.log" 2>&1 &
  echo $! >"$dir/server.pid"
  for _ in $(seq 1200); do
    if client "$dir" -e 'DO 1' 2>/dev/null; then return; fi
    kill -0 $! 2>/dev/null || break
    sleep .05
  done
  tail -n 20 "$dir/err.log" "$dir/out.log" >&2
  echo "the database server in $dir did not come up" >&2
  exit 1
}

create() { # kind, DIR, PORT, options…; the lock is held
  local kind=$1 dir=$2 port=$3 server
  shift 3
  mkdir "$dir" "$dir/data" "$dir/tmp"
  echo "$kind" >"$dir/kind"
  echo "$port" >"$dir/port"
  printf '%s\n' "$@" | sed '/^$/d' >"$dir/options"
  certificates "$dir" 2>"$dir/openssl.log" || { cat "$dir/openssl.log" >&2 && exit 1; }
  if [ "$(id -u)" = 0 ]; then chown -R nobody: "$dir"; fi
  if [ "$kind" = mysql ]; then
    server_command "$dir"
    "${runas[@]}" "${server[@]}" --initialize-insecure 9>&- || { tail -n 20 "$dir/err.log" >&2 && exit 1; }
  else
    "${runas[@]}" mariadb-install-db --no-defaults --datadir="$dir/data" --basedir=/usr --skip-test-db --skip-name-resolve \
      --auth-root-authentication-method=normal >"$dir/install.log" 2>&1 9>&- || { tail -n 20 "$dir/install.log" >&2 && exit 1; }
  fi
  start "$dir"
  client "$dir" <<'SQL'
CREATE USER app@'%' IDENTIFIED BY 'app-secret' REQUIRE SSL;
GRANT ALL ON `efgs\_%`.* TO app@'%';
SQL
  client "$dir" -Ne 'SELECT VERSION()'
}

command=$1
case $command in
create)
  dir=$(realpath -m "$3")
  lock --shared "$(dirname "$dir")"
  create "$2" "$dir" "${@:4}"
  ;;
start | stop | kill9 | sql | reap)
  dir=$(realpath -e "$2")
  case $command in
  start)
    lock --shared "$(dirname "$dir")"
    start "$dir"
    ;;
  stop) kill_and_wait TERM "$dir" ;;
  kill9) kill_and_wait KILL "$dir" ;;
  sql) client "$dir" "${@:3}" ;;
  reap)
    cat >/dev/null
    lock --exclusive "$dir"
    for server in "$dir"/*/; do kill_and_wait KILL "${server%/}"; done
    rm -rf "$dir"
    ;;
  esac
  ;;
*)
  echo "unknown command $command; see the head of $0" >&2
  exit 2
  ;;
esac
