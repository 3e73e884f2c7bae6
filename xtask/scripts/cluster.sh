#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# A private, throw-away cluster of three database servers behind a proxy on 127.0.0.1, as docs/operations.md advises for two
# zones: MariaDB Galera behind HAProxy, or MySQL Group Replication (one primary) behind MySQL Router.
#
#   cluster.sh create mariadb|mysql DIR PORT   make it and start it; clients connect to PORT, where the proxy leads them to
#                                              the server that is written to. DIR must not exist, its parent must
#   cluster.sh kill9 DIR | freeze DIR          kill, or stop with SIGSTOP, the server that is written to now
#   cluster.sh start DIR                       bring every server back that is dead or frozen; returns when all are in step
#   cluster.sh reap PARENT                     wait for end of input, then kill every cluster in PARENT/* and delete PARENT
#
# The servers are those of db.sh, with the same account app and the authority DIR/ca.pem.
set -euo pipefail

here=$(dirname "$(realpath "$0")")
mysql=$EFGS_TEST_MYSQL_PREFIX
PATH=$mysql/galera:$PATH:/usr/sbin
runas=()
if [ "$(id -u)" = 0 ]; then runas=(setpriv --reuid=nobody --regid="$(id -g nobody)" --clear-groups --); fi

db() { bash "$here/db.sh" "$@"; }
value() { db sql "$1" -Ne "$2" 2>/dev/null; } # node, query
await() { # seconds, what, command…
  local end=$((SECONDS + $1)) what=$2
  shift 2
  until "$@"; do
    if [ $SECONDS -ge $end ]; then echo "$what: still not after a long time" >&2 && exit 1; fi
    sleep .1
  done
}

# The number of the server that the proxy leads to.
current() { # DIR
  local port
  port=$(mariadb --no-defaults -h127.0.0.1 -P"$(cat "$1/port")" -uapp -papp-secret --ssl-ca="$1/ca.pem" --connect-timeout=5 \
    -Ne 'SELECT @@port' 2>/dev/null) && echo $((port - $(cat "$1/base")))
}
is_reached() { current "$1" >/dev/null; }

galera_options() { # DIR, node
  local base
  base=$(cat "$1/base")
  printf '%s\n' --binlog-format=ROW --innodb-autoinc-lock-mode=2 --server-id="$2" --innodb-buffer-pool-size=128M \
    --wsrep-on=ON --wsrep-provider=/usr/lib/galera/libgalera_smm.so --wsrep-cluster-name="efgs$base" \
    --wsrep-cluster-address="gcomm://127.0.0.1:$((base + 11)),127.0.0.1:$((base + 12)),127.0.0.1:$((base + 13))?pc.wait_prim=yes" \
    --wsrep-node-name="n$2" --wsrep-node-address="127.0.0.1:$((base + 10 + $2))" \
    --wsrep-node-incoming-address="127.0.0.1:$((base + $2))" --wsrep-slave-threads=2 \
    --wsrep-sst-method=rsync --wsrep-sst-receive-address="127.0.0.1:$((base + 30 + $2))" \
    --wsrep-provider-options="gmcast.listen_addr=tcp://127.0.0.1:$((base + 10 + $2));ist.recv_addr=127.0.0.1:$((base + 20 + $2));ist.recv_bind=127.0.0.1:$((base + 20 + $2));gcache.size=64M;evs.keepalive_period=PT0.5S;evs.suspect_timeout=PT2S;evs.inactive_timeout=PT6S"
}
galera_in_step() { [ "$(value "$1" "SELECT VARIABLE_VALUE FROM information_schema.GLOBAL_STATUS WHERE VARIABLE_NAME = 'wsrep_local_state'")" = 4 ]; }

