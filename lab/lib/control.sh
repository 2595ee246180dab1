# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
#
# OpenStack itself: databases, services, catalog, network and image. What is
# done once is remembered in the controller's root, next to its databases.

DATABASES=(keystone glance placement nova_api nova_cell0 nova_cell1 neutron)

done_once() { echo "$(host_root controller)/var/lib/nova-fastmig-lab/$1"; }
mark_done() { install -D /dev/null "$(done_once "$1")"; }

databases() {
    local database log pids=() pid failed=0
    [ ! -e "$(done_once databases)" ] || return 0
    {
        for database in "${DATABASES[@]}"; do
            # half a migration, from an interrupted run, cannot be continued
            echo "DROP DATABASE IF EXISTS $database; CREATE DATABASE $database CHARACTER SET utf8;"
        done
        echo "CREATE USER IF NOT EXISTS openstack@'127.0.0.1' IDENTIFIED BY 'secret';"
        echo "GRANT ALL ON *.* TO openstack@'127.0.0.1';"
    } | in_host controller mariadb
    log=$STATE/log/databases.log
    : >"$log"
    for database in keystone glance placement neutron nova; do
        "database_$database" >>"$log" 2>&1 &
        pids+=($!)
    done
    for pid in "${pids[@]}"; do wait "$pid" || failed=1; done
    [ "$failed" -eq 0 ] || die "the databases could not be made: see $log"
    mark_done databases
}

database_keystone() {
    in_host controller sh -euc '
        mkdir -p /var/log/keystone /var/lib/keystone
        keystone-manage db_sync
        keystone-manage fernet_setup --keystone-user root --keystone-group root
        keystone-manage credential_setup --keystone-user root --keystone-group root
        url=http://controller:5000/v3
        keystone-manage bootstrap --bootstrap-password secret --bootstrap-region-id RegionOne \
            --bootstrap-public-url $url --bootstrap-internal-url $url --bootstrap-admin-url $url'
}
database_glance() {
    in_host controller sh -euc 'mkdir -p /var/log/glance; glance-manage db_sync'
}
database_placement() {
    in_host controller sh -euc 'mkdir -p /var/log/placement; placement-manage db sync'
}
database_neutron() {
    in_host controller sh -euc '
        mkdir -p /var/log/neutron
        neutron-db-manage --config-file /etc/neutron/neutron.conf upgrade head'
}
database_nova() {
    in_host controller sh -euc '
        mkdir -p /var/log/nova
        nova-manage api_db sync
        nova-manage cell_v2 map_cell0 --database_connection \
            "mysql+pymysql://openstack:secret@127.0.0.1/nova_cell0?charset=utf8"
        nova-manage db sync
        # 2: the cell exists already
        nova-manage cell_v2 create_cell --name cell1 || [ $? -eq 2 ]'
}

# Start the services of a host and wait for those that tell when they are ready.
services() {
    local failed
    in_host "$1" systemctl start --quiet openstack.target
    failed=$(in_host "$1" systemctl list-units --failed --plain --no-legend | cut -d' ' -f1 | xargs)
    [ -z "$failed" ] || die "$1: failed: $failed (lab/in $1 journalctl -u UNIT)"
}

# Keystone first: the others ask it for a token when they start.
identity() {
    [ ! -e "$(done_once identity)" ] || return 0
    in_host controller systemctl start openstack-api@keystone.service
    in_host controller python "$GUEST_SRC/lab/lib/cloud.py" catalog
    mark_done identity
}

control_plane() {
    services controller
    in_host controller python "$GUEST_SRC/lab/lib/cloud.py" wait-for-apis
}

computes_are_up() { in_host controller python "$GUEST_SRC/lab/lib/cloud.py" wait-for-computes "$@"; }

resources() {
    local image=()
    [ ! -e "$STATE/share/forwarder.img" ] || image=(--image /opt/lab/forwarder.img)
    in_host controller python "$GUEST_SRC/lab/lib/cloud.py" resources "${image[@]}"
}