group_options() { # DIR, node
  local base
  base=$(cat "$1/base")
  printf '%s\n' --server-id="$2" --report-host=127.0.0.1 --report-port=$((base + $2)) --performance-schema=ON \
    --innodb-buffer-pool-size=128M --gtid-mode=ON --enforce-gtid-consistency=ON --log-bin=binlog \
    --plugin-load-add=group_replication.so --plugin-load-add=mysql_clone.so \
    --group-replication-group-name="aaaaaaaa-0000-4000-8000-$(printf %012d "$base")" \
    --group-replication-communication-stack=MYSQL --group-replication-local-address=127.0.0.1:$((base + $2)) \
    --group-replication-group-seeds="127.0.0.1:$((base + 1)),127.0.0.1:$((base + 2)),127.0.0.1:$((base + 3))" \
    --group-replication-ssl-mode=REQUIRED --group-replication-recovery-use-ssl=ON \
    --group-replication-member-expel-timeout=0 --group-replication-exit-state-action=READ_ONLY \
    --group-replication-consistency=BEFORE_ON_PRIMARY_FAILOVER --group-replication-start-on-boot="$3"
}
group_in_step() { [ "$(value "$1" "SELECT MEMBER_STATE FROM performance_schema.replication_group_members WHERE MEMBER_ID = @@server_uuid")" = ONLINE ]; }

in_step() { # node
  if [ "$(cat "$1/kind")" = mysql ]; then group_in_step "$1"; else galera_in_step "$1"; fi
}

galera() { # DIR
  local dir=$1 i
  for i in 1 2 3; do galera_options "$dir" "$i" >"$dir/$i/options"; done
  echo --wsrep-new-cluster >>"$dir/1/options"
  db start "$dir/1"
  galera_options "$dir" 1 >"$dir/1/options"
  for i in 1 2 3; do
    db start "$dir/$i"
    await 60 "node $i" galera_in_step "$dir/$i"
  done
  db sql "$dir/1" -e "CREATE USER haproxy@'127.0.0.1'"
  {
    printf 'defaults\n  mode tcp\n  timeout connect 2s\n  timeout client 1h\n  timeout server 1h\n'
    printf 'listen galera\n  bind 127.0.0.1:%s\n  option mysql-check user haproxy\n' "$(cat "$dir/port")"
    printf '  default-server inter 500ms fall 2 rise 2 on-marked-down shutdown-sessions\n'
    for i in 1 2 3; do
      printf '  server n%s 127.0.0.1:%s check%s\n' "$i" $(($(cat "$dir/base") + i)) "$([ "$i" = 1 ] || echo ' backup')"
    done
  } >"$dir/haproxy.cfg"
  setsid haproxy -db -f "$dir/haproxy.cfg" </dev/null >"$dir/proxy.log" 2>&1 &
  echo $! >"$dir/proxy.pid"
}

group_replication() { # DIR
  local dir=$1 i router=$1/router base rw
  base=$(cat "$dir/base")
  for i in 1 2 3; do
    rm -f "$dir/$i/data/auto.cnf"
    group_options "$dir" "$i" OFF >"$dir/$i/options"
    db start "$dir/$i"
    db sql "$dir/$i" -e "SET sql_log_bin = 0; CREATE USER rpl@'127.0.0.1' IDENTIFIED BY 'rpl-secret';
      GRANT REPLICATION SLAVE, CONNECTION_ADMIN, BACKUP_ADMIN, GROUP_REPLICATION_STREAM ON *.* TO rpl@'127.0.0.1';
      CHANGE REPLICATION SOURCE TO SOURCE_USER = 'rpl', SOURCE_PASSWORD = 'rpl-secret' FOR CHANNEL 'group_replication_recovery'"
    if [ "$i" = 1 ]; then db sql "$dir/1" -e 'SET GLOBAL group_replication_bootstrap_group = ON'; fi
    db sql "$dir/$i" -e 'START GROUP_REPLICATION; SET GLOBAL group_replication_bootstrap_group = OFF'
    await 60 "node $i" group_in_step "$dir/$i"
    group_options "$dir" "$i" ON >"$dir/$i/options" # from now on it comes back by itself
  done
  db sql "$dir/1" <"$here/router-metadata.sql"
  mkdir "$router"
  printf '{"metadata-cache":{"group-replication-id":"%s","cluster-metadata-servers":["mysql://127.0.0.1:%s","mysql://127.0.0.1:%s","mysql://127.0.0.1:%s"]},"version":"1.0.0"}' \
    "$(value "$dir/1" 'SELECT @@group_replication_group_name')" $((base + 1)) $((base + 2)) $((base + 3)) >"$router/state.json"
  "$mysql/bin/mysqlrouter_keyring" init "$router/keyring" --master-key-file="$router/master.key"
  printf router-secret | "$mysql/bin/mysqlrouter_keyring" set "$router/keyring" router password --master-key-file="$router/master.key" >/dev/null
  cat >"$router/router.conf" <<CONF
[DEFAULT]
logging_folder=$router
runtime_folder=$router
data_folder=$router
keyring_path=$router/keyring
master_key_path=$router/master.key
dynamic_state=$router/state.json
plugin_folder=$mysql/root/usr/lib/mysqlrouter/plugin
connect_timeout=5
read_timeout=5
client_ssl_mode=PASSTHROUGH
server_ssl_mode=AS_CLIENT
[logger]
level=INFO
[metadata_cache:efgs]
cluster_type=gr
router_id=1
user=router
metadata_cluster=efgs
ttl=0.5
use_gr_notifications=0
ssl_mode=REQUIRED
[routing:primary]
bind_address=127.0.0.1
bind_port=$(cat "$dir/port")
protocol=classic
destinations=metadata-cache://efgs/?role=PRIMARY
routing_strategy=first-available
CONF
  if [ "$(id -u)" = 0 ]; then chown -R nobody: "$router"; fi
  "${runas[@]}" setsid "$mysql/bin/mysqlrouter" -c "$router/router.conf" </dev/null >"$dir/proxy.log" 2>&1 &
  echo $! >"$dir/proxy.pid"
}

create() { # kind, DIR, port
  local dir=$2 i base
  mkdir "$dir"
  echo "$3" >"$dir/port"
  # Forty ports in a row that nobody listens on, below those that the kernel takes for outgoing connections.
  for base in $(shuf -i 10000-32000 -n 50); do
    if [ -z "$(ss -Hltn "sport >= :$base and sport <= :$((base + 40))")" ]; then break; fi
  done
  echo "$base" >"$dir/base"
  db create "$1" "$dir/1" $((base + 1)) >/dev/null
  db stop "$dir/1"
  cp "$dir/1/ca.pem" "$dir/ca.pem"
  for i in 2 3; do
    cp -a --reflink=auto "$dir/1" "$dir/$i"
    echo $((base + i)) >"$dir/$i/port"
  done
  if [ "$1" = mysql ]; then group_replication "$dir"; else galera "$dir"; fi
  await 60 "the proxy" is_reached "$dir"
}

case $1 in
create) create "$2" "$(realpath -m "$3")" "$4" ;;
kill9 | freeze | start)
  dir=$(realpath -e "$2")
  case $1 in
  kill9) db kill9 "$dir/$(current "$dir")" ;;
  freeze)
    i=$(current "$dir")
    kill -STOP "$(cat "$dir/$i/server.pid")"
    touch "$dir/$i/frozen"
    ;;
  start)
    for i in 1 2 3; do
      if [ -e "$dir/$i/frozen" ]; then db kill9 "$dir/$i" && rm "$dir/$i/frozen"; fi
      db start "$dir/$i"
      await 120 "node $i" in_step "$dir/$i"
    done
    ;;
  esac
  ;;
reap)
  dir=$(realpath -e "$2")
  cat >/dev/null
  for cluster in "$dir"/*/; do
    if [ -s "${cluster}proxy.pid" ]; then kill -9 "$(cat "${cluster}proxy.pid")" 2>/dev/null || true; fi
    for i in 1 2 3; do
      if [ -d "$cluster$i" ]; then db kill9 "$cluster$i" || true; fi
    done
  done
  rm -rf "$dir"
  ;;
*)
  echo "unknown command $1; see the head of $0" >&2
  exit 2
  ;;
esac
